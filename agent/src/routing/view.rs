//! What routing knows at one moment, and the answers that follow from it. Pure; the loop publishes a new view when
//! anything changed, and everybody who asks reads the last one.

use super::health::Seen;
use super::pointed::follow;
use crate::net::Overrides;
use samovar_wire::ids::DeviceClass;
use samovar_wire::route::{self, Decision, Facts, NoRoute, Query, Reason, Rule, RuleResult, Scheme, Table};
use samovar_wire::status::{Health, Identity, Line};
use samovar_wire::{Country, OriginId, ServiceName, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What somebody wants to reach.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// Country of the request; `None` is the store's.
    pub country: Option<&'a Country>,
    /// The person it concerns.
    pub user: Option<&'a str>,
    /// Class whose domain is wanted; `None` is the device's own.
    pub class: Option<&'a DeviceClass>,
}

impl<'a> Ask<'a> {
    /// The device's own default for a service.
    #[must_use]
    pub const fn service(service: &'a ServiceName) -> Self {
        Self { service, country: None, user: None, class: None }
    }
}

/// Why there is no way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The device does not know who it is.
    #[error("the device is not activated: its store and country are unknown")]
    NotActivated,
    /// No route table verifies.
    #[error("no route table is in force: {why}")]
    NoTable {
        /// What was found instead.
        why: String,
    },
    /// The table has no way for this request: it is held.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
}

/// The table that routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The table.
    pub table: Table,
    /// SHA-256 of its signed bytes.
    pub sha256: [u8; 32],
    /// The key that signed it.
    pub key_id: String,
    /// The table that should be in force does not verify; this is the one before it.
    pub last_good: bool,
}

/// Everything that a choice depends on, but for the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) identity: Option<Identity>,
    pub(super) in_force: Option<Arc<InForce>>,
    /// Why there is no table, when there is none.
    pub(super) missing: String,
    pub(super) origins: BTreeMap<OriginId, Seen>,
    /// Since when each origin is shown as it is.
    pub(super) since: BTreeMap<OriginId, Timestamp>,
    pub(super) line: Line,
    /// What is known of a line that is down, in words; may be empty.
    pub(super) line_detail: String,
    pub(super) nearest: Option<OriginId>,
    /// Names that somebody points elsewhere.
    pub(super) overrides: Overrides,
}

impl View {
    /// The origin for something that is not bound to one. A fail-over goes to an origin that is proven to answer, and
    /// to no other: what is sent stays bound to where it went. An origin that has just come back serves only what
    /// nobody else can.
    pub(super) fn choose(
        &self,
        ask: &Ask<'_>,
        scheme: Scheme,
        now: Option<Timestamp>,
    ) -> Result<Decision, RouteError> {
        let (in_force, query) = self.query(ask)?;
        let settled =
            |origin: &OriginId| if self.returns(origin) { Health::Down } else { self.health(origin) };
        let facts = |health| Facts { now, health, nearest: self.nearest.as_ref(), scheme };
        let decision = route::choose(&in_force.table, &query, &facts(&settled))?;
        if self.is_pointed(&decision) {
            // Whoever points a name elsewhere must see what happens there.
            let whatever = |_: &OriginId| Health::Unknown;
            let decision = route::choose(&in_force.table, &query, &facts(&whatever))?;
            return Ok(in_force.told(follow(&self.overrides, decision)));
        }
        let own = decision.candidates.first().map(|first| first.origin.clone());
        let is_own = |origin: &OriginId| own.as_ref() == Some(origin);
        // Its own choice is used unless it is down; another one only if it is proven to answer.
        let well = match settled(&decision.origin) {
            Health::Up => true,
            Health::Unknown => is_own(&decision.origin),
            Health::Down => false,
        };
        let proven = |origin: &OriginId| match self.health(origin) {
            Health::Unknown if !is_own(origin) => Health::Down,
            known => known,
        };
        let decision = if well { decision } else { route::choose(&in_force.table, &query, &facts(&proven))? };
        Ok(in_force.told(follow(&self.overrides, self.told_of_return(decision))))
    }

