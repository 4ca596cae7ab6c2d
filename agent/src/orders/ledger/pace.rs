//! How long a commit stays open for orders that are about to come.
//!
//! Tills that one commit answered send their next orders at about the same time. Were the first of them synced alone,
//! the others would wait for a whole sync and then for their own, and on a slow disk half of the tills would always
//! wait for the other half. So a group stays open for as many orders as came together last time, but only while they
//! keep coming and no longer than a sync in all, only on disks where a sync is slow, and never for a till that sells
//! alone.
//!
//! Pure: times come in, a number and a wait go out.

use crate::clock::Mono;
use std::time::Duration;

/// Syncs faster than this are not worth waiting for company.
const SLOW_SYNC: Duration = Duration::from_millis(2);
/// Longest wait in all, however slow the disk was the last time.
const LONGEST_WAIT: Duration = Duration::from_millis(10);

/// What the last commit was like.
#[derive(Debug, Default)]
pub(super) struct Pace {
    accepts: usize,
    sync: Duration,
    ended: Mono,
}

/// For how many orders a group stays open, how long without one of them coming, and how long in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Company {
    pub(super) accepts: usize,
    pub(super) patience: Duration,
    pub(super) longest: Duration,
}

impl Pace {
    /// Tells of a commit that took in so many requests and whose sync took so long.
    pub(super) const fn committed(&mut self, accepts: usize, sync: Duration, now: Mono) {
        (self.accepts, self.sync, self.ended) = (accepts, sync, now);
    }

    /// Whom to expect in a group that begins with these. `queued` says that they came while the last commit ran: then
    /// those that it answered come on top.
    pub(super) fn company(&self, accepts: usize, queued: bool, now: Mono) -> Company {
        let alone = Company { accepts, patience: Duration::ZERO, longest: Duration::ZERO };
        if accepts == 0 || self.sync < SLOW_SYNC || now > self.ended.plus(self.sync) {
            return alone;
        }
        let expected = if queued { accepts + self.accepts } else { self.accepts.max(accepts) };
        let longest = self.sync.min(LONGEST_WAIT);
        Company { accepts: expected, patience: longest / 4, longest }
    }
}

impl Company {
    /// Whether a group of so many orders waits for more, when none came for so long.
    pub(super) fn is_missed_by(&self, accepts: usize, since: Duration) -> bool {
        accepts < self.accepts && since < self.patience.min(self.longest)
    }

    /// Tells of time spent waiting.
    pub(super) const fn waited(&mut self, time: Duration) {
        self.longest = self.longest.saturating_sub(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(accepts: usize, sync: Duration) -> Pace {
        let mut pace = Pace::default();
        pace.committed(accepts, sync, Mono(100 * MS));
        pace
    }

    #[test]
    fn a_till_that_sells_alone_never_waits() {
        let pace = after(1, 4 * MS);
        assert_eq!(pace.company(1, false, Mono(100 * MS)).accepts, 1);
        assert_eq!(Pace::default().company(1, false, Mono(MS)).patience, Duration::ZERO);
    }

    #[test]
    fn those_who_came_during_a_commit_wait_for_those_whom_it_answered() {
        let company = after(32, 4 * MS).company(30, true, Mono(100 * MS));
        assert_eq!(company, Company { accepts: 62, patience: MS, longest: 4 * MS });
        assert_eq!(after(62, 4 * MS).company(1, false, Mono(101 * MS)).accepts, 62);
    }

    #[test]
    fn one_sync_that_took_long_makes_nobody_wait_long() {
        let company = after(32, 4_000 * MS).company(1, true, Mono(100 * MS));
        assert_eq!(company.longest, LONGEST_WAIT);
    }

    #[test]
    fn a_group_waits_while_they_keep_coming_and_no_longer_than_a_sync_in_all() {
        let mut company = after(64, 4 * MS).company(1, false, Mono(101 * MS));
        for _ in 0..5 {
            assert!(company.is_missed_by(32, MS / 2));
            assert!(!company.is_missed_by(32, MS));
            assert!(!company.is_missed_by(64, Duration::ZERO));
            company.waited(MS / 2);
        }
        company.waited(2 * MS);
        assert!(!company.is_missed_by(32, Duration::ZERO));
    }

    #[test]
    fn nobody_waits_on_a_fast_disk_or_for_a_rush_that_is_over() {
        assert_eq!(after(32, MS).company(30, true, Mono(100 * MS)).patience, Duration::ZERO);
        assert_eq!(after(32, 4 * MS).company(1, false, Mono(105 * MS)).patience, Duration::ZERO);
    }
}
