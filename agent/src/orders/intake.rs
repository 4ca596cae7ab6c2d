//! The local API of orders: what tills call, and what CLI and page show of the ledger.
//!
//! A 2xx for a new order is given after its commit. Without the token of the device a caller sees records without
//! their bodies, which may hold personal data.

use super::ledger::{Accepted, Intervention, LEFT, Ledger, LedgerError, NewOrder, Receipt, Record, State};
use super::order::{InvalidOrder, Order};
use super::run::{Events, InFlight};
use crate::clock::wall;
use crate::http::answer::{read_body, read_json};
use crate::http::{Caller, Failure};
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use samovar_wire::encoding::hex;
use samovar_wire::orders::{HEADER_IDEMPOTENCY_KEY, MAX_BATCH_ORDERS, MAX_BODY_BYTES, OrdersSummary};
use samovar_wire::{Country, OriginId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;

/// Room around the largest body for white space.
const BODY_SLACK: usize = 4 * 1024;
/// Largest body of a whole batch.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// What the handlers need.
#[derive(Clone)]
pub struct Intake {
    /// The ledger.
    pub ledger: Ledger,
    /// Country of the store; `None` before activation.
    pub home: Arc<dyn Fn() -> Option<Country> + Send + Sync>,
    /// Where events go.
    pub events: Events,
    /// The orders on their way.
    pub in_flight: InFlight,
}

/// The routes of this flow.
pub fn routes(intake: Intake) -> Router {
    Router::new()
        .route("/v1/orders", post(accept).get(page))
        .route("/v1/orders:batch", post(accept_batch))
        .route("/v1/orders:summary", get(summary))
        .route("/v1/orders/{order}", get(show))
        .route("/v1/orders/{order}/retry", post(retry))
        .route("/v1/orders/{order}/discard", post(discard))
        .route("/v1/orders/{order}/release", post(release))
        .with_state(intake)
}

/// The receipt of an order.
#[derive(Debug, Serialize)]
struct ReceiptView<'a> {
    id: &'a str,
    order_no: &'a str,
    state: &'static str,
    seq: u64,
    accepted_at: Timestamp,
}

/// What became of one order that was handed in.
enum Answer {
    New(Receipt),
    Replay(Receipt),
    Failed(Failure, Option<(Receipt, String)>),
}

