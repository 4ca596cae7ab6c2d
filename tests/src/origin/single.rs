//! An API of the origin's own, for single mode: `POST` or `PUT /api/tickets/…`, one order each.
//!
//! 201 recorded, 200 recorded before, 409 another content under that key, 422 refused; the other behaviours as for
//! batches.

use super::answers::{carry_out, contains, json, misbehave, read};
use super::{Behaviour, Body, World};
use http::{Request, Response};
use hyper::body::Incoming;
use samovar_wire::Timestamp;
use samovar_wire::encoding::{hex, sha256};
use samovar_wire::orders::{Batch, HEADER_IDEMPOTENCY_KEY, HEADER_UDL, IncomingOrder, Outcome};
use serde_json::json;
use std::io;

/// Where tickets are taken.
pub(super) const TICKETS: &str = "/api/tickets/";

pub(super) async fn ticket(world: &World, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = read(body).await?;
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let key = header(HEADER_IDEMPOTENCY_KEY);
    let order = IncomingOrder {
        id: key.clone(),
        order_no: parts.uri.path().trim_start_matches(TICKETS).to_owned(),
        seq: 0,
        udl: Some(header(HEADER_UDL)),
        sha256: hex(&sha256(&body)),
        accepted_at: Timestamp::from_millis(0),
        body: serde_json::from_slice(&body)?,
        key,
    };
    let batch = Batch { batch: String::new(), orders: vec![order] };
    let behaviour = world.lock().choose();
    let results = carry_out(&mut world.lock(), &behaviour, &parts, &batch);
    if let Some(answer) = misbehave(&behaviour).await {
        return answer;
    }
    if let Behaviour::StallOn(text) = behaviour
        && contains(&batch, text)
    {
        std::future::pending::<()>().await;
    }
    if behaviour == Behaviour::EmptyObject {
        return Ok(answer(200, &json!({})));
    }
    let result = results.into_iter().next();
    let status = match result.as_ref().map(|result| result.status) {
        Some(Outcome::Settled) => 201,
        Some(Outcome::Duplicate) => 200,
        Some(Outcome::Conflict) => 409,
        Some(Outcome::Rejected) => 422,
        Some(Outcome::Retry) | None => 503,
    };
    let result = result.map(|result| json!({ "code": result.code, "detail": result.detail }));
    Ok(answer(status, &result.unwrap_or_default()))
}

fn answer(status: u16, document: &serde_json::Value) -> Response<Body> {
    json(status, "application/json", document.to_string().into_bytes())
}
