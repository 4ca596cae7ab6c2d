//! Every statement on the ledger. One connection, called by one thread; nothing in here waits or decides.
//!
//! Statements whose cost must not grow with the ledger name their index: left alone, SQLite takes the one on the state,
//! and reads every pending or every settled order for the few that are wanted.

use super::model::{AuditEntry, Backlog, Facts, Group, Head, Outgoing, Receipt, Record, State, Waiting};
use super::schema::{self, MigrationError};
use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, params};
use samovar_wire::{Country, OriginId, Timestamp};
use std::path::Path;

/// The oldest SQLite that may touch a ledger: 3.7.0 to 3.51.2 can corrupt a file when the WAL restarts.
const OLDEST_SQLITE: i32 = 3_051_003;

/// Why a ledger could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the ledger is in use by another process")]
    InUse,
    /// Linked with a SQLite that is not safe.
    #[error("SQLite {0} can corrupt a ledger; 3.51.3 or later is needed")]
    UnsafeSqlite(&'static str),
    /// It cannot be brought to the newest form.
    #[error("the ledger cannot be migrated")]
    Migrate(#[from] MigrationError),
    /// SQLite refused.
    #[error("the ledger cannot be opened")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Self::InUse,
            _ => Self::Sqlite(error),
        }
    }
}

/// The open ledger.
pub(super) struct Tables {
    connection: Connection,
    page_size: u64,
    pub(super) ledger_id: String,
}

