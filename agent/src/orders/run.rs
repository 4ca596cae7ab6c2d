//! The loop of orders: ledger, routes and origins on one side, the dispatcher's decisions on the other.

use super::conditions::{conditions, news};
use super::dispatcher::{Action, Dispatcher, LaneState, Limits, Page, Route, RouteQuery, Sending};
use super::ledger::{Change, ChangeTo, Head, Ledger, Outgoing, Storage};
use super::origin::{Parcel, Sender, Way, send};
use super::outcome::BatchOutcome;
use super::recovery::{Probe, Recovery, Return};
use super::shadow::Shadow;
use crate::clock::{Mono, instant, mono};
use crate::heartbeat::Heartbeat;
use crate::status::Board;
use crate::stop;
use futures_util::future::BoxFuture;
use samovar_wire::OriginId;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

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
    /// At most one per origin.
    sends: JoinSet<Sent>,
    /// By which the batch to an origin is given up.
    give_up: HashMap<OriginId, Arc<Notify>>,
    recovery: Recovery,
    /// At most four per origin that does not answer: knocks overlap.
    probes: JoinSet<(OriginId, Probe, bool)>,
}

impl Work {
    fn new(limits: Limits) -> Self {
        Self {
            dispatcher: Dispatcher::new(limits),
            sends: JoinSet::new(),
            give_up: HashMap::new(),
            recovery: Recovery::new(),
            probes: JoinSet::new(),
        }
    }

    fn heard(&mut self, back: Option<Return>) {
        let Some(back) = back else { return };
        tracing::info!(origin = %back.origin, "the origin can be reached again");
        if self.dispatcher.heard(&back, mono())
            && let Some(give_up) = self.give_up.get(&back.origin)
        {
            give_up.notify_one();
        }
    }
}

