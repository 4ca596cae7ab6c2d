//! The loop of orders: ledger, routes and origins on one side, the dispatcher's decisions on the other.

use super::conditions::{conditions, news};
use super::dispatcher::{Action, Dispatcher, Limits, Route, RouteQuery, Sending};
use super::ledger::{Change, ChangeTo, Head, Ledger, Outgoing, Storage};
use super::origin::{Sender, Way, send};
use super::outcome::BatchOutcome;
use crate::clock::{instant, mono};
use crate::heartbeat::Heartbeat;
use crate::status::Board;
use crate::stop;
use samovar_wire::OriginId;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
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
        let mut dispatcher = Dispatcher::new(self.limits);
        let (mut backlog, mut storage) = (self.ledger.backlog(), self.ledger.storage());
        let mut routes = self.routes.changed();
        let mut sends: JoinSet<Sent> = JoinSet::new();
        dispatcher.backlog(&backlog.borrow_and_update().clone());
        self.show_conditions();
        let mut known = Storage::default();
        self.tell_news(&mut known);
        // Whatever an earlier run held may have its reason no longer.
        let mut first = vec![dispatcher.identity_changed()];
        first.extend(dispatcher.routes_changed(self.routes.table_version()));
        self.perform(first, &mut dispatcher, &mut sends).await;
        loop {
            heartbeat.beat();
            let now = mono();
            let (actions, wake_at) = dispatcher.poll(now, &mut |query| self.route(query));
            self.in_flight.publish(dispatcher.in_flight());
            let busy = !actions.is_empty();
            let healthy = self.perform(actions, &mut dispatcher, &mut sends).await;
            if busy && healthy {
                continue;
            }
            let pause = if healthy { heartbeat.interval() } else { LEDGER_PAUSE };
            let limit = now.plus(pause);
            let wake_at = if healthy { wake_at.map_or(limit, |at| at.min(limit)) } else { limit };
            tokio::select! {
                () = stop::asked(&mut stop) => return,
                Some(sent) = sends.join_next() => match sent {
                    Ok(sent) => self.sent(sent, &mut dispatcher).await,
                    // A task that died took its batch along: begin anew from what the ledger holds.
                    Err(error) => {
                        tracing::error!(%error, "a batch was lost on its way; everything is read anew");
                        sends.abort_all();
                        dispatcher = Dispatcher::new(self.limits);
                        dispatcher.backlog(&self.ledger.backlog().borrow().clone());
                    }
                },
                Ok(()) = backlog.changed() => {
                    dispatcher.backlog(&backlog.borrow_and_update().clone());
                    self.show_conditions();
                }
                Ok(()) = storage.changed() => {
                    storage.mark_unchanged();
                    self.show_conditions();
                    self.tell_news(&mut known);
                }
                Ok(()) = routes.changed() => {
                    routes.mark_unchanged();
                    let action = dispatcher.routes_changed(self.routes.table_version());
                    self.perform(action.into_iter().collect(), &mut dispatcher, &mut sends).await;
                }
                Ok(()) = self.sender.changed() => {
                    self.sender.mark_unchanged();
                    let action = dispatcher.identity_changed();
                    self.perform(vec![action], &mut dispatcher, &mut sends).await;
                }
                () = tokio::time::sleep_until(instant(wake_at)) => {}
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
    async fn perform(
        &self,
        actions: Vec<Action>,
        dispatcher: &mut Dispatcher,
        sends: &mut JoinSet<Sent>,
    ) -> bool {
        let mut healthy = true;
        for action in actions {
            let result = match action {
                Action::Load { group, after, limit } => {
                    let heads = self.ledger.heads(group.clone(), after, limit).await;
                    dispatcher.loaded(&group, after, limit, heads.as_ref().ok().cloned(), mono());
                    heads.map(|_| ())
                }
                Action::Send(sending) => {
                    sends.spawn(self.sending(sending));
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
    fn sending(&self, sending: Sending) -> impl Future<Output = Sent> + use<> {
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
                (Ok(way), Some(sender)) => {
                    let outcome = send(&sender, &way, &country, &orders).await;
                    routes.report(&origin, &outcome);
                    outcome
                }
                (Err(why), _) => BatchOutcome::Unreachable(why),
                (_, None) => BatchOutcome::Unreachable("the device is not activated".into()),
            };
            Sent { sending: Sending { origin, country, heads }, left_out, orders, outcome: Some(outcome) }
        }
    }

    async fn sent(&self, sent: Sent, dispatcher: &mut Dispatcher) {
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
    }
}
