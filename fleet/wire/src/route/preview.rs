//! What a table would change: which tills go elsewhere than under the table in force, counted by origin and country.
//!
//! Every till is asked with the chooser of the devices, under both tables and the same facts, so that a preview is what
//! devices will do. What only a device knows, such as which origin measures as nearest from there, is not in it: where the
//! nearest decides, the listed order stands in for it.

use super::choose::{Decision, Facts, NoRoute, Query, Rule, RuleResult, choose};
use super::table::Table;
use crate::ids::DeviceClass;
use crate::{Country, DeviceId, OriginId, ServiceName, StoreId};
use serde::Serialize;
use std::collections::BTreeMap;

/// One device of a store; a store without devices stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Till {
    /// The store.
    pub store: StoreId,
    /// The store's country.
    pub country: Country,
    /// The device; `None` for a store that has none.
    pub device: Option<DeviceId>,
    /// Its class.
    pub class: DeviceClass,
}

/// Which of the changes are listed; all are counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Page<'a> {
    /// How many to pass over.
    pub offset: usize,
    /// How many at most.
    pub limit: usize,
    /// Of this country only.
    pub country: Option<&'a Country>,
}

/// What becomes of a till.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It goes to another origin.
    Moved,
    /// It would no longer be served: its orders are held.
    Held,
    /// It was not served, and would be.
    Freed,
    /// It stays with its origin under another name, port or endpoint.
    Readdressed,
}

/// A till that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    /// The store.
    pub store: StoreId,
    /// The device; nothing for a store without devices.
    pub device: Option<DeviceId>,
    /// Its class.
    pub class: DeviceClass,
    /// The store's country.
    pub country: Country,
    /// What becomes of it.
    pub change: Change,
    /// The origin in force.
    pub from: Option<OriginId>,
    /// The origin to be.
    pub to: Option<OriginId>,
    /// The rule in force.
    pub rule_before: Option<Rule>,
    /// The rule to be.
    pub rule_after: Option<Rule>,
    /// Where it is addressed now: base URL and what is dialled.
    pub address_before: Option<String>,
    /// Where it would be addressed.
    pub address_after: Option<String>,
    /// Why, in the words of the chooser.
    pub reason: String,
}

/// Tills and stores of one origin, before and after. A store counts where most of its tills go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OriginTally {
    /// The origin; nothing for those that are held.
    pub origin: Option<OriginId>,
    /// Tills now.
    pub devices_before: u64,
    /// Tills to be.
    pub devices_after: u64,
    /// Stores now.
    pub stores_before: u64,
    /// Stores to be.
    pub stores_after: u64,
}

/// One country.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CountryTally {
    /// The country.
    pub country: Country,
    /// Its stores.
    pub stores: u64,
    /// Its tills.
    pub devices: u64,
    /// Tills that change.
    pub changed: u64,
    /// By origin.
    pub origins: Vec<OriginTally>,
}

/// What a table would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Version in force; nothing when there is none.
    pub version_before: Option<u64>,
    /// Version to be.
    pub version_after: u64,
    /// Stores looked at.
    pub stores: u64,
    /// Tills looked at.
    pub devices: u64,
    /// Tills that go to another origin.
    pub moved: u64,
    /// Tills that would no longer be served.
    pub held: u64,
    /// Tills that were not served and would be.
    pub freed: u64,
    /// Tills that stay with their origin at another address.
    pub readdressed: u64,
    /// Stores with a till that changes.
    pub changed_stores: u64,
    /// Stores whose tills would go to different origins.
    pub divided_stores: u64,
    /// By origin.
    pub origins: Vec<OriginTally>,
    /// By country.
    pub countries: Vec<CountryTally>,
    /// The page of changes that was asked for.
    pub moves: Vec<Move>,
    /// Changes of all pages.
    pub moves_total: u64,
}

type Outcome = Result<Decision, NoRoute>;
type Tallies = BTreeMap<Option<OriginId>, OriginTally>;

/// Asks both tables for every till. `tills` are sorted by store.
#[must_use]
pub fn preview(
    (before, after): (Option<&Table>, &Table),
    tills: &[Till],
    service: &ServiceName,
    facts: &Facts<'_>,
    page: Page<'_>,
) -> Preview {
    let mut count = Count::new(before.map(|table| table.version), after.version, page);
    for store in tills.chunk_by(|one, next| one.store == next.store) {
        let mut outcomes = Vec::with_capacity(store.len());
        for till in store {
            let Ok(stand_in) = till.store.as_str().parse() else { continue };
            let query = Query {
                service,
                class: &till.class,
                device: till.device.as_ref().unwrap_or(&stand_in),
                store: &till.store,
                country: &till.country,
                user: None,
            };
            let now = before.map(|table| choose(table, &query, facts));
            outcomes.push((till, now, choose(after, &query, facts)));
        }
        count.store(&outcomes);
    }
    count.finish()
}

struct Count<'a> {
    page: Page<'a>,
    sum: Preview,
    origins: Tallies,
    countries: BTreeMap<Country, (u64, u64, u64, Tallies)>,
}

impl<'a> Count<'a> {
    fn new(version_before: Option<u64>, version_after: u64, page: Page<'a>) -> Self {
        let sum = Preview {
            version_before,
            version_after,
            stores: 0,
            devices: 0,
            moved: 0,
            held: 0,
            freed: 0,
            readdressed: 0,
            changed_stores: 0,
            divided_stores: 0,
            origins: Vec::new(),
            countries: Vec::new(),
            moves: Vec::new(),
            moves_total: 0,
        };
        Self { page, sum, origins: BTreeMap::new(), countries: BTreeMap::new() }
    }

