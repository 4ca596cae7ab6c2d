//! What the flow of orders sees of routing.

use crate::net::explain;
use crate::net::figures::Stopwatch;
use crate::orders::dispatcher::{Route, RouteQuery};
use crate::orders::origin::Way;
use crate::orders::outcome::BatchOutcome;
use crate::orders::recovery::Probe;
use crate::orders::run::Routes;
use crate::orders::shadow;
use crate::routing::{Ask, Outcome, RouteError, Routing};
use futures_util::future::{BoxFuture, FutureExt, ready};
use samovar_wire::status::Health;
use samovar_wire::{OriginId, ServiceName};
use std::sync::Arc;
use tokio::sync::watch;

/// The service that orders go to.
pub(super) const ORDERS: &str = "orders";

/// Routing, as the flow of orders asks it.
pub(super) struct RoutesOfOrders {
    routing: Routing,
    service: Option<ServiceName>,
}

impl RoutesOfOrders {
    pub(super) fn new(routing: Routing) -> Self {
        Self { routing, service: ORDERS.parse().ok() }
    }

    fn decide(&self, query: RouteQuery<'_>) -> Result<samovar_wire::route::Decision, RouteError> {
        let service = self.service.as_ref().ok_or(RouteError::NotActivated)?;
        let ask = Ask { service, country: Some(query.country), user: query.user, class: None };
        match query.bound {
            Some(origin) => self.routing.bound(&ask, origin),
            None => self.routing.choose(&ask),
        }
    }
}

/// The shadow rules of the table in force, for orders.
pub(super) fn shadow_rules(routing: &Routing) -> shadow::Rules {
    let routing = routing.clone();
    Arc::new(move || {
        routing.table().map(|in_force| shadow::rules(&in_force.table, ORDERS)).unwrap_or_default()
    })
}

impl Routes for RoutesOfOrders {
    fn route(&self, query: RouteQuery<'_>) -> Route {
        match self.decide(query) {
            Ok(decision) => Route::To(decision.origin),
            Err(RouteError::NoRoute(why)) => Route::Hold(why.to_string()),
            Err(RouteError::NotActivated | RouteError::NoTable { .. }) => Route::Wait,
        }
    }

    fn way(&self, query: RouteQuery<'_>) -> Result<Way, String> {
        let decision = self.decide(query).map_err(|error| error.to_string())?;
        let client = self.routing.client(&decision).map_err(|error| explain(&error))?;
        let figures = self.routing.figures().clone();
        let stopwatch = Some(Stopwatch::new(figures, decision.origin.clone(), decision.endpoint.host));
        Ok(Way { origin: decision.origin, client, base_url: decision.base_url, stopwatch })
    }

    fn report(&self, origin: &OriginId, outcome: &BatchOutcome) {
        let outcome = match outcome {
            // It answered the others, so it is there.
            BatchOutcome::Partly { others, .. } if matches!(**others, BatchOutcome::Stalled(_)) => {
                Outcome::Answered
            }
            BatchOutcome::Partly { others, .. } => return self.report(origin, others),
            BatchOutcome::Unreachable(why) | BatchOutcome::Stalled(why) => Outcome::Failed(why.clone()),
            // Too many requests is an answer; a server error is a failure.
            BatchOutcome::Busy { detail, .. } if detail.starts_with("HTTP 5") => {
                Outcome::Failed(detail.clone())
            }
            BatchOutcome::NotTheOrigin(what) => Outcome::NotTheOrigin(what.clone()),
            _ => Outcome::Answered,
        };
        self.routing.report(origin, outcome);
    }

    fn suspect(&self) {
        self.routing.suspect();
    }

    fn look_for(&self, query: RouteQuery<'_>, probe: Probe) -> BoxFuture<'static, bool> {
        let Ok(decision) = self.decide(query) else { return ready(false).boxed() };
        let routing = self.routing.clone();
        async move {
            match probe {
                Probe::Knock => routing.knock(&decision).await,
                Probe::Greet => routing.greet(decision).await,
            }
        }
        .boxed()
    }

    fn is_up(&self, origin: &OriginId) -> Option<bool> {
        let origins = self.routing.snapshot().origins;
        match origins.iter().find(|known| known.origin == *origin)?.health {
            Health::Up => Some(true),
            Health::Down => Some(false),
            Health::Unknown => None,
        }
    }

    fn table_version(&self) -> Option<u64> {
        self.routing.snapshot().route_table.map(|table| table.version)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.routing.changed()
    }
}
