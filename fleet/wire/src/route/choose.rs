//! Which origin serves a request, and why.
//!
//! ```text
//! protected → emergency → user pin → device pin → store pin → split → fallback      first hit wins, every step is told
//!     each hit: residency and state ──(not allowed: passed over, next rule)──► health ──► origin ──► endpoint
//! ```
//!
//! What is bound to an origin already does not come here: see [`bound`].

use super::bucket::{BASIS_POINTS, bucket, pick_share};
use super::table::{By, Endpoint, FallbackMode, OriginState, Share, Table};
use crate::ids::DeviceClass;
use crate::status::Health;
use crate::{Country, DeviceId, OriginId, ServiceName, StoreId, Timestamp};
use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// Class of the asking device.
    pub class: &'a DeviceClass,
    /// The asking device.
    pub device: &'a DeviceId,
    /// Its store.
    pub store: &'a StoreId,
    /// Country of the request: the order's UDL, else the store's country.
    pub country: &'a Country,
    /// The person the request concerns.
    pub user: Option<&'a str>,
}

/// What is known besides the table.
pub struct Facts<'a> {
    /// The time, for rules that end; `None` while the clock is untrusted, then no rule has ended.
    pub now: Option<Timestamp>,
    /// Health of each origin as seen from here.
    pub health: &'a dyn Fn(&OriginId) -> Health,
    /// The origin that measures as nearest, once one does.
    pub nearest: Option<&'a OriginId>,
    /// How origins are addressed.
    pub scheme: Scheme,
}

/// How origins are addressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// TLS; the rule.
    #[default]
    Https,
    /// Plain, for origins on loopback addresses only.
    Http,
}

impl Scheme {
    const fn parts(self) -> (&'static str, u16) {
        match self {
            Self::Https => ("https", 443),
            Self::Http => ("http", 80),
        }
    }
}

/// The rules, in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The name may not be moved.
    Protected,
    /// The country was switched.
    Emergency,
    /// The person is pinned.
    UserPin,
    /// The device is pinned.
    DevicePin,
    /// The store is pinned.
    StorePin,
    /// A share of the country's IDs.
    Split,
    /// What holds when nothing else does.
    Fallback,
    /// No table verifies; the last one that did is used.
    LastGood,
    /// No table was ever there; activation alone is possible.
    CompiledIn,
    /// Which origins may hold the data.
    Residency,
    /// Which origins answer.
    Health,
    /// The order was bound to an origin before.
    Bound,
    /// Somebody pointed the name at another address, by hand and for a while.
    Override,
}

/// What became of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleResult {
    /// It decided.
    Applied,
    /// It says nothing about this request.
    NoMatch,
    /// It matched, but may not be followed.
    PassedOver,
}

/// One rule that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The rule.
    pub rule: Rule,
    /// What became of it.
    pub result: RuleResult,
    /// Why, in words.
    pub detail: String,
}

/// An origin that may serve the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The origin.
    pub origin: OriginId,
    /// Its health when the decision was made.
    pub health: Health,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Name for TLS and `Host`.
    pub domain: String,
    /// `scheme://domain[:port]`.
    pub base_url: String,
    /// The origin.
    pub origin: OriginId,
    /// What is dialled.
    pub endpoint: Endpoint,
    /// The rule that chose.
    pub rule: Rule,
    /// Every origin that could have served, best first; the first was the rule's own choice.
    pub candidates: Vec<Candidate>,
    /// One entry per rule looked at.
    pub reason: Vec<Reason>,
}

/// Why no origin may serve a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The country is not in the table.
    #[error("country {country} is not in the route table")]
    Country {
        /// The country asked for.
        country: Country,
    },
    /// The country does not have the service.
    #[error("country {country} has no service `{service}` in the route table")]
    Service {
        /// The country asked for.
        country: Country,
        /// The service asked for.
        service: ServiceName,
    },
    /// It is bound to an origin that cannot take it now.
    #[error("bound to origin {origin}, which {why}")]
    Bound {
        /// The origin it is bound to.
        origin: OriginId,
        /// What is the matter with it.
        why: &'static str,
        /// What was looked at.
        reason: Vec<Reason>,
    },
    /// No origin that takes work may hold the country's data.
    #[error("no origin that may hold data of {country} takes work for `{service}`")]
    Residency {
        /// The country asked for.
        country: Country,
        /// The service asked for.
        service: ServiceName,
        /// What was looked at.
        reason: Vec<Reason>,
    },
}

