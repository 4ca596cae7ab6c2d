//! Which ranges of a ledger are known to differ, from one comparison to the next: pure.
//!
//! A device compares a ledger in several requests, wide ranges first. What one request came to says nothing about
//! the others, so what differs is remembered until that very part matches; only when nothing is left do both sides
//! have the same orders.
//!
//! ```text
//! differs, no lists ──► remembered as a whole, unless something within it is known already
//! differs, lists ─────► remembered with its counts, in the place of what was known of that part
//! matches ────────────► that part is forgotten
//! not asked about for a week ──► forgotten: the device no longer has those places
//! ```

use samovar_wire::Timestamp;
use samovar_wire::reconcile::RangeVerdict;
use serde::{Deserialize, Serialize};

/// Differences that are remembered of one ledger; beyond it, those that lie nearest to each other become one.
const MOST: usize = 256;
/// After so long a part that nobody asks about is forgotten.
const FORGET_MILLIS: i64 = 7 * 86_400_000;

/// A part of a ledger that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Difference {
    from: u64,
    to: u64,
    missing: usize,
    unknown: usize,
    /// When it was asked about last, in milliseconds.
    at: i64,
}

/// Everything that is known to differ in one ledger: ascending, none overlapping another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Differences(Vec<Difference>);

impl Differences {
    /// Takes in what was answered.
    pub(super) fn take_in(&mut self, verdicts: &[RangeVerdict], now: Timestamp) {
        let now = now.millis();
        for verdict in verdicts {
            self.one(verdict, now);
        }
        self.0.retain(|known| (now - known.at).abs() < FORGET_MILLIS);
        while self.0.len() > MOST {
            self.join_nearest();
        }
    }

    fn one(&mut self, verdict: &RangeVerdict, at: i64) {
        let (from, to) = (verdict.from_seq, verdict.to_seq);
        let named = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
        let (missing, unknown) = (named(&verdict.missing), named(&verdict.unknown));
        let bare = verdict.missing.is_none() && verdict.unknown.is_none();
        if !verdict.matches && bare {
            let mut within =
                self.0.iter_mut().filter(|known| known.from <= to && from <= known.to).peekable();
            if within.peek().is_some() {
                within.for_each(|known| known.at = at);
                return;
            }
        }
        self.cut(from, to);
        if !verdict.matches {
            self.0.push(Difference { from, to, missing, unknown, at });
            self.0.sort_unstable_by_key(|known| known.from);
        }
    }

    /// Forgets a part. What is left of a difference on either side is still to be looked at, and counts nothing.
    fn cut(&mut self, from: u64, to: u64) {
        let left = |known: Difference| {
            if known.to < from || to < known.from {
                return vec![known];
            }
            let rest = |from, to| Difference { from, to, missing: 0, unknown: 0, at: known.at };
            let before = (known.from < from).then(|| rest(known.from, from - 1));
            let after = (known.to > to).then(|| rest(to + 1, known.to));
            before.into_iter().chain(after).collect()
        };
        self.0 = std::mem::take(&mut self.0).into_iter().flat_map(left).collect();
    }

    fn join_nearest(&mut self) {
        let gap = |pair: &[Difference]| pair[1].from - pair[0].to;
        let nearest = self.0.windows(2).enumerate().min_by_key(|(_, pair)| gap(pair));
        let Some((first, _)) = nearest else { return };
        let next = self.0.remove(first + 1);
        let one = &mut self.0[first];
        one.to = next.to;
        one.missing += next.missing;
        one.unknown += next.unknown;
        one.at = one.at.max(next.at);
    }

    /// Parts that differ.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Orders that the origin was found to lack in them.
    pub(super) fn missing(&self) -> usize {
        self.0.iter().map(|known| known.missing).sum()
    }

    /// Orders that the device was found to lack in them.
    pub(super) fn unknown(&self) -> usize {
        self.0.iter().map(|known| known.unknown).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn matching(from_seq: u64, to_seq: u64) -> RangeVerdict {
        RangeVerdict { from_seq, to_seq, matches: true, missing: None, unknown: None }
    }

    fn bare(from_seq: u64, to_seq: u64) -> RangeVerdict {
        RangeVerdict { matches: false, ..matching(from_seq, to_seq) }
    }

    fn listed(from_seq: u64, to_seq: u64, missing: usize, unknown: usize) -> RangeVerdict {
        let keys = |count| Some(vec!["k".to_owned(); count]);
        RangeVerdict { missing: keys(missing), unknown: keys(unknown), ..bare(from_seq, to_seq) }
    }

    fn after(requests: &[&[RangeVerdict]]) -> Differences {
        let mut known = Differences::default();
        for (time, verdicts) in (0_i64..).zip(requests) {
            known.take_in(verdicts, at(time));
        }
        known
    }

    fn places(known: &Differences) -> Vec<(u64, u64)> {
        known.0.iter().map(|known| (known.from, known.to)).collect()
    }

    #[test]
    fn a_pass_that_narrows_down_ends_with_what_differs_and_not_with_its_last_request() {
        let known = after(&[
            &[bare(1, 4095), matching(4096, 8191)],
            &[matching(1, 255), bare(256, 511), matching(512, 4095)],
            &[listed(256, 511, 3, 1)],
            &[matching(8192, 9000)],
        ]);
        assert_eq!((places(&known), known.missing(), known.unknown()), (vec![(256, 511)], 3, 1));
    }

    #[test]
    fn a_wide_range_that_still_differs_keeps_the_counts_and_one_that_matches_ends_them() {
        let mut known = after(&[&[listed(256, 511, 3, 0)], &[bare(1, 4095)]]);
        assert_eq!((places(&known), known.missing()), (vec![(256, 511)], 3));
        known.take_in(&[matching(1, 4095)], at(9));
        assert_eq!(known.count(), 0);
    }

    #[test]
    fn what_is_left_of_a_difference_is_still_open() {
        let known = after(&[&[listed(1, 100, 5, 0)], &[matching(40, 60)]]);
        assert_eq!((places(&known), known.missing()), (vec![(1, 39), (61, 100)], 0));
        assert_eq!(after(&[&[bare(0, u64::MAX)], &[matching(0, u64::MAX)]]).count(), 0);
    }

    #[test]
    fn places_that_nobody_asks_about_any_more_are_forgotten() {
        let mut known = after(&[&[listed(1, 100, 5, 0)]]);
        known.take_in(&[matching(300, 400)], at(6 * DAY));
        assert_eq!(known.count(), 1);
        known.take_in(&[matching(300, 400)], at(7 * DAY));
        assert_eq!(known.count(), 0);
    }

    #[test]
    fn the_number_of_differences_is_bounded_and_nothing_that_differs_is_lost() {
        let mut known = Differences::default();
        for part in 0..1_000_u64 {
            known.take_in(&[listed(part * 10, part * 10 + 3, 1, 2)], at(1));
        }
        assert_eq!((known.count(), known.missing(), known.unknown()), (MOST, 1_000, 2_000));
        let covered = |seq: u64| known.0.iter().any(|known| (known.from..=known.to).contains(&seq));
        assert!((0..1_000).all(|part| covered(part * 10) && covered(part * 10 + 3)));
    }
}
