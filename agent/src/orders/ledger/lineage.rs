//! Which ledger this is, and whether what lies here is all that it had (IO).
//!
//! While a ledger is open its main file says which journal belongs to it: a number that a journal keeps for as long as it
//! is continued, also through crashes. A clean end takes that back, because nothing is left in a journal then. So a start
//! sees that the journal was taken away or is another one, and a copy of the main file alone is known for what it is.
//! What cannot be seen is a journal cut behind its beginning, or a directory restored whole; an origin knows of later
//! places then, and [`Ledger::renew`] is for who learns of it.
//!
//! Places may have been given that nothing here tells of. The ledger goes on under another UUID, and behind them.

use super::connection::{connect, uri};
use super::files::{self, is_damage, is_full};
use super::salvage::{Run, journal_of, journal_run};
use super::tables::{OpenError, Tables};
use super::thread::{Request, Writer};
use super::{Ledger, LedgerError};
use crate::store::{self, StoreError};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction};
use std::path::{Path, PathBuf};

/// What the main file says before it is known which journal it will be.
const BEING_MADE: &str = "-";
/// Takes the mark back.
pub(super) const UNMARK: &str = "DELETE FROM meta WHERE k = 'journal'";
/// Places left out behind a break: more than a journal has room for orders.
const GAP: u64 = 1 << 17;

impl Ledger {
    /// Begins another UUID with places behind one that somebody remembers, because this ledger turned out to be an older
    /// copy of itself. Every order stays as it is; all that was settled is to be compared anew. Gives the UUID.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn renew(&self, behind: u64, why: &str) -> Result<String, LedgerError> {
        let why = why.to_owned();
        self.write(|reply| Request::Renew { behind, why, reply }).await
    }
}

impl Writer {
    /// Tells of a ledger that goes on under another UUID.
    pub(super) fn renewed(&mut self, id: &str, why: &str) {
        let path = self.settings.path.clone();
        if let Err(error) = files::keep_marker(&path, id).and_then(|()| note_doubt(&path, why)) {
            // It is told until the next start all the same.
            tracing::warn!(%error, "a doubt about the ledger cannot be written down");
        }
        if let Some(tables) = &mut self.tables {
            id.clone_into(&mut tables.ledger_id);
        }
        tracing::error!(id, why, "the ledger goes on under another UUID");
        self.published.storage.send_modify(|storage| storage.doubt = Some(why.to_owned()));
        self.published.id.send_replace(id.into());
    }
}

/// Goes on under another UUID, behind what may have been given. Runs in a transaction.
pub(super) fn renew(t: &Transaction<'_>, behind: u64) -> rusqlite::Result<String> {
    let id = uuid::Uuid::now_v7().to_string();
    t.execute("UPDATE meta SET v = ?1 WHERE k = 'ledger'", [&id])?;
    let select = "SELECT seq FROM sqlite_sequence WHERE name = 'orders'";
    let last: u64 = t.query_row(select, [], |row| row.get(0)).optional()?.unwrap_or(0);
    t.execute("DELETE FROM sqlite_sequence WHERE name = 'orders'", [])?;
    // SQLite counts in signed numbers.
    let next = last.max(behind.min(i64::MAX.cast_unsigned() / 2)) + GAP;
    t.execute("INSERT INTO sqlite_sequence(name, seq) VALUES('orders', ?1)", [next])?;
    let newest = "SELECT coalesce(max(generation), 0) FROM reconcile_marks";
    let generation: i64 = t.query_row(newest, [], |row| row.get(0))?;
    t.execute("DELETE FROM reconcile_marks", [])?;
    t.execute(
        "INSERT INTO reconcile_marks(origin, bucket, generation)
         SELECT DISTINCT origin, seq / 256, ?1 FROM orders WHERE state = 2 AND origin IS NOT NULL",
        [generation + 1],
    )?;
    Ok(id)
}

