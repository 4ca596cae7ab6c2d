//! Every statement on the ledger. One connection, called by one thread; nothing in here waits or decides.

use super::model::{
    Accepted, AuditEntry, Backlog, CONFLICT, Change, ChangeTo, Facts, Group, Head, Hold, Intervention,
    KEY_REUSED, NewOrder, Outgoing, Receipt, Record, State, Waiting,
};
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
                    "UPDATE orders SET body = NULL WHERE seq IN (SELECT seq FROM orders
                     WHERE state = 2 AND closed_at < ?1 AND body IS NOT NULL ORDER BY closed_at LIMIT ?2)",
                )?
                .execute(params![bodies_before.millis(), STEP])?;
            let keys = t
                .prepare_cached(
                    "DELETE FROM orders WHERE seq IN (SELECT seq FROM orders
                     WHERE state = 2 AND closed_at < ?1 ORDER BY closed_at LIMIT ?2)",
                )?
                .execute(params![keys_before.millis(), STEP])?;
            t.execute_batch("PRAGMA incremental_vacuum(64)")?;
            Ok(bodies + keys)
        })
    }

    pub(super) fn heads(&self, group: &Group, after: u64, limit: usize) -> rusqlite::Result<Vec<Head>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, bytes, attempts, user FROM orders
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
            last_settled_at: time("SELECT max(closed_at) FROM orders WHERE state = 2")?,
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

fn id<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    index: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error)))
}

fn optional_id(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<OriginId>> {
    row.get::<_, Option<String>>(index)?.map(|_| id(row, index)).transpose()
}

fn state(row: &Row<'_>, index: usize) -> rusqlite::Result<State> {
    let number: i64 = row.get(index)?;
    usize::try_from(number)
        .ok()
        .and_then(|number| State::ALL.get(number).copied())
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(index, number))
}

const RECEIPT: &str = "SELECT id, order_no, state, seq, accepted_at, sha256 FROM orders";

fn receipt(row: &Row<'_>) -> rusqlite::Result<(Receipt, [u8; 32])> {
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

/// Takes one order in, unless its key is known.
pub(super) fn accept(t: &Transaction<'_>, new: &NewOrder) -> rusqlite::Result<Accepted> {
    let order = &new.order;
    let first = t
        .prepare_cached(&format!("{RECEIPT} WHERE key = ?1 AND conflict_with IS NULL"))?
        .query_row([&order.key], receipt)
        .optional()?;
    match first {
        None => {
            let held = waits_for(t, order.depends_on.as_deref())?;
            insert(t, new, held.as_deref().map(|detail| (State::Held, Hold::DependsOn.word(), detail)), None)
                .map(Accepted::New)
        }
        Some((receipt, sha256)) if sha256 == order.sha256 => Ok(Accepted::Replay(receipt)),
        Some((first, _)) => {
            let known = t
                .prepare_cached(&format!(
                    "{RECEIPT} WHERE key = ?1 AND conflict_with IS NOT NULL AND sha256 = ?2"
                ))?
                .query_row(params![order.key, order.sha256], receipt)
                .optional()?;
            if let Some((kept, _)) = known {
                return Ok(Accepted::KeyReused { kept, first: first.id, repeated: true });
            }
            let detail = format!("the key was used before, by order {} with other content", first.id);
            let why = (State::Quarantined, KEY_REUSED, detail.as_str());
            let kept = insert(t, new, Some(why), Some(first.seq))?;
            Ok(Accepted::KeyReused { kept, first: first.id, repeated: false })
        }
    }
}

/// What the order must wait for; `None` when its dependency is settled, or is not in this ledger.
fn waits_for(t: &Transaction<'_>, depends_on: Option<&str>) -> rusqlite::Result<Option<String>> {
    let Some(number) = depends_on else { return Ok(None) };
    let earlier = t
        .prepare_cached(&format!("{RECEIPT} WHERE order_no = ?1 ORDER BY seq DESC LIMIT 1"))?
        .query_row([number], receipt)
        .optional()?;
    Ok(earlier
        .filter(|(receipt, _)| receipt.state != State::Settled)
        .map(|_| format!("waits until order {number} is settled")))
}

fn insert(
    t: &Transaction<'_>,
    new: &NewOrder,
    why: Option<(State, &str, &str)>,
    conflict_with: Option<u64>,
) -> rusqlite::Result<Receipt> {
    let order = &new.order;
    let (state, why, detail) = match why {
        Some((state, why, detail)) => (state, Some(why), Some(detail)),
        None => (State::Pending, None, None),
    };
    let closed_at = (state == State::Quarantined).then_some(new.accepted_at.millis());
    t.prepare_cached(
        "INSERT INTO orders(id, key, conflict_with, order_no, sha256, udl, user, kind, depends_on, body, bytes,
         accepted_at, state, why, detail, closed_at) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16)",
    )?
    .execute(params![
        new.id,
        order.key,
        conflict_with,
        order.order_no,
        order.sha256,
        order.udl.as_str(),
        order.user,
        order.kind,
        order.depends_on,
        order.body,
        order.body.len(),
        new.accepted_at.millis(),
        state as u8,
        why,
        detail,
        closed_at
    ])?;
    Ok(Receipt {
        id: new.id.clone(),
        order_no: order.order_no.clone(),
        state,
        seq: u64::try_from(t.last_insert_rowid()).unwrap_or_default(),
        accepted_at: new.accepted_at,
    })
}

