//! What is known of each name right now: the last good answer while it is fresh, or that there is none. Pure.

use super::answer::{Answer, By, is_dialable};
use super::figures::Histogram;
use super::ladder::{Kind, Verdict};
use crate::clock::Mono;
use samovar_wire::status::{ChainLink, NameState};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Names that are kept; the one not asked for longest makes room. A table may list a thousand hosts, a device uses few.
pub(super) const NAMES_MAX: usize = 64;
/// Shortest and longest time for which an answer is used.
const FRESH: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The life of an answer whose source does not tell it.
const UNTOLD: Duration = Duration::from_secs(30);
/// How long "there is none" is believed.
const NONE_FOR: Duration = Duration::from_secs(5);
/// How long addresses that worked before are used without asking again (RFC 8767).
pub(super) const STALE_FOR: Duration = Duration::from_secs(30);
/// Between two measurements of the chain behind a name.
const CHAIN_EVERY: Duration = Duration::from_mins(10);

/// Every name.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    used: Mono,
    fresh: Option<Fresh>,
    none: Option<Absent>,
    by: Option<By>,
    chain: Vec<ChainLink>,
    chain_due: Mono,
    dns: Histogram,
    requests: Histogram,
}

#[derive(Debug, Clone)]
struct Fresh {
    addresses: Vec<IpAddr>,
    by: By,
    until: Mono,
}

/// A look-up that came to nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Absent {
    at: Mono,
    /// Addresses on one voice's word.
    pub(super) suspects: Vec<IpAddr>,
    /// Somebody said that there is none.
    pub(super) denied: bool,
    /// What went wrong.
    pub(super) errors: Vec<String>,
}

impl Absent {
    /// In one line.
    pub(super) fn why(&self) -> String {
        match (&self.errors[..], self.denied) {
            ([], true) => "no such name".to_owned(),
            ([], false) => "nobody to ask".to_owned(),
            (errors, _) => errors.join("; "),
        }
    }
}

/// What to do about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// Use these.
    Fresh { addresses: Vec<IpAddr>, by: By, left: Duration },
    /// There is no answer: use what is known otherwise. Ask again behind the caller's back, if so.
    Without { absent: Absent, recheck: bool },
    /// Ask, and wait for it.
    Ask,
}

/// What is known otherwise, when there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fallback {
    Proven,
    Listed,
    Nothing,
}

impl Cache {
    pub(super) fn look(&mut self, host: &str, fallback: Fallback, now: Mono) -> Look {
        let entry = self.entry(host, now);
        if let Some(fresh) = &entry.fresh
            && now < fresh.until
        {
            let left = fresh.until.after(now);
            return Look::Fresh { addresses: fresh.addresses.clone(), by: fresh.by, left };
        }
        let Some(absent) = &entry.none else { return Look::Ask };
        let pause = if fallback == Fallback::Proven { STALE_FOR } else { NONE_FOR };
        let recheck = now >= absent.at.plus(pause);
        if recheck && fallback == Fallback::Nothing {
            return Look::Ask;
        }
        Look::Without { absent: absent.clone(), recheck }
    }

    /// The end of a look-up that took so long.
    pub(super) fn conclude(&mut self, host: &str, verdict: Verdict, took: Duration, now: Mono) {
        let entry = self.entry(host, now);
        entry.dns.record(took, now);
        match verdict {
            Verdict::Good(answer, kind) => entry.good(answer, kind, now),
            Verdict::Nothing { suspects, denied, errors } => {
                entry.fresh = None;
                entry.none = Some(Absent { at: now, suspects, denied, errors });
            }
        }
    }

    /// Nobody has answered for so long that those who wait are served otherwise, and those who come as well.
    pub(super) fn overdue(&mut self, host: &str, now: Mono) {
        let entry = self.entry(host, now);
        entry.none.get_or_insert_with(Absent::default).at = now;
    }

    /// Who gave the addresses that were used last.
    pub(super) fn served(&mut self, host: &str, by: By, now: Mono) -> bool {
        let entry = self.entry(host, now);
        let other = entry.by != Some(by);
        entry.by = Some(by);
        other
    }

    /// The network is another: every answer is of the old one.
    pub(super) fn forget_answers(&mut self) {
        for entry in self.entries.values_mut() {
            entry.fresh = None;
            entry.none = None;
        }
    }

