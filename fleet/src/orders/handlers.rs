//! The origin contract over HTTP (IO).

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use samovar_wire::OriginId;
use samovar_wire::orders::{Batch, BatchAnswer, HEADER_NONCE, HEADER_ORIGIN, HEADER_SHADOW};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::pace::Work;
use super::reconcile::{__path_reconcile, reconcile};
use super::who::Sender;
use super::{Place, judge, receive, record, shadow, who};
use crate::app::App;
use crate::clock;
use crate::pki::PeerCertificate;
use crate::problem::Failure;
use crate::server::body;

/// The routes of an origin.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(batch))
        .routes(routes!(reconcile))
        .routes(routes!(health))
        .routes(routes!(echo))
}

/// Takes a batch of orders; idempotent for each key of a device. With the header `Samovar-Shadow` (the origin that the
/// orders really belong to) it is judged the same way and nothing is recorded.
#[utoipa::path(post, path = "/v1/orders:batch", tag = "origin",
    params(("Samovar-Shadow" = Option<String>, Header, description = "judge only, record nothing: the origin that the orders belong to")),
    request_body(content = serde_json::Value, description = "{batch, orders: [{id, key, sha256, order_no, seq, udl, accepted_at, body}]}"),
    responses(
        (status = 200, description = "{batch, server_time, results: [{id, status, code?, detail?}]}"),
        (status = 400, description = "malformed"), (status = 401, description = "neither certificate nor token"),
        (status = 403, description = "the device is not the certificate's, or the certificate is revoked"),
        (status = 413, description = "too large"), (status = 415, description = "unknown content type or encoding"),
        (status = 422, description = "mixed-udl: the orders are not all of one user data location"),
        (status = 429, description = "too many batches or orders of this device, with Retry-After"),
        (status = 503, description = "overloaded, with Retry-After; shadow batches long before orders")))]
async fn batch(
    State(app): State<App>,
    peer: Option<Extension<PeerCertificate>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BatchAnswer>, Failure> {
    let admitted = admit(&app, peer.map(|Extension(peer)| peer), &headers).await;
    let (sender, work, _place) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => {
            body::throw_away(body).await;
            return Err(refused);
        }
    };
    // Waiting for memory and for a turn is load; waiting for a slow line is not.
    let in_hand = || (work == Work::Orders).then(|| app.overload.enter());
    let limit = app.config.intake.max_body_bytes;
    let waiting = in_hand();
    let _room = app.intake.room(work, body::expected(&headers, limit)).await?;
    drop(waiting);
    let body = receive::read(&headers, body, limit).await?;
    let _in_hand = in_hand();
    // Held while the body is decoded, parsed and recorded: this bounds memory and the queue of writers.
    let _turn = app.intake.turn(work).await?;
    let batch: Batch = receive::parse(&headers, body, limit).await?;
    check(&batch, &sender.udl, app.config.intake.max_orders)?;
    app.intake.took(&sender.device, work, batch.orders.len());
    let now = clock::now();
    let results = match work {
        Work::Shadow => shadow::judge(&app.database, &sender, &batch).await?,
        _ => record::record(&app.database, &sender, &batch, now).await?,
    };
    app.metrics.answered(work, &results);
    Ok(Json(BatchAnswer { batch: batch.batch, server_time: Some(now), results }))
}

/// Says which origin this is.
#[utoipa::path(get, path = "/.samovar/health", tag = "origin",
    responses((status = 204, description = "with the header Samovar-Origin")))]
async fn health(State(app): State<App>) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1]), Failure> {
    let origin =
        HeaderValue::from_str(&app.config.intake.origin).map_err(|error| Failure::unavailable(&error))?;
    Ok((StatusCode::NO_CONTENT, [(HeaderName::from_static(HEADER_ORIGIN), origin)]))
}

/// Echoes the nonce: what a captive portal cannot do.
#[utoipa::path(get, path = "/.samovar/echo204", tag = "origin",
    responses((status = 204, description = "with the request's Samovar-Nonce")))]
async fn echo(headers: HeaderMap) -> (StatusCode, HeaderMap) {
    let mut answer = HeaderMap::new();
    if let Some(nonce) = headers.get(HEADER_NONCE).filter(|nonce| nonce.len() <= 256) {
        answer.insert(HeaderName::from_static(HEADER_NONCE), nonce.clone());
    }
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (StatusCode::NO_CONTENT, answer)
}

/// Everything that can be said before the body is read.
async fn admit(
    app: &App,
    peer: Option<PeerCertificate>,
    headers: &HeaderMap,
) -> Result<(Sender, Work, Place), Failure> {
    let sender = who::sender(app, peer, headers).await?;
    receive::json_only(headers)?;
    let work = match headers.get(HEADER_SHADOW) {
        None => Work::Orders,
        Some(origin) if origin.to_str().is_ok_and(|origin| origin.parse::<OriginId>().is_ok()) => {
            Work::Shadow
        }
        Some(_) => return Err(Failure::malformed("Samovar-Shadow is not an origin")),
    };
    let place = {
        let bytes = body::expected(headers, app.config.intake.max_body_bytes);
        app.intake.enter(&app.metrics, &sender.device, work, bytes)?
    };
    Ok((sender, work, place))
}

fn check(batch: &Batch, udl: &str, max_orders: usize) -> Result<(), Failure> {
    if batch.batch.is_empty() || batch.batch.len() > 128 || batch.batch.contains('\0') {
        return Err(Failure::malformed("batch is empty or too long"));
    }
    if batch.orders.len() > max_orders {
        let detail = format!("a batch has at most {max_orders} orders");
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
    }
    judge::one_udl(udl, &batch.orders).map_err(|(one, other)| {
        let detail =
            format!("all orders of a batch and the header UDL name one location, not {one:?} and {other:?}");
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "mixed-udl", detail)
    })
}
