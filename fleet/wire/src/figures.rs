//! How long names and requests take per endpoint of an origin, as counts in fixed buckets: counts of many devices are
//! added, and the middle and the slow end of the sum are read from it.

use crate::OriginId;
use serde::{Deserialize, Serialize};

/// Upper edges of the buckets, in milliseconds: about a third apart. What is slower lies in the last one.
pub const EDGES_MS: [u32; 28] = [
    1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 28, 38, 50, 67, 89, 119, 158, 211, 281, 375, 500, 667, 889, 1_185,
    1_580, 2_107, 5_000, 15_000,
];
/// Endpoints of one report at most.
pub const ENDPOINTS_MAX: usize = 32;

/// The bucket in which a duration is counted.
#[must_use]
pub fn bucket_of(millis: u64) -> usize {
    EDGES_MS.iter().position(|edge| millis <= u64::from(*edge)).unwrap_or(EDGES_MS.len() - 1)
}

/// The upper edge of the bucket below which this percentage of the counts lies; `None` when there are none.
#[must_use]
pub fn percentile(buckets: &[u64], percent: u64) -> Option<u32> {
    let count = buckets.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
    let wanted = u64::try_from((u128::from(count) * u128::from(percent)).div_ceil(100)).unwrap_or(u64::MAX);
    let mut seen = 0_u64;
    let found = buckets.iter().zip(EDGES_MS).find_map(|(n, edge)| {
        seen = seen.saturating_add(*n);
        (seen >= wanted).then_some(edge)
    });
    found.filter(|_| count > 0)
}

/// Durations, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Timing {
    /// How many.
    pub count: u64,
    /// The middle one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<u32>,
    /// One of twenty is slower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_ms: Option<u32>,
    /// Counts by bucket, see `EDGES_MS`; those behind the last that is not zero are left out.
    #[serde(default)]
    pub buckets: Vec<u64>,
}

impl Timing {
    /// What these counts come to.
    #[must_use]
    pub fn of(mut buckets: Vec<u64>) -> Self {
        buckets.truncate(EDGES_MS.len());
        while buckets.last() == Some(&0) {
            buckets.pop();
        }
        Self {
            count: buckets.iter().fold(0, |sum, n| u64::saturating_add(sum, *n)),
            p50_ms: percentile(&buckets, 50),
            p95_ms: percentile(&buckets, 95),
            buckets,
        }
    }
}

/// What one device measured of one endpoint since its last report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EndpointFigures {
    /// The origin.
    pub origin: OriginId,
    /// The endpoint's host.
    pub host: String,
    /// The route table in force.
    pub table_version: u64,
    /// Looking its name up.
    #[serde(default)]
    pub dns: Timing,
    /// From sending to the head of the answer: connecting and TLS too, where a connection was made.
    #[serde(default)]
    pub request: Timing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_has_its_bucket_and_the_slowest_share_the_last() {
        assert_eq!([0, 1, 2, 6, 500, 501, 15_000, u64::MAX].map(bucket_of), [0, 0, 1, 5, 20, 21, 27, 27]);
        assert!(EDGES_MS.is_sorted_by(|one, next| one < next));
    }

    #[test]
    fn the_sum_of_two_devices_says_what_both_together_measured() {
        let counted = |millis: &[u64]| {
            let mut buckets = vec![0; EDGES_MS.len()];
            millis.iter().for_each(|millis| buckets[bucket_of(*millis)] += 1);
            buckets
        };
        let (fast, slow) = (counted(&[10; 90]), counted(&[300; 10]));
        let sum: Vec<u64> = fast.iter().zip(&slow).map(|(one, other)| one + other).collect();
        let both = Timing::of(sum);
        assert_eq!((both.count, both.p50_ms, both.p95_ms), (100, Some(12), Some(375)));
        assert_eq!(Timing::of(counted(&[])), Timing::default());
        assert_eq!(percentile(&[u64::MAX, u64::MAX], 95), Some(1), "counts that cannot be are no panic");
    }
}
