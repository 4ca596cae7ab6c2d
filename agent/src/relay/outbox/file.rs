//! IO: the SQLite file of the outbox.

use super::{Batch, Stream};
use rusqlite::{Connection, OptionalExtension, Result, params};
use samovar_wire::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use std::path::Path;

/// Migrations; `user_version` is how many have been applied. Append only.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE streams (name TEXT PRIMARY KEY, reserved INTEGER NOT NULL) STRICT;
    CREATE TABLE events (
        stream TEXT NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL,
        PRIMARY KEY (stream, seq)
    ) STRICT, WITHOUT ROWID;"];

/// Numbers set aside at a time. They are on disk, synced, before the first is used, because an event itself is not:
/// a power cut may take the last events, and their numbers may have been seen by the fleet.
const RESERVE: u64 = 1024;
/// What an event costs beside its text.
const ROW_BYTES: u64 = 64;
/// Most events in one batch.
const BATCH_EVENTS: u32 = 200;

/// The open file.
pub(super) struct OutboxFile {
    connection: Connection,
    next: [u64; 2],
    reserved: [u64; 2],
}

/// How much was removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

#[derive(Serialize)]
struct EventText<'a> {
    seq: u64,
    at: Timestamp,
    kind: &'a str,
    data: &'a RawValue,
}

#[derive(Serialize)]
struct BatchText<'a> {
    stream: &'a str,
    events: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_from: Option<u64>,
    #[serde(skip)]
    bytes: usize,
}

