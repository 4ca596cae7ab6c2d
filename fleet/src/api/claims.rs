//! Claim codes: making them.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::activation::claims::{MakeError, Wanted, make};
use crate::app::App;
use crate::auth::{Operator, Role};
use crate::clock;
use crate::problem::Failure;

/// The longest life of a code.
const LONGEST: Duration = Duration::from_hours(24 * 30);

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(add))
}

/// What the code is for.
#[derive(Deserialize, ToSchema)]
struct NewClaim {
    store: String,
    device: String,
    /// `pos` unless said otherwise.
    #[serde(default = "pos")]
    class: String,
    /// How long the code lives; the configured time unless said otherwise, 30 days at most.
    expires_s: Option<u64>,
}

fn pos() -> String {
    "pos".to_owned()
}

/// A code, shown once.
#[derive(Serialize, ToSchema)]
struct ClaimView {
    claim: String,
    store: String,
    device: String,
    class: String,
    expires_at: String,
}

/// Makes a claim code for one device of a store.
#[utoipa::path(post, path = "/api/v1/claims", tag = "stores", request_body = NewClaim,
    responses((status = 201, body = ClaimView), (status = 400), (status = 401), (status = 403),
        (status = 404, description = "there is no such store")))]
async fn add(
    State(app): State<App>,
    operator: Operator,
    Json(new): Json<NewClaim>,
) -> Result<(StatusCode, Json<ClaimView>), Failure> {
    operator.needs(Role::Support)?;
    let lasting = new
        .expires_s
        .map_or(Duration::from_hours(1) * app.config.activation.claim_hours, Duration::from_secs);
    if lasting.is_zero() || lasting > LONGEST {
        return Err(Failure::malformed("a code lives for 1 second to 30 days"));
    }
    let malformed = |error: samovar_wire::ids::InvalidId| Failure::malformed(error.to_string());
    let wanted = Wanted {
        store: new.store.parse().map_err(malformed)?,
        device: new.device.parse().map_err(malformed)?,
        class: new.class.parse().map_err(malformed)?,
        lasting,
    };
    let fleet = &app.config.server.fleet;
    let made = make(&app.database, fleet, &wanted, &operator.name, clock::now()).await;
    let (code, expires_at) = made.map_err(|error| match &error {
        MakeError::NoStore(_) => Failure::not_found(error.to_string()),
        MakeError::Random(error) => Failure::unavailable(error),
        MakeError::Database(error) => Failure::unavailable(error),
    })?;
    let view = ClaimView {
        claim: code.to_string(),
        store: wanted.store.to_string(),
        device: wanted.device.to_string(),
        class: wanted.class.to_string(),
        expires_at: expires_at.to_string(),
    };
    Ok((StatusCode::CREATED, Json(view)))
}
