//! What a table does, over the API: the preview, one store's way, and how far the table in force has come.
#![expect(unused_qualifications, reason = "written by the macro that describes the query parameters")]

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use samovar_wire::dsse::Envelope;
use samovar_wire::encoding::from_base64;
use samovar_wire::route::{Explained, Preview, Table};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::draft_handlers::refused;
use super::impact::{self, Asker, Suppose};
use super::stragglers::{self, Spread};
use super::{document, drafts, published};
use crate::app::App;
use crate::auth::Operator;
use crate::clock;
use crate::db::entity::route_table;
use crate::problem::Failure;
use sea_orm::EntityTrait as _;

/// The routes.
pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(preview_draft))
        .routes(routes!(preview_version))
        .routes(routes!(preview_document))
        .routes(routes!(explain_draft))
        .routes(routes!(explain_version))
        .routes(routes!(spread))
}

/// Where one asker's orders go now, and where they would go.
#[derive(Debug, Serialize, ToSchema)]
struct Explanation {
    /// Under the table in force; null before the first.
    #[schema(value_type = Option<Object>)]
    in_force: Option<Explained>,
    /// Under the table asked for.
    #[schema(value_type = Object)]
    there: Option<Explained>,
}

/// How much time a table has, and which page.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Spreading {
    /// Minutes after the publication before anybody is behind; 15 by default.
    minutes: Option<u64>,
    /// The device that ended the page before.
    after: Option<String>,
    /// How many at most, up to 1000.
    limit: Option<u64>,
}

/// What a draft would change: counts by origin and country, and who moves.
#[utoipa::path(get, path = "/api/v1/routes/drafts/{id}/preview", tag = "routes", params(("id" = i64, Path), Suppose),
    responses((status = 200, description = "counts by origin and country, and a page of changes"), (status = 400),
        (status = 401), (status = 404), (status = 422, description = "it cannot be read")))]
async fn preview_draft(
    State(app): State<App>,
    _operator: Operator,
    Path(id): Path<i64>,
    Query(suppose): Query<Suppose>,
) -> Result<Json<Preview>, Failure> {
    let table = of_draft(&app, id).await?;
    Ok(Json(impact::preview(&app, (in_force(&app).await?, table), &suppose).await?))
}

/// What bringing a published version back would change.
#[utoipa::path(get, path = "/api/v1/routes/{version}/preview", tag = "routes", params(("version" = i64, Path), Suppose),
    responses((status = 200, description = "counts by origin and country, and a page of changes"), (status = 400),
        (status = 401), (status = 404)))]
async fn preview_version(
    State(app): State<App>,
    _operator: Operator,
    Path(version): Path<i64>,
    Query(suppose): Query<Suppose>,
) -> Result<Json<Preview>, Failure> {
    let table = of_version(&app, version).await?;
    Ok(Json(impact::preview(&app, (in_force(&app).await?, table), &suppose).await?))
}

/// What a table would change that is not kept here.
#[utoipa::path(post, path = "/api/v1/routes/preview", tag = "routes", params(Suppose),
    request_body(content = serde_json::Value, description = "a DSSE envelope, or a route-table.v1 document"),
    responses((status = 200, description = "counts by origin and country, and a page of changes"), (status = 400),
        (status = 401), (status = 422, description = "it cannot be read")))]
async fn preview_document(
    State(app): State<App>,
    _operator: Operator,
    Query(suppose): Query<Suppose>,
    body: Bytes,
) -> Result<Json<Preview>, Failure> {
    let unreadable = || Failure::malformed("the body is neither a route table nor an envelope");
    let text = match serde_json::from_slice::<Envelope>(&body) {
        Ok(envelope) => from_base64(&envelope.payload).ok_or_else(unreadable)?,
        Err(_) => body.to_vec(),
    };
    let text = String::from_utf8(text).map_err(|_| unreadable())?;
    let table = readable(&app, &text)?;
    Ok(Json(impact::preview(&app, (in_force(&app).await?, table), &suppose).await?))
}

/// Where one store, device or user would go under a draft, with everything that was looked at.
#[utoipa::path(get, path = "/api/v1/routes/drafts/{id}/explain", tag = "routes",
    params(("id" = i64, Path), Asker, Suppose),
    responses((status = 200, body = Explanation), (status = 400), (status = 401), (status = 404), (status = 422)))]
async fn explain_draft(
    State(app): State<App>,
    _operator: Operator,
    Path(id): Path<i64>,
    Query(asker): Query<Asker>,
    Query(suppose): Query<Suppose>,
) -> Result<Json<Explanation>, Failure> {
    let table = of_draft(&app, id).await?;
    explanation(&app, &table, &asker, &suppose).await
}

/// Where one store, device or user would go under a published version.
#[utoipa::path(get, path = "/api/v1/routes/{version}/explain", tag = "routes",
    params(("version" = i64, Path), Asker, Suppose),
    responses((status = 200, body = Explanation), (status = 400), (status = 401), (status = 404)))]
async fn explain_version(
    State(app): State<App>,
    _operator: Operator,
    Path(version): Path<i64>,
    Query(asker): Query<Asker>,
    Query(suppose): Query<Suppose>,
) -> Result<Json<Explanation>, Failure> {
    let table = of_version(&app, version).await?;
    explanation(&app, &table, &asker, &suppose).await
}

/// How far the table in force has come: devices by version, and those that are behind, with why.
#[utoipa::path(get, path = "/api/v1/routes/stragglers", tag = "routes", params(Spreading),
    responses((status = 200, body = Spread), (status = 401)))]
async fn spread(
    State(app): State<App>,
    _operator: Operator,
    Query(wanted): Query<Spreading>,
) -> Result<Json<Spread>, Failure> {
    let minutes = wanted.minutes.unwrap_or(stragglers::MINUTES);
    let limit = wanted.limit.unwrap_or(stragglers::PAGE);
    Ok(Json(stragglers::spread(&app, minutes, wanted.after.as_deref(), limit).await?))
}

async fn explanation(
    app: &App,
    table: &Table,
    asker: &Asker,
    suppose: &Suppose,
) -> Result<Json<Explanation>, Failure> {
    let before = in_force(app).await?;
    let [in_force, there] = impact::explain(app, [before.as_ref(), Some(table)], asker, suppose).await?;
    Ok(Json(Explanation { in_force, there }))
}

/// The table in force, read.
///
/// # Errors
/// When the database does not answer.
pub(crate) async fn in_force(app: &App) -> Result<Option<Table>, Failure> {
    Ok(published::in_force(&app.database).await?.as_ref().and_then(published::table))
}

async fn of_draft(app: &App, id: i64) -> Result<Table, Failure> {
    let found = drafts::find(&app.database, id).await.map_err(|error| refused(&error))?;
    readable(app, &found.document)
}

async fn of_version(app: &App, version: i64) -> Result<Table, Failure> {
    let found = route_table::Entity::find_by_id(version).one(app.database.read()).await?;
    let table = found.as_ref().and_then(published::table);
    table.ok_or_else(|| Failure::not_found(format!("there is no route table {version}")))
}

/// A table with flaws can still be looked at; one that cannot be read cannot.
fn readable(app: &App, text: &str) -> Result<Table, Failure> {
    let (table, flaws) = document::examine(text, &app.config.server.environment, 0, clock::now());
    table.ok_or_else(|| {
        let said = flaws.first().map(ToString::to_string).unwrap_or_default();
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-route-table", said)
    })
}
