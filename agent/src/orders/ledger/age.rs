//! The clock by which history grows old. Pure: it is told both clocks and decides what may be believed.
//!
//! What is let go does not come back, so a wall clock that is wrong for a while must not age anything. This clock moves
//! towards the wall clock, at most four times as fast as the time for which the agent runs and by an hour at each start
//! (it is noted every hour), and never back. A device that runs six hours a day keeps up; a clock that is a year ahead
//! must go unnoticed for weeks before a key is forgotten too early. Where this clock lags, history is only kept for longer; the limits of room hold as ever.

use crate::clock::Mono;
use samovar_wire::Timestamp;

/// How many times faster than running time it may move.
const FASTER: i64 = 4;
/// How far it moves before it is written down again.
const NOTE_MS: i64 = 3_600_000;

/// The clock. It is written down at times, so that it goes on where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age {
    at: Timestamp,
    noted: Option<Timestamp>,
    seen: Mono,
}

impl Age {
    /// Begins where it was noted; else at the newest time that the ledger knows; a new ledger believes the wall clock.
    pub(super) fn begin(
        noted: Option<Timestamp>,
        newest: Option<Timestamp>,
        wall: Timestamp,
        now: Mono,
    ) -> Self {
        let known = noted.or(newest).map(|at| at.millis().saturating_add(NOTE_MS));
        let noted_or_wall = noted.map_or(wall, |noted| noted.max(wall));
        Self { at: known.map_or(wall, |at| Timestamp::from_millis(at).min(noted_or_wall)), noted, seen: now }
    }

    /// Moves on, and gives the time by which history is judged: never later than the wall clock.
    pub(super) fn advance(&mut self, wall: Timestamp, now: Mono) -> Timestamp {
        let ran = i64::try_from(now.0.saturating_sub(self.seen.0).as_millis()).unwrap_or(0);
        let most = self.at.millis().saturating_add(ran.saturating_mul(FASTER));
        self.seen = now;
        self.at = self.at.max(wall.min(Timestamp::from_millis(most)));
        self.at.min(wall)
    }

    /// Where it stands.
    pub(super) const fn at(self) -> Timestamp {
        self.at
    }

    /// The time to write down, when it is due.
    pub(super) fn to_note(self) -> Option<Timestamp> {
        let due = self.noted.is_none_or(|noted| self.at.millis() - noted.millis() >= NOTE_MS);
        due.then_some(self.at)
    }

    /// It was written down.
    pub(super) fn noted(&mut self, at: Timestamp) {
        self.noted = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HOUR: i64 = 3_600_000;
    const YEAR: i64 = 365 * 24 * HOUR;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(YEAR * 56 + millis)
    }

    fn ran(millis: i64) -> Mono {
        Mono(Duration::from_millis(millis.unsigned_abs()))
    }

    #[test]
    fn a_clock_that_is_right_is_followed() {
        let mut age = Age::begin(None, None, at(0), ran(0));
        for hour in 1..100 {
            assert_eq!(age.advance(at(hour * HOUR), ran(hour * HOUR)), at(hour * HOUR));
        }
    }

    #[test]
    fn a_jump_ahead_ages_nothing_but_a_little_more_than_the_time_it_lasts() {
        let mut age = Age::begin(None, None, at(0), ran(0));
        assert_eq!(age.advance(at(YEAR), ran(60_000)), at(240_000));
        assert_eq!(age.advance(at(61_000), ran(61_000)), at(61_000));
        assert_eq!(age.advance(at(HOUR), ran(HOUR)), at(HOUR));
        // Nor does one that is there at a start.
        let mut age = Age::begin(Some(at(0)), None, at(YEAR), ran(0));
        assert_eq!(age.advance(at(YEAR), ran(0)), at(HOUR));
        let mut age = Age::begin(None, Some(at(5)), at(YEAR), ran(0));
        assert_eq!(age.advance(at(YEAR), ran(1)), at(HOUR + 9));
    }

    #[test]
    fn time_that_passed_while_the_agent_was_off_is_caught_up_with() {
        let (mut age, mut late) = (Age::begin(Some(at(0)), None, at(0), ran(0)), 0);
        for day in 1..=10 {
            // Off for 18 hours, on for 6.
            let (morning, evening) = (at(day * 24 * HOUR - 6 * HOUR), at(day * 24 * HOUR));
            age = Age::begin(Some(age.at), None, morning, ran(0));
            late = evening.millis() - age.advance(evening, ran(6 * HOUR)).millis();
        }
        assert_eq!(late, 0);
    }

    #[test]
    fn a_clock_that_is_behind_or_goes_back_makes_history_younger_for_that_time_alone() {
        let mut age = Age::begin(None, Some(at(7)), at(-YEAR), ran(0));
        assert_eq!(age.advance(at(-YEAR), ran(1)), at(-YEAR));
        let mut age = Age::begin(Some(at(0)), None, at(0), ran(0));
        assert_eq!(age.advance(at(-YEAR), ran(1)), at(-YEAR));
        assert_eq!(age.advance(at(2), ran(2)), at(2));
    }

    #[test]
    fn it_is_noted_at_once_and_then_every_hour() {
        let mut age = Age::begin(None, None, at(0), ran(0));
        assert_eq!(age.to_note(), Some(at(0)));
        age.noted(at(0));
        age.advance(at(HOUR - 1), ran(HOUR - 1));
        assert_eq!(age.to_note(), None);
        age.advance(at(HOUR), ran(HOUR));
        assert_eq!(age.to_note(), Some(at(HOUR)));
    }
}
