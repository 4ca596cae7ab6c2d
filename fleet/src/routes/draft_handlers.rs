//! Drafts of route tables over the API: begin, write, put forward, approve, export.
//!
//! Changes to a draft carry `If-Match` with the `ETag` of what they were made from: 428 without it, 412 when somebody
//! was faster.
#![expect(unused_qualifications, reason = "written by the macro that describes the query parameters")]

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use samovar_wire::Timestamp;
use samovar_wire::route::Flaw;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::drafts::{self, DISCARDED, DRAFT, DraftError};
use super::handlers::{TableView, refusal, view};
use super::published;
use crate::app::App;
use crate::auth::{Operator, Role};
use crate::db::entity::route_draft;
use crate::problem::Failure;

/// The routes.
pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(one, edit, discard))
        .routes(routes!(document))
        .routes(routes!(propose))
        .routes(routes!(withdraw))
        .routes(routes!(approve))
}

/// Something wrong with a draft's document.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FlawView {
    /// Where: a JSON pointer.
    path: String,
    /// A stable name.
    code: &'static str,
    /// What is wrong.
    message: String,
    /// What to do about it.
    advice: String,
}

impl FlawView {
    pub(super) fn of(flaw: &Flaw) -> Self {
        Self {
            path: flaw.path.clone(),
            code: flaw.problem.code(),
            message: flaw.to_string(),
            advice: flaw.problem.advice().en,
        }
    }
}

/// A draft, without its document.
#[derive(Debug, Serialize, ToSchema)]
struct DraftView {
    id: i64,
    title: String,
    /// `draft`, `proposed`, `published` or `discarded`.
    state: String,
    /// Grows with each change; also the `ETag`.
    revision: i64,
    /// The version in force that it was made from.
    base_version: i64,
    created_at: String,
    created_by: String,
    updated_at: String,
    updated_by: String,
    /// Everybody who wrote at it.
    authors: Vec<String>,
    proposed_at: Option<String>,
    proposed_by: Option<String>,
    decided_at: Option<String>,
    decided_by: Option<String>,
    /// The version under which it was published.
    version: Option<i64>,
}

/// A draft with its document.
#[derive(Debug, Serialize, ToSchema)]
struct DraftDetail {
    #[serde(flatten)]
    draft: DraftView,
    /// The text of the table.
    document: String,
    /// What is wrong with it; empty when it may be proposed.
    flaws: Vec<FlawView>,
    /// What it says otherwise than the table in force.
    differences: Vec<String>,
}

/// Drafts.
#[derive(Debug, Serialize, ToSchema)]
struct DraftList {
    /// The latest first.
    drafts: Vec<DraftView>,
}

/// Which drafts.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Which {
    /// Also those that are published or discarded.
    all: bool,
}

/// A draft to be begun.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct NewDraft {
    /// What it is for.
    title: String,
    /// The version to begin from; the one in force by default.
    from: Option<i64>,
    /// The text of the table, or the table itself.
    #[schema(value_type = Option<Object>)]
    document: Option<Box<serde_json::value::RawValue>>,
}

/// A change of a draft.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct Change {
    title: Option<String>,
    /// The text of the table, or the table itself.
    #[schema(value_type = Option<Object>)]
    document: Option<Box<serde_json::value::RawValue>>,
}

/// How a draft is put forward.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct Proposal {
    /// The version in force that the proposer knows, when the draft was begun from an older one.
    over: Option<i64>,
}

/// Drafts that are open, or all, the latest first.
#[utoipa::path(get, path = "/api/v1/routes/drafts", tag = "routes", params(Which),
    responses((status = 200, body = DraftList), (status = 401)))]
async fn list(
    State(app): State<App>,
    _operator: Operator,
    Query(which): Query<Which>,
) -> Result<Json<DraftList>, Failure> {
    let rows = drafts::list(&app.database, which.all).await.map_err(|error| refused(&error))?;
    Ok(Json(DraftList { drafts: rows.iter().map(summary).collect() }))
}

/// Begins a draft, from the table in force unless something else is given.
#[utoipa::path(post, path = "/api/v1/routes/drafts", tag = "routes", request_body = NewDraft,
    responses((status = 201, body = DraftDetail, description = "with ETag"), (status = 400), (status = 401),
        (status = 403), (status = 404)))]
