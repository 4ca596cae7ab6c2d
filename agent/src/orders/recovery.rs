//! Notices that an origin can be reached again, and spreads what follows over the devices. Pure: the origins that do
//! not answer come in, probes to be sent and returns go out.
//!
//! ```text
//!              every 750 ms              a live order waits, or this device's turn has come
//!           ┌───── no ─────┐                                │
//!  silent   ▼              │                                ▼
//!  ─────► knocking: does it take a connection? ─ yes ─► waiting ─► greeting: its health ─ yes ─► returned
//!           ▲                                                            │
//!           └───────── no: the pace doubles, to 3 or 5 seconds ◄─────────┘
//! ```
//!
//! Promises:
//! - A line that comes back is noticed within a second: a knock is one packet, so it is sent at a steady pace; a
//!   change of the device's network ([`Recovery::hurry`]) makes it happen at once.
//! - An origin that takes connections and is not healthy (a balancer before one that is down) is asked for its health
//!   every 3 seconds while a live order waits and every 5 otherwise, each device at its own moments.
//! - Only what was away comes back: of an origin that took connections and was healthy all along although a batch
//!   failed is told that it is well, ever more seldom: the batch may be at fault.
//! - A whole country comes back in the same second. Live orders go then, of which there are few; everything else
//!   (health requests included, which cost the origin a TLS handshake) begins after a part of a tenth of the outage,
//!   at most of [`MOST_SPREAD`], which is the device's own.
//!
//! Absent on purpose: origins that ask for patience. They are there, and asking them more often is no help.

use super::backoff::Backoff;
use crate::clock::Mono;
use samovar_wire::encoding::sha256;
use samovar_wire::{Country, OriginId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two knocks.
const KNOCK_EVERY: Duration = Duration::from_millis(750);
/// Longest wait after an origin took a connection and was not healthy, while a live order waits for it.
const SLOWEST_URGENT: Duration = Duration::from_secs(3);
/// The same while none does.
const SLOWEST_AWAY: Duration = Duration::from_secs(5);
/// Longest wait after an origin that was never away said that it is well.
const SLOWEST_WELL: Duration = Duration::from_secs(15);
/// The longest time over which the devices are spread.
pub const MOST_SPREAD: Duration = Duration::from_secs(30);
/// Live orders go within so much after the return.
const LIVE_JITTER: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_millis(500) };

/// An origin that does not answer, or fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// The origin.
    pub origin: OriginId,
    /// A country whose orders go there.
    pub country: Country,
    /// Since when.
    pub since: Mono,
    /// A live order waits for it.
    pub urgent: bool,
}

/// An origin that was away and answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Return {
    /// The origin.
    pub origin: OriginId,
    /// When it took a connection first.
    pub line_up: Mono,
    /// When live orders may go.
    pub live_at: Mono,
    /// When the backlog may.
    pub backlog_from: Mono,
}

/// What came of looking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It was away and answers.
    Back(Return),
    /// It answers, and nothing says that it was away.
    Well(OriginId),
}

/// How to look for an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Open a connection and close it.
    Knock,
    /// Ask for its health.
    Greet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Knocking,
    /// It took a connection at this time.
    Waiting(Mono),
    Greeting(Mono),
}

#[derive(Debug)]
struct Watch {
    silent: Silent,
    stage: Stage,
    /// Something was wrong with it, apart from the batch that failed.
    away: bool,
    /// Others said that it is down.
    said_down: bool,
    next: Mono,
    pace: Duration,
}

/// The origins that are looked for.
#[derive(Debug, Default)]
pub struct Recovery {
    /// This device's place among all, 0 to 1.
    place: f64,
    watches: BTreeMap<OriginId, Watch>,
}

impl Recovery {
    /// Nothing to look for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whose turn it is among the devices of a country.
    pub fn set_device(&mut self, device: &str) {
        let digest = sha256(device.as_bytes());
        let number = digest.iter().take(4).fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
        self.place = f64::from(number) / (f64::from(u32::MAX) + 1.0);
    }

