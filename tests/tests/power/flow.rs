//! Stories of accept, dispatch and settle, with the product's own loop and an origin that outlives the cut.
//!
//! At each cut the origin knows what had been sent to it by then. The device comes back from its disk, and by then
//! routing prefers another origin: every acknowledged order must end up at one of the two, and none at both.

use crate::disk::{Disk, Op};
use crate::image::{Fate, Image, Playback};
use crate::oracle::{self, Finding};
use crate::sweep::{Plan, Tally, beside, seed, soak};
use crate::till::{self, DEADLINE};
use fastrand::Rng;
use futures_util::future::BoxFuture;
use samovar_agent::heartbeat::Heartbeats;
use samovar_agent::orders::dispatcher::{Limits, Route, RouteQuery};
use samovar_agent::orders::ledger::{Ledger, NewOrder, State};
use samovar_agent::orders::origin::{Protocol, Sender, Way};
use samovar_agent::orders::outcome::BatchOutcome;
use samovar_agent::orders::recovery::Probe;
use samovar_agent::orders::run::{Flow, InFlight, Lanes, Routes};
use samovar_agent::orders::shadow;
use samovar_agent::status::Board;
use samovar_tests::Origin;
use samovar_wire::OriginId;
use samovar_wire::encoding::hex;
use samovar_wire::orders::{BatchWriter, OutgoingOrder};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Images that are brought to their end at once.
const AT_ONCE: usize = 12;
const DEVICE: &str = "POS-US-0001";

/// Two origins, and the one that orders without a binding go to.
struct World {
    ways: BTreeMap<OriginId, Way>,
    preferred: OriginId,
    changed: watch::Sender<u64>,
}

impl Routes for World {
    fn route(&self, query: RouteQuery<'_>) -> Route {
        Route::To(query.bound.unwrap_or(&self.preferred).clone())
    }

    fn way(&self, query: RouteQuery<'_>) -> Result<Way, String> {
        let origin = query.bound.unwrap_or(&self.preferred);
        self.ways.get(origin).cloned().ok_or_else(|| format!("no way to {origin}"))
    }

    fn suspect(&self) {}

    fn report(&self, _origin: &OriginId, _outcome: &BatchOutcome) {}

