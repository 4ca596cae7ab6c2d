//! How fast one device may go: a bucket of tokens for each kind of work. Pure: time comes in.
//!
//! A bucket fills at a steady rate up to ten seconds' worth (a minute's for reconciliation). A request is let in while
//! there is anything in the bucket, and then takes what it costs, even if that leaves a debt: the orders of a batch are
//! known only after it has been read, and work that is done already is not thrown away. The debt is waited for next time.
//!
//! Shadow traffic has buckets of its own: it can never make orders wait.
//!
//! Devices are remembered in two generations, so that forgetting the idle ones costs nothing: a device that is seen
//! moves to the young one; when that is full, the old one is dropped. Whoever is forgotten starts with full buckets.

use std::collections::HashMap;
use std::time::Duration;

use samovar_wire::DeviceId;

use crate::config;

/// Devices of one generation; twice as many are remembered at most.
const GENERATION: usize = 16_384;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// A batch to be recorded.
    Orders,
    /// A batch to be judged only.
    Shadow,
    /// A comparison.
    Reconcile,
}

/// What fills a bucket, and how far.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_s: f64,
    full: f64,
}

impl Rate {
    fn seconds_worth(per_s: u32, seconds: u32) -> Self {
        let per_s = f64::from(per_s);
        Self { per_s, full: (per_s * f64::from(seconds)).max(1.0) }
    }
}

/// The tokens of one kind, and when they were counted.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    fn fill(&mut self, rate: Rate, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate.per_s).min(rate.full);
        self.at = self.at.max(now);
    }

    /// How long until there is a token; zero = there is.
    fn wait(&self, rate: Rate) -> Duration {
        let short = 1.0 - self.tokens;
        if short <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(short / rate.per_s).unwrap_or(Duration::MAX)
    }
}

/// One device's buckets: requests and orders, the same for shadows, and comparisons.
type Buckets = [Bucket; 5];

const REQUESTS: usize = 0;
const ORDERS: usize = 1;
const SHADOW_REQUESTS: usize = 2;
const SHADOW_ORDERS: usize = 3;
const RECONCILES: usize = 4;

/// Everybody's buckets.
#[derive(Debug)]
pub struct Pace {
    rates: [Rate; 5],
    young: HashMap<DeviceId, Buckets>,
    old: HashMap<DeviceId, Buckets>,
}