impl Tables {
    /// Opens or makes the ledger, with the settings that were measured to keep every acknowledged order through a
    /// power cut: WAL with FULL (one sync per commit), no trust in whole-sector writes, an exclusive lock (which also
    /// needs no shared-memory file, so a full disk can still be opened).
    pub(super) fn open(path: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        if rusqlite::version_number() < OLDEST_SQLITE {
            return Err(OpenError::UnsafeSqlite(rusqlite::version()));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(uri(path), flags)?;
        connection.busy_timeout(std::time::Duration::ZERO)?;
        connection.execute_batch(
            "PRAGMA locking_mode=EXCLUSIVE;
             PRAGMA auto_vacuum=INCREMENTAL;
             PRAGMA journal_mode=WAL;
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
        schema::migrate(&mut connection)?;
        let page_size: u64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        // The backstop above the limit leaves room to record deliveries when no new order is taken any more.
        let max_pages = (max_bytes + 64 * 1024 * 1024) / page_size;
        connection.pragma_update(None, "max_page_count", max_pages)?;
        let ledger_id = ledger_id(&connection)?;
        Ok(Self { connection, page_size, ledger_id })
    }

    /// Writes in one transaction, which is one sync of the disk however many orders it holds.
    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let transaction =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let result = work(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> rusqlite::Result<u64> {
        let count = |pragma| self.connection.pragma_query_value(None, pragma, |row| row.get::<_, u64>(0));
        Ok((count("page_count")?.saturating_sub(count("freelist_count")?)) * self.page_size)
    }

    /// Moves the WAL into the ledger; cheap when there is nothing to move. Gives the frames still in the WAL.
    pub(super) fn checkpoint(&self) -> rusqlite::Result<u64> {
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            let (total, moved): (i64, i64) = (row.get(1)?, row.get(2)?);
            Ok(u64::try_from(total - moved).unwrap_or(0))
        })
    }

    /// Lets bodies and keys of old settled orders go, a few at a time; gives how many rows changed.
    pub(super) fn retain(
        &mut self,
        bodies_before: Timestamp,
        keys_before: Timestamp,
    ) -> rusqlite::Result<usize> {
        const STEP: usize = 200;
        self.write(|t| {
            let bodies = t
                .prepare_cached(
                    "UPDATE orders SET body = NULL WHERE seq IN (SELECT seq FROM orders INDEXED BY orders_old
                     WHERE state = 2 AND closed_at < ?1 AND body IS NOT NULL ORDER BY closed_at LIMIT ?2)",
                )?
                .execute(params![bodies_before.millis(), STEP])?;
            let keys = t
                .prepare_cached(
                    "DELETE FROM orders WHERE seq IN (SELECT seq FROM orders INDEXED BY orders_old
                     WHERE state = 2 AND closed_at < ?1 ORDER BY closed_at LIMIT ?2)",
                )?
                .execute(params![keys_before.millis(), STEP])?;
            t.execute_batch("PRAGMA incremental_vacuum(64)")?;
            Ok(bodies + keys)
        })
    }

    pub(super) fn heads(&self, group: &Group, after: u64, limit: usize) -> rusqlite::Result<Vec<Head>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, bytes, attempts, user FROM orders INDEXED BY orders_due
             WHERE state = 0 AND origin IS ?1 AND udl = ?2 AND seq > ?3 ORDER BY seq LIMIT ?4",
        )?;
        let origin = group.origin.as_ref().map(OriginId::as_str);
        statement
            .query_map(params![origin, group.udl.as_str(), after, limit], |row| {
                let user: Option<String> = row.get(3)?;
                Ok(Head {
                    seq: row.get(0)?,
                    bytes: row.get(1)?,
                    attempts: row.get(2)?,
                    user: user.map(String::into_boxed_str),
                })
            })?
            .collect()
    }

    pub(super) fn outgoing(&self, seqs: &[u64]) -> rusqlite::Result<Vec<Outgoing>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, id, key, order_no, sha256, accepted_at, body FROM orders
             WHERE seq = ?1 AND state = 0 AND body IS NOT NULL",
        )?;
        let mut orders = Vec::with_capacity(seqs.len());
        for seq in seqs {
            let order = statement
                .query_row([seq], |row| {
                    Ok(Outgoing {
                        seq: row.get(0)?,
                        id: row.get(1)?,
                        key: row.get(2)?,
                        order_no: row.get(3)?,
                        sha256: row.get(4)?,
                        accepted_at: Timestamp::from_millis(row.get(5)?),
                        body: row.get(6)?,
                    })
                })
                .optional()?;
            orders.extend(order);
        }
        Ok(orders)
    }

    pub(super) fn facts(&self) -> rusqlite::Result<Facts> {
        let time = |sql: &str| {
            let millis: Option<i64> =
                self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?.flatten();
            Ok::<_, rusqlite::Error>(millis.map(Timestamp::from_millis))
        };
        let accepted = self
            .connection
            .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'orders'")?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(Facts {
            oldest_pending_at: time("SELECT accepted_at FROM orders WHERE state = 0 ORDER BY seq LIMIT 1")?,
            last_settled_at: time("SELECT max(closed_at) FROM orders INDEXED BY orders_old WHERE state = 2")?,
            accepted: accepted.unwrap_or(0),
            bytes: self.bytes()?,
        })
    }

    /// Counts everything; at open, and never again.
    pub(super) fn backlog(&self) -> rusqlite::Result<Backlog> {
        let mut backlog = Backlog::default();
        let mut statement = self.connection.prepare("SELECT state, count(*) FROM orders GROUP BY state")?;
        for row in statement.query_map([], |row| Ok((row.get::<_, usize>(0)?, row.get(1)?)))? {
            let (state, count) = row?;
            if let Some(slot) = backlog.states.get_mut(state) {
                *slot = count;
            }
        }
        let mut statement = self.connection.prepare(
            "SELECT state, why, count(*) FROM orders WHERE state IN (1, 3) AND why IS NOT NULL GROUP BY state, why",
        )?;
        for row in statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))? {
            let (why, count) = row?;
            backlog.whys.insert(why, count);
        }
        let mut statement = self
            .connection
            .prepare("SELECT origin, udl, count(*) FROM orders INDEXED BY orders_due WHERE state = 0 GROUP BY origin, udl")?;
        let groups = statement.query_map([], |row| {
            Ok((Group { origin: optional_id(row, 0)?, udl: id(row, 1)? }, row.get(2)?))
        })?;
        for row in groups {
            let (group, orders) = row?;
            backlog.groups.insert(group, Waiting { orders, last_arrival: 0 });
        }
        Ok(backlog)
    }

    pub(super) fn record(&self, wanted: &str) -> rusqlite::Result<Option<Record>> {
        let by_id = format!("{RECORD} WHERE o.id = ?1");
        let by_number = format!("{RECORD} WHERE o.order_no = ?1 ORDER BY o.seq DESC LIMIT 1");
        for sql in [by_id, by_number] {
            let mut statement = self.connection.prepare_cached(&sql)?;
            if let Some(mut found) = statement.query_row([wanted], record).optional()? {
                found.audit = self.audit(found.receipt.seq)?;
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn audit(&self, seq: u64) -> rusqlite::Result<Vec<AuditEntry>> {
        self.connection
            .prepare_cached("SELECT at, what, who, reason FROM audit WHERE seq = ?1 ORDER BY at LIMIT 100")?
            .query_map([seq], |row| {
                Ok(AuditEntry {
                    at: Timestamp::from_millis(row.get(0)?),
                    what: row.get(1)?,
                    who: row.get(2)?,
                    reason: row.get(3)?,
                })
            })?
            .collect()
    }

    pub(super) fn page(
        &self,
        state: Option<State>,
        after: u64,
        limit: usize,
    ) -> rusqlite::Result<Vec<Record>> {
        let list = RECORD.replace("o.body", "NULL");
        match state {
            Some(state) => self
                .connection
                .prepare_cached(&format!("{list} WHERE o.state = ?1 AND o.seq > ?2 ORDER BY o.seq LIMIT ?3"))?
                .query_map(params![state as u8, after, limit], record)?
                .collect(),
            None => self
                .connection
                .prepare_cached(&format!("{list} WHERE o.seq > ?1 ORDER BY o.seq LIMIT ?2"))?
                .query_map(params![after, limit], record)?
                .collect(),
        }
    }
}

/// `psow=0`: cheap flash can wipe a whole sector when the power dies during a write, and then SQLite must not count
/// on the rest of that sector. Costs nothing that could be measured.
fn uri(path: &Path) -> String {
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

fn ledger_id(connection: &Connection) -> rusqlite::Result<String> {
    let fresh = uuid::Uuid::now_v7().to_string();
    connection.execute("INSERT INTO meta(k, v) VALUES('ledger', ?1) ON CONFLICT DO NOTHING", [fresh])?;
    connection.query_row("SELECT v FROM meta WHERE k = 'ledger'", [], |row| row.get(0))
}

pub(super) fn id<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    index: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error)))
}