async fn create(
    State(app): State<App>,
    operator: Operator,
    Json(new): Json<NewDraft>,
) -> Result<Response, Failure> {
    operator.needs(Role::Netops)?;
    let text = new.document.as_deref().map(text).transpose()?;
    let made = drafts::create(&app, &new.title, text, new.from, &operator.name).await;
    answer(&app, StatusCode::CREATED, &made.map_err(|error| refused(&error))?).await
}

/// One draft, with what is wrong with it.
#[utoipa::path(get, path = "/api/v1/routes/drafts/{id}", tag = "routes", params(("id" = i64, Path)),
    responses((status = 200, body = DraftDetail, description = "with ETag"), (status = 401), (status = 404)))]
async fn one(State(app): State<App>, _operator: Operator, Path(id): Path<i64>) -> Result<Response, Failure> {
    let found = drafts::find(&app.database, id).await.map_err(|error| refused(&error))?;
    answer(&app, StatusCode::OK, &found).await
}

/// Replaces title or document of a draft.
#[utoipa::path(put, path = "/api/v1/routes/drafts/{id}", tag = "routes", params(("id" = i64, Path)), request_body = Change,
    responses((status = 200, body = DraftDetail, description = "with ETag"), (status = 400), (status = 401), (status = 403),
        (status = 404), (status = 409, description = "it is not being written"),
        (status = 412, description = "somebody was faster"), (status = 428, description = "If-Match is missing")))]
async fn edit(
    State(app): State<App>,
    operator: Operator,
    Path(id): Path<i64>,
    headers: HeaderMap,
    Json(change): Json<Change>,
) -> Result<Response, Failure> {
    operator.needs(Role::Netops)?;
    let revision = if_match(&headers)?.ok_or_else(|| {
        let detail = "send If-Match with the ETag of the draft that was changed";
        Failure::new(StatusCode::PRECONDITION_REQUIRED, "precondition-required", detail)
    })?;
    let text = change.document.as_deref().map(text).transpose()?;
    let title = change.title.as_deref();
    let made = drafts::edit(&app, (id, revision), title, text.as_deref(), &operator.name).await;
    answer(&app, StatusCode::OK, &made.map_err(|error| refused(&error))?).await
}

/// Throws a draft away.
#[utoipa::path(delete, path = "/api/v1/routes/drafts/{id}", tag = "routes", params(("id" = i64, Path)),
    responses((status = 204), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn discard(
    State(app): State<App>,
    operator: Operator,
    Path(id): Path<i64>,
) -> Result<StatusCode, Failure> {
    operator.needs(Role::Netops)?;
    drafts::put_aside(&app, id, DISCARDED, &operator.name).await.map_err(|error| refused(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// The document alone, byte for byte: what is to be signed.
#[utoipa::path(get, path = "/api/v1/routes/drafts/{id}/document", tag = "routes", params(("id" = i64, Path)),
    responses((status = 200, description = "the table"), (status = 401), (status = 404)))]
async fn document(
    State(app): State<App>,
    _operator: Operator,
    Path(id): Path<i64>,
) -> Result<Response, Failure> {
    let found = drafts::find(&app.database, id).await.map_err(|error| refused(&error))?;
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], found.document).into_response())
}

/// Puts a draft forward: it gets the next version and today's date, and does not change any more.
#[utoipa::path(post, path = "/api/v1/routes/drafts/{id}/propose", tag = "routes", params(("id" = i64, Path)),
    request_body = Option<Proposal>,
    responses((status = 200, body = DraftDetail), (status = 401), (status = 403), (status = 404),
        (status = 409, description = "it is not being written, or a newer version is in force (outdated)"),
        (status = 412), (status = 422, description = "it has flaws")))]