    /// The origins that do not answer now; others are no longer looked for.
    pub fn watch(&mut self, silent: Vec<Silent>, now: Mono) {
        self.watches.retain(|origin, _| silent.iter().any(|silent| silent.origin == *origin));
        for silent in silent {
            match self.watches.get_mut(&silent.origin) {
                Some(watch) => watch.silent = silent,
                None => {
                    let watch = Watch {
                        silent,
                        stage: Stage::Knocking,
                        away: false,
                        said_down: false,
                        next: now,
                        pace: KNOCK_EVERY,
                    };
                    self.watches.insert(watch.silent.origin.clone(), watch);
                }
            }
        }
    }

    /// The probes to send now.
    pub fn due(&mut self, now: Mono) -> Vec<(OriginId, Country, Probe)> {
        let due = self.watches.iter_mut().filter_map(|(origin, watch)| {
            let probe = watch.due(now)?;
            Some((origin.clone(), watch.silent.country.clone(), probe))
        });
        due.collect()
    }

    /// When to ask for probes again.
    #[must_use]
    pub fn wake_at(&self) -> Option<Mono> {
        let waits = |watch: &&Watch| !matches!(watch.stage, Stage::Greeting(_));
        self.watches.values().filter(waits).map(Watch::due_at).min()
    }

    /// Something about the device's network changed: look at once.
    pub fn hurry(&mut self, now: Mono) {
        for watch in self.watches.values_mut() {
            watch.pace = KNOCK_EVERY;
            if watch.stage == Stage::Knocking {
                watch.next = now;
            }
        }
    }

    /// The origins that are looked for.
    pub fn origins(&self) -> impl Iterator<Item = &OriginId> {
        self.watches.keys()
    }

    /// Takes in what others say of an origin. Only that it is up again is news: they may not have noticed yet that it
    /// was down.
    pub fn said(&mut self, origin: &OriginId, up: bool, now: Mono, random: u32) -> Option<Return> {
        let place = self.place;
        let watch = self.watches.get_mut(origin)?;
        watch.said_down |= !up;
        if !up || !watch.said_down {
            return None;
        }
        let back = watch.back(now, place, now, random);
        self.watches.remove(origin);
        Some(back)
    }

    /// Takes in what became of a probe. `random` is uniform in 0..=`u32::MAX`.
    pub fn probed(
        &mut self,
        origin: &OriginId,
        probe: Probe,
        yes: bool,
        now: Mono,
        random: u32,
    ) -> Option<Word> {
        let place = self.place;
        let watch = self.watches.get_mut(origin)?;
        match (probe, watch.stage) {
            // Knocks overlap, so a late one may come when the door is open already.
            (Probe::Knock, Stage::Knocking) => watch.knocked(yes, now, place),
            (Probe::Greet, Stage::Greeting(line_up)) => {
                if yes && watch.away {
                    let back = watch.back(line_up, place, now, random);
                    self.watches.remove(origin);
                    return Some(Word::Back(back));
                }
                watch.away |= !yes;
                watch.slow_down(now, random);
                return yes.then(|| Word::Well(origin.clone()));
            }
            _ => {}
        }
        None
    }
}

impl Watch {
    /// A live order does not wait for this device's turn.
    fn due_at(&self) -> Mono {
        match self.stage {
            Stage::Waiting(line_up) if self.silent.urgent && self.away => line_up,
            _ => self.next,
        }
    }

    fn due(&mut self, now: Mono) -> Option<Probe> {
        match self.stage {
            _ if self.due_at() > now => None,
            Stage::Knocking => {
                self.next = now.plus(KNOCK_EVERY);
                Some(Probe::Knock)
            }
            Stage::Waiting(line_up) => {
                self.stage = Stage::Greeting(line_up);
                Some(Probe::Greet)
            }
            Stage::Greeting(_) => None,
        }
    }

    fn knocked(&mut self, yes: bool, now: Mono, place: f64) {
        if !yes {
            self.away = true;
            self.pace = KNOCK_EVERY;
            return;
        }
        self.stage = Stage::Waiting(now);
        self.next = now.plus(if self.away { self.spread(place, now) } else { self.pace });
    }

