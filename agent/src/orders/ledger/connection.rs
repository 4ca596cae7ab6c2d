//! How a connection to the ledger's file is made, and what is done with one before anything is written.

use super::tables::OpenError;
use crate::clock::{Mono, mono};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE
    .union(OpenFlags::SQLITE_OPEN_CREATE)
    .union(OpenFlags::SQLITE_OPEN_URI)
    .union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Whether another process has the ledger. Must be asked before its files are touched past SQLite. A file that cannot
/// even be asked is in use by nobody.
pub(super) fn is_in_use(path: &Path) -> bool {
    let asked =
        Connection::open_with_flags(uri(path), FLAGS & !OpenFlags::SQLITE_OPEN_CREATE).and_then(|it| {
            it.busy_timeout(Duration::ZERO)?;
            it.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            it.execute_batch("PRAGMA locking_mode=EXCLUSIVE;")?;
            it.pragma_query_value(None, "page_count", |row| row.get::<_, u64>(0))
        });
    matches!(asked.map_err(OpenError::from), Err(OpenError::InUse))
}

/// A connection that has written nothing yet.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(uri(path), FLAGS)?;
    connection.busy_timeout(Duration::ZERO)?;
    // Until it is known to be sound, nothing of it may be moved or removed.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE;")?;
    // It stays as it was made, and would be written again at each start.
    if connection.pragma_query_value(None, "page_count", |row| row.get::<_, u64>(0))? == 0 {
        connection.execute_batch("PRAGMA auto_vacuum=INCREMENTAL;")?;
    }
    connection.execute_batch(
        "PRAGMA journal_mode=WAL;
         PRAGMA synchronous=FULL;
         PRAGMA wal_autocheckpoint=0;
         PRAGMA journal_size_limit=8388608;
         PRAGMA cell_size_check=ON;
         PRAGMA trusted_schema=OFF;
         PRAGMA foreign_keys=OFF;
         PRAGMA mmap_size=0;
         PRAGMA cache_size=-2048;
         PRAGMA temp_store=MEMORY;",
    )?;
    connection.set_prepared_statement_cache_capacity(48);
    Ok(connection)
}

/// Looks for damage for at most so long; gives the first that it finds.
pub(super) fn quick_check(connection: &Connection, longest: Duration) -> rusqlite::Result<Option<String>> {
    let end: Mono = mono().plus(longest);
    connection.progress_handler(20_000, Some(move || mono() >= end))?;
    let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    connection.progress_handler(0, None::<fn() -> bool>)?;
    match found {
        Ok(words) => Ok(Some(words).filter(|words| words != "ok")),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Moves the WAL into the main file and empties it.
pub(super) fn truncate_wal(connection: &Connection) -> rusqlite::Result<()> {
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy == 0 { Ok(()) } else { Err(rusqlite::Error::ExecuteReturnedResults) }
}

/// Moves the WAL into the main file, and lets the next write begin at its head. It is not emptied: the main file says that
/// there is one (see `lineage`).
pub(super) fn restart_wal(connection: &Connection) -> rusqlite::Result<()> {
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))?;
    if busy == 0 { Ok(()) } else { Err(rusqlite::Error::ExecuteReturnedResults) }
}

/// `psow=0`: cheap flash can wipe a whole sector when the power dies during a write, and then SQLite must not count
/// on the rest of that sector. Costs nothing that could be measured.
pub(super) fn uri(path: &Path) -> String {
    let escaped: String = path
        .to_string_lossy()
        .chars()
        .map(|c| match c {
            '%' => "%25".into(),
            '?' => "%3f".into(),
            '#' => "%23".into(),
            other => other.to_string(),
        })
        .collect();
    format!("file:{escaped}?psow=0")
}
