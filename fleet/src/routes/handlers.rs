//! Route tables over the API: list, look, publish.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use http::StatusCode;
use samovar_wire::dsse::{self, Envelope};
use samovar_wire::encoding::hex;
use samovar_wire::{Timestamp, route};
use sea_orm::{EntityTrait as _, QueryOrder as _, QuerySelect as _};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::published::{self, BY_OPERATOR, Publication, PublishError};
use super::sensible;
use super::trusted_keys;
use crate::app::App;
use crate::auth::{Operator, Role};
use crate::clock;
use crate::db::entity::route_table;
use crate::problem::Failure;

/// The routes.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, publish))
        .routes(routes!(current))
        .routes(routes!(keys))
        .routes(routes!(one))
}

/// A published table, without its content.
#[derive(Debug, Serialize, ToSchema)]
struct TableView {
    /// Its version; the highest is in force.
    version: i64,
    /// Lower-case hex digest of the signed bytes.
    sha256: String,
    /// `starter` (made by this server) or `operator`.
    origin: String,
    /// When.
    published_at: String,
    /// By whom.
    published_by: String,
}

/// Published tables.
#[derive(Debug, Serialize, ToSchema)]
struct TableList {
    /// The latest first, 100 at most.
    routes: Vec<TableView>,
}

/// A published table with its content.
#[derive(Debug, Serialize, ToSchema)]
struct TableDetail {
    #[serde(flatten)]
    table: TableView,
    /// As signed (DSSE).
    #[schema(value_type = Object)]
    envelope: Envelope,
    /// The content, read.
    #[schema(value_type = Object)]
    document: Option<route::Table>,
}

/// Published tables, the latest first.
#[utoipa::path(get, path = "/api/v1/routes", tag = "routes", responses((status = 200, body = TableList), (status = 401)))]
async fn list(State(app): State<App>, _operator: Operator) -> Result<Json<TableList>, Failure> {
    let rows = route_table::Entity::find()
        .order_by_desc(route_table::Column::Version)
        .limit(100)
        .all(app.database.read())
        .await?;
    Ok(Json(TableList { routes: rows.iter().map(view).collect() }))
}

/// The table in force.
#[utoipa::path(get, path = "/api/v1/routes/current", tag = "routes",
    responses((status = 200, body = TableDetail), (status = 401), (status = 404)))]
async fn current(State(app): State<App>, _operator: Operator) -> Result<Json<TableDetail>, Failure> {
    let found = published::in_force(&app.database).await?;
    detail(&found.ok_or_else(|| Failure::not_found("no route table is in force yet"))?)
}

/// The public keys that may sign route tables.
#[utoipa::path(get, path = "/api/v1/routes/keys", tag = "routes",
    responses((status = 200, description = "base64 Ed25519 public keys by key id"), (status = 401)))]
async fn keys(State(app): State<App>, _operator: Operator) -> Json<dsse::TrustedKeys> {
    Json(trusted_keys(&app))
}

/// One table by its version.
#[utoipa::path(get, path = "/api/v1/routes/{version}", tag = "routes", params(("version" = i64, Path)),
    responses((status = 200, body = TableDetail), (status = 401), (status = 404)))]
async fn one(
    State(app): State<App>,
    _operator: Operator,
    Path(version): Path<i64>,
) -> Result<Json<TableDetail>, Failure> {
    let found = route_table::Entity::find_by_id(version).one(app.database.read()).await?;
    detail(&found.ok_or_else(|| Failure::not_found(format!("there is no route table {version}")))?)
}

/// Publishes a table: a DSSE envelope of a trusted key, or a plain table, which this server signs.
#[utoipa::path(post, path = "/api/v1/routes", tag = "routes",
    request_body(content = serde_json::Value, description = "a DSSE envelope, or a route-table.v1 document"),
    responses((status = 201, body = TableView), (status = 200, body = TableView, description = "it is in force already"),
        (status = 400), (status = 401), (status = 403), (status = 409, description = "the version is not higher"),
        (status = 422, description = "the devices' rules refuse it")))]
async fn publish(
    State(app): State<App>,
    operator: Operator,
    body: Bytes,
) -> Result<(StatusCode, Json<TableView>), Failure> {
    operator.needs(Role::Netops)?;
    let now = clock::now();
    let in_force = published::in_force(&app.database).await?;
    let envelope = envelope(&app, &body)?;
    let stored = in_force.as_ref().and_then(published::stored);
    let in_force_version = in_force.as_ref().map_or(0, |row| row.version.unsigned_abs());
    let accepted =
        route::accept(&envelope, &trusted_keys(&app), &app.config.server.environment, stored, Some(now))
            .map_err(|refused| refusal(&PublishError::Refused(refused)))?;
    if let Some(in_force) = in_force.filter(|_| accepted.unchanged) {
        return Ok((StatusCode::OK, Json(view(&in_force))));
    }
    if let Some(objection) = sensible::objection(&accepted.table, in_force_version, now) {
        let detail = format!("the table is not published: {objection}");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-route-table", detail));
    }
    let publication = Publication {
        version: accepted.table.version,
        sha256: hex(&accepted.sha256),
        envelope,
        origin: BY_OPERATOR,
        by: &operator.name,
    };
    published::store(&app.database, &publication, now).await.map_err(|error| refusal(&error))?;
    app.ingest.route_table_published();
    tracing::info!(version = publication.version, by = operator.name, "route table published");
    let made = route_table::Entity::find_by_id(i64::try_from(publication.version).unwrap_or(i64::MAX))
        .one(app.database.read())
        .await?;
    let made = made.ok_or_else(|| Failure::not_found("the table is gone"))?;
    Ok((StatusCode::CREATED, Json(view(&made))))
}

fn envelope(app: &App, body: &[u8]) -> Result<Envelope, Failure> {
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| Failure::malformed(error.to_string()))?;
    if value.get("payloadType").is_some() {
        return serde_json::from_value(value).map_err(|error| Failure::malformed(error.to_string()));
    }
    // The bytes signed are the bytes sent.
    Ok(Envelope::sign(dsse::ROUTE_TABLE, body, &[&app.keys.routes]))
}

fn refusal(error: &PublishError) -> Failure {
    use route::Refusal::{OlderVersion, SameVersionOtherContent};
    match error {
        PublishError::Version { .. }
        | PublishError::Refused(OlderVersion { .. } | SameVersionOtherContent(_)) => {
            Failure::new(StatusCode::CONFLICT, "version-taken", error.to_string())
        }
        PublishError::Refused(_) | PublishError::Starter(_) => {
            Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-route-table", error.to_string())
        }
        PublishError::Database(error) => Failure::unavailable(error),
    }
}

fn view(row: &route_table::Model) -> TableView {
    TableView {
        version: row.version,
        sha256: row.sha256.clone(),
        origin: row.origin.clone(),
        published_at: Timestamp::from_millis(row.published_at).to_string(),
        published_by: row.published_by.clone(),
    }
}

fn detail(row: &route_table::Model) -> Result<Json<TableDetail>, Failure> {
    let envelope = serde_json::from_str(&row.envelope).map_err(|error| Failure::unavailable(&error))?;
    Ok(Json(TableDetail { table: view(row), envelope, document: published::table(row) }))
}