async fn accept(Shared(intake): Shared<Intake>, headers: HeaderMap, body: Body) -> Response {
    let key = match idempotency_key(&headers) {
        Ok(key) => key,
        Err(invalid) => return refused(&invalid).into_response(),
    };
    let body = match read_body(body, MAX_BODY_BYTES + BODY_SLACK).await {
        Ok(body) => body,
        Err(failure) => return failure.into_response(),
    };
    let mut answers = intake.accept(vec![Ok((key, body))]).await;
    match answers.pop() {
        Some(Answer::New(receipt)) => (StatusCode::ACCEPTED, Json(stored(&receipt))).into_response(),
        Some(Answer::Replay(receipt)) => {
            let mut response = Json(intake.view(&receipt)).into_response();
            response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
            response
        }
        Some(Answer::Failed(failure, kept)) => with_record(&intake, failure, kept.as_ref()),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A header that is not text is a bad key, not a missing one; and of two nobody can say which was meant.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, InvalidOrder> {
    let mut values = headers.get_all(HEADER_IDEMPOTENCY_KEY).iter();
    let key = values.next().map(|value| value.to_str().map(str::to_owned).map_err(|_| InvalidOrder::BadKey));
    if values.next().is_some() { Err(InvalidOrder::BadKey) } else { key.transpose() }
}

/// A key conflict names the record in which the new body was kept.
fn with_record(intake: &Intake, failure: Failure, kept: Option<&(Receipt, String)>) -> Response {
    let Some((receipt, first)) = kept else { return failure.into_response() };
    let mut response = failure.clone().into_response();
    let mut document = json!(failure.problem());
    merge(&mut document, json!(intake.view(receipt)));
    merge(&mut document, json!({ "conflict_with": first }));
    *response.body_mut() = Body::from(document.to_string());
    response.headers_mut().remove(http::header::CONTENT_LENGTH);
    response
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

#[derive(Deserialize)]
struct BatchRequest {
    orders: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct BatchItem {
    #[serde(default)]
    idempotency_key: Option<String>,
    order: Box<RawValue>,
}

async fn accept_batch(Shared(intake): Shared<Intake>, body: Body) -> Result<Response, Failure> {
    let body = read_body(body, MAX_BATCH_BYTES).await?;
    let batch: BatchRequest = serde_json::from_slice(&body).map_err(|error| {
        let detail = format!("the body is not {{\"orders\": [{{\"order\": …}} …]}}: {error}");
        Failure::new(StatusCode::BAD_REQUEST, "not-json", detail)
    })?;
    drop(body);
    if batch.orders.len() > MAX_BATCH_ORDERS {
        let detail =
            format!("a batch holds at most {MAX_BATCH_ORDERS} orders, this one has {}", batch.orders.len());
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
    }
    let items: Vec<Result<Item, InvalidOrder>> = batch.orders.iter().map(|item| batch_item(item)).collect();
    let answers = intake.accept(items).await;
    let results: Vec<Value> = answers.iter().map(|answer| intake.batch_result(answer)).collect();
    Ok((StatusCode::MULTI_STATUS, Json(json!({ "results": results }))).into_response())
}

/// An order on its way in: its key, if one was given beside it, and its body.
type Item = (Option<String>, Vec<u8>);

/// Each item of a batch stands alone, also when it is not even an item.
fn batch_item(item: &RawValue) -> Result<Item, InvalidOrder> {
    serde_json::from_str::<BatchItem>(item.get())
        .map(|item| (item.idempotency_key, item.order.get().as_bytes().to_vec()))
        .map_err(|error| InvalidOrder::NotJson(format!("not an item {{idempotency_key?, order}}: {error}")))
}

impl Intake {
    /// Takes orders in, each for itself; the answers come in order.
    async fn accept(&self, items: Vec<Result<Item, InvalidOrder>>) -> Vec<Answer> {
        let Some(home) = (self.home)() else {
            let failure = Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not-activated",
                "this device has no store yet: activate it, then repeat with the same key",
            );
            return items.iter().map(|_| Answer::Failed(failure.clone().retry_after(30), None)).collect();
        };
        let accepted_at = wall();
        let parsed: Vec<Result<Order, InvalidOrder>> = items
            .into_iter()
            .map(|item| item.and_then(|(key, body)| Order::parse(&body, key.as_deref(), &home)))
            .collect();
        let mut good = Vec::with_capacity(parsed.len());
        let parsed: Vec<Result<(), InvalidOrder>> = parsed
            .into_iter()
            .map(|order| {
                let id = uuid::Uuid::now_v7().to_string();
                order.map(|order| good.push(NewOrder { id, accepted_at, order }))
            })
            .collect();
        let mut written = if good.is_empty() { Ok(Vec::new()) } else { self.ledger.accept(good).await }
            .map(IntoIterator::into_iter);
        parsed
            .into_iter()
            .map(|order| match (order, &mut written) {
                (Err(invalid), _) => Answer::Failed(refused(&invalid), None),
                (Ok(_), Err(error)) => Answer::Failed(unavailable(error), None),
                (Ok(_), Ok(written)) => written.next().map_or_else(
                    || Answer::Failed(unavailable(&LedgerError::TimedOut), None),
                    |accepted| self.answer(accepted),
                ),
            })
            .collect()
    }

    fn answer(&self, accepted: Accepted) -> Answer {
        match accepted {
            Accepted::New(receipt) => Answer::New(receipt),
            Accepted::Replay(receipt) => Answer::Replay(receipt),
            Accepted::KeyReused { kept, first, repeated } => {
                if !repeated {
                    let facts = json!({ "id": kept.id, "order_no": kept.order_no, "seq": kept.seq, "conflict_with": first });
                    (self.events)("order.key-reused", facts);
                }
                let detail = format!(
                    "the key was used before, by order {first}, with other content; this body was kept as order {} in \
                     quarantine: hand it in again under a key of its own",
                    kept.id
                );
                let failure = Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "key-reused", detail);
                Answer::Failed(failure, Some((kept, first)))
            }
        }
    }

    fn batch_result(&self, answer: &Answer) -> Value {
        let with_status = |status: u16, mut document: Value| {
            merge(&mut document, json!({ "status": status }));
            document
        };
        match answer {
            Answer::New(receipt) => with_status(202, json!(stored(receipt))),
            Answer::Replay(receipt) => {
                let mut document = with_status(200, json!(self.view(receipt)));
                merge(&mut document, json!({ "idempotent_replayed": true }));
                document
            }
            Answer::Failed(failure, kept) => {
                let mut document =
                    json!({ "status": failure.problem().status, "problem": failure.problem() });
                if let Some((receipt, first)) = kept {
                    merge(&mut document, json!(self.view(receipt)));
                    merge(&mut document, json!({ "conflict_with": first }));
                }
                document
            }
        }
    }

    fn state_name(&self, state: State, seq: u64) -> &'static str {
        if state == State::Pending && self.in_flight.contains(seq) { "sending" } else { state.name() }
    }

    fn view<'a>(&self, receipt: &'a Receipt) -> ReceiptView<'a> {
        ReceiptView { state: self.state_name(receipt.state, receipt.seq), ..stored(receipt) }
    }

    /// A record with its history, as the API shows it.
    fn record(&self, record: &Record, trusted: bool) -> Value {
        let receipt = &record.receipt;
        let mut document = json!(self.view(receipt));
        let mut facts = json!({
            "key": record.key,
            "sha256": hex(&record.sha256),
            "udl": record.udl,
            "kind": record.kind,
            "depends_on": record.depends_on,
            "conflict_with": record.conflict_with,
            "why": record.why,
            "detail": record.detail.as_ref().filter(|_| receipt.state != State::Settled),
            "origin": record.origin,
            "attempts": record.attempts,
            "first_sent_at": record.first_sent_at,
            "sent_at": record.sent_at,
            "settled_at": record.closed_at.filter(|_| receipt.state == State::Settled),
            "last_error": record.detail.as_ref().filter(|_| !matches!(receipt.state, State::Held | State::Discarded)),
            "history": history(record),
        });
        if let Value::Object(facts) = &mut facts {
            facts.retain(|_, value| !value.is_null());
        }
        merge(&mut document, facts);
        if record.body.is_some() && !trusted {
            merge(&mut document, json!({ "body_redacted": true }));
        }
        document
    }
}

