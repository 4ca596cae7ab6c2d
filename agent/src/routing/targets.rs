//! How each origin of a table is probed: by the way that the device's own requests would take to it. Pure.

use super::view::{Ask, query};
use samovar_wire::route::{self, Decision, Facts, Scheme, Table};
use samovar_wire::status::{Health, Identity};
use samovar_wire::{Country, OriginId, ServiceName};
use std::collections::BTreeMap;

/// Origins that are probed at most. More than a device ever needs; a table may list a thousand.
const TARGETS_MAX: usize = 16;

/// The way to each origin, by the first country and service that may use it: the store's own country before others,
/// `orders` before others. An origin that is off, or that nobody may use, is not probed.
pub(super) fn targets(table: &Table, identity: &Identity, scheme: Scheme) -> BTreeMap<OriginId, Decision> {
    let mut targets = BTreeMap::new();
    let own_first = |country: &&Country| **country != identity.country;
    let mut countries: Vec<&Country> = table.countries.keys().collect();
    countries.sort_by_key(own_first);
    for country in countries {
        for service in services(table, country) {
            let Some(residency) = table.residency(country, service.as_str()) else { continue };
            for origin in residency {
                if targets.len() >= TARGETS_MAX || targets.contains_key(origin) {
                    continue;
                }
                if let Some(way) = way(table, identity, scheme, (country, service), origin) {
                    targets.insert(origin.clone(), way);
                }
            }
        }
    }
    targets
}

fn services<'a>(table: &'a Table, country: &Country) -> Vec<&'a ServiceName> {
    let mut services: Vec<&ServiceName> =
        table.countries.get(country).map(|routes| routes.services.keys().collect()).unwrap_or_default();
    services.sort_by_key(|service| service.as_str() != "orders");
    services
}

fn way(
    table: &Table,
    identity: &Identity,
    scheme: Scheme,
    (country, service): (&Country, &ServiceName),
    origin: &OriginId,
) -> Option<Decision> {
    let ask = Ask { service, country: Some(country), user: None, class: None };
    let facts = Facts { now: None, health: &|_| Health::Unknown, nearest: None, scheme };
    route::bound(table, &query(identity, &ask), &facts, origin).ok()
}

/// The origins among which the nearest is sought, in listed order.
pub(super) fn candidates(table: &Table, identity: &Identity) -> Vec<OriginId> {
    let fallback = &table.fallback.candidates;
    if !fallback.is_empty() {
        return fallback.clone();
    }
    table.countries.get(&identity.country).map(|routes| routes.residency.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::world::{identity, table as document};
    use serde_json::{Value, json};

    fn read(document: Value) -> Table {
        serde_json::from_value(document).unwrap()
    }

    fn domains(table: &Table) -> Vec<(String, String)> {
        let found = targets(table, &identity(), Scheme::Https);
        found.into_iter().map(|(origin, way)| (origin.to_string(), way.domain)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(origin, domain)| ((*origin).to_owned(), (*domain).to_owned())).collect()
    }

    #[test]
    fn an_origin_is_probed_by_the_way_of_the_own_country_and_of_orders_before_others() {
        let all = [
            ("apac", "a.test", 443),
            ("spare", "s.test", 443),
            ("unused", "u.test", 443),
            ("us-west", "w.test", 443),
        ];
        let mut document = document(1, &all);
        let service = |domain: &str| json!({ "domains": { "default": domain } });
        document["countries"] = json!({
            "AU": { "residency": ["apac", "us-west", "spare"], "services": { "orders": service("au.test") } },
            "US": { "residency": ["us-west", "apac"],
                    "services": { "menu": service("menu.test"), "orders": service("us.test") } }
        });
        document["origins"]["spare"]["state"] = "draining".into();
        let table = read(document.clone());
        assert_eq!(
            domains(&table),
            pairs(&[("apac", "us.test"), ("spare", "au.test"), ("us-west", "us.test")])
        );
        document["origins"]["apac"]["state"] = "off".into();
        assert_eq!(domains(&read(document)), pairs(&[("spare", "au.test"), ("us-west", "us.test")]));
    }

    #[test]
    fn only_so_many_origins_are_probed_and_the_preferred_ones_first() {
        let names: Vec<String> = (0..40).rev().map(|n| format!("origin-{n:02}")).collect();
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), "a.test", 443)).collect();
        let found = targets(&read(document(1, &all)), &identity(), Scheme::Https);
        assert_eq!(found.len(), TARGETS_MAX);
        assert!(found.contains_key("origin-39") && !found.contains_key("origin-00"));
    }
}
