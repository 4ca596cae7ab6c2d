//! Host overrides on the way of a request. Pure: they replace what is dialled and nothing else; origin, identity and
//! residency stay those of the rule beneath, and health does not move a request away from an override.

use super::view::{Ask, View, query};
use crate::net::Overrides;
use samovar_wire::route::{self, Decision, Endpoint, Facts, Reason, Rule, RuleResult, Scheme};
use samovar_wire::status::Health;
use samovar_wire::{Country, ServiceName};
use std::net::IpAddr;

/// Follows the override that a decision comes under, if there is one, and says so.
pub(super) fn follow(overrides: &Overrides, mut decision: Decision) -> Decision {
    let Some((name, pointed)) = overrides.of(&decision) else { return decision };
    let detail =
        format!("{name} is at {} until {}, set by {}", pointed.address, pointed.until, pointed.owner);
    let address = pointed.address;
    decision.reason.push(Reason { rule: Rule::Override, result: RuleResult::Applied, detail });
    at(decision, address)
}

/// The same way to another address. Another endpoint is another pool of connections, so nothing goes on over those of
/// before.
pub(super) fn at(mut decision: Decision, address: IpAddr) -> Decision {
    let Endpoint { port, basis_points, .. } = decision.endpoint;
    decision.endpoint = Endpoint { host: address.to_string(), port, addresses: Vec::new(), basis_points };
    decision
}

impl View {
    /// Whether the way that a request would take, were everything healthy, is overridden: then it is taken.
    pub(super) fn is_pointed(&self, decision: &Decision) -> bool {
        let Some(in_force) = &self.in_force else { return false };
        if self.overrides.get(&decision.domain).is_some() {
            return true;
        }
        let first = decision.candidates.first().and_then(|first| in_force.table.origins.get(&first.origin));
        let device = self.identity.as_ref().map(|identity| &identity.device);
        let endpoint = decision
            .candidates
            .first()
            .zip(device)
            .and_then(|(first, device)| route::endpoint_of(&in_force.table, &first.origin, device));
        first.is_some() && endpoint.is_some_and(|endpoint| self.overrides.get(&endpoint.host).is_some())
    }

    /// The way of requests to a name of the table, as it is without overrides: the first service and origin, of the
    /// device's own country before others, that use the name as domain or dial it.
    pub(super) fn way_to(&self, name: &str, scheme: Scheme) -> Option<Decision> {
        let (in_force, identity) = (self.in_force.as_deref()?, self.identity.as_ref()?);
        let mut countries: Vec<&Country> = in_force.table.countries.keys().collect();
        countries.sort_by_key(|country| **country != identity.country);
        let facts = Facts { now: None, health: &|_| Health::Unknown, nearest: self.nearest.as_ref(), scheme };
        let is_it = |text: &str| text.eq_ignore_ascii_case(name);
        countries.into_iter().find_map(|country| {
            let routes = in_force.table.countries.get(country)?;
            routes.services.iter().find_map(|(service, entry): (&ServiceName, _)| {
                let class = entry.domains.iter().find(|(_, domain)| is_it(domain)).map(|(class, _)| class);
                let ask = Ask { service, country: Some(country), user: None, class };
                let query = query(identity, &ask);
                let chosen = route::choose(&in_force.table, &query, &facts).ok();
                if class.is_some() {
                    return chosen;
                }
                let origins = in_force.table.residency(country, service.as_str())?;
                let bound = |origin| route::bound(&in_force.table, &query, &facts, origin).ok();
                origins.iter().filter_map(bound).find(|way| is_it(&way.endpoint.host))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Pointed;
    use crate::routing::health::Seen;
    use crate::routing::world::{orders, table, view};
    use samovar_wire::Timestamp;

    fn pointing(name: &str) -> Overrides {
        let until = Timestamp::from_millis(1_800_000_000_000);
        let pointed = Pointed { address: "192.0.2.7".parse().unwrap(), owner: "lin".into(), until };
        Overrides::new([(name.to_owned(), pointed)].into())
    }

    fn choose(view: &View) -> Decision {
        let orders = orders();
        view.choose(&Ask::service(&orders), Scheme::Https, None).unwrap()
    }

    fn two() -> View {
        view(table(1, &[("a", "a.store.test", 443), ("b", "b.store.test", 8443)]))
    }

    #[test]
    fn an_override_replaces_what_is_dialled_and_nothing_else() {
        for name in ["us.store.test", "a.store.test"] {
            let plain = choose(&two());
            let view = View { overrides: pointing(name), ..two() };
            let pointed = choose(&view);
            assert_eq!((&pointed.origin, &pointed.base_url), (&plain.origin, &plain.base_url));
            assert_eq!((pointed.endpoint.host.as_str(), pointed.endpoint.port), ("192.0.2.7", 443));
            assert_eq!(pointed.endpoint.addresses, Vec::<IpAddr>::new());
            let told = pointed.reason.last().unwrap();
            assert_eq!(told.rule, Rule::Override);
            assert!(told.detail.contains("lin") && told.detail.contains("until 2027"), "{}", told.detail);
        }
        let elsewhere = View { overrides: pointing("jp.store.test"), ..two() };
        assert_eq!(choose(&elsewhere), choose(&two()));
    }

    #[test]
    fn health_does_not_move_a_request_away_from_an_override() {
        let seen = |health| Seen {
            routing: health,
            shown: health,
            last_error: None,
            impostor: None,
            returns_at: None,
            flapping: false,
        };
        let (down, up) = (seen(Health::Down), seen(Health::Up));
        let mut view = two();
        view.origins = [("a".parse().unwrap(), down), ("b".parse().unwrap(), up)].into();
        assert_eq!(choose(&view).origin.as_str(), "b");
        for name in ["us.store.test", "a.store.test"] {
            view.overrides = pointing(name);
            assert_eq!(
                (choose(&view).origin.as_str(), choose(&view).endpoint.host.as_str()),
                ("a", "192.0.2.7")
            );
        }
        // An override of the host that takes over says nothing about the origin that is down.
        view.overrides = pointing("b.store.test");
        assert_eq!((choose(&view).origin.as_str(), choose(&view).endpoint.host.as_str()), ("b", "192.0.2.7"));
    }

    #[test]
    fn the_way_to_a_name_is_found_by_domain_and_by_host() {
        let view = View { overrides: pointing("us.store.test"), ..two() };
        let way =
            |name| view.way_to(name, Scheme::Https).map(|way| (way.origin.to_string(), way.endpoint.host));
        assert_eq!(way("US.store.test"), Some(("a".into(), "a.store.test".into())));
        assert_eq!(way("b.store.test"), Some(("b".into(), "b.store.test".into())));
        assert_eq!(way("c.store.test"), None);
    }
}
