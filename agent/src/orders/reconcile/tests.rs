//! The loop against an origin that says what it is told to.

use super::*;
use crate::clock::wall;
use crate::heartbeat::Heartbeats;
use crate::orders::backoff::Backoff;
use crate::orders::dispatcher::{Route, RouteQuery};
use crate::orders::ledger::{Change, ChangeTo, Ledger, LedgerSettings, NewOrder, State};
use crate::orders::order::Order;
use crate::orders::origin::{Protocol, Sender, Way};
use crate::orders::outcome::BatchOutcome;
use crate::orders::recovery::Probe;
use crate::orders::run::Routes;
use crate::status::Board;
use axum::response::IntoResponse;
use futures_util::future::BoxFuture;
use http::StatusCode;
use samovar_wire::OriginId;
use samovar_wire::conditions::Condition;
use samovar_wire::reconcile::{Digest, KeyDigest, RangeVerdict, ReconcileAnswer, ReconcileRequest};
use samovar_wire::status::ReconcileState;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(5);

/// How the origin answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Honest,
    Status(u16, Option<u64>),
    Garbage,
    WrongRanges,
    Stall,
    AllMissing,
}

struct Origin {
    /// Keys it holds by place, with the digest of the body.
    held: BTreeMap<u64, (String, String)>,
    mood: Mood,
    asked: Vec<ReconcileRequest>,
}

type Shared = Arc<Mutex<Origin>>;

fn verdict(
    held: &BTreeMap<u64, (String, String)>,
    range: &samovar_wire::reconcile::RangeDigest,
) -> RangeVerdict {
    let (mut count, mut digest, mut here) = (0, Digest::default(), Vec::new());
    for (seq, (key, sha256)) in held.range(range.from_seq..=range.to_seq) {
        count += 1;
        digest.add(key, &samovar_wire::encoding::sha256_from_hex(sha256).unwrap());
        here.push(KeyDigest { seq: *seq, key: key.clone(), sha256: sha256.clone() });
    }
    let matches = (count, digest) == (range.count, range.digest);
    let told = range.keys.as_ref().filter(|_| !matches);
    let lacks = |of: &[KeyDigest], all: &[KeyDigest]| {
        all.iter().filter(|key| !of.contains(key)).map(|key| key.key.clone()).collect::<Vec<_>>()
    };
    let missing = told.map(|keys| lacks(&here, keys));
    let known = |key: &String| told.is_some_and(|keys| keys.iter().any(|ours| ours.key == *key));
    let unknown =
        told.map(|keys| lacks(keys, &here).into_iter().filter(|key| !known(key)).collect::<Vec<_>>());
    RangeVerdict { from_seq: range.from_seq, to_seq: range.to_seq, matches, missing, unknown }
}

async fn answer(origin: Shared, request: ReconcileRequest) -> axum::response::Response {
    let (mood, ranges) = {
        let mut origin = origin.lock().unwrap();
        origin.asked.push(request.clone());
        let ranges = request.ranges.iter().map(|range| verdict(&origin.held, range)).collect::<Vec<_>>();
        (origin.mood, ranges)
    };
    let json = |ranges| axum::Json(ReconcileAnswer { ranges, server_time: None }).into_response();
    match mood {
        Mood::Honest => json(ranges),
        Mood::Status(status, wait) => {
            let mut refusal = StatusCode::from_u16(status).unwrap().into_response();
            if let Some(seconds) = wait {
                refusal.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
            }
            refusal
        }
        Mood::Garbage => "<html>Welcome</html>".into_response(),
        Mood::WrongRanges => {
            json(ranges.into_iter().map(|verdict| RangeVerdict { from_seq: 9_999_999, ..verdict }).collect())
        }
        Mood::Stall => std::future::pending().await,
        Mood::AllMissing => {
            let missing = (1..2_000).map(|n| format!("k{n}")).collect::<Vec<_>>();
            json(
                ranges
                    .into_iter()
                    .map(|verdict| RangeVerdict { matches: false, missing: Some(missing.clone()), ..verdict })
                    .collect(),
            )
        }
    }
}