impl NoRoute {
    /// What was looked at, the last entry says why nothing was found.
    #[must_use]
    pub fn reason(&self) -> Vec<Reason> {
        let (Self::Bound { reason, .. } | Self::Residency { reason, .. }) = self else {
            let detail = self.to_string();
            return vec![Reason { rule: Rule::Residency, result: RuleResult::PassedOver, detail }];
        };
        reason.clone()
    }
}

/// Chooses the origin for something that is not bound to one.
///
/// # Errors
/// When residency leaves nothing.
pub fn choose(table: &Table, query: &Query<'_>, facts: &Facts<'_>) -> Result<Decision, NoRoute> {
    let mut look = Look::new(table, query, facts)?;
    match look.first_hit() {
        Some((rule, origins)) => Ok(look.decide(rule, origins)),
        None => {
            let detail = [&allowed(look.allowed), "; none of them takes new work"].concat();
            look.note(Rule::Residency, RuleResult::PassedOver, detail);
            Err(NoRoute::Residency {
                country: query.country.clone(),
                service: query.service.clone(),
                reason: look.reason,
            })
        }
    }
}

/// Addresses the origin that something is bound to. It stays with that origin whatever pins, splits and health say;
/// only residency and an origin that is off can stop it.
///
/// # Errors
/// When the origin is off, gone, or may no longer hold the country's data.
pub fn bound(
    table: &Table,
    query: &Query<'_>,
    facts: &Facts<'_>,
    origin: &OriginId,
) -> Result<Decision, NoRoute> {
    let mut look = Look::new(table, query, facts)?;
    let off = table.origins.get(origin).is_none_or(|entry| entry.state == OriginState::Off);
    if off || !look.allowed.contains(origin) {
        let why = if off { "is off or gone from the route table" } else { "is outside the residency" };
        look.note(Rule::Bound, RuleResult::PassedOver, format!("bound to {origin}, which {why}"));
        return Err(NoRoute::Bound { origin: origin.clone(), why, reason: look.reason });
    }
    look.note(Rule::Bound, RuleResult::Applied, format!("bound to {origin} until it has answered"));
    Ok(look.address(Rule::Bound, &[origin], 0))
}

/// The endpoint of an origin that a device uses. `None` when the origin is not in the table.
#[must_use]
pub fn endpoint_of<'a>(table: &'a Table, origin: &OriginId, device: &DeviceId) -> Option<&'a Endpoint> {
    let endpoints = &table.origins.get(origin)?.endpoints;
    if let [only] = endpoints.as_slice() {
        return Some(only);
    }
    let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX).max(1);
    // Several endpoints without shares divide the devices evenly; the last takes what the division leaves over.
    let even = BASIS_POINTS.div_ceil(count);
    let shares = endpoints.iter().map(|endpoint| endpoint.basis_points.unwrap_or(even));
    let index = pick_share(bucket(origin.as_str(), device.as_str()), shares).unwrap_or(0);
    endpoints.get(index).or_else(|| endpoints.first())
}

/// A rule with the origins it names that may be used, best first.
type Hit<'a> = (Rule, Vec<&'a OriginId>);

/// One look through the rules. Texts are put together by `concat`: this is done for every order, and the machinery of
/// `format!` would be half of its cost.
struct Look<'a> {
    table: &'a Table,
    query: &'a Query<'a>,
    facts: &'a Facts<'a>,
    domain: &'a str,
    allowed: &'a [OriginId],
    reason: Vec<Reason>,
}

