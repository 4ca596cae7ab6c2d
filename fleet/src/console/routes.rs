//! The pages of route tables: what is published, what is being written, who is behind (IO).
//!
//! Unlike the other pages these change something: every form carries the CSRF token, every change needs netops, and what
//! it does is done by [`crate::routes`], as for the API.

use axum::extract::{Form, Path, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::StatusCode;
use samovar_wire::route::Both;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use serde::Deserialize;

use super::page;
use super::route_view::{self, DraftRow, StragglerRow, TableRow};
use super::visitor::{Shell, Visitor};
use crate::app::App;
use crate::auth::Role;
use crate::db::entity::route_table;
use crate::problem::Failure;
use crate::routes::drafts::{self, DraftError};
use crate::routes::handlers::{RolledBack, roll_back};
use crate::routes::stragglers::{self, Spread};
use crate::routes::{difference, document, published, publishing};

/// Published tables of one page.
const TABLES: u64 = 50;

#[derive(askama::Template)]
#[template(path = "console/routes.html")]
struct RoutesPage {
    shell: Shell,
    may: bool,
    spread: Spread,
    percent: u64,
    behind: u64,
    drafts: Vec<DraftRow>,
    tables: Vec<TableRow>,
    problem: Option<String>,
}

#[derive(askama::Template)]
#[template(path = "console/route_table.html")]
struct TablePage {
    shell: Shell,
    may: bool,
    row: TableRow,
    in_force: bool,
    differences: Vec<String>,
    document: String,
    problem: Option<String>,
}

#[derive(askama::Template)]
#[template(path = "console/route_stragglers.html")]
struct StragglersPage {
    shell: Shell,
    spread: Spread,
    waiting: String,
    stragglers: Vec<StragglerRow>,
}

/// Which stragglers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    after: Option<String>,
    minutes: Option<u64>,
}

/// What the form for a new draft sends.
#[derive(Deserialize)]
pub(super) struct NewDraft {
    csrf: String,
    #[serde(default)]
    title: String,
    from: Option<i64>,
}

/// What the form for a rollback sends.
#[derive(Deserialize)]
pub(super) struct Rollback {
    csrf: String,
    #[serde(default)]
    reason: String,
}

/// Published tables, drafts, and how far the table in force has come.
pub(super) async fn overview(State(app): State<App>, visitor: Visitor) -> Result<Response, Failure> {
    overview_with(&app, visitor, None).await
}

async fn overview_with(app: &App, visitor: Visitor, problem: Option<String>) -> Result<Response, Failure> {
    let lens = visitor.lens();
    let rows = route_table::Entity::find()
        .order_by_desc(route_table::Column::Version)
        .limit(TABLES)
        .all(app.database.read())
        .await?;
    let open = drafts::list(&app.database, false).await.map_err(|error| inner(&error))?;
    let spread = stragglers::spread(app, stragglers::MINUTES, None, 1).await?;
    let status = if problem.is_some() { StatusCode::CONFLICT } else { StatusCode::OK };
    let template = RoutesPage {
        shell: frame(&visitor),
        may: visitor.operator.role >= Role::Netops,
        percent: (spread.have_it * 100).checked_div(spread.devices).unwrap_or(0),
        behind: spread.devices.saturating_sub(spread.have_it),
        spread,
        drafts: open.iter().map(|row| route_view::draft(lens, row)).collect(),
        tables: rows.iter().map(|row| route_view::table(lens, row)).collect(),
        problem,
    };
    Ok(page(status, &template, visitor.speech.cookie))
}

/// Begins a draft.
pub(super) async fn begin(
    State(app): State<App>,
    visitor: Visitor,
    Form(given): Form<NewDraft>,
) -> Result<Response, Failure> {
    visitor.operator.check_csrf(&given.csrf)?;
    visitor.operator.needs(Role::Netops)?;
    let made = drafts::create(&app, given.title.trim(), None, given.from, &visitor.operator.name).await;
    match made {
        Ok(draft) => Ok(Redirect::to(&format!("/console/routes/drafts/{}", draft.id)).into_response()),
        Err(DraftError::Database(error)) => Err(error.into()),
        Err(error) => overview_with(&app, visitor, Some(error.to_string())).await,
    }
}