async fn serve(origin: Shared) -> String {
    let app = axum::Router::new().route(
        "/v1/orders:reconcile",
        axum::routing::post(move |axum::Json(request): axum::Json<ReconcileRequest>| answer(origin, request)),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

struct OneWay {
    base_url: String,
    changed: watch::Sender<u64>,
}

impl Routes for OneWay {
    fn route(&self, _: RouteQuery<'_>) -> Route {
        Route::Wait
    }
    fn way(&self, _: RouteQuery<'_>) -> Result<Way, String> {
        let client = reqwest::Client::builder().no_proxy().build().map_err(|error| error.to_string())?;
        Ok(Way { origin: apac(), client, base_url: self.base_url.clone(), stopwatch: None })
    }
    fn suspect(&self) {}
    fn report(&self, _: &OriginId, _: &BatchOutcome) {}
    fn look_for(&self, _: RouteQuery<'_>, _: Probe) -> BoxFuture<'static, bool> {
        panic!("reconciliation looks for nobody");
    }
    fn is_up(&self, _: &OriginId) -> Option<bool> {
        None
    }
    fn table_version(&self) -> Option<u64> {
        Some(1)
    }
    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// A till with its ledger and the loop, and the origin beside it.
struct World {
    ledger: Ledger,
    origin: Shared,
    base_url: String,
    reconcile: Reconcile,
    board: Board,
    events: Arc<Mutex<Vec<(String, Value)>>>,
    stop: watch::Sender<bool>,
    dir: tempfile::TempDir,
}

fn apac() -> OriginId {
    "apac".parse().unwrap()
}

/// So seldom that only demands cause a pass.
fn only_on_demand() -> Pace {
    let hour = Duration::from_secs(3_600);
    Pace {
        every: hour,
        after_change: hour,
        follow_up: hour,
        unsupported: hour,
        backoff: Backoff { base: hour, cap: hour },
    }
}

fn open(dir: &std::path::Path) -> Result<Ledger, crate::orders::ledger::OpenError> {
    let settings = LedgerSettings::at(dir.join("orders.db"));
    Ledger::open(settings, Heartbeats::default().register("ledger", SOON))
}

fn order(number: u64) -> NewOrder {
    let body = format!(r#"{{"order_no":"k{number}","placed_at":"2026-11-20T08:00:00Z"}}"#);
    let order = Order::parse(body.as_bytes(), None, &"US".parse().unwrap()).unwrap();
    NewOrder { id: format!("id{number}"), accepted_at: wall(), order }
}

impl World {
    /// `count` orders that the origin settled and holds.
    async fn with(count: u64) -> Self {
        let origin =
            Arc::new(Mutex::new(Origin { held: BTreeMap::new(), mood: Mood::Honest, asked: Vec::new() }));
        let base_url = serve(Arc::clone(&origin)).await;
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path()).unwrap();
        let world = Self::run(ledger, origin, base_url, dir, only_on_demand());
        let numbers: Vec<u64> = (1..=count).collect();
        for some in numbers.chunks(1_000) {
            world.ledger.accept(some.iter().map(|number| order(*number)).collect()).await.unwrap();
        }
        world.settle(numbers).await;
        world
    }

    fn run(ledger: Ledger, origin: Shared, base_url: String, dir: tempfile::TempDir, pace: Pace) -> Self {
        // The first test of the process decides; all want the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sender = Sender {
            device: "POS-1".parse().unwrap(),
            store: "S1".parse().unwrap(),
            ledger: ledger.watch_id(),
            token: None,
            deadline: Duration::from_millis(700),
            protocol: Protocol::Batch(None),
        };
        let (board, events) = (Board::default(), Arc::new(Mutex::new(Vec::new())));
        let told = Arc::clone(&events);
        let stop = watch::Sender::new(false);
        let reconciler = Reconciler {
            ledger: ledger.clone(),
            routes: Arc::new(OneWay { base_url: base_url.clone(), changed: watch::Sender::new(0) }),
            sender: watch::Sender::new(Some(Arc::new(sender))).subscribe(),
            home: Arc::new(|| "US".parse().ok()),
            board: board.clone(),
            events: Arc::new(move |kind, data| told.lock().unwrap().push((kind.to_owned(), data))),
            kept: Duration::from_secs(86_400),
            pace,
        };
        let heartbeat = Heartbeats::default().register("reconciliation", SOON);
        let (reconcile, run) = reconciler.start(heartbeat, stop.subscribe());
        tokio::spawn(run);
        Self { ledger, origin, base_url, reconcile, board, events, stop, dir }
    }

    /// Ends everything and begins anew on the same ledger, as after a restart.
    async fn restarted(self, pace: Pace) -> Self {
        let Self { ledger, origin, base_url, reconcile, stop, dir, .. } = self;
        stop.send_replace(true);
        drop((ledger, reconcile));
        let deadline = tokio::time::Instant::now() + SOON;
        let ledger = loop {
            match open(dir.path()) {
                Ok(ledger) => break ledger,
                Err(error) if tokio::time::Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        Self::run(ledger, origin, base_url, dir, pace)
    }

    async fn post(&self, number: u64) {
        self.ledger.accept(vec![order(number)]).await.unwrap();
    }

    /// What the dispatcher would do: the origin gets them and settles them.
    async fn settle(&self, seqs: Vec<u64>) {
        let sent = self.ledger.bind(seqs, apac()).await.unwrap();
        let changes = sent.iter().map(|order| Change { seq: order.seq, to: ChangeTo::Settled }).collect();
        for order in sent {
            let digest = samovar_wire::encoding::hex(&order.sha256);
            self.origin().held.insert(order.seq, (order.key, digest));
        }
        self.ledger.change(changes).await.unwrap();
    }

    fn origin(&self) -> std::sync::MutexGuard<'_, Origin> {
        self.origin.lock().unwrap()
    }

    async fn pass(&self, full: bool) -> ReconcileState {
        assert!(self.reconcile.demand(full, SOON).await.unwrap(), "the pass does not end");
        self.reconcile.states()[0].clone()
    }

    async fn pending(&self) -> Vec<u64> {
        let records = self.ledger.page(Some(State::Pending), 0, 200).await.unwrap();
        records.into_iter().map(|record| record.receipt.seq).collect()
    }

    fn condition(&self, condition: Condition) -> Option<String> {
        let shown = self.board.visible(crate::clock::mono()).0;
        shown.into_iter().find(|active| active.name == condition).map(|active| active.detail)
    }

    fn told(&self, kind: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|(told, _)| told == kind).map(|(_, data)| data.clone()).collect()
    }
}

#[tokio::test]
async fn what_the_origin_has_is_confirmed_in_one_request() {
    let world = World::with(700).await;
    let state = world.pass(false).await;
    assert_eq!((state.orders, state.missing, state.last_error), (700, 0, None));
    assert!(state.matched_at.is_some() && state.next_at.is_some());
    assert_eq!(world.origin().asked.len(), 1);
    assert!(world.ledger.marks(&apac()).await.unwrap().is_empty());
}

#[tokio::test]
async fn orders_that_the_origin_lost_are_sent_again_and_found_again() {
    let world = World::with(700).await;
    world.pass(false).await;
    // Confirmed once, lost later, as by a restore from an old copy.
    world.origin().held.retain(|seq, _| ![3, 300, 301].contains(seq));
    let state = world.pass(false).await;
    assert_eq!((state.resent, state.missing), (3, 3));
    assert_eq!(world.pending().await, [3, 300, 301]);
    assert!(world.condition(Condition::OrdersMissingAtOrigin).unwrap().contains("apac: 3 sent again"));
    assert_eq!(
        world.told("order.resent").iter().map(|event| event["count"].as_u64().unwrap()).sum::<u64>(),
        3
    );

    world.settle(vec![3, 300, 301]).await;
    let state = world.pass(false).await;
    assert_eq!((state.resent, state.missing), (0, 0));
    assert_eq!(world.condition(Condition::OrdersMissingAtOrigin), None);
    assert_eq!(world.origin().held.len(), 700);
}

#[tokio::test]
async fn an_order_that_the_origin_holds_with_other_content_is_sent_again_to_be_refused_by_it() {
    let world = World::with(5).await;
    world.origin().held.insert(2, ("k2".into(), "00".repeat(32)));
    world.pass(false).await;
    assert_eq!(world.pending().await, [2], "the origin's `conflict` will quarantine it");
}

#[tokio::test]
async fn a_gap_of_days_is_found_after_a_restart_without_anybody_asking() {
    let world = World::with(300).await;
    world.origin().held.clear();
    let quick = Duration::from_millis(1);
    let world = world.restarted(Pace { after_change: quick, ..only_on_demand() }).await;
    let deadline = tokio::time::Instant::now() + SOON;
    let mut states = world.reconcile.watch();
    tokio::time::timeout_at(
        deadline,
        states.wait_for(|states| states.iter().any(|state| state.resent == 300)),
    )
    .await
    .expect("the pass after the start")
    .unwrap();
}

#[tokio::test]
async fn keys_that_the_device_does_not_know_are_reported_once_and_nothing_is_done() {
    let world = World::with(5).await;
    world.origin().held.insert(9, ("from-before-the-restore".into(), "11".repeat(32)));
    for _ in 0..2 {
        let state = world.pass(false).await;
        assert_eq!((state.unknown, state.resent), (1, 0));
    }
    let told = world.condition(Condition::OrdersUnknownToDevice).unwrap();
    assert_eq!(told, "apac: 1 (from-before-the-restore)");
    assert_eq!(world.told("order.unknown-to-device").len(), 1);
    world.origin().held.remove(&9);
    let state = world.pass(false).await;
    assert_eq!((state.unknown, world.condition(Condition::OrdersUnknownToDevice)), (0, None));
}

#[tokio::test]
async fn a_ledger_that_is_an_older_copy_is_recognised_and_its_difference_is_not_narrowed_down_for_ever() {
    let world = World::with(300).await;
    // What the device had given these places to before it was restored; the last lie in buckets it has yet to reach.
    for seq in 290..=900 {
        world.origin().held.entry(seq).or_insert_with(|| (format!("before-{seq}"), "11".repeat(32)));
    }
    let before = world.ledger.id();
    world.pass(false).await;
    assert_eq!(world.told("order.unknown-to-device").len(), 1);
    let deadline = tokio::time::Instant::now() + SOON;
    while world.ledger.id() == before {
        assert!(tokio::time::Instant::now() < deadline, "the ledger does not go on under another UUID");
        tokio::time::sleep(TICK).await;
    }
    let doubt = world.ledger.storage().borrow().doubt.clone().unwrap();
    assert!(doubt.starts_with("apac has ") && doubt.contains("behind place 300"), "{doubt}");
    world.post(301).await;
    let newest = world.ledger.extent().await.unwrap().last;
    assert!(newest > 900, "place {newest} was given before");
}

#[tokio::test]
async fn a_difference_that_is_known_is_not_narrowed_down_for_ever() {
    let world = World::with(300).await;
    // In the bucket that the ledger is in, so that it tells of no older copy.
    for seq in 310..=320 {
        world.origin().held.insert(seq, (format!("before-{seq}"), "11".repeat(32)));
    }
    let state = world.pass(false).await;
    assert_eq!((state.unknown, state.matched_at), (11, None));
    let world = world.restarted(Pace { after_change: TICK, every: TICK, ..only_on_demand() }).await;
    world.origin().asked.clear();
    let passes =
        |asked: &[ReconcileRequest]| asked.iter().filter(|request| request.ranges[0].from_seq == 1).count();
    let deadline = tokio::time::Instant::now() + SOON;
    while passes(&world.origin().asked) < 5 {
        assert!(tokio::time::Instant::now() < deadline, "no passes");
        tokio::time::sleep(TICK).await;
    }
    let closely = |request: &&ReconcileRequest| request.ranges.iter().any(|range| range.keys.is_some());
    assert_eq!(world.origin().asked.iter().filter(closely).count(), 0, "it is remembered");
    // What changes is looked at again.
    world.post(301).await;
    let places = world.ledger.extent().await.unwrap().last;
    world.settle(vec![places]).await;
    let deadline = tokio::time::Instant::now() + SOON;
    while !world.origin().asked.iter().any(|request| closely(&request)) {
        assert!(tokio::time::Instant::now() < deadline, "the bucket that changed is not looked at");
        tokio::time::sleep(TICK).await;
    }
}

#[tokio::test]
async fn what_is_on_its_way_again_stays_missing_until_the_origin_is_seen_to_have_it() {
    let world = World::with(300).await;
    world.pass(false).await;
    world.origin().held.retain(|seq, _| ![3, 4, 5].contains(seq));
    world.pass(false).await;
    world.settle(vec![3]).await;
    // 4 and 5 wait: the rest of the bucket matches, which says nothing of them.
    let state = world.pass(false).await;
    assert_eq!((state.resent, state.missing), (0, 2));
    world.settle(vec![4, 5]).await;
    world.origin().held.remove(&5);
    let state = world.pass(false).await;
    assert_eq!((state.resent, state.missing), (0, 1), "it rests, and is missing all the same");
    assert!(world.condition(Condition::OrdersMissingAtOrigin).unwrap().starts_with("apac: 1 "));
}

#[tokio::test]
async fn an_order_whose_answer_was_lost_is_no_stranger() {
    let world = World::with(5).await;
    world.post(6).await;
    world.ledger.bind(vec![6], apac()).await.unwrap();
    world.origin().held.insert(6, ("k6".into(), "11".repeat(32)));
    let state = world.pass(false).await;
    assert_eq!((state.unknown, state.missing), (0, 0));
    assert!(state.matched_at.is_some());
}

#[tokio::test]
async fn an_origin_that_does_not_reconcile_is_told_and_nothing_is_sent_again() {
    let world = World::with(5).await;
    world.origin().mood = Mood::Status(404, None);
    let state = world.pass(false).await;
    assert!(!state.supported && state.last_error.is_some());
    assert!(world.pending().await.is_empty());
    assert!(world.condition(Condition::OriginDoesNotReconcile).unwrap().contains("404"));
    world.origin().mood = Mood::Honest;
    assert!(world.pass(false).await.supported);
    assert_eq!(world.condition(Condition::OriginDoesNotReconcile), None);
}

#[tokio::test]
async fn what_cannot_be_used_changes_nothing_and_is_tried_again() {
    let world = World::with(5).await;
    for mood in [
        Mood::Status(500, None),
        Mood::Status(403, None),
        Mood::Status(302, None),
        Mood::Garbage,
        Mood::WrongRanges,
        Mood::Stall,
    ] {
        world.origin().mood = mood;
        let state = world.pass(false).await;
        assert!(state.last_error.is_some() && state.supported && state.matched_at.is_none());
        assert!(world.pending().await.is_empty());
    }
    assert!(world.condition(Condition::OriginDoesNotReconcile).is_some(), "it lasts");
    world.origin().mood = Mood::Honest;
    let state = world.pass(false).await;
    assert!(state.matched_at.is_some() && state.last_error.is_none());
}

#[tokio::test]
async fn an_origin_that_asks_for_patience_is_left_alone() {
    let world = World::with(5).await;
    world.origin().mood = Mood::Status(429, Some(600));
    world.pass(false).await;
    let asked = world.origin().asked.len();
    world.origin().mood = Mood::Honest;
    let state = world.pass(false).await;
    assert_eq!(world.origin().asked.len(), asked, "an operator's wish does not break it");
    assert!(state.last_error.unwrap().contains("429"));
}

#[tokio::test]
async fn an_origin_that_always_says_missing_gets_each_order_once_and_then_seldom() {
    let world = World::with(300).await;
    world.origin().mood = Mood::AllMissing;
    assert_eq!(world.pass(false).await.resent, 300);
    for _ in 0..3 {
        let pending = world.pending().await;
        world.settle(pending).await;
        let pending = world.pending().await;
        world.settle(pending).await;
        let state = world.pass(false).await;
        assert_eq!((state.resent, state.missing), (0, 300));
    }
}

#[tokio::test]
async fn everything_is_asked_about_when_somebody_wants_it() {
    let world = World::with(6_000).await;
    world.pass(false).await;
    // Far behind the newest, confirmed long ago.
    world.origin().held.remove(&7);
    assert_eq!(world.pass(false).await.resent, 0);
    assert_eq!(world.pass(true).await.resent, 1);
    assert_eq!(world.pending().await, [7]);
}
