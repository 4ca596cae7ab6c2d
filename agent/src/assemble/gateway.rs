//! What the gateway sees of routing and identity.

use super::Frame;
use crate::gateway::{Gateway, GatewaySettings, Rules, Seen, Way, Ways};
use crate::http::Failure;
use crate::identity::Identity;
use crate::net::explain;
use crate::page::api::no_route;
use crate::routing::{Ask, Outcome, RouteError, Routing};
use http::StatusCode;
use samovar_wire::route::CacheMode;
use samovar_wire::status::Health;
use samovar_wire::{Country, ServiceName};
use std::sync::Arc;
use std::time::Duration;

/// Directory of kept answers in the data directory.
const DIRECTORY: &str = "gateway";

impl Frame {
    /// The gateway over what it kept before.
    pub(super) fn gateway(&self, identity: &Identity, routing: &Routing) -> Gateway {
        let (section, origin) = (&self.config.gateway, &self.config.origin);
        let ways = WaysOfGateway { identity: identity.clone(), routing: routing.clone() };
        let settings = GatewaySettings {
            directory: self.data.join(DIRECTORY),
            cache_max_bytes: section.cache_max_bytes,
            cache_max_answers: section.cache_max_answers,
            in_flight: section.max_requests,
            answer_timeout: Duration::from_millis(origin.request_timeout_ms),
            token: Some(origin.token.clone()).filter(|token| !token.is_empty()),
        };
        Gateway::open(Arc::new(ways), settings)
    }
}

struct WaysOfGateway {
    identity: Identity,
    routing: Routing,
}

impl Ways for WaysOfGateway {
    fn rules(&self, service: &ServiceName, udl: Option<&Country>) -> Result<Rules, Failure> {
        let who = self.identity.current().ok_or_else(|| no_route(&RouteError::NotActivated))?;
        let country = udl.unwrap_or(&who.country).clone();
        let table = self.routing.table();
        let routes = table.as_deref().and_then(|in_force| in_force.table.countries.get(&country));
        let service = routes.and_then(|routes| routes.services.get(service));
        // Without a table, country or service there is no way either, and that says why.
        let keep = service.is_some_and(|service| service.cache == CacheMode::LastGood);
        Ok(Rules { country, keep, device: who.device.clone(), store: who.store.clone() })
    }

    fn way(&self, service: &ServiceName, country: &Country) -> Result<Way, Failure> {
        let ask = Ask { service, country: Some(country), user: None, class: None };
        let decision = self.routing.choose(&ask).map_err(|error| no_route(&error))?;
        let client = self
            .routing
            .client(&decision)
            .map_err(|error| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "no-client", explain(&error)))?;
        let down = decision
            .candidates
            .iter()
            .any(|known| known.origin == decision.origin && known.health == Health::Down);
        let (host, base_url, domain) = (decision.endpoint.host, decision.base_url, decision.domain);
        Ok(Way { origin: decision.origin, host, client, base_url, domain, down })
    }

    fn report(&self, way: &Way, seen: Seen, took: Duration) {
        if seen == Seen::Answered {
            self.routing.figures().record_request(&way.origin, &way.host, took);
        }
        let outcome = match seen {
            Seen::Answered => Outcome::Answered,
            Seen::Failed(why) => Outcome::Failed(why),
            Seen::NotTheOrigin(what) => Outcome::NotTheOrigin(what),
        };
        self.routing.report(&way.origin, outcome);
    }
}