async fn propose(
    State(app): State<App>,
    operator: Operator,
    Path(id): Path<i64>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Result<Response, Failure> {
    operator.needs(Role::Netops)?;
    let proposal: Proposal = match body.is_empty() {
        true => Proposal::default(),
        false => serde_json::from_slice(&body).map_err(|error| Failure::malformed(error.to_string()))?,
    };
    let revision = if_match(&headers)?;
    let made = drafts::propose(&app, (id, revision), proposal.over, &operator.name).await;
    answer(&app, StatusCode::OK, &made.map_err(|error| refused(&error))?).await
}

/// Takes a proposal back, to write at it again.
#[utoipa::path(post, path = "/api/v1/routes/drafts/{id}/withdraw", tag = "routes", params(("id" = i64, Path)),
    responses((status = 200, body = DraftDetail), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn withdraw(
    State(app): State<App>,
    operator: Operator,
    Path(id): Path<i64>,
) -> Result<Response, Failure> {
    operator.needs(Role::Netops)?;
    let made = drafts::put_aside(&app, id, DRAFT, &operator.name).await;
    answer(&app, StatusCode::OK, &made.map_err(|error| refused(&error))?).await
}

/// Approves a proposal: it is signed and comes into force. `If-Match` says which revision was looked at.
#[utoipa::path(post, path = "/api/v1/routes/drafts/{id}/approve", tag = "routes", params(("id" = i64, Path)),
    responses((status = 201, body = TableView), (status = 401),
        (status = 403, description = "its author may not approve it (four-eyes)"), (status = 404),
        (status = 409, description = "it is not proposed, its version is taken, or this server signs none"),
        (status = 412, description = "it is not what was looked at"), (status = 422)))]
async fn approve(
    State(app): State<App>,
    operator: Operator,
    Path(id): Path<i64>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<TableView>), Failure> {
    operator.needs(Role::Netops)?;
    let made = drafts::approve(&app, (id, if_match(&headers)?), &operator.name).await;
    Ok((StatusCode::CREATED, Json(view(&made.map_err(|error| refused(&error))?))))
}

async fn answer(app: &App, status: StatusCode, row: &route_draft::Model) -> Result<Response, Failure> {
    let (table, flaws) = drafts::examine(app, &row.document).await.map_err(|error| refused(&error))?;
    let in_force = published::in_force(&app.database).await?.as_ref().and_then(published::table);
    let differences = table.map(|table| super::difference::lines(in_force.as_ref(), &table));
    let detail = DraftDetail {
        draft: summary(row),
        document: row.document.clone(),
        flaws: flaws.iter().map(FlawView::of).collect(),
        differences: differences.unwrap_or_default().into_iter().map(|line| line.en).collect(),
    };
    let tag = HeaderValue::from_str(&format!("\"{}\"", row.revision));
    let tag = tag.map_err(|error| Failure::unavailable(&error))?;
    Ok((status, [(header::ETAG, tag)], Json(detail)).into_response())
}

fn summary(row: &route_draft::Model) -> DraftView {
    let time = |millis: i64| Timestamp::from_millis(millis).to_string();
    DraftView {
        id: row.id,
        title: row.title.clone(),
        state: row.state.clone(),
        revision: row.revision,
        base_version: row.base_version,
        created_at: time(row.created_at),
        created_by: row.created_by.clone(),
        updated_at: time(row.updated_at),
        updated_by: row.updated_by.clone(),
        authors: drafts::authors(&row.authors),
        proposed_at: row.proposed_at.map(time),
        proposed_by: row.proposed_by.clone(),
        decided_at: row.decided_at.map(time),
        decided_by: row.decided_by.clone(),
        version: row.version,
    }
}

/// A document as it was sent: a JSON string holds the text, anything else is the text.
fn text(raw: &serde_json::value::RawValue) -> Result<String, Failure> {
    if raw.get().starts_with('"') {
        return serde_json::from_str(raw.get()).map_err(|error| Failure::malformed(error.to_string()));
    }
    Ok(raw.get().to_owned())
}

fn if_match(headers: &HeaderMap) -> Result<Option<i64>, Failure> {
    let Some(given) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let number = given.to_str().ok().and_then(|text| text.trim_matches('"').parse().ok());
    number.map(Some).ok_or_else(|| Failure::malformed("If-Match is not the ETag of a draft"))
}

/// An answer for what cannot be done with a draft.
pub(crate) fn refused(error: &DraftError) -> Failure {
    let said = error.to_string();
    match error {
        DraftError::Missing(_) => Failure::not_found(said),
        DraftError::Stale { .. } => Failure::new(StatusCode::PRECONDITION_FAILED, "stale", said),
        DraftError::State { .. } => Failure::new(StatusCode::CONFLICT, "wrong-state", said),
        DraftError::Outdated { .. } => Failure::new(StatusCode::CONFLICT, "outdated", said),
        DraftError::Flawed(_) => Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-route-table", said),
        DraftError::OwnWork(_) => Failure::new(StatusCode::FORBIDDEN, "four-eyes", said),
        DraftError::Form(_) => Failure::malformed(said),
        DraftError::Publish(error) => refusal(error),
        DraftError::Database(error) => Failure::unavailable(error),
    }
}