    fn store(&mut self, outcomes: &[(&Till, Option<Outcome>, Outcome)]) {
        let Some((first, _, _)) = outcomes.first() else { return };
        let mut changed = 0;
        for (till, now, then) in outcomes {
            changed += u64::from(self.till(till, now.as_ref(), then));
        }
        let most_before = most(outcomes.iter().map(|(_, now, _)| now.as_ref().and_then(origin)));
        let most_after = most(outcomes.iter().map(|(_, _, then)| origin(then)));
        let country = &mut self.countries.entry(first.country.clone()).or_default();
        country.0 += 1;
        country.1 += outcomes.len() as u64;
        country.2 += changed;
        for tallies in [&mut self.origins, &mut country.3] {
            tally(tallies, most_before.0.as_ref()).stores_before += 1;
            tally(tallies, most_after.0.as_ref()).stores_after += 1;
            for (_, now, then) in outcomes {
                tally(tallies, now.as_ref().and_then(origin)).devices_before += 1;
                tally(tallies, origin(then)).devices_after += 1;
            }
        }
        self.sum.stores += 1;
        self.sum.devices += outcomes.len() as u64;
        self.sum.changed_stores += u64::from(changed > 0);
        self.sum.divided_stores += u64::from(most_after.1);
    }

    /// Counts one till; whether it changes.
    fn till(&mut self, till: &Till, now: Option<&Outcome>, then: &Outcome) -> bool {
        let now = now.and_then(|outcome| outcome.as_ref().ok());
        let Some(change) = change(now, then.as_ref().ok()) else { return false };
        *match change {
            Change::Moved => &mut self.sum.moved,
            Change::Held => &mut self.sum.held,
            Change::Freed => &mut self.sum.freed,
            Change::Readdressed => &mut self.sum.readdressed,
        } += 1;
        if self.page.country.is_none_or(|country| *country == till.country) {
            let number = usize::try_from(self.sum.moves_total).unwrap_or(usize::MAX);
            self.sum.moves_total += 1;
            if number >= self.page.offset && self.sum.moves.len() < self.page.limit {
                self.sum.moves.push(told(till, change, now, then));
            }
        }
        true
    }

    fn finish(mut self) -> Preview {
        self.sum.origins = listed(self.origins);
        let countries = self.countries.into_iter();
        self.sum.countries = countries
            .map(|(country, (stores, devices, changed, tallies))| CountryTally {
                country,
                stores,
                devices,
                changed,
                origins: listed(tallies),
            })
            .collect();
        self.sum
    }
}

fn change(now: Option<&Decision>, then: Option<&Decision>) -> Option<Change> {
    match (now, then) {
        (None, None) => None,
        (Some(_), None) => Some(Change::Held),
        (None, Some(_)) => Some(Change::Freed),
        (Some(now), Some(then)) if now.origin != then.origin => Some(Change::Moved),
        (Some(now), Some(then)) if now.base_url != then.base_url || !same_place(now, then) => {
            Some(Change::Readdressed)
        }
        _ => None,
    }
}

fn same_place(now: &Decision, then: &Decision) -> bool {
    now.endpoint.host == then.endpoint.host && now.endpoint.port == then.endpoint.port
}

fn told(till: &Till, change: Change, now: Option<&Decision>, then: &Outcome) -> Move {
    let address = |decision: &Decision| {
        format!("{} ({}:{})", decision.base_url, decision.endpoint.host, decision.endpoint.port)
    };
    let decided = then.as_ref().ok();
    let reason = match then {
        Ok(decision) => why(decision),
        Err(none) => none.to_string(),
    };
    Move {
        store: till.store.clone(),
        device: till.device.clone(),
        class: till.class.clone(),
        country: till.country.clone(),
        change,
        from: now.map(|decision| decision.origin.clone()),
        to: decided.map(|decision| decision.origin.clone()),
        rule_before: now.map(|decision| decision.rule),
        rule_after: decided.map(|decision| decision.rule),
        address_before: now.map(address),
        address_after: decided.map(address),
        reason,
    }
}

/// What the chooser said of the rule that decided, of rules that were passed over, and of an origin that is down.
fn why(decision: &Decision) -> String {
    let left = decision.candidates.first().is_some_and(|first| first.origin != decision.origin);
    let told = decision.reason.iter().filter(|reason| match reason.result {
        RuleResult::Applied => reason.rule == decision.rule || (left && reason.rule == Rule::Health),
        RuleResult::PassedOver => true,
        RuleResult::NoMatch => false,
    });
    told.map(|reason| reason.detail.as_str()).collect::<Vec<_>>().join("; ")
}

fn origin(outcome: &Outcome) -> Option<&OriginId> {
    outcome.as_ref().ok().map(|decision| &decision.origin)
}

/// What most go to (the first in order among equals), and whether they go to different ones.
fn most<'a>(origins: impl Iterator<Item = Option<&'a OriginId>>) -> (Option<OriginId>, bool) {
    let mut counts: BTreeMap<Option<&OriginId>, usize> = BTreeMap::new();
    for origin in origins {
        *counts.entry(origin).or_default() += 1;
    }
    let divided = counts.len() > 1;
    // Of equals, `max_by_key` takes the last.
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count).and_then(|(origin, _)| origin);
    (most.cloned(), divided)
}

fn tally<'a>(tallies: &'a mut Tallies, origin: Option<&OriginId>) -> &'a mut OriginTally {
    let origin = origin.cloned();
    tallies.entry(origin.clone()).or_insert_with(|| OriginTally { origin, ..OriginTally::default() })
}

/// By name, those that are held last.
fn listed(tallies: Tallies) -> Vec<OriginTally> {
    let (held, mut served): (Vec<_>, Vec<_>) =
        tallies.into_values().partition(|tally| tally.origin.is_none());
    served.extend(held);
    served
}

#[cfg(test)]
mod tests;
