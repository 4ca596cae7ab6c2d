//! The thread that owns the ledger: takes what is queued, writes it in one transaction, answers after the commit.
//!
//! ```text
//! wait ─► drain (≤ 64 writes, ≤ 1 MiB) ─► one commit = one sync ─► answers ─► one read ─► drain …
//!   └─ idle 200 ms: checkpoint ─ idle longer: a step of retention
//! ```
//!
//! No artificial wait: under load the sync itself is the time in which the next group gathers. Reads come one at a
//! time between commits, so a burst of page loads cannot delay a till.

use super::model::{Accepted, Backlog, Change, Hold, Intervention, NewOrder, Outgoing};
use super::reconcile::{self, ReconcileWrite, Resent};
use super::tables::{OpenError, Tables};
use super::writes::{self, Intervened, Move, count_new};
use super::{LedgerError, LedgerSettings, Storage};
use crate::clock::{Mono, mono, wall};
use crate::heartbeat::Heartbeat;
use crate::store::{self, StoreError};
use rusqlite::Transaction;
use samovar_wire::{OriginId, Timestamp};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Most writes in one commit.
const GROUP_WRITES: usize = 64;
/// Most bytes of orders in one commit.
const GROUP_BYTES: usize = 1024 * 1024;
/// Idle time after which the WAL is moved into the ledger.
const CHECKPOINT_IDLE: Duration = Duration::from_millis(200);
/// Bytes written after which it is moved even without idle time.
const CHECKPOINT_BYTES: usize = 4 * 1024 * 1024;
/// What one commit costs in the WAL besides the orders: a few pages.
const COMMIT_BYTES: usize = 16 * 1024;
/// How often an idle thread looks for orders that may be let go.
const RETENTION_EVERY: Duration = Duration::from_secs(60);
/// How often a ledger that failed is opened again.
const REOPEN_EVERY: Duration = Duration::from_millis(500);

type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;
type ReadWork = Box<dyn FnOnce(Result<&Tables, LedgerError>) + Send>;

/// What can be asked of the thread.
pub(super) enum Request {
    Accept { orders: Vec<NewOrder>, reply: Reply<Vec<Accepted>> },
    Bind { seqs: Vec<u64>, origin: OriginId, at: Timestamp, reply: Reply<Vec<Outgoing>> },
    Change { changes: Vec<Change>, at: Timestamp, reply: Reply<()> },
    Unhold { hold: Hold, reply: Reply<()> },
    Intervene { seq: u64, what: Intervention, who: String, reason: String, at: Timestamp, reply: Reply<()> },
    Reconcile { write: ReconcileWrite, reply: Reply<Resent> },
    Read(ReadWork),
}

/// What a write did; told to the asker only after the commit.
enum Effect {
    Accepted(Vec<Accepted>),
    Bound(Vec<u64>, Vec<Move>),
    Moved(Vec<Move>),
    Reconciled(Resent, Vec<Move>),
    Refused(LedgerError),
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Accept { orders, .. } => orders.iter().map(|new| new.order.body.len() + 256).sum(),
            _ => 1024,
        }
    }

    fn fail(self, error: LedgerError) {
        // Askers that have given up waiting need no answer.
        match self {
            Self::Accept { reply, .. } => drop(reply.send(Err(error))),
            Self::Bind { reply, .. } => drop(reply.send(Err(error))),
            Self::Change { reply, .. } | Self::Unhold { reply, .. } | Self::Intervene { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Self::Reconcile { reply, .. } => drop(reply.send(Err(error))),
            Self::Read(work) => work(Err(error)),
        }
    }
}