    /// At least half of the pace passes; the other half is chance, so that devices do not ask in step.
    fn slow_down(&mut self, now: Mono, random: u32) {
        let slowest = match (self.away, self.silent.urgent) {
            (false, _) => SLOWEST_WELL,
            (true, true) => SLOWEST_URGENT,
            (true, false) => SLOWEST_AWAY,
        };
        self.pace = (self.pace * 2).min(slowest);
        self.stage = Stage::Knocking;
        self.next =
            now.plus(self.pace / 2 + (self.pace / 2).mul_f64(f64::from(random) / f64::from(u32::MAX)));
    }

    /// This device's part of the time over which all of them are spread.
    fn spread(&self, place: f64, now: Mono) -> Duration {
        (now.after(self.silent.since) / 10).min(MOST_SPREAD).mul_f64(place)
    }

    fn back(&self, line_up: Mono, place: f64, now: Mono, random: u32) -> Return {
        Return {
            origin: self.silent.origin.clone(),
            line_up,
            live_at: now.plus(LIVE_JITTER.wait(1, random)),
            backlog_from: line_up.plus(self.spread(place, line_up)).max(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Mono {
        Mono(Duration::from_millis(millis))
    }

    fn origin() -> OriginId {
        "a".parse().unwrap()
    }

    fn silent(urgent: bool) -> Vec<Silent> {
        vec![Silent { origin: origin(), country: "US".parse().unwrap(), since: at(0), urgent }]
    }

    fn back(word: Option<Word>) -> Return {
        match word {
            Some(Word::Back(back)) => back,
            other => panic!("{other:?}"),
        }
    }

    fn probes(recovery: &mut Recovery, now: Mono) -> Vec<Probe> {
        recovery.due(now).into_iter().map(|(_, _, probe)| probe).collect()
    }

    /// Away, with the door open again at this time.
    fn reached(device: &str, urgent: bool, now: Mono) -> Recovery {
        let mut recovery = Recovery::new();
        recovery.set_device(device);
        recovery.watch(silent(urgent), now);
        assert_eq!(probes(&mut recovery, now), [Probe::Knock]);
        assert_eq!(recovery.probed(&origin(), Probe::Knock, false, now, 0), None);
        recovery.hurry(now);
        assert_eq!(probes(&mut recovery, now), [Probe::Knock]);
        assert_eq!(recovery.probed(&origin(), Probe::Knock, true, now, 0), None);
        recovery
    }

    #[test]
    fn it_knocks_at_a_steady_pace_however_long_it_takes() {
        let mut recovery = Recovery::new();
        recovery.watch(silent(false), at(0));
        for step in 0..1_000 {
            let now = at(step * 750);
            assert_eq!(recovery.wake_at(), Some(now));
            assert_eq!(probes(&mut recovery, now), [Probe::Knock]);
            assert_eq!(probes(&mut recovery, now), []);
            assert_eq!(recovery.probed(&origin(), Probe::Knock, false, now, 0), None);
        }
        recovery.watch(Vec::new(), at(750_000));
        assert_eq!(recovery.wake_at(), None, "nobody is looked for any more");
    }

    #[test]
    fn a_change_of_the_network_is_followed_at_once() {
        let mut recovery = Recovery::new();
        recovery.watch(silent(false), at(0));
        assert_eq!(probes(&mut recovery, at(0)), [Probe::Knock]);
        assert_eq!(probes(&mut recovery, at(100)), []);
        recovery.hurry(at(100));
        assert_eq!(probes(&mut recovery, at(100)), [Probe::Knock]);
    }

    #[test]
    fn with_a_live_order_the_return_is_told_at_once_and_the_backlog_has_its_turn() {
        let now = at(3_600_000);
        let mut recovery = reached("POS-1", true, now);
        assert_eq!(probes(&mut recovery, now), [Probe::Greet]);
        let back = back(recovery.probed(&origin(), Probe::Greet, true, now, u32::MAX));
        assert_eq!((back.line_up, back.live_at), (now, now.plus(SECOND / 2)));
        assert!(back.backlog_from >= now && back.backlog_from <= now.plus(MOST_SPREAD));
    }

    #[test]
    fn without_a_live_order_even_the_health_request_waits_for_this_devices_turn() {
        let now = at(3_600_000);
        let mut recovery = reached("POS-1", false, now);
        assert_eq!(probes(&mut recovery, now), []);
        let turn = recovery.wake_at().unwrap();
        assert!(turn > now && turn <= now.plus(MOST_SPREAD));
        // A customer comes before that.
        recovery.watch(silent(true), now.plus(SECOND / 10));
        assert_eq!(probes(&mut recovery, now.plus(SECOND / 10)), [Probe::Greet]);
    }

    #[test]
    fn turns_differ_by_device_grow_with_the_outage_and_are_bounded() {
        let turn = |device: usize, outage: Mono| {
            let mut recovery = reached(&format!("POS-{device}"), true, outage);
            recovery.due(outage);
            let back = back(recovery.probed(&origin(), Probe::Greet, true, outage, 0));
            back.backlog_from.after(outage)
        };
        for (outage, most) in [(10, SECOND), (60, SECOND * 6), (300, SECOND * 30), (3 * 86_400, MOST_SPREAD)]
        {
            let mut tenths = [0; 10];
            for device in 0..1_000 {
                let turn = turn(device, at(outage * 1_000));
                tenths[(turn.as_secs_f64() / most.as_secs_f64() * 10.0) as usize] += 1;
            }
            assert!(tenths.iter().all(|count| (60..=140).contains(count)), "{outage} s: {tenths:?}");
        }
    }

    /// The gaps between health requests in two minutes of answers like this one.
    fn gaps(recovery: &mut Recovery, healthy: bool, random: u32) -> Vec<u128> {
        let (mut now, mut asked) = (at(0), Vec::new());
        while now < at(120_000) {
            for probe in probes(recovery, now) {
                if probe == Probe::Greet {
                    asked.push(now);
                }
                let word = recovery.probed(&origin(), probe, healthy || probe == Probe::Knock, now, random);
                assert!(!matches!(word, Some(Word::Back(_))), "it was never away");
                assert_eq!(word.is_some(), healthy && probe == Probe::Greet);
            }
            now = recovery.wake_at().unwrap().max(now);
        }
        asked.windows(2).map(|pair| pair[1].after(pair[0]).as_millis()).collect()
    }

    #[test]
    fn an_origin_that_takes_connections_and_is_not_healthy_is_asked_every_few_seconds() {
        let slow = gaps(&mut reached("POS-1", true, at(0)), false, u32::MAX);
        assert_eq!(slow[..4], [1_500, 3_000, 3_000, 3_000]);
        let quick = gaps(&mut reached("POS-1", true, at(0)), false, 0);
        assert_eq!(quick[..4], [750, 1_500, 1_500, 1_500], "by chance");
        let nobody_waits = gaps(&mut reached("POS-1", false, at(0)), false, u32::MAX);
        // Behind the look comes this device's turn.
        assert!(nobody_waits[3..].iter().all(|gap| (5_000..20_000).contains(gap)), "{nobody_waits:?}");
    }

    #[test]
    fn an_origin_that_was_never_away_does_not_come_back_and_is_asked_ever_more_seldom() {
        let mut recovery = Recovery::new();
        recovery.watch(silent(true), at(0));
        let gaps = gaps(&mut recovery, true, u32::MAX);
        assert!(gaps.is_sorted() && gaps[gaps.len() - 1] >= 15_000, "{gaps:?}");
    }

    #[test]
    fn what_others_say_counts_only_after_they_had_noticed() {
        let mut recovery = Recovery::new();
        recovery.watch(silent(false), at(0));
        assert_eq!(recovery.said(&origin(), true, at(1), 0), None, "they do not know yet");
        assert_eq!(recovery.said(&origin(), false, at(2), 0), None);
        assert!(recovery.said(&origin(), true, at(3), 0).is_some());
        assert_eq!(recovery.wake_at(), None);
    }
}
