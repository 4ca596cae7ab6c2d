//! When the certificate is renewed, and when its end is worth a condition. Pure.
//!
//! ```text
//! begin ───────────── 2/3 ─── due ─── 3/4 ──────────── end
//!                      └ spread per device ┘
//! ```
//!
//! Due is between two thirds and three quarters of the lifetime, at a point of each certificate's own, so that devices
//! activated on one day do not renew in one minute. A failed attempt is repeated after one minute to six hours with
//! full jitter, sooner when little time is left. An untrusted clock judges nothing: neither due nor expired.

use super::certificate::Validity;
use crate::clock::Mono;
use samovar_wire::Timestamp;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const FIRST_RETRY: Duration = MINUTE;
const LAST_RETRY: Duration = Duration::from_secs(6 * 3_600);
/// A certificate with less than this left is worth a word when it could not be renewed.
const SOON: Duration = DAY.saturating_mul(7);
/// A certificate that a person must replace is worth a word earlier.
const SOON_BY_HAND: Duration = DAY.saturating_mul(30);
/// How often to look, at least: the wall clock may jump.
const LOOK: Duration = MINUTE;
/// How often to look, at most.
const PAUSE: Duration = Duration::from_secs(1);

/// What the decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The certificate in force.
    pub validity: Validity,
    /// Whether the fleet renews it; else a person does.
    pub renewable: bool,
    /// Where in the spread this certificate is due, 0 to 65,535.
    pub spread: u16,
    /// The wall clock; `None` while it is untrusted.
    pub now: Option<Timestamp>,
    /// The monotonic clock.
    pub mono: Mono,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// Renew now.
    pub renew: bool,
    /// Look again after this time, if nothing else happens.
    pub look_again: Duration,
    /// What to tell.
    pub trouble: Option<Trouble>,
}

/// What is wrong with the certificate's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It ends soon and was not renewed.
    Expiring,
    /// It has ended.
    Expired,
}

/// What was tried for the certificate in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attempts {
    failures: u32,
    retry_at: Mono,
}

impl Attempts {
    /// An attempt has failed. `left` is the time until the certificate ends, zero when it has ended or nobody knows;
    /// `random` is 0 to 65,535.
    pub fn failed(&mut self, mono: Mono, left: Duration, random: u16) {
        self.failures = self.failures.saturating_add(1);
        let ceiling = FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LAST_RETRY);
        let jittered = FIRST_RETRY + share(ceiling - FIRST_RETRY, random);
        // A certificate of a few minutes still gets several attempts.
        let delay = if left.is_zero() { jittered } else { jittered.min((left / 8).max(PAUSE)) };
        self.retry_at = mono.plus(delay);
    }
}

/// Says what to do now.
#[must_use]
pub fn outlook(facts: &Facts, attempts: &Attempts) -> Outlook {
    let Some(now) = facts.now else {
        return Outlook { renew: false, look_again: LOOK, trouble: None };
    };
    let due_at = due(facts.validity, facts.spread);
    let is_due = facts.renewable && now >= due_at;
    let wait = if is_due { attempts.retry_at.after(facts.mono) } else { due_at.since(now) };
    Outlook {
        renew: is_due && wait.is_zero(),
        look_again: wait.clamp(PAUSE, LOOK),
        trouble: trouble(facts, attempts, now),
    }
}

/// When a certificate is renewed.
#[must_use]
pub fn due(validity: Validity, spread: u16) -> Timestamp {
    let lifetime = lifetime(validity);
    validity.not_before.plus(lifetime * 2 / 3).plus(share(lifetime / 12, spread))
}

/// Time until the certificate ends; zero when it has, or while the clock is untrusted.
#[must_use]
pub fn left(validity: Validity, now: Option<Timestamp>) -> Duration {
    now.map_or(Duration::ZERO, |now| validity.not_after.since(now))
}

fn trouble(facts: &Facts, attempts: &Attempts, now: Timestamp) -> Option<Trouble> {
    let left = left(facts.validity, Some(now));
    if left.is_zero() {
        return Some(Trouble::Expired);
    }
    let last_quarter = left < lifetime(facts.validity) / 4;
    let expiring = if facts.renewable {
        attempts.failures > 0 && (last_quarter || left < SOON)
    } else {
        last_quarter && left < SOON_BY_HAND
    };
    expiring.then_some(Trouble::Expiring)
}

fn lifetime(validity: Validity) -> Duration {
    validity.not_after.since(validity.not_before)
}

