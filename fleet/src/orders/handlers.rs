//! The origin contract over HTTP (IO).

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::{Extension, Json};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use samovar_wire::DeviceId;
use samovar_wire::orders::{
    Batch, BatchAnswer, HEADER_DEVICE, HEADER_LEDGER, HEADER_NONCE, HEADER_ORIGIN, HEADER_STORE, HEADER_UDL,
    Outcome,
};
use sea_orm::EntityTrait as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Place;
use super::decode::{DecodeError, decode};
use super::record::{Sender, record};
use crate::app::App;
use crate::auth::extract::{bearer, same};
use crate::clock;
use crate::db::entity::certificate;
use crate::metrics::{add, count};
use crate::pki::PeerCertificate;
use crate::problem::Failure;
use crate::server::body::{self, BodyError};

/// The routes of an origin.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(batch))
        .routes(routes!(reconcile))
        .routes(routes!(health))
        .routes(routes!(echo))
}

/// Takes a batch of orders; idempotent for each key of a device.
#[utoipa::path(post, path = "/v1/orders:batch", tag = "origin",
    request_body(content = serde_json::Value, description = "{batch, orders: [{id, key, sha256, order_no, seq, udl, accepted_at, body}]}"),
    responses(
        (status = 200, description = "{batch, server_time, results: [{id, status, code?, detail?}]}"),
        (status = 400, description = "malformed"), (status = 401, description = "neither certificate nor token"),
        (status = 403, description = "the device is not the certificate's, or the certificate is revoked"),
        (status = 413, description = "too large"), (status = 415, description = "unknown content type or encoding"),
        (status = 429, description = "too many batches of this device at once")))]
async fn batch(
    State(app): State<App>,
    peer: Option<Extension<PeerCertificate>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BatchAnswer>, Failure> {
    let (sender, _place) = match admit(&app, peer.map(|Extension(peer)| peer), &headers).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            body::throw_away(body).await;
            return Err(refused);
        }
    };
    let room = app.intake.room(body::expected(&headers, app.config.intake.max_body_bytes)).await;
    let _room = room.map_err(|closed| Failure::unavailable(&closed))?;
    let body = read(&app, &headers, body).await?;
    // Held while the body is decoded, parsed and recorded: this bounds memory and the queue of writers.
    let _turn = app.intake.turns.acquire().await.map_err(|closed| Failure::unavailable(&closed))?;
    let batch = parse(&app, &headers, body).await?;
    let now = clock::now();
    let results = record(&app.database, &sender, &batch, now).await?;
    count(&app.metrics.batches);
    for (counter, outcome) in [
        (&app.metrics.settled, Outcome::Settled),
        (&app.metrics.duplicate, Outcome::Duplicate),
        (&app.metrics.conflict, Outcome::Conflict),
        (&app.metrics.rejected, Outcome::Rejected),
    ] {
        add(counter, results.iter().filter(|result| result.status == outcome).count() as u64);
    }
    Ok(Json(BatchAnswer { batch: batch.batch, server_time: Some(now), results }))
}

/// Reconciliation is not offered by this version.
#[utoipa::path(post, path = "/v1/orders:reconcile", tag = "origin",
    responses((status = 404, description = "not supported")))]
async fn reconcile() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "not-supported", "this origin does not offer reconciliation")
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
) -> Result<(Sender, Place), Failure> {
    let sender = sender(app, peer, headers).await?;
    json_only(headers)?;
    let place = app.intake.enter(&sender.device);
    let place = place.ok_or_else(|| Failure::too_many("too many batches of this device at once", 1))?;
    Ok((sender, place))
}

/// Who sends: the certificate says so, or a token vouches for the header.
async fn sender(app: &App, peer: Option<PeerCertificate>, headers: &HeaderMap) -> Result<Sender, Failure> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let vouched = peer.is_some() || has_token(app, headers);
    if !vouched {
        let detail = "a client certificate or a bearer token is needed";
        return Err(Failure::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail));
    }
    let named =
        text(HEADER_DEVICE).ok_or_else(|| Failure::malformed("the header Samovar-Device is missing"))?;
    let device: DeviceId =
        named.parse().map_err(|_| Failure::malformed("Samovar-Device is not a device ID"))?;
    let mut store = text(HEADER_STORE).unwrap_or_default();
    if let Some(peer) = peer {
        if peer.device != device {
            let detail = format!("the certificate is {}'s, the header says {device}", peer.device);
            return Err(Failure::new(StatusCode::FORBIDDEN, "device-mismatch", detail));
        }
        refuse_revoked(app, &peer).await?;
        store = peer.store.unwrap_or(store);
    }
    let sender = Sender {
        device,
        store,
        ledger: text(HEADER_LEDGER).unwrap_or_default(),
        udl: text(HEADER_UDL).unwrap_or_default(),
        origin: app.config.intake.origin.clone(),
    };
    if [&sender.store, &sender.ledger, &sender.udl].iter().any(|text| text.len() > 128) {
        return Err(Failure::malformed("Samovar-Store, Samovar-Ledger or UDL is too long"));
    }
    Ok(sender)
}

fn has_token(app: &App, headers: &HeaderMap) -> bool {
    bearer(headers).is_some_and(|shown| app.config.intake.tokens.iter().any(|token| same(token, shown)))
}

/// Certificates of other authorities (an origin of another fleet) have no row here and pass.
pub(crate) async fn refuse_revoked(app: &App, peer: &PeerCertificate) -> Result<(), Failure> {
    let found = certificate::Entity::find_by_id(&peer.serial).one(app.database.read()).await?;
    if found.is_some_and(|found| found.revoked_at.is_some()) {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "certificate-revoked",
            "this certificate has been revoked",
        ));
    }
    Ok(())
}

fn json_only(headers: &HeaderMap) -> Result<(), Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported", "send application/json"))
}

async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes, Failure> {
    body::read(headers, body, app.config.intake.max_body_bytes).await.map_err(|error| match error {
        BodyError::TooLarge(_) => Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", error.to_string()),
        BodyError::Broken => Failure::malformed(error.to_string()),
    })
}

async fn parse(app: &App, headers: &HeaderMap, body: Bytes) -> Result<Batch, Failure> {
    let encoding =
        headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let limit = app.config.intake.max_body_bytes;
    let decoded = if encoding.is_empty() {
        None
    } else {
        let encoding = encoding.to_owned();
        let body = body.clone();
        let decoding = tokio::task::spawn_blocking(move || decode(&encoding, &body, limit));
        decoding
            .await
            .map_err(|error| Failure::unavailable(&error))?
            .map_err(|error| decode_failure(&error))?
    };
    let bytes = decoded.as_deref().unwrap_or(&body);
    let batch: Batch =
        serde_json::from_slice(bytes).map_err(|error| Failure::malformed(error.to_string()))?;
    if batch.batch.is_empty() || batch.batch.len() > 128 || batch.batch.contains('\0') {
        return Err(Failure::malformed("batch is empty or too long"));
    }
    if batch.orders.len() > app.config.intake.max_orders {
        let detail = format!("a batch has at most {} orders", app.config.intake.max_orders);
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
    }
    Ok(batch)
}

fn decode_failure(error: &DecodeError) -> Failure {
    let (status, slug) = match error {
        DecodeError::Unknown(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported"),
        DecodeError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        DecodeError::Broken(_) => (StatusCode::BAD_REQUEST, "malformed"),
    };
    Failure::new(status, slug, error.to_string())
}
