//! Which origins answer, and whether it is the origin or the store's own line when one does not. Pure: reports and
//! the time come in, the origins to probe and a picture of their health come out.
//!
//! ```text
//!   fresh ──answer──► up ──failure──► failing ──(3 failures, 2 rounds in which another answered)──► left
//!                    ▲ ▲                 │                                                        │   ▲
//!                    │ └────answer───────┘◄── a round in which nobody answers: the line; nothing  │   │
//!                    │                        moves, and the rounds that counted are forgotten    │   │
//!                    │                                                         two answers in a row   │ a round in which it
//!                    │                                                                            ▼   │ fails, another not
//!                    └──────────── after 300 s and a share of 120 s; 1 h when it was ───────── returning
//!                                  left for the third time within an hour
//! ```
//!
//! Promises:
//! - **A store whose own line is down never fails over.** Only a *round* (probes of all origins sent at the same
//!   moment) in which another origin answers counts against one that fails. Failures of traffic make a round happen at
//!   once, they never move anything by themselves: a line that blinks breaks three requests in a millisecond. But an
//!   origin that says that it is well, and has taken no request for 45 s while another one answers, is left too.
//! - While nobody answers everything is frozen: what was down stays down and what was up stays up, so that the line's
//!   return changes nothing either.
//! - A dead origin is left within 15 s of the first failure. It is returned to only when it has proved itself for a while,
//!   and each device takes a moment of its own, so that an origin that has just come up is not run over. Until then it
//!   serves only what nobody else can.
//! - While all origins are dead and a reference proves that it is not the line, nothing moves either, and the first that
//!   answers serves at once.
//! - An origin that keeps coming and going is returned to once an hour.

use crate::clock::Mono;
use samovar_wire::OriginId;
use samovar_wire::status::{Health, Line};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How an origin behaved towards a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It answered as an origin does. Refusals (4xx) are answers.
    Answered,
    /// No answer, or a 5xx: why.
    Failed(String),
    /// Something answered that is not the origin: what it was.
    NotTheOrigin(String),
}

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Probed {
    /// Sent.
    Sent(Outcome),
    /// Could not even be sent, for a reason on this device, such as missing trust.
    NotSent(String),
}

/// What a reference that is no origin says of the store's line, when no origin answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Reference {
    /// None is known, or there was no need to ask.
    #[default]
    NotAsked,
    /// It answers: the line works, the origins do not.
    Answered,
    /// Something answers in its place: what.
    Portal(String),
    /// It does not answer either.
    Silent,
}

/// The intervals and thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthSettings {
    /// Consecutive failures before an origin is shown as down.
    pub failures: u32,
    /// Consecutive rounds in which it fails and another answers before it is left.
    pub rounds: u32,
    /// How long an origin whose health is well must have answered no request of the traffic before it is left.
    pub refusing_for: Duration,
    /// Consecutive answers before an origin that was left begins to prove itself.
    pub answers: u32,
    /// How long it must go on answering before it is returned to.
    pub failback_after: Duration,
    /// The device's own share of this comes on top.
    pub failback_spread: Duration,
    /// Leaving it so often within [`Self::flap_window`] makes it flapping.
    pub flaps: usize,
    /// How far back that is counted, and how long a flapping origin must prove itself.
    pub flap_window: Duration,
    /// Consecutive rounds in which nobody answers before the line is called down.
    pub silent_rounds: u32,
    /// From the beginning of one round to the next while something fails; ± 20 %.
    pub failing_interval: Duration,
    /// The same while a reference proves that every origin is dead: the first to return is used at once; ± 20 %.
    pub all_dead_interval: Duration,
    /// Between probes of an origin that was left, and while it proves itself; ± 20 %.
    pub left_interval: Duration,
    /// Between probes while all is well; ± 20 %.
    pub idle_interval: Duration,
    /// Rounds at the start, to measure what is nearest.
    pub first_rounds: u32,
    /// Least time between two rounds.
    pub least_gap: Duration,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            failures: 3,
            rounds: 2,
            refusing_for: Duration::from_secs(45),
            answers: 2,
            failback_after: Duration::from_secs(300),
            failback_spread: Duration::from_secs(120),
            flaps: 3,
            flap_window: Duration::from_hours(1),
            silent_rounds: 2,
            failing_interval: Duration::from_secs(3),
            all_dead_interval: Duration::from_millis(1_200),
            left_interval: Duration::from_secs(30),
            idle_interval: Duration::from_secs(60),
            first_rounds: 4,
            least_gap: Duration::from_secs(1),
        }
    }
}

