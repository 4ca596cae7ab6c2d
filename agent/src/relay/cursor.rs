//! Which events of one stream to send next, and when to send them again. Pure.
//!
//! ```text
//!     acked            cursor               last
//! ──────┼────────────────┼───────────────────┼──► numbers
//!  gone │ sent, waiting  │ still to be sent  │
//!       │◄── rewind: after a reconnect, or when the timer says so
//! ```
//!
//! The fleet acknowledges without gaps: when something was lost between the broker and the fleet, it repeats the number
//! it has reached, and that rewinds too.
//!
//! A site without a fleet has nobody who acknowledges. There, repeats become rare: after three reconnects without any
//! acknowledgement only the timer rewinds, and it doubles.

use super::settings::Pace;
use crate::clock::Mono;
use std::time::Duration;

/// Reconnects that rewind although nothing was acknowledged since the last one.
const FREE_REWINDS: u32 = 3;

/// Least time between two rewinds because the fleet misses something.
const MISSED_PACE: Duration = Duration::from_secs(5);

/// The place in one stream.
#[derive(Debug)]
pub(super) struct Cursor {
    acked: u64,
    cursor: u64,
    last: u64,
    rewinds: u32,
    resend_at: Option<Mono>,
    resend_after: Duration,
    missed_at: Option<Mono>,
    missed_from: Mono,
}

impl Cursor {
    pub(super) fn new(pace: &Pace) -> Self {
        Self {
            acked: 0,
            cursor: 0,
            last: 0,
            rewinds: 0,
            resend_at: None,
            resend_after: pace.resend,
            missed_at: None,
            missed_from: Mono::default(),
        }
    }

    /// The highest number given so far. A lower one than before means that the file was replaced.
    pub(super) fn known(&mut self, last: u64) {
        if last < self.last {
            self.acked = 0;
            self.cursor = 0;
        }
        self.last = last;
    }

    /// The number after which to read, if there is anything to send.
    pub(super) fn read_after(&self) -> Option<u64> {
        (self.cursor < self.last).then_some(self.cursor)
    }

    pub(super) const fn at(&self) -> u64 {
        self.cursor
    }

    pub(super) const fn last(&self) -> u64 {
        self.last
    }

    /// There is nothing up to this number: where nothing waited before it, nothing waits now.
    pub(super) fn skip(&mut self, up_to: u64) {
        if self.cursor == self.acked {
            self.acked = self.acked.max(up_to);
        }
        self.cursor = self.cursor.max(up_to);
    }

    /// Events from `first` to `last` are handed to the connection.
    pub(super) fn sent(&mut self, first: u64, last: u64, now: Mono) {
        self.skip(first.saturating_sub(1));
        self.cursor = self.cursor.max(last);
        self.resend_at.get_or_insert(now.plus(self.resend_after));
    }

    /// What was handed over after this number never arrived at the broker.
    pub(super) fn lost(&mut self, after: u64) {
        self.cursor = self.cursor.min(after);
    }

    /// A new connection.
    pub(super) fn connected(&mut self) {
        if self.acked < self.cursor && self.rewinds < FREE_REWINDS {
            self.rewinds += 1;
            self.rewind();
        }
    }

    /// The fleet has everything up to this number; whether that is news. A number that was never given is refused.
    pub(super) fn acknowledged(&mut self, up_to: u64, pace: &Pace, now: Mono) -> bool {
        if up_to == self.acked && self.acked < self.cursor {
            self.missed_at.get_or_insert(self.missed_from.max(now));
        }
        if up_to > self.last || up_to <= self.acked {
            return false;
        }
        self.acked = up_to;
        self.cursor = self.cursor.max(up_to);
        self.rewinds = 0;
        self.missed_at = None;
        self.resend_after = pace.resend;
        self.resend_at = (self.acked < self.cursor).then(|| now.plus(self.resend_after));
        true
    }