    /// Behind an answer's addresses somebody else was found: it goes behind everything that has been proved.
    pub(super) fn doubt(&mut self, host: &str, now: Mono) {
        if let Some(entry) = self.entries.get_mut(host)
            && let Some(fresh) = entry.fresh.take()
        {
            let suspects = fresh.addresses;
            entry.none = Some(Absent { at: now, suspects, ..Absent::default() });
        }
    }

    /// TLS has proved what one voice alone had said: the next look-up may believe it.
    pub(super) fn confirm(&mut self, host: &str, address: IpAddr) {
        if let Some(entry) = self.entries.get_mut(host)
            && entry.none.as_ref().is_some_and(|absent| absent.suspects.contains(&address))
        {
            entry.none = None;
        }
    }

    pub(super) fn request_took(&mut self, host: &str, took: Duration, now: Mono) {
        self.entry(host, now).requests.record(took, now);
    }

    /// Whether the chain behind a name should be measured now; claims the turn.
    pub(super) fn chain_is_due(&mut self, host: &str, now: Mono) -> bool {
        let entry = self.entry(host, now);
        let due = now >= entry.chain_due;
        if due {
            entry.chain_due = now.plus(CHAIN_EVERY);
        }
        due
    }

    pub(super) fn chain(&self, host: &str) -> Vec<ChainLink> {
        self.entries.get(host).map(|entry| entry.chain.clone()).unwrap_or_default()
    }

    pub(super) fn set_chain(&mut self, host: &str, chain: Vec<ChainLink>, now: Mono) -> bool {
        let entry = self.entry(host, now);
        let other = entry.chain != chain;
        entry.chain = chain;
        other
    }

    /// Addresses that are fresh, without asking.
    pub(super) fn fresh(&self, host: &str, now: Mono) -> &[IpAddr] {
        let fresh = self.entries.get(host).and_then(|entry| entry.fresh.as_ref());
        fresh.filter(|fresh| now < fresh.until).map_or(&[], |fresh| &fresh.addresses)
    }

    /// What is reported.
    pub(super) fn states(&mut self, now: Mono) -> Vec<NameState> {
        let states = self.entries.iter_mut().filter_map(|(name, entry)| {
            Some(NameState {
                name: name.clone(),
                answered_by: entry.by?.name().to_owned(),
                chain: entry.chain.clone(),
                dns_ms: entry.dns.percentiles(now),
                request_ms: entry.requests.percentiles(now),
            })
        });
        states.collect()
    }

    fn entry(&mut self, host: &str, now: Mono) -> &mut Entry {
        if !self.entries.contains_key(host) && self.entries.len() >= NAMES_MAX {
            let oldest =
                self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(name, _)| name.clone());
            oldest.map(|name| self.entries.remove(&name));
        }
        let entry = self.entries.entry(host.to_owned()).or_default();
        entry.used = now;
        entry
    }
}

