//! The resolver against scripted servers on loopback, and systems that are slow, dead or lying.

mod servers;

use super::By;
use super::Resolver;
use super::answer::{Answer, Reply};
use super::known::Known;
use super::network::Network;
use super::system::System;
use super::wanted::{Found, LookupError, NamesSettings, Wanted};
use crate::clock::mono;
use futures_util::future::FutureExt;
use samovar_wire::route::Dns;
use serde_json::json;
use servers::{Answers, Server};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const HOST: &str = "usw.store.example";
const LIMIT: Duration = Duration::from_secs(4);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn wanted(listed: &[IpAddr]) -> Wanted<'_> {
    Wanted { domain: "us.store.example", host: HOST, listed }
}

fn dead_system() -> System {
    Arc::new(|_| std::future::pending().boxed())
}

/// Answers after so many milliseconds.
fn system(after: u64, address: &str) -> System {
    let address = ip(address);
    Arc::new(move |_| {
        async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            Reply::Found(Answer { addresses: vec![address], ttl: None, chain: Vec::new() })
        }
        .boxed()
    })
}

fn network(servers: &[SocketAddr]) -> Network {
    Network { gateway: Some(ip("192.0.2.254")), servers: servers.to_vec(), ..Network::default() }
}

fn resolver(system: System, servers: &[SocketAddr]) -> Resolver {
    Resolver::new(NamesSettings::default(), system, Known::default(), network(servers))
}

/// Only these servers are asked.
fn only(servers: &[SocketAddr]) -> Resolver {
    let settings = NamesSettings { servers: servers.to_vec(), ..NamesSettings::default() };
    Resolver::new(settings, dead_system(), Known::default(), network(&[]))
}

async fn timed(resolver: &Resolver, listed: &[IpAddr]) -> (Result<Found, LookupError>, Duration) {
    let began = mono();
    let found = resolver.find(&wanted(listed), LIMIT).await;
    (found, mono().after(began))
}

async fn first(resolver: &Resolver) -> (IpAddr, By) {
    let found = resolver.find(&wanted(&[]), LIMIT).await.unwrap();
    (found.addresses[0], found.by)
}

#[tokio::test]
async fn with_the_first_of_two_servers_dead_the_second_answers_at_once() {
    let (dead, good) = (Server::start(Answers::Silence).await, Server::answers("203.0.113.1").await);
    let (found, took) = timed(&only(&[dead.address, good.address]), &[]).await;
    assert_eq!(found.unwrap().addresses, [ip("203.0.113.1")]);
    assert!(took < Duration::from_millis(400), "{took:?}");
    assert!(dead.asked() > 0, "both were asked");
}

