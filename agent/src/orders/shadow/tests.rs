use super::super::dispatcher::{Route, RouteQuery};
use super::super::ledger::{Backlog, ChangeTo};
use super::super::origin::Way;
use super::super::outcome::BatchOutcome;
use super::super::recovery::Probe;
use super::super::run::Routes;
use super::*;
use crate::heartbeat::Heartbeats;
use samovar_wire::Timestamp;
use std::time::Duration;
use tokio::sync::watch;

/// Routing that knows no way, so that nothing leaves.
struct NoWay(watch::Receiver<u64>);

impl Routes for NoWay {
    fn route(&self, _: RouteQuery<'_>) -> Route {
        Route::Wait
    }
    fn way(&self, _: RouteQuery<'_>) -> Result<Way, String> {
        Err("no way".into())
    }
    fn suspect(&self) {}
    fn report(&self, _: &OriginId, _: &BatchOutcome) {
        panic!("shadow traffic must not tell routing anything");
    }
    fn look_for(&self, _: RouteQuery<'_>, _: Probe) -> futures_util::future::BoxFuture<'static, bool> {
        panic!("shadow traffic looks for nobody");
    }
    fn is_up(&self, _: &OriginId) -> Option<bool> {
        None
    }
    fn table_version(&self) -> Option<u64> {
        None
    }
    fn changed(&self) -> watch::Receiver<u64> {
        self.0.clone()
    }
}

fn rule(basis_points: u32) -> Rule {
    Rule { country: country(), origin: "us-next".parse().unwrap(), basis_points }
}

fn country() -> Country {
    "US".parse().unwrap()
}

fn real() -> OriginId {
    "us-west".parse().unwrap()
}

fn order(seq: u64, bytes: usize) -> Outgoing {
    Outgoing {
        seq,
        id: format!("i{seq}"),
        key: format!("A-{seq}"),
        order_no: format!("A-{seq}"),
        sha256: [0; 32],
        accepted_at: Timestamp::from_millis(0),
        body: vec![b' '; bytes],
    }
}

struct World {
    shadow: Shadow,
    runner: Option<Runner>,
    backlog: watch::Sender<Arc<Backlog>>,
    rules: Arc<Mutex<Vec<Rule>>>,
    _ticks: watch::Sender<u64>,
}

fn world(rules: Vec<Rule>) -> World {
    let rules = Arc::new(Mutex::new(rules));
    let backlog = watch::Sender::new(Arc::new(Backlog::default()));
    let ticks = watch::Sender::new(0);
    let setup = Setup {
        routes: Arc::new(NoWay(ticks.subscribe())),
        sender: watch::channel(None).1,
        backlog: backlog.subscribe(),
        events: Arc::new(|_, _| {}),
    };
    let in_force = rules.clone();
    let (shadow, runner) = start(setup, Arc::new(move || in_force.lock().unwrap().clone()));
    World { shadow, runner: Some(runner), backlog, rules, _ticks: ticks }
}

impl World {
    fn offer(&self, orders: &[Outgoing], to: &ChangeTo) {
        let changes: Vec<_> = orders.iter().map(|order| Change { seq: order.seq, to: to.clone() }).collect();
        self.shadow.offer(&real(), &country(), orders, &changes);
    }

    fn counts(&self) -> Counts {
        self.shadow.tally().counts
    }

    fn pending(&self, orders: u64) {
        let mut backlog = Backlog::default();
        backlog.states[0] = orders;
        self.backlog.send_replace(Arc::new(backlog));
    }

    async fn run_until(&mut self, done: impl Fn(&Counts) -> bool) -> Counts {
        if let Some(runner) = self.runner.take() {
            let heartbeat = Heartbeats::default().register("shadow", Duration::from_secs(30));
            let (stop, stopped) = watch::channel(false);
            tokio::spawn(async move {
                runner.run(heartbeat, stopped).await;
                drop(stop);
            });
        }
        let waited = async {
            while !done(&self.counts()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waited).await.expect("the counts never came");
        self.counts()
    }
}

#[test]
fn the_queue_is_bounded_in_copies_and_bytes_and_drops_the_newest() {
    let world = world(vec![rule(10_000)]);
    let orders: Vec<_> = (1..=300).map(|seq| order(seq, 10)).collect();
    world.offer(&orders, &ChangeTo::Settled);
    assert_eq!((world.counts().dropped, world.shadow.report().unwrap().waiting), (44, 256));

    let world = self::world(vec![rule(10_000)]);
    let large: Vec<_> = (1..=20).map(|seq| order(seq, 100 * 1024)).collect();
    world.offer(&large, &ChangeTo::Settled);
    assert_eq!((world.counts().dropped, world.shadow.report().unwrap().waiting), (10, 10));
    world.offer(&[order(21, 10)], &ChangeTo::Settled);
    assert_eq!(world.counts().dropped, 10, "a small one still fits: what was refused gave its room back");
}

#[test]
fn nothing_is_copied_without_a_rule_or_an_answer_or_to_the_origin_that_has_it() {
    let orders = [order(1, 10)];
    let off = world(Vec::new());
    off.offer(&orders, &ChangeTo::Settled);
    assert!(off.shadow.report().is_none());
    let elsewhere = Rule { country: "JP".parse().unwrap(), ..rule(10_000) };
    let itself = Rule { origin: real(), ..rule(10_000) };
    let world = world(vec![elsewhere, itself, rule(10_000)]);
    world.offer(&orders, &ChangeTo::Failed("cut".into()));
    assert_eq!(world.shadow.report().unwrap().waiting, 0);
    world.offer(&orders, &ChangeTo::Settled);
    assert_eq!(world.shadow.report().unwrap().waiting, 1);
}

#[tokio::test]
async fn copies_wait_while_orders_do_and_a_shadow_that_fails_rests() {
    let mut world = world(vec![rule(10_000)]);
    world.pending(1);
    let orders: Vec<_> = (1..=5).map(|seq| order(seq, 10)).collect();
    world.offer(&orders, &ChangeTo::Settled);
    let busy = world.run_until(|_| true).await;
    tokio::task::yield_now().await;
    assert_eq!((busy.sent, world.counts().sent), (0, 0));
    world.pending(0);
    let counts = world.run_until(|counts| counts.not_compared + counts.dropped == 5).await;
    assert_eq!((counts.not_compared, counts.sent, counts.same + counts.different), (1, 1, 0));
    assert_eq!(world.shadow.bytes.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_copy_whose_rule_has_gone_is_not_sent() {
    let mut world = world(vec![rule(10_000)]);
    world.offer(&[order(1, 10)], &ChangeTo::Settled);
    world.rules.lock().unwrap().clear();
    let counts = world.run_until(|counts| counts.dropped == 1).await;
    assert_eq!(counts.sent, 0);
}
