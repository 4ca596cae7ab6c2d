use super::*;
use crate::heartbeat::Heartbeats;
use crate::orders::ledger::{Change, ChangeTo, LedgerSettings, NewOrder, OpenError};
use crate::orders::order::Order;
use std::time::Duration;

struct Till {
    ledger: Ledger,
    dir: tempfile::TempDir,
}

fn open(dir: &std::path::Path) -> Result<Ledger, OpenError> {
    let heartbeat = Heartbeats::default().register("ledger", Duration::from_secs(10));
    let settings = LedgerSettings::at(dir.join("orders.db"));
    Ledger::open(settings, heartbeat)
}

/// The thread lets go of the file shortly after the last handle is gone.
async fn when_free<T>(open: impl Fn() -> Result<T, OpenError>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(OpenError::InUse) if tokio::time::Instant::now() < deadline => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

fn apac() -> OriginId {
    "apac".parse().unwrap()
}

fn all() -> Places {
    Places { from: 1, to: 10_000 }
}

fn order(number: u64) -> NewOrder {
    let body = format!(r#"{{"order_no":"k{number}","placed_at":"2026-11-20T08:00:00Z"}}"#);
    let order = Order::parse(body.as_bytes(), None, &"US".parse::<Country>().unwrap()).unwrap();
    NewOrder { id: format!("id{number}"), accepted_at: wall(), order }
}

impl Till {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { ledger: open(dir.path()).unwrap(), dir }
    }

    /// Orders `first..=last`, settled by apac.
    async fn settled(first: u64, last: u64) -> Self {
        let till = Self::new();
        till.ledger.accept((first..=last).map(order).collect()).await.unwrap();
        till.settle((first..=last).collect()).await;
        till
    }

    async fn post(&self, number: u64) {
        self.ledger.accept(vec![order(number)]).await.unwrap();
    }

    async fn settle(&self, seqs: Vec<u64>) {
        self.ledger.bind(seqs.clone(), apac()).await.unwrap();
        let changes = seqs.into_iter().map(|seq| Change { seq, to: ChangeTo::Settled }).collect();
        self.ledger.change(changes).await.unwrap();
    }

    async fn marks(&self) -> Vec<u64> {
        self.ledger.marks(&apac()).await.unwrap().into_iter().map(|mark| mark.bucket).collect()
    }

    async fn resend(&self, keys: &[&str]) -> Resent {
        let keys = keys.iter().map(ToString::to_string).collect();
        self.ledger.resend(&apac(), all(), keys, 100).await.unwrap()
    }

    async fn outstanding(&self) -> Outstanding {
        self.ledger.compared().await.unwrap().remove(0).0
    }

    /// A step of retention; gives how many bodies went.
    async fn retain(self, before: Timestamp, unconfirmed_before: Timestamp) -> (Self, usize) {
        let Self { ledger, dir } = self;
        drop(ledger);
        let path = dir.path().join("orders.db");
        let mut tables = when_free(|| Tables::open(&path, 64 << 20, None)).await;
        let candidates = tables.history(100, unconfirmed_before).unwrap();
        let old: Vec<u64> =
            candidates.iter().filter(|kept| kept.closed_at < before).map(|kept| kept.seq).collect();
        tables.let_go(&old, Timestamp::from_millis(0), 100).unwrap();
        let gone = old.len();
        drop(tables);
        (Self { ledger: when_free(|| open(dir.path())).await, dir }, gone)
    }
}

#[tokio::test]
async fn what_an_origin_settles_is_marked_until_it_confirms() {
    let till = Till::settled(1, 3).await;
    assert_eq!(till.marks().await, [0]);
    let marks = till.ledger.marks(&apac()).await.unwrap();
    till.ledger.matched(&apac(), marks).await.unwrap();
    assert!(till.marks().await.is_empty());
    // It is still known as an origin only once a pass was noted.
    assert!(till.ledger.compared().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_match_that_comes_late_clears_no_newer_mark() {
    let till = Till::settled(1, 3).await;
    let read_before = till.ledger.marks(&apac()).await.unwrap();
    till.post(4).await;
    till.settle(vec![4]).await;
    till.ledger.matched(&apac(), read_before).await.unwrap();
    assert_eq!(till.marks().await, [0]);
}

#[tokio::test]
async fn only_settled_orders_of_that_origin_and_range_are_sent_again() {
    let till = Till::settled(1, 4).await;
    till.post(5).await;
    let keys: Vec<String> = ["k1", "k4", "k5", "stranger", "k1"].map(str::to_owned).into();
    let within = Places { from: 1, to: 3 };
    let resent = till.ledger.resend(&apac(), within, keys.clone(), 100).await.unwrap();
    assert_eq!(resent.orders, [ResentOrder { id: "id1".into(), order_no: "k1".into(), seq: 1 }]);
    let other: OriginId = "us-west".parse().unwrap();
    assert_eq!(till.ledger.resend(&other, all(), keys, 100).await.unwrap(), Resent::default());

    let record = till.ledger.record("k1").await.unwrap().unwrap();
    assert_eq!((record.receipt.state, record.origin), (State::Pending, Some(apac())), "bound as before");
    assert_eq!((record.audit[0].what.as_str(), record.audit[0].who.as_str()), ("resent", "reconciliation"));
    let backlog = till.ledger.backlog().borrow().clone();
    assert_eq!((backlog.count(State::Settled), backlog.disturbed), (3, 1), "the dispatcher looks again");
    assert_eq!(till.outstanding().await.resent, 1);
    // Settled again, it waits to be confirmed; the match ends it.
    till.settle(vec![1]).await;
    assert_eq!(till.outstanding().await.resent, 1);
    let marks = till.ledger.marks(&apac()).await.unwrap();
    till.ledger.matched(&apac(), marks).await.unwrap();
    assert!(till.ledger.compared().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_order_rests_after_it_was_sent_again() {
    let till = Till::settled(1, 2).await;
    assert_eq!(till.resend(&["k1"]).await.orders.len(), 1);
    till.settle(vec![1]).await;
    let again = till.resend(&["k1", "k2"]).await;
    assert_eq!((again.orders.len(), again.resting), (1, 1));
    assert_eq!(again.orders[0].seq, 2);
}

#[test]
fn the_rest_grows_fourfold_up_to_a_day_and_ends_when_the_clock_goes_back() {
    let now = Timestamp::from_millis(1_000_000_000);
    let after = |times, millis: i64| rests(times, Some(now.millis() - millis), now);
    assert!(!rests(0, None, now));
    for (times, seconds) in [(1, 30), (2, 120), (3, 480), (9, 86_400), (u32::MAX, 86_400)] {
        assert!(after(times, seconds * 1000 - 1), "{times}");
        assert!(!after(times, seconds * 1000), "{times}");
    }
    assert!(!after(9, -1));
}

#[tokio::test]
async fn a_pass_sends_no_more_again_than_it_may() {
    let till = Till::settled(1, 10).await;
    let keys: Vec<String> = (1..=10).map(|n| format!("k{n}")).collect();
    let resent = till.ledger.resend(&apac(), all(), keys, 4).await.unwrap();
    assert_eq!((resent.orders.len(), resent.resting), (4, 6));
}

#[tokio::test]
async fn a_body_stays_until_the_origin_has_confirmed_or_is_known_not_to_reconcile() {
    let later = Timestamp::from_millis(wall().millis() + 60_000);
    let never = Timestamp::from_millis(0);
    let till = Till::settled(1, 3).await;
    let (till, gone) = till.retain(later, never).await;
    assert_eq!(gone, 0, "not confirmed");
    let marks = till.ledger.marks(&apac()).await.unwrap();
    till.ledger.strange(&apac(), all(), marks, 1).await.unwrap();
    let (till, gone) = till.retain(later, never).await;
    assert_eq!(gone, 3, "it has ours, and something besides");
    assert_eq!(till.outstanding().await.strange, 1);

    let till = Till::settled(1, 3).await;
    let note = PassNote {
        origin: apac(),
        supported: false,
        at: wall(),
        matched_at: None,
        full_at: None,
        ranges: 0,
        orders: 0,
        resent: 0,
    };
    till.ledger.note_pass(note).await.unwrap();
    assert_eq!(till.retain(later, never).await.1, 3, "it never will");

    let till = Till::settled(1, 3).await;
    let (till, gone) = till.retain(later, later).await;
    assert_eq!(gone, 3, "the last resort");
    let gone = till.resend(&["k1", "k2"]).await;
    assert_eq!((gone.orders.len(), gone.lost), (0, vec!["k1".to_owned(), "k2".to_owned()]));
    assert_eq!(till.outstanding().await.lost, 2);
    assert_eq!(till.ledger.record("k1").await.unwrap().unwrap().receipt.state, State::Settled);
}

#[tokio::test]
async fn everything_can_be_marked_from_a_place_on() {
    let till = Till::settled(1, 600).await;
    let marks = till.ledger.marks(&apac()).await.unwrap();
    till.ledger.matched(&apac(), marks).await.unwrap();
    till.ledger.mark_from(&apac(), 300).await.unwrap();
    assert_eq!(till.marks().await, [1, 2]);
    let first = till.ledger.first_settled_since(Timestamp::from_millis(0)).await.unwrap();
    assert_eq!(first, Some(1));
}

#[tokio::test]
async fn what_was_forgotten_is_below_what_can_be_compared() {
    let Till { ledger, dir } = Till::settled(1, 5).await;
    drop(ledger);
    let mut tables = when_free(|| Tables::open(&dir.path().join("orders.db"), 64 << 20, None)).await;
    // Without its body an order can still be compared.
    tables.let_go(&[4], Timestamp::from_millis(0), 100).unwrap();
    tables.let_go(&[], Timestamp::from_millis(i64::MAX), 2).unwrap();
    drop(tables);
    let till = Till { ledger: when_free(|| open(dir.path())).await, dir };
    let extent = till.ledger.extent().await.unwrap();
    assert_eq!(extent, Extent { forgotten_to: 4, last: 5 });
    assert_eq!(till.marks().await, [0]);
}

#[tokio::test]
async fn strangers_are_keys_that_no_order_has_whatever_its_state() {
    let till = Till::settled(1, 2).await;
    till.post(3).await;
    let keys = ["k1", "k3", "k4"].map(str::to_owned).into();
    assert_eq!(till.ledger.strangers(keys).await.unwrap(), ["k4"]);
}