    fn look_for(&self, _query: RouteQuery<'_>, _probe: Probe) -> BoxFuture<'static, bool> {
        Box::pin(async { true })
    }

    fn is_up(&self, _origin: &OriginId) -> Option<bool> {
        Some(true)
    }

    fn table_version(&self) -> Option<u64> {
        Some(1)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// The origins and a client for each.
struct Origins {
    east: Origin,
    west: Origin,
}

impl Origins {
    async fn start() -> Self {
        let origin = async |name| Origin::start(name).await.expect("an origin");
        Self { east: origin("east").await, west: origin("west").await }
    }

    fn world(&self, client: &reqwest::Client, preferred: &str) -> World {
        let way = |origin: &Origin| {
            let base_url = format!("http://{}", origin.address());
            let name: OriginId = origin.name().parse().expect("a name");
            (name.clone(), Way { origin: name, client: client.clone(), base_url, stopwatch: None })
        };
        World {
            ways: BTreeMap::from([way(&self.east), way(&self.west)]),
            preferred: preferred.parse().expect("a name"),
            changed: watch::Sender::new(0),
        }
    }
}

/// The product's loop, running. It ends when this is dropped.
struct Running {
    task: JoinHandle<()>,
    _sender: watch::Sender<Option<Arc<Sender>>>,
    _stop: watch::Sender<bool>,
    _line: watch::Sender<u64>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn run(ledger: &Ledger, world: World) -> Running {
    let sender = Sender {
        device: DEVICE.parse().expect("a device"),
        store: "US-0001".parse().expect("a store"),
        ledger: ledger.watch_id(),
        token: None,
        deadline: DEADLINE,
        protocol: Protocol::Batch(None),
    };
    let sender = watch::Sender::new(Some(Arc::new(sender)));
    let stop = watch::Sender::new(false);
    let changed = watch::Sender::new(0);
    let routes: Arc<dyn Routes> = Arc::new(world);
    let setup = shadow::Setup {
        backlog: ledger.backlog(),
        events: Arc::new(|_, _| {}),
        routes: Arc::clone(&routes),
        sender: sender.subscribe(),
    };
    let (shadow, _) = shadow::start(setup, Arc::new(Vec::new));
    let flow = Flow {
        ledger: ledger.clone(),
        routes,
        sender: sender.subscribe(),
        board: Board::default(),
        events: Arc::new(|_, _| {}),
        limits: Limits { orders: 64, bytes: 1 << 20 },
        in_flight: InFlight::default(),
        lanes: Lanes::default(),
        line: changed.subscribe(),
        shadow,
    };
    let heartbeat = Heartbeats::default().register("orders", DEADLINE);
    let task = tokio::spawn(flow.run(heartbeat, stop.subscribe()));
    Running { task, _sender: sender, _stop: stop, _line: changed }
}

/// Waits until nothing is pending or held any more.
async fn all_settled(ledger: &Ledger, at_least: u64) -> Result<(), String> {
    let mut backlog = ledger.backlog();
    let done = backlog.wait_for(|backlog| {
        backlog.count(State::Pending) + backlog.count(State::Held) == 0
            && backlog.count(State::Settled) >= at_least
    });
    match tokio::time::timeout(DEADLINE, done).await {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("not settled: {:?}", ledger.backlog().borrow().states)),
    }
}

/// A day that was recorded: what was promised when, what was sent when.
struct Day {
    log: Vec<Op>,
    opened: usize,
    beside: Image,
    /// Orders with the place of the log at which each request was made and answered.
    orders: Vec<(NewOrder, usize, usize)>,
    /// Keys with the place at which they had reached the origin.
    sent: Vec<(Vec<String>, usize)>,
}

impl Day {
    fn promised(&self, cut: usize) -> impl Iterator<Item = &NewOrder> {
        self.orders.iter().filter(move |(_, _, answered)| *answered <= cut).map(|(order, ..)| order)
    }

    fn reached(&self, cut: usize) -> HashSet<&str> {
        let sent = self.sent.iter().filter(|(_, at)| *at <= cut);
        sent.flat_map(|(keys, _)| keys.iter().map(String::as_str)).collect()
    }
}

fn client() -> reqwest::Client {
    // The second time it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

/// A few orders, one of which waits for another, accepted, dispatched and settled; the journal moved at the end.
async fn day(rng: &mut Rng) -> Day {
    let directory = till::directory();
    let disk = Disk::watch(directory.path(), false);
    let ledger = till::open(directory.path()).expect("a ledger that opens");
    disk.directory_synced();
    let opened = disk.position();
    let origins = Origins::start().await;
    let running = run(&ledger, origins.world(&client(), "east"));
    let mut orders = Vec::new();
    for request in [1, 1, 10, 1] {
        let first = orders.len();
        let new: Vec<_> = (first..first + request)
            .map(|n| till::order(&format!("D-{n}"), "day", (n == 5).then_some("D-2"), rng))
            .collect();
        let issued = disk.position();
        ledger.accept(new.clone()).await.expect("orders accepted");
        let answered = disk.position();
        orders.extend(new.into_iter().map(|order| (order, issued, answered)));
        if request == 1 {
            all_settled(&ledger, orders.len() as u64).await.expect("settled");
        }
    }
    all_settled(&ledger, orders.len() as u64).await.expect("settled");
    let before = disk.position();
    let waited = samovar_tests::eventually("the checkpoint", DEADLINE, async || {
        disk.log()[before..].iter().any(|op| matches!(op, Op::Synced { inode: 0, .. })).then_some(())
    });
    waited.await.expect("a checkpoint when idle");
    drop(running);
    let requests = origins.east.requests();
    let place = |at: Instant| disk.times().partition_point(|time| *time <= at);
    let sent = requests.into_iter().map(|seen| (seen.keys, place(seen.at))).collect();
    Day { log: disk.log(), opened, beside: beside(directory.path()), orders, sent }
}

/// Puts orders into an origin, as requests before the cut had done.
async fn remember(origin: &Origin, orders: &[&NewOrder]) {
    let mut writer = BatchWriter::new("before-the-cut");
    for new in orders {
        let sha256 = hex(&new.order.sha256);
        let outgoing = OutgoingOrder {
            id: &new.id,
            key: &new.order.key,
            sha256: &sha256,
            order_no: &new.order.order_no,
            seq: 1,
            udl: "US",
            accepted_at: new.accepted_at,
        };
        writer.push(&outgoing, &new.order.body);
    }
    let request = client()
        .post(format!("http://{}/v1/orders:batch", origin.address()))
        .header("content-type", "application/json")
        .header("samovar-device", DEVICE)
        .body(writer.finish())
        .send()
        .await;
    assert_eq!(request.expect("an answer").status().as_u16(), 200);
}

/// The device comes back and works until nothing is left to do.
async fn live_on(image: Image, day: &Day, cut: usize, client: &reqwest::Client) -> Finding {
    let mut finding = Finding::default();
    let directory = till::directory();
    oracle::write(&image, directory.path());
    let ledger = match till::open(directory.path()) {
        Ok(ledger) => ledger,
        Err(error) => {
            finding.lost = day.promised(cut).count();
            finding.wrong.push(format!("it does not open: {error:?}"));
            return finding;
        }
    };
    let (origins, reached) = (Origins::start().await, day.reached(cut));
    let known: Vec<_> = day
        .orders
        .iter()
        .map(|(order, ..)| order)
        .filter(|o| reached.contains(o.order.key.as_str()))
        .collect();
    if !known.is_empty() {
        remember(&origins.east, &known).await;
    }
    let running = run(&ledger, origins.world(client, "west"));
    finding.wrong.extend(all_settled(&ledger, 0).await.err());
    drop(running);
    for (new, issued, answered) in &day.orders {
        let key = &new.order.key;
        let digest = |origin: &Origin| origin.store(|store| store.get(key).map(|held| held.sha256.clone()));
        let held: Vec<_> = [&origins.east, &origins.west].into_iter().filter_map(digest).collect();
        let right = held.iter().all(|sha256| *sha256 == hex(&new.order.sha256));
        match held.len() {
            1 if right && *issued <= cut => {}
            0 if *answered > cut => {}
            0 => {
                finding.lost += 1;
                finding.wrong.push(format!("{key} was acknowledged and reached no origin"));
            }
            n => {
                finding.lost += 1;
                finding.wrong.push(format!("{key} is at {n} origins"));
            }
        }
    }
    finding
}

/// All of the fates by hand, after a change those that are not chance and one that is.
fn draw(fates: &[Fate], rng: &mut Rng) -> Vec<Fate> {
    Plan { sparing: soak().is_none(), ..Plan::of(fates) }.draw(rng)
}

async fn cut_everywhere(day: Day, fates: &[Fate], lies: bool, rng: &mut Rng) -> Tally {
    let (day, client) = (Arc::new(day), client());
    let mut tally = Tally::default();
    let mut disk = Playback::new(lies, rng);
    let mut seen = HashSet::new();
    let mut lives: JoinSet<(String, Finding)> = JoinSet::new();
    for (index, op) in day.log.iter().enumerate() {
        disk.apply(op, rng);
        let cut = index + 1;
        if soak().is_none() && rng.usize(0..3) > 0 {
            continue;
        }
        tally.cuts += 1;
        for fate in draw(fates, rng) {
            let mut image = disk.cut(fate, rng);
            if day.opened <= cut {
                image.extend(day.beside.clone());
            }
            tally.images += 1;
            if !seen.insert((image.clone(), day.promised(cut).count(), day.reached(cut).len())) {
                continue;
            }
            tally.distinct += 1;
            if lives.len() >= AT_ONCE
                && let Some(ended) = lives.join_next().await
            {
                let (place, finding) = ended.expect("a life that ends");
                tally.note(&place, finding);
            }
            let (day, client) = (Arc::clone(&day), client.clone());
            lives.spawn(async move {
                (format!("cut after operation {cut}, {fate:?}"), live_on(image, &day, cut, &client).await)
            });
        }
    }
    while let Some(ended) = lives.join_next().await {
        let (place, finding) = ended.expect("a life that ends");
        tally.note(&place, finding);
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_anywhere_between_accepting_and_settling_brings_every_order_to_one_origin_once() {
    let mut rng = Rng::with_seed(seed() ^ 8);
    let (mut total, images) = (Tally::default(), soak().map_or(1, |images| images / 10));
    while total.images < images && total.wrong == 0 {
        let day = day(&mut rng).await;
        assert!(day.sent.len() >= 4, "sent in {} requests", day.sent.len());
        total.add(cut_everywhere(day, &Fate::ALL, false, &mut rng).await);
    }
    total.must_be_clean();
    assert!(total.distinct > 100, "{total}");
}

/// The control: where flushing is a lie, a binding is forgotten that the origin has not forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_about_flushing_brings_orders_to_two_origins_or_none() {
    let mut rng = Rng::with_seed(seed() ^ 9);
    let day = day(&mut rng).await;
    let tally = cut_everywhere(day, &[Fate::Some], true, &mut rng).await;
    println!("a disk that lies: {tally}\n{}", tally.told.join("\n"));
    for what in ["reached no origin", "is at 2 origins"] {
        assert!(
            tally.told.iter().any(|told| told.contains(what)),
            "the harness saw no order that {what}: {tally}"
        );
    }
}
