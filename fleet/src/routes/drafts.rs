//! Drafts of route tables: written, put forward, approved. The states are drawn in [`super`].
//!
//! Two people may have the same draft open: each change names the revision it was made from, and the second one is
//! refused instead of overwriting the first. Whoever wrote at a draft is its author and does not approve it.

use samovar_wire::Timestamp;
use samovar_wire::route::{Flaw, Table};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, IntoActiveModel as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _,
};

use super::document::{self, Stamp};
use super::published::{self, Publication, PublishError};
use super::publishing::{self, Behind, Outcome};
use crate::app::App;
use crate::db::entity::{route_draft, route_table};
use crate::db::{Database, DatabaseError, Write};
use crate::{audit, clock};

/// Being written.
pub const DRAFT: &str = "draft";
/// Put forward: it does not change any more.
pub const PROPOSED: &str = "proposed";
/// In the list of published tables.
pub const PUBLISHED: &str = "published";
/// Thrown away.
pub const DISCARDED: &str = "discarded";

/// The longest title.
const TITLE: usize = 200;

/// Drafts of one list.
const LISTED: u64 = 200;

/// Something cannot be done with a draft.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// There is none.
    #[error("there is no draft {0}")]
    Missing(i64),
    /// Somebody else has changed it in the meantime.
    #[error("it was changed in the meantime: it is at revision {revision} by {by}; look at it again")]
    Stale {
        /// Where it is.
        revision: i64,
        /// Who changed it.
        by: String,
    },
    /// It is not in a state for that.
    #[error("draft {id} is {state}")]
    State {
        /// Which.
        id: i64,
        /// What it is.
        state: String,
    },
    /// A version came into force that it does not know.
    #[error(
        "version {in_force} came into force after this draft was begun from {base}: see what the draft would undo, then propose it over {in_force}"
    )]
    Outdated {
        /// What it was begun from.
        base: i64,
        /// What is in force.
        in_force: i64,
    },
    /// It is not fit to be published.
    #[error("{} flaws, the first: {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
    Flawed(Vec<Flaw>),
    /// Its author may not approve it.
    #[error("{0} wrote or proposed it: another operator must approve it")]
    OwnWork(String),
    /// Its words cannot be stored.
    #[error("{0}")]
    Form(&'static str),
    /// It does not come into force.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Not stored.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<sea_orm::DbErr> for DraftError {
    fn from(error: sea_orm::DbErr) -> Self {
        Self::Database(DatabaseError::Statement(error))
    }
}

/// The latest drafts first: those that are open, or all.
///
/// # Errors
/// When the database does not answer.
pub async fn list(database: &Database, all: bool) -> Result<Vec<route_draft::Model>, DraftError> {
    let mut query = route_draft::Entity::find().order_by_desc(route_draft::Column::Id).limit(LISTED);
    if !all {
        query = query.filter(route_draft::Column::State.is_in([DRAFT, PROPOSED]));
    }
    Ok(query.all(database.read()).await?)
}

/// One draft.
///
/// # Errors
/// [`DraftError::Missing`].
pub async fn find(database: &Database, id: i64) -> Result<route_draft::Model, DraftError> {
    route_draft::Entity::find_by_id(id).one(database.read()).await?.ok_or(DraftError::Missing(id))
}

/// What is wrong with a draft's document, and the table in it when it can be read.
///
/// # Errors
/// When the database does not answer.
pub async fn examine(app: &App, text: &str) -> Result<(Option<Table>, Vec<Flaw>), DraftError> {
    let highest = published::in_force(&app.database).await?.map_or(0, |row| row.version.unsigned_abs());
    Ok(document::examine(text, &app.config.server.environment, highest, clock::now()))
}

/// Begins a draft: from a document, or from the table in force (or an older one) under the next version.
///
/// # Errors
/// [`PublishError::Gone`] when there is no table to begin from, [`DraftError::Form`].
pub async fn create(
    app: &App,
    title: &str,
    document: Option<String>,
    from: Option<i64>,
    by: &str,
) -> Result<route_draft::Model, DraftError> {
    let now = clock::now();
    let in_force = published::in_force(&app.database).await?.map_or(0, |row| row.version);
    let text = match document {
        Some(text) => text,
        None => publishing::reissue(app, from.unwrap_or(in_force), now).await?,
    };
    let text = document::readable(&text);
    check_form(title, &text)?;
    let write = app.database.write().await?;
    let row = route_draft::ActiveModel {
        id: NotSet,
        title: Set(title.to_owned()),
        state: Set(DRAFT.to_owned()),
        base_version: Set(in_force),
        revision: Set(1),
        document: Set(text),
        authors: Set(authors_of("", by)),
        created_at: Set(now.millis()),
        created_by: Set(by.to_owned()),
        updated_at: Set(now.millis()),
        updated_by: Set(by.to_owned()),
        proposed_at: Set(None),
        proposed_by: Set(None),
        sha256: Set(None),
        decided_at: Set(None),
        decided_by: Set(None),
        version: Set(None),
    };
    let made = row.insert(&*write).await?;
    let from = format!("from version {}", from.unwrap_or(in_force));
    record(&write, now, by, ("routes.draft.create", &made), from).await?;
    write.commit().await?;
    Ok(made)
}

