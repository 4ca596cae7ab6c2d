//! Activation and renewal over HTTP (IO).

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use samovar_wire::activation::{ClaimAnswer, ClaimRequest, RenewalAnswer, RenewalRequest};
use samovar_wire::dsse::Envelope;
use sea_orm::ActiveValue::Set;
use sea_orm::EntityTrait as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::claims::{Activated, UseError, consume};
use super::code::ClaimCode;
use crate::app::App;
use crate::audit;
use crate::clock;
use crate::db::DatabaseError;
use crate::db::entity::{certificate, device};
use crate::metrics::count;
use crate::orders::who::refuse_revoked;
use crate::pki::PeerCertificate;
use crate::pki::csr::Request;
use crate::problem::Failure;
use crate::routes;
use crate::server::Peer;

/// The routes.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(claim)).routes(routes!(renew)).routes(routes!(route_table))
}

/// Turns a claim code and a certificate signing request into a device.
#[utoipa::path(post, path = "/activate/v1/claims", tag = "activation",
    request_body(content = serde_json::Value, description = "{claim, csr (PEM), hardware}"),
    responses(
        (status = 201, description = "{certificate, ca, device, store, country, class, environment, trusted_keys, route_table, mqtt_url, commands_keys}"),
        (status = 307, description = "the code is of another fleet; ask there"), (status = 400, description = "malformed"),
        (status = 404, description = "unknown-claim"), (status = 409, description = "claim-used"),
        (status = 410, description = "claim-expired"), (status = 429, description = "too many wrong codes")))]
async fn claim(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    body: Bytes,
) -> Result<Response, Failure> {
    let request: ClaimRequest =
        serde_json::from_slice(&body).map_err(|error| Failure::malformed(error.to_string()))?;
    let subject = peer.map_or_else(|| "unknown".to_owned(), |Extension(peer)| peer.address.ip().to_string());
    let now = clock::now();
    let wait = app.guesses.wait(&[&subject], now);
    if !wait.is_zero() {
        return Err(Failure::too_many("too many wrong codes from this address", wait.as_secs() + 1));
    }
    let unknown = |app: &App| {
        app.guesses.failed(&[&subject], now);
        count(&app.metrics.claims_refused);
    };
    let Some(code) = ClaimCode::parse(&request.claim) else {
        unknown(&app);
        return Err(refusal(&UseError::Unknown));
    };
    if code.fleet() != app.config.server.fleet {
        return elsewhere(&app, &code).inspect_err(|_| unknown(&app));
    }
    match consume(&app.database, &app.authority, (&code, &request), app.config.pki.device_days, now).await {
        Ok(activated) => {
            if !activated.repeated {
                count(&app.metrics.activations);
                app.ingest.revoked(&activated.device, activated.store.as_str());
                tracing::info!(device = %activated.device, store = %activated.store, "device activated");
            }
            Ok((StatusCode::CREATED, Json(answer(&app, activated).await?)).into_response())
        }
        Err(error) => {
            if matches!(error, UseError::Unknown) {
                unknown(&app);
            }
            Err(refusal(&error))
        }
    }
}

/// Renews a device's certificate; the present one stays valid.
#[utoipa::path(post, path = "/activate/v1/renewals", tag = "activation",
    request_body(content = serde_json::Value, description = "{csr (PEM)}"),
    responses((status = 201, description = "{certificate, ca}"), (status = 400, description = "malformed"),
        (status = 401, description = "no client certificate"), (status = 403, description = "revoked, or not a device of this fleet")))]
