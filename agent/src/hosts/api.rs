//! Host overrides on the local API: who reads sees everything, who changes needs the token of the device.

use super::handle::{Hosts, SetError};
use super::wish::{Refused, Source, TTL_DEFAULT, Wish};
use crate::http::answer::read_json;
use crate::http::{Caller, Failure};
use crate::net::explain;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::routing::{get, put};
use axum::{Extension, Json, Router};
use http::StatusCode;
use samovar_wire::hosts::address;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Whom the log names when a request does not say who sends it.
const SOMEBODY: &str = "local API";

/// The routes of this flow.
pub fn routes(hosts: Hosts) -> Router {
    Router::new()
        .route("/v1/hosts", get(list))
        .route("/v1/hosts/{name}", put(set).delete(clear))
        .with_state(hosts)
}

async fn list(State(hosts): State<Hosts>) -> Json<Value> {
    let (overrides, file) = hosts.list();
    Json(json!({ "overrides": overrides, "hosts_file": file }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SetRequest {
    address: String,
    reason: String,
    ticket: Option<String>,
    ttl_s: Option<u64>,
    owner: Option<String>,
    force: bool,
}

async fn set(
    State(hosts): State<Hosts>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Value>, Failure> {
    caller.require_token()?;
    let request: SetRequest = read_json(body).await?;
    let wish = Wish {
        name,
        address: address(&request.address).map_err(|refused| failure(&refused.into()))?,
        owner: request.owner.unwrap_or_else(|| SOMEBODY.into()),
        reason: request.reason,
        ticket: request.ticket,
        ttl: request.ttl_s.map_or(TTL_DEFAULT, Duration::from_secs),
        force: request.force,
        source: Source::Local,
    };
    let shown = hosts.set(wish).await.map_err(|error| failure(&error))?;
    Ok(Json(json!(shown)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClearRequest {
    owner: Option<String>,
}

async fn clear(
    State(hosts): State<Hosts>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Value>, Failure> {
    caller.require_token()?;
    let request: ClearRequest = read_json(body).await?;
    let by = request.owner.unwrap_or_else(|| SOMEBODY.into());
    let cleared = hosts.clear(&name, &by).await.map_err(|error| failure(&error))?;
    Ok(Json(json!({ "cleared": cleared })))
}

fn failure(error: &SetError) -> Failure {
    let (status, slug) = match error {
        SetError::Refused(Refused::Invalid { .. }) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid-override"),
        SetError::Refused(Refused::NoTable) => (StatusCode::SERVICE_UNAVAILABLE, "no-route-table"),
        SetError::Refused(Refused::Unknown(_)) => (StatusCode::NOT_FOUND, "unknown-name"),
        SetError::Refused(Refused::Protected(_)) => (StatusCode::FORBIDDEN, "protected-name"),
        SetError::Refused(Refused::NotOverridable { .. }) => (StatusCode::FORBIDDEN, "not-overridable"),
        SetError::Refused(Refused::Disabled) => (StatusCode::FORBIDDEN, "overrides-disabled"),
        SetError::Refused(Refused::TooMany) => (StatusCode::CONFLICT, "too-many-overrides"),
        SetError::Preflight { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "preflight-failed"),
        SetError::Conflict(_) => (StatusCode::CONFLICT, "conflict-foreign-entry"),
        SetError::Absent(_) => (StatusCode::NOT_FOUND, "no-override"),
        SetError::Storage(_) => (StatusCode::SERVICE_UNAVAILABLE, "storage-unavailable"),
        SetError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
    };
    let failure = Failure::new(status, slug, explain(error));
    if matches!(error, SetError::Busy) { failure.retry_after(2) } else { failure }
}