    /// Rewinds when the fleet misses something, and when nobody has acknowledged for too long.
    pub(super) fn tick(&mut self, pace: &Pace, now: Mono) {
        if self.missed_at.is_some_and(|at| at <= now) {
            self.missed_from = now.plus(MISSED_PACE);
            self.rewind();
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_after = self.resend_after.saturating_mul(2).min(pace.resend_max);
            self.rewind();
        }
    }

    pub(super) fn wake_at(&self) -> Option<Mono> {
        self.resend_at.into_iter().chain(self.missed_at).min()
    }

    fn rewind(&mut self) {
        self.cursor = self.acked;
        self.resend_at = None;
        self.missed_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: fn() -> Pace = Pace::default;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn sent(up_to: u64) -> Cursor {
        let mut cursor = Cursor::new(&PACE());
        cursor.known(up_to);
        cursor.sent(1, up_to, at(0));
        cursor
    }

    #[test]
    fn a_reconnect_sends_unacknowledged_events_again() {
        let mut cursor = sent(10);
        assert!(cursor.acknowledged(4, &PACE(), at(1)));
        cursor.connected();
        assert_eq!(cursor.read_after(), Some(4));
    }

    #[test]
    fn without_any_acknowledgement_repeats_become_rare_but_never_end() {
        let mut cursor = sent(10);
        let mut now = 0;
        let mut repeats = 0;
        for _ in 0..24 * 60 {
            now += 60;
            cursor.connected();
            cursor.tick(&PACE(), at(now));
            if cursor.read_after().is_some() {
                repeats += 1;
                cursor.sent(1, 10, at(now));
            }
        }
        assert!((8..=16).contains(&repeats), "{repeats} repeats in a day of a reconnect every minute");
    }

    #[test]
    fn in_one_connection_only_the_timer_repeats_and_it_doubles() {
        let mut cursor = sent(10);
        cursor.tick(&PACE(), at(299));
        assert_eq!(cursor.read_after(), None);
        cursor.tick(&PACE(), at(300));
        assert_eq!(cursor.read_after(), Some(0));
        cursor.sent(1, 10, at(300));
        assert_eq!(cursor.wake_at(), Some(at(900)));
    }

    #[test]
    fn what_never_reached_the_broker_is_sent_again_whatever_the_timer_says() {
        let mut cursor = sent(10);
        for _ in 0..5 {
            cursor.connected();
            cursor.sent(1, 10, at(0));
        }
        cursor.lost(7);
        cursor.connected();
        assert_eq!(cursor.read_after(), Some(7));
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_given_changes_nothing() {
        let mut cursor = sent(10);
        assert!(!cursor.acknowledged(11, &PACE(), at(1)));
        assert!(cursor.acknowledged(10, &PACE(), at(1)));
        assert!(!cursor.acknowledged(10, &PACE(), at(1)));
        assert_eq!((cursor.read_after(), cursor.wake_at()), (None, None));
    }

    #[test]
    fn a_fleet_that_repeats_its_number_misses_something_and_gets_it_again_at_a_measured_pace() {
        let mut cursor = sent(10);
        assert!(cursor.acknowledged(4, &PACE(), at(1)));
        let mut repeats = Vec::new();
        for second in 2..=12 {
            assert!(!cursor.acknowledged(4, &PACE(), at(second)));
            cursor.tick(&PACE(), at(second));
            if cursor.read_after() == Some(4) {
                repeats.push(second);
                cursor.sent(1, 10, at(second));
            }
        }
        assert_eq!(repeats, [2, 7, 12]);
        assert!(!cursor.acknowledged(3, &PACE(), at(60)));
        assert_eq!(cursor.wake_at(), Some(at(312)), "an older number means nothing");
    }

    #[test]
    fn a_replaced_file_is_read_from_its_beginning() {
        let mut cursor = sent(10);
        cursor.known(3);
        assert_eq!(cursor.read_after(), Some(0));
    }
}
