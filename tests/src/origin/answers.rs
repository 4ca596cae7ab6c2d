//! The origin's answers, honest and otherwise.

use super::behaviour::Behaviour;
use super::ending::{Ending, Planned, at_once, cut_chunks, ok};
use super::journal::Entry;
use super::reconcile::reconcile;
use super::store::{Store, result};
use super::{Body, Seen, State, World, single};
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use samovar_wire::orders::{
    Batch, BatchAnswer, HEADER_DEVICE, HEADER_LEDGER, HEADER_NONCE, HEADER_ORIGIN, HEADER_SHADOW,
    IncomingOrder, OrderResult, Outcome,
};
use samovar_wire::problem::{self, Problem};
use std::io::{self, Read as _};
use std::time::Duration;

/// Larger than any batch an agent may make: 500 orders of 256 KiB would be, but nobody sends those.
pub(super) const MAX_REQUEST: usize = 64 * 1024 * 1024;

/// One answer; an error cuts the connection without one.
pub(super) async fn answer(
    world: &World,
    planned: &Planned,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::POST, "/v1/orders:batch") => batch(world, planned, request).await,
        (&Method::POST | &Method::PUT, path) if path.starts_with(single::TICKETS) => {
            single::ticket(world, request).await
        }
        (&Method::POST, "/v1/orders:reconcile") => reconcile(world, request).await,
        (&Method::GET, "/.samovar/health") => Ok(health(world)),
        (&Method::GET, "/.samovar/echo204") => {
            let nonce = request.headers().get(HEADER_NONCE).cloned();
            let mut echo = plain(204);
            if let Some(nonce) = nonce {
                echo.headers_mut().insert(HEADER_NONCE, nonce);
            }
            Ok(echo)
        }
        _ => super::pages::answer(world, request).await,
    }
}

fn health(world: &World) -> Response<Body> {
    let portal = matches!(world.lock().always, Behaviour::Portal);
    if portal {
        return html();
    }
    match world.lock().healthy {
        Some(true) => {}
        Some(false) => return refusal(503, None),
        None => return refusal(404, None),
    }
    let mut healthy = plain(204);
    if let Ok(name) = world.name.parse() {
        healthy.headers_mut().insert(HEADER_ORIGIN, name);
    }
    healthy
}

async fn batch(world: &World, planned: &Planned, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let behaviour = world.lock().choose();
    match behaviour {
        Behaviour::CloseMidRequest => return Err(io::Error::other("scripted")),
        Behaviour::Deaf => std::future::pending().await,
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let body = read(body).await?;
    let body = match parts.headers.get("content-encoding").map(http::HeaderValue::as_bytes) {
        None => body.to_vec(),
        Some(b"gzip") => {
            let mut decoded = Vec::new();
            flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut decoded)?;
            decoded
        }
        Some(_) => return Ok(refusal(415, None)),
    };
    let Ok(batch) = serde_json::from_slice::<Batch>(&body) else {
        return Ok(refusal(400, None));
    };
    let results = {
        let mut state = world.lock();
        let results = carry_out(&mut state, &behaviour, &parts, &batch);
        state.store.sync()?;
        results
    };
    world.may_answer().await;
    respond(&behaviour, planned, &batch, results).await
}

async fn respond(
    behaviour: &Behaviour,
    planned: &Planned,
    batch: &Batch,
    results: Vec<OrderResult>,
) -> io::Result<Response<Body>> {
    let honest = |results| document(&batch.batch, results);
    let by_hand = |bytes| Err(planned.end(at_once(bytes)));
    if let Some(answer) = misbehave(behaviour).await {
        return answer;
    }
    match behaviour {
        Behaviour::CommitThenReset => Err(planned.end(Ending::Reset)),
        Behaviour::EmptyObject => Ok(json(200, "application/json", b"{}".to_vec())),
        Behaviour::WrongJson => {
            let mut text = honest(results);
            text.truncate(text.len() - 2);
            Ok(json(200, "application/json", text))
        }
        Behaviour::HalfBody => {
            let whole = ok(&honest(results).into());
            by_hand(whole[..whole.len() - whole.len() / 3].to_vec())
        }
        Behaviour::CutChunks => by_hand(cut_chunks(&honest(results).into())),
        Behaviour::AnswerTwice => by_hand(ok(&honest(results).into()).repeat(2)),
        Behaviour::Drip { pause_ms } => {
            let bytes = ok(&honest(results).into());
            let piece = bytes.len().div_ceil(16);
            Err(planned.end(Ending::Bytes { bytes, piece, pause: Duration::from_millis(*pause_ms) }))
        }
        Behaviour::RefuseBatchWith(text) if contains(batch, text) => Ok(refusal(400, None)),
        Behaviour::StatusForBatchWith(text, status) if contains(batch, text) => Ok(refusal(*status, None)),
        Behaviour::StallOn(text) if contains(batch, text) => std::future::pending().await,
        Behaviour::AtMost(orders) if batch.orders.len() > *orders => Ok(refusal(413, None)),
        Behaviour::WrongBatchId => Ok(settle("another-batch", results)),
        _ => Ok(settle(&batch.batch, results)),
    }
}

pub(super) async fn read(body: Incoming) -> io::Result<Bytes> {
    Ok(Limited::new(body, MAX_REQUEST).collect().await.map_err(io::Error::other)?.to_bytes())
}

