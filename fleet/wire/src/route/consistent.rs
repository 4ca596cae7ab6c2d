//! Whether a table makes sense in itself: every name it uses is in it, shares add up, residency is kept.

use super::bucket::BASIS_POINTS;
use super::flaw::{Flaw, Problem};
use super::table::{Fallback, FallbackMode, OriginEntry, Share, Table};
use crate::{Country, OriginId};

/// Flaws told at once: whoever has this many does not read on.
const MOST: usize = 100;

/// Everything that devices would refuse a table for, in the order of their checks; empty when it makes sense.
/// At most a hundred are told.
#[must_use]
pub fn flaws(table: &Table) -> Vec<Flaw> {
    let mut found = Found { table, flaws: Vec::new() };
    for (name, origin) in &table.origins {
        found.endpoints(name, origin);
    }
    found.countries();
    found.pins();
    found.splits();
    found.shadows();
    found.emergencies();
    if let Some(activation) = &table.activation {
        found.known("/activation/origins", "activation", &activation.origins);
    }
    found.fallback(&table.fallback);
    found.flaws
}

struct Found<'a> {
    table: &'a Table,
    flaws: Vec<Flaw>,
}

impl Found<'_> {
    fn add(&mut self, path: impl Into<String>, what: &str, problem: Problem) {
        if self.flaws.len() < MOST {
            self.flaws.push(Flaw::new(path, what, problem));
        }
    }

    fn endpoints(&mut self, name: &OriginId, origin: &OriginEntry) {
        let (path, what) = (format!("/origins/{name}/endpoints"), format!("origin {name}"));
        if origin.endpoints.is_empty() {
            return self.add(path, &what, Problem::NoEndpoint);
        }
        let given: Vec<u32> = origin.endpoints.iter().filter_map(|endpoint| endpoint.basis_points).collect();
        let complete = given.len() == origin.endpoints.len();
        let total: u64 = given.iter().map(|share| u64::from(*share)).sum();
        let even = given.is_empty();
        if !even && (!complete || total != u64::from(BASIS_POINTS)) {
            self.add(path, &what, Problem::EndpointShares(total));
        }
    }

    fn countries(&mut self) {
        for (country, routes) in &self.table.countries {
            let path = format!("/countries/{country}");
            self.known(&format!("{path}/residency"), &format!("residency of {country}"), &routes.residency);
            for (service, entry) in &routes.services {
                let (path, what) = (format!("{path}/services/{service}"), format!("{country}/{service}"));
                if !entry.domains.contains_key("default") {
                    self.add(format!("{path}/domains"), &what, Problem::NoDefaultDomain);
                }
                for (at, origin) in entry.residency.iter().flatten().enumerate() {
                    if !routes.residency.contains(origin) {
                        let place = format!("{path}/residency/{at}");
                        self.add(place, &what, Problem::Widens(origin.clone()));
                    }
                }
            }
        }
    }

    fn pins(&mut self) {
        for (number, pin) in self.table.pins.iter().enumerate() {
            self.origin(&format!("/pins/{number}/origin"), "a pin", &pin.origin);
            for (at, id) in pin.ids.iter().enumerate().filter(|(_, id)| !is_pin_id(id)) {
                self.add(format!("/pins/{number}/ids/{at}"), "a pin", Problem::PinId(id.clone()));
            }
        }
    }

    fn splits(&mut self) {
        for (number, split) in self.table.splits.iter().enumerate() {
            let (path, what) =
                (format!("/splits/{number}"), format!("the split of {}/{}", split.country, split.service));
            self.shares(&format!("{path}/shares"), &what, &split.shares);
            if self.country(&format!("{path}/country"), &what, &split.country) {
                for (at, share) in split.shares.iter().enumerate() {
                    let place = format!("{path}/shares/{at}/origin");
                    self.within(&place, &what, (&split.country, &split.service), &share.origin);
                }
            }
        }
    }

    fn shadows(&mut self) {
        for (number, shadow) in self.table.shadow.iter().enumerate() {
            let (path, what) =
                (format!("/shadow/{number}"), format!("the shadow of {}/{}", shadow.country, shadow.service));
            if shadow.basis_points > BASIS_POINTS {
                self.add(format!("{path}/basis_points"), &what, Problem::ShadowShare);
            }
            self.origin(&format!("{path}/origin"), &what, &shadow.origin);
            if self.country(&format!("{path}/country"), &what, &shadow.country) {
                let place = format!("{path}/origin");
                self.within(&place, &what, (&shadow.country, &shadow.service), &shadow.origin);
            }
        }
    }

    fn emergencies(&mut self) {
        for (number, emergency) in self.table.emergency.iter().enumerate() {
            let (path, what) =
                (format!("/emergency/{number}"), format!("the emergency of {}", emergency.country));
            self.origin(&format!("{path}/origin"), &what, &emergency.origin);
            if self.country(&format!("{path}/country"), &what, &emergency.country) {
                let place = format!("{path}/origin");
                for service in &emergency.services {
                    self.within(&place, &what, (&emergency.country, service), &emergency.origin);
                }
            }
        }
    }

    fn fallback(&mut self, fallback: &Fallback) {
        self.known("/fallback/candidates", "the fallback", &fallback.candidates);
        if fallback.mode == FallbackMode::Shares || !fallback.shares.is_empty() {
            self.shares("/fallback/shares", "the fallback", &fallback.shares);
        }
    }

    fn shares(&mut self, path: &str, what: &str, shares: &[Share]) {
        for (at, share) in shares.iter().enumerate() {
            self.origin(&format!("{path}/{at}/origin"), what, &share.origin);
        }
        let total: u64 = shares.iter().map(|share| u64::from(share.basis_points)).sum();
        if total != u64::from(BASIS_POINTS) {
            self.add(path, what, Problem::Shares(total));
        }
    }

    fn known(&mut self, path: &str, what: &str, origins: &[OriginId]) {
        for (at, origin) in origins.iter().enumerate() {
            self.origin(&format!("{path}/{at}"), what, origin);
        }
    }

    fn origin(&mut self, path: &str, what: &str, origin: &OriginId) {
        if !self.table.origins.contains_key(origin) {
            self.add(path, what, Problem::UnknownOrigin(origin.clone()));
        }
    }

    fn country(&mut self, path: &str, what: &str, country: &Country) -> bool {
        let there = self.table.countries.contains_key(country);
        if !there {
            self.add(path, what, Problem::UnknownCountry(country.clone()));
        }
        there
    }

    /// An origin that is not in the table at all is told elsewhere.
    fn within(&mut self, path: &str, what: &str, (country, service): (&Country, &str), origin: &OriginId) {
        let Some(routes) = self.table.countries.get(country) else { return };
        let allowed = self.table.residency(country, service).unwrap_or(&routes.residency);
        if self.table.origins.contains_key(origin) && !allowed.contains(origin) {
            self.add(path, what, Problem::OutsideResidency(origin.clone()));
        }
    }
}

fn is_pin_id(id: &str) -> bool {
    ["store:", "device:", "user:"].iter().any(|kind| id.len() > kind.len() && id.starts_with(kind))
}
