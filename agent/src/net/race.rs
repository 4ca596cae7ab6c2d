//! Several addresses of one host: tried a quarter of a second apart, and the first that proves itself wins
//! (RFC 8305, carried through TLS: an address that takes connections and then says nothing more must not win).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long an address is alone before the next one is tried beside it.
const APART: Duration = Duration::from_millis(250);
/// Addresses that are tried at one time.
const AT_ONCE: usize = 4;
/// When more wait than may run, one that says nothing for so long makes room.
const PATIENCE: Duration = Duration::from_secs(2);

/// Nobody won.
#[derive(Debug, thiserror::Error)]
#[error("no address works: {}", .0.iter().map(|(address, why)| format!("{address}: {why}")).collect::<Vec<_>>().join("; "))]
pub(super) struct NobodyWon(pub(super) Vec<(SocketAddr, String)>);

/// Who won, and who should have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Won {
    pub(super) winner: SocketAddr,
    /// Addresses that were tried a turn or more before, and did not work in that time.
    pub(super) beaten: Vec<SocketAddr>,
}

/// The order in which addresses are tried: the families take turns, the first one given begins; without IPv6 its
/// addresses come last.
pub(super) fn in_turns(addresses: &[SocketAddr], v6_broken: bool) -> Vec<SocketAddr> {
    let (mut v4, mut v6): (VecDeque<_>, VecDeque<_>) =
        addresses.iter().copied().partition(SocketAddr::is_ipv4);
    let mut order = Vec::with_capacity(addresses.len());
    if v6_broken {
        order.extend(v4);
        order.extend(v6);
        return order;
    }
    let mut v6_is_next = addresses.first().is_some_and(SocketAddr::is_ipv6);
    while !(v4.is_empty() && v6.is_empty()) {
        let (this, other) = if v6_is_next { (&mut v6, &mut v4) } else { (&mut v4, &mut v6) };
        order.extend(this.pop_front().or_else(|| other.pop_front()));
        v6_is_next = !v6_is_next;
    }
    order
}

/// Races them. Those that lose are broken off.
pub(super) async fn race<F>(order: &[SocketAddr], attempt: impl Fn(SocketAddr) -> F) -> Result<Won, NobodyWon>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let mut waiting: VecDeque<SocketAddr> = order.iter().copied().collect();
    let (mut running, mut started, mut lost) = (JoinSet::new(), Vec::new(), Vec::new());
    let patience = if order.len() <= AT_ONCE { Duration::MAX } else { PATIENCE };
    let mut turn = true;
    loop {
        if let Some(address) = turn.then(|| waiting.pop_front()).flatten() {
            started.push(address);
            let tried = tokio::time::timeout(patience, attempt(address));
            running.spawn(async move { (address, tried.await.unwrap_or_else(|_| Err("no answer".into()))) });
        }
        if running.is_empty() && waiting.is_empty() {
            return Err(NobodyWon(lost));
        }
        let room = !waiting.is_empty() && running.len() < AT_ONCE;
        turn = tokio::select! {
            Some(ended) = running.join_next() => match ended {
                Ok((winner, Ok(()))) => {
                    started.truncate(started.iter().position(|address| *address == winner).unwrap_or(0));
                    return Ok(Won { winner, beaten: started });
                }
                Ok((address, Err(why))) => { lost.push((address, why)); true }
                Err(_) => true,
            },
            () = sleep(APART), if room => true,
            else => true,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 443)).collect()
    }

    fn numbered(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|last| SocketAddr::from(([192, 0, 2, last], 443))).collect()
    }

    #[test]
    fn the_families_take_turns_and_a_broken_ipv6_comes_last() {
        let given = sockets(&["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"]);
        let turns = sockets(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"]);
        assert_eq!(in_turns(&given, false), turns);
        let last = sockets(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8::3"]);
        assert_eq!(in_turns(&given, true), last);
        let v4_first = sockets(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
        assert_eq!(in_turns(&v4_first, false), v4_first);
        assert!(in_turns(&[], false).is_empty());
    }

    /// When each address was tried, in milliseconds; those listed answer after so many milliseconds, well or not; others never.
    async fn run(order: &[SocketAddr], answers: &[(u8, u64, bool)]) -> (Result<Won, NobodyWon>, Vec<u64>) {
        let began = tokio::time::Instant::now();
        let tried = Arc::new(Mutex::new(Vec::new()));
        let result = race(order, |address| {
            let SocketAddr::V4(v4) = address else { panic!("{address}") };
            let answer = answers.iter().find(|(last, ..)| *last == v4.ip().octets()[3]).copied();
            tried.lock().unwrap().push(u64::try_from(began.elapsed().as_millis()).unwrap());
            async move {
                match answer {
                    Some((_, after, good)) => {
                        sleep(Duration::from_millis(after)).await;
                        if good { Ok(()) } else { Err("refused".into()) }
                    }
                    None => std::future::pending().await,
                }
            }
        })
        .await;
        let tried = tried.lock().unwrap().clone();
        (result, tried)
    }

    #[tokio::test]
    async fn an_address_that_stalls_loses_to_the_next_one() {
        let order = numbered(3);
        let (won, tried) = run(&order, &[(2, 100, true)]).await;
        assert_eq!(won.unwrap(), Won { winner: order[1], beaten: vec![order[0]] });
        assert!(tried.len() == 2 && tried[1] >= 250, "{tried:?}");
    }

    #[tokio::test]
    async fn an_address_that_is_refused_is_followed_at_once() {
        let order = numbered(20);
        let answers: Vec<_> = (1..=20).map(|last| (last, 0, last == 20)).collect();
        let (won, tried) = run(&order, &answers).await;
        assert_eq!(won.unwrap().winner, order[19]);
        assert!(tried[19] < 19 * 250, "{tried:?}");
    }

    #[tokio::test]
    async fn a_slow_first_one_may_still_win() {
        let order = numbered(2);
        let (won, tried) = run(&order, &[(1, 400, true)]).await;
        assert_eq!(won.unwrap(), Won { winner: order[0], beaten: Vec::new() });
        assert_eq!(tried.len(), 2, "the second was tried meanwhile");
    }

    #[tokio::test]
    async fn no_more_than_four_are_tried_at_one_time_and_the_silent_make_room() {
        let order = numbered(6);
        let (won, tried) = run(&order, &[(5, 10, false), (6, 10, true)]).await;
        assert_eq!(won.unwrap().winner, order[5]);
        assert!(tried.len() == 6 && tried[4] >= 2_000, "{tried:?}");
    }

    #[tokio::test]
    async fn when_all_are_refused_each_says_why() {
        let (lost, _) = run(&numbered(2), &[(1, 1, false), (2, 1, false)]).await;
        assert_eq!(
            lost.unwrap_err().to_string(),
            "no address works: 192.0.2.1:443: refused; 192.0.2.2:443: refused"
        );
        assert!(run(&[], &[]).await.0.unwrap_err().0.is_empty());
    }
}
