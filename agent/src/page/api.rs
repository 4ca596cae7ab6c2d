//! The reading half of the local API: status, resolve, health and metrics.

use super::home;
use crate::clock::{Mono, mono, wall};
use crate::http::Failure;
use crate::orders::dispatcher::{Cause, LaneState};
use crate::orders::ledger::Storage;
use crate::orders::run::Lanes;
use crate::orders::shadow::Shadow;
use crate::routing::{RouteError, Routing};
use crate::status::metrics;
use crate::status::report::uptime_s;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use samovar_wire::conditions::Words;
use samovar_wire::route::{NoRoute, Reason, RuleResult};
use samovar_wire::status::DeviceState;
use serde::Deserialize;
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;

/// Gives the state of the device as it is now.
pub type Snapshot = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = DeviceState> + Send>> + Send + Sync>;

/// What the handlers read.
#[derive(Clone)]
pub struct Api {
    /// The state of the device.
    pub state: Snapshot,
    /// Whether the ledger takes orders.
    pub storage: watch::Receiver<Storage>,
    /// Routes.
    pub routing: Routing,
    /// When the agent started.
    pub started: Mono,
    /// The relay's numbers.
    pub relay: Arc<dyn Fn() -> metrics::Relay + Send + Sync>,
    /// How orders go to each origin.
    pub lanes: Lanes,
    /// Shadow traffic.
    pub shadow: Shadow,
}

/// The routes of this module.
pub fn routes(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/resolve", get(resolve))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(prometheus))
        .route("/v1/openapi.json", get(openapi))
        .route("/", get(home::page))
        .route("/page.css", get(home::style))
        .with_state(api)
}

/// Answers for whatever no route of any flow takes.
pub fn with_fallbacks(router: Router) -> Router {
    router
        .fallback(|| async {
            Failure::new(StatusCode::NOT_FOUND, "not-found", "there is nothing here: see /v1/openapi.json")
        })
        .method_not_allowed_fallback(|| async {
            let detail = "this path takes other methods: see /v1/openapi.json";
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
        })
}

async fn status(State(api): State<Api>) -> Json<Value> {
    let state = (api.state)().await;
    let conditions: Vec<Value> = state.conditions.iter().map(condition).collect();
    let relay = (api.relay)();
    let mut document = json!(state);
    if let Value::Object(fields) = &mut document {
        fields.insert("uptime_s".into(), uptime_s(api.started).into());
        fields.insert("conditions".into(), conditions.into());
        fields.insert("lanes".into(), lanes(&api.lanes).into());
        fields.insert(
            "relay".into(),
            json!({ "connected": relay.connected, "outbox_events": relay.outbox_events }),
        );
        fields.insert("shadow".into(), json!(api.shadow.report()));
    }
    Json(document)
}

/// Each origin's breaker, since when it is so, and when it is tried again.
fn lanes(lanes: &Lanes) -> Vec<Value> {
    let now = mono();
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let why = |cause| match cause {
        Cause::NoAnswer => "no-answer",
        Cause::Busy | Cause::Failing => "busy",
        Cause::Identity => "identity",
    };
    let lane = |(origin, state, since): (samovar_wire::OriginId, LaneState, Mono)| {
        let age = i64::try_from(millis(now.after(since))).unwrap_or(i64::MAX);
        let since = samovar_wire::Timestamp::from_millis(wall().millis().saturating_sub(age));
        match state {
            LaneState::Closed => json!({ "origin": origin, "state": "closed", "since": since }),
            LaneState::Open { until, cause } => json!({ "origin": origin, "state": "open", "since": since,
                "why": why(cause), "next_try_in_ms": millis(until.after(now)) }),
            LaneState::HalfOpen { cause } => {
                json!({ "origin": origin, "state": "half-open", "since": since, "why": why(cause) })
            }
        }
    };
    lanes.get().into_iter().map(lane).collect()
}

/// A condition with its words, so that whoever shows it needs no catalogue of its own.
fn condition(active: &samovar_wire::status::ActiveCondition) -> Value {
    let description = active.name.describe();
    let words = |words: Words| json!({ "en": words.en, "zh": words.zh });
    let mut document = json!(active);
    if let Value::Object(fields) = &mut document {
        fields.insert("staff".into(), words(description.staff));
        fields.insert("technician".into(), words(description.technician));
    }
    document
}

#[derive(Debug, Deserialize)]
struct ResolveQuery {
    service: String,
    udl: Option<String>,
    class: Option<String>,
}

async fn resolve(
    State(api): State<Api>,
    query: Result<Query<ResolveQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let bad = |detail: String| Failure::new(StatusCode::BAD_REQUEST, "bad-query", detail);
    let Query(query) = query.map_err(|error| bad(error.to_string()))?;
    let service = query.service.parse().map_err(|error| bad(format!("{error}")))?;
    let udl = query.udl.filter(|text| !text.is_empty()).map(|text| text.parse()).transpose();
    let udl = udl.map_err(|error| bad(format!("udl: {error}")))?;
    let class = query.class.filter(|text| !text.is_empty()).map(|text| text.parse()).transpose();
    let class = class.map_err(|error| bad(format!("class: {error}")))?;
    match api.routing.resolve(&service, udl.as_ref(), class.as_ref()).await {
        Ok(resolution) => Ok(Json(resolution).into_response()),
        Err(error) => Err(no_route(&error)),
    }
}

/// Why there is no way, as an answer.
pub(crate) fn no_route(error: &RouteError) -> Failure {
    let (status, slug) = match error {
        RouteError::NotActivated => (StatusCode::SERVICE_UNAVAILABLE, "not-activated"),
        RouteError::NoTable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no-route-table"),
        RouteError::NoRoute(_) => (StatusCode::NOT_FOUND, "no-route"),
    };
    let passed = reasons(error).iter().filter(|reason| reason.result == RuleResult::PassedOver);
    let passed: Vec<_> = passed.map(|reason| reason.detail.as_str()).collect();
    let why = if passed.is_empty() { String::new() } else { format!(": {}", passed.join("; ")) };
    Failure::new(status, slug, format!("{error}{why}"))
}

/// What was looked at in vain.
fn reasons(error: &RouteError) -> &[Reason] {
    match error {
        RouteError::NoRoute(NoRoute::Residency { reason, .. } | NoRoute::Bound { reason, .. }) => reason,
        _ => &[],
    }
}

async fn healthz() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

async fn readyz(State(api): State<Api>) -> Result<Json<Value>, Failure> {
    let storage = api.storage.borrow().clone();
    let trouble = storage.failing.or_else(|| storage.full.map(|why| format!("the ledger is full: {why}")));
    match trouble {
        None => Ok(Json(json!({ "status": "ready" }))),
        Some(why) => {
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "storage-unavailable", why).retry_after(1))
        }
    }
}

async fn prometheus(State(api): State<Api>) -> Response {
    let state = (api.state)().await;
    let mut values = metrics::values(&state, uptime_s(api.started), &(api.relay)());
    values.extend(api.shadow.metrics());
    ([(http::header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::exposition(&values))
        .into_response()
}

async fn openapi() -> Response {
    ([(http::header::CONTENT_TYPE, "application/json")], super::openapi::document()).into_response()
}