/// One published table.
pub(super) async fn table(
    State(app): State<App>,
    visitor: Visitor,
    Path(version): Path<i64>,
) -> Result<Response, Failure> {
    table_with(&app, visitor, version, None).await
}

async fn table_with(
    app: &App,
    visitor: Visitor,
    version: i64,
    problem: Option<String>,
) -> Result<Response, Failure> {
    let Some(found) = route_table::Entity::find_by_id(version).one(app.database.read()).await? else {
        return Ok(super::pages::missing(&visitor, visitor.speech.language.words().no_page));
    };
    let before = route_table::Entity::find()
        .filter(route_table::Column::Version.lt(version))
        .order_by_desc(route_table::Column::Version)
        .one(app.database.read())
        .await?;
    let before = before.as_ref().and_then(published::table);
    let lens = visitor.lens();
    let differences = published::table(&found).map(|table| difference::lines(before.as_ref(), &table));
    let in_force = published::in_force(&app.database).await?.is_some_and(|row| row.version == version);
    let status = if problem.is_some() { StatusCode::CONFLICT } else { StatusCode::OK };
    let template = TablePage {
        shell: frame(&visitor),
        may: visitor.operator.role >= Role::Netops,
        row: route_view::table(lens, &found),
        in_force,
        differences: told(differences.unwrap_or_default(), &visitor),
        document: document::readable(&publishing::payload(&found).unwrap_or_default()),
        problem,
    };
    Ok(page(status, &template, visitor.speech.cookie))
}

/// Brings a version back.
pub(super) async fn bring_back(
    State(app): State<App>,
    visitor: Visitor,
    Path(version): Path<i64>,
    Form(given): Form<Rollback>,
) -> Result<Response, Failure> {
    visitor.operator.check_csrf(&given.csrf)?;
    visitor.operator.needs(Role::Netops)?;
    match roll_back(&app, version, &visitor.operator.name, given.reason.trim()).await {
        Ok(RolledBack::Published(_)) => Ok(Redirect::to("/console/routes").into_response()),
        Ok(RolledBack::Waiting(id)) => {
            Ok(Redirect::to(&format!("/console/routes/drafts/{id}")).into_response())
        }
        Err(DraftError::Database(error)) => Err(error.into()),
        Err(error) => table_with(&app, visitor, version, Some(error.to_string())).await,
    }
}

/// Who is behind, and why.
pub(super) async fn stragglers(
    State(app): State<App>,
    visitor: Visitor,
    Query(which): Query<Which>,
) -> Result<Response, Failure> {
    let lens = visitor.lens();
    let words = lens.language.words();
    let minutes = which.minutes.unwrap_or(stragglers::MINUTES);
    let spread = stragglers::spread(&app, minutes, which.after.as_deref(), 100).await?;
    let waiting = words.not_due.replacen("{}", &lens.ago(spread.published_at.as_deref()), 1).replacen(
        "{}",
        &minutes.to_string(),
        1,
    );
    let mut shell = frame(&visitor);
    shell.watch = Some(String::new());
    let template = StragglersPage {
        shell,
        stragglers: spread.stragglers.iter().map(|one| route_view::straggler(lens, one)).collect(),
        waiting,
        spread,
    };
    Ok(page(StatusCode::OK, &template, visitor.speech.cookie))
}

/// A frame whose content is not replaced under somebody who writes.
pub(super) fn frame(visitor: &Visitor) -> Shell {
    let mut shell = visitor.shell(String::new());
    shell.watch = None;
    shell
}

/// Lines in the language of the page.
pub(super) fn told(lines: Vec<Both>, visitor: &Visitor) -> Vec<String> {
    lines.into_iter().map(|line| visitor.speech.language.of(line)).collect()
}

/// What cannot be shown to whoever asked.
pub(super) fn inner(error: &DraftError) -> Failure {
    match error {
        DraftError::Database(error) => Failure::unavailable(error),
        other => crate::routes::draft_handlers::refused(other),
    }
}
