//! Which origin is nearest, by the time its probes take, with inertia: another one wins only when it is clearly
//! faster, several times in a row. Pure.

use crate::clock::Mono;
use samovar_wire::OriginId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Another origin must be faster by at least this much …
const FASTER_BY: Duration = Duration::from_millis(20);
/// … and take at most this share of the time …
const FASTER_SHARE: f64 = 0.7;
/// … in so many evaluations in a row.
const EVALUATIONS: u32 = 3;
/// Least time between two changes.
const LEAST_STAY: Duration = Duration::from_mins(10);
/// Measurements kept of each origin. The least of them counts: queues and handshakes only ever add.
const SAMPLES: usize = 5;

/// The measurements and who has won so far.
#[derive(Debug, Default)]
pub(super) struct Nearest {
    samples: BTreeMap<OriginId, VecDeque<Duration>>,
    holder: Option<OriginId>,
    challenger: Option<(OriginId, u32)>,
    changed_at: Option<Mono>,
}

impl Nearest {
    /// A probe was answered after this time.
    pub(super) fn measured(&mut self, origin: &OriginId, time: Duration) {
        let samples = self.samples.entry(origin.clone()).or_default();
        if samples.len() >= SAMPLES {
            samples.pop_front();
        }
        samples.push_back(time);
    }

    /// Looks at the measurements once. `candidates` are those to choose among, in listed order. One that is down does
    /// not win, and one that holds the place keeps it while it is down: to serve in its stead is a fail-over, which
    /// ends when it is back.
    pub(super) fn evaluate(
        &mut self,
        candidates: &[OriginId],
        is_down: impl Fn(&OriginId) -> bool,
        now: Mono,
    ) {
        self.samples.retain(|origin, _| candidates.contains(origin));
        let kept = self.holder.take().filter(|holder| candidates.contains(holder));
        let Some(holder) = kept.or_else(|| candidates.first().cloned()) else { return };
        let faster = if is_down(&holder) { None } else { self.clearly_faster(&holder, is_down) };
        self.holder = Some(holder);
        let rounds = match (&faster, &self.challenger) {
            (Some(name), Some((before, rounds))) if name == before => rounds + 1,
            _ => 1,
        };
        self.challenger = faster.map(|name| (name, rounds));
        let may_change = self.changed_at.is_none_or(|at| now.after(at) >= LEAST_STAY);
        if rounds >= EVALUATIONS
            && may_change
            && let Some((winner, _)) = self.challenger.take()
        {
            self.holder = Some(winner);
            self.changed_at = Some(now);
        }
    }

    /// The nearest origin; `None` before it was measured.
    #[must_use]
    pub(super) fn nearest(&self) -> Option<&OriginId> {
        self.holder.as_ref().filter(|holder| self.samples.contains_key(*holder))
    }

    fn clearly_faster(&self, holder: &OriginId, is_down: impl Fn(&OriginId) -> bool) -> Option<OriginId> {
        let held = self.best(holder)?;
        let (name, time) = self
            .samples
            .keys()
            .filter(|origin| !is_down(origin))
            .filter_map(|origin| Some((origin, self.best(origin)?)))
            .min_by_key(|(_, time)| *time)?;
        let clearly = time + FASTER_BY <= held && time <= held.mul_f64(FASTER_SHARE);
        clearly.then(|| name.clone())
    }

