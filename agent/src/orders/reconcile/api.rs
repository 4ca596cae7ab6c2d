//! Reconciliation on the local API: asks for a pass, and shows what the last ones came to.

use super::{Reconcile, run::Refused};
use crate::http::answer::read_json;
use crate::http::{Caller, Failure};
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest wait for a pass: shorter than the patience of the command line.
const PATIENCE: Duration = Duration::from_secs(25);

/// The routes of this flow.
pub fn routes(reconcile: Reconcile) -> Router {
    Router::new().route("/v1/orders:reconcile", get(show).post(demand)).with_state(reconcile)
}

async fn show(State(reconcile): State<Reconcile>) -> Json<Value> {
    Json(json!({ "origins": *reconcile.states() }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DemandRequest {
    full: bool,
}

/// 200 with the outcome; 202 when the pass goes on for longer than anybody likes to wait.
async fn demand(
    State(reconcile): State<Reconcile>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Response, Failure> {
    caller.require_token()?;
    let request: DemandRequest = read_json(body).await?;
    let done = reconcile.demand(request.full, PATIENCE).await.map_err(|refused| match refused {
        Refused::Busy => {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", refused.to_string()).retry_after(5)
        }
        Refused::NotActivated => {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not-activated", refused.to_string())
        }
    })?;
    let status = if done { StatusCode::OK } else { StatusCode::ACCEPTED };
    let outcome = json!({ "done": done, "origins": *reconcile.states() });
    Ok((status, Json(outcome)).into_response())
}
