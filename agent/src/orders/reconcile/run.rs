//! The loop of reconciliation: one pass at a time, in the background, and whenever somebody asks for one.

use super::pass::{Passed, Passer};
use super::schedule::{Pace, Schedule};
use super::view::{NAMED, conditions, states};
use crate::clock::{instant, mono, wall};
use crate::heartbeat::Heartbeat;
use crate::orders::ledger::{Ledger, Outstanding, PassNote};
use crate::orders::origin::Sender;
use crate::orders::run::{Events, Routes};
use crate::status::Board;
use crate::stop;
use samovar_wire::status::ReconcileState;
use samovar_wire::{Country, OriginId};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Demands that may wait; more are told that the agent is busy.
const DEMANDS: usize = 16;

/// Keys that are remembered as told.
const MOST_TOLD: usize = 4_096;

/// Somebody wants every origin to be asked now.
#[derive(Debug)]
pub struct Demand {
    full: bool,
    reply: oneshot::Sender<Result<(), Refused>>,
}

/// The handle, for whoever asks for a pass or shows the last one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reconcile {
    demands: mpsc::Sender<Demand>,
    states: watch::Receiver<Arc<Vec<ReconcileState>>>,
}

/// No pass is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// More are asked for than can wait.
    #[error("passes are under way already: ask again in a moment")]
    Busy,
    /// There is nobody to ask as.
    #[error("the device is not activated: no origin can be asked")]
    NotActivated,
}

impl Reconcile {
    /// Asks every origin now: about what changed since the last match and the newest orders, or with `full` about
    /// everything that is remembered. True when it was done within `patience`; else it goes on.
    ///
    /// # Errors
    /// When too many have asked already, the agent is stopping, or the device is not activated.
    pub async fn demand(&self, full: bool, patience: Duration) -> Result<bool, Refused> {
        let (reply, done) = oneshot::channel();
        self.demands.try_send(Demand { full, reply }).map_err(|_| Refused::Busy)?;
        match tokio::time::timeout(patience, done).await {
            Ok(Ok(outcome)) => outcome.map(|()| true),
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    /// The facts of every origin that has settled anything.
    #[must_use]
    pub fn states(&self) -> Arc<Vec<ReconcileState>> {
        self.states.borrow().clone()
    }

    /// Tells of every change of the facts.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<ReconcileState>>> {
        self.states.clone()
    }
}

/// The loop, before it runs.
pub struct Reconciler {
    /// The ledger.
    pub ledger: Ledger,
    /// Routing.
    pub routes: Arc<dyn Routes>,
    /// Who asks; `None` before activation.
    pub sender: watch::Receiver<Option<Arc<Sender>>>,
    /// Country of the store.
    pub home: Arc<dyn Fn() -> Option<Country> + Send + Sync>,
    /// Where conditions go.
    pub board: Board,
    /// Where events go.
    pub events: Events,
    /// For how long bodies are kept.
    pub kept: Duration,
    /// How often origins are asked.
    pub pace: Pace,
}

/// What the loop remembers.
struct Memory {
    schedule: Schedule,
    passes: JoinSet<Passed>,
    /// Asked for while a pass was under way: whether in full.
    demanded: Option<bool>,
    waiting: Vec<oneshot::Sender<Result<(), Refused>>>,
    strangers: BTreeMap<OriginId, Vec<String>>,
    lost: BTreeMap<OriginId, Vec<String>>,
    table_version: Option<u64>,
    /// Whether the ledger was found to be an older copy of itself. Once in a life: an origin that is wrong about the
    /// newest place must not make it begin anew for ever.
    renewed: bool,
    publish: watch::Sender<Arc<Vec<ReconcileState>>>,
}

impl Reconciler {
    /// The handle and the loop.
    pub fn start(
        self,
        heartbeat: Heartbeat,
        stop: watch::Receiver<bool>,
    ) -> (Reconcile, impl Future<Output = ()> + Send) {
        let (demands, inbox) = mpsc::channel(DEMANDS);
        let publish = watch::Sender::default();
        let handle = Reconcile { demands, states: publish.subscribe() };
        (handle, self.run(publish, inbox, heartbeat, stop))
    }

