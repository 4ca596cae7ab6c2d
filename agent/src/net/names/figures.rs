//! How long something takes, as two numbers in little room: the middle and the slow end of the last five minutes. Pure.

use crate::clock::Mono;
use samovar_wire::status::Percentiles;
use std::time::Duration;

/// Upper edges of the buckets, in milliseconds, a third apart: fine enough to see 20 ms more or less, small enough to be
/// kept for every name.
const EDGES: [u32; 28] = [
    1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 28, 38, 50, 67, 89, 119, 158, 211, 281, 375, 500, 667, 889, 1_185,
    1_580, 2_107, 5_000, 15_000,
];
/// How long one window lasts. What is told changes no more often than that.
pub(super) const WINDOW: Duration = Duration::from_secs(300);

/// What is measured of one thing.
#[derive(Debug, Clone, Default)]
pub(super) struct Histogram {
    began: Option<Mono>,
    buckets: [u32; EDGES.len()],
    last: Option<Percentiles>,
}

impl Histogram {
    pub(super) fn record(&mut self, took: Duration, now: Mono) {
        self.turn(now);
        let millis = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        let bucket = EDGES.iter().position(|edge| millis <= *edge).unwrap_or(EDGES.len() - 1);
        self.buckets[bucket] = self.buckets[bucket].saturating_add(1);
        self.began.get_or_insert(now);
    }

    /// The last whole window in which something was measured.
    pub(super) fn percentiles(&mut self, now: Mono) -> Option<Percentiles> {
        self.turn(now);
        self.last
    }

    fn turn(&mut self, now: Mono) {
        let over = self.began.is_some_and(|began| now >= began.plus(WINDOW));
        if over {
            self.last = of(&self.buckets);
            self.buckets = [0; EDGES.len()];
            self.began = None;
        }
    }
}

fn of(buckets: &[u32]) -> Option<Percentiles> {
    let count: u64 = buckets.iter().map(|count| u64::from(*count)).sum();
    let at = |percent: u64| {
        let wanted = (count * percent).div_ceil(100);
        let mut seen = 0;
        buckets.iter().zip(EDGES).find_map(|(count, edge)| {
            seen += u64::from(*count);
            (seen >= wanted).then_some(edge)
        })
    };
    (count > 0).then_some(())?;
    Some(Percentiles { p50_ms: at(50)?, p95_ms: at(95)?, count: u32::try_from(count).unwrap_or(u32::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_slow_end_of_the_last_window_are_told() {
        let mut histogram = Histogram::default();
        let at = |seconds| Mono(Duration::from_secs(seconds));
        assert_eq!(histogram.percentiles(at(0)), None);
        for millis in 1..=100 {
            histogram.record(Duration::from_millis(millis), at(10));
        }
        assert_eq!(histogram.percentiles(at(309)), None, "the window is not over");
        let told = Percentiles { p50_ms: 50, p95_ms: 119, count: 100 };
        assert_eq!(histogram.percentiles(at(310)), Some(told));
        histogram.record(Duration::from_hours(1), at(400));
        assert_eq!(histogram.percentiles(at(500)), Some(told), "it stays until the next one is whole");
        let slow = Percentiles { p50_ms: 15_000, p95_ms: 15_000, count: 1 };
        assert_eq!(histogram.percentiles(at(700)), Some(slow));
    }
}
