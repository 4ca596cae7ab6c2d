//! The loop of routing: it owns the keeper, the health of the origins and the measurements, and publishes a view.

use super::handle::{Event, Routing};
use super::health::{HealthSettings, Origins, Reference};
use super::keeper::{Keeper, Trust};
use super::nearest::Nearest;
use super::pointed;
use super::probe::{Found, probe};
use super::reference;
use super::targets::{candidates, targets};
use super::verdict;
use super::view::View;
use crate::clock::{Mono, instant, mono, trusted_wall, wall};
use crate::heartbeat::Heartbeat;
use crate::net::{ClientSettings, Clients, OverrideSource, Resolver, TlsSource, link};
use crate::status::Board;
use crate::store::StoreError;
use futures_util::future::{BoxFuture, FutureExt, join_all, pending};
use samovar_wire::OriginId;
use samovar_wire::conditions::Condition;
use samovar_wire::route::Decision;
use samovar_wire::status::{Health, Identity, Line};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Reports and offers that wait for the loop. Full: reports are dropped, offers are told to come back.
const INBOX: usize = 256;

/// Who the device is and whom it believes; both come with activation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// The device, its store, country and class.
    pub identity: Option<Identity>,
    /// Environment and keys of route tables.
    pub trust: Trust,
}

/// What routing needs to begin.
#[derive(Debug)]
pub struct Setup {
    /// The agent's data directory.
    pub data: PathBuf,
    /// `routing.table`
    pub table: Option<PathBuf>,
    /// Who the device is; may change while running.
    pub membership: watch::Receiver<Membership>,
    /// The TLS identity; may change while running.
    pub tls: TlsSource,
    /// Names that somebody points elsewhere; may change while running.
    pub overrides: OverrideSource,
    /// How origins are spoken to.
    pub clients: ClientSettings,
    /// How their names are found; obeys the table in force.
    pub resolver: Resolver,
    /// Where conditions go.
    pub board: Board,
    /// Intervals.
    pub settings: RoutingSettings,
}

/// Intervals of the loop; tests use shorter ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingSettings {
    /// Between two looks at the files.
    pub poll: Duration,
    /// Longest time of a probe to connect.
    pub probe_connect: Duration,
    /// Longest time of a probe in all.
    pub probe_total: Duration,
    /// Probes and thresholds.
    pub health: HealthSettings,
}

impl Default for RoutingSettings {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(1),
            probe_connect: Duration::from_secs(2),
            probe_total: Duration::from_secs(4),
            health: HealthSettings::default(),
        }
    }
}

/// The loop, before it runs.
pub struct Runner {
    setup: Setup,
    keeper: Keeper,
    origins: Origins,
    nearest: Nearest,
    targets: BTreeMap<OriginId, Decision>,
    probes: Clients,
    inbox: mpsc::Receiver<Event>,
    view: watch::Sender<Arc<View>>,
    changed: watch::Sender<u64>,
}

/// Opens the kept table and makes the handle, which answers at once; [`Runner::run`] keeps both up to date.
///
/// # Errors
/// When the data directory cannot be used.
pub fn start(setup: Setup) -> Result<(Routing, Runner), StoreError> {
    let trust = setup.membership.borrow().trust.clone();
    let keeper = Keeper::open(&setup.data, setup.table.as_deref(), trust, trusted_wall())?;
    let resolver = setup.resolver.clone();
    let probe_settings = ClientSettings {
        connect_timeout: setup.settings.probe_connect,
        request_timeout: setup.settings.probe_total,
        ..setup.clients
    };
    let (view, view_reader) = watch::channel(Arc::default());
    let (changed, changed_reader) = watch::channel(0);
    let (inbox_writer, inbox) = mpsc::channel(INBOX);
    let routing = Routing {
        view: view_reader,
        changed: changed_reader,
        inbox: inbox_writer,
        clients: Clients::new(setup.clients, setup.tls.clone(), resolver.clone()),
    };
    let mut runner = Runner {
        keeper,
        origins: Origins::new(setup.settings.health, fastrand::u64(..)),
        nearest: Nearest::default(),
        targets: BTreeMap::new(),
        probes: Clients::new(probe_settings, setup.tls.clone(), resolver),
        inbox,
        view,
        changed,
        setup,
    };
    runner.settle();
    Ok((routing, runner))
}