    /// Whether some service of the store has no origin that answers.
    pub(super) fn starves(&self, scheme: Scheme, now: Option<Timestamp>) -> bool {
        let (Some(in_force), Some(identity)) = (self.in_force.as_deref(), self.identity.as_ref()) else {
            return false;
        };
        let routes = in_force.table.countries.get(&identity.country);
        routes.into_iter().flat_map(|routes| routes.services.keys()).any(|service| {
            let chosen = self.choose(&Ask::service(service), scheme, now);
            chosen.is_ok_and(|decision| self.health(&decision.origin) == Health::Down)
        })
    }

    /// Says of an origin that has come back why it is used already, or not yet.
    fn told_of_return(&self, mut decision: Decision) -> Decision {
        for candidate in &mut decision.candidates {
            candidate.health = self.health(&candidate.origin);
        }
        let Some(own) = decision.candidates.first().map(|first| first.origin.clone()) else {
            return decision;
        };
        if self.returns(&own)
            && let Some(health) = decision.reason.iter_mut().rfind(|reason| reason.rule == Rule::Health)
        {
            health.result = RuleResult::Applied;
            health.detail = if decision.origin == own {
                format!("{own} has just come back and is used: nobody else can serve")
            } else {
                let origin = &decision.origin;
                format!(
                    "{own} answers again and must go on doing so before it is returned to: {origin} serves"
                )
            };
        }
        decision
    }

    /// The way to the origin that something is bound to.
    pub(super) fn bound(
        &self,
        ask: &Ask<'_>,
        origin: &OriginId,
        scheme: Scheme,
        now: Option<Timestamp>,
    ) -> Result<Decision, RouteError> {
        let (in_force, query) = self.query(ask)?;
        let health = |origin: &OriginId| self.health(origin);
        let facts = Facts { now, health: &health, nearest: self.nearest.as_ref(), scheme };
        Ok(in_force.told(follow(&self.overrides, route::bound(&in_force.table, &query, &facts, origin)?)))
    }

    fn query<'a>(&'a self, ask: &Ask<'a>) -> Result<(&'a InForce, Query<'a>), RouteError> {
        let in_force =
            self.in_force.as_deref().ok_or_else(|| RouteError::NoTable { why: self.missing.clone() })?;
        let identity = self.identity.as_ref().ok_or(RouteError::NotActivated)?;
        Ok((in_force, query(identity, ask)))
    }

    /// Whether an origin has come back and must prove itself.
    fn returns(&self, origin: &OriginId) -> bool {
        self.origins.get(origin).is_some_and(|seen| seen.returns_at.is_some())
    }

    fn health(&self, origin: &OriginId) -> Health {
        self.origins.get(origin).map_or(Health::Unknown, |seen| seen.routing)
    }
}

impl InForce {
    /// A decision by the last good table says so.
    fn told(&self, mut decision: Decision) -> Decision {
        if self.last_good {
            let detail = format!(
                "the table that should be in force does not verify: version {} before it is used",
                self.table.version
            );
            decision.reason.push(Reason { rule: Rule::LastGood, result: RuleResult::Applied, detail });
        }
        decision
    }
}

pub(super) fn query<'a>(identity: &'a Identity, ask: &Ask<'a>) -> Query<'a> {
    Query {
        service: ask.service,
        class: ask.class.unwrap_or(&identity.class),
        device: &identity.device,
        store: &identity.store,
        country: ask.country.unwrap_or(&identity.country),
        user: ask.user,
    }
}

