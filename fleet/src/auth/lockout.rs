//! Guessing slowed down: after a few failures each further try has to wait, twice as long each time.
//!
//! [`Lockout`] is pure (time comes in); [`Gate`] is the same behind a lock. It remembers a bounded number of
//! names and addresses: when full, the one that failed longest ago is forgotten, which only ever helps the guesser
//! who has many addresses, and that one is slowed down by name.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use samovar_wire::Timestamp;

/// Subjects remembered at most.
const REMEMBERED: usize = 10_000;

/// How failures turn into waiting.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Failures without consequence.
    pub free: u32,
    /// The first wait; doubled by each further failure.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
    /// Failures are forgotten after this time without one.
    pub forget_after: Duration,
}

impl Rule {
    /// For passwords.
    pub const LOGIN: Self = Self {
        free: 5,
        first_wait: Duration::from_secs(1),
        longest_wait: Duration::from_mins(15),
        forget_after: Duration::from_hours(1),
    };

    /// For passwords of one name from anywhere. Short, so that nobody keeps the owner out by failing in their name.
    pub const LOGIN_ANYWHERE: Self = Self {
        free: 100,
        first_wait: Duration::from_secs(1),
        longest_wait: Duration::from_secs(10),
        forget_after: Duration::from_hours(1),
    };

    /// For claim codes.
    #[must_use]
    pub const fn claims(free: u32) -> Self {
        Self {
            free,
            first_wait: Duration::from_secs(2),
            longest_wait: Duration::from_mins(10),
            forget_after: Duration::from_mins(15),
        }
    }

    fn wait_after(&self, failures: u32) -> Duration {
        let Some(over) = failures.checked_sub(self.free.max(1)) else { return Duration::ZERO };
        self.first_wait.saturating_mul(1 << over.min(20)).min(self.longest_wait)
    }
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Timestamp,
}

/// Who failed how often.
#[derive(Debug)]
pub struct Lockout {
    rule: Rule,
    failures: HashMap<String, Failures>,
}

impl Lockout {
    /// Nobody has failed yet.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self { rule, failures: HashMap::new() }
    }

    /// How long a subject has to wait before its next try; zero = may try.
    #[must_use]
    pub fn wait(&self, subject: &str, now: Timestamp) -> Duration {
        let Some(failed) = self.failures.get(subject) else { return Duration::ZERO };
        self.rule.wait_after(failed.count).saturating_sub(now.since(failed.last))
    }

    /// A try failed.
    pub fn failed(&mut self, subject: &str, now: Timestamp) {
        if !self.failures.contains_key(subject) && self.failures.len() >= REMEMBERED {
            self.forget_one(now);
        }
        let failed = self.failures.entry(subject.to_owned()).or_insert(Failures { count: 0, last: now });
        if now.since(failed.last) > self.rule.forget_after {
            failed.count = 0;
        }
        failed.count = failed.count.saturating_add(1);
        failed.last = now;
    }

    /// A try succeeded.
    pub fn succeeded(&mut self, subject: &str) {
        self.failures.remove(subject);
    }

    fn forget_one(&mut self, now: Timestamp) {
        let rule = self.rule;
        self.failures.retain(|_, failed| now.since(failed.last) <= rule.forget_after);
        if self.failures.len() >= REMEMBERED {
            let oldest = self
                .failures
                .iter()
                .min_by_key(|(_, failed)| failed.last)
                .map(|(subject, _)| subject.clone());
            oldest.map(|subject| self.failures.remove(&subject));
        }
    }
}

/// A [`Lockout`] that requests share.
#[derive(Debug)]
pub struct Gate(Mutex<Lockout>);

impl Gate {
    /// Nobody has failed yet.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self(Mutex::new(Lockout::new(rule)))
    }

    /// How long the subject that has to wait longest has to wait.
    #[must_use]
    pub fn wait(&self, subjects: &[&str], now: Timestamp) -> Duration {
        let lockout = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        subjects.iter().map(|subject| lockout.wait(subject, now)).max().unwrap_or_default()
    }

    /// A try failed, for each subject.
    pub fn failed(&self, subjects: &[&str], now: Timestamp) {
        let mut lockout = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for subject in subjects {
            lockout.failed(subject, now);
        }
    }

    /// A try succeeded.
    pub fn succeeded(&self, subject: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).succeeded(subject);
    }
}

