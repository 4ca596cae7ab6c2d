//! The page that shows what a table would do: counts, the map of countries, who moves, and the way of one asker (IO).

use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::StatusCode;
use samovar_wire::route::{Preview, Table};
use sea_orm::EntityTrait as _;
use serde::Deserialize;

use super::page;
use super::route_map::BOX;
use super::route_view::{self, Shown, Way};
use super::routes::{frame, inner};
use super::visitor::{Shell, Visitor, encoded};
use crate::app::App;
use crate::db::entity::route_table;
use crate::problem::Failure;
use crate::routes::effect_handlers::in_force;
use crate::routes::impact::{self, Asker, Suppose};
use crate::routes::{drafts, published};

/// Changes of one page.
const MOVES: usize = 50;

#[derive(askama::Template)]
#[template(path = "console/route_preview.html")]
struct PreviewPage {
    shell: Shell,
    /// The page of the draft or the version.
    parent: String,
    name: String,
    flaws: usize,
    seen: Preview,
    unchanged: u64,
    shown: Shown,
    country: String,
    asked: Asked,
    ways: Vec<Way>,
    problem: Option<String>,
    next: Option<usize>,
    offset: usize,
    shape: (usize, usize, usize),
    /// What is supposed, for the links that lead on.
    kept: String,
}

/// What is asked in the address.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    service: String,
    country: String,
    offset: usize,
    device: String,
    store: String,
    udl: String,
    user: String,
    at: String,
    down: String,
}

/// What a draft would do.
pub(super) async fn draft(
    State(app): State<App>,
    visitor: Visitor,
    Path(id): Path<i64>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let found = drafts::find(&app.database, id).await.map_err(|error| inner(&error))?;
    let (table, flaws) = drafts::examine(&app, &found.document).await.map_err(|error| inner(&error))?;
    let row = route_view::draft(visitor.lens(), &found);
    let subject =
        Subject { parent: format!("/console/routes/drafts/{id}"), name: row.title, flaws: flaws.len() };
    match table {
        Some(table) => show(&app, visitor, subject, table, asked).await,
        // The draft's own page says what is wrong.
        None => {
            Ok(axum::response::IntoResponse::into_response(axum::response::Redirect::to(&subject.parent)))
        }
    }
}

/// What bringing a version back would do.
pub(super) async fn version(
    State(app): State<App>,
    visitor: Visitor,
    Path(version): Path<i64>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let found = route_table::Entity::find_by_id(version).one(app.database.read()).await?;
    let Some(table) = found.as_ref().and_then(published::table) else {
        return Ok(super::pages::missing(&visitor, visitor.speech.language.words().no_page));
    };
    let name = format!("{} {version}", visitor.speech.language.words().route_table);
    let subject = Subject { parent: format!("/console/routes/{version}"), name, flaws: 0 };
    show(&app, visitor, subject, table, asked).await
}

struct Subject {
    parent: String,
    name: String,
    flaws: usize,
}

async fn show(
    app: &App,
    visitor: Visitor,
    subject: Subject,
    table: Table,
    asked: Asked,
) -> Result<Response, Failure> {
    let words = visitor.speech.language.words();
    let before = in_force(app).await?;
    let suppose = asked.suppose();
    let asker = asked.asker();
    let wanted = asker.device.is_some() || asker.store.is_some();
    let names = route_view::names(before.as_ref(), &table);
    let mut problem = None;
    let mut told = [None, None];
    if wanted {
        match impact::explain(app, [before.as_ref(), Some(&table)], &asker, &suppose).await {
            Ok(found) => told = found,
            Err(failure) => problem = Some(failure.problem().detail.clone()),
        }
    }
    let seen = match impact::preview(app, (before.clone(), table.clone()), &suppose).await {
        Ok(seen) => seen,
        // Senseless suppositions are told, and left out.
        Err(failure) if failure.problem().status == 400 => {
            problem = Some(failure.problem().detail.clone());
            impact::preview(app, (before, table), &Suppose::default()).await?
        }
        Err(failure) => return Err(failure),
    };
    let ways = told
        .iter()
        .zip([words.in_force, words.in_this_table])
        .filter_map(|(told, heading)| Some(route_view::way(words, heading, told.as_ref()?, &names)))
        .collect();
    let next = asked.offset + seen.moves.len();
    let template = PreviewPage {
        shell: frame(&visitor),
        parent: subject.parent,
        name: subject.name,
        flaws: subject.flaws,
        unchanged: seen.devices.saturating_sub(seen.moved + seen.held + seen.freed + seen.readdressed),
        shown: route_view::preview(visitor.lens(), &seen, &names),
        country: asked.country.clone(),
        next: (u64::try_from(next).unwrap_or(u64::MAX) < seen.moves_total).then_some(next),
        offset: asked.offset,
        kept: asked.kept(),
        asked,
        ways,
        problem,
        seen,
        shape: BOX,
    };
    Ok(page(StatusCode::OK, &template, visitor.speech.cookie))
}

impl Asked {
    fn suppose(&self) -> Suppose {
        Suppose {
            service: given(&self.service),
            at: given(&self.at),
            down: given(&self.down),
            nearest: None,
            country: given(&self.country),
            offset: Some(self.offset),
            limit: Some(MOVES),
        }
    }

    fn asker(&self) -> Asker {
        Asker {
            device: given(&self.device),
            store: given(&self.store),
            udl: given(&self.udl),
            class: None,
            user: given(&self.user),
        }
    }

    /// What is supposed, as the beginning of a query.
    fn kept(&self) -> String {
        let pairs = [("service", &self.service), ("at", &self.at), ("down", &self.down)];
        let given = pairs.iter().filter(|(_, value)| !value.trim().is_empty());
        given.map(|(name, value)| format!("{name}={}&", encoded(value.trim()))).collect()
    }
}

fn given(text: &str) -> Option<String> {
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