/// What is known of one origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// For choosing: down only when it was left; up when it answered in the last round in which anybody did.
    pub(super) routing: Health,
    /// For people: whether it answers.
    pub(super) shown: Health,
    /// What went wrong last, until it answers again.
    pub(super) last_error: Option<String>,
    /// What answers in its place.
    pub(super) impostor: Option<String>,
    /// It answers again and is used again from this moment on; before, only for what nobody else can take.
    pub(super) returns_at: Option<Mono>,
    /// It was left several times within an hour.
    pub(super) flapping: bool,
}

/// The state of all origins and of the line.
#[derive(Debug)]
pub(super) struct Origins {
    settings: HealthSettings,
    random: fastrand::Rng,
    origins: BTreeMap<OriginId, Origin>,
    line: Line,
    line_detail: String,
    starving: bool,
    silent: u32,
    /// In the last round no origin answered, and a reference did.
    all_dead: bool,
    /// The last traffic since the last round was answered: an origin without a health probe is not a line that is
    /// down.
    traffic_answered: bool,
    first_rounds_left: u32,
    under_way: bool,
    last_round: Option<Mono>,
}

#[derive(Debug, Default)]
struct Origin {
    ever_answered: bool,
    failures: u32,
    lost_rounds: u32,
    /// Consecutive rounds in which it failed like all others while a reference answered. They leave nothing, for there is
    /// nowhere to go, but count as soon as another origin answers.
    dead_rounds: u32,
    answers: u32,
    left: bool,
    /// Requests of the traffic that failed since one was answered, and the first of them. Its health may be well all
    /// the same.
    refused_traffic: u32,
    refused_since: Mono,
    /// When it was left, within the last hour; as many as make it flapping.
    left_at: VecDeque<Mono>,
    returns_at: Option<Mono>,
    probe_at: Mono,
    last_error: Option<String>,
    impostor_of_probe: Option<String>,
    impostor_of_traffic: Option<String>,
}

impl Origins {
    /// No origins yet; `seed` moves the probes of many devices apart.
    #[must_use]
    pub(super) fn new(settings: HealthSettings, seed: u64) -> Self {
        Self {
            settings,
            random: fastrand::Rng::with_seed(seed),
            origins: BTreeMap::new(),
            line: Line::Unknown,
            line_detail: String::new(),
            starving: false,
            silent: 0,
            all_dead: false,
            traffic_answered: false,
            first_rounds_left: settings.first_rounds,
            under_way: false,
            last_round: None,
        }
    }

    /// The origins to watch; what is known of those that stay is kept.
    pub(super) fn watch(&mut self, wanted: &BTreeSet<OriginId>, now: Mono) {
        self.origins.retain(|origin, _| wanted.contains(origin));
        for origin in wanted {
            if !self.origins.contains_key(origin) {
                self.origins.insert(origin.clone(), Origin { probe_at: now, ..Origin::default() });
                self.first_rounds_left = self.settings.first_rounds;
            }
        }
    }

