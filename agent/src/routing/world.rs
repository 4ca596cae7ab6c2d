//! For tests: tables, keys and identities, and a store with origins in virtual time.

use super::health::{HealthSettings, Origins, Outcome, Probed, Reference};
use super::view::{Ask, InForce, View};
use crate::clock::Mono;
use samovar_wire::dsse::{Envelope, ROUTE_TABLE, SigningKey, TrustedKeys};
use samovar_wire::route::{Scheme, Table};
use samovar_wire::status::{Identity, Line};
use samovar_wire::{OriginId, ServiceName};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn signing_key() -> SigningKey {
    SigningKey::from_seed("k1", &samovar_wire::encoding::base64(&[7; 32])).unwrap()
}

pub(super) fn trusted() -> TrustedKeys {
    let key = signing_key();
    [(key.key_id.clone(), key.public())].into()
}

pub(super) fn sign(table: &Value) -> Vec<u8> {
    let payload = serde_json::to_vec(table).unwrap();
    serde_json::to_vec(&Envelope::sign(ROUTE_TABLE, &payload, &[&signing_key()])).unwrap()
}

/// A table in which the origins, given as name, host and port, all serve the United States in listed order.
pub(super) fn table(version: u64, origins: &[(&str, &str, u16)]) -> Value {
    let names: Vec<_> = origins.iter().map(|(name, ..)| *name).collect();
    let entries: BTreeMap<_, _> = origins
        .iter()
        .map(|(name, host, port)| {
            (*name, json!({ "endpoints": [{ "host": host, "port": port, "addresses": [] }] }))
        })
        .collect();
    json!({
        "schema": 1, "environment": "test", "version": version, "issued_at": "2026-01-02T00:00:00.000Z",
        "not_before": "2026-01-02T00:00:00.000Z", "expires_at": "2999-01-01T00:00:00.000Z",
        "origins": entries,
        "countries": { "US": { "residency": names, "services": { "orders": { "domains": { "default": "us.store.test" } } } } },
        "fallback": { "mode": "nearest", "candidates": names }
    })
}

pub(super) fn identity() -> Identity {
    Identity {
        device: "POS-US-0001".parse().unwrap(),
        store: "US-0001".parse().unwrap(),
        country: "US".parse().unwrap(),
        class: "pos".parse().unwrap(),
    }
}

pub(super) fn orders() -> ServiceName {
    "orders".parse().unwrap()
}

pub(super) fn view(table: Value) -> View {
    let table: Table = serde_json::from_value(table).unwrap();
    View {
        identity: Some(identity()),
        in_force: Some(Arc::new(InForce { table, sha256: [0; 32], key_id: "k1".into(), last_good: false })),
        ..View::default()
    }
}

/// Seconds of virtual time.
pub(super) type Seconds = f64;

/// What happens to one origin.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) name: OriginId,
    pub(super) round_trip: Seconds,
    /// When it does not answer.
    pub(super) dead: Vec<Range<Seconds>>,
}

/// A store, its line and its origins.
pub(super) struct World {
    pub(super) origins: Origins,
    pub(super) now: Seconds,
    pub(super) sites: Vec<Site>,
    /// When the store's own line is cut.
    pub(super) cuts: Vec<Range<Seconds>>,
    /// An order is sent so often.
    pub(super) traffic_every: Option<Seconds>,
    /// Whether the table names references.
    pub(super) references: bool,
    /// How long it takes until a request is given up that nobody answers.
    pub(super) failures_take: Seconds,
    /// Every change of the origin that is chosen: when, and to which.
    pub(super) moves: Vec<(Seconds, String)>,
    /// When each round began.
    pub(super) rounds: Vec<Seconds>,
    view: View,
    traffic_at: Seconds,
    /// Reports under way: when they arrive, of whom, and what they say.
    reports: Vec<(Seconds, OriginId, Outcome)>,
    round_ends: Option<(Seconds, Vec<(OriginId, Probed)>)>,
    chosen: String,
}

/// Time-out of probes and orders alike.
const TIME_OUT: Seconds = 4.0;

impl World {
    pub(super) fn new(sites: &[(&str, Seconds)], seed: u64) -> Self {
        let listed: Vec<_> = sites.iter().map(|(name, _)| (*name, "127.0.0.1", 1)).collect();
        let mut origins = Origins::new(HealthSettings::default(), seed);
        let sites: Vec<_> = sites
            .iter()
            .map(|(name, round_trip)| Site {
                name: name.parse().unwrap(),
                round_trip: *round_trip,
                dead: Vec::new(),
            })
            .collect();
        origins.watch(&sites.iter().map(|site| site.name.clone()).collect(), Mono::default());
        let chosen = listed[0].0.to_owned();
        Self {
            origins,
            now: 0.0,
            sites,
            cuts: Vec::new(),
            traffic_every: None,
            references: false,
            failures_take: TIME_OUT,
            moves: Vec::new(),
            rounds: Vec::new(),
            view: view(table(1, &listed)),
            traffic_at: 0.0,
            reports: Vec::new(),
            round_ends: None,
            chosen,
        }
    }

