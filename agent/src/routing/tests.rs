//! The whole of routing against origins that run: real probes, short intervals, loopback only.

use super::world::{identity, orders, sign, table, trusted};
use super::*;
use crate::heartbeat::Heartbeats;
use crate::net::ClientSettings;
use crate::status::Board;
use crate::store;
use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use http::StatusCode;
use samovar_wire::OriginId;
use samovar_wire::conditions::Condition;
use samovar_wire::route::{Rule, Scheme};
use samovar_wire::status::{Health, Line};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// An origin in a runtime of its own, so that killing it breaks its connections too.
struct Origin {
    name: &'static str,
    port: u16,
    /// Answers with this status; 204 is health.
    status: Arc<AtomicU16>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Origin {
    fn start(name: &'static str) -> Self {
        let mut origin = Self { name, port: 0, status: Arc::new(AtomicU16::new(204)), runtime: None };
        origin.revive();
        origin
    }

    fn revive(&mut self) {
        let listener = std::net::TcpListener::bind(("127.0.0.1", self.port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.port = listener.local_addr().unwrap().port();
        let (name, status) = (self.name, Arc::clone(&self.status));
        let health = move || {
            let status = StatusCode::from_u16(status.load(Ordering::SeqCst)).unwrap();
            // A portal knows no origin.
            let named = status != StatusCode::OK;
            async move {
                if named {
                    (status, [("Samovar-Origin", name)]).into_response()
                } else {
                    status.into_response()
                }
            }
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, Router::new().route("/.samovar/health", get(health))).await
        });
        self.runtime = Some(runtime);
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn entry(&self) -> (&str, &str, u16) {
        (self.name, "127.0.0.1", self.port)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A device with routing, and nothing else.
struct Device {
    dir: tempfile::TempDir,
    board: Board,
    routing: Routing,
    membership: watch::Sender<Membership>,
    stop: watch::Sender<bool>,
    _tls: watch::Sender<Option<Arc<rustls::ClientConfig>>>,
}

fn quick() -> RoutingSettings {
    RoutingSettings {
        poll: Duration::from_millis(20),
        probe_connect: Duration::from_millis(600),
        probe_total: Duration::from_millis(900),
        health: HealthSettings {
            failing_interval: Duration::from_millis(50),
            left_interval: Duration::from_millis(100),
            idle_interval: Duration::from_millis(200),
            failback_after: Duration::from_millis(400),
            failback_spread: Duration::ZERO,
            first_rounds: 1,
            least_gap: Duration::from_millis(10),
            ..HealthSettings::default()
        },
    }
}

fn member() -> Membership {
    Membership { identity: Some(identity()), trust: Trust { environment: "test".into(), keys: trusted() } }
}

impl Device {
    fn start(dir: tempfile::TempDir, member: Membership) -> Self {
        let (membership, members) = watch::channel(member);
        let (tls, tls_reader) = watch::channel(None);
        let (stop, stopping) = watch::channel(false);
        let board = Board::default();
        let setup = Setup {
            overrides: watch::Sender::new(crate::net::Overrides::default()).subscribe(),
            resolver: crate::net::Resolver::default(),
            data: dir.path().to_owned(),
            table: Some(dir.path().join("table.json")),
            membership: members,
            tls: tls_reader,
            clients: ClientSettings {
                scheme: Scheme::Http,
                connect_timeout: Duration::from_secs(1),
                request_timeout: Duration::from_secs(2),
                named: true,
            },
            board: board.clone(),
            settings: quick(),
        };
        let (routing, runner) = start(setup).unwrap();
        tokio::spawn(
            runner.run(Heartbeats::default().register("routing", Duration::from_secs(30)), stopping),
        );
        Self { dir, board, routing, membership, stop, _tls: tls }
    }

    fn with_table(table: &serde_json::Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        store::replace(&dir.path().join("table.json"), &sign(table), 0o600).unwrap();
        Self::start(dir, member())
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("table.json")
    }

    fn chosen(&self) -> Option<String> {
        self.routing.choose(&Ask::service(&orders())).ok().map(|decision| decision.origin.to_string())
    }

    fn health(&self, origin: &str) -> Option<Health> {
        let snapshot = self.routing.snapshot();
        snapshot.origins.into_iter().find(|state| state.origin.as_str() == origin).map(|state| state.health)
    }

    /// The detail of a condition that holds, however fresh.
    fn condition(&self, wanted: Condition) -> Option<String> {
        let later = crate::clock::mono().plus(Duration::from_secs(3_600));
        let (shown, _) = self.board.visible(later);
        shown.into_iter().find(|condition| condition.name == wanted).map(|condition| condition.detail)
    }

    async fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Duration::from_secs(20);
        let polled = tokio::time::timeout(deadline, async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(
            polled.await.is_ok(),
            "not within {deadline:?}: {what}\n{:#?}\n{:#?}",
            self.routing.snapshot().origins,
            self.board.visible(crate::clock::mono().plus(Duration::from_secs(3_600)))
        );
    }
}

#[tokio::test]
async fn a_dead_origin_is_left_for_the_other_and_used_again_when_it_is_back() {
    let (mut us_west, apac) = (Origin::start("us-west"), Origin::start("apac"));
    let device = Device::with_table(&table(1, &[us_west.entry(), apac.entry()]));
    assert_eq!(device.chosen().as_deref(), Some("us-west"), "before any probe");
    device
        .wait("both are up", |d| {
            d.health("us-west") == Some(Health::Up) && d.health("apac") == Some(Health::Up)
        })
        .await;
    assert_eq!(device.routing.snapshot().line, Line::Up);
    let mut changed = device.routing.changed();
    changed.mark_unchanged();

    us_west.kill();
    device.routing.report(&"us-west".parse().unwrap(), Outcome::Failed("connection reset".into()));
    device.wait("the other takes over", |d| d.chosen().as_deref() == Some("apac")).await;
    assert!(changed.has_changed().unwrap());
    let told = device.condition(Condition::OriginUnreachable).unwrap();
    assert!(told.contains("us-west: ") && told.contains("apac serves instead"), "{told}");
    assert_eq!(device.condition(Condition::LineDown), None);
    // What is bound stays bound.
    let bound = device.routing.bound(&Ask::service(&orders()), &"us-west".parse().unwrap()).unwrap();
    assert_eq!((bound.origin.as_str(), bound.rule), ("us-west", Rule::Bound));

    us_west.revive();
    device.wait("the first serves again", |d| d.chosen().as_deref() == Some("us-west")).await;
    device.wait("nothing is wrong", |d| d.condition(Condition::OriginUnreachable).is_none()).await;
}

#[tokio::test]
async fn when_no_origin_answers_it_is_the_line_and_nothing_moves() {
    let (mut us_west, mut apac) = (Origin::start("us-west"), Origin::start("apac"));
    let device = Device::with_table(&table(1, &[us_west.entry(), apac.entry()]));
    device
        .wait("both are up", |d| {
            d.health("us-west") == Some(Health::Up) && d.health("apac") == Some(Health::Up)
        })
        .await;
    us_west.answer(503);
    apac.answer(503);
    device.wait("the line is down", |d| d.condition(Condition::LineDown).is_some()).await;
    us_west.kill();
    apac.kill();
    device.wait("the origins are seen as down", |d| d.health("us-west") == Some(Health::Down)).await;
    assert_eq!(device.chosen().as_deref(), Some("us-west"));
    assert_eq!(device.condition(Condition::OriginUnreachable), None);
    us_west.answer(204);
    us_west.revive();
    device.wait("the line is up", |d| d.routing.snapshot().line == Line::Up).await;
    assert_eq!(device.condition(Condition::LineDown), None);
    assert_eq!(device.chosen().as_deref(), Some("us-west"));
}

#[tokio::test]
async fn a_portal_and_another_origin_under_the_name_are_not_the_origin() {
    let us_west = Origin::start("us-west");
    // The table calls it apac, it calls itself something else.
    let impostor = Origin::start("somebody");
    let device = Device::with_table(&table(1, &[us_west.entry(), ("apac", "127.0.0.1", impostor.port)]));
    device.wait("the impostor is told", |d| d.condition(Condition::NotTheOrigin).is_some()).await;
    let told = device.condition(Condition::NotTheOrigin).unwrap();
    assert!(told.contains("expected 204 from apac") && told.contains("somebody"), "{told}");
    us_west.answer(200);
    device
        .wait("the portal is told", |d| {
            d.condition(Condition::NotTheOrigin)
                .is_some_and(|told| told.contains("200 OK with no Samovar-Origin"))
        })
        .await;
    device.wait("it counts as silence", |d| d.routing.snapshot().line == Line::Down).await;
    us_west.answer(204);
    device.wait("the line is up", |d| d.routing.snapshot().line == Line::Up).await;
}

#[tokio::test]
async fn a_table_that_is_replaced_on_disk_routes_and_a_bad_one_does_not() {
    let (us_west, apac) = (Origin::start("us-west"), Origin::start("apac"));
    let device = Device::with_table(&table(1, &[us_west.entry(), apac.entry()]));
    assert_eq!(device.chosen().as_deref(), Some("us-west"));
    store::replace(&device.file(), &sign(&table(2, &[apac.entry(), us_west.entry()])), 0o600).unwrap();
    device.wait("the new table routes", |d| d.chosen().as_deref() == Some("apac")).await;
    store::replace(&device.file(), &sign(&table(1, &[us_west.entry(), apac.entry()])), 0o600).unwrap();
    device.wait("the old table is refused", |d| d.condition(Condition::RouteTableRefused).is_some()).await;
    assert_eq!(device.chosen().as_deref(), Some("apac"));
    let state = device.routing.snapshot().route_table.unwrap();
    assert_eq!((state.version, state.key_id.as_str(), state.sha256.len()), (2, "k1", 64));
}

#[tokio::test]
async fn a_pushed_table_is_taken_once_and_a_refused_one_says_why() {
    let us_west = Origin::start("us-west");
    let device = Device::with_table(&table(1, &[us_west.entry()]));
    let pushed = sign(&table(2, &[us_west.entry()]));
    assert_eq!(device.routing.offer(pushed.clone()).await.unwrap(), Taken::InForce { version: 2 });
    assert_eq!(device.routing.offer(pushed).await.unwrap(), Taken::Unchanged { version: 2 });
    let error = device.routing.offer(sign(&table(1, &[]))).await.unwrap_err();
    assert!(error.to_string().contains("it has version 1, version 2 is in force"), "{error}");
    device.stop.send_replace(true);
    device.wait("the loop stops", |d| d.routing.inbox.is_closed()).await;
    assert!(matches!(device.routing.offer(Vec::new()).await, Err(OfferError::Stopped)));
    // A restart finds it, also with the kept file damaged.
    let kept = device.dir.path().join("routes/in-force.json");
    store::replace(&kept, b"{half", 0o600).unwrap();
    std::fs::remove_file(device.file()).unwrap();
    let device = Device::start(device.dir, member());
    assert_eq!(device.routing.snapshot().route_table.unwrap().version, 1);
    assert!(device.condition(Condition::FileSetAside).unwrap().contains("in-force.json"));
    let decision = device.routing.choose(&Ask::service(&orders())).unwrap();
    assert_eq!(decision.reason.last().unwrap().rule, Rule::LastGood);
    assert!(device.routing.resolve(&orders(), None, None).await.unwrap().stale);
}

#[tokio::test]
async fn a_device_without_table_or_identity_says_so_and_begins_when_it_joins() {
    let us_west = Origin::start("us-west");
    let dir = tempfile::tempdir().unwrap();
    store::replace(&dir.path().join("route-table.json"), &sign(&table(1, &[us_west.entry()])), 0o600)
        .unwrap();
    let device = Device::start(dir, Membership::default());
    let error = device.routing.choose(&Ask::service(&orders())).unwrap_err();
    assert!(matches!(&error, RouteError::NoTable { why } if why.contains("routing.trusted_keys")), "{error}");
    assert!(device.condition(Condition::RouteTableMissing).is_some());
    device.membership.send_replace(Membership { identity: None, ..member() });
    device
        .wait("a table without an identity", |d| {
            matches!(d.routing.choose(&Ask::service(&orders())), Err(RouteError::NotActivated))
        })
        .await;
    assert_eq!(device.condition(Condition::RouteTableMissing), None);
    device.membership.send_replace(member());
    device.wait("the origin is probed", |d| d.health("us-west") == Some(Health::Up)).await;
    assert_eq!(device.chosen().as_deref(), Some("us-west"));
}

#[tokio::test]
async fn resolve_answers_as_the_contract_says() {
    let us_west = Origin::start("us-west");
    let mut document = table(3, &[("us-west", "origin.invalid", us_west.port)]);
    document["origins"]["us-west"]["endpoints"][0]["addresses"] = serde_json::json!(["127.0.0.1"]);
    document["countries"]["US"]["services"]["orders"]["domains"]["tea-machine"] = "tea.store.test".into();
    let device = Device::with_table(&document);
    let answer = device.routing.resolve(&orders(), None, None).await.unwrap();
    let port = us_west.port;
    let json = serde_json::to_value(&answer).unwrap();
    assert_eq!(json["service"], "orders");
    assert_eq!(json["domain"], "us.store.test");
    assert_eq!(json["base_url"], format!("http://us.store.test:{port}"));
    assert_eq!(json["origin"], "us-west");
    assert_eq!(json["addresses"], serde_json::json!(["127.0.0.1"]));
    assert_eq!(json["reason"][0]["rule"], "protected");
    assert_eq!(json["table_version"], 3);
    // The name does not resolve now, and is asked for again by then.
    assert_eq!((&json["dns"]["answered_by"], &json["valid_for_s"]), (&"table".into(), &30.into()));
    let tea = device.routing.resolve(&orders(), None, Some(&"tea-machine".parse().unwrap())).await.unwrap();
    assert_eq!(tea.domain, "tea.store.test");
    let elsewhere = device.routing.resolve(&orders(), Some(&"JP".parse().unwrap()), None).await;
    assert!(matches!(elsewhere, Err(RouteError::NoRoute(_))));
    // The name does not resolve; the probe reached the listed address, which is then known to work.
    device.wait("a probe gets through", |d| d.health("us-west") == Some(Health::Up)).await;
    assert!(device.routing.resolve(&orders(), None, None).await.unwrap().stale);
    let decision = device.routing.choose(&Ask::service(&orders())).unwrap();
    let url = format!("{}/.samovar/health", decision.base_url);
    let response = device.routing.client(&decision).unwrap().get(url).send().await.unwrap();
    assert_eq!(response.status(), 204);
}

#[tokio::test]
async fn an_origin_that_is_not_on_loopback_is_never_reached_by_plain_http() {
    let device = Device::with_table(&table(1, &[("us-west", "192.0.2.1", 9)]));
    device
        .wait("the rule is told", |d| {
            let origins = d.routing.snapshot().origins;
            origins.iter().any(|state| {
                state.last_error.as_ref().is_some_and(|why| why.contains("not a loopback address"))
            })
        })
        .await;
}

#[tokio::test]
async fn reports_beyond_the_bound_are_dropped_and_nobody_waits() {
    let us_west = Origin::start("us-west");
    let device = Device::with_table(&table(1, &[us_west.entry()]));
    let origin: OriginId = "us-west".parse().unwrap();
    for _ in 0..100_000 {
        device.routing.report(&origin, Outcome::Answered);
    }
    device.wait("the loop is well", |d| d.health("us-west") == Some(Health::Up)).await;
}
