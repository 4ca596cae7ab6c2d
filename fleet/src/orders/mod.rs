//! Order intake: the reference origin.
//!
//! ```text
//! batch ──► who (certificate or token) ──► decode ──► read ──► judge each order by itself
//!                                                               digest wrong ──► rejected
//!           one transaction: insert-if-absent ──► read back ──► mine ──► settled
//!                                                               other's, same hash ──► duplicate (the row takes its place)
//!                                                               other's, other hash ──► conflict
//! shadow ──► the same, without the transaction: nothing is recorded
//! reconcile ──► see `reconcile`
//! ```
//!
//! Promises: key and hash are recorded in the transaction of the order; an answer is given only after the commit;
//! repeats, also concurrent ones on several servers of one database, record each key of a device once; the body is
//! kept byte for byte and is never serialised again. What cannot be decided now is answered with a status that the
//! sender retries, never with a result.
//!
//! | limit | bound | beyond it |
//! |---|---|---|
//! | bodies in memory | `memory_bytes`; an eighth of it for shadows and comparisons | waits, up to the request time-out |
//! | batches worked on | `in_flight`; 2 for shadows and comparisons | waits, up to the request time-out |
//! | batches of one device at once | `in_flight_per_device`; 2 shadows, 2 comparisons | 429 |
//! | one device in a second | buckets ([`pace`]) | 429, with the time until there is a token |
//! | everybody's | [`crate::overload`] | 503, the least important first |

mod compare;
pub mod compared;
pub mod decode;
mod differences;
pub mod handlers;
mod judge;
pub mod pace;
mod places;
pub mod query;
mod receive;
mod reconcile;
mod record;
pub mod retention;
mod shadow;
pub(crate) mod who;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use samovar_wire::DeviceId;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::metrics::{Metrics, count};
use crate::overload::http::spread;
use crate::problem::Failure;
use crate::{clock, config};
use pace::{Pace, Work};

const KIB: usize = 1024;
/// Shadows and comparisons worked on at once, in all and for one device.
const ASIDE: usize = 2;

/// The limits of the intake: how much is worked on at once, in all and for one device, and how fast one device may go.
#[derive(Debug)]
pub struct Intake {
    orders: Lane,
    aside: Lane,
    per_device: usize,
    bytes_per_device: usize,
    open: Arc<Mutex<Open>>,
    pace: Mutex<Pace>,
}

/// What each device has open of a kind of work; nothing is remembered of those without any.
type Open = HashMap<(DeviceId, Work), Taken>;

/// What one device has open.
#[derive(Debug, Default)]
struct Taken {
    requests: usize,
    bytes: usize,
}

/// One device may take so large a part of the memory: a few that send nothing behind large promises keep no other out.
const PART: usize = 16;

/// What work of one kind takes its share of.
#[derive(Debug)]
struct Lane {
    turns: Semaphore,
    /// In KiB.
    memory: Semaphore,
}

impl Lane {
    fn new(turns: usize, bytes: usize) -> Self {
        Self { turns: Semaphore::new(turns), memory: Semaphore::new(bytes.div_ceil(KIB)) }
    }
}

impl Intake {
    /// Nothing is being worked on.
    #[must_use]
    pub fn new(limits: &config::Intake) -> Self {
        let aside = (limits.memory_bytes / 8).max(limits.max_body_bytes).max(reconcile::MAX_BODY);
        Self {
            orders: Lane::new(limits.in_flight, limits.memory_bytes),
            aside: Lane::new(ASIDE, aside),
            per_device: limits.in_flight_per_device,
            bytes_per_device: (limits.memory_bytes / PART).max(limits.max_body_bytes),
            open: Arc::default(),
            pace: Mutex::new(Pace::new(limits)),
        }
    }

    fn lane(&self, work: Work) -> &Lane {
        match work {
            Work::Orders => &self.orders,
            Work::Shadow | Work::Reconcile => &self.aside,
        }
    }

