//! The loop that sends copies, one at a time, while no order waits (IO).

use super::compare::{Said, Unclear};
use super::tally::Example;
use super::{Copied, Shadow};
use crate::clock::{Mono, instant, mono, wall};
use crate::heartbeat::Heartbeat;
use crate::orders::backoff::Backoff;
use crate::orders::dispatcher::RouteQuery;
use crate::orders::ledger::{Backlog, Hold, State};
use crate::orders::origin::{Parcel, Sender, send};
use crate::orders::outcome::BatchOutcome;
use crate::orders::run::{Events, Routes};
use crate::stop;
use samovar_wire::OriginId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Longest time for one copy, from the request to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Rests of a shadow origin that did not answer.
const REST: Backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(120) };

/// What the loop needs of others.
pub struct Setup {
    /// The way to a shadow origin; nothing is ever reported back.
    pub routes: Arc<dyn Routes>,
    /// Who sends.
    pub sender: watch::Receiver<Option<Arc<Sender>>>,
    /// What waits in the ledger.
    pub backlog: watch::Receiver<Arc<Backlog>>,
    /// Where differences are told.
    pub events: Events,
}

/// The loop, before it runs.
pub struct Runner {
    setup: Setup,
    shadow: Shadow,
    copies: mpsc::Receiver<Copied>,
    /// Shadow origins that failed, with the end of their rest.
    resting: BTreeMap<OriginId, (u32, Mono)>,
}

impl Runner {
    pub(super) const fn new(setup: Setup, shadow: Shadow, copies: mpsc::Receiver<Copied>) -> Self {
        Self { setup, shadow, copies, resting: BTreeMap::new() }
    }

    /// Runs until told to stop.
    pub async fn run(mut self, heartbeat: Heartbeat, mut stop: watch::Receiver<bool>) {
        loop {
            heartbeat.beat();
            let look_again = self.tell(mono()).unwrap_or_else(|| mono().plus(heartbeat.interval()));
            let quiet = is_quiet(&self.setup.backlog.borrow_and_update());
            let wake_at = look_again.min(mono().plus(heartbeat.interval()));
            tokio::select! {
                // An order that has just come goes before a copy.
                biased;
                () = stop::asked(&mut stop) => return,
                Ok(()) = self.setup.backlog.changed() => {}
                Some(copy) = self.copies.recv(), if quiet => tokio::select! {
                    () = stop::asked(&mut stop) => return,
                    () = self.compare(&copy) => {
                        self.shadow.bytes.fetch_sub(copy.order.body.len(), Ordering::Relaxed);
                    }
                },
                () = tokio::time::sleep_until(instant(wake_at)) => {}
            }
        }
    }

    /// Tells head office if it is time to; gives when it will be.
    fn tell(&self, now: Mono) -> Option<Mono> {
        let event = self.shadow.tally().event(now);
        if let Some(event) = event {
            (self.setup.events)("shadow.different", event);
        }
        self.shadow.tally().event_at()
    }

    async fn compare(&mut self, copy: &Copied) {
        let resting = self.resting.get(&copy.shadow).is_some_and(|(_, until)| *until > mono());
        if resting || !self.is_wanted(copy) {
            self.shadow.tally().counts.dropped += 1;
            return;
        }
        self.shadow.tally().counts.sent += 1;
        match Said::by_shadow(&self.ask(copy).await) {
            Ok(said) => {
                self.resting.remove(&copy.shadow);
                self.count(copy, said);
            }
            Err(unclear) => {
                tracing::debug!(shadow = %copy.shadow, why = unclear.why, "a copy could not be compared");
                self.shadow.tally().counts.not_compared += 1;
                self.rest(&copy.shadow, &unclear);
            }
        }
    }

    /// The rule may have gone while the copy waited.
    fn is_wanted(&self, copy: &Copied) -> bool {
        let rules = (self.shadow.rules)();
        rules.iter().any(|rule| rule.country == copy.country && rule.origin == copy.shadow)
    }

    async fn ask(&self, copy: &Copied) -> BatchOutcome {
        let Some(sender) = self.setup.sender.borrow().clone() else {
            return BatchOutcome::Unreachable("the device is not activated".into());
        };
        let query = RouteQuery { country: &copy.country, user: None, bound: Some(&copy.shadow) };
        let way = match self.setup.routes.way(query) {
            Ok(way) => way,
            Err(why) => return BatchOutcome::Unreachable(why),
        };
        let orders = std::slice::from_ref(&copy.order);
        let parcel = Parcel { udl: &copy.country, orders, shadow_of: Some(&copy.real) };
        match tokio::time::timeout(DEADLINE, send(&sender, &way, parcel)).await {
            Ok(outcome) => outcome,
            Err(_) => BatchOutcome::Unreachable(format!("no answer within {} s", DEADLINE.as_secs())),
        }
    }

    fn count(&self, copy: &Copied, said: Said) {
        let mut tally = self.shadow.tally();
        if said.is_same_as(&copy.answer) {
            tally.same();
            return;
        }
        tally.different(Example {
            at: wall(),
            order_no: copy.order.order_no.clone(),
            key: copy.order.key.clone(),
            origin: copy.real.clone(),
            answer: copy.answer.clone(),
            shadow: copy.shadow.clone(),
            shadow_answer: said,
        });
    }

    fn rest(&mut self, origin: &OriginId, unclear: &Unclear) {
        let failures = self.resting.get(origin).map_or(1, |(failures, _)| failures.saturating_add(1));
        let own = REST.wait(failures, fastrand::u32(..));
        let wait = unclear.retry_after.map_or(own, |asked| asked.max(own));
        self.resting.insert(origin.clone(), (failures, mono().plus(wait)));
    }
}

/// Whether copies may go: no order waits, and no origin refuses who we are.
fn is_quiet(backlog: &Backlog) -> bool {
    backlog.count(State::Pending) == 0 && backlog.count_why(State::Held, Hold::Identity.word()) == 0
}