    /// What a request of the traffic met.
    pub(super) fn traffic(&mut self, origin: &OriginId, outcome: &Outcome, now: Mono) {
        let (settings, hold) = (self.current(), self.hold());
        let Some(known) = self.origins.get_mut(origin) else { return };
        match outcome {
            Outcome::Answered => {
                known.impostor_of_traffic = None;
                known.refused_traffic = 0;
                known.answered(settings, hold, now);
                self.traffic_answered = true;
                self.somebody_answered();
            }
            Outcome::Failed(why) => {
                self.traffic_answered = false;
                if known.refused_traffic == 0 {
                    known.refused_since = now;
                }
                known.refused_traffic = known.refused_traffic.saturating_add(1);
                if known.failed(why) {
                    self.hurry(now);
                }
            }
            // Who answers in the origin's place is for a probe to find out; the origin itself did not fail.
            Outcome::NotTheOrigin(what) => {
                if known.impostor_of_traffic.replace(what.clone()).is_none() {
                    self.hurry(now);
                }
            }
        }
    }

    /// A request waits for its answer for long: whether the origin is dead, a round finds out sooner than a time-out.
    pub(super) fn suspect(&mut self, now: Mono) {
        if self.last_round.is_none_or(|last| now.after(last) >= self.settings.failing_interval) {
            self.hurry(now);
        }
    }

    /// Probes everything as soon as the gap between rounds allows.
    pub(super) fn hurry(&mut self, now: Mono) {
        for origin in self.origins.values_mut() {
            origin.probe_at = origin.probe_at.min(now);
        }
    }

    /// When to call [`Self::begin_round`]; `None` while a round is under way or there is nothing to probe.
    #[must_use]
    pub(super) fn next_round(&self) -> Option<Mono> {
        if self.under_way {
            return None;
        }
        let due = self.origins.values().map(|origin| origin.probe_at).min()?;
        Some(self.last_round.map_or(due, |last| due.max(last.plus(self.settings.least_gap))))
    }

    /// The origins to probe now, all at the same moment; none when it is too early.
    pub(super) fn begin_round(&mut self, now: Mono) -> Vec<OriginId> {
        if self.next_round().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.under_way = true;
        self.last_round = Some(now);
        let all = self.undecided() || self.first_rounds_left > 0;
        let due = |origin: &Origin| all || origin.probe_at <= now;
        self.origins.iter().filter(|(_, origin)| due(origin)).map(|(name, _)| name.clone()).collect()
    }

    /// What became of the round under way; `reference` was asked if no origin answered.
    pub(super) fn end_round(&mut self, results: &[(OriginId, Probed)], reference: &Reference, now: Mono) {
        self.under_way = false;
        self.first_rounds_left = self.first_rounds_left.saturating_sub(1);
        let is_answer = |probed: &Probed| *probed == Probed::Sent(Outcome::Answered);
        let answered = results.iter().any(|(_, probed)| is_answer(probed));
        let sent = results.iter().filter(|(_, probed)| matches!(probed, Probed::Sent(_))).count();
        for (origin, probed) in results {
            let (settings, hold) = (self.current(), self.hold());
            if let Some(known) = self.origins.get_mut(origin) {
                known.probed(probed, answered, (settings, hold), now);
            }
        }
        if answered {
            self.somebody_answered();
            self.leave_what_only_seems_well(results, now);
        } else if sent > 0 && sent >= self.origins.len() {
            self.nobody_answered(reference);
        }
        self.traffic_answered = false;
        self.schedule(results, now);
    }

    /// An origin whose health is well, and which has taken nothing for a while, is left too when another one answers.
    fn leave_what_only_seems_well(&mut self, results: &[(OriginId, Probed)], now: Mono) {
        let settings = self.settings;
        for (name, origin) in &mut self.origins {
            let others = results
                .iter()
                .any(|(probed, result)| probed != name && *result == Probed::Sent(Outcome::Answered));
            let long = now.after(origin.refused_since) >= settings.refusing_for;
            if others && !origin.left && long && origin.refused_traffic >= settings.failures {
                origin.refused_traffic = 0;
                origin.leave(settings, now);
            }
        }
    }