/// What a change did to the counts: the order left one place and came to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: Place,
    pub(super) to: Place,
}

/// Where an order is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) state: State,
    pub(super) group: Group,
    pub(super) why: Option<String>,
}

fn place(t: &Transaction<'_>, seq: u64) -> rusqlite::Result<Option<Place>> {
    t.prepare_cached("SELECT state, origin, udl, why FROM orders WHERE seq = ?1")?
        .query_row([seq], |row| {
            let group = Group { origin: optional_id(row, 1)?, udl: id(row, 2)? };
            Ok(Place { state: state(row, 0)?, group, why: row.get(3)? })
        })
        .optional()
}

/// Binds pending orders to an origin and counts the attempt. Orders that are no longer pending, or are bound
/// elsewhere, are left alone: the caller gets back only what it may send.
pub(super) fn bind(
    t: &Transaction<'_>,
    seqs: &[u64],
    origin: &OriginId,
    now: Timestamp,
) -> rusqlite::Result<(Vec<u64>, Vec<Move>)> {
    let (mut bound, mut moves) = (Vec::with_capacity(seqs.len()), Vec::new());
    let mut update = t.prepare_cached(
        "UPDATE orders SET origin = ?2, attempts = attempts + 1, sent_at = ?3,
         first_sent_at = coalesce(first_sent_at, ?3) WHERE seq = ?1",
    )?;
    for &seq in seqs {
        let Some(from) = place(t, seq)? else { continue };
        let elsewhere = from.group.origin.as_ref().is_some_and(|other| other != origin);
        if from.state != State::Pending || elsewhere {
            continue;
        }
        update.execute(params![seq, origin.as_str(), now.millis()])?;
        let mut to = from.clone();
        to.group.origin = Some(origin.clone());
        moves.push(Move { from, to });
        bound.push(seq);
    }
    Ok((bound, moves))
}

/// Writes what became of orders, and frees those that waited for a settled one.
pub(super) fn change(t: &Transaction<'_>, changes: &[Change], now: Timestamp) -> rusqlite::Result<Vec<Move>> {
    let mut moves = Vec::with_capacity(changes.len());
    for change in changes {
        let Some(from) = place(t, change.seq)? else { continue };
        let (to, why, detail) = match &change.to {
            ChangeTo::Settled => (State::Settled, None, None),
            ChangeTo::Quarantined { why, detail } => (State::Quarantined, Some(why.as_str()), Some(detail)),
            ChangeTo::Failed(detail) => (State::Pending, None, Some(detail)),
            ChangeTo::Held(hold, detail) => (State::Held, Some(hold.word()), Some(detail)),
        };
        // The origin's word that it has the order is the truth whatever happened here meanwhile; any other change
        // is for pending orders only.
        if from.state != State::Pending && (to != State::Settled || from.state == State::Settled) {
            continue;
        }
        let closed_at = matches!(to, State::Settled | State::Quarantined).then_some(now.millis());
        t.prepare_cached(
            "UPDATE orders SET state = ?2, why = ?3, detail = ?4, closed_at = ?5 WHERE seq = ?1",
        )?
        .execute(params![change.seq, to as u8, why, detail, closed_at])?;
        if to != State::Pending {
            let place = Place { state: to, group: from.group.clone(), why: why.map(str::to_owned) };
            moves.push(Move { from, to: place });
        }
        if to == State::Settled {
            let waiting = "SELECT w.seq FROM orders w JOIN orders s ON w.depends_on = s.order_no
                WHERE s.seq = ?1 AND w.state = 1 AND w.why = 'depends_on'";
            moves.extend(free(t, waiting, &change.seq)?);
        }
    }
    Ok(moves)
}

