use super::*;
use crate::heartbeat::Heartbeats;
use crate::net::OverrideSource;
use crate::status::Board;
use futures_util::future::{BoxFuture, FutureExt, ready};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Routing that knows two names and reaches every address but one.
struct FakeNames {
    changed: watch::Sender<u64>,
    protected: Mutex<Vec<String>>,
}

impl Names for FakeNames {
    fn standing(&self, name: &str) -> Result<(), Refused> {
        if self.protected.lock().unwrap().iter().any(|protected| protected == name) {
            return Err(Refused::Protected(name.to_owned()));
        }
        let known = ["us.store.example", "jp.store.example"].contains(&name);
        if known { Ok(()) } else { Err(Refused::Unknown(name.to_owned())) }
    }

    fn try_at(&self, _name: &str, address: IpAddr) -> BoxFuture<'static, Tried> {
        let dead = address == "192.0.2.66".parse::<IpAddr>().unwrap();
        ready(if dead { Tried::NotReached("refused".into()) } else { Tried::Answered }).boxed()
    }

    fn through(&self, name: &str, address: IpAddr) -> BoxFuture<'static, Tried> {
        self.try_at(name, address)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

struct World {
    dir: tempfile::TempDir,
    hosts: Hosts,
    names: Arc<FakeNames>,
    overrides: OverrideSource,
    told: Arc<Mutex<Vec<(String, Value)>>>,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

const OLD: &[u8] = b"127.0.0.1 localhost\r\nlast";

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hosts"), OLD).unwrap();
        Self::start(dir)
    }

    fn start(dir: tempfile::TempDir) -> Self {
        let board = Board::default();
        let (kept, overrides) = Kept::open(dir.path(), &board).unwrap();
        let names = Arc::new(FakeNames { changed: watch::Sender::new(0), protected: Mutex::default() });
        let told = Arc::<Mutex<Vec<_>>>::default();
        let events = Arc::clone(&told);
        let setup = Setup {
            data: dir.path().to_owned(),
            file: Some(HostsFile::new(&dir.path().join("hosts"), &dir.path().join("state"))),
            helper: None,
            names: Arc::clone(&names) as Arc<dyn Names>,
            board,
            events: Arc::new(move |kind, data| events.lock().unwrap().push((kind.to_owned(), data))),
        };
        let (hosts, runner) = start(kept, setup);
        let stop = watch::Sender::new(false);
        let heartbeat = Heartbeats::default().register("hosts", Duration::from_secs(30));
        let running = tokio::spawn(runner.run(heartbeat, stop.subscribe()));
        Self { dir, hosts, names, overrides, told, stop, running }
    }

    async fn restart(self) -> Self {
        self.stop.send_replace(true);
        self.running.await.unwrap();
        Self::start(self.dir)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    fn text(&self) -> String {
        String::from_utf8(std::fs::read(self.file()).unwrap()).unwrap()
    }

    fn names(&self) -> Vec<(String, String)> {
        self.hosts.list().0.into_iter().map(|shown| (shown.name, shown.address.to_string())).collect()
    }

    fn kinds(&self) -> Vec<String> {
        self.told.lock().unwrap().iter().map(|(kind, _)| kind.clone()).collect()
    }

    /// Waits until something holds.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain for: {what}; {:?} {}", self.names(), self.text());
    }
}

fn wish(name: &str, address: &str) -> Wish {
    Wish {
        name: name.into(),
        address: address.parse().unwrap(),
        owner: "lin".into(),
        reason: "test".into(),
        ticket: None,
        ttl: TTL_DEFAULT,
        force: false,
        source: Source::Local,
    }
}

