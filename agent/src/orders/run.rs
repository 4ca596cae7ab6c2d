//! The loop of orders: ledger, routes and origins on one side, the dispatcher's decisions on the other.
//!
//! While the ledger reads, answers are taken in, so that a prepared batch goes the moment the one before was answered.
//! Outcomes are handed to the ledger together with the next binding, so that both share a commit.

mod sends;
mod worries;

use super::conditions::{Watch, conditions, news};
use super::dispatcher::{Action, Dispatcher, LaneState, Limits, Page, Route, RouteQuery, Sending};
use super::ledger::{Change, ChangeTo, Ledger, LedgerError, Outgoing, Storage};
use super::origin::{Sender, Way};
use super::outcome::BatchOutcome;
use super::recovery::{Probe, Recovery, Word};
use super::shadow::Shadow;
use crate::clock::{Mono, instant, mono};
use crate::heartbeat::Heartbeat;
use crate::status::Board;
use crate::stop;
use futures_util::future::BoxFuture;
use samovar_wire::OriginId;
use sends::{End, Post, Sends, Sent};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

/// Rest after the ledger failed, so that a dead disk does not keep the processor busy.
const LEDGER_PAUSE: Duration = Duration::from_millis(500);

/// What this flow needs of routing; handed in by `assemble`, because flows do not know each other.
pub trait Routes: Send + Sync + 'static {
    /// Where an order goes.
    fn route(&self, query: RouteQuery<'_>) -> Route;
    /// The way to the origin an order is bound to; the words say why there is none.
    ///
    /// # Errors
    /// When the origin cannot be addressed now.
    fn way(&self, query: RouteQuery<'_>) -> Result<Way, String>;
    /// How an origin behaved.
    fn report(&self, origin: &OriginId, outcome: &BatchOutcome);
    /// A request has waited long for its answer: worth a look whether its origin is dead.
    fn suspect(&self);
    /// Looks whether an origin that did not answer can be reached again. Never takes longer than a few seconds.
    fn look_for(&self, query: RouteQuery<'_>, probe: Probe) -> BoxFuture<'static, bool>;
    /// What routing itself knows of an origin's health.
    fn is_up(&self, origin: &OriginId) -> Option<bool>;
    /// Version of the table in force.
    fn table_version(&self) -> Option<u64>;
    /// Ticks when `route` may answer differently.
    fn changed(&self) -> watch::Receiver<u64>;
}

/// Told of what head office should hear about.
pub type Events = Arc<dyn Fn(&str, serde_json::Value) + Send + Sync>;

/// The orders that are being sent right now; `sending` in the API.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<HashSet<u64>>>);

impl InFlight {
    /// Whether an order is being sent.
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&seq)
    }

    fn publish(&self, seqs: &HashSet<u64>) {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *published != *seqs {
            published.clone_from(seqs);
        }
    }
}

/// The lanes as they are: the breaker of each origin.
#[derive(Debug, Clone, Default)]
pub struct Lanes(Arc<Mutex<Vec<(OriginId, LaneState, Mono)>>>);

impl Lanes {
    /// Each origin, its breaker and since when it is so.
    #[must_use]
    pub fn get(&self) -> Vec<(OriginId, LaneState, Mono)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, dispatcher: &Dispatcher) {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        published.clear();
        published.extend(dispatcher.lanes().map(|(origin, state, since)| (origin.clone(), state, since)));
    }
}

/// The loop, before it runs.
pub struct Flow {
    /// The ledger.
    pub ledger: Ledger,
    /// Routing.
    pub routes: Arc<dyn Routes>,
    /// Who sends; `None` before activation. A change means a new certificate or a new device.
    pub sender: watch::Receiver<Option<Arc<Sender>>>,
    /// Where conditions go.
    pub board: Board,
    /// Where events go.
    pub events: Events,
    /// How much is sent at once.
    pub limits: Limits,
    /// What the API is told of orders on their way.
    pub in_flight: InFlight,
    /// What the API is told of the lanes.
    pub lanes: Lanes,
    /// Ticks when something about the device's network changed.
    pub line: watch::Receiver<u64>,
    /// Where answered orders are offered for comparison.
    pub shadow: Shadow,
}

