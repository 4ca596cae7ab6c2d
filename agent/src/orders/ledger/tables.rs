//! Every statement on the ledger. One connection, called by one thread; nothing in here waits or decides.
//!
//! Statements whose cost must not grow with the ledger name their index: left alone, SQLite takes another one at times,
//! and reads every pending or every settled order for the few that are wanted.

use super::connection::{connect, quick_check, restart_wal, truncate_wal};
use super::files::is_full;
use super::lineage::UNMARK;
use super::model::{AuditEntry, Backlog, Facts, Group, Head, Receipt, Record, State, Stored, Waiting};
use super::reconcile::{self, UNCONFIRMED};
use super::schema::{self, MigrationError};
use super::seal::KeyError;
use crate::store::StoreError;
use rusqlite::config::DbConfig;
use rusqlite::types::{Type, Value};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use samovar_wire::{Country, OriginId, Timestamp};
use std::path::Path;
use std::time::Duration;

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
    /// Its files cannot be used.
    #[error("the ledger's files cannot be used")]
    Files(#[from] StoreError),
    /// There is no key to seal bodies with.
    #[error("the ledger's key cannot be used")]
    Key(#[from] KeyError),
    /// Its thread cannot be started.
    #[error("the ledger's thread cannot be started")]
    Thread(#[source] std::io::Error),
    /// It is damaged, and setting it aside did not help.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
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
    /// needs no shared-memory file, so a full disk can still be opened). Looks for damage first, for so long.
    ///
    /// Nothing is written before the WAL was moved. It may end inside a sector that holds acknowledged orders (what fills
    /// the sector up is written after the sync), and a write that begins there puts them at risk.
    pub(super) fn open(path: &Path, max_bytes: u64, look: Option<Duration>) -> Result<Self, OpenError> {
        if rusqlite::version_number() < OLDEST_SQLITE {
            return Err(OpenError::UnsafeSqlite(rusqlite::version()));
        }
        let mut connection = connect(path)?;
        let check = || look.map_or(Ok(None), |longest| quick_check(&connection, longest));
        // What a disk does not give once, it may give the second time.
        if check()?.is_some()
            && let Some(found) = check()?
        {
            return Err(OpenError::Damaged(found));
        }
        match restart_wal(&connection) {
            // What was accepted must be delivered even so; the WAL is moved as soon as there is room.
            Err(error) if is_full(&error) => tracing::warn!(%error, "no room to move the journal"),
            other => other?,
        }
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

    /// A statement that is kept for the next time.
    pub(super) fn prepare(&self, sql: &str) -> rusqlite::Result<rusqlite::CachedStatement<'_>> {
        self.connection.prepare_cached(sql)
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> rusqlite::Result<u64> {
        Ok(self.pages()?.saturating_sub(self.free_pages()?) * self.page_size)
    }

    /// Shows that the disk takes writes and syncs.
    pub(super) fn try_disk(&mut self) -> rusqlite::Result<()> {
        self.write(|t| {
            // The journal is emptied below.
            t.execute(UNMARK, [])?;
            t.execute(
                "INSERT INTO meta(k, v) VALUES('rewritten', '1') ON CONFLICT(k) DO UPDATE SET v = v + 1",
                [],
            )
        })?;
        truncate_wal(&self.connection)
    }

    /// From now on closing moves the WAL into the ledger.
    pub(super) fn sound(&self) -> rusqlite::Result<()> {
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(drop)
    }

    /// Lets go of the file without another write to it.
    pub(super) fn abandon(self) {
        // Without this the file would be checkpointed once more; that it cannot be set is no reason to keep it open.
        let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }

    /// Moves the WAL into the ledger; cheap when there is nothing to move.
    pub(super) fn checkpoint(&self) -> rusqlite::Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    }

    /// Bytes in the WAL that the ledger does not have.
    pub(super) fn owed(&self) -> rusqlite::Result<u64> {
        // Asked after every commit, as the two below are before it: so these are kept too.
        let frames: i64 = self
            .prepare("PRAGMA wal_checkpoint(NOOP)")?
            .query_row([], |row| Ok(row.get::<_, i64>(1)?.saturating_sub(row.get(2)?)))?;
        Ok(frames.max(0).cast_unsigned() * self.page_size)
    }

    /// Pages of the file that hold nothing.
    pub(super) fn free_pages(&self) -> rusqlite::Result<u64> {
        self.prepare("PRAGMA freelist_count")?.query_row([], |row| row.get(0))
    }

    /// Pages of the file.
    pub(super) fn pages(&self) -> rusqlite::Result<u64> {
        self.prepare("PRAGMA page_count")?.query_row([], |row| row.get(0))
    }

    /// Gives pages that hold nothing back to the disk.
    pub(super) fn vacuum(&mut self, pages: u32) -> rusqlite::Result<()> {
        self.write(|t| t.execute_batch(&format!("PRAGMA incremental_vacuum({pages})")))
    }

    /// Sets the place behind which the next order goes: no place is used twice while somebody may remember it.
    pub(super) fn begin_behind(&self, seq: u64) -> rusqlite::Result<()> {
        let forget = "DELETE FROM sqlite_sequence WHERE name = 'orders'";
        self.connection.execute(forget, [])?;
        let begin = "INSERT INTO sqlite_sequence(name, seq) VALUES('orders', ?1)";
        self.connection.execute(begin, [seq]).map(drop)
    }

    /// The connection, for salvage to read its own tables.
    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Bytes of bodies that are kept only for reference.
    pub(super) fn history_bytes(&self) -> rusqlite::Result<u64> {
        let sum = "SELECT coalesce(sum(bytes), 0) FROM orders WHERE state = 2 AND body IS NOT NULL";
        self.connection.prepare_cached(sum)?.query_row([], |row| row.get(0))
    }

    /// The oldest settled orders that still have their body, and that their origin has confirmed to have; from before
    /// a time, the others too.
    pub(super) fn history(&self, limit: usize, unconfirmed_before: Timestamp) -> rusqlite::Result<Vec<Kept>> {
        self.connection
            .prepare_cached(&format!(
                "SELECT seq, closed_at, bytes FROM orders WHERE state = 2 AND body IS NOT NULL
                 AND (closed_at < ?2 OR NOT {UNCONFIRMED}) ORDER BY closed_at LIMIT ?1"
            ))?
            .query_map(params![limit, unconfirmed_before.millis()], |row| {
                Ok(Kept {
                    seq: row.get(0)?,
                    closed_at: Timestamp::from_millis(row.get(1)?),
                    bytes: row.get(2)?,
                })
            })?
            .collect()
    }

    /// Lets the bodies of these orders go, and forgets some orders that were settled before a time; gives how many it
    /// forgot.
    pub(super) fn let_go(
        &mut self,
        bodies: &[u64],
        keys_before: Timestamp,
        limit: usize,
    ) -> rusqlite::Result<usize> {
        self.write(|t| {
            slim(t, bodies)?;
            let mut forgotten: Vec<u64> = Vec::new();
            for part in ["body IS NULL", "body IS NOT NULL"] {
                let mut forget = t.prepare_cached(&format!(
                    "DELETE FROM orders WHERE seq IN (SELECT seq FROM orders
                     WHERE state = 2 AND {part} AND closed_at < ?1 ORDER BY closed_at LIMIT ?2) RETURNING seq"
                ))?;
                for seq in forget.query_map(params![keys_before.millis(), limit], |row| row.get(0))? {
                    forgotten.push(seq?);
                }
            }
            reconcile::forgotten(t, forgotten.iter().copied().max())?;
            Ok(forgotten.len())
        })
    }

    pub(super) fn heads(
        &self,
        group: &Group,
        after: u64,
        up_to: u64,
        limit: usize,
    ) -> rusqlite::Result<Vec<Head>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, bytes, attempts, user FROM orders INDEXED BY orders_due
             WHERE state = 0 AND origin IS ?1 AND udl = ?2 AND seq > ?3 AND seq <= ?4 ORDER BY seq LIMIT ?5",
        )?;
        let origin = group.origin.as_ref().map(OriginId::as_str);
        // SQLite counts in signed numbers.
        let up_to = up_to.min(i64::MAX.cast_unsigned());
        statement
            .query_map(params![origin, group.udl.as_str(), after, up_to, limit], |row| {
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

    pub(super) fn facts(&self) -> rusqlite::Result<Facts> {
        let time = |sql: &str| {
            let millis: Option<i64> =
                self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?.flatten();
            Ok::<_, rusqlite::Error>(millis.map(Timestamp::from_millis))
        };
        Ok(Facts {
            oldest_pending_at: time(
                "SELECT accepted_at FROM orders WHERE seq = (SELECT min(seq) FROM orders INDEXED BY orders_due
                 WHERE state = 0)",
            )?,
            last_settled_at: time("SELECT max(closed_at) FROM orders WHERE state = 2 AND body IS NOT NULL")?
                .max(time("SELECT max(closed_at) FROM orders WHERE state = 2 AND body IS NULL")?),
            accepted: self.newest()?,
            bytes: self.bytes()?,
        })
    }

    /// The noted time of the clock by which history grows old.
    pub(super) fn noted_time(&self) -> rusqlite::Result<Option<Timestamp>> {
        let select = "SELECT CAST(v AS INTEGER) FROM meta WHERE k = 'history_at'";
        let millis = self.connection.prepare_cached(select)?.query_row([], |row| row.get(0)).optional()?;
        Ok(millis.map(Timestamp::from_millis))
    }

    /// Notes that time.
    pub(super) fn note_time(&mut self, at: Timestamp) -> rusqlite::Result<()> {
        let note = "INSERT INTO meta(k, v) VALUES('history_at', ?1) ON CONFLICT(k) DO UPDATE SET v = ?1";
        self.write(|t| t.prepare_cached(note)?.execute([at.millis().to_string()]).map(drop))
    }

    /// The newest time that an order bears.
    pub(super) fn newest_time(&self) -> rusqlite::Result<Option<Timestamp>> {
        let newest = "SELECT accepted_at FROM orders ORDER BY seq DESC LIMIT 1";
        let millis: Option<i64> =
            self.connection.prepare_cached(newest)?.query_row([], |row| row.get(0)).optional()?;
        Ok(millis.map(Timestamp::from_millis).max(self.facts()?.last_settled_at))
    }

    /// The highest place ever given to an order.
    fn newest(&self) -> rusqlite::Result<u64> {
        let newest = self
            .connection
            .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'orders'")?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(newest.unwrap_or(0))
    }

    /// Counts everything; at open, and never again.
    pub(super) fn backlog(&self) -> rusqlite::Result<Backlog> {
        let mut backlog = Backlog { newest: self.newest()?, ..Backlog::default() };
        // Settled orders, which are most, are in no index of states: they are what is left.
        let mut statement = self.connection.prepare(
            "SELECT state, count(*) FROM orders WHERE state NOT IN (0, 2) GROUP BY state UNION ALL
             SELECT 0, count(*) FROM orders INDEXED BY orders_due WHERE state = 0",
        )?;
        for row in statement.query_map([], |row| Ok((row.get::<_, usize>(0)?, row.get(1)?)))? {
            let (state, count) = row?;
            if let Some(slot) = backlog.states.get_mut(state) {
                *slot = count;
            }
        }
        let all: u64 = self.connection.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
        let others: u64 = backlog.states.iter().sum();
        backlog.states[State::Settled as usize] = all.saturating_sub(others);
        let mut statement = self.connection.prepare(
            "SELECT state, why, count(*) FROM orders
             WHERE state NOT IN (0, 2) AND state IN (1, 3) AND why IS NOT NULL GROUP BY state, why",
        )?;
        for row in statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))? {
            let (why, count) = row?;
            backlog.whys.insert(why, count);
        }
        let mut statement = self
            .connection
            .prepare("SELECT origin, udl, count(*) FROM orders WHERE state = 0 GROUP BY origin, udl")?;
        let groups = statement.query_map([], |row| {
            Ok((Group { origin: optional_id(row, 0)?, udl: id(row, 1)? }, row.get(2)?))
        })?;
        for row in groups {
            let (group, orders) = row?;
            backlog.groups.insert(group, Waiting { orders, last_arrival: 0 });
        }
        Ok(backlog)
    }

    pub(super) fn record(&self, wanted: &str) -> rusqlite::Result<Option<Stored<Record>>> {
        let by_id = format!("{RECORD} WHERE o.id = ?1");
        let by_number = format!("{RECORD} WHERE o.seq = ({NEWEST_OF_NUMBER})");
        for sql in [by_id, by_number] {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let found = statement.query_row([wanted], |row| Ok((record(row)?, row.get(19)?))).optional()?;
            if let Some((mut value, sealed)) = found {
                value.audit = self.audit(value.receipt.seq)?;
                return Ok(Some(Stored { value, sealed }));
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

    /// Orders that wait for one that was discarded: nothing but a person ends that.
    pub(super) fn stranded(&self) -> rusqlite::Result<u64> {
        self.connection
            .prepare_cached(
                "SELECT count(*) FROM orders w
                 WHERE w.state = 1 AND w.state NOT IN (0, 2) AND w.why = 'depends_on' AND 4 =
                   (SELECT s.state FROM orders s WHERE s.seq = max(
                     coalesce((SELECT max(seq) FROM orders WHERE key = w.depends_on AND conflict_with IS NULL
                               AND order_no = w.depends_on), 0),
                     coalesce((SELECT max(seq) FROM orders WHERE order_no = w.depends_on AND order_no <> key
                               AND conflict_with IS NULL), 0)))",
            )?
            .query_row([], |row| row.get(0))
    }

    pub(super) fn page(
        &self,
        state: Option<State>,
        after: u64,
        limit: usize,
    ) -> rusqlite::Result<Vec<Record>> {
        let list = RECORD.replace("o.body", "NULL");
        // The states are written out, or the partial indexes would not be used.
        let which = match state {
            None | Some(State::Settled) => state.map_or("", |_| "o.state = 2 AND").to_owned(),
            Some(State::Pending) => {
                // Those that wait are indexed by where they go; the few of a page are looked up by place.
                let seqs = "SELECT seq FROM orders INDEXED BY orders_due
                    WHERE state = 0 AND seq > ?1 ORDER BY seq LIMIT ?2";
                format!("o.seq IN ({seqs}) AND")
            }
            Some(state) => format!("o.state = {} AND o.state NOT IN (0, 2) AND", state as u8),
        };
        self.connection
            .prepare_cached(&format!("{list} WHERE {which} o.seq > ?1 ORDER BY o.seq LIMIT ?2"))?
            .query_map(params![after, limit], record)?
            .collect()
    }
}

/// Takes the bodies out of orders. An update would leave their pages half empty for ever; SQLite joins pages only when
/// rows are deleted, so the rows leave and come back without their bodies.
fn slim(t: &Transaction<'_>, seqs: &[u64]) -> rusqlite::Result<()> {
    let mut select = t.prepare_cached("SELECT * FROM orders WHERE seq = ?1")?;
    let columns = select.column_count();
    let emptied = [select.column_index("body")?, select.column_index("sealed")?];
    let mut delete = t.prepare_cached("DELETE FROM orders WHERE seq = ?1")?;
    let mut rows: Vec<Vec<Value>> = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let value = |row: &Row<'_>, column| {
            if emptied.contains(&column) { Ok(Value::Null) } else { row.get::<_, Value>(column) }
        };
        let row = select.query_row([seq], |row| (0..columns).map(|column| value(row, column)).collect());
        rows.extend(row.optional()?);
        delete.execute([seq])?;
    }
    let places = vec!["?"; columns].join(",");
    let mut insert = t.prepare_cached(&format!("INSERT INTO orders VALUES({places})"))?;
    for row in rows {
        insert.execute(rusqlite::params_from_iter(row))?;
    }
    Ok(())
}

/// A settled order that still has its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) seq: u64,
    pub(super) closed_at: Timestamp,
    pub(super) bytes: u64,
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

/// The newest order with a number. A number that is the key is found by the key.
const NEWEST_OF_NUMBER: &str = "SELECT max(seq) FROM
    (SELECT seq FROM orders WHERE key = ?1 AND conflict_with IS NULL AND order_no = ?1 UNION ALL
     SELECT seq FROM orders WHERE key = ?1 AND conflict_with IS NOT NULL AND order_no = ?1 UNION ALL
     SELECT seq FROM orders WHERE order_no = ?1 AND order_no <> key)";

const RECORD: &str =
    "SELECT o.id, o.order_no, o.state, o.seq, o.accepted_at, o.sha256, o.key, f.id, o.udl, o.kind,
    o.depends_on, o.why, o.detail, o.origin, o.attempts, o.first_sent_at, o.sent_at, o.closed_at, o.body, o.sealed
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