impl Entry {
    fn good(&mut self, answer: Answer, kind: Kind, now: Mono) {
        let by = match kind {
            Kind::System => By::System,
            Kind::Direct => By::Direct,
            Kind::Doh => By::Doh,
        };
        if kind != Kind::System && answer.chain.len() != self.chain.len() {
            let link = |name: &String| ChainLink { name: name.clone(), ms: None };
            self.chain = answer.chain.iter().map(link).collect();
        }
        let life = answer.ttl.unwrap_or(UNTOLD).clamp(FRESH.0, FRESH.1);
        let addresses = answer.addresses.into_iter().filter(is_dialable).collect();
        self.fresh = Some(Fresh { addresses, by, until: now.plus(life) });
        self.none = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn good(ttl: Option<u64>) -> Verdict {
        let addresses = vec!["203.0.113.1".parse().unwrap()];
        let answer = Answer { addresses, ttl: ttl.map(Duration::from_secs), chain: Vec::new() };
        Verdict::Good(answer, Kind::Direct)
    }

    fn nothing() -> Verdict {
        Verdict::Nothing { suspects: Vec::new(), denied: false, errors: vec!["dead".into()] }
    }

    fn is_fresh(look: &Look) -> bool {
        matches!(look, Look::Fresh { .. })
    }

    #[test]
    fn an_answer_lives_as_long_as_it_says_within_bounds() {
        for (ttl, life) in [(Some(0), 5), (Some(60), 60), (Some(86_400), 300), (None, 30)] {
            let mut cache = Cache::default();
            cache.conclude("a", good(ttl), Duration::ZERO, at(100));
            assert!(is_fresh(&cache.look("a", Fallback::Nothing, at(100 + life - 1))), "{ttl:?}");
            assert_eq!(cache.look("a", Fallback::Proven, at(100 + life)), Look::Ask, "{ttl:?}");
        }
    }

    #[test]
    fn without_an_answer_what_worked_before_is_used_and_checked_again_after_half_a_minute() {
        let mut cache = Cache::default();
        assert_eq!(cache.look("a", Fallback::Proven, at(0)), Look::Ask, "stale never comes first");
        cache.conclude("a", nothing(), Duration::from_secs(1), at(1));
        let recheck = |cache: &mut Cache, fallback, seconds| match cache.look("a", fallback, at(seconds)) {
            Look::Without { recheck, .. } => Some(recheck),
            _ => None,
        };
        assert_eq!(recheck(&mut cache, Fallback::Proven, 30), Some(false));
        assert_eq!(recheck(&mut cache, Fallback::Proven, 31), Some(true), "asked behind the caller's back");
        assert_eq!(recheck(&mut cache, Fallback::Listed, 5), Some(false));
        assert_eq!(recheck(&mut cache, Fallback::Listed, 6), Some(true));
        assert_eq!(recheck(&mut cache, Fallback::Nothing, 5), Some(false));
        assert_eq!(recheck(&mut cache, Fallback::Nothing, 6), None, "nobody else: ask and wait");
        cache.conclude("a", good(None), Duration::ZERO, at(40));
        assert!(is_fresh(&cache.look("a", Fallback::Proven, at(41))));
    }

    #[test]
    fn while_a_look_up_is_overdue_nobody_waits_for_it_and_its_late_answer_counts() {
        let mut cache = Cache::default();
        cache.overdue("a", at(2));
        assert!(matches!(cache.look("a", Fallback::Proven, at(3)), Look::Without { recheck: false, .. }));
        cache.conclude("a", good(None), Duration::from_secs(2), at(4));
        assert!(is_fresh(&cache.look("a", Fallback::Proven, at(4))));
    }

    #[test]
    fn another_network_has_other_answers_and_a_doubted_answer_is_asked_for_again() {
        let mut cache = Cache::default();
        cache.conclude("a", good(None), Duration::ZERO, at(1));
        cache.doubt("a", at(1));
        let Look::Without { absent, .. } = cache.look("a", Fallback::Proven, at(1)) else { panic!() };
        assert_eq!(absent.suspects.len(), 1, "kept for when nothing else is left");
        cache.conclude("a", good(None), Duration::ZERO, at(2));
        cache.forget_answers();
        assert_eq!(cache.look("a", Fallback::Proven, at(2)), Look::Ask);
    }

    #[test]
    fn only_so_many_names_are_kept_and_those_in_use_stay() {
        let mut cache = Cache::default();
        for n in 0..200 {
            cache.conclude(&format!("n{n}"), good(None), Duration::ZERO, at(n));
            cache.look("n0", Fallback::Nothing, at(n));
        }
        assert_eq!(cache.entries.len(), NAMES_MAX);
        assert!(cache.entries.contains_key("n0") && cache.entries.contains_key("n199"));
    }

    #[test]
    fn the_report_says_who_answered_and_what_the_name_stands_for() {
        let mut cache = Cache::default();
        let answer = Answer {
            addresses: vec!["203.0.113.1".parse().unwrap()],
            ttl: None,
            chain: vec!["b.example".into(), "c.example".into()],
        };
        cache.conclude("a", Verdict::Good(answer, Kind::Direct), Duration::from_millis(30), at(1));
        assert!(cache.states(at(2)).is_empty(), "nobody used it");
        assert!(cache.served("a", By::Direct, at(2)) && !cache.served("a", By::Direct, at(2)));
        cache.request_took("a", Duration::from_millis(200), at(3));
        let told = cache.states(at(400)).remove(0);
        assert_eq!((told.answered_by.as_str(), told.chain.len()), ("direct", 2));
        assert_eq!(told.dns_ms.map(|dns| (dns.p50_ms, dns.count)), Some((38, 1)));
        assert_eq!(told.request_ms.map(|request| request.p95_ms), Some(211));
        assert!(cache.chain_is_due("a", at(400)) && !cache.chain_is_due("a", at(401)));
    }
}