/// Opens the ledger. One that is damaged is set aside and a new one begun; so is what is left of one that vanished.
/// The second value says what happened, for the condition.
pub(super) fn open_or_set_aside(settings: &LedgerSettings) -> Result<(Tables, Option<String>), OpenError> {
    let unusable =
        |error: StoreError| OpenError::Sqlite(rusqlite::Error::ToSqlConversionFailure(Box::new(error)));
    let lost = if vanished(settings) { Some(set_aside_wal(settings).map_err(unusable)?) } else { None };
    let (tables, damaged) = match open(settings) {
        Err(OpenError::Sqlite(error)) if is_damage(&error) => {
            let kept = store::set_aside(&settings.path).map_err(|_| OpenError::Sqlite(error))?;
            // The WAL belongs to the damaged file; beside a new ledger it would be taken for that one's.
            let _ = set_aside_wal(settings);
            (open(settings)?, Some(format!("it was damaged; kept as {}", kept.display())))
        }
        other => (other?, None),
    };
    let told = damaged.or(lost);
    if let Some(told) = &told {
        tracing::error!(ledger = %settings.path.display(), told, "a new ledger was begun");
    }
    store::replace(&marker(settings), tables.ledger_id.as_bytes(), 0o600).map_err(unusable)?;
    Ok((tables, told))
}

/// Tells a directory that has had a ledger from a new one.
fn marker(settings: &LedgerSettings) -> PathBuf {
    settings.path.with_extension("id")
}

fn wal(settings: &LedgerSettings) -> PathBuf {
    let mut wal = settings.path.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}

/// SQLite would take a missing or empty file for a new database and throw the WAL beside it away, silently.
fn vanished(settings: &LedgerSettings) -> bool {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    length(&settings.path) == 0 && (marker(settings).exists() || length(&wal(settings)) > 0)
}

/// Keeps the WAL of a ledger that is gone: it may hold the last orders.
fn set_aside_wal(settings: &LedgerSettings) -> Result<String, StoreError> {
    let wal = wal(settings);
    if !wal.exists() {
        return Ok("the file was missing or empty, and nothing was left of it".into());
    }
    let kept = store::set_aside(&wal)?;
    Ok(format!("the file was missing or empty; its journal is kept as {}", kept.display()))
}