    async fn run(
        mut self,
        publish: watch::Sender<Arc<Vec<ReconcileState>>>,
        mut inbox: mpsc::Receiver<Demand>,
        heartbeat: Heartbeat,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut routes = self.routes.changed();
        let mut memory = Memory {
            schedule: Schedule::new(self.pace),
            passes: JoinSet::new(),
            demanded: None,
            waiting: Vec::new(),
            strangers: BTreeMap::new(),
            lost: BTreeMap::new(),
            table_version: self.routes.table_version(),
            renewed: false,
            publish,
        };
        loop {
            heartbeat.beat();
            self.refresh(&mut memory).await;
            self.begin(&mut memory);
            let limit = mono().plus(heartbeat.interval());
            // Without anybody to ask as, or with a pass under way, a time that has come is no reason to wake.
            let can_begin = memory.passes.is_empty() && self.sender.borrow().is_some();
            let next = memory.schedule.next_at().filter(|_| can_begin);
            let wake_at = next.map_or(limit, |at| at.min(limit));
            tokio::select! {
                () = stop::asked(&mut stop) => return,
                Some(passed) = memory.passes.join_next() => self.passed(passed, &mut memory),
                Some(demand) = inbox.recv() => self.demanded(demand, &mut memory).await,
                Ok(()) = routes.changed() => {
                    routes.mark_unchanged();
                    let version = self.routes.table_version();
                    let new_table = version != memory.table_version;
                    memory.table_version = version;
                    memory.schedule.routes_changed(new_table, mono(), fastrand::u32(..));
                }
                Ok(()) = self.sender.changed() => {
                    self.sender.mark_unchanged();
                    memory.schedule.routes_changed(true, mono(), fastrand::u32(..));
                }
                () = tokio::time::sleep_until(instant(wake_at)) => {}
            }
        }
    }