#[tokio::test]
async fn a_system_that_hangs_costs_300_ms_and_the_servers_of_the_network_answer() {
    let (dead, good) = (Server::start(Answers::Silence).await, Server::answers("203.0.113.1").await);
    let (found, took) = timed(&resolver(dead_system(), &[dead.address, good.address]), &[]).await;
    assert_eq!(found.unwrap().by, By::Direct);
    assert!((300..800).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn an_answer_before_the_stale_edge_is_waited_for_and_one_after_it_is_not() {
    for (after, by) in [(1_700, By::System), (1_900, By::Stale)] {
        let resolver = resolver(system(after, "203.0.113.1"), &[]);
        resolver.remember(HOST, ip("203.0.113.9"));
        let (found, took) = timed(&resolver, &[]).await;
        let found = found.unwrap();
        assert_eq!((found.by, found.is_stale()), (by, by == By::Stale), "{after}");
        assert!(took < Duration::from_millis(1_870), "{took:?}");
        if by == By::Stale {
            assert_eq!((found.addresses[0], found.valid_for), (ip("203.0.113.9"), Duration::from_secs(30)));
            let (again, took) = timed(&resolver, &[]).await;
            assert!(
                again.unwrap().is_stale() && took < Duration::from_millis(50),
                "nobody waits twice: {took:?}"
            );
            // The look-up went on, and its late answer counts.
            let late = async {
                while first(&resolver).await != (ip("203.0.113.1"), By::System) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(3), late).await.unwrap();
        }
    }
}

#[tokio::test]
async fn without_any_resolver_what_worked_here_comes_first_then_the_table_and_last_what_worked_elsewhere() {
    let listed = [ip("198.51.100.1")];
    let resolver = only(&[refusing()]);
    let (found, _) = timed(&resolver, &listed).await;
    assert_eq!(found.unwrap().by, By::Table);
    resolver.enter(Network { gateway: Some(ip("192.0.2.1")), ..Network::default() });
    resolver.remember(HOST, ip("203.0.113.7"));
    resolver.enter(network(&[]));
    let (found, _) = timed(&resolver, &listed).await;
    let found = found.unwrap();
    assert_eq!((found.by, &found.addresses[..]), (By::Table, &[listed[0], ip("203.0.113.7")][..]));
    resolver.remember(HOST, ip("203.0.113.9"));
    let (found, _) = timed(&resolver, &listed).await;
    let found = found.unwrap();
    assert_eq!(found.addresses, [ip("203.0.113.9"), listed[0], ip("203.0.113.7")]);
    assert!(found.is_stale());
}

/// A port where nobody listens: the system says so at once.
fn refusing() -> SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

#[tokio::test]
async fn with_nothing_to_fall_back_on_the_error_says_what_each_server_said() {
    let failing = Server::start(Answers::ServFail).await;
    let (found, took) = timed(&only(&[failing.address, refusing()]), &[]).await;
    let error = found.unwrap_err().to_string();
    assert!(error.starts_with("`usw.store.example` does not resolve: "), "{error}");
    assert!(error.contains("Server Failure") && error.contains("refused"), "{error}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let dead = Server::start(Answers::Silence).await;
    let short = Duration::from_millis(200);
    let error = only(&[dead.address]).find(&wanted(&[]), short).await.unwrap_err();
    assert_eq!(error, LookupError::TimedOut { host: HOST.into(), limit: short });
}

#[tokio::test]
async fn a_liar_that_knows_no_such_name_is_overruled() {
    let (liar, good) = (Server::start(Answers::NoSuchName).await, Server::answers("203.0.113.1").await);
    assert_eq!(first(&only(&[liar.address, good.address])).await.0, ip("203.0.113.1"));
    // The network's own word, and the table's server against it.
    let resolver = resolver(Arc::new(|_| async { Reply::NoSuchName }.boxed()), &[liar.address]);
    resolver.obey(&Dns { servers: vec![json!(good.address.to_string())], ..Dns::default() });
    assert_eq!(first(&resolver).await, (ip("203.0.113.1"), By::Direct));
}

#[tokio::test]
async fn a_private_address_counts_when_two_say_so_or_tls_has_proved_it_and_is_the_last_resort_otherwise() {
    let (portal, dead) = (Server::answers("10.0.0.1").await, refusing());
    let listed = [ip("198.51.100.1")];
    let found = only(&[portal.address, dead]).find(&wanted(&listed), LIMIT).await.unwrap();
    assert_eq!((found.by, &found.addresses[..]), (By::Table, &[listed[0], ip("10.0.0.1")][..]));
    let alone = only(&[portal.address]);
    assert_eq!(first(&alone).await, (ip("10.0.0.1"), By::Unconfirmed));
    alone.remember(HOST, ip("10.0.0.1"));
    assert_eq!(first(&alone).await, (ip("10.0.0.1"), By::Direct));
    let second = Server::answers("10.0.0.1").await;
    assert_eq!(first(&only(&[portal.address, second.address])).await, (ip("10.0.0.1"), By::Direct));
    let good = Server::answers("203.0.113.1").await;
    assert_eq!(first(&only(&[portal.address, good.address])).await.0, ip("203.0.113.1"));
}

#[tokio::test]
async fn this_very_device_is_the_systems_word_alone() {
    let server = Server::answers("203.0.113.1").await;
    let resolver = Resolver::new(
        NamesSettings { servers: vec![server.address], ..NamesSettings::default() },
        system(0, "127.0.0.1"),
        Known::default(),
        network(&[]),
    );
    let wanted = Wanted { domain: "us.store.example", host: "LocalHost.", listed: &[] };
    let found = resolver.find(&wanted, LIMIT).await.unwrap();
    assert_eq!((found.by, found.addresses), (By::System, vec![ip("127.0.0.1")]));
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn a_long_answer_is_fetched_over_tcp_and_garbage_is_waited_out() {
    let long = Server::start(Answers::Truncated(vec![ip("203.0.113.1"); 3])).await;
    assert_eq!(first(&only(&[long.address])).await.0, ip("203.0.113.1"));
    assert_eq!(long.asked_over_tcp(), 2, "both kinds of address");
    let noisy = Server::start(Answers::AfterGarbage(ip("203.0.113.2"))).await;
    assert_eq!(first(&only(&[noisy.address])).await.0, ip("203.0.113.2"));
}

#[tokio::test]
async fn a_life_of_zero_is_five_seconds_and_a_datagram_that_was_lost_is_sent_again() {
    let server = Server::start(Answers::SecondTime(ip("203.0.113.1"), 0)).await;
    let resolver = only(&[server.address]);
    let (found, took) = timed(&resolver, &[]).await;
    let left = found.unwrap().valid_for;
    assert!(left > Duration::from_secs(4) && left <= Duration::from_secs(5), "{left:?}");
    assert!((400..1_000).contains(&took.as_millis()), "{took:?}");
    let asked = server.asked();
    assert_eq!(first(&resolver).await.0, ip("203.0.113.1"));
    assert!(server.asked() <= asked + 1, "at most the chain is asked for");
}

#[tokio::test]
async fn many_who_ask_at_once_make_one_look_up() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = {
        let calls = Arc::clone(&calls);
        let inner = system(50, "203.0.113.1");
        Arc::new(move |host| {
            calls.fetch_add(1, Ordering::SeqCst);
            inner(host)
        }) as System
    };
    let resolver = resolver(counted, &[]);
    let all = (0..50).map(|_| first(&resolver));
    let all = futures_util::future::join_all(all).await;
    assert!(all.iter().all(|(address, by)| (*address, *by) == (ip("203.0.113.1"), By::System)));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn another_network_drops_the_answers_and_keeps_what_was_proved() {
    let resolver = resolver(system(0, "203.0.113.1"), &[]);
    first(&resolver).await;
    resolver.remember(HOST, ip("203.0.113.1"));
    let before = resolver.generation();
    resolver.enter(network(&[]));
    assert_eq!(resolver.generation(), before, "the same network");
    resolver.enter(Network { interface: "wlan0".into(), ..network(&[]) });
    assert_eq!(resolver.generation(), before + 1);
    assert_eq!(resolver.known(&wanted(&[])), [ip("203.0.113.1")]);
}

#[tokio::test]
async fn what_was_proved_outlives_the_process_and_a_damaged_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let settings = NamesSettings { data: Some(dir.path().into()), servers: vec![refusing()], plain: false };
    let (resolver, damaged) = Resolver::open(settings.clone());
    assert_eq!(damaged, None);
    resolver.remember(HOST, ip("203.0.113.1"));
    resolver.remember("localhost", ip("127.0.0.1"));
    let file = dir.path().join("names.json");
    let written = async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), written).await.unwrap();
    assert!(!std::fs::read_to_string(&file).unwrap().contains("localhost"));
    let (again, _) = Resolver::open(settings.clone());
    let (found, took) = timed(&again, &[]).await;
    assert_eq!(found.unwrap().addresses, [ip("203.0.113.1")]);
    assert!(took < Duration::from_millis(500), "servers that refuse are not waited for: {took:?}");
    std::fs::write(&file, b"{half").unwrap();
    assert!(Resolver::open(settings).1.unwrap().contains("names.json.damaged-1"));
}

#[tokio::test]
async fn a_chain_of_five_names_is_reported_with_what_each_costs() {
    let server = Server::start(Answers::Chain { names: 5, ttl: 1, slow: 3, ms: 80 }).await;
    let resolver = only(&[server.address]);
    let mut changed = resolver.changed();
    let found = resolver.find(&wanted(&[]), LIMIT).await.unwrap();
    assert_eq!(found.chain.len(), 5, "the depth is known with the first answer");
    let measured = async {
        loop {
            let state = resolver.states().remove(0);
            if state.chain.iter().all(|link| link.ms.is_some()) {
                return state;
            }
            changed.changed().await.unwrap();
        }
    };
    let state = tokio::time::timeout(Duration::from_secs(10), measured).await.unwrap();
    let slow: Vec<_> = state.chain.iter().filter(|link| link.ms.unwrap() >= 80).collect();
    assert_eq!(slow.len(), 1, "{state:?}");
    assert_eq!(slow[0].name, "l3.store.example");
    assert_eq!(state.answered_by, "direct");
}

#[tokio::test]
async fn names_that_never_exist_are_not_asked_for_and_addresses_neither() {
    let server = Server::answers("203.0.113.1").await;
    let resolver = only(&[server.address]);
    let never = Wanted { domain: "d", host: "origin.invalid", listed: &[] };
    assert!(matches!(resolver.find(&never, LIMIT).await, Err(LookupError::Failed { .. })));
    for (host, address) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("::1", "::1")] {
        let wanted = Wanted { domain: "d", host, listed: &[] };
        let found = resolver.find(&wanted, Duration::ZERO).await.unwrap();
        assert_eq!((found.addresses, found.by), (vec![ip(address)], By::Literal));
    }
    assert_eq!(server.asked(), 0);
}