/// Replaces a draft's document, its title or both. `revision` is the one the change was made from.
///
/// # Errors
/// [`DraftError::Stale`], [`DraftError::State`], [`DraftError::Form`].
pub async fn edit(
    app: &App,
    (id, revision): (i64, i64),
    title: Option<&str>,
    document: Option<&str>,
    by: &str,
) -> Result<route_draft::Model, DraftError> {
    let now = clock::now();
    let write = app.database.write().await?;
    let found = open(&write, id, Some(revision), &[DRAFT]).await?;
    let title = title.unwrap_or(&found.title).to_owned();
    // Browsers send forms with CRLF.
    let document = document::readable(&document.unwrap_or(&found.document).replace("\r\n", "\n"));
    check_form(&title, &document)?;
    if title == found.title && document == found.document {
        return Ok(found);
    }
    let mut row = found.clone().into_active_model();
    // Without write lock on the row (PostgreSQL) the revision decides who was first.
    row.revision = Set(revision + 1);
    row.authors = Set(authors_of(&found.authors, by));
    (row.title, row.document) = (Set(title), Set(document));
    (row.updated_at, row.updated_by) = (Set(now.millis()), Set(by.to_owned()));
    let made = replace(&write, row, &found).await?;
    let detail = format!("revision {}, sha256 {}", made.revision, document::digest(&made.document));
    record(&write, now, by, ("routes.draft.edit", &made), detail).await?;
    write.commit().await?;
    Ok(made)
}

/// Puts a draft forward: stamped with the next version and today's date it does not change any more. `over` names the
/// version in force that the proposer knows, when that is not the one the draft was begun from.
///
/// # Errors
/// [`DraftError::Flawed`], [`DraftError::Outdated`], [`DraftError::Stale`], [`DraftError::State`].
pub async fn propose(
    app: &App,
    (id, revision): (i64, Option<i64>),
    over: Option<i64>,
    by: &str,
) -> Result<route_draft::Model, DraftError> {
    let now = clock::now();
    let in_force = published::in_force(&app.database).await?;
    let highest = in_force.as_ref().map_or(0, |row| row.version);
    let write = app.database.write().await?;
    let found = open(&write, id, revision, &[DRAFT]).await?;
    if found.base_version != highest && over != Some(highest) {
        return Err(DraftError::Outdated { base: found.base_version, in_force: highest });
    }
    let stamp = Stamp { version: highest.unsigned_abs() + 1, now, expires_at: None };
    // What cannot be stamped is told by the examination.
    let text = document::stamped(&found.document, stamp).unwrap_or_else(|| found.document.clone());
    let (table, flaws) =
        document::examine(&text, &app.config.server.environment, highest.unsigned_abs(), now);
    let Some(table) = table.filter(|_| flaws.is_empty()) else { return Err(DraftError::Flawed(flaws)) };
    let before = in_force.as_ref().and_then(published::table);
    let detail = super::difference::summary(before.as_ref(), &table).en;
    let mut row = found.clone().into_active_model();
    row.state = Set(PROPOSED.to_owned());
    row.base_version = Set(highest);
    row.revision = Set(found.revision + 1);
    row.sha256 = Set(Some(document::digest(&text)));
    row.document = Set(text);
    (row.proposed_at, row.proposed_by) = (Set(Some(now.millis())), Set(Some(by.to_owned())));
    let made = replace(&write, row, &found).await?;
    record(&write, now, by, ("routes.draft.propose", &made), detail).await?;
    write.commit().await?;
    Ok(made)
}

/// Takes a proposal back to be written at again, or throws a draft away.
///
/// # Errors
/// [`DraftError::State`].
pub async fn put_aside(
    app: &App,
    id: i64,
    to: &'static str,
    by: &str,
) -> Result<route_draft::Model, DraftError> {
    let now = clock::now();
    let (from, deed) = if to == DRAFT {
        (&[PROPOSED][..], "routes.draft.withdraw")
    } else {
        (&[DRAFT, PROPOSED][..], "routes.draft.discard")
    };
    let write = app.database.write().await?;
    let found = open(&write, id, None, from).await?;
    let mut row = found.clone().into_active_model();
    row.state = Set(to.to_owned());
    row.revision = Set(found.revision + 1);
    (row.proposed_at, row.proposed_by, row.sha256) = (Set(None), Set(None), Set(None));
    if to == DISCARDED {
        (row.decided_at, row.decided_by) = (Set(Some(now.millis())), Set(Some(by.to_owned())));
    }
    let made = replace(&write, row, &found).await?;
    record(&write, now, by, (deed, &made), String::new()).await?;
    write.commit().await?;
    Ok(made)
}

