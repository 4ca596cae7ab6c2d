//! The page of one draft: its text, what is wrong with it, what it changes, and what can be done with it (IO).

use axum::extract::{Form, Path, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::StatusCode;
use serde::Deserialize;

use super::page;
use super::route_view::{self, DraftRow, FlawRow};
use super::routes::{frame, inner, told};
use super::visitor::{Shell, Visitor};
use crate::app::App;
use crate::auth::Role;
use crate::db::entity::route_draft;
use crate::problem::Failure;
use crate::routes::drafts::{self, DISCARDED, DRAFT, DraftError, PROPOSED};
use crate::routes::{difference, published};

#[derive(askama::Template)]
#[template(path = "console/route_draft.html")]
struct DraftPage {
    shell: Shell,
    may: bool,
    draft: DraftRow,
    title: String,
    revision: i64,
    writing: bool,
    proposed: bool,
    own_work: bool,
    signs: bool,
    /// The version in force when it is not the one the draft was begun from.
    outdated: Option<i64>,
    outdated_text: String,
    over_text: String,
    flaws: Vec<FlawRow>,
    differences: Vec<String>,
    document: String,
    problem: Option<String>,
}

/// What the form sends.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Given {
    csrf: String,
    #[serde(rename = "do")]
    deed: String,
    title: String,
    document: String,
    revision: i64,
    over: Option<i64>,
}

/// A draft.
pub(super) async fn draft(
    State(app): State<App>,
    visitor: Visitor,
    Path(id): Path<i64>,
) -> Result<Response, Failure> {
    match drafts::find(&app.database, id).await {
        Ok(found) => show(&app, visitor, found, None).await,
        Err(DraftError::Missing(_)) => {
            Ok(super::pages::missing(&visitor, visitor.speech.language.words().no_page))
        }
        Err(error) => Err(inner(&error)),
    }
}

/// Does what the button says.
pub(super) async fn change(
    State(app): State<App>,
    visitor: Visitor,
    Path(id): Path<i64>,
    Form(given): Form<Given>,
) -> Result<Response, Failure> {
    visitor.operator.check_csrf(&given.csrf)?;
    visitor.operator.needs(Role::Netops)?;
    let done = act(&app, id, &given, &visitor.operator.name).await;
    let error = match done {
        Ok(to) => return Ok(Redirect::to(&to).into_response()),
        Err(DraftError::Database(error)) => return Err(error.into()),
        Err(error) => error,
    };
    let mut found = drafts::find(&app.database, id).await.map_err(|error| inner(&error))?;
    let problem = match &error {
        DraftError::Stale { .. } if given.deed != "approve" => {
            visitor.speech.language.words().stale_draft.to_owned()
        }
        // Told below, each with its place.
        DraftError::Flawed(_) => String::new(),
        other => other.to_string(),
    };
    if found.state == DRAFT && !given.document.is_empty() {
        // Nobody's text is lost because somebody else was faster.
        (found.title, found.document) = (given.title, given.document.replace("\r\n", "\n"));
    }
    show(&app, visitor, found, Some(problem).filter(|problem| !problem.is_empty())).await
}

/// Where to go afterwards.
async fn act(app: &App, id: i64, given: &Given, by: &str) -> Result<String, DraftError> {
    let here = format!("/console/routes/drafts/{id}");
    match given.deed.as_str() {
        "withdraw" => drafts::put_aside(app, id, DRAFT, by).await.map(|_| here),
        "discard" => drafts::put_aside(app, id, DISCARDED, by).await.map(|_| "/console/routes".to_owned()),
        "approve" => drafts::approve(app, (id, Some(given.revision)), by)
            .await
            .map(|row| format!("/console/routes/{}", row.version)),
        deed => {
            let place = (id, given.revision);
            let saved = drafts::edit(app, place, Some(given.title.trim()), Some(&given.document), by).await?;
            if deed == "propose" {
                drafts::propose(app, (id, Some(saved.revision)), given.over, by).await?;
            }
            Ok(if deed == "preview" { format!("{here}/preview") } else { here })
        }
    }
}

async fn show(
    app: &App,
    visitor: Visitor,
    found: route_draft::Model,
    problem: Option<String>,
) -> Result<Response, Failure> {
    let words = visitor.speech.language.words();
    let (table, flaws) = drafts::examine(app, &found.document).await.map_err(|error| inner(&error))?;
    let in_force = published::in_force(&app.database).await?;
    let before = in_force.as_ref().and_then(published::table);
    let differences = table.map(|table| difference::lines(before.as_ref(), &table)).unwrap_or_default();
    let newer = in_force.map(|row| row.version).filter(|version| *version != found.base_version);
    let open = matches!(found.state.as_str(), DRAFT | PROPOSED);
    let outdated = newer.filter(|_| open);
    let fill = |form: &str| {
        outdated.map_or_else(String::new, |version| form.replacen("{}", &version.to_string(), 1))
    };
    let status = if problem.is_some() { StatusCode::CONFLICT } else { StatusCode::OK };
    let own = drafts::is_author(&found, &visitor.operator.name);
    let template = DraftPage {
        shell: frame(&visitor),
        may: visitor.operator.role >= Role::Netops,
        draft: route_view::draft(visitor.lens(), &found),
        revision: found.revision,
        writing: found.state == DRAFT,
        proposed: found.state == PROPOSED,
        own_work: app.config.routes.four_eyes && own,
        signs: app.keys.routes.is_some(),
        outdated,
        outdated_text: fill(words.outdated),
        over_text: fill(words.propose_over),
        flaws: flaws.iter().map(|flaw| route_view::flaw(visitor.speech.language, flaw)).collect(),
        differences: told(differences, &visitor),
        title: found.title,
        document: found.document,
        problem,
    };
    Ok(page(status, &template, visitor.speech.cookie))
}