impl<'a> Look<'a> {
    fn new(table: &'a Table, query: &'a Query<'a>, facts: &'a Facts<'a>) -> Result<Self, NoRoute> {
        let routes = table
            .countries
            .get(query.country)
            .ok_or_else(|| NoRoute::Country { country: query.country.clone() })?;
        let no_service =
            || NoRoute::Service { country: query.country.clone(), service: query.service.clone() };
        let service = routes.services.get(query.service).ok_or_else(no_service)?;
        let domain = service
            .domains
            .get(query.class)
            .or_else(|| service.domains.get("default"))
            .ok_or_else(no_service)?;
        let allowed = service.residency.as_deref().unwrap_or(&routes.residency);
        // Seven rules, residency and health.
        Ok(Self { table, query, facts, domain, allowed, reason: Vec::with_capacity(9) })
    }

    fn note(&mut self, rule: Rule, result: RuleResult, detail: String) {
        self.reason.push(Reason { rule, result, detail });
    }

    /// Goes through the rules until one names origins that may be used.
    fn first_hit(&mut self) -> Option<Hit<'a>> {
        let protected = self.table.protected.iter().any(|name| name.eq_ignore_ascii_case(self.domain));
        if protected {
            let detail = [self.domain, " is protected: nothing may move it"].concat();
            // The name of activation has origins of its own.
            let activation = self.table.activation.as_ref().filter(|activation| {
                activation.domain.eq_ignore_ascii_case(self.domain) && !activation.origins.is_empty()
            });
            let listed = activation.map_or(self.allowed, |activation| &activation.origins);
            if let Some(hit) = self.usable(Rule::Protected, listed, detail) {
                return Some(hit);
            }
        } else {
            let detail = [self.domain, " is not protected"].concat();
            self.note(Rule::Protected, RuleResult::NoMatch, detail);
            if let Some(hit) = self.emergency().or_else(|| self.pins()).or_else(|| self.split()) {
                return Some(hit);
            }
        }
        self.fallback()
    }

    fn emergency(&mut self) -> Option<Hit<'a>> {
        let table = self.table;
        let (country, service) = (self.query.country, self.query.service);
        let here = table.emergency.iter().filter(|emergency| emergency.country == *country);
        let mut missed = None;
        for emergency in here.filter(|emergency| names_service(&emergency.services, service)) {
            if let Some(until) = self.ended(emergency.until) {
                missed = Some(format!("the switch of {country} to {} ended at {until}", emergency.origin));
                continue;
            }
            let detail =
                format!("{country} is switched to {}{}", emergency.origin, because(&emergency.reason));
            let origin = std::slice::from_ref(&emergency.origin);
            match self.usable(Rule::Emergency, origin, detail) {
                Some(hit) => return Some(hit),
                None => missed = Some(String::new()),
            }
        }
        self.missed(Rule::Emergency, missed, || {
            ["no emergency for ", country.as_str(), "/", service.as_str()].concat()
        });
        None
    }

    fn pins(&mut self) -> Option<Hit<'a>> {
        let subjects = [
            (Rule::UserPin, "user", self.query.user),
            (Rule::DevicePin, "device", Some(self.query.device.as_str())),
            (Rule::StorePin, "store", Some(self.query.store.as_str())),
        ];
        subjects.into_iter().find_map(|(rule, kind, id)| self.pin(rule, kind, id))
    }

    fn pin(&mut self, rule: Rule, kind: &str, id: Option<&str>) -> Option<Hit<'a>> {
        let Some(id) = id else {
            self.note(rule, RuleResult::NoMatch, format!("the request names no {kind}"));
            return None;
        };
        let (table, id) = (self.table, [kind, ":", id].concat());
        let mut missed = None;
        for pin in table.pins.of(&id) {
            if !names_service(&pin.services, self.query.service) {
                missed =
                    Some(format!("{id} is pinned to {} for {} only", pin.origin, pin.services.join(", ")));
            } else if let Some(until) = self.ended(pin.until) {
                missed = Some(format!("the pin of {id} to {} ended at {until}", pin.origin));
            } else {
                let detail = [&id, " is pinned to ", pin.origin.as_str(), &because(&pin.reason)].concat();
                match self.usable(rule, std::slice::from_ref(&pin.origin), detail) {
                    Some(hit) => return Some(hit),
                    None => missed = Some(String::new()),
                }
            }
        }
        self.missed(rule, missed, || [&id, " is not pinned"].concat());
        None
    }

    /// Tells why a rule said nothing, unless what it said was told already (an empty text).
    fn missed(&mut self, rule: Rule, why: Option<String>, nothing: impl FnOnce() -> String) {
        let detail = why.unwrap_or_else(nothing);
        if !detail.is_empty() {
            self.note(rule, RuleResult::NoMatch, detail);
        }
    }

    fn split(&mut self) -> Option<Hit<'a>> {
        let table = self.table;
        let (country, service) = (self.query.country, self.query.service);
        let mut none = true;
        for split in table.splits.iter().filter(|split| split.country == *country) {
            if split.service == "*" || split.service == service.as_str() {
                none = false;
                if let Some(hit) = self.shares(Rule::Split, &split.salt, split.by, &split.shares) {
                    return Some(hit);
                }
            }
        }
        if none {
            let detail = ["no split for ", country.as_str(), "/", service.as_str()].concat();
            self.note(Rule::Split, RuleResult::NoMatch, detail);
        }
        None
    }

    fn fallback(&mut self) -> Option<Hit<'a>> {
        let table = self.table;
        let fallback = &table.fallback;
        let shared = fallback.mode == FallbackMode::Shares;
        if shared {
            let hit = self.shares(Rule::Fallback, &fallback.salt, fallback.by, &fallback.shares);
            if hit.is_some() {
                return hit;
            }
        }
        let listed = self.fallback_order();
        let detail = match self.facts.nearest {
            _ if shared => "the share may not be followed: first listed".to_owned(),
            Some(nearest) if listed.first() == Some(&nearest) => {
                [nearest.as_str(), " measures as nearest"].concat()
            }
            _ => "nothing measured yet, or nothing clearly nearer: listed order".to_owned(),
        };
        self.usable(Rule::Fallback, listed, detail)
    }

    /// The fallback's origins in the order of preference; without candidates those of the residency.
    fn fallback_order(&self) -> Vec<&'a OriginId> {
        let (table, fallback) = (self.table, &self.table.fallback);
        let mut order: Vec<&'a OriginId> = match (fallback.candidates.is_empty(), fallback.shares.is_empty())
        {
            (false, _) => table.fallback.candidates.iter().collect(),
            (true, false) => table.fallback.shares.iter().map(|share| &share.origin).collect(),
            (true, true) => self.allowed.iter().collect(),
        };
        if let Some(at) =
            self.facts.nearest.and_then(|nearest| order.iter().position(|origin| *origin == nearest))
        {
            order[..=at].rotate_right(1);
        }
        order
    }

    fn shares(&mut self, rule: Rule, salt: &str, by: By, shares: &'a [Share]) -> Option<Hit<'a>> {
        let (kind, id) = match by {
            By::Device => ("device", Some(self.query.device.as_str())),
            By::Store => ("store", Some(self.query.store.as_str())),
            By::User => ("user", self.query.user),
        };
        let Some(id) = id else {
            self.note(rule, RuleResult::NoMatch, format!("shares are by {kind}, and the request names none"));
            return None;
        };
        let at = bucket(salt, id);
        let share = &shares[pick_share(at, shares.iter().map(|share| share.basis_points))?];
        let detail = [kind, " ", id, " is in bucket ", &at.to_string(), ": ", share.origin.as_str()].concat();
        self.usable(rule, std::slice::from_ref(&share.origin), detail)
    }

    /// Keeps the origins that may be used; tells in `reason` what became of the rule.
    fn usable(
        &mut self,
        rule: Rule,
        origins: impl IntoIterator<Item = &'a OriginId>,
        mut detail: String,
    ) -> Option<Hit<'a>> {
        let (mut usable, mut refused) = (Vec::new(), Vec::new());
        for origin in origins {
            match self.refusal(origin) {
                None => usable.push(origin),
                Some(why) => refused.push(why),
            }
        }
        if !refused.is_empty() {
            detail = [&detail, " (", &refused.join("; "), ")"].concat();
        }
        let result = if usable.is_empty() { RuleResult::PassedOver } else { RuleResult::Applied };
        self.note(rule, result, detail);
        (!usable.is_empty()).then_some((rule, usable))
    }

    /// Why an origin gets nothing new from this request; `None` when it may.
    fn refusal(&self, origin: &OriginId) -> Option<String> {
        if !self.allowed.contains(origin) {
            return Some(format!("{origin} is outside the residency of {}", self.query.country));
        }
        match self.table.origins.get(origin).map(|entry| entry.state) {
            Some(OriginState::Active) => None,
            Some(OriginState::Draining) => Some(format!("{origin} is draining")),
            Some(OriginState::Off) | None => Some(format!("{origin} is off")),
        }
    }

    /// Adds the fallback's origins behind the rule's own, then takes the first that is not down.
    fn decide(mut self, rule: Rule, mut order: Vec<&'a OriginId>) -> Decision {
        for origin in self.fallback_order() {
            if !order.contains(&origin) && self.refusal(origin).is_none() {
                order.push(origin);
            }
        }
        let up = order.iter().position(|origin| (self.facts.health)(origin) != Health::Down);
        let first = order[0].as_str();
        let (result, detail) = match up {
            Some(0) => (RuleResult::Applied, [first, " is not known to be down"].concat()),
            Some(at) => {
                (RuleResult::Applied, [first, " is down: ", order[at].as_str(), " takes over"].concat())
            }
            None => (RuleResult::PassedOver, ["nothing is healthy: ", first, " is kept and probed"].concat()),
        };
        self.note(Rule::Residency, RuleResult::Applied, allowed(self.allowed));
        self.note(Rule::Health, result, detail);
        self.address(rule, &order, up.unwrap_or(0))
    }

    fn address(self, rule: Rule, order: &[&OriginId], at: usize) -> Decision {
        let origin = order[at].clone();
        // `usable` and `bound` let only origins of the table through, and the table was checked to have endpoints.
        let endpoint = endpoint_of(self.table, &origin, self.query.device).cloned().unwrap_or(Endpoint {
            host: self.domain.to_owned(),
            port: self.facts.scheme.parts().1,
            addresses: Vec::new(),
            basis_points: None,
        });
        let candidates = order
            .iter()
            .map(|origin| Candidate { origin: (*origin).clone(), health: (self.facts.health)(origin) })
            .collect();
        Decision {
            base_url: base_url(self.facts.scheme, self.domain, endpoint.port),
            domain: self.domain.to_owned(),
            origin,
            endpoint,
            rule,
            candidates,
            reason: self.reason,
        }
    }

    /// When a rule ended, if it has. Nothing ends while the clock is untrusted.
    fn ended(&self, until: Option<Timestamp>) -> Option<Timestamp> {
        until.zip(self.facts.now).filter(|(until, now)| now >= until).map(|(until, _)| until)
    }
}

fn allowed(origins: &[OriginId]) -> String {
    let mut text = String::from("allowed: ");
    for (number, origin) in origins.iter().enumerate() {
        text.push_str(if number == 0 { "" } else { ", " });
        text.push_str(origin.as_str());
    }
    text
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { [": ", reason].concat() }
}

fn names_service(services: &[String], service: &ServiceName) -> bool {
    services.iter().any(|name| name == "*" || name == service.as_str())
}

/// A domain that names its port keeps it; otherwise the endpoint's port is that of the URL.
fn base_url(scheme: Scheme, domain: &str, port: u16) -> String {
    let (name, default) = scheme.parts();
    let named = domain
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && !host.contains(':') && port.parse::<u16>().is_ok());
    match named || port == default {
        true => [name, "://", domain].concat(),
        false => [name, "://", domain, ":", &port.to_string()].concat(),
    }
}

#[cfg(test)]
mod tests;