impl OutboxFile {
    /// Opens or makes the file. A new one begins its numbers at `first`, which must be above any given before.
    pub(super) fn open(path: Option<&Path>, first: u64) -> Result<Self> {
        let connection = match path {
            Some(path) => Connection::open(path)?,
            None => Connection::open_in_memory()?,
        };
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "journal_size_limit", 4 * 1024 * 1024)?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(corrupt(check));
        }
        migrate(&connection)?;
        let mut file = Self { connection, next: [0; 2], reserved: [0; 2] };
        for stream in Stream::ALL {
            let reserved = file.reserved(stream)?.unwrap_or(first.saturating_sub(1));
            file.reserved[stream.index()] = reserved;
            file.next[stream.index()] = reserved + 1;
        }
        Ok(file)
    }

    /// Highest number given in each stream.
    pub(super) fn last(&self) -> [u64; 2] {
        self.next.map(|next| next - 1)
    }

    /// Events and bytes in the file.
    pub(super) fn size(&self) -> Result<Removed> {
        let sql = "SELECT count(*), coalesce(sum(length(CAST(kind AS BLOB)) + length(CAST(data AS BLOB))), 0) FROM events";
        let (events, text): (u64, u64) =
            self.connection.query_row(sql, [], |row| Ok((number(row, 0)?, number(row, 1)?)))?;
        Ok(Removed { events, bytes: text + events * ROW_BYTES })
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")
    }

    pub(super) fn commit(&mut self) -> Result<()> {
        self.connection.execute_batch("COMMIT")
    }

    /// Gives up a transaction, if one is open.
    pub(super) fn roll_back(&mut self) {
        if !self.connection.is_autocommit() {
            // Where this fails too, the next operation reports it.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    /// Makes sure that `count` numbers of a stream may be given; outside a transaction.
    pub(super) fn reserve(&mut self, stream: Stream, count: u64) -> Result<()> {
        let index = stream.index();
        if self.next[index] + count - 1 <= self.reserved[index] {
            return Ok(());
        }
        self.store_reserved(stream, self.next[index] + count + RESERVE)
    }

    /// Adds an event and gives its bytes; inside a transaction, after [`Self::reserve`].
    pub(super) fn add(&mut self, stream: Stream, at: Timestamp, kind: &str, data: &str) -> Result<u64> {
        let next = &mut self.next[stream.index()];
        self.connection
            .prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![stream.name(), sql(*next), at.millis(), kind, data])?;
        *next += 1;
        Ok(kind.len() as u64 + data.len() as u64 + ROW_BYTES)
    }

    /// Reads events of a stream after a number, at least one if there is one.
    pub(super) fn read(&self, stream: Stream, after: u64, max_bytes: usize) -> Result<Batch> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, at, kind, data FROM events WHERE stream = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
        )?;
        let mut rows = statement.query(params![stream.name(), sql(after), BATCH_EVENTS])?;
        let kept_from = self.kept_from(stream)?;
        let mut batch = BatchText { stream: stream.name(), events: Vec::new(), kept_from, bytes: 0 };
        let mut span = None;
        while let Some(row) = rows.next()? {
            let seq = number(row, 0)?;
            let event = event_text(seq, row.get(1)?, &row.get::<_, String>(2)?, &row.get::<_, String>(3)?)?;
            if span.is_some() && batch.bytes + event.get().len() > max_bytes {
                break;
            }
            batch.bytes += event.get().len() + 1;
            batch.events.push(event);
            span = Some((span.map_or(seq, |(first, _)| first), seq));
        }
        Ok(Batch { stream, span, data: raw(&batch)? })
    }

    /// The lowest number that is kept: tells the fleet which missing numbers are gone and which are on their way.
    fn kept_from(&self, stream: Stream) -> Result<Option<u64>> {
        let sql = "SELECT seq FROM events WHERE stream = ?1 ORDER BY seq LIMIT 1";
        self.connection.prepare_cached(sql)?.query_row([stream.name()], |row| number(row, 0)).optional()
    }

    /// Removes what the fleet has.
    pub(super) fn acknowledge(&mut self, stream: Stream, up_to: u64) -> Result<Removed> {
        self.remove(stream, up_to)
    }

    /// Removes the oldest events until `bytes` are free, streams in the order of [`Stream::ALL`].
    pub(super) fn make_room(&mut self, bytes: u64) -> Result<Removed> {
        let mut removed = Removed::default();
        for stream in Stream::ALL {
            while removed.bytes < bytes {
                let Some(up_to) = self.oldest(stream, bytes - removed.bytes)? else { break };
                let part = self.remove(stream, up_to)?;
                removed = Removed { events: removed.events + part.events, bytes: removed.bytes + part.bytes };
            }
        }
        Ok(removed)
    }

    /// Gives back the numbers that were set aside and not used, so that a clean stop leaves no gap.
    pub(super) fn close(mut self) -> Result<()> {
        for stream in Stream::ALL {
            if self.reserved(stream)?.is_some() {
                self.store_reserved(stream, self.next[stream.index()] - 1)?;
            }
        }
        self.connection.close().map_err(|(_, error)| error)
    }

    /// The number up to which to remove to free about `bytes`; a page at a time.
    fn oldest(&self, stream: Stream, bytes: u64) -> Result<Option<u64>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, length(CAST(kind AS BLOB)) + length(CAST(data AS BLOB)) FROM events
             WHERE stream = ?1 ORDER BY seq LIMIT 256",
        )?;
        let mut rows = statement.query(params![stream.name()])?;
        let (mut freed, mut up_to) = (0, None);
        while freed < bytes
            && let Some(row) = rows.next()?
        {
            up_to = Some(number(row, 0)?);
            freed += number(row, 1)? + ROW_BYTES;
        }
        Ok(up_to)
    }

    fn remove(&mut self, stream: Stream, up_to: u64) -> Result<Removed> {
        let (events, text): (u64, u64) = self
            .connection
            .prepare_cached(
                "SELECT count(*), coalesce(sum(length(CAST(kind AS BLOB)) + length(CAST(data AS BLOB))), 0)
                 FROM events WHERE stream = ?1 AND seq <= ?2",
            )?
            .query_row(params![stream.name(), sql(up_to)], |row| Ok((number(row, 0)?, number(row, 1)?)))?;
        self.connection
            .prepare_cached("DELETE FROM events WHERE stream = ?1 AND seq <= ?2")?
            .execute(params![stream.name(), sql(up_to)])?;
        Ok(Removed { events, bytes: text + events * ROW_BYTES })
    }

    fn reserved(&self, stream: Stream) -> Result<Option<u64>> {
        self.connection
            .query_row("SELECT reserved FROM streams WHERE name = ?1", [stream.name()], |row| number(row, 0))
            .optional()
    }

    fn store_reserved(&mut self, stream: Stream, reserved: u64) -> Result<()> {
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        let stored = self
            .connection
            .execute("INSERT OR REPLACE INTO streams VALUES (?1, ?2)", params![stream.name(), sql(reserved)]);
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        stored?;
        self.reserved[stream.index()] = reserved;
        Ok(())
    }
}

/// Whether the file itself is at fault, not the disk or the moment.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

fn corrupt(detail: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(detail))
}

fn migrate(connection: &Connection) -> Result<()> {
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (version, migration) in (1_u32..).zip(MIGRATIONS).filter(|(number, _)| *number > version) {
        connection.execute_batch(&format!("BEGIN; {migration} PRAGMA user_version = {version}; COMMIT"))?;
    }
    Ok(())
}

/// SQLite's integers are signed; ours are counted from one and never get near the sign.
fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(row: &rusqlite::Row<'_>, index: usize) -> Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

fn event_text(seq: u64, at: i64, kind: &str, data: &str) -> Result<Box<RawValue>> {
    // Text that is not JSON can only come from a damaged row; the event is worth more than its data.
    let data = serde_json::from_str(data).unwrap_or(RawValue::NULL);
    raw(&EventText { seq, at: Timestamp::from_millis(at), kind, data })
}

fn raw(value: &impl Serialize) -> Result<Box<RawValue>> {
    serde_json::value::to_raw_value(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