    fn best(&self, origin: &OriginId) -> Option<Duration> {
        self.samples.get(origin)?.iter().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Mono = Mono(Duration::ZERO);

    fn origin(name: &str) -> OriginId {
        name.parse().unwrap()
    }

    fn up(_: &OriginId) -> bool {
        false
    }

    fn after(first_ms: u64, second_ms: u64, evaluations: u32) -> Option<String> {
        let (first, second) = (origin("first"), origin("second"));
        let mut nearest = Nearest::default();
        for _ in 0..evaluations {
            nearest.measured(&first, Duration::from_millis(first_ms));
            nearest.measured(&second, Duration::from_millis(second_ms));
            nearest.evaluate(&[first.clone(), second.clone()], up, NOW);
        }
        nearest.nearest().map(ToString::to_string)
    }

    #[test]
    fn nothing_is_nearest_before_a_measurement() {
        let mut nearest = Nearest::default();
        nearest.evaluate(&[origin("first"), origin("second")], up, NOW);
        assert_eq!(nearest.nearest(), None);
    }

    #[test]
    fn another_origin_wins_only_when_clearly_faster_three_times() {
        assert_eq!(after(200, 60, 2).as_deref(), Some("first"));
        assert_eq!(after(200, 60, 3).as_deref(), Some("second"));
        assert_eq!(after(30, 11, 9).as_deref(), Some("first"), "less than 20 ms");
        assert_eq!(after(200, 150, 9).as_deref(), Some("first"), "less than 30 %");
    }

    #[test]
    fn three_times_means_in_a_row() {
        let (first, second) = (origin("first"), origin("second"));
        let both = [first.clone(), second.clone()];
        let mut nearest = Nearest::default();
        nearest.measured(&first, Duration::from_millis(200));
        nearest.measured(&second, Duration::from_millis(60));
        nearest.evaluate(&both, up, NOW);
        nearest.evaluate(&both, up, NOW);
        nearest.measured(&first, Duration::from_millis(61));
        nearest.evaluate(&both, up, NOW);
        assert_eq!(nearest.nearest(), Some(&first));
        for _ in 0..SAMPLES {
            nearest.measured(&first, Duration::from_millis(200));
        }
        nearest.evaluate(&both, up, NOW);
        nearest.evaluate(&both, up, NOW);
        assert_eq!(nearest.nearest(), Some(&first));
        nearest.evaluate(&both, up, NOW);
        assert_eq!(nearest.nearest(), Some(&second));
    }

    #[test]
    fn the_nearest_changes_once_in_ten_minutes_at_most() {
        let (first, second) = (origin("first"), origin("second"));
        let both = [first.clone(), second.clone()];
        let mut nearest = Nearest::default();
        let mut changes = Vec::new();
        for minute in 0..60 {
            // Whoever is far becomes near, every four minutes.
            let turn = minute / 4 % 2 == 0;
            for _ in 0..SAMPLES {
                nearest.measured(&first, Duration::from_millis(if turn { 200 } else { 20 }));
                nearest.measured(&second, Duration::from_millis(if turn { 20 } else { 200 }));
            }
            let before = nearest.holder.clone();
            nearest.evaluate(&both, up, Mono(Duration::from_mins(minute)));
            if before.is_some() && before != nearest.holder {
                changes.push(minute);
            }
        }
        assert!(changes.len() > 2 && changes.windows(2).all(|two| two[1] - two[0] >= 10), "{changes:?}");
    }

    #[test]
    fn one_that_is_no_candidate_any_more_gives_way_to_the_first_listed() {
        let (first, second) = (origin("first"), origin("second"));
        let mut nearest = Nearest::default();
        nearest.measured(&first, Duration::from_millis(200));
        nearest.measured(&second, Duration::from_millis(60));
        for _ in 0..3 {
            nearest.evaluate(&[first.clone(), second.clone()], up, NOW);
        }
        assert_eq!(nearest.nearest(), Some(&second));
        nearest.evaluate(std::slice::from_ref(&first), up, NOW);
        assert_eq!(nearest.nearest(), Some(&first));
    }

    #[test]
    fn the_nearest_keeps_its_place_while_it_is_down_and_nobody_wins_who_is_down() {
        let (first, second) = (origin("first"), origin("second"));
        let both = [first.clone(), second.clone()];
        let mut nearest = Nearest::default();
        for down in [&first, &second] {
            for _ in 0..9 {
                nearest.measured(&first, Duration::from_millis(200));
                nearest.measured(&second, Duration::from_millis(60));
                nearest.evaluate(&both, |origin| origin == down, NOW);
                assert_eq!(nearest.nearest(), Some(&first));
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn times_that_differ_by_noise_never_move_anything(
            times in proptest::collection::vec((50_u64..69, 50_u64..69), 1..200)
        ) {
            let (first, second) = (origin("first"), origin("second"));
            let mut nearest = Nearest::default();
            for (one, other) in times {
                nearest.measured(&first, Duration::from_millis(one));
                nearest.measured(&second, Duration::from_millis(other));
                nearest.evaluate(&[first.clone(), second.clone()], up, NOW);
                proptest::prop_assert_eq!(nearest.nearest(), Some(&first));
            }
        }
    }
}
