//! The gateway's route on the local API.

use super::fetch::{self, Asked, Fetched};
use super::policy::{self, Key};
use super::shelf::Kept;
use super::{Gateway, Refresh, Rules, Seen};
use crate::clock::wall;
use crate::http::Failure;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use samovar_wire::{Country, ServiceName};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How long an answer that is kept keeps a till waiting for a newer one.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same while the origin is known not to answer: it may just have come back.
const LITTLE_PATIENCE: Duration = Duration::from_millis(500);

/// The gateway's route.
pub fn routes(gateway: Gateway) -> Router {
    Router::new().route("/v1/gateway/{service}/{*path}", any(forward)).with_state(gateway)
}

/// What a till wants.
struct Wanted {
    service: ServiceName,
    udl: Option<Country>,
    /// Path and query, as the origin is asked for them.
    target: String,
    path: String,
}

async fn forward(State(gateway): State<Gateway>, request: Request) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let wanted = wanted(&parts.uri, &parts.headers)?;
    if [Method::CONNECT, Method::TRACE].contains(&parts.method) {
        let detail = "the gateway forwards requests, not connections";
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail));
    }
    if !parts.method.is_safe() && policy::is_the_ledgers(&wanted.path) {
        let detail = "orders go to POST /v1/orders: the agent keeps them and sends them once";
        return Err(Failure::new(StatusCode::FORBIDDEN, "not-through-the-gateway", detail));
    }
    let rules = gateway.0.ways.rules(&wanted.service, wanted.udl.as_ref())?;
    let place = Arc::clone(&gateway.0.places).try_acquire_owned().ok();
    let keep = rules.keep && parts.method == Method::GET && !parts.headers.contains_key(header::RANGE);
    let headers = policy::to_origin(&parts.headers, keep);
    let asked = Asked { method: parts.method, target: wanted.target.clone(), headers, body };
    if keep {
        let key = key(&wanted, &rules, &parts.headers);
        return kept(&gateway, &wanted, rules, &key, (asked, place), &parts.headers).await;
    }
    let place = place.ok_or_else(busy)?;
    let way = gateway.0.ways.way(&wanted.service, &rules.country)?;
    let head = fetch::send(&gateway, &way, &rules, asked).await?;
    match head.seen {
        Seen::NotTheOrigin(why) if !head.response.status().is_redirection() => {
            Err(fetch::not_the_origin(&way, &why))
        }
        _ => Ok(fetch::hand_on(head.response, place)),
    }
}

fn busy() -> Failure {
    let detail = "too many requests are under way through the gateway";
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(1)
}

fn wanted(uri: &http::Uri, headers: &HeaderMap) -> Result<Wanted, Failure> {
    let bad = |detail: String| Failure::new(StatusCode::BAD_REQUEST, "bad-request", detail);
    let rest = uri.path().strip_prefix("/v1/gateway/").and_then(|rest| rest.split_once('/'));
    let (service, path) = rest.ok_or_else(|| bad("the path is /v1/gateway/{service}/{path}".into()))?;
    let service = service.parse().map_err(|error| bad(format!("{error}")))?;
    // Read as the client will read it, so that what is looked at here is what is asked for.
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let url = reqwest::Url::parse(&format!("http://origin.invalid/{path}{query}"));
    let url = url.map_err(|error| bad(format!("the path cannot be read: {error}")))?;
    let in_query = url.query_pairs().find(|(name, _)| name == "udl").map(|(_, value)| value.into_owned());
    let in_header = headers.get("udl").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let udl = in_query.or(in_header).filter(|udl| !udl.is_empty()).map(|udl| udl.trim().parse()).transpose();
    let udl = udl.map_err(|error| bad(format!("udl: {error}")))?;
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    Ok(Wanted { service, udl, target: format!("{}{query}", url.path()), path: url.path().to_owned() })
}

fn key(wanted: &Wanted, rules: &Rules, headers: &HeaderMap) -> Key {
    let text = |name: header::HeaderName| {
        let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        values.join(",")
    };
    Key {
        service: wanted.service.as_str().to_owned(),
        udl: rules.country.as_str().to_owned(),
        target: wanted.target.clone(),
        accept: text(header::ACCEPT),
        language: text(header::ACCEPT_LANGUAGE),
    }
}

/// A `GET` whose answers are kept: see the states in [`super`].
async fn kept(
    gateway: &Gateway,
    wanted: &Wanted,
    rules: Rules,
    key: &Key,
    (asked, place): (Asked, Option<OwnedSemaphorePermit>),
    till: &HeaderMap,
) -> Result<Response, Failure> {
    let kept = gateway.find(key).await;
    let or_stale = |failure: Failure| kept.as_deref().map(|kept| stale(kept, till)).ok_or(failure);
    // While an older request still waits for the origin, another one would only wait beside it.
    let waited = gateway.refreshing_for(key).is_some_and(|since| since >= PATIENCE);
    let Some(place) = place.filter(|_| !(waited && kept.is_some())) else { return or_stale(busy()) };
    let way = match gateway.0.ways.way(&wanted.service, &rules.country) {
        Ok(way) => way,
        Err(failure) => return or_stale(failure),
    };
    let patience = match (&kept, way.down) {
        (None, _) => Duration::MAX,
        (Some(_), true) => LITTLE_PATIENCE,
        (Some(_), false) => PATIENCE,
    };
    let (tell, told) = oneshot::channel();
    let (of_task, known, key, noted) =
        (gateway.clone(), kept.clone(), key.clone(), gateway.begin_refresh(key));
    tokio::spawn(async move {
        let _noted: Option<Refresh> = noted;
        let fetched = fetch::refresh(&of_task, (&way, &rules), &key, asked, (known, place)).await;
        // The till may have been served the kept answer meanwhile.
        drop(tell.send(fetched));
    });
    match tokio::time::timeout(patience, told).await {
        Ok(Ok(Fetched::Whole(kept))) => Ok(fresh(&kept, till)),
        Ok(Ok(Fetched::Live(live))) => Ok(live.into_response()),
        Ok(Ok(Fetched::Unreachable(failure, said))) => match (or_stale(failure), said) {
            (Err(_), Some(live)) => Ok(live.into_response()),
            (answer, _) => answer,
        },
        Ok(Err(_)) | Err(_) => {
            let detail = "the request did not end as it should";
            or_stale(Failure::new(StatusCode::BAD_GATEWAY, "origin-unreachable", detail))
        }
    }
}

/// A kept answer that the origin gave or confirmed just now.
fn fresh(kept: &Kept, till: &HeaderMap) -> Response {
    let known = policy::is_known(till, kept.etag());
    let mut response = Response::new(if known { Body::empty() } else { Body::from(kept.body.clone()) });
    *response.headers_mut() = kept.headers.clone();
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().remove(header::CONTENT_TYPE);
    }
    response
}

/// A kept answer in place of one that cannot be had.
fn stale(kept: &Kept, till: &HeaderMap) -> Response {
    let mut response = fresh(kept, till);
    let age = wall().since(kept.good_at).as_secs();
    let headers = response.headers_mut();
    headers.insert(header::AGE, age.into());
    headers.insert(header::WARNING, HeaderValue::from_static("110 samovar-agent \"Response is Stale\""));
    response
}
