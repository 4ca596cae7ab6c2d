//! How long to wait before the next connection: full jitter between a floor and a doubling ceiling.
//!
//! Pure: the random number comes in. A connection counts as good only after it has held for a while, so that a broker
//! that accepts and drops at once (two devices with one client ID, for instance) is not hammered.

use std::time::Duration;

/// A connection that held this long makes the next wait short again.
const STABLE: Duration = Duration::from_secs(30);

/// The waits between connections.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    floor: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling: ceiling.max(floor), failures: 0 }
    }

    /// The wait after a failure. `random` is in `0.0..1.0`.
    pub(super) fn failed(&mut self, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let doublings = self.failures.min(16);
        let top = self.floor.saturating_mul(1 << doublings).min(self.ceiling);
        self.floor + top.saturating_sub(self.floor).mul_f64(random.clamp(0.0, 1.0))
    }

    /// A connection ended after `held`.
    pub(super) fn held(&mut self, held: Duration) {
        if held >= STABLE {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_secs(1), Duration::from_secs(60))
    }

    #[test]
    fn waits_stay_between_one_and_sixty_seconds_and_spread_over_the_whole_range() {
        let mut low = backoff();
        let mut high = backoff();
        for _ in 0..100 {
            assert_eq!(low.failed(0.0), Duration::from_secs(1));
            assert!(high.failed(1.0) <= Duration::from_secs(60));
        }
        assert_eq!(high.failed(1.0), Duration::from_secs(60));
        assert_eq!(backoff().failed(1.0), Duration::from_secs(2));
    }

    #[test]
    fn only_a_connection_that_held_makes_the_next_wait_short() {
        let mut backoff = backoff();
        for _ in 0..10 {
            backoff.failed(1.0);
        }
        backoff.held(Duration::from_secs(1));
        assert_eq!(backoff.failed(1.0), Duration::from_secs(60));
        backoff.held(Duration::from_secs(31));
        assert_eq!(backoff.failed(1.0), Duration::from_secs(2));
    }
}
