//! Order intake: the reference origin.
//!
//! ```text
//! batch ──► who (certificate or token) ──► decode ──► read ──► judge each order by itself
//!                                                               digest wrong ──► rejected
//!           one transaction: insert-if-absent ──► read back ──► mine ──► settled
//!                                                               other's, same hash ──► duplicate
//!                                                               other's, other hash ──► conflict
//! ```
//!
//! Promises: key and hash are recorded in the transaction of the order; an answer is given only after the commit;
//! repeats, also concurrent ones on several servers of one database, record each key of a device once; the body is
//! kept byte for byte and is never serialised again. What cannot be decided now is answered with a status that the
//! sender retries, never with a result.

pub mod decode;
pub mod handlers;
mod judge;
pub mod query;
mod record;
pub mod retention;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use samovar_wire::DeviceId;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use crate::config;

const KIB: usize = 1024;

/// The limits of the intake: how much is worked on at once, in all and for one device.
#[derive(Debug)]
pub struct Intake {
    turns: Semaphore,
    /// In KiB.
    memory: Semaphore,
    per_device: usize,
    open: Arc<Mutex<HashMap<DeviceId, usize>>>,
}

impl Intake {
    /// Nothing is being worked on.
    #[must_use]
    pub fn new(limits: &config::Intake) -> Self {
        Self {
            turns: Semaphore::new(limits.in_flight),
            memory: Semaphore::new(limits.memory_bytes / KIB),
            per_device: limits.in_flight_per_device,
            open: Arc::new(Mutex::new(HashMap::new())),
        }
    }

    /// Waits for the memory that a body will take; given back when dropped.
    async fn room(&self, bytes: usize) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.memory.acquire_many(u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX)).await
    }

    /// Takes one of the device's places; `None` when it has used all of them.
    fn enter(&self, device: &DeviceId) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(device.clone()).or_insert(0);
        if *count >= self.per_device {
            return None;
        }
        *count += 1;
        Some(Place { device: device.clone(), open: Arc::clone(&self.open) })
    }
}

/// A device's place among what is worked on; given back when dropped.
#[derive(Debug)]
struct Place {
    device: DeviceId,
    open: Arc<Mutex<HashMap<DeviceId, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_its_places_back_and_others_are_not_concerned() {
        let intake = Intake::new(&config::Intake { in_flight_per_device: 2, ..Default::default() });
        let (one, other): (DeviceId, DeviceId) = ("A".parse().unwrap(), "B".parse().unwrap());
        let places = (intake.enter(&one), intake.enter(&one));
        assert!(places.0.is_some() && places.1.is_some());
        assert!(intake.enter(&one).is_none());
        assert!(intake.enter(&other).is_some());
        drop(places);
        assert!(intake.enter(&one).is_some());
        assert!(intake.open.lock().unwrap().is_empty(), "nothing is remembered of devices without work");
    }
}
