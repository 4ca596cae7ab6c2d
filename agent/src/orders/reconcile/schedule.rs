//! When each origin is asked. Pure: no clock, no lock, no IO; `now` and randomness come in.
//!
//! Every wait is spread, so that ten thousand stores that come back together after an outage do not ask together.

use crate::clock::Mono;
use crate::orders::backoff::Backoff;
use samovar_wire::OriginId;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often origins are asked.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two passes, give or take a fifth.
    pub every: Duration,
    /// After a start, the return of the line or a new route table: at least this, at most three times as much.
    pub after_change: Duration,
    /// After orders were sent again: at least this, at most three times as much; then it is seen whether they are there.
    pub follow_up: Duration,
    /// An origin that does not reconcile.
    pub unsupported: Duration,
    /// After failures.
    pub backoff: Backoff,
}

impl Default for Pace {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            every: MINUTE * 20,
            after_change: MINUTE,
            follow_up: Duration::from_secs(30),
            unsupported: MINUTE * 60 * 24,
            backoff: Backoff { base: MINUTE, cap: MINUTE * 20 },
        }
    }
}

/// How a pass ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// Every question was answered. `again` soon, to see whether what was sent again has arrived.
    Through { again: bool },
    /// The origin does not reconcile.
    Unsupported(String),
    /// The origin need not reconcile.
    OneByOne,
    /// It did not come to its end; not before this time if the origin asked for patience.
    Failed { why: String, retry_after: Option<Duration> },
}

/// When one origin is asked next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct When {
    pub(super) next: Mono,
    /// The origin asked to be left alone until then, whoever wants a pass.
    not_before: Mono,
    failures: u32,
    unsupported: bool,
    /// Not asked, and rightly so.
    pub(super) one_by_one: bool,
    demanded: bool,
    full: bool,
    /// Why the last pass did not come to its end.
    pub(super) trouble: Option<String>,
}

/// Failures in a row after which people are told.
const TROUBLE: u32 = 3;

/// What an origin is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// What changed since the last match, and the newest.
    Changed,
    /// That, and differences that are known already.
    Open,
    /// Everything that is remembered.
    Full,
}

impl When {
    const fn scope(&self) -> Scope {
        match (self.full, self.demanded) {
            (true, _) => Scope::Full,
            (false, true) => Scope::Open,
            (false, false) => Scope::Changed,
        }
    }

    fn at(&self) -> Mono {
        self.next.max(self.not_before)
    }

    /// Whether people should be told of the trouble.
    pub(super) const fn is_lasting(&self) -> bool {
        (self.unsupported && !self.one_by_one) || self.failures >= TROUBLE
    }
}

/// The origins and their times.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    origins: BTreeMap<OriginId, When>,
}

impl Schedule {
    pub(super) const fn new(pace: Pace) -> Self {
        Self { pace, origins: BTreeMap::new() }
    }

    /// Takes in an origin that has settled something. `random` is uniform in 0..=`u32::MAX`, here and below.
    pub(super) fn known(&mut self, origin: &OriginId, now: Mono, random: u32) {
        if !self.origins.contains_key(origin) {
            let next = now.plus(spread(self.pace.after_change, random));
            self.origins.insert(origin.clone(), When { next, ..When::default() });
        }
    }

    /// When an origin is asked next.
    pub(super) fn when(&self, origin: &OriginId) -> Option<&When> {
        self.origins.get(origin)
    }

    /// The moment at which the next pass is due.
    pub(super) fn next_at(&self) -> Option<Mono> {
        self.origins.values().map(When::at).min()
    }

    /// The origin whose turn it is, and what it is asked about.
    pub(super) fn due(&self, now: Mono) -> Option<(OriginId, Scope)> {
        let due = self.origins.iter().filter(|(_, when)| when.at() <= now);
        due.min_by_key(|(_, when)| when.at()).map(|(origin, when)| (origin.clone(), when.scope()))
    }

    /// Somebody wants every origin to be asked now. Only an origin that asked for patience waits.
    pub(super) fn demand(&mut self, full: bool, now: Mono) {
        for when in self.origins.values_mut() {
            when.next = now;
            when.demanded = true;
            when.full |= full;
        }
    }

    /// Whether a demand is still to be met; one that the origin itself puts off is not waited for.
    pub(super) fn is_demanded(&self, now: Mono) -> bool {
        self.origins.values().any(|when| when.demanded && when.not_before <= now)
    }

    /// The line came back, or routing changed: whoever could not be asked is asked soon.
    pub(super) fn routes_changed(&mut self, new_table: bool, now: Mono, random: u32) {
        let soon = now.plus(spread(self.pace.after_change, random));
        for when in self.origins.values_mut() {
            if when.failures > 0 || (new_table && when.unsupported) {
                when.next = when.next.min(soon);
            }
        }
    }