/// What is going on.
struct Work {
    dispatcher: Dispatcher,
    /// At most two per origin, of which one is on the wire.
    sends: Sends,
    /// A task that sent a batch has died.
    lost: bool,
    /// Outcomes that were taken in just now.
    unrecorded: Vec<(OriginId, Vec<Change>)>,
    /// Outcomes on their way to the disk. Few: a batch is bound behind the outcomes of those before it.
    records: JoinSet<Recorded>,
    recovery: Recovery,
    watch: Watch,
    /// At most four per origin that does not answer: knocks overlap.
    probes: JoinSet<(OriginId, Probe, bool)>,
}

impl Work {
    fn new(limits: Limits) -> Self {
        Self {
            dispatcher: Dispatcher::new(limits),
            sends: Sends::default(),
            lost: false,
            unrecorded: Vec::new(),
            records: JoinSet::new(),
            recovery: Recovery::new(),
            watch: Watch::default(),
            probes: JoinSet::new(),
        }
    }

    fn heard(&mut self, word: Option<Word>) {
        match word {
            Some(Word::Back(back)) => {
                tracing::info!(origin = %back.origin, "the origin can be reached again");
                if self.dispatcher.heard(&back, mono()) {
                    self.sends.give_up(&back.origin);
                }
            }
            Some(Word::Well(origin)) => self.dispatcher.well(&origin, mono()),
            None => {}
        }
    }
}

/// How recording outcomes ended.
struct Recorded {
    origin: OriginId,
    changes: Vec<Change>,
    result: Result<(), LedgerError>,
}

impl Flow {
    /// Runs until told to stop. What is in flight then is pending again at the next start.
    pub async fn run(mut self, heartbeat: Heartbeat, mut stop: watch::Receiver<bool>) {
        let mut work = Work::new(self.limits);
        let (mut backlog, mut storage) = (self.ledger.backlog(), self.ledger.storage());
        let mut routes = self.routes.changed();
        work.dispatcher.backlog(&backlog.borrow_and_update().clone());
        self.show_conditions();
        self.introduce(&mut work);
        let mut known = Storage::default();
        self.tell_news(&mut known);
        // Whatever an earlier run held may have its reason no longer.
        let mut first = vec![work.dispatcher.identity_changed(mono())];
        first.extend(work.dispatcher.routes_changed(self.routes.table_version()));
        self.perform(first, &mut work).await;
        let mut look_at = Mono::default();
        loop {
            heartbeat.beat();
            if work.lost {
                work = self.begun_anew();
            }
            let now = mono();
            let (actions, wake_at) = work.dispatcher.poll(now, &mut |query| self.route(query));
            let probes_at = self.look_for_silent_origins(&mut work, now);
            self.in_flight.publish(work.dispatcher.in_flight());
            self.lanes.publish(&work.dispatcher);
            self.show_lanes(&work);
            let busy = !actions.is_empty();
            let healthy = self.perform(actions, &mut work).await;
            if busy && healthy {
                continue;
            }
            if healthy && look_at <= now {
                look_at = self.look_around(&mut work).await;
                continue;
            }
            let limit =
                now.plus(if healthy { heartbeat.interval() } else { LEDGER_PAUSE }).min(look_at.max(now));
            let wake_at = wake_at.filter(|_| healthy).into_iter().chain(probes_at).min();
            let wake_at = wake_at.map_or(limit, |at| at.min(limit));
            tokio::select! {
                () = stop::asked(&mut stop) => return,
                Some(sent) = work.sends.next() => self.sent(sent, &mut work),
                Some(Ok(recorded)) = work.records.join_next() => recorded_by(&mut work, recorded),
                // A probe that died is as good as none: the next one is due soon.
                Some(probed) = work.probes.join_next() => if let Ok((origin, probe, yes)) = probed {
                    let back = work.recovery.probed(&origin, probe, yes, mono(), fastrand::u32(..));
                    work.heard(back);
                },
                Ok(()) = backlog.changed() => {
                    work.dispatcher.backlog(&backlog.borrow_and_update().clone());
                    self.show_conditions();
                }
                Ok(()) = storage.changed() => {
                    storage.mark_unchanged();
                    self.show_conditions();
                    self.tell_news(&mut known);
                }
                Ok(()) = routes.changed() => {
                    routes.mark_unchanged();
                    self.rerouted(&mut work).await;
                }
                Ok(()) = self.line.changed() => {
                    self.line.mark_unchanged();
                    work.recovery.hurry(mono());
                }
                Ok(()) = self.sender.changed() => self.activated(&mut work).await,
                () = tokio::time::sleep_until(instant(wake_at)) => {}
            }
        }
    }