/// A record with its body spliced in as it came.
fn with_body(document: &Value, body: Option<&[u8]>) -> Response {
    let mut text = document.to_string();
    if let Some(body) = body.and_then(|body| std::str::from_utf8(body).ok()) {
        text.pop();
        text.push_str(",\"body\":");
        text.push_str(body);
        text.push('}');
    }
    ([(http::header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// A receipt with the state that is on disk. The answer to a new order says this one: that it may be on its way already
/// is nothing a till must reckon with.
fn stored(receipt: &Receipt) -> ReceiptView<'_> {
    ReceiptView {
        id: &receipt.id,
        order_no: &receipt.order_no,
        state: receipt.state.name(),
        seq: receipt.seq,
        accepted_at: receipt.accepted_at,
    }
}

fn history(record: &Record) -> Vec<Value> {
    let mut history = vec![json!({ "at": record.receipt.accepted_at, "what": "accepted" })];
    if let Some(at) = record.first_sent_at {
        history.push(json!({ "at": at, "what": "sent", "origin": sent_to(record, at) }));
    }
    if let Some(at) = record.sent_at.filter(|at| Some(*at) != record.first_sent_at) {
        let origin = sent_to(record, at);
        history.push(json!({ "at": at, "what": "sent", "origin": origin, "attempts": record.attempts }));
    }
    for entry in &record.audit {
        if entry.what == LEFT {
            history
                .push(json!({ "at": entry.at, "what": LEFT, "origin": entry.who, "detail": entry.reason }));
            continue;
        }
        history.push(json!({ "at": entry.at, "what": entry.what, "who": entry.who, "reason": entry.reason }));
    }
    if let Some(at) = record.closed_at {
        let state = record.receipt.state.name();
        let detail = record.detail.as_ref().filter(|_| record.receipt.state != State::Settled);
        history.push(json!({ "at": at, "what": state, "origin": record.origin, "detail": detail }));
    }
    history.sort_by_key(|entry| entry["at"].as_str().map(str::to_owned));
    history
}

/// The origin that an order went to at some time: the one it left next, or else the one it is bound to.
fn sent_to(record: &Record, at: Timestamp) -> Option<&str> {
    let left = record.audit.iter().find(|entry| entry.what == LEFT && at <= entry.at);
    left.map(|entry| entry.who.as_str()).or_else(|| record.origin.as_ref().map(OriginId::as_str))
}

fn refused(invalid: &InvalidOrder) -> Failure {
    let (status, slug) = match invalid {
        InvalidOrder::NotJson(_) => (StatusCode::BAD_REQUEST, "not-json"),
        InvalidOrder::NoKey => (StatusCode::BAD_REQUEST, "no-key"),
        InvalidOrder::BadKey => (StatusCode::BAD_REQUEST, "bad-key"),
        InvalidOrder::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        InvalidOrder::Field { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid-order"),
    };
    Failure::new(status, slug, invalid.to_string())
}

fn unavailable(error: &LedgerError) -> Failure {
    let (status, slug) = match error {
        LedgerError::Full(_) => (StatusCode::INSUFFICIENT_STORAGE, "ledger-full"),
        LedgerError::Busy | LedgerError::Storage(_) | LedgerError::TimedOut => {
            (StatusCode::SERVICE_UNAVAILABLE, "storage-unavailable")
        }
        LedgerError::Unknown => (StatusCode::NOT_FOUND, "unknown-order"),
        LedgerError::NotAllowed(_) => (StatusCode::CONFLICT, "not-allowed"),
    };
    let failure = Failure::new(status, slug, error.to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE { failure.retry_after(1) } else { failure }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PageQuery {
    state: Option<String>,
    after_seq: Option<u64>,
    limit: Option<usize>,
}

async fn page(
    Shared(intake): Shared<Intake>,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let bad = |detail: String| Failure::new(StatusCode::BAD_REQUEST, "bad-query", detail);
    let Query(query) = query.map_err(|error| bad(error.to_string()))?;
    let state = match query.state.as_deref() {
        None | Some("") => None,
        Some(name) => Some(State::from_name(name).ok_or_else(|| {
            let known: Vec<_> = State::ALL.iter().map(|state| state.name()).collect();
            bad(format!("state `{name}` is not one of {}", known.join(", ")))
        })?),
    };
    let after = query.after_seq.unwrap_or(0);
    if i64::try_from(after).is_err() {
        return Err(bad(format!("after_seq {after} is beyond any place in a ledger")));
    }
    let limit = query.limit.unwrap_or(100).clamp(1, 200);
    let records = intake.ledger.page(state, after, limit).await.map_err(|error| unavailable(&error))?;
    let next = records.last().filter(|_| records.len() == limit).map(|record| record.receipt.seq);
    let orders: Vec<Value> = records.iter().map(|record| intake.record(record, false)).collect();
    Ok(Json(json!({ "orders": orders, "next_after_seq": next })))
}

async fn summary(Shared(intake): Shared<Intake>) -> Result<Json<OrdersSummary>, Failure> {
    intake.ledger.summary().await.map(Json).map_err(|error| unavailable(&error))
}

async fn show(
    Shared(intake): Shared<Intake>,
    Extension(caller): Extension<Caller>,
    OrderName(order): OrderName,
) -> Result<Response, Failure> {
    let record = intake.ledger.record(&order).await.map_err(|error| unavailable(&error))?;
    let record = record.ok_or_else(|| unavailable(&LedgerError::Unknown))?;
    let body = record.body.as_deref().filter(|_| caller.trusted);
    Ok(with_body(&intake.record(&record, caller.trusted), body))
}

/// The order that a path names.
struct OrderName(String);

impl<S: Send + Sync> FromRequestParts<S> for OrderName {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        named.map(|Path(order)| Self(order)).map_err(|error| {
            Failure::new(StatusCode::BAD_REQUEST, "bad-path", format!("the order in the path: {error}"))
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InterventionRequest {
    reason: String,
    by: String,
}

async fn retry(
    Shared(intake): Shared<Intake>,
    Extension(caller): Extension<Caller>,
    OrderName(order): OrderName,
    body: Body,
) -> Result<Json<Value>, Failure> {
    // A retry changes nothing that the next attempt would not, so it may go without a reason.
    let request: InterventionRequest = read_json(body).await?;
    let what = if caller.trusted { Intervention::Force } else { Intervention::Retry };
    intake.intervene(&order, what, request, caller).await
}

async fn discard(
    Shared(intake): Shared<Intake>,
    Extension(caller): Extension<Caller>,
    OrderName(order): OrderName,
    body: Body,
) -> Result<Json<Value>, Failure> {
    let request = accountable(caller, body, "say why the order is given up").await?;
    intake.intervene(&order, Intervention::Discard, request, caller).await
}

/// The order may arrive at two origins afterwards, so somebody must answer for it.
async fn release(
    Shared(intake): Shared<Intake>,
    Extension(caller): Extension<Caller>,
    OrderName(order): OrderName,
    body: Body,
) -> Result<Json<Value>, Failure> {
    let request = accountable(caller, body, "say why the order may be sent to another origin").await?;
    intake.intervene(&order, Intervention::Release, request, caller).await
}

/// A request that needs the device's token and a reason.
async fn accountable(caller: Caller, body: Body, why: &str) -> Result<InterventionRequest, Failure> {
    caller.require_token()?;
    reasoned(body, why).await
}

/// A request that says why; it is kept in the audit log.
async fn reasoned(body: Body, why: &str) -> Result<InterventionRequest, Failure> {
    let request: InterventionRequest = read_json(body).await?;
    if request.reason.trim().is_empty() {
        let detail = format!("field `reason`: missing: {why}");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "reason-required", detail));
    }
    Ok(request)
}

impl Intake {
    async fn intervene(
        &self,
        order: &str,
        what: Intervention,
        request: InterventionRequest,
        caller: Caller,
    ) -> Result<Json<Value>, Failure> {
        let who = if request.by.is_empty() { "local api" } else { &request.by };
        let record = self
            .ledger
            .intervene(order, what.clone(), who, &request.reason)
            .await
            .map_err(|error| unavailable(&error))?;
        let facts = json!({ "id": record.receipt.id, "order_no": record.receipt.order_no, "seq": record.receipt.seq,
                            "who": who, "reason": request.reason });
        (self.events)(&format!("order.{}", what.word()), facts);
        Ok(Json(self.record(&record, caller.trusted)))
    }
}
