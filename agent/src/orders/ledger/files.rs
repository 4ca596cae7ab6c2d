//! The ledger's files: opening them, finding out whether they are sound, and setting aside what is not.
//!
//! ```text
//! orders.db, orders.db-wal ── sound ── journal written anew, moved ─► serve
//!        │  ├─ main file gone: the journal is kept, a new ledger ──► serve
//!        │  ├─ brought back by a rescue that was cut short (see `rescue`) ──► put in place ──► serve
//!        │  └─ journal gone or another one (see `lineage`) ─► the same ledger under another UUID ──► serve
//!        └─ damaged: both become orders.db.damaged-N, …-N-wal ─────► a new ledger serves, salvage reads the old one
//! ```

use super::connection::is_in_use;
use super::room::give_up_ballast;
use super::salvage::{self, journal_is_broken, journal_of};
use super::tables::{OpenError, Tables};
use super::{LedgerSettings, lineage, rescue};
use crate::store::{self, StoreError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest look for damage after a stop that was not clean.
const CHECK: Duration = Duration::from_secs(2);

/// An open ledger, and what is to be told of how it came to be; `None` when nothing is.
pub(super) struct Opened {
    pub(super) tables: Tables,
    pub(super) told: Option<String>,
}

/// Why a ledger was not opened.
enum Failure {
    /// It is damaged, in these words.
    Damaged(String),
    /// Anything else.
    Other(OpenError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Damaged(error.to_string()) } else { Self::Other(error.into()) }
    }
}

/// Opens the ledger. One that is damaged is set aside and a new one begun; so is what is left of one that vanished.
pub(super) fn open_or_set_aside(settings: &LedgerSettings) -> Result<Opened, OpenError> {
    let path = &settings.path;
    complete_pair(path)?;
    rescue::put_in_place(path)?;
    let lost = if vanished(path) { Some(set_aside_journal(path)?) } else { None };
    if length(path) > 0 && is_in_use(path) {
        return Err(OpenError::InUse);
    }
    let doubt = if length(path) > 0 { lineage::doubt(path)? } else { None };
    let (mut tables, damaged) = match open_sound(settings) {
        Ok(tables) => (tables, None),
        Err(Failure::Other(error)) => return Err(error),
        Err(Failure::Damaged(why)) => (replace_damaged(settings, 0)?, Some(why)),
    };
    let told = damaged.map(|why| format!("it was damaged ({why})")).or(lost);
    if let Some(told) = &told {
        tracing::error!(ledger = %path.display(), told, "a new ledger was begun");
    }
    if let Some(why) = doubt {
        tracing::error!(ledger = %path.display(), why, "the ledger goes on under another UUID");
        lineage::note_doubt(path, &why)?;
        tables.ledger_id = tables.write(|t| lineage::renew(t, 0)).map_err(OpenError::Sqlite)?;
    }
    finish(settings, tables, told)
}

/// Sets a damaged ledger aside and begins a new one whose places lie behind `seq`.
pub(super) fn begin_anew(settings: &LedgerSettings, seq: u64, why: &str) -> Result<Opened, OpenError> {
    tracing::error!(ledger = %settings.path.display(), why, "the ledger is damaged: a new one is begun");
    let tables = replace_damaged(settings, seq)?;
    finish(settings, tables, Some(format!("it was damaged ({why})")))
}

fn replace_damaged(settings: &LedgerSettings, seq: u64) -> Result<Tables, OpenError> {
    set_aside_pair(&settings.path)?;
    let tables = open_sound(settings).map_err(|failure| match failure {
        Failure::Damaged(why) => OpenError::Damaged(why),
        Failure::Other(error) => error,
    })?;
    if seq > 0 {
        tables.begin_behind(seq)?;
    }
    Ok(tables)
}

fn finish(settings: &LedgerSettings, mut tables: Tables, told: Option<String>) -> Result<Opened, OpenError> {
    salvage::register(tables.connection(), &settings.path)?;
    keep_marker(&settings.path, &tables.ledger_id)?;
    lineage::mark(&mut tables, &settings.path)?;
    Ok(Opened { tables, told })
}

/// Writes down which ledger is here, unless that is known.
pub(super) fn keep_marker(path: &Path, id: &str) -> Result<(), StoreError> {
    // A full disk has no room for a new one, and needs none.
    if marked_id(path).as_deref() == Some(id) {
        return Ok(());
    }
    store::replace(&marker(path), id.as_bytes(), 0o600)
}

/// Which ledger was here last.
pub(super) fn marked_id(path: &Path) -> Option<String> {
    store::read(&marker(path)).ok().flatten().and_then(|id| String::from_utf8(id).ok())
}

/// Opens the ledger again after a failure. Nothing is acknowledged before everything was written anew and the disk has
/// taken a write.
pub(super) fn reopen(settings: &LedgerSettings) -> Result<Tables, rusqlite::Error> {
    let as_sqlite = |error: OpenError| match error {
        OpenError::Sqlite(error) => error,
        other => rusqlite::Error::ToSqlConversionFailure(Box::new(other)),
    };
    if length(&settings.path) == 0 {
        // SQLite would make a new one, as if nothing had been.
        return Err(rusqlite::Error::InvalidPath(settings.path.clone()));
    }
    renew_journal(settings)?;
    let mut tables = Tables::open(&settings.path, settings.max_bytes, None).map_err(as_sqlite)?;
    let path = &settings.path;
    match tables.try_disk().and_then(|()| lineage::mark(&mut tables, path)) {
        Ok(()) => Ok(tables),
        Err(error) => {
            tables.abandon();
            Err(error)
        }
    }
}