/// Makes held orders pending again.
pub(super) fn unhold(t: &Transaction<'_>, hold: Hold) -> rusqlite::Result<Vec<Move>> {
    free(t, "SELECT seq FROM orders WHERE state = 1 AND why = ?1", &hold.word())
}

fn free(t: &Transaction<'_>, select: &str, argument: &dyn rusqlite::ToSql) -> rusqlite::Result<Vec<Move>> {
    let seqs: Vec<u64> = t
        .prepare_cached(select)?
        .query_map([argument], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    seqs.into_iter().filter_map(|seq| make_pending(t, seq, false).transpose()).collect()
}

fn make_pending(t: &Transaction<'_>, seq: u64, unbind: bool) -> rusqlite::Result<Option<Move>> {
    let Some(from) = place(t, seq)? else { return Ok(None) };
    let sql = if unbind {
        "UPDATE orders SET state = 0, why = NULL, closed_at = NULL, origin = NULL WHERE seq = ?1"
    } else {
        "UPDATE orders SET state = 0, why = NULL, closed_at = NULL WHERE seq = ?1"
    };
    t.prepare_cached(sql)?.execute([seq])?;
    let origin = if unbind { None } else { from.group.origin.clone() };
    let group = Group { origin, udl: from.group.udl.clone() };
    Ok(Some(Move { from, to: Place { state: State::Pending, group, why: None } }))
}

/// What came of an intervention.
pub(super) enum Intervened {
    /// Done; the order moved so.
    Done(Move),
    /// No such order.
    Unknown,
    /// The order's state does not allow it; the words say why and what to do.
    Refused(&'static str),
}

/// Does what an operator asks, and writes it down.
pub(super) fn intervene(
    t: &Transaction<'_>,
    seq: u64,
    what: &Intervention,
    who: &str,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<Intervened> {
    let Some(from) = place(t, seq)? else { return Ok(Intervened::Unknown) };
    if let Some(refused) = refusal(&from, what) {
        return Ok(Intervened::Refused(refused));
    }
    t.prepare_cached("INSERT INTO audit(at, seq, what, who, reason) VALUES(?1, ?2, ?3, ?4, ?5)")?
        .execute(params![now.millis(), seq, what.word(), who, reason])?;
    if *what == Intervention::Discard {
        t.prepare_cached(
            "UPDATE orders SET state = 4, why = NULL, detail = ?2, closed_at = ?3 WHERE seq = ?1",
        )?
        .execute(params![seq, reason, now.millis()])?;
        let to = Place { state: State::Discarded, group: from.group.clone(), why: None };
        return Ok(Intervened::Done(Move { from, to }));
    }
    // An order that the origin refused by its own word is not there, so a retry may go wherever routing says now.
    let refused_by_origin = from.state == State::Quarantined && from.why.as_deref() != Some(CONFLICT);
    let unbind = *what == Intervention::Release || refused_by_origin;
    Ok(make_pending(t, seq, unbind)?.map_or(Intervened::Unknown, Intervened::Done))
}

fn refusal(from: &Place, what: &Intervention) -> Option<&'static str> {
    match (what, from.state) {
        (_, State::Settled) => Some("the order is settled: nothing to do"),
        (_, State::Discarded) => Some("the order was discarded: hand it in again under a new key"),
        (Intervention::Retry, State::Quarantined) if from.why.as_deref() == Some(KEY_REUSED) => Some(
            "its key belongs to another order: hand it in again under a key of its own, then discard this record",
        ),
        (Intervention::Release, _) if from.group.origin.is_none() => {
            Some("the order is not bound to an origin")
        }
        _ => None,
    }
}