    /// What is known of each origin.
    #[must_use]
    pub(super) fn seen(&self, now: Mono) -> BTreeMap<OriginId, Seen> {
        self.origins.iter().map(|(name, origin)| (name.clone(), origin.seen(self.settings, now))).collect()
    }

    /// When the next origin has proved itself and is used again.
    #[must_use]
    pub(super) fn next_return(&self, now: Mono) -> Option<Mono> {
        self.origins.values().filter_map(|origin| origin.returns_at).filter(|at| *at > now).min()
    }

    /// The store's own line.
    #[must_use]
    pub(super) const fn line(&self) -> Line {
        self.line
    }

    /// What is known of a line that is down, in words; may be empty.
    #[must_use]
    pub(super) fn line_detail(&self) -> &str {
        &self.line_detail
    }

    /// Whether something of this device has no origin left that answers: then one that was left is asked for as often as
    /// if all were dead, and its first answer counts.
    pub(super) fn starving(&mut self, starving: bool, now: Mono) {
        if starving && !self.starving {
            for origin in self.origins.values_mut().filter(|origin| origin.left) {
                origin.probe_at = origin.probe_at.min(now);
            }
        }
        self.starving = starving;
    }

    /// The settings as they hold now.
    const fn current(&self) -> HealthSettings {
        let mut settings = self.settings;
        if self.starving {
            settings.answers = 1;
        }
        settings
    }

    /// How long an origin that comes back now must prove itself.
    fn hold(&mut self) -> Duration {
        self.settings.failback_after + self.settings.failback_spread.mul_f64(self.random.f64())
    }

    /// Something fails and it is not decided whose fault it is: only rounds over all origins can tell.
    fn undecided(&self) -> bool {
        self.origins.values().any(|origin| origin.failures > 0 && !origin.left)
    }

    fn somebody_answered(&mut self) {
        self.all_dead = false;
        self.silent = 0;
        self.line = Line::Up;
        self.line_detail.clear();
    }

    fn nobody_answered(&mut self, reference: &Reference) {
        let line_works = *reference == Reference::Answered;
        if line_works {
            self.somebody_answered();
        } else if !self.traffic_answered {
            self.silent = self.silent.saturating_add(1);
        }
        if self.silent >= self.settings.silent_rounds {
            self.line = Line::Down;
            self.line_detail = match reference {
                Reference::Portal(what) => format!("a sign-in page or a proxy answers for everybody: {what}"),
                Reference::Silent => "no reference answers either".to_owned(),
                Reference::NotAsked | Reference::Answered => String::new(),
            };
        }
        self.all_dead = line_works;
        for origin in self.origins.values_mut() {
            (origin.lost_rounds, origin.refused_traffic) = (0, 0);
            origin.dead_rounds = if line_works { origin.dead_rounds.saturating_add(1) } else { 0 };
        }
    }

    fn schedule(&mut self, results: &[(OriginId, Probed)], now: Mono) {
        // From the beginning of the round: probes that hang must not slow down finding out.
        let begun = self.last_round.unwrap_or(now);
        let HealthSettings { all_dead_interval, failing_interval, .. } = self.settings;
        let interval = if self.all_dead { all_dead_interval } else { failing_interval };
        let soon = begun.plus(self.around(interval));
        let left = if self.starving {
            begun.plus(self.around(all_dead_interval))
        } else {
            now.plus(self.around(self.settings.left_interval))
        };
        let later = now.plus(self.around(self.settings.idle_interval));
        let all_at = if self.first_rounds_left > 0 {
            Some(now.plus(self.settings.least_gap))
        } else {
            self.undecided().then_some(soon)
        };
        for (name, origin) in &mut self.origins {
            if let Some(at) = all_at {
                origin.probe_at = at;
            } else if results.iter().any(|(probed, _)| probed == name) {
                let proving = origin.returns_at.is_some_and(|at| now < at);
                origin.probe_at = if origin.left || proving { left } else { later };
            }
        }
    }