    /// A task that died took its batch along: all begins with what the ledger holds.
    fn begun_anew(&mut self) -> Work {
        let mut work = Work::new(self.limits);
        work.dispatcher.backlog(&self.ledger.backlog().borrow().clone());
        self.introduce(&mut work);
        work
    }

    async fn activated(&mut self, work: &mut Work) {
        self.introduce(work);
        let action = work.dispatcher.identity_changed(mono());
        self.perform(vec![action], work).await;
    }

    async fn rerouted(&self, work: &mut Work) {
        self.ask_routing_about_silent_origins(work);
        let action = work.dispatcher.routes_changed(self.routes.table_version());
        self.perform(action.into_iter().collect(), work).await;
    }

    /// The device's place among all of them is its own.
    fn introduce(&mut self, work: &mut Work) {
        if let Some(sender) = &*self.sender.borrow_and_update() {
            work.recovery.set_device(sender.device.as_str());
        }
    }

    /// Sends the probes that are due; gives when the next ones are.
    fn look_for_silent_origins(&self, work: &mut Work, now: Mono) -> Option<Mono> {
        work.recovery.watch(work.dispatcher.silent(now), now);
        for (origin, country, probe) in work.recovery.due(now) {
            let query = RouteQuery { country: &country, user: None, bound: Some(&origin) };
            let looking = self.routes.look_for(query, probe);
            work.probes.spawn(async move { (origin, probe, looking.await) });
        }
        work.recovery.wake_at()
    }

    fn ask_routing_about_silent_origins(&self, work: &mut Work) {
        let origins: Vec<OriginId> = work.recovery.origins().cloned().collect();
        for origin in origins {
            if let Some(up) = self.routes.is_up(&origin) {
                let back = work.recovery.said(&origin, up, mono(), fastrand::u32(..));
                work.heard(back.map(Word::Back));
            }
        }
    }

    fn route(&self, query: RouteQuery<'_>) -> Route {
        if self.sender.borrow().is_none() { Route::Wait } else { self.routes.route(query) }
    }

    fn show_conditions(&self) {
        let (backlog, storage) = (self.ledger.backlog(), self.ledger.storage());
        let conditions = conditions(&backlog.borrow(), &storage.borrow());
        for (condition, detail) in conditions {
            self.board.set(condition, detail);
        }
    }

    /// Head office hears once of a ledger that was set aside, and of how its salvage ended.
    fn tell_news(&self, known: &mut Storage) {
        let now = self.ledger.storage().borrow().clone();
        for (kind, facts) in news(known, &now) {
            (self.events)(kind, facts);
        }
        *known = now;
    }

    /// False when the ledger failed.
    async fn perform(&self, actions: Vec<Action>, work: &mut Work) -> bool {
        let mut healthy = true;
        for action in actions {
            let result = match action {
                Action::Load { group, page } => {
                    let Page { after, up_to, limit } = page;
                    // Batches come before pages in a list of actions, so what belongs together is under way.
                    self.record(work);
                    let reading = self.ledger.heads(group.clone(), after, up_to, limit);
                    let heads = self.taking_answers(work, reading).await;
                    work.dispatcher.loaded(&group, &page, heads.as_ref().ok().cloned(), mono());
                    heads.map(|_| ())
                }
                Action::Unhold(hold) => self.ledger.unhold(hold).await,
                Action::Record(changes) => self.ledger.change(changes).await,
                action => {
                    self.send(action, work);
                    Ok(())
                }
            };
            if let Err(error) = result {
                tracing::warn!(%error, "the dispatcher cannot use the ledger");
                healthy = false;
            }
        }
        self.record(work);
        healthy
    }

    /// Hands to the ledger what has become of batches.
    fn record(&self, work: &mut Work) {
        for (origin, changes) in work.unrecorded.drain(..) {
            let ledger = self.ledger.clone();
            work.records.spawn(async move {
                let result = ledger.change(changes.clone()).await;
                Recorded { origin, changes, result }
            });
        }
    }

    /// Waits for the ledger, and takes in what origins answer meanwhile. What was recorded meanwhile is left for later,
    /// because the page may have been read before; and the page comes first, because an answer to a batch that was bound
    /// after it was read may put orders back that it does not hold.
    async fn taking_answers<T>(&self, work: &mut Work, waiting: impl Future<Output = T>) -> T {
        let mut waiting = std::pin::pin!(waiting);
        loop {
            tokio::select! {
                biased;
                done = &mut waiting => return done,
                Some(sent) = work.sends.next() => self.sent(sent, work),
            }
        }
    }

