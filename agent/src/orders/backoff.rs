//! How long to wait before trying again. Pure: randomness comes in as a number.

use std::time::Duration;

/// Full jitter: anything between nothing and a ceiling that doubles with each failure. After a country-wide outage
/// this spreads the stores over the whole interval instead of bringing them back in step.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The ceiling after the first failure.
    pub base: Duration,
    /// The highest ceiling.
    pub cap: Duration,
}

/// A wait that another side asks for is obeyed, but not without limit: a wrong clock, or a word meant for somebody else,
/// must not silence a shop for a day.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);

impl Backoff {
    /// The wait after `failures` failures in a row (1 or more). `random` is uniform in 0..=`u32::MAX`.
    #[must_use]
    pub fn wait(self, failures: u32, random: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let ceiling = self.base.saturating_mul(1 << doublings).min(self.cap);
        ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        for (failures, seconds) in [(1, 1), (2, 2), (6, 32), (7, 60), (u32::MAX, 60)] {
            assert_eq!(BACKOFF.wait(failures, u32::MAX), Duration::from_secs(seconds));
        }
    }

    proptest::proptest! {
        #[test]
        fn a_wait_is_never_over_the_cap(failures in 0_u32.., random in 0_u32..) {
            proptest::prop_assert!(BACKOFF.wait(failures, random) <= BACKOFF.cap);
        }
    }
}