impl Pace {
    /// Everybody's buckets are full.
    #[must_use]
    pub fn new(limits: &config::Intake) -> Self {
        let requests = Rate::seconds_worth(limits.device_requests_per_s, 10);
        let orders = Rate::seconds_worth(limits.device_orders_per_s, 10);
        let per_minute = f64::from(limits.device_reconciles_per_min);
        let reconciles = Rate { per_s: per_minute / 60.0, full: per_minute.max(1.0) };
        Self {
            rates: [requests, orders, requests, orders, reconciles],
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// Lets a request in and takes its token, or says how long to wait.
    ///
    /// # Errors
    /// The time until there is a token again.
    pub fn enter(&mut self, device: &DeviceId, work: Work, now: Duration) -> Result<(), Duration> {
        let (request, orders) = match work {
            Work::Orders => (REQUESTS, Some(ORDERS)),
            Work::Shadow => (SHADOW_REQUESTS, Some(SHADOW_ORDERS)),
            Work::Reconcile => (RECONCILES, None),
        };
        let rates = self.rates;
        let buckets = self.buckets(device, now);
        let mut wait = Duration::ZERO;
        for index in [Some(request), orders].into_iter().flatten() {
            buckets[index].fill(rates[index], now);
            wait = wait.max(buckets[index].wait(rates[index]));
        }
        if wait > Duration::ZERO {
            return Err(wait);
        }
        buckets[request].tokens -= 1.0;
        Ok(())
    }

    /// Takes the orders of a batch that was let in.
    pub fn took(&mut self, device: &DeviceId, work: Work, orders: usize, now: Duration) {
        let index = match work {
            Work::Orders => ORDERS,
            Work::Shadow => SHADOW_ORDERS,
            Work::Reconcile => return,
        };
        let rate = self.rates[index];
        let bucket = &mut self.buckets(device, now)[index];
        bucket.fill(rate, now);
        bucket.tokens -= f64::from(u32::try_from(orders).unwrap_or(u32::MAX));
    }

    fn buckets(&mut self, device: &DeviceId, now: Duration) -> &mut Buckets {
        let Self { rates, young, old } = self;
        if young.len() >= GENERATION && !young.contains_key(device) {
            *old = std::mem::take(young);
        }
        let full = || rates.map(|rate| Bucket { tokens: rate.full, at: now });
        young.entry(device.clone()).or_insert_with(|| old.remove(device).unwrap_or_else(full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    fn limits() -> config::Intake {
        config::Intake {
            device_requests_per_s: 10,
            device_orders_per_s: 1000,
            device_reconciles_per_min: 6,
            ..Default::default()
        }
    }

    fn device(number: usize) -> DeviceId {
        format!("POS-{number}").parse().unwrap()
    }

    /// Orders that one device gets in, sending batches of `size` without pause for so many seconds.
    fn drained(pace: &mut Pace, size: usize, seconds: u64) -> usize {
        let (mut orders, device) = (0, device(1));
        for millis in 0..seconds * 1000 {
            let now = START + Duration::from_millis(millis);
            while pace.enter(&device, Work::Orders, now).is_ok() {
                pace.took(&device, Work::Orders, size, now);
                orders += size;
            }
        }
        orders
    }

    #[test]
    fn a_burst_of_ten_seconds_worth_passes_and_then_the_rate_holds() {
        let orders = drained(&mut Pace::new(&limits()), 500, 60);
        assert!((70_000..=70_500).contains(&orders), "{orders}: ten seconds' worth and a minute's");
    }

    #[test]
    fn the_default_never_holds_up_a_drain_of_a_hundred_thousand_orders() {
        assert!(drained(&mut Pace::new(&config::Intake::default()), 500, 1) >= 100_000);
        // And a million goes at more than 2,000 a second.
        assert!(drained(&mut Pace::new(&config::Intake::default()), 100, 60) >= 60 * 2000 + 100_000);
    }

    #[test]
    fn whoever_is_too_fast_is_told_when_there_is_a_token_again() {
        let mut pace = Pace::new(&limits());
        let device = device(1);
        pace.enter(&device, Work::Orders, START).unwrap();
        pace.took(&device, Work::Orders, 12_000, START);
        let wait = pace.enter(&device, Work::Orders, START).unwrap_err();
        assert_eq!(wait, Duration::from_millis(2001), "a debt of 2,000 at 1,000 a second, and one more");
        assert!(pace.enter(&device, Work::Orders, START + wait).is_ok());
        assert!(pace.enter(&self::device(2), Work::Orders, START).is_ok(), "others are not concerned");
    }

    #[test]
    fn shadows_and_comparisons_never_make_orders_wait() {
        let mut pace = Pace::new(&limits());
        let device = device(1);
        pace.took(&device, Work::Shadow, 1_000_000, START);
        assert!(pace.enter(&device, Work::Shadow, START).is_err());
        while pace.enter(&device, Work::Reconcile, START).is_ok() {}
        let wait = pace.enter(&device, Work::Reconcile, START).unwrap_err();
        assert_eq!(wait, Duration::from_secs(10));
        assert!(pace.enter(&device, Work::Orders, START).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_the_busy_are_remembered() {
        let mut pace = Pace::new(&limits());
        let busy = device(1_000_000);
        pace.took(&busy, Work::Orders, 100_000, START);
        for number in 0..3 * GENERATION {
            pace.enter(&device(number), Work::Orders, START).unwrap();
            if number % 1000 == 0 {
                assert!(pace.enter(&busy, Work::Orders, START).is_err(), "{number}");
            }
        }
        assert!(pace.young.len() + pace.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_gives_nothing() {
        let mut pace = Pace::new(&limits());
        let device = device(1);
        pace.took(&device, Work::Orders, 20_000, START);
        assert!(pace.enter(&device, Work::Orders, START - Duration::from_secs(50)).is_err());
        assert!(pace.enter(&device, Work::Orders, START + Duration::from_secs(10)).is_err());
        assert!(pace.enter(&device, Work::Orders, START + Duration::from_secs(11)).is_ok());
    }
}