/// Approves a proposal: it is signed here and comes into force. `revision` is the one that the approver has looked at:
/// what was taken back, changed and proposed again in the meantime is not approved unseen.
///
/// # Errors
/// [`DraftError::OwnWork`] under four eyes, [`DraftError::State`], [`DraftError::Stale`], [`DraftError::Publish`].
pub async fn approve(
    app: &App,
    (id, revision): (i64, Option<i64>),
    by: &str,
) -> Result<route_table::Model, DraftError> {
    let found = find(&app.database, id).await?;
    if found.state != PROPOSED {
        return Err(DraftError::State { id, state: found.state });
    }
    if revision.is_some_and(|revision| revision != found.revision) {
        return Err(DraftError::Stale { revision: found.revision, by: found.updated_by });
    }
    if app.config.routes.four_eyes && is_author(&found, by) {
        return Err(DraftError::OwnWork(by.to_owned()));
    }
    let envelope = publishing::sign(app, found.document.as_bytes())?;
    let proposed_by = found.proposed_by.as_deref().filter(|name| *name != by);
    let behind = Behind { by, proposed_by, reissue_of: None, reason: &found.title, seen: true };
    match publishing::publish(app, envelope, behind, clock::now()).await? {
        Outcome::Published(row) | Outcome::Unchanged(row) => Ok(row),
    }
}

/// Whether somebody wrote at a draft or put it forward.
#[must_use]
pub fn is_author(draft: &route_draft::Model, name: &str) -> bool {
    draft.proposed_by.as_deref() == Some(name) || authors(&draft.authors).iter().any(|author| author == name)
}

/// Everybody who wrote at a draft.
#[must_use]
pub fn authors(list: &str) -> Vec<String> {
    serde_json::from_str(list).unwrap_or_default()
}

/// Marks the proposals that a publication consists of: the same bytes, signed here or elsewhere.
pub(super) async fn published(
    write: &Write,
    publication: &Publication<'_>,
    version: i64,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    let set = route_draft::ActiveModel {
        state: Set(PUBLISHED.to_owned()),
        decided_at: Set(Some(now.millis())),
        decided_by: Set(Some(publication.by.to_owned())),
        version: Set(Some(version)),
        ..Default::default()
    };
    route_draft::Entity::update_many()
        .set(set)
        .filter(route_draft::Column::State.eq(PROPOSED))
        .filter(route_draft::Column::Sha256.eq(&publication.sha256))
        .exec(&**write)
        .await?;
    Ok(())
}

fn authors_of(list: &str, by: &str) -> String {
    let mut names = authors(list);
    if !names.iter().any(|name| name == by) {
        names.push(by.to_owned());
    }
    serde_json::to_string(&names).unwrap_or_default()
}

fn check_form(title: &str, document: &str) -> Result<(), DraftError> {
    if title.chars().count() > TITLE {
        return Err(DraftError::Form("a title has at most 200 characters"));
    }
    if document.len() > samovar_wire::route::MAX_TABLE_BYTES {
        return Err(DraftError::Form("a route table has at most 1 MiB"));
    }
    if document.contains('\0') || title.contains('\0') {
        return Err(DraftError::Form("a text holds no NUL"));
    }
    Ok(())
}

async fn open(
    write: &Write,
    id: i64,
    revision: Option<i64>,
    states: &[&str],
) -> Result<route_draft::Model, DraftError> {
    let found = route_draft::Entity::find_by_id(id).one(&**write).await?.ok_or(DraftError::Missing(id))?;
    if !states.contains(&found.state.as_str()) {
        return Err(DraftError::State { id, state: found.state });
    }
    match revision {
        Some(revision) if revision != found.revision => {
            Err(DraftError::Stale { revision: found.revision, by: found.updated_by })
        }
        _ => Ok(found),
    }
}

/// Writes a row unless somebody was faster: of two servers of one database, the second finds another revision.
async fn replace(
    write: &Write,
    row: route_draft::ActiveModel,
    was: &route_draft::Model,
) -> Result<route_draft::Model, DraftError> {
    let done = route_draft::Entity::update_many()
        .set(row)
        .filter(route_draft::Column::Id.eq(was.id))
        .filter(route_draft::Column::Revision.eq(was.revision))
        .filter(route_draft::Column::State.eq(&was.state))
        .exec(&**write)
        .await?;
    let now = route_draft::Entity::find_by_id(was.id).one(&**write).await?;
    let now = now.ok_or(DraftError::Missing(was.id))?;
    if done.rows_affected == 0 {
        return Err(DraftError::Stale { revision: now.revision, by: now.updated_by });
    }
    Ok(now)
}

async fn record(
    write: &Write,
    now: Timestamp,
    by: &str,
    (deed, draft): (&str, &route_draft::Model),
    detail: String,
) -> Result<(), DatabaseError> {
    let title = if draft.title.is_empty() { String::new() } else { format!(" ({})", draft.title) };
    let subject = format!("route draft {}{title}", draft.id);
    audit::record(write, now, by, (deed, &subject), detail).await
}
