//! Overload: how the orders are doing, and the refusals that follow from it.
//!
//! ```text
//! a batch of orders ──► InHand (until it is answered) ──► Load ──► admission: refuse this class?
//!                                                                    ├─► HTTP: 503 + Retry-After   (http)
//!                                                                    └─► MQTT: only last values    (crate::ingest)
//! ```
//!
//! Promises: what is refused is refused before it is parsed or looked up, with the time to wait; every refusal is counted
//! by its class. Bounds on one device are elsewhere ([`crate::orders`]).

pub mod admission;
pub mod http;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock;
use admission::{Class, Load};

/// The orders in hand, seen from everywhere. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Overload(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    turns: usize,
    hand: Mutex<Hand>,
    refused: [AtomicU64; Class::ALL.len()],
}

/// When each batch in hand came, by a number that grows: the first is the oldest.
#[derive(Debug, Default)]
struct Hand {
    next: u64,
    since: BTreeMap<u64, Duration>,
}

impl Overload {
    /// Nothing is in hand; `turns` batches can be worked on at once.
    #[must_use]
    pub fn new(turns: usize) -> Self {
        Self(Arc::new(Parts { turns, hand: Mutex::default(), refused: Default::default() }))
    }

    /// One more batch of orders is in hand, until the answer is dropped.
    #[must_use]
    pub fn enter(&self) -> InHand {
        let mut hand = self.0.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let number = hand.next;
        hand.next += 1;
        hand.since.insert(number, clock::steady());
        InHand { overload: self.clone(), number }
    }

    /// How the orders are doing.
    #[must_use]
    pub fn load(&self) -> Load {
        let hand = self.0.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let since = hand.since.values().next();
        Load {
            in_hand: hand.since.len(),
            turns: self.0.turns,
            oldest: since.map_or(Duration::ZERO, |since| clock::steady().saturating_sub(*since)),
        }
    }

    /// Whether work of this class is done now.
    #[must_use]
    pub fn admits(&self, class: Class) -> bool {
        self.load().admits(class)
    }

    /// Counts what was refused.
    pub fn refused(&self, class: Class, how_many: usize) {
        let number = u64::try_from(how_many).unwrap_or(u64::MAX);
        self.0.refused[class as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// How much of a class was refused so far.
    #[must_use]
    pub fn refusals(&self, class: Class) -> u64 {
        self.0.refused[class as usize].load(Ordering::Relaxed)
    }

    /// The load and the refusals, as Prometheus reads them.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = String::from(
            "# HELP samovar_fleet_refused_total Work refused or dropped under overload\n\
             # TYPE samovar_fleet_refused_total counter\n",
        );
        for class in Class::ALL {
            let (name, number) = (class.name(), self.refusals(class));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "samovar_fleet_refused_total{{class=\"{name}\"}} {number}");
        }
        let load = self.load();
        for (name, help, value) in [
            (
                "load_percent",
                "Load of the intake: 100 = every turn taken, or a second's wait",
                load.hundredths(),
            ),
            ("in_hand", "Batches waiting or worked on", u64::try_from(load.in_hand).unwrap_or(u64::MAX)),
        ] {
            let _ = writeln!(text, "# HELP samovar_fleet_intake_{name} {help}");
            let _ = writeln!(
                text,
                "# TYPE samovar_fleet_intake_{name} gauge\nsamovar_fleet_intake_{name} {value}"
            );
        }
        text
    }
}

/// A batch in hand; no longer when dropped.
#[derive(Debug)]
pub struct InHand {
    overload: Overload,
    number: u64,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.overload.0.hand.lock().unwrap_or_else(PoisonError::into_inner).since.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_hand_is_load_until_it_is_dropped() {
        let overload = Overload::new(2);
        assert!(overload.admits(Class::Status));
        let hand = [overload.enter(), overload.enter()];
        assert_eq!(overload.load().in_hand, 2);
        assert!(!overload.admits(Class::Status) && overload.admits(Class::Orders));
        overload.refused(Class::Status, 3);
        assert!(overload.metrics().contains("samovar_fleet_refused_total{class=\"status\"} 3"));
        drop(hand);
        assert!(overload.admits(Class::Status));
        assert_eq!(overload.load(), Load { turns: 2, ..Load::default() });
    }
}