impl Runner {
    /// Runs until `stop` becomes true.
    pub async fn run(mut self, heartbeat: Heartbeat, mut stop: watch::Receiver<bool>) {
        let mut round: Option<BoxFuture<'static, Round>> = None;
        let period = self.setup.settings.poll.min(heartbeat.interval()).max(Duration::from_millis(1));
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if round.is_none() {
                round = self.begin_round(mono());
            }
            let next_round = self.origins.next_round().filter(|_| round.is_none());
            let next = [next_round, self.origins.next_return(mono())].into_iter().flatten().min();
            tokio::select! {
                // A stop goes before everything else that is ready.
                biased;
                _ = stop.wait_for(|stopping| *stopping) => return,
                found = finished(&mut round) => { round = None; self.end_round(&found); }
                _ = tick.tick() => self.keeper.poll(trusted_wall()),
                () = at(next) => {}
                Some(event) = self.inbox.recv() => self.take(event),
                () = change(&mut self.setup.membership) => self.join(),
                () = change(&mut self.setup.tls) => self.origins.hurry(mono()),
                // What answers at the new address is worth knowing at once.
                () = change(&mut self.setup.overrides) => self.origins.hurry(mono()),
            }
            heartbeat.beat();
            self.settle();
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Report(origin, outcome) => self.origins.traffic(&origin, &outcome, mono()),
            Event::Suspect => self.origins.suspect(mono()),
            Event::Offer(bytes, answer) => {
                // Whoever offered may have stopped waiting; the table counts all the same.
                let _ = answer.send(self.keeper.offer(&bytes, trusted_wall()));
            }
        }
    }

    /// Another membership is another beginning: other keys, perhaps another environment.
    fn join(&mut self) {
        let trust = self.setup.membership.borrow_and_update().trust.clone();
        match Keeper::open(&self.setup.data, self.setup.table.as_deref(), trust, trusted_wall()) {
            Ok(keeper) => self.keeper = keeper,
            Err(error) => {
                tracing::error!(error = crate::net::explain(&error), "route tables cannot be reopened");
            }
        }
    }

    fn begin_round(&mut self, now: Mono) -> Option<BoxFuture<'static, Round>> {
        let due = self.origins.begin_round(now);
        let ways = due.iter().filter_map(|origin| self.targets.get(origin).cloned());
        let probes: Vec<_> = ways.map(|way| probe(self.probes.clone(), way)).collect();
        if probes.is_empty() {
            return None;
        }
        let in_force = self.keeper.in_force();
        let references = in_force.map(|in_force| in_force.table.probes.clone()).unwrap_or_default();
        Some(Round::run(probes, references).boxed())
    }

    fn end_round(&mut self, round: &Round) {
        for answer in round.found.iter().filter(|found| found.answered()) {
            self.nearest.measured(&answer.origin, answer.took);
        }
        let results: Vec<_> =
            round.found.iter().map(|found| (found.origin.clone(), found.probed.clone())).collect();
        let now = mono();
        self.origins.end_round(&results, &round.reference, now);
        let seen = self.origins.seen(now);
        let is_down = |origin: &OriginId| {
            seen.get(origin).is_none_or(|seen| seen.routing == Health::Down || seen.returns_at.is_some())
        };
        let listed = self.candidates();
        self.nearest.evaluate(&listed, is_down, now);
    }

    fn candidates(&self) -> Vec<OriginId> {
        let view = self.view.borrow();
        match (&view.in_force, &view.identity) {
            (Some(in_force), Some(identity)) => candidates(&in_force.table, identity),
            _ => Vec::new(),
        }
    }

    /// After every event: what to probe, what to show, what is wrong.
    fn settle(&mut self) {
        let before = Arc::clone(&self.view.borrow());
        let identity = self.setup.membership.borrow().identity.clone();
        let in_force = self.keeper.in_force().cloned();
        let overrides = self.setup.overrides.borrow_and_update().clone();
        if before.in_force != in_force || before.identity != identity || before.overrides != overrides {
            let scheme = self.setup.clients.scheme;
            let known = in_force.as_deref().zip(identity.as_ref());
            self.targets = known
                .map(|(in_force, identity)| targets(&in_force.table, identity, scheme))
                .unwrap_or_default();
            let follow = |(origin, way)| (origin, pointed::follow(&overrides, way));
            self.targets = std::mem::take(&mut self.targets).into_iter().map(follow).collect();
            self.origins.watch(&self.targets.keys().cloned().collect(), mono());
            if let Some(in_force) = &in_force {
                self.setup.resolver.obey(&in_force.table.dns);
            }
        }
        let mut view = View {
            identity,
            missing: if in_force.is_none() { self.keeper.missing() } else { String::new() },
            in_force,
            origins: self.origins.seen(mono()),
            since: BTreeMap::new(),
            line: self.origins.line(),
            line_detail: self.line_detail(),
            nearest: self.nearest.nearest().cloned(),
            overrides,
        };
        view.date(&before, wall());
        self.origins.starving(view.starves(self.setup.clients.scheme, trusted_wall()), mono());
        self.publish(&before, view);
    }

    /// Why the line is down, as far as this device can see.
    fn line_detail(&self) -> String {
        if self.origins.line() != Line::Down {
            return String::new();
        }
        if let Some(own) = link::trouble() {
            return own.to_owned();
        }
        let beyond = self.origins.line_detail();
        if link::router_answered() {
            let join = if beyond.is_empty() { "" } else { "; " };
            return format!("the store's own network looks well (the router answered lately){join}{beyond}");
        }
        beyond.to_owned()
    }

    fn publish(&mut self, before: &Arc<View>, view: View) {
        self.raise(&view);
        if **before == view {
            return;
        }
        for (origin, seen) in &view.origins {
            let was = before.origins.get(origin).map_or(Health::Unknown, |seen| seen.routing);
            let returns = before.origins.get(origin).and_then(|seen| seen.returns_at);
            if let (Some(at), None) = (seen.returns_at, returns) {
                let hold_s = at.after(mono()).as_secs();
                tracing::info!(%origin, hold_s, flapping = seen.flapping, "an origin is back and must prove itself");
            }
            if was != seen.routing {
                let why = seen.last_error.as_deref().unwrap_or_default();
                tracing::info!(%origin, from = ?was, to = ?seen.routing, why, "origin health changed");
            }
        }
        self.view.send_replace(Arc::new(view));
        self.changed.send_modify(|version| *version += 1);
    }

    fn raise(&mut self, view: &View) {
        let board = &self.setup.board;
        let now = trusted_wall();
        let of_view = verdict::conditions(view, self.setup.clients.scheme, now);
        for (condition, detail) in self.keeper.conditions(now).into_iter().chain(of_view) {
            board.set(condition, detail);
        }
        for file in self.keeper.take_set_aside() {
            board.raise(Condition::FileSetAside, file);
        }
    }
}

/// Probes of several origins at the same moment; if none of them answers, what references say.
struct Round {
    found: Vec<Found>,
    reference: Reference,
}

impl Round {
    async fn run(probes: Vec<impl Future<Output = Found>>, references: Vec<String>) -> Self {
        let found = join_all(probes).await;
        let reference = if found.iter().any(Found::answered) {
            Reference::NotAsked
        } else {
            reference::ask(&references).await
        };
        Self { found, reference }
    }
}

/// The end of the round under way; never, when there is none.
async fn finished(round: &mut Option<BoxFuture<'static, Round>>) -> Round {
    match round {
        Some(probes) => probes.await,
        None => pending().await,
    }
}

/// The next change; never, when whoever could change it is gone.
async fn change<T>(source: &mut watch::Receiver<T>) {
    if source.changed().await.is_err() {
        pending::<()>().await;
    }
}

async fn at(moment: Option<Mono>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(instant(moment)).await,
        None => pending().await,
    }
}