async fn renew(
    State(app): State<App>,
    peer: Option<Extension<PeerCertificate>>,
    body: Bytes,
) -> Result<(StatusCode, Json<RenewalAnswer>), Failure> {
    let peer = known_device(&app, peer).await?;
    let request: RenewalRequest =
        serde_json::from_slice(&body).map_err(|error| Failure::malformed(error.to_string()))?;
    let csr = Request::parse(&request.csr).map_err(|error| Failure::malformed(error.to_string()))?;
    let now = clock::now();
    // The store may have changed since the last certificate: the registry says which it is.
    let registered = device::Entity::find_by_id(peer.device.as_str()).one(app.database.read()).await?;
    let store = registered.and_then(|device| device.store.parse().ok());
    let store = store.ok_or_else(|| Failure::forbidden("this device is not registered here"))?;
    let issued = app
        .authority
        .issue_device(&csr, (&peer.device, &store), now, app.config.pki.device_days)
        .map_err(|error| Failure::unavailable(&error))?;
    let row = certificate::ActiveModel {
        serial: Set(issued.serial.clone()),
        device: Set(peer.device.to_string()),
        pem: Set(issued.pem.clone()),
        issued_at: Set(now.millis()),
        not_after: Set(issued.not_after.millis()),
        revoked_at: Set(None),
    };
    let write = app.database.write().await?;
    certificate::Entity::insert(row).exec_without_returning(&*write).await?;
    let detail = format!("certificate {} after {}", issued.serial, peer.serial);
    audit::record(&write, now, peer.device.as_str(), ("device.renew", peer.device.as_str()), detail).await?;
    write.commit().await?;
    count(&app.metrics.renewals);
    let ca = app.authority.pem().to_owned();
    Ok((StatusCode::CREATED, Json(RenewalAnswer { certificate: issued.pem, ca })))
}

/// The signed route table in force, for devices (with `If-None-Match` on its version).
#[utoipa::path(get, path = "/activate/v1/route-table", tag = "activation",
    responses((status = 200, description = "a DSSE envelope, with ETag"), (status = 304, description = "unchanged"),
        (status = 401, description = "no client certificate")))]
pub(crate) async fn route_table(
    State(app): State<App>,
    peer: Option<Extension<PeerCertificate>>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    known_device(&app, peer).await?;
    let found = routes::published::in_force(&app.database).await?;
    let found = found.ok_or_else(|| Failure::not_found("no route table is in force yet"))?;
    let tag = HeaderValue::from_str(&format!(
        "\"{}-{}\"",
        found.version,
        &found.sha256[..16.min(found.sha256.len())]
    ))
    .map_err(|error| Failure::unavailable(&error))?;
    if headers.get(header::IF_NONE_MATCH) == Some(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::ETAG, tag), (header::CONTENT_TYPE, json)], found.envelope).into_response())
}

async fn known_device(
    app: &App,
    peer: Option<Extension<PeerCertificate>>,
) -> Result<PeerCertificate, Failure> {
    let Some(Extension(peer)) = peer else {
        let detail = "a client certificate is needed (over HTTPS)";
        return Err(Failure::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail));
    };
    refuse_revoked(app, &peer).await?;
    Ok(peer)
}

fn elsewhere(app: &App, code: &ClaimCode) -> Result<Response, Failure> {
    let Some(base) = app.config.peers.get(code.fleet()) else { return Err(refusal(&UseError::Unknown)) };
    let place = format!("{}/activate/v1/claims", base.trim_end_matches('/'));
    let place = HeaderValue::from_str(&place).map_err(|error| Failure::unavailable(&error))?;
    Ok((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, place)]).into_response())
}

async fn answer(app: &App, activated: Activated) -> Result<ClaimAnswer, Failure> {
    let found = routes::published::in_force(&app.database).await?;
    let found = found.ok_or_else(|| {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "no route table is in force yet")
            .retry_after(2)
    })?;
    let route_table: Envelope =
        serde_json::from_str(&found.envelope).map_err(|error| Failure::unavailable(&error))?;
    Ok(ClaimAnswer {
        certificate: activated.certificate,
        ca: app.authority.pem().to_owned(),
        device: activated.device,
        store: activated.store,
        country: activated.country,
        class: activated.class,
        environment: app.config.server.environment.clone(),
        trusted_keys: routes::trusted_keys(app),
        route_table,
        fleet_url: app.device_url(),
        mqtt_url: app.addresses.mqtt_for_devices.clone(),
        commands_keys: app.keys.commands_keys(),
    })
}

fn refusal(error: &UseError) -> Failure {
    let (status, slug) = match error {
        UseError::Unknown => (StatusCode::NOT_FOUND, "unknown-claim"),
        UseError::Used => (StatusCode::CONFLICT, "claim-used"),
        UseError::Expired => (StatusCode::GONE, "claim-expired"),
        UseError::Request(_) => (StatusCode::BAD_REQUEST, "malformed"),
        UseError::Gone(_) => (StatusCode::CONFLICT, "claim-used"),
        UseError::Pki(error) => return Failure::unavailable(error),
        UseError::Database(DatabaseError::Statement(error)) => return Failure::unavailable(error),
        UseError::Database(error) => return Failure::unavailable(error),
    };
    Failure::new(status, slug, error.to_string())
}