impl View {
    /// Dates each origin: as before while it is shown the same, else from `now`.
    pub(super) fn date(&mut self, before: &Self, now: Timestamp) {
        let shown = |view: &Self, origin: &OriginId| view.origins.get(origin).map(|seen| seen.shown);
        let since = |origin: &OriginId| {
            let same = shown(before, origin) == shown(self, origin);
            let known = before.since.get(origin).copied().filter(|_| same);
            (origin.clone(), known.unwrap_or(now))
        };
        self.since = self.origins.keys().map(since).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Mono;
    use crate::routing::world::{orders, table, view};

    fn seen(routing: Health) -> Seen {
        Seen { routing, shown: routing, ..Seen::default() }
    }

    fn chosen(healths: &[(&str, Health)]) -> String {
        let listed: Vec<_> = healths.iter().map(|(name, _)| (*name, "127.0.0.1", 1)).collect();
        let mut view = view(table(1, &listed));
        view.origins = healths.iter().map(|(name, health)| (name.parse().unwrap(), seen(*health))).collect();
        let orders = orders();
        view.choose(&Ask::service(&orders), Scheme::Http, None).unwrap().origin.to_string()
    }

    #[test]
    fn a_fail_over_passes_an_origin_that_is_not_proven_and_stays_when_none_is() {
        use Health::{Down, Unknown, Up};
        assert_eq!(chosen(&[("a", Unknown), ("b", Up)]), "a", "not known is not down");
        assert_eq!(chosen(&[("a", Down), ("b", Unknown), ("c", Up)]), "c");
        assert_eq!(chosen(&[("a", Down), ("b", Up), ("c", Up)]), "b");
        assert_eq!(chosen(&[("a", Down), ("b", Unknown), ("c", Down)]), "a");
        assert_eq!(chosen(&[("a", Down), ("b", Down)]), "a");
    }

    #[test]
    fn an_origin_that_has_just_come_back_serves_only_what_nobody_else_can() {
        let mut view = view(table(1, &[("a", "127.0.0.1", 1), ("b", "127.0.0.1", 1)]));
        let back = Seen { returns_at: Some(Mono::default()), ..seen(Health::Up) };
        let orders = orders();
        for (other, expected, words) in [
            (Health::Up, "b", "a answers again and must go on"),
            (Health::Down, "a", "nobody else can serve"),
            (Health::Unknown, "a", "nobody else can serve"),
        ] {
            view.origins =
                [("a", back.clone()), ("b", seen(other))].map(|(n, s)| (n.parse().unwrap(), s)).into();
            let decision = view.choose(&Ask::service(&orders), Scheme::Http, None).unwrap();
            assert_eq!(decision.origin.as_str(), expected, "{other:?}");
            assert!(
                decision.reason.iter().any(|reason| reason.detail.contains(words)),
                "{:?}",
                decision.reason
            );
            assert_eq!(decision.candidates[0].health, Health::Up);
        }
    }

    #[test]
    fn while_the_own_choice_is_dead_one_that_has_just_come_back_serves_too() {
        let mut view = view(table(1, &[("a", "127.0.0.1", 1), ("b", "127.0.0.1", 1)]));
        let dead = || seen(Health::Down);
        let back = Seen { returns_at: Some(Mono::default()), ..seen(Health::Up) };
        let named =
            |a: Seen, b: Seen| [("a", a), ("b", b)].map(|(name, seen)| (name.parse().unwrap(), seen)).into();
        let orders = orders();
        view.origins = named(dead(), back);
        assert_eq!(view.choose(&Ask::service(&orders), Scheme::Http, None).unwrap().origin.as_str(), "b");
        assert!(!view.starves(Scheme::Http, None));
        view.origins = named(dead(), dead());
        assert!(view.starves(Scheme::Http, None));
    }

    #[test]
    fn an_origin_that_answers_outside_the_residency_serves_nobody() {
        let mut document = table(1, &[("a", "127.0.0.1", 1), ("b", "127.0.0.1", 1), ("c", "127.0.0.1", 1)]);
        document["countries"]["US"]["residency"] = serde_json::json!(["a", "b"]);
        let mut view = view(document);
        let healths = [("a", Health::Down), ("b", Health::Down), ("c", Health::Up)];
        view.origins = healths.map(|(name, health)| (name.parse().unwrap(), seen(health))).into();
        let orders = orders();
        let ask = Ask::service(&orders);
        assert_eq!(view.choose(&ask, Scheme::Http, None).unwrap().origin.as_str(), "a");
        let outside = view.bound(&ask, &"c".parse().unwrap(), Scheme::Http, None);
        assert!(matches!(outside, Err(RouteError::NoRoute(NoRoute::Bound { .. }))));
    }

    #[test]
    fn the_nearest_is_the_fallbacks_first() {
        let mut view = view(table(1, &[("a", "127.0.0.1", 1), ("b", "127.0.0.1", 1)]));
        view.nearest = Some("b".parse().unwrap());
        let orders = orders();
        assert_eq!(view.choose(&Ask::service(&orders), Scheme::Http, None).unwrap().origin.as_str(), "b");
    }
}