    /// ± 20 %, so that a fleet that lost an origin together does not ask for it together.
    fn around(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(0.8 + 0.4 * self.random.f64())
    }
}

impl Origin {
    fn probed(
        &mut self,
        probed: &Probed,
        somebody_answered: bool,
        (settings, hold): (HealthSettings, Duration),
        now: Mono,
    ) {
        match probed {
            Probed::NotSent(why) => self.last_error = Some(why.clone()),
            Probed::Sent(Outcome::Answered) => {
                self.impostor_of_probe = None;
                self.answered(settings, hold, now);
            }
            Probed::Sent(Outcome::Failed(why)) => {
                self.impostor_of_probe = None;
                self.lost(why, somebody_answered, settings, now);
            }
            Probed::Sent(Outcome::NotTheOrigin(what)) => {
                self.impostor_of_probe = Some(what.clone());
                self.lost(what, somebody_answered, settings, now);
            }
        }
    }

    fn lost(&mut self, why: &str, somebody_answered: bool, settings: HealthSettings, now: Mono) {
        self.failed(why);
        // It does not even seem well.
        self.refused_traffic = 0;
        if !somebody_answered {
            return;
        }
        self.lost_rounds = self.lost_rounds.saturating_add(1);
        // One that is still proving itself begins anew at once.
        let proving = self.returns_at.take_if(|at| now < *at).is_some();
        let rounds = self.lost_rounds.saturating_add(self.dead_rounds);
        let lost = self.failures >= settings.failures && rounds >= settings.rounds;
        if !self.left && (proving || lost) {
            self.leave(settings, now);
        }
    }

    fn leave(&mut self, settings: HealthSettings, now: Mono) {
        (self.left, self.answers, self.returns_at) = (true, 0, None);
        self.left_at.push_back(now);
        if self.left_at.len() > settings.flaps {
            self.left_at.pop_front();
        }
    }

    fn is_flapping(&self, settings: HealthSettings, now: Mono) -> bool {
        let recent = |at: &&Mono| now.after(**at) < settings.flap_window;
        self.left_at.iter().filter(recent).count() >= settings.flaps
    }

    fn answered(&mut self, settings: HealthSettings, hold: Duration, now: Mono) {
        self.ever_answered = true;
        self.failures = 0;
        (self.lost_rounds, self.dead_rounds) = (0, 0);
        self.answers = self.answers.saturating_add(1);
        if self.left && self.answers >= settings.answers {
            self.left = false;
            let flapping = self.is_flapping(settings, now);
            self.returns_at = Some(now.plus(if flapping { settings.flap_window.max(hold) } else { hold }));
        }
        if !self.left {
            self.last_error = None;
        }
    }

    /// True for the first failure after an answer.
    fn failed(&mut self, why: &str) -> bool {
        self.answers = 0;
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(why.to_owned());
        self.failures == 1
    }

    fn seen(&self, settings: HealthSettings, now: Mono) -> Seen {
        let routing = match (self.left, self.ever_answered && self.lost_rounds == 0) {
            (true, _) => Health::Down,
            (false, true) => Health::Up,
            (false, false) => Health::Unknown,
        };
        let shown = match (self.left || self.failures >= settings.failures, self.ever_answered) {
            (true, _) => Health::Down,
            (false, true) => Health::Up,
            (false, false) => Health::Unknown,
        };
        let impostor = self.impostor_of_probe.as_ref().or(self.impostor_of_traffic.as_ref());
        Seen {
            routing,
            shown,
            last_error: self.last_error.clone(),
            impostor: impostor.cloned(),
            returns_at: self.returns_at.filter(|at| now < *at),
            flapping: self.is_flapping(settings, now),
        }
    }
}

#[cfg(test)]
mod tests;
