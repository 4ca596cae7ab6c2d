//! Shadow traffic: a share of the orders is also sent to another origin, only to be compared.
//!
//! ```text
//! an origin answered ─► offer ─ in the share? ─► queue (256 copies, 1 MiB) ─► run: one at a time, while no order waits
//!                                  no, full: done                               └─► shadow origin ─► compare ─► tally
//! ```
//!
//! **Promise.** A copy leaves only after its order's own origin has settled or refused it, and nothing that comes of it
//! touches the ledger, the dispatcher or routing: shadow traffic cannot delay, settle, hold or quarantine an order,
//! and a dead shadow origin moves no route. Copies live in memory only. They pause while any order is pending or held
//! for the identity; what does not fit meanwhile is dropped and counted. A copy is sent once and alone, with the header
//! `Samovar-Shadow: <its real origin>`; the receiver judges it and records nothing.
//!
//! `select` (pure) says which orders, `compare` (pure) what was the same, `tally` (pure) what is told of it, `run` sends.

mod compare;
mod run;
mod select;
mod tally;

pub use compare::Said;
pub use run::{Runner, Setup};
pub use select::{Rule, rules};
pub use tally::{Counts, Example};

use super::ledger::{Change, Outgoing};
use samovar_wire::{Country, OriginId};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tally::Tally;
use tokio::sync::mpsc;

/// Copies that wait. Full: the newest is dropped and counted.
const QUEUE: usize = 256;
/// Bytes of bodies that wait, likewise.
const QUEUE_BYTES: usize = 1024 * 1024;

/// Gives the shadow rules in force.
pub type Rules = Arc<dyn Fn() -> Vec<Rule> + Send + Sync>;

/// The handle: takes copies, shows results. Cheap to clone.
#[derive(Clone)]
pub struct Shadow {
    queue: mpsc::Sender<Copied>,
    bytes: Arc<AtomicUsize>,
    tally: Arc<Mutex<Tally>>,
    rules: Rules,
}

/// One order on its way to be compared.
struct Copied {
    order: Outgoing,
    country: Country,
    /// Where it really belongs.
    real: OriginId,
    /// What was said there.
    answer: Said,
    /// Where it is compared.
    shadow: OriginId,
}

/// What the status shows.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The rules in force.
    pub rules: Vec<Rule>,
    /// Copies that wait.
    pub waiting: usize,
    /// What became of the others since the agent started.
    #[serde(flatten)]
    pub counts: Counts,
    /// The newest differences, newest first.
    pub examples: Vec<Example>,
}

/// Makes the handle and the loop behind it.
#[must_use]
pub fn start(setup: Setup, rules: Rules) -> (Shadow, Runner) {
    let (queue, copies) = mpsc::channel(QUEUE);
    let shadow = Shadow { queue, bytes: Arc::default(), tally: Arc::default(), rules };
    let runner = Runner::new(setup, shadow.clone(), copies);
    (shadow, runner)
}

impl Shadow {
    /// Offers orders that `origin` has answered for. Never waits.
    pub fn offer(&self, origin: &OriginId, country: &Country, orders: &[Outgoing], changes: &[Change]) {
        let mut rules = (self.rules)();
        rules.retain(|rule| rule.country == *country && rule.origin != *origin);
        if rules.is_empty() {
            return;
        }
        let by_seq: HashMap<u64, &Outgoing> = orders.iter().map(|order| (order.seq, order)).collect();
        for change in changes {
            let Some((order, answer)) = by_seq.get(&change.seq).zip(Said::really(&change.to)) else {
                continue;
            };
            for rule in rules.iter().filter(|rule| rule.takes(&order.key)) {
                self.push(Copied {
                    order: (*order).clone(),
                    country: country.clone(),
                    real: origin.clone(),
                    answer: answer.clone(),
                    shadow: rule.origin.clone(),
                });
            }
        }
    }

    fn push(&self, copy: Copied) {
        let size = copy.order.body.len();
        let fits = self.bytes.fetch_add(size, Ordering::Relaxed) + size <= QUEUE_BYTES;
        if !fits || self.queue.try_send(copy).is_err() {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            self.tally().counts.dropped += 1;
        }
    }

    /// What the status shows; `None` while no rule is in force and nothing was ever counted.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let rules = (self.rules)();
        let tally = self.tally();
        let waiting = self.queue.max_capacity() - self.queue.capacity();
        let used = !rules.is_empty() || tally.counts != Counts::default();
        used.then(|| Report { rules, waiting, counts: tally.counts, examples: tally.examples() })
    }

    /// That many copies differ, while a rule is in force.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if (self.rules)().is_empty() { None } else { self.tally().trouble() }
    }

    /// Metrics by name.
    #[must_use]
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let counts = self.tally().counts;
        [
            ("sent", counts.sent),
            ("same", counts.same),
            ("different", counts.different),
            ("not_compared", counts.not_compared),
            ("dropped", counts.dropped),
        ]
        .into_iter()
        .map(|(name, count)| (format!("samovar_shadow_{name}_total"), count as f64))
        .collect()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // A panic while it was held leaves a count behind at worst.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
