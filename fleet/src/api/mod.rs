//! The operators' HTTP API under `/api/v1`: one file for each kind of thing.
//!
//! Answers are JSON objects that name what they list (`{"stores": […]}`), errors are problem documents. Every handler
//! takes an [`Operator`](crate::auth::Operator) and says which role it needs; only `login` and the description of the
//! API do without. Routes are registered together with their description, so that `openapi.json` is complete by
//! construction.

mod audit;
mod claims;
mod devices;
mod figures;
mod live;
mod login;
mod operators;
mod stores;

use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

/// All routes of the API.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(login::router())
        .merge(stores::router())
        .merge(claims::router())
        .merge(devices::router())
        .merge(live::router())
        .merge(figures::router())
        .merge(crate::hosts::handlers::router())
        .merge(crate::orders::query::router())
        .merge(crate::routes::handlers::router())
        .merge(operators::router())
        .merge(audit::router())
}

/// Rows of one page at most.
const PAGE: u64 = 1000;

/// Which page of a list that is ordered by its identifier.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(default)]
struct Page {
    /// The identifier of the last one seen; the page begins after it.
    after: Option<String>,
    /// How many at most, up to 1000.
    limit: Option<u64>,
}

impl Page {
    fn limit(&self) -> u64 {
        self.limit.unwrap_or(PAGE).clamp(1, PAGE)
    }
}