/// Writes into the main file which journal belongs to it.
pub(super) fn mark(tables: &mut Tables, path: &Path) -> rusqlite::Result<()> {
    if !matches!(journal_run(path), Ok(Run::Of(_))) {
        // The first write makes one.
        note(tables, BEING_MADE)?;
    }
    let Ok(Run::Of(run)) = journal_run(path) else { return Ok(()) };
    let marked = noted(tables.connection())?;
    if marked.as_deref() == Some(&spelled(run)) {
        return Ok(());
    }
    match note(tables, &spelled(run)).and_then(|()| tables.checkpoint()) {
        // Orders can be delivered even so.
        Err(error) if is_full(&error) => Ok(()),
        other => other,
    }
}

/// Says that nothing is in a journal any more. Only then may closing remove it.
pub(super) fn unmark(tables: &mut Tables) -> rusqlite::Result<()> {
    tables.write(|t| t.execute(UNMARK, []))?;
    tables.checkpoint()?;
    tables.sound()
}

fn note(tables: &mut Tables, mark: &str) -> rusqlite::Result<()> {
    let set = "INSERT INTO meta(k, v) VALUES('journal', ?1) ON CONFLICT(k) DO UPDATE SET v = ?1";
    tables.write(|t| t.execute(set, [mark]).map(drop))
}

fn noted(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT v FROM meta WHERE k = 'journal'", [], |row| row.get(0)).optional()
}

/// With its complement, so that half a page cannot look like a mark.
fn spelled(run: u32) -> String {
    format!("{run:08x}{:08x}", !run)
}

fn read(mark: &str) -> Option<u32> {
    let run = u32::from_str_radix(mark.get(..8)?, 16).ok()?;
    (spelled(run) == mark).then_some(run)
}

/// Why a ledger that is about to be opened may lack orders that it acknowledged, in words. A journal that is not its own
/// is set aside.
pub(super) fn doubt(path: &Path) -> Result<Option<String>, OpenError> {
    let Some(expected) = expected(path) else { return Ok(None) };
    // What the disk does not give now, opening will meet.
    let Ok(run) = journal_run(path) else { return Ok(None) };
    match run {
        Run::Missing => Ok(Some("its journal is missing: the orders acknowledged last may be gone".into())),
        Run::Of(run) if run != expected && !is_its_own(path, run) => {
            let kept = store::set_aside(&journal_of(path))?;
            let kept = kept.file_name().unwrap_or_default().to_string_lossy();
            Ok(Some(format!(
                "its journal was another one, which is kept as {kept}: the orders acknowledged last may be gone"
            )))
        }
        // One whose head was being written when the power went had nothing left that the main file lacks.
        Run::Of(_) | Run::Torn => Ok(None),
    }
}

/// The journal that the main file by itself expects.
fn expected(path: &Path) -> Option<u32> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let alone = Connection::open_with_flags(format!("{}&immutable=1", uri(path)), flags).ok()?;
    // A file that cannot be read so far may be whole with its journal.
    noted(&alone).ok().flatten().as_deref().and_then(read)
}

/// Whether main file and journal together say that they belong together: the power went while a new one was begun.
fn is_its_own(path: &Path, run: u32) -> bool {
    let together = connect(path).and_then(|connection| {
        let id = "SELECT v FROM meta WHERE k = 'ledger'";
        Ok((noted(&connection)?, connection.query_row(id, [], |row| row.get::<_, String>(0))?))
    });
    match together {
        Ok((mark, id)) => {
            let begun = mark.is_some_and(|mark| mark == BEING_MADE || read(&mark) == Some(run));
            begun && files::marked_id(path).is_none_or(|marked| marked == id)
        }
        Err(error) => !is_damage(&error),
    }
}

fn doubt_file(path: &Path) -> PathBuf {
    path.with_extension("doubt")
}

/// Keeps a doubt until somebody has looked into it and removes the file.
pub(super) fn note_doubt(path: &Path, why: &str) -> Result<(), StoreError> {
    match store::replace(&doubt_file(path), why.as_bytes(), 0o600) {
        Err(error) if error.is_full() => Ok(()),
        other => other,
    }
}

/// The doubt that is kept.
pub(super) fn kept_doubt(path: &Path) -> Option<String> {
    store::read(&doubt_file(path)).ok().flatten().and_then(|words| String::from_utf8(words).ok())
}