pub(super) fn optional_id(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<OriginId>> {
    row.get::<_, Option<String>>(index)?.map(|_| id(row, index)).transpose()
}

pub(super) fn state(row: &Row<'_>, index: usize) -> rusqlite::Result<State> {
    let number: i64 = row.get(index)?;
    usize::try_from(number)
        .ok()
        .and_then(|number| State::ALL.get(number).copied())
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(index, number))
}

pub(super) const RECEIPT: &str = "SELECT id, order_no, state, seq, accepted_at, sha256 FROM orders";

pub(super) fn receipt(row: &Row<'_>) -> rusqlite::Result<(Receipt, [u8; 32])> {
    let receipt = Receipt {
        id: row.get(0)?,
        order_no: row.get(1)?,
        state: state(row, 2)?,
        seq: row.get(3)?,
        accepted_at: Timestamp::from_millis(row.get(4)?),
    };
    Ok((receipt, row.get(5)?))
}

const RECORD: &str =
    "SELECT o.id, o.order_no, o.state, o.seq, o.accepted_at, o.sha256, o.key, f.id, o.udl, o.kind,
    o.depends_on, o.why, o.detail, o.origin, o.attempts, o.first_sent_at, o.sent_at, o.closed_at, o.body
    FROM orders o LEFT JOIN orders f ON f.seq = o.conflict_with";

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let time =
        |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(index)?.map(Timestamp::from_millis));
    let (receipt, sha256) = receipt(row)?;
    Ok(Record {
        receipt,
        sha256,
        key: row.get(6)?,
        conflict_with: row.get(7)?,
        udl: id::<Country>(row, 8)?,
        kind: row.get(9)?,
        depends_on: row.get(10)?,
        why: row.get(11)?,
        detail: row.get(12)?,
        origin: optional_id(row, 13)?,
        attempts: row.get(14)?,
        first_sent_at: time(15)?,
        sent_at: time(16)?,
        closed_at: time(17)?,
        body: row.get(18)?,
        audit: Vec::new(),
    })
}