    /// Takes in origins that have settled something for the first time, and shows what is known.
    async fn refresh(&self, memory: &mut Memory) {
        let compared = match self.ledger.compared().await {
            Ok(compared) => compared,
            Err(error) => {
                tracing::debug!(%error, "the ledger cannot be read");
                return;
            }
        };
        self.renew(&compared, memory).await;
        for (open, _) in &compared {
            memory.schedule.known(&open.origin, mono(), fastrand::u32(..));
        }
        for (condition, detail) in conditions(&compared, &memory.schedule, &memory.strangers) {
            self.board.set(condition, detail);
        }
        let now = states(&compared, &memory.schedule, (mono(), wall()));
        memory.publish.send_if_modified(|shown| {
            let changed = !same(shown, &now);
            if changed {
                *shown = Arc::new(now);
            }
            changed
        });
        if memory.passes.is_empty() && !memory.schedule.is_demanded(mono()) {
            // Who has given up waiting need not be told.
            for reply in memory.waiting.drain(..) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// An origin has orders of this ledger behind its newest place: they were given before the device was restored from a
    /// copy. Places that were given once must not be given again.
    async fn renew(&self, compared: &[(Outstanding, Option<PassNote>)], memory: &mut Memory) {
        let Some((open, _)) = compared.iter().find(|(open, _)| open.beyond > 0) else { return };
        if memory.renewed || !memory.passes.is_empty() {
            return;
        }
        memory.renewed = true;
        let newest = self.ledger.backlog().borrow().newest;
        let why = format!(
            "{} has {} orders of this ledger behind place {newest}, its newest: it was restored from an older copy",
            open.origin, open.beyond
        );
        if let Err(error) = self.ledger.renew(newest, &why).await {
            tracing::error!(%error, why, "the ledger could not go on under another UUID");
        }
    }

    /// Begins the pass whose turn it is, if none is under way.
    fn begin(&self, memory: &mut Memory) {
        let Some(sender) = self.sender.borrow().clone() else { return };
        let Some((origin, scope)) = memory.schedule.due(mono()).filter(|_| memory.passes.is_empty()) else {
            return;
        };
        let passer = Passer {
            ledger: self.ledger.clone(),
            routes: Arc::clone(&self.routes),
            sender,
            home: (self.home)(),
            events: Arc::clone(&self.events),
            kept: self.kept,
        };
        memory.passes.spawn(passer.pass(origin, scope));
    }

    async fn demanded(&self, demand: Demand, memory: &mut Memory) {
        let refused = if self.sender.borrow().is_none() {
            Some(Refused::NotActivated)
        } else {
            (memory.waiting.len() >= DEMANDS).then_some(Refused::Busy)
        };
        if let Some(refused) = refused {
            let _ = demand.reply.send(Err(refused));
            return;
        }
        if let Ok(compared) = self.ledger.compared().await {
            compared.iter().for_each(|(open, _)| memory.schedule.known(&open.origin, mono(), 0));
        }
        memory.waiting.push(demand.reply);
        if memory.passes.is_empty() {
            memory.schedule.demand(demand.full, mono());
        } else {
            // The pass under way began before: it does not count.
            memory.demanded = Some(demand.full || memory.demanded.unwrap_or(false));
        }
    }

    fn passed(&self, passed: Result<Passed, tokio::task::JoinError>, memory: &mut Memory) {
        match passed {
            Ok(passed) => {
                let (now, random) = (mono(), fastrand::u32(..));
                memory.schedule.ended(&passed.origin, &passed.ended, now, random);
                let mut strangers = passed.strangers;
                if passed.left_out {
                    let before = memory.strangers.get(&passed.origin).into_iter().flatten();
                    let more: Vec<_> = before.filter(|key| !strangers.contains(key)).cloned().collect();
                    strangers.extend(more);
                    strangers.truncate(MOST_TOLD);
                }
                self.tell("order.unknown-to-device", &passed.origin, strangers, &mut memory.strangers);
                self.tell("order.lost-at-origin", &passed.origin, passed.lost, &mut memory.lost);
            }
            Err(error) => {
                tracing::error!(%error, "a pass was lost");
                memory.schedule = Schedule::new(self.pace);
                // Dropping the replies says that it is not done.
                memory.waiting.clear();
            }
        }
        if let Some(full) = memory.demanded.take() {
            memory.schedule.demand(full, mono());
        }
    }

    /// Head office hears once of keys that were not there at the last pass.
    fn tell(
        &self,
        event: &str,
        origin: &OriginId,
        keys: Vec<String>,
        told: &mut BTreeMap<OriginId, Vec<String>>,
    ) {
        let before = told.get(origin).map(Vec::as_slice).unwrap_or_default();
        let new: Vec<&String> = keys.iter().filter(|key| !before.contains(key)).collect();
        if !new.is_empty() {
            let named: Vec<_> = new.iter().take(NAMED).collect();
            (self.events)(event, json!({ "origin": origin, "count": new.len(), "keys": named }));
        }
        told.insert(origin.clone(), keys);
    }
}

/// Whether nothing changed but the milliseconds by which the next time was computed anew.
fn same(shown: &[ReconcileState], now: &[ReconcileState]) -> bool {
    let near = |one: &ReconcileState, other: &ReconcileState| match (one.next_at, other.next_at) {
        (Some(one), Some(other)) => one.millis().abs_diff(other.millis()) < 5_000,
        (one, other) => one == other,
    };
    let rest = |state: &ReconcileState| ReconcileState { next_at: None, ..state.clone() };
    shown.len() == now.len()
        && shown.iter().zip(now).all(|(one, other)| near(one, other) && rest(one) == rest(other))
}