    /// What concerns batches on their way.
    fn send(&self, action: Action, work: &mut Work) {
        match action {
            Action::Send(sending) if sending.aside => work.sends.aside(sending, self.post()),
            Action::Send(sending) => {
                let origin = sending.origin.clone();
                work.sends.prepare(sending, self.post());
                work.sends.go(&origin);
            }
            Action::Prepare(sending) => work.sends.prepare(sending, self.post()),
            Action::Go(origin) => work.sends.go(&origin),
            Action::Withdraw(origin) => work.sends.withdraw(&origin),
            Action::Load { .. } | Action::Record(_) | Action::Unhold(_) => {}
        }
    }

    fn post(&self) -> Post {
        let (routes, sender) = (Arc::clone(&self.routes), self.sender.borrow().clone());
        Post { ledger: self.ledger.clone(), routes, sender }
    }

    fn sent(&self, sent: Result<Sent, JoinError>, work: &mut Work) {
        let Sent { sending, left_out, orders, end } = match sent {
            Ok(sent) => sent,
            Err(error) => {
                tracing::error!(%error, "a batch was lost on its way; everything is read anew");
                work.lost = true;
                return;
            }
        };
        let (dispatcher, random, now) = (&mut work.dispatcher, fastrand::u32(..), mono());
        dispatcher.left_out(&left_out);
        let actions = match end {
            End::NotBound => dispatcher.not_bound(&sending, now, random).into_iter().collect(),
            End::Withdrawn { bound } => dispatcher.withdrawn(&sending, bound, now),
            End::Answered(_) if sending.heads.is_empty() => {
                dispatcher.nothing_left(&sending, now).into_iter().collect()
            }
            End::Answered(outcome) => {
                log(&sending, &outcome);
                dispatcher.answered(&sending, &outcome, now, random)
            }
        };
        for action in actions {
            match action {
                Action::Record(changes) => {
                    self.tell(&sending, &orders, &changes);
                    work.watch.answered(&sending.origin, &changes, now);
                    self.shadow.offer(&sending.origin, &sending.country, &orders, &changes);
                    work.unrecorded.push((sending.origin.clone(), changes));
                }
                other => self.send(other, work),
            }
        }
    }

    /// Head office hears of every order that an origin refused.
    fn tell(&self, sending: &Sending, orders: &[Outgoing], changes: &[Change]) {
        let by_seq: HashMap<u64, &Outgoing> = orders.iter().map(|order| (order.seq, order)).collect();
        for change in changes {
            if let (ChangeTo::Quarantined { why, detail }, Some(order)) =
                (&change.to, by_seq.get(&change.seq))
            {
                (self.events)(
                    "order.quarantined",
                    json!({ "id": order.id, "order_no": order.order_no, "seq": order.seq, "origin": sending.origin,
                            "why": why, "detail": detail }),
                );
            }
        }
    }
}

fn recorded_by(work: &mut Work, recorded: Recorded) {
    let Recorded { origin, changes, result } = recorded;
    if let Err(error) = &result {
        // The origin absorbs the repeat that this costs.
        tracing::warn!(%error, "outcomes could not be recorded; these orders will be sent again");
    }
    work.dispatcher.recorded(&origin, &changes, result.is_ok(), mono(), fastrand::u32(..));
}

fn log(sending: &Sending, outcome: &BatchOutcome) {
    let (origin, orders) = (&sending.origin, sending.heads.len());
    match outcome {
        BatchOutcome::Answered(_) => tracing::debug!(%origin, orders, "batch answered"),
        BatchOutcome::Unreachable(why) | BatchOutcome::Stalled(why) => {
            tracing::info!(%origin, orders, aside = sending.aside, why, "batch unanswered");
        }
        BatchOutcome::Busy { detail, .. } => tracing::info!(%origin, orders, detail, "the origin is busy"),
        BatchOutcome::IdentityRefused(why) => tracing::warn!(%origin, why, "the origin refuses our identity"),
        BatchOutcome::TooLarge(why) => tracing::info!(%origin, orders, why, "batch too large, split"),
        BatchOutcome::BatchRefused(why) => tracing::info!(%origin, orders, why, "batch refused, bisected"),
        BatchOutcome::NotTheOrigin(what) => tracing::warn!(%origin, what, "not the origin"),
        BatchOutcome::Partly { others, .. } => log(sending, others),
    }
}