/// What has nothing to do with the orders of a request.
pub(super) async fn misbehave(behaviour: &Behaviour) -> Option<io::Result<Response<Body>>> {
    Some(match behaviour {
        Behaviour::Drop | Behaviour::CommitThenDrop => Err(io::Error::other("scripted")),
        Behaviour::Stall | Behaviour::CommitThenStall => std::future::pending().await,
        Behaviour::Status { status, retry_after_s } => Ok(refusal(*status, *retry_after_s)),
        Behaviour::Portal => Ok(html()),
        Behaviour::Redirect => {
            let mut redirect = plain(302);
            let place = http::HeaderValue::from_static("http://127.0.0.1:1/login");
            redirect.headers_mut().insert(http::header::LOCATION, place);
            Ok(redirect)
        }
        _ => return None,
    })
}

/// Records what the behaviour records, and makes the results: all under one lock.
pub(super) fn carry_out(
    state: &mut State,
    behaviour: &Behaviour,
    parts: &Parts,
    batch: &Batch,
) -> Vec<OrderResult> {
    let headers = &parts.headers;
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    state.requests.push(Seen {
        line: format!("{} {}", parts.method, parts.uri),
        host: header("host"),
        headers: headers.keys().map(|name| (name.as_str().to_owned(), header(name.as_str()))).collect(),
        keys: batch.orders.iter().map(|order| order.key.clone()).collect(),
        behaviour: behaviour.clone(),
        at: crate::clock::now(),
    });
    state.store.note(&Entry::Did { behaviour: format!("{behaviour:?}") });
    let sender = (header(HEADER_DEVICE), header(HEADER_LEDGER));
    let shadow = headers.contains_key(HEADER_SHADOW);
    let mut results = Vec::new();
    for (at, order) in batch.orders.iter().enumerate() {
        let store = if shadow { &mut state.shadows } else { &mut state.store };
        results.extend(one(store, behaviour, (&sender.0, &sender.1), batch, at, order));
    }
    match behaviour {
        Behaviour::StrayResults => results.extend(["1", "2"].map(|n| OrderResult {
            id: format!("018f0000-0000-7000-8000-00000000000{n}"),
            status: Outcome::Rejected,
            code: None,
            detail: None,
            retry_after_s: None,
        })),
        Behaviour::RepeatResults => results.extend(results.clone()),
        Behaviour::ContradictItself => {
            let otherwise = |first: &OrderResult| OrderResult { status: Outcome::Rejected, ..first.clone() };
            results.extend(results.iter().map(otherwise).collect::<Vec<_>>());
        }
        _ => {}
    }
    results
}

fn one(
    store: &mut Store,
    behaviour: &Behaviour,
    (device, ledger): (&str, &str),
    batch: &Batch,
    at: usize,
    order: &IncomingOrder,
) -> Option<OrderResult> {
    match behaviour {
        Behaviour::RejectOrdersWith(text) if order.body.get().contains(text) => {
            Some(result(order, Outcome::Rejected, Some("poison")))
        }
        Behaviour::QuoteOrdersWith(text) if order.body.get().contains(text) => Some(OrderResult {
            detail: Some(format!("guest {text} is not served")),
            ..result(order, Outcome::Rejected, Some("not-served"))
        }),
        Behaviour::RefuseBatchWith(text)
        | Behaviour::StatusForBatchWith(text, _)
        | Behaviour::StallOn(text)
            if contains(batch, text) =>
        {
            None
        }
        Behaviour::AtMost(orders) if batch.orders.len() > *orders => None,
        Behaviour::RefuseBatchWith(_)
        | Behaviour::StatusForBatchWith(..)
        | Behaviour::StallOn(_)
        | Behaviour::AtMost(_) => Some(store.record(device, ledger, order)),
        Behaviour::AnswerOnlyFirst if at == 0 => Some(store.record(device, ledger, order)),
        Behaviour::RetryAll { retry_after_s } => Some(OrderResult {
            retry_after_s: Some(*retry_after_s),
            ..result(order, Outcome::Retry, Some("busy"))
        }),
        behaviour if behaviour.records() => Some(store.record(device, ledger, order)),
        _ => None,
    }
}

pub(super) fn contains(batch: &Batch, text: &str) -> bool {
    batch.orders.iter().any(|order| order.body.get().contains(text))
}

fn document(batch: &str, results: Vec<OrderResult>) -> Vec<u8> {
    let answer = BatchAnswer { batch: batch.to_owned(), server_time: None, results };
    serde_json::to_vec(&answer).unwrap_or_default()
}

fn settle(batch: &str, results: Vec<OrderResult>) -> Response<Body> {
    json(200, "application/json", document(batch, results))
}

pub(super) fn refusal(status: u16, retry_after_s: Option<u64>) -> Response<Body> {
    let problem = Problem::new(status, "scripted", "this origin was told to answer so");
    let bytes = serde_json::to_vec(&problem).unwrap_or_default();
    let mut answer = json(status, problem::CONTENT_TYPE, bytes);
    if let Some(seconds) = retry_after_s {
        answer.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    answer
}

pub(super) fn html() -> Response<Body> {
    json(
        200,
        "text/html",
        b"<html><body>Welcome! Please accept the terms to use the Wi-Fi.</body></html>".to_vec(),
    )
}

pub(super) fn json(status: u16, media_type: &'static str, bytes: Vec<u8>) -> Response<Body> {
    let mut answer = plain(status);
    *answer.body_mut() = Body::from(Bytes::from(bytes));
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    answer
}

fn plain(status: u16) -> Response<Body> {
    let mut answer = Response::new(Body::default());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}