/// A part of a duration, in 65,536ths.
fn share(whole: Duration, part: u16) -> Duration {
    // Divided first: a lifetime of centuries must not overflow.
    whole / 65_536 * u32::from(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BEGIN: i64 = 1_780_000_000_000;

    fn validity(lifetime: Duration) -> Validity {
        let not_before = Timestamp::from_millis(BEGIN);
        Validity { not_before, not_after: not_before.plus(lifetime) }
    }

    fn facts(lifetime: Duration, age: Duration) -> Facts {
        let validity = validity(lifetime);
        let now = Some(validity.not_before.plus(age));
        Facts { validity, renewable: true, spread: 0, now, mono: Mono::default() }
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life_and_not_before() {
        let fresh = Attempts::default();
        assert!(!outlook(&facts(90 * DAY, 59 * DAY), &fresh).renew);
        let due = outlook(&facts(90 * DAY, 60 * DAY), &fresh);
        assert!(due.renew);
        assert_eq!(due.trouble, None);
    }

    #[test]
    fn an_untrusted_clock_neither_renews_nor_raises_anything() {
        for age in [Duration::ZERO, 80 * DAY, 400 * DAY] {
            let facts = Facts { now: None, ..facts(90 * DAY, age) };
            let outlook = outlook(&facts, &Attempts { failures: 9, ..Attempts::default() });
            assert_eq!(outlook, Outlook { renew: false, look_again: LOOK, trouble: None });
        }
    }

    #[test]
    fn the_end_is_told_only_when_renewal_failed_and_always_when_it_has_come() {
        let failed = Attempts { failures: 1, retry_at: Mono(10 * DAY) };
        let trouble = |age, attempts: &Attempts| outlook(&facts(90 * DAY, age), attempts).trouble;
        assert_eq!(trouble(61 * DAY, &failed), None);
        assert_eq!(trouble(68 * DAY, &failed), Some(Trouble::Expiring));
        assert_eq!(trouble(89 * DAY, &Attempts::default()), None);
        assert_eq!(trouble(90 * DAY, &Attempts::default()), Some(Trouble::Expired));
        assert!(outlook(&facts(90 * DAY, 91 * DAY), &Attempts::default()).renew, "it is tried all the same");
    }

    #[test]
    fn a_certificate_that_a_person_must_replace_is_told_of_in_time_and_never_renewed() {
        let by_hand =
            |age| outlook(&Facts { renewable: false, ..facts(365 * DAY, age) }, &Attempts::default());
        assert_eq!(by_hand(330 * DAY).trouble, None);
        assert_eq!(by_hand(336 * DAY).trouble, Some(Trouble::Expiring));
        assert!(!by_hand(400 * DAY).renew);
        assert_eq!(by_hand(400 * DAY).trouble, Some(Trouble::Expired));
    }

    #[test]
    fn without_any_luck_a_certificate_of_a_day_is_tried_at_least_ten_times_before_it_ends() {
        let (lifetime, mut attempts, mut tries) = (DAY, Attempts::default(), 0);
        let mut age = Duration::ZERO;
        while age < lifetime {
            let now = Facts { mono: Mono(age), ..facts(lifetime, age) };
            let outlook = outlook(&now, &attempts);
            if outlook.renew {
                tries += 1;
                attempts.failed(now.mono, left(now.validity, now.now), u16::MAX);
            }
            age += outlook.look_again;
        }
        assert!(tries >= 10, "{tries}");
    }

    proptest! {
        #[test]
        fn due_lies_between_two_thirds_and_three_quarters_of_any_life(seconds in 60_u64..4_000_000_000, spread: u16) {
            let validity = validity(Duration::from_secs(seconds));
            let age = due(validity, spread).since(validity.not_before);
            let lifetime = lifetime(validity);
            prop_assert!(age + Duration::from_millis(2) >= lifetime * 2 / 3 && age <= lifetime * 3 / 4);
        }

        #[test]
        fn a_retry_waits_between_a_minute_and_six_hours_and_never_past_the_end(
            failures in 0_u32..100, random: u16, left in 0_u64..10_000_000, mono in 0_u64..1_000_000,
        ) {
            let (left, mono) = (Duration::from_secs(left), Mono(Duration::from_secs(mono)));
            let mut attempts = Attempts { failures, retry_at: Mono::default() };
            attempts.failed(mono, left, random);
            let delay = attempts.retry_at.after(mono);
            prop_assert!(delay <= LAST_RETRY);
            prop_assert!(left.is_zero() || delay <= (left / 8).max(PAUSE));
            prop_assert!(delay >= FIRST_RETRY || (!left.is_zero() && left / 8 < FIRST_RETRY));
        }

        #[test]
        fn nothing_is_ever_renewed_while_waiting_and_the_next_look_is_never_far(
            age in 0_u64..400, lifetime in 1_u64..400, failures in 0_u32..5, retry in 0_u64..1_000, mono in 0_u64..1_000,
        ) {
            let days = |n| Duration::from_secs(n * 86_400);
            let attempts = Attempts { failures, retry_at: Mono(Duration::from_secs(retry)) };
            let facts = Facts { mono: Mono(Duration::from_secs(mono)), ..facts(days(lifetime), days(age)) };
            let outlook = outlook(&facts, &attempts);
            prop_assert!(!outlook.renew || mono >= retry);
            prop_assert!((PAUSE..=LOOK).contains(&outlook.look_again));
        }
    }
}