/// Opens the ledger if it is sound. After a stop that was not clean it is looked at more closely.
fn open_sound(settings: &LedgerSettings) -> Result<Tables, Failure> {
    let path = &settings.path;
    if length(path) > 0 && is_in_use(path) {
        return Err(Failure::Other(OpenError::InUse));
    }
    let unclean = length(&journal_of(path)) > 0;
    if unclean && journal_is_broken(path).unwrap_or(false) {
        return Err(Failure::Damaged("its journal is broken in the middle".into()));
    }
    renew_journal(settings)?;
    let opened = Tables::open(path, settings.max_bytes, unclean.then_some(CHECK));
    let tables = opened.map_err(|error| match error {
        OpenError::Sqlite(error) => error.into(),
        OpenError::Migrate(super::schema::MigrationError::Sqlite(error)) => error.into(),
        OpenError::Damaged(found) => Failure::Damaged(found),
        other => Failure::Other(other),
    })?;
    // SQLite syncs the directory for a new WAL, but not for a new main file.
    store::sync_directory_of(path).map_err(|error| Failure::Other(error.into()))?;
    Ok(tables)
}

/// Writes the journal anew, as another file. After a failed sync it reads back as if it were on the disk, also for a
/// process that was started since, and no later sync of the same file puts it there. Moved from such a journal, the main
/// file would be torn by a power cut with nothing to mend it.
fn renew_journal(settings: &LedgerSettings) -> rusqlite::Result<()> {
    let wal = journal_of(&settings.path);
    let as_sqlite = |code| {
        move |error: StoreError| {
            let words = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
            rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(format!("{error}: {words}")))
        }
    };
    let content = store::read(&wal).map_err(as_sqlite(rusqlite::ffi::SQLITE_IOERR_READ))?;
    let Some(content) = content.filter(|content| !content.is_empty()) else { return Ok(()) };
    let renew = || store::replace(&wal, &content, 0o600);
    let full = |result: &Result<(), StoreError>| result.as_ref().is_err_and(StoreError::is_full);
    let mut renewed = renew();
    if full(&renewed) && give_up_ballast(settings) {
        renewed = renew();
    }
    if full(&renewed) {
        // Delivering needs less room than the copy.
        tracing::warn!("no room to write the journal anew");
        renewed = store::remove(&store::temporary_of(&wal));
    }
    renewed.map_err(as_sqlite(rusqlite::ffi::SQLITE_IOERR_WRITE))
}

/// Tells a directory that has had a ledger from a new one.
fn marker(path: &Path) -> PathBuf {
    path.with_extension("id")
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// SQLite would take a missing or empty file for a new database and throw the WAL beside it away, silently.
fn vanished(path: &Path) -> bool {
    length(path) == 0 && (marker(path).exists() || length(&journal_of(path)) > 0)
}

/// Keeps the WAL of a ledger that is gone: it may hold the last orders.
fn set_aside_journal(path: &Path) -> Result<String, StoreError> {
    let wal = journal_of(path);
    if !wal.exists() {
        return Ok("the file was missing or empty, and nothing was left of it".into());
    }
    let kept = store::set_aside(&wal)?;
    Ok(format!("the file was missing or empty; its journal is kept as {}", kept.display()))
}

/// Sets file and journal aside under names that belong together.
pub(super) fn set_aside_pair(path: &Path) -> Result<(), StoreError> {
    let kept = store::set_aside(path)?;
    store::rename_if_there(&journal_of(path), &journal_of(&kept))
}

/// A power cut between the two renames leaves the journal behind: it belongs to the file that was set aside last.
fn complete_pair(path: &Path) -> Result<(), StoreError> {
    let wal = journal_of(path);
    if path.exists() || length(&wal) == 0 {
        return Ok(());
    }
    match salvage::newest_damaged(path) {
        Some(kept) if !journal_of(&kept).exists() => store::rename_if_there(&wal, &journal_of(&kept)),
        _ => Ok(()),
    }
}

/// Whether an error says that the ledger is damaged. A column of another kind than was written is damage too.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error;
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error {
        Error::FromSqlConversionFailure(..)
        | Error::IntegralValueOutOfRange(..)
        | Error::InvalidColumnType(..)
        | Error::Utf8Error(..) => true,
        other => matches!(other.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)),
    }
}

/// Whether the disk did not give a page; opening the file again does not help against that.
pub(super) fn is_unreadable(error: &rusqlite::Error) -> bool {
    const UNREADABLE: [i32; 2] = [rusqlite::ffi::SQLITE_IOERR_READ, rusqlite::ffi::SQLITE_IOERR_SHORT_READ];
    error.sqlite_error().is_some_and(|error| UNREADABLE.contains(&error.extended_code))
}

/// Whether there is no room left.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}