    /// Takes in how a pass ended.
    pub(super) fn ended(&mut self, origin: &OriginId, ended: &Ended, now: Mono, random: u32) {
        let pace = self.pace;
        let Some(when) = self.origins.get_mut(origin) else { return };
        when.demanded = false;
        let wait = match ended {
            Ended::Through { again } => {
                *when = When::default();
                if *again { spread(pace.follow_up, random) } else { about(pace.every, random) }
            }
            Ended::Unsupported(why) => {
                *when = When { unsupported: true, trouble: Some(why.clone()), ..When::default() };
                about(pace.unsupported, random)
            }
            Ended::OneByOne => {
                *when = When { unsupported: true, one_by_one: true, ..When::default() };
                about(pace.unsupported, random)
            }
            Ended::Failed { why, retry_after } => {
                when.failures = when.failures.saturating_add(1);
                when.trouble = Some(why.clone());
                let asked = retry_after.unwrap_or_default();
                when.not_before = now.plus(asked);
                asked + pace.backoff.wait(when.failures, random)
            }
        };
        when.next = now.plus(wait);
    }
}

/// Between once and three times as long.
fn spread(wait: Duration, random: u32) -> Duration {
    wait + (wait * 2).mul_f64(share(random))
}

/// Give or take a fifth.
fn about(wait: Duration, random: u32) -> Duration {
    wait.mul_f64(0.8 + 0.4 * share(random))
}

fn share(random: u32) -> f64 {
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn origin() -> OriginId {
        "apac".parse().unwrap()
    }

    fn at(minutes: u32) -> Mono {
        Mono(MINUTE * minutes)
    }

    fn schedule() -> Schedule {
        let mut schedule = Schedule::new(Pace::default());
        schedule.known(&origin(), at(0), 0);
        schedule
    }

    fn failed(retry_after: Option<Duration>) -> Ended {
        Ended::Failed { why: "HTTP 503".into(), retry_after }
    }

    #[test]
    fn stores_that_start_together_do_not_ask_together() {
        let first = |random| {
            let mut schedule = Schedule::new(Pace::default());
            schedule.known(&origin(), at(0), random);
            schedule.next_at().unwrap()
        };
        assert_eq!((first(0), first(u32::MAX)), (at(1), at(3)));
    }

    #[test]
    fn an_origin_is_asked_every_twenty_minutes_give_or_take_a_fifth() {
        for (random, minutes) in [(0, 16), (u32::MAX, 24)] {
            let mut schedule = schedule();
            schedule.ended(&origin(), &Ended::Through { again: false }, at(0), random);
            assert_eq!(schedule.next_at(), Some(at(minutes)));
            assert_eq!(schedule.due(at(minutes)), Some((origin(), Scope::Changed)));
            assert_eq!(schedule.due(Mono(MINUTE * minutes - Duration::from_millis(1))), None);
        }
    }

    #[test]
    fn what_was_sent_again_is_looked_for_soon() {
        let mut schedule = schedule();
        schedule.ended(&origin(), &Ended::Through { again: true }, at(0), u32::MAX);
        assert_eq!(schedule.next_at(), Some(Mono(Duration::from_secs(90))));
    }

    #[test]
    fn failures_wait_longer_and_longer_and_the_return_of_the_line_ends_the_wait() {
        let mut schedule = schedule();
        for expected in [1, 2, 4, 8, 16, 20, 20] {
            schedule.ended(&origin(), &failed(None), at(0), u32::MAX);
            assert_eq!(schedule.next_at(), Some(at(expected)));
        }
        assert!(schedule.when(&origin()).unwrap().is_lasting());
        schedule.routes_changed(false, at(0), 0);
        assert_eq!(schedule.next_at(), Some(at(1)));
        schedule.ended(&origin(), &Ended::Through { again: false }, at(1), 0);
        assert_eq!(schedule.when(&origin()).unwrap().trouble, None);
    }

    #[test]
    fn an_origin_that_asks_for_patience_gets_it_even_from_an_operator() {
        let mut schedule = schedule();
        schedule.ended(&origin(), &failed(Some(MINUTE * 5)), at(0), 0);
        schedule.demand(true, at(1));
        assert!(!schedule.is_demanded(at(1)), "nobody waits for what the origin puts off");
        assert_eq!(schedule.due(at(4)), None);
        assert_eq!(schedule.due(at(5)), Some((origin(), Scope::Full)));
    }

    #[test]
    fn an_origin_that_does_not_reconcile_is_asked_daily_or_at_a_new_table_or_on_demand() {
        let mut schedule = schedule();
        schedule.ended(&origin(), &Ended::Unsupported("HTTP 404".into()), at(0), u32::MAX / 2);
        let day = schedule.next_at().unwrap();
        assert!(day > at(60 * 23) && day < at(60 * 25), "{day:?}");
        schedule.routes_changed(false, at(0), 0);
        assert_eq!(schedule.next_at(), Some(day));
        schedule.routes_changed(true, at(0), 0);
        assert_eq!(schedule.next_at(), Some(at(1)));
        schedule.demand(false, at(0));
        assert!(schedule.is_demanded(at(0)));
        assert_eq!(schedule.due(at(0)), Some((origin(), Scope::Open)));
        schedule.ended(&origin(), &Ended::OneByOne, at(0), u32::MAX / 2);
        assert!(!schedule.when(&origin()).unwrap().is_lasting(), "nobody need be told of single mode");
        schedule.routes_changed(true, at(0), 0);
        assert_eq!(schedule.next_at(), Some(at(1)), "another mode may be set by then");
    }
}