    /// Waits for the memory that a body will take; given back when dropped.
    async fn room(&self, work: Work, bytes: usize) -> Result<SemaphorePermit<'_>, Failure> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX);
        self.lane(work).memory.acquire_many(kib).await.map_err(|closed| Failure::unavailable(&closed))
    }

    /// Waits for a turn to work; given back when dropped.
    async fn turn(&self, work: Work) -> Result<SemaphorePermit<'_>, Failure> {
        self.lane(work).turns.acquire().await.map_err(|closed| Failure::unavailable(&closed))
    }

    /// Lets a device's request in, or answers 429 with the time to wait.
    fn enter(
        &self,
        metrics: &Metrics,
        device: &DeviceId,
        work: Work,
        bytes: usize,
    ) -> Result<Place, Failure> {
        let place = self.place(device, work, bytes).ok_or_else(|| {
            count(metrics.throttled(work));
            Failure::too_many("too many requests of this device at once", spread(1))
        })?;
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.enter(device, work, clock::steady()).map_err(|wait| {
            count(metrics.throttled(work));
            // Rounded up: whoever comes back then is let in.
            let seconds = wait.saturating_add(Duration::from_millis(999)).as_secs();
            Failure::too_many("this device sends too fast", spread(seconds.max(1)))
        })?;
        Ok(place)
    }

    /// Takes what a batch costs out of its device's bucket.
    fn took(&self, device: &DeviceId, work: Work, orders: usize) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.took(device, work, orders, clock::steady());
    }

    /// One of the device's places for a request of so many bytes; `None` when it has used all of them, or its memory.
    fn place(&self, device: &DeviceId, work: Work, bytes: usize) -> Option<Place> {
        let places = if work == Work::Orders { self.per_device } else { ASIDE };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let whose = (device.clone(), work);
        let taken = open.entry(whose.clone()).or_default();
        let crowded = taken.requests > 0 && taken.bytes + bytes > self.bytes_per_device;
        if taken.requests >= places || crowded {
            return None;
        }
        taken.requests += 1;
        taken.bytes += bytes;
        Some(Place { whose, bytes, open: Arc::clone(&self.open) })
    }
}

/// A device's place among what is worked on; given back when dropped.
#[derive(Debug)]
struct Place {
    whose: (DeviceId, Work),
    bytes: usize,
    open: Arc<Mutex<Open>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = open.get_mut(&self.whose) {
            taken.requests -= 1;
            taken.bytes -= self.bytes;
            if taken.requests == 0 {
                open.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_promises_much_and_sends_nothing_keeps_no_other_out() {
        let limits = config::Intake::default();
        let intake = Intake::new(&limits);
        let device: DeviceId = "A".parse().unwrap();
        let mut places = Vec::new();
        while let Some(place) = intake.place(&device, Work::Orders, limits.max_body_bytes) {
            places.push(place);
        }
        assert!(!places.is_empty() && places.len() * limits.max_body_bytes <= limits.memory_bytes / PART);
        drop(places);
        let many = limits.in_flight_per_device;
        let places: Vec<_> = (0..many).filter_map(|_| intake.place(&device, Work::Orders, 100_000)).collect();
        assert_eq!(places.len(), many, "batches of the usual size are not hindered");
    }

    #[test]
    fn a_device_gets_its_places_back_and_others_are_not_concerned() {
        let intake = Intake::new(&config::Intake { in_flight_per_device: 2, ..Default::default() });
        let enter = |device: &DeviceId| intake.place(device, Work::Orders, 1);
        let (one, other): (DeviceId, DeviceId) = ("A".parse().unwrap(), "B".parse().unwrap());
        let places = (enter(&one), enter(&one));
        assert!(places.0.is_some() && places.1.is_some());
        assert!(enter(&one).is_none());
        assert!(enter(&other).is_some());
        assert!(intake.place(&one, Work::Shadow, 1).is_some(), "shadows take no place of orders");
        drop(places);
        assert!(enter(&one).is_some());
        assert!(intake.open.lock().unwrap().is_empty(), "nothing is remembered of devices without work");
    }
}