#[tokio::test]
async fn an_override_is_told_to_routing_the_file_and_the_audit_log_and_survives_a_restart() {
    let world = World::new();
    let shown = world.hosts.set(wish("us.store.example", "203.0.113.10")).await.unwrap();
    assert_eq!((shown.effective, shown.scope), (Some(true), Scope::Device));
    assert!(world.overrides.borrow().get("US.store.example").is_some());
    assert!(world.text().contains("203.0.113.10 us.store.example"));
    assert_eq!(world.kinds(), ["hosts.created", "hosts.applied", "hosts.verified"]);
    let world = world.restart().await;
    assert_eq!(world.names(), [("us.store.example".into(), "203.0.113.10".into())]);
    assert!(world.overrides.borrow().get("us.store.example").is_some(), "known before the loop has begun");
    let cleared = world.hosts.clear("us.store.example", "lin").await.unwrap();
    assert_eq!(cleared.id, shown.id);
    assert_eq!(std::fs::read(world.file()).unwrap(), OLD);
    assert!(world.overrides.borrow().get("us.store.example").is_none());
    assert!(matches!(world.hosts.clear("us.store.example", "lin").await, Err(SetError::Absent(_))));
}

#[tokio::test]
async fn an_address_that_does_not_prove_itself_is_refused_unless_forced() {
    let world = World::new();
    let wish = wish("us.store.example", "192.0.2.66");
    assert!(matches!(world.hosts.set(wish.clone()).await, Err(SetError::Preflight { .. })));
    assert_eq!((world.names(), world.text().as_bytes()), (vec![], OLD));
    let shown = world.hosts.set(Wish { force: true, ..wish }).await.unwrap();
    assert_eq!(shown.effective, Some(false));
    assert!(shown.why.contains("refused"), "{}", shown.why);
}

#[tokio::test]
async fn a_newer_table_that_protects_the_name_ends_its_override() {
    let world = World::new();
    world.hosts.set(wish("us.store.example", "203.0.113.10")).await.unwrap();
    world.hosts.set(wish("jp.store.example", "203.0.113.11")).await.unwrap();
    world.names.protected.lock().unwrap().push("us.store.example".into());
    world.names.changed.send_modify(|version| *version += 1);
    world.until("only the other is left", |world| world.names().len() == 1).await;
    assert_eq!(world.names()[0].0, "jp.store.example");
    world.until("its line is gone", |world| !world.text().contains("us.store.example")).await;
}

#[tokio::test]
async fn the_fleets_list_is_followed_and_what_it_wanted_once_does_not_come_back() {
    let world = World::new();
    let entry = |name: &str, address: &str| json!({ "name": name, "address": address, "reason": "moved", "ticket": "T-1", "ttl_s": 600 });
    let us = entry("us.store.example", "203.0.113.10");
    let both = json!([us, entry("jp.store.example", "203.0.113.11")]);
    world.hosts.set(wish("us.store.example", "203.0.113.9")).await.unwrap();
    world.hosts.desire(&both).await;
    let wanted = [
        ("jp.store.example".to_owned(), "203.0.113.11".to_owned()),
        ("us.store.example".to_owned(), "203.0.113.10".to_owned()),
    ];
    assert_eq!(world.names(), wanted);
    let ids = |world: &World| world.hosts.list().0.into_iter().map(|shown| shown.id).collect::<Vec<_>>();
    let before = ids(&world);
    world.hosts.desire(&both).await;
    assert_eq!(ids(&world), before, "the same list changes nothing");
    world.hosts.clear("us.store.example", "technician").await.unwrap();
    world.hosts.desire(&both).await;
    assert_eq!(world.names().len(), 1, "what a technician cleared stays cleared");
    world.hosts.set(wish("us.store.example", "203.0.113.9")).await.unwrap();
    world.hosts.desire(&json!([])).await;
    assert_eq!(world.names(), [("us.store.example".into(), "203.0.113.9".into())], "a local one stays");
    let bad = json!([entry("www.example", "203.0.113.10"), entry("us.store.example", "nowhere"), { "x": 1 }]);
    world.hosts.desire(&bad).await;
    world
        .until("both refusals are told", |world| {
            world.kinds().iter().filter(|kind| *kind == "hosts.refused").count() == 2
        })
        .await;
}