/// Password guessing slowed down: for a name at an address and for the address, hard; for a name from anywhere, gently.
/// An address is the one that connects: behind a proxy that is the proxy's, and everybody there shares its waits.
#[derive(Debug)]
pub struct LoginGate {
    near: Gate,
    anywhere: Gate,
}

impl Default for LoginGate {
    fn default() -> Self {
        Self { near: Gate::new(Rule::LOGIN), anywhere: Gate::new(Rule::LOGIN_ANYWHERE) }
    }
}

impl LoginGate {
    /// How long this one has to wait.
    #[must_use]
    pub fn wait(&self, name: &str, address: &str, now: Timestamp) -> Duration {
        let (pair, address) = Self::subjects(name, address);
        self.near.wait(&[&pair, &address], now).max(self.anywhere.wait(&[name], now))
    }

    /// A try failed.
    pub fn failed(&self, name: &str, address: &str, now: Timestamp) {
        let (pair, address) = Self::subjects(name, address);
        self.near.failed(&[&pair, &address], now);
        self.anywhere.failed(&[name], now);
    }

    /// A try succeeded.
    pub fn succeeded(&self, name: &str, address: &str) {
        self.near.succeeded(&Self::subjects(name, address).0);
    }

    fn subjects(name: &str, address: &str) -> (String, String) {
        (format!("name {name} at {address}"), format!("address {address}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_in_somebodys_name_does_not_keep_them_out_elsewhere() {
        let gate = LoginGate::default();
        for _ in 0..40 {
            gate.failed("ann", "203.0.113.9", at(0));
        }
        assert_eq!(gate.wait("ann", "203.0.113.9", at(0)), Duration::from_mins(15));
        assert_eq!(gate.wait("ann", "198.51.100.1", at(0)), Duration::ZERO);
        for number in 0..200 {
            gate.failed("ann", &format!("10.0.0.{number}"), at(0));
        }
        assert_eq!(
            gate.wait("ann", "198.51.100.1", at(0)),
            Duration::from_secs(10),
            "a ceiling from anywhere"
        );
        assert_eq!(gate.wait("bob", "198.51.100.1", at(0)), Duration::ZERO);
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000_000 + seconds * 1000)
    }

    #[test]
    fn each_failure_beyond_the_free_ones_doubles_the_wait_up_to_the_longest() {
        let mut lockout = Lockout::new(Rule::LOGIN);
        for _ in 0..4 {
            lockout.failed("ann", at(0));
        }
        assert_eq!(lockout.wait("ann", at(0)), Duration::ZERO);
        lockout.failed("ann", at(0));
        assert_eq!(lockout.wait("ann", at(0)), Duration::from_secs(1));
        lockout.failed("ann", at(1));
        assert_eq!(lockout.wait("ann", at(1)), Duration::from_secs(2));
        for _ in 0..40 {
            lockout.failed("ann", at(2));
        }
        assert_eq!(lockout.wait("ann", at(2)), Duration::from_mins(15));
        assert_eq!(lockout.wait("bob", at(2)), Duration::ZERO);
    }

    #[test]
    fn success_and_time_both_make_clean() {
        let mut lockout = Lockout::new(Rule::LOGIN);
        for _ in 0..9 {
            lockout.failed("ann", at(0));
        }
        lockout.failed("ann", at(2 * 3600));
        assert_eq!(lockout.wait("ann", at(2 * 3600)), Duration::ZERO, "the old failures are forgotten");
        for _ in 0..9 {
            lockout.failed("ann", at(2 * 3600));
        }
        lockout.succeeded("ann");
        assert_eq!(lockout.wait("ann", at(2 * 3600)), Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_forgotten() {
        let mut lockout = Lockout::new(Rule::claims(1));
        for number in 0..(i64::try_from(REMEMBERED).unwrap() + 5) {
            lockout.failed(&format!("address {number}"), at(number / 100));
        }
        assert_eq!(lockout.failures.len(), REMEMBERED);
        assert!(lockout.failures.contains_key(&format!("address {}", REMEMBERED + 4)));
    }
}