fn open(settings: &LedgerSettings) -> Result<Tables, OpenError> {
    let tables = Tables::open(&settings.path, settings.max_bytes)?;
    // SQLite syncs the directory for a new WAL, but not for a new main file.
    store::sync_directory_of(&settings.path)
        .map_err(|error| OpenError::Sqlite(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
    Ok(tables)
}

/// Whether a disk has no room for new orders. Kept free are what the WAL still owes the main file, which grows only
/// when the WAL is moved into it, and room for binding and settling what was accepted: an eighth of a small disk, at
/// most 16 MiB. A ledger that took the last block for a new order could record no delivery, and stay full for ever.
const fn is_short(free: u64, total: u64, owed: u64) -> bool {
    const MOST: u64 = 16 * 1024 * 1024;
    let reserve = if total / 8 < MOST { total / 8 } else { MOST };
    free < reserve.saturating_add(owed)
}

#[cfg(unix)]
fn disk_is_short(path: &Path, owed: u64) -> bool {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::statvfs(directory).is_ok_and(|disk| {
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        is_short(bytes(disk.f_bavail), bytes(disk.f_blocks), owed)
    })
}

#[cfg(not(unix))]
fn disk_is_short(_path: &Path, _owed: u64) -> bool {
    false
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
    )
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// The thread's state.
pub(super) struct Writer {
    /// `None` after a failure, until it opens again.
    tables: Option<Tables>,
    settings: LedgerSettings,
    backlog: watch::Sender<Arc<Backlog>>,
    storage: watch::Sender<Storage>,
    heartbeat: Heartbeat,
    unchecked_bytes: usize,
    reopen_at: Mono,
    retain_at: Mono,
}

impl Writer {
    pub(super) fn new(
        tables: Tables,
        settings: LedgerSettings,
        backlog: watch::Sender<Arc<Backlog>>,
        storage: watch::Sender<Storage>,
        heartbeat: Heartbeat,
    ) -> Self {
        let now = mono();
        Self {
            tables: Some(tables),
            settings,
            backlog,
            storage,
            heartbeat,
            // What the last process left in the WAL is unknown: begin by moving it.
            unchecked_bytes: 1,
            reopen_at: now,
            retain_at: now.plus(RETENTION_EVERY),
        }
    }

    /// Serves until every handle is gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>, runtime: &tokio::runtime::Handle) {
        let mut reads: VecDeque<ReadWork> = VecDeque::new();
        loop {
            self.heartbeat.beat();
            let mut writes = Vec::new();
            if reads.is_empty() {
                let wait = if self.unchecked_bytes > 0 { CHECKPOINT_IDLE } else { self.heartbeat.interval() };
                match runtime.block_on(async { tokio::time::timeout(wait, queue.recv()).await }) {
                    Ok(None) => break,
                    Ok(Some(request)) => sort(request, &mut writes, &mut reads),
                    Err(_) => {
                        self.idle();
                        continue;
                    }
                }
            }
            let mut bytes: usize = writes.iter().map(Request::bytes).sum();
            while writes.len() < GROUP_WRITES && bytes < GROUP_BYTES && reads.len() < GROUP_WRITES {
                let Ok(request) = queue.try_recv() else { break };
                bytes += request.bytes();
                sort(request, &mut writes, &mut reads);
            }
            if !writes.is_empty() {
                self.commit(writes, bytes);
            }
            if let Some(work) = reads.pop_front() {
                match self.tables() {
                    Some(tables) => work(Ok(tables)),
                    None => work(Err(self.unavailable())),
                }
            }
        }
        if let Some(tables) = &self.tables {
            let _ = tables.checkpoint();
        }
    }

    /// The open ledger; tries to open one that failed, but not at every request.
    fn tables(&mut self) -> Option<&mut Tables> {
        if self.tables.is_none() && mono() >= self.reopen_at {
            self.reopen_at = mono().plus(REOPEN_EVERY);
            match open(&self.settings) {
                Ok(tables) => {
                    // The failed commit may or may not be in the file: count anew.
                    let counted = tables.backlog();
                    self.tables = Some(tables);
                    self.recount(counted, 1);
                }
                Err(error) => tracing::error!(%error, "the ledger cannot be opened again yet"),
            }
        }
        self.tables.as_mut()
    }

    fn unavailable(&self) -> LedgerError {
        LedgerError::Storage(self.storage.borrow().failing.clone().unwrap_or_else(|| "it is not open".into()))
    }

    fn idle(&mut self) {
        if self.unchecked_bytes > 0 {
            self.checkpoint();
        }
        if mono() >= self.retain_at {
            self.retain();
        }
    }

    fn checkpoint(&mut self) {
        let Some(tables) = self.tables() else { return };
        match tables.checkpoint() {
            Ok(_) => self.unchecked_bytes = 0,
            // It stays owed and is tried again when idle; a disk that fails shows in the next write.
            Err(error) => tracing::debug!(%error, "checkpoint failed"),
        }
        self.measure(0);
    }

    fn retain(&mut self) {
        let before = |age: Duration| {
            Timestamp::from_millis(wall().millis() - i64::try_from(age.as_millis()).unwrap_or(i64::MAX / 2))
        };
        let (bodies, keys) = (before(self.settings.body_retention), before(self.settings.key_retention));
        let unconfirmed = before((self.settings.body_retention * 2).max(Duration::from_secs(86_400)));
        let changed =
            self.tables().and_then(|tables| tables.retain(bodies, unconfirmed, keys).ok()).unwrap_or(0);
        if changed == 0 {
            self.retain_at = mono().plus(RETENTION_EVERY);
            return;
        }
        self.unchecked_bytes += COMMIT_BYTES;
        // Settled rows that are gone are no longer counted.
        if let Some(counted) = self.tables().map(|tables| tables.backlog()) {
            self.recount(counted, 0);
        }
    }

    /// Publishes counts taken from the tables; readers look at every group again.
    fn recount(&self, counted: rusqlite::Result<Backlog>, disturbed: u64) {
        let Ok(mut counted) = counted else { return };
        let published = self.backlog.borrow().clone();
        counted.arrivals = published.arrivals + 1;
        counted.disturbed = published.disturbed + disturbed;
        counted.groups.values_mut().for_each(|waiting| waiting.last_arrival = counted.arrivals);
        self.backlog.send_replace(Arc::new(counted));
    }

    /// Writes a group and answers.
    fn commit(&mut self, requests: Vec<Request>, bytes: usize) {
        let requests = self.refuse_when_full(requests, bytes);
        if requests.is_empty() {
            return;
        }
        if self.tables().is_none() {
            let error = self.unavailable();
            requests.into_iter().for_each(|request| request.fail(error.clone()));
            return;
        }
        let Some(tables) = &mut self.tables else { return };
        match tables
            .write(|t| requests.iter().map(|request| perform(t, request)).collect::<Result<Vec<_>, _>>())
        {
            Ok(effects) => {
                self.unchecked_bytes += bytes + COMMIT_BYTES;
                self.succeed(requests, effects);
            }
            Err(error) => self.fail(requests, &error),
        }
        if self.unchecked_bytes > CHECKPOINT_BYTES {
            self.checkpoint();
        }
    }

    fn refuse_when_full(&mut self, requests: Vec<Request>, bytes: usize) -> Vec<Request> {
        let takes_orders = requests.iter().any(|request| matches!(request, Request::Accept { .. }));
        if !takes_orders {
            return requests;
        }
        self.measure(bytes);
        let Some(why) = self.storage.borrow().full.clone() else { return requests };
        let full = LedgerError::Full(why);
        let (accepts, others): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|request| matches!(request, Request::Accept { .. }));
        accepts.into_iter().for_each(|request| request.fail(full.clone()));
        others
    }

    /// Compares the size with the limit and publishes what is new.
    fn measure(&mut self, incoming: usize) {
        // Incoming orders are written twice: into the WAL now, into the main file later. Pages are not packed full.
        let owed = (self.unchecked_bytes + 2 * incoming) as u64 / 4 * 5;
        let limit = self.settings.max_bytes;
        let Some(bytes) = self.tables.as_ref().and_then(|tables| tables.bytes().ok()) else { return };
        let full = if bytes >= limit {
            Some(format!("{limit} bytes, orders.max_bytes"))
        } else if disk_is_short(&self.settings.path, owed) {
            Some("the disk has no room left but what deliveries need".to_owned())
        } else {
            None
        };
        let nearly_full = bytes >= limit / 5 * 4;
        self.storage.send_if_modified(|storage| {
            let changed = storage.full != full || storage.nearly_full != nearly_full;
            (storage.full, storage.nearly_full) = (full.clone(), nearly_full);
            changed
        });
    }

    fn succeed(&mut self, requests: Vec<Request>, effects: Vec<Effect>) {
        self.storage.send_if_modified(|storage| storage.failing.take().is_some());
        self.count(&requests, &effects);
        for (request, effect) in requests.into_iter().zip(effects) {
            // Askers that have given up waiting need no answer.
            match (request, effect) {
                (Request::Accept { reply, .. }, Effect::Accepted(accepted)) => drop(reply.send(Ok(accepted))),
                (Request::Bind { reply, .. }, Effect::Bound(seqs, _)) => {
                    drop(reply.send(self.outgoing(&seqs)));
                }
                (
                    Request::Change { reply, .. }
                    | Request::Unhold { reply, .. }
                    | Request::Intervene { reply, .. },
                    Effect::Moved(_),
                ) => drop(reply.send(Ok(()))),
                (Request::Reconcile { reply, .. }, Effect::Reconciled(resent, _)) => {
                    drop(reply.send(Ok(resent)));
                }
                (request, Effect::Refused(error)) => request.fail(error),
                // `perform` gives each request the effect of its own kind.
                (request, _) => request.fail(LedgerError::TimedOut),
            }
        }
    }

    /// Keeps the published counts in step with what was committed.
    fn count(&self, requests: &[Request], effects: &[Effect]) {
        self.backlog.send_if_modified(|published| {
            let mut backlog = (**published).clone();
            for (request, effect) in requests.iter().zip(effects) {
                match (request, effect) {
                    (Request::Accept { orders, .. }, Effect::Accepted(accepted)) => {
                        orders
                            .iter()
                            .zip(accepted)
                            .for_each(|(new, accepted)| count_new(&mut backlog, new, accepted));
                    }
                    (_, Effect::Bound(_, moves) | Effect::Moved(moves) | Effect::Reconciled(_, moves)) => {
                        moves.iter().for_each(|step| step.apply(&mut backlog));
                    }
                    _ => {}
                }
            }
            let changed = backlog != **published;
            *published = Arc::new(backlog);
            changed
        });
    }

    fn outgoing(&self, seqs: &[u64]) -> Result<Vec<Outgoing>, LedgerError> {
        let tables = self.tables.as_ref().ok_or_else(|| self.unavailable())?;
        tables.outgoing(seqs).map_err(|error| LedgerError::Storage(error.to_string()))
    }

    /// Answers "unknown" and opens the file anew: after a failed sync neither the cache nor a later sync of the same
    /// file handle can be believed.
    fn fail(&mut self, requests: Vec<Request>, error: &rusqlite::Error) {
        tracing::error!(%error, "the ledger could not be written");
        let answer = if is_full(error) {
            LedgerError::Full("no space left on the disk".into())
        } else {
            LedgerError::Storage(error.to_string())
        };
        self.storage.send_modify(|storage| storage.failing = Some(error.to_string()));
        requests.into_iter().for_each(|request| request.fail(answer.clone()));
        if !is_full(error) {
            self.tables = None;
            self.reopen_at = mono();
        }
    }
}

