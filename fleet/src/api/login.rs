//! Logging in and out.

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::extract::bearer;
use crate::auth::operators::{LoginError, log_in};
use crate::auth::session::{self, Kind};
use crate::auth::{Operator, role_name};
use crate::clock;
use crate::metrics::count;
use crate::problem::Failure;
use crate::server::Peer;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(login)).routes(routes!(logout)).routes(routes!(me))
}

/// Who logs in.
#[derive(Deserialize, ToSchema)]
struct Login {
    name: String,
    password: String,
}

/// A session.
#[derive(Serialize, ToSchema)]
struct LoggedIn {
    /// Show it as `Authorization: Bearer …`.
    token: String,
    /// When it ends.
    expires_at: String,
    /// What it may do.
    role: &'static str,
}

/// Who is asking.
#[derive(Serialize, ToSchema)]
struct Me {
    name: String,
    role: &'static str,
}

/// Opens a session for name and password.
#[utoipa::path(post, path = "/api/v1/login", tag = "operators", request_body = Login,
    responses((status = 200, body = LoggedIn), (status = 401, description = "wrong name or password"),
        (status = 429, description = "too many failures; Retry-After says how long")))]
async fn login(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    Json(login): Json<Login>,
) -> Result<Json<LoggedIn>, Failure> {
    let address = address(peer);
    let lasting = (Kind::Bearer, session_length(&app));
    let who = (login.name.as_str(), login.password);
    let (opened, role) = log_in(&app.database, &app.logins, who, &address, lasting, clock::now())
        .await
        .map_err(|error| login_failure(&app, &error))?;
    Ok(Json(LoggedIn {
        token: opened.token,
        expires_at: opened.expires_at.to_string(),
        role: role_name(role),
    }))
}

/// Ends the session whose token is shown.
#[utoipa::path(post, path = "/api/v1/logout", tag = "operators", responses((status = 204), (status = 401)))]
async fn logout(
    State(app): State<App>,
    _operator: Operator,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    if let Some(token) = bearer(&headers) {
        session::close(&app.database, token).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Name and role of the session shown.
#[utoipa::path(get, path = "/api/v1/me", tag = "operators", responses((status = 200, body = Me), (status = 401)))]
async fn me(operator: Operator) -> Json<Me> {
    Json(Me { name: operator.name, role: role_name(operator.role) })
}

fn address(peer: Option<Extension<Peer>>) -> String {
    peer.map_or_else(|| "unknown".to_owned(), |Extension(peer)| peer.address.ip().to_string())
}

fn session_length(app: &App) -> Duration {
    Duration::from_hours(1) * app.config.operators.session_hours
}

fn login_failure(app: &App, error: &LoginError) -> Failure {
    count(&app.metrics.logins_refused);
    match error {
        LoginError::Wrong => Failure::new(StatusCode::UNAUTHORIZED, "wrong-login", error.to_string()),
        LoginError::Wait { wait } => Failure::too_many(error.to_string(), wait.as_secs() + 1),
        LoginError::Password(error) => Failure::unavailable(error),
        LoginError::Session(error) => Failure::unavailable(error),
        LoginError::Database(error) => Failure::unavailable(error),
    }
}
