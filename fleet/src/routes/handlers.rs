//! Route tables over the API: list, look, publish.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use http::StatusCode;
use samovar_wire::dsse::{self, Envelope};
use samovar_wire::{Timestamp, route};
use sea_orm::{EntityTrait as _, QueryOrder as _, QuerySelect as _};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::drafts;
use super::published::{self, PublishError};
use super::publishing::{self, Behind, Outcome};
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
        .routes(routes!(rollback))
        .merge(super::draft_handlers::router())
        .merge(super::effect_handlers::router())
}

/// A published table, without its content.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TableView {
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
    /// Who put it forward, when that was somebody else.
    proposed_by: Option<String>,
    /// What it says otherwise than the one before.
    summary: Option<String>,
    /// The version that it brings back.
    reissue_of: Option<i64>,
}

/// Why an older version is brought back.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct Why {
    /// For the audit log.
    reason: String,
}

/// What became of a rollback.
#[derive(Debug, Serialize, ToSchema)]
struct RollbackView {
    /// The table in force now; null when it must be signed elsewhere first.
    published: Option<TableView>,
    /// The proposal that waits for its signature.
    draft: Option<i64>,
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
        (status = 400), (status = 401), (status = 403, description = "a second operator must approve it (four-eyes)"),
        (status = 409, description = "the version is not higher (version-taken), or this server signs none (offline-signing)"),
        (status = 422, description = "the devices' rules refuse it")))]
async fn publish(
    State(app): State<App>,
    operator: Operator,
    body: Bytes,
) -> Result<(StatusCode, Json<TableView>), Failure> {
    operator.needs(Role::Netops)?;
    let envelope = envelope(&app, &body)?;
    let published = publishing::publish(&app, envelope, Behind::alone(&operator.name), clock::now()).await;
    match published.map_err(|error| refusal(&error))? {
        Outcome::Published(row) => Ok((StatusCode::CREATED, Json(view(&row)))),
        Outcome::Unchanged(row) => Ok((StatusCode::OK, Json(view(&row)))),
    }
}

fn envelope(app: &App, body: &[u8]) -> Result<Envelope, Failure> {
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| Failure::malformed(error.to_string()))?;
    if value.get("payloadType").is_some() {
        return serde_json::from_value(value).map_err(|error| Failure::malformed(error.to_string()));
    }
    // The bytes signed are the bytes sent.
    publishing::sign(app, body).map_err(|error| refusal(&error))
}

/// Brings an older version back: its words under the next version, with new dates.
#[utoipa::path(post, path = "/api/v1/routes/{version}/rollback", tag = "routes",
    params(("version" = i64, Path)), request_body = Option<Why>,
    responses((status = 201, body = RollbackView),
        (status = 202, body = RollbackView, description = "this server signs none: a proposal waits for its signature"),
        (status = 401), (status = 403), (status = 404), (status = 409), (status = 422)))]
async fn rollback(
    State(app): State<App>,
    operator: Operator,
    Path(version): Path<i64>,
    body: Bytes,
) -> Result<(StatusCode, Json<RollbackView>), Failure> {
    operator.needs(Role::Netops)?;
    let why: Why = match body.is_empty() {
        true => Why::default(),
        false => serde_json::from_slice(&body).map_err(|error| Failure::malformed(error.to_string()))?,
    };
    let done = roll_back(&app, version, &operator.name, &why.reason).await;
    let (published, draft) = match done.map_err(|error| super::draft_handlers::refused(&error))? {
        RolledBack::Published(row) => (Some(view(&row)), None),
        RolledBack::Waiting(id) => (None, Some(id)),
    };
    let status = if published.is_some() { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    Ok((status, Json(RollbackView { published, draft })))
}

/// What became of a rollback.
pub(crate) enum RolledBack {
    /// It is in force.
    Published(route_table::Model),
    /// A proposal waits for a signature made elsewhere.
    Waiting(i64),
}

/// Brings an older version back, or puts it forward where this server signs none.
///
/// # Errors
/// [`drafts::DraftError`].
pub(crate) async fn roll_back(
    app: &App,
    version: i64,
    by: &str,
    why: &str,
) -> Result<RolledBack, drafts::DraftError> {
    let now = clock::now();
    let text = publishing::reissue(app, version, now).await?;
    if app.keys.routes.is_none() {
        let title = format!("rollback to version {version} {why}");
        let title: String = title.trim_end().chars().take(200).collect();
        let draft = drafts::create(app, &title, Some(text), None, by).await?;
        drafts::propose(app, (draft.id, None), Some(draft.base_version), by).await?;
        return Ok(RolledBack::Waiting(draft.id));
    }
    let envelope = publishing::sign(app, text.as_bytes())?;
    let behind = Behind { by, proposed_by: None, reissue_of: Some(version), reason: why, seen: true };
    match publishing::publish(app, envelope, behind, now).await? {
        Outcome::Published(row) | Outcome::Unchanged(row) => Ok(RolledBack::Published(row)),
    }
}

pub(super) fn refusal(error: &PublishError) -> Failure {
    use route::Refusal::{OlderVersion, SameVersionOtherContent};
    let said = error.to_string();
    match error {
        PublishError::Version { .. }
        | PublishError::Refused(OlderVersion { .. } | SameVersionOtherContent(_)) => {
            Failure::new(StatusCode::CONFLICT, "version-taken", said)
        }
        PublishError::Refused(_) | PublishError::Starter(_) | PublishError::Flawed(_) => {
            Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-route-table", said)
        }
        PublishError::FourEyes => Failure::new(StatusCode::FORBIDDEN, "four-eyes", said),
        PublishError::NoKey => Failure::new(StatusCode::CONFLICT, "offline-signing", said),
        PublishError::Gone(_) => Failure::not_found(said),
        PublishError::Database(error) => Failure::unavailable(error),
    }
}

pub(super) fn view(row: &route_table::Model) -> TableView {
    TableView {
        version: row.version,
        sha256: row.sha256.clone(),
        origin: row.origin.clone(),
        published_at: Timestamp::from_millis(row.published_at).to_string(),
        published_by: row.published_by.clone(),
        proposed_by: row.proposed_by.clone(),
        summary: row.summary.clone(),
        reissue_of: row.reissue_of,
    }
}

fn detail(row: &route_table::Model) -> Result<Json<TableDetail>, Failure> {
    let envelope = serde_json::from_str(&row.envelope).map_err(|error| Failure::unavailable(&error))?;
    Ok(Json(TableDetail { table: view(row), envelope, document: published::table(row) }))
}