/// How sending a batch ended.
struct Sent {
    /// What was really sent.
    sending: Sending,
    /// What was not to be sent any more.
    left_out: Vec<Head>,
    orders: Vec<Outgoing>,
    /// `None` when the ledger could not bind it.
    outcome: Option<BatchOutcome>,
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
        loop {
            heartbeat.beat();
            let now = mono();
            let (actions, wake_at) = work.dispatcher.poll(now, &mut |query| self.route(query));
            let probes_at = self.look_for_silent_origins(&mut work, now);
            self.in_flight.publish(work.dispatcher.in_flight());
            self.lanes.publish(&work.dispatcher);
            let busy = !actions.is_empty();
            let healthy = self.perform(actions, &mut work).await;
            if busy && healthy {
                continue;
            }
            let limit = now.plus(if healthy { heartbeat.interval() } else { LEDGER_PAUSE });
            let wake_at = wake_at.filter(|_| healthy).into_iter().chain(probes_at).min();
            let wake_at = wake_at.map_or(limit, |at| at.min(limit));
            tokio::select! {
                () = stop::asked(&mut stop) => return,
                Some(sent) = work.sends.join_next() => match sent {
                    Ok(sent) => self.sent(sent, &mut work).await,
                    // A task that died took its batch along: begin anew from what the ledger holds.
                    Err(error) => {
                        tracing::error!(%error, "a batch was lost on its way; everything is read anew");
                        work = Work::new(self.limits);
                        work.dispatcher.backlog(&self.ledger.backlog().borrow().clone());
                        self.introduce(&mut work);
                    }
                },
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
                    self.ask_routing_about_silent_origins(&mut work);
                    let action = work.dispatcher.routes_changed(self.routes.table_version());
                    self.perform(action.into_iter().collect(), &mut work).await;
                }
                Ok(()) = self.line.changed() => {
                    self.line.mark_unchanged();
                    work.recovery.hurry(mono());
                }
                Ok(()) = self.sender.changed() => {
                    self.introduce(&mut work);
                    let action = work.dispatcher.identity_changed(mono());
                    self.perform(vec![action], &mut work).await;
                }
                () = tokio::time::sleep_until(instant(wake_at)) => {}
            }
        }
    }

    /// The device's place among all of them is its own.
    fn introduce(&mut self, work: &mut Work) {
        if let Some(sender) = &*self.sender.borrow_and_update() {
            work.recovery.set_device(sender.device.as_str());
        }
    }

    /// Sends the probes that are due; gives when the next ones are.
    fn look_for_silent_origins(&self, work: &mut Work, now: Mono) -> Option<Mono> {
        work.recovery.watch(work.dispatcher.silent(), now);
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
                work.heard(back);
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
                    let heads = self.ledger.heads(group.clone(), after, up_to, limit).await;
                    work.dispatcher.loaded(&group, &page, heads.as_ref().ok().cloned(), mono());
                    heads.map(|_| ())
                }
                Action::Send(sending) => {
                    let give_up = Arc::new(Notify::new());
                    work.give_up.insert(sending.origin.clone(), Arc::clone(&give_up));
                    work.sends.spawn(self.sending(sending, give_up));
                    Ok(())
                }
                Action::Record(changes) => self.ledger.change(changes).await,
                Action::Unhold(hold) => self.ledger.unhold(hold).await,
            };
            if let Err(error) = result {
                tracing::warn!(%error, "the dispatcher cannot use the ledger");
                healthy = false;
            }
        }
        healthy
    }

    /// Binds, then sends: the binding is durable before the first byte leaves.
    fn sending(&self, sending: Sending, give_up: Arc<Notify>) -> impl Future<Output = Sent> + use<> {
        let (ledger, routes, sender) =
            (self.ledger.clone(), Arc::clone(&self.routes), self.sender.borrow().clone());
        async move {
            let seqs = sending.heads.iter().map(|head| head.seq).collect();
            let Ok(orders) = ledger.bind(seqs, sending.origin.clone()).await else {
                return Sent { sending, left_out: Vec::new(), orders: Vec::new(), outcome: None };
            };
            let bound: HashSet<u64> = orders.iter().map(|order| order.seq).collect();
            let Sending { origin, country, heads } = sending;
            let (heads, left_out): (Vec<_>, Vec<_>) =
                heads.into_iter().partition(|head| bound.contains(&head.seq));
            let query = RouteQuery { country: &country, user: None, bound: Some(&origin) };
            let outcome = match (routes.way(query), sender) {
                _ if orders.is_empty() => BatchOutcome::Answered(Vec::new()),
                (Ok(way), Some(sender)) => tokio::select! {
                    outcome = send(&sender, &way, Parcel { udl: &country, orders: &orders, shadow_of: None }) => {
                        routes.report(&origin, &outcome);
                        outcome
                    }
                    () = give_up.notified() => {
                        BatchOutcome::Unreachable("given up: the line came back after it was sent".into())
                    }
                },
                (Err(why), _) => BatchOutcome::Unreachable(why),
                (_, None) => BatchOutcome::Unreachable("the device is not activated".into()),
            };
            Sent { sending: Sending { origin, country, heads }, left_out, orders, outcome: Some(outcome) }
        }
    }

    async fn sent(&self, sent: Sent, work: &mut Work) {
        let dispatcher = &mut work.dispatcher;
        work.give_up.remove(&sent.sending.origin);
        let random = fastrand::u32(..);
        let Some(outcome) = sent.outcome else {
            dispatcher.not_bound(&sent.sending, mono(), random);
            return;
        };
        log(&sent.sending, &outcome);
        dispatcher.left_out(&sent.sending.origin, &sent.left_out, !sent.sending.heads.is_empty());
        if sent.sending.heads.is_empty() {
            return;
        }
        for action in dispatcher.answered(&sent.sending, &outcome, mono(), random) {
            let Action::Record(changes) = action else { continue };
            self.tell(&sent.sending, &sent.orders, &changes);
            self.shadow.offer(&sent.sending.origin, &sent.sending.country, &sent.orders, &changes);
            if let Err(error) = self.ledger.change(changes).await {
                // The origin absorbs the repeat that this costs.
                tracing::warn!(%error, "outcomes could not be recorded; these orders will be sent again");
                dispatcher.not_bound(&sent.sending, mono(), random);
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

fn log(sending: &Sending, outcome: &BatchOutcome) {
    let (origin, orders) = (&sending.origin, sending.heads.len());
    match outcome {
        BatchOutcome::Answered(_) => tracing::debug!(%origin, orders, "batch answered"),
        BatchOutcome::Unreachable(why) => tracing::info!(%origin, orders, why, "batch unanswered"),
        BatchOutcome::Busy { detail, .. } => tracing::info!(%origin, orders, detail, "the origin is busy"),
        BatchOutcome::IdentityRefused(why) => tracing::warn!(%origin, why, "the origin refuses our identity"),
        BatchOutcome::TooLarge(why) => tracing::info!(%origin, orders, why, "batch too large, split"),
        BatchOutcome::BatchRefused(why) => tracing::info!(%origin, orders, why, "batch refused, bisected"),
        BatchOutcome::NotTheOrigin(what) => tracing::warn!(%origin, what, "not the origin"),
        BatchOutcome::Partly { others, .. } => log(sending, others),
    }
}