/// Does one write inside the group's transaction.
fn perform(t: &Transaction<'_>, request: &Request) -> rusqlite::Result<Effect> {
    match request {
        Request::Accept { orders, .. } => {
            orders.iter().map(|new| writes::accept(t, new)).collect::<Result<_, _>>().map(Effect::Accepted)
        }
        Request::Bind { seqs, origin, at, .. } => {
            writes::bind(t, seqs, origin, *at).map(|(bound, moves)| Effect::Bound(bound, moves))
        }
        Request::Change { changes, at, .. } => writes::change(t, changes, *at).map(Effect::Moved),
        Request::Unhold { hold, .. } => writes::unhold(t, *hold).map(Effect::Moved),
        Request::Intervene { seq, what, who, reason, at, .. } => {
            Ok(match writes::intervene(t, *seq, what, who, reason, *at)? {
                Intervened::Done(step) => Effect::Moved(vec![step]),
                Intervened::Unknown => Effect::Refused(LedgerError::Unknown),
                Intervened::Refused(why) => Effect::Refused(LedgerError::NotAllowed(why)),
            })
        }
        Request::Reconcile { write, .. } => {
            reconcile::perform(t, write).map(|(resent, moves)| Effect::Reconciled(resent, moves))
        }
        // Reads never come here: `sort` keeps them apart.
        Request::Read(_) => Ok(Effect::Moved(Vec::new())),
    }
}

fn sort(request: Request, writes: &mut Vec<Request>, reads: &mut VecDeque<ReadWork>) {
    match request {
        Request::Read(work) => reads.push_back(work),
        write => writes.push(write),
    }
}

#[cfg(test)]
mod tests {
    use super::is_short;

    #[test]
    fn a_disk_keeps_room_for_deliveries_and_for_what_the_journal_owes() {
        const MIB: u64 = 1024 * 1024;
        assert!(!is_short(2 * MIB, 4 * MIB, MIB));
        assert!(is_short(MIB, 4 * MIB, MIB));
        assert!(is_short(MIB / 4, 4 * MIB, 0));
        assert!(!is_short(17 * MIB, 1024 * MIB, 0));
        assert!(is_short(17 * MIB, 1024 * MIB, 2 * MIB));
    }
}