    pub(super) fn kill(&mut self, site: usize, when: Range<Seconds>) {
        self.sites[site].dead.push(when);
    }

    pub(super) fn chosen(&self) -> &str {
        &self.chosen
    }

    pub(super) fn line(&self) -> Line {
        self.origins.line()
    }

    /// Plays until a moment.
    pub(super) fn play(&mut self, until: Seconds) {
        while let Some(next) = self.next_event().filter(|next| *next < until) {
            self.now = self.now.max(next);
            self.step();
            self.watch_choice();
        }
        self.now = until;
    }

    fn next_event(&self) -> Option<Seconds> {
        let traffic = self.traffic_every.map(|_| self.traffic_at);
        let reports = self.reports.iter().map(|(at, ..)| *at).reduce(f64::min);
        let round = match &self.round_ends {
            Some((at, _)) => Some(*at),
            None => self.origins.next_round().map(|at| at.0.as_secs_f64()),
        };
        let returns = self.origins.next_return(Mono(Duration::from_secs_f64(self.now)));
        let returns = returns.map(|at| at.0.as_secs_f64() + 1e-6);
        [traffic, reports, round, returns].into_iter().flatten().reduce(f64::min)
    }

    fn step(&mut self) {
        let now = self.now;
        let mono = Mono(Duration::from_secs_f64(now));
        while let Some(at) = self.reports.iter().position(|(at, ..)| *at <= now) {
            let (_, origin, outcome) = self.reports.swap_remove(at);
            self.origins.traffic(&origin, &outcome, mono);
        }
        if let Some((_, results)) = self.round_ends.take_if(|(at, _)| *at <= now) {
            self.origins.end_round(&results, &self.reference(), mono);
        }
        if self.round_ends.is_none() {
            self.begin_round(mono);
        }
        if let Some(every) = self.traffic_every.filter(|_| self.traffic_at <= now) {
            self.traffic_at = now + every;
            let site = self.sites.iter().find(|site| site.name.as_str() == self.chosen).unwrap();
            let (outcome, took) = self.ask(site);
            self.reports.push((now + took, site.name.clone(), outcome));
        }
    }

    /// References are beyond the store's line, and never dead themselves.
    fn reference(&self) -> Reference {
        if !self.references {
            return Reference::NotAsked;
        }
        if self.cuts.iter().any(|cut| cut.contains(&self.now)) {
            Reference::Silent
        } else {
            Reference::Answered
        }
    }

    fn begin_round(&mut self, mono: Mono) {
        // Virtual time is a float: a microsecond early counts.
        let due = self.origins.begin_round(mono.plus(Duration::from_micros(1)));
        if due.is_empty() {
            return;
        }
        self.rounds.push(self.now);
        let asked = self.sites.iter().filter(|site| due.contains(&site.name));
        let answers: Vec<_> = asked.map(|site| (site.name.clone(), self.ask(site))).collect();
        let longest = answers.iter().map(|(_, (_, took))| *took).fold(0.0, f64::max);
        let results = answers.into_iter().map(|(name, (outcome, _))| (name, Probed::Sent(outcome))).collect();
        self.round_ends = Some((self.now + longest, results));
    }

    /// What a request meets that is sent now, and after how long.
    fn ask(&self, site: &Site) -> (Outcome, Seconds) {
        let sent = self.now;
        let answered = sent + site.round_trip;
        let touches = |when: &Range<Seconds>| when.start <= answered && sent < when.end;
        if self.cuts.iter().chain(&site.dead).any(touches) {
            (Outcome::Failed("time-out".into()), self.failures_take)
        } else {
            (Outcome::Answered, site.round_trip)
        }
    }

    fn watch_choice(&mut self) {
        let seen = self.origins.seen(Mono(Duration::from_secs_f64(self.now)));
        if seen == self.view.origins {
            return;
        }
        self.view.origins = seen;
        let now = Mono(Duration::from_secs_f64(self.now));
        self.origins.starving(self.view.starves(Scheme::Http, None), now);
        let orders = orders();
        let decision = self.view.choose(&Ask::service(&orders), Scheme::Http, None).unwrap();
        let chosen = decision.origin.to_string();
        if chosen != self.chosen {
            self.moves.push((self.now, chosen.clone()));
            self.chosen = chosen;
        }
    }
}
