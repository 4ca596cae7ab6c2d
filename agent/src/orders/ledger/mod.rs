//! The ledger: the SQLite file in which accepted orders live, and the handle by which the rest of the agent uses it.
//!
//! One thread owns the only connection; it commits together whatever is queued (see `thread`). The queue holds 1,024
//! requests. When it is full, a till is told 503 at once; the dispatcher and readers wait for room.

mod age;
mod care;
mod connection;
mod files;
mod lineage;
mod model;
mod pace;
mod presence;
mod reconcile;
mod rescue;
mod room;
mod salvage;
mod schema;
mod seal;
mod tables;
mod thread;
mod writes;

pub use model::{
    Accepted, AuditEntry, Backlog, CONFLICT, Change, ChangeTo, DAMAGED, Facts, Group, Head, Hold,
    Intervention, KEY_REUSED, LEFT, NewOrder, Outgoing, Receipt, Record, State, UNREADABLE, Waiting, summary,
};
pub use reconcile::{
    Extent, Mark, Outstanding, PassNote, Places, Resent, ResentOrder, SettledOrder, bucket_of,
};
pub use room::make_room_to_start;
pub use salvage::Salvaged;
pub use seal::KeyError;
pub use tables::OpenError;

use crate::clock::wall;
use crate::heartbeat::Heartbeat;
use model::{Incoming, Stored};
use samovar_wire::OriginId;
use samovar_wire::encoding::sha256;
use samovar_wire::orders::OrdersSummary;
use seal::{Keys, Unreadable};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tables::Tables;
use thread::{Published, Request, Writer};
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that may wait for the ledger's thread.
const QUEUE: usize = 1_024;
/// Longest wait for the ledger's answer; after it the outcome is unknown.
const DEADLINE: Duration = Duration::from_secs(10);

/// How the ledger is kept.
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    /// The file.
    pub path: PathBuf,
    /// Size at which new orders are refused.
    pub max_bytes: u64,
    /// How long bodies of settled orders are kept.
    pub body_retention: Duration,
    /// How long keys of settled orders are remembered.
    pub key_retention: Duration,
    /// Unsettled orders at which new ones are refused.
    pub max_orders: u64,
    /// How much of `max_bytes` bodies of settled orders may take, in percent.
    pub settled_share_percent: u8,
    /// Bodies are sealed.
    pub encrypt_bodies: bool,
    /// The directory of the service manager's credentials, which may hold the key.
    pub credentials: Option<PathBuf>,
}

impl LedgerSettings {
    /// A ledger at a place, kept as it is kept by default.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self {
            path: path.into(),
            max_bytes: 512 * 1024 * 1024,
            body_retention: days(14),
            key_retention: days(180),
            max_orders: 200_000,
            settled_share_percent: 50,
            encrypt_bodies: true,
            credentials: None,
        }
    }
}

/// Why the ledger did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The limit is reached, or the disk is full.
    #[error("the ledger is full ({0}): no new order can be taken until some are settled")]
    Full(String),
    /// More requests wait than the queue holds.
    #[error("the ledger is busy: repeat with the same key")]
    Busy,
    /// The disk failed; whether the write happened is unknown.
    #[error("the ledger cannot be written ({0}): repeat with the same key")]
    Storage(String),
    /// The thread did not answer in time; whether the write happened is unknown.
    #[error("the ledger did not answer in time: repeat with the same key")]
    TimedOut,
    /// There is no such order.
    #[error("no such order")]
    Unknown,
    /// The order's state does not allow it.
    #[error("{0}")]
    NotAllowed(&'static str),
}

/// Whether the disk takes writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Storage {
    /// The last write failed so.
    pub failing: Option<String>,
    /// No new order is taken, for this reason.
    pub full: Option<String>,
    /// The ledger is at 80 % of a limit.
    pub nearly_full: bool,
    /// A new ledger was begun, for this reason; says where the old one is and how far its salvage has come.
    pub set_aside: Option<String>,
    /// How the salvage of damaged ledgers that are still kept has ended.
    pub salvaged: Vec<Salvaged>,
    /// Its files were taken away while it was open, and brought back: how.
    pub rescued: Option<String>,
    /// It may lack orders that it acknowledged: why.
    pub doubt: Option<String>,
}

/// The handle. Cheap to clone; the thread ends when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Ledger {
    requests: mpsc::Sender<Request>,
    backlog: watch::Receiver<Arc<Backlog>>,
    storage: watch::Receiver<Storage>,
    id: watch::Receiver<Arc<str>>,
    keys: Arc<Keys>,
}

impl Ledger {
    /// Opens the ledger and starts its thread. Must be called inside the runtime.
    ///
    /// # Errors
    /// When another process has it, or the disk does not allow it. A damaged file is set aside and is no error.
    pub fn open(settings: LedgerSettings, heartbeat: Heartbeat) -> Result<Self, OpenError> {
        let keys = Keys::load(&settings.path, settings.credentials.as_deref(), settings.encrypt_bodies)?;
        let keys = Arc::new(keys);
        let opened = files::open_or_set_aside(&settings)?;
        let id = watch::Sender::new(opened.tables.ledger_id.as_str().into());
        let backlog = watch::Sender::new(Arc::new(opened.tables.backlog().map_err(OpenError::Sqlite)?));
        let salvaged = salvage::finished(&settings.path);
        let doubt = lineage::kept_doubt(&settings.path);
        let storage =
            watch::Sender::new(Storage { set_aside: opened.told, salvaged, doubt, ..Storage::default() });
        let (requests, queue) = mpsc::channel(QUEUE);
        let ledger = Self {
            requests,
            backlog: backlog.subscribe(),
            storage: storage.subscribe(),
            id: id.subscribe(),
            keys: Arc::clone(&keys),
        };
        let published = Published { backlog, storage, id };
        let writer = Writer::new(opened.tables, settings, keys, published, heartbeat);
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || writer.run(queue, &runtime))
            .map_err(OpenError::Thread)?;
        Ok(ledger)
    }

    /// The UUID made with this ledger. It changes when the ledger is found damaged and a new one is begun, and when it
    /// turns out that places were given of which it knows nothing (see [`Self::renew`]).
    #[must_use]
    pub fn id(&self) -> Arc<str> {
        self.id.borrow().clone()
    }

    /// The UUID, for those who keep it.
    #[must_use]
    pub fn watch_id(&self) -> watch::Receiver<Arc<str>> {
        self.id.clone()
    }

    /// What waits; changes after each commit.
    #[must_use]
    pub fn backlog(&self) -> watch::Receiver<Arc<Backlog>> {
        self.backlog.clone()
    }

    /// Whether the disk takes writes.
    #[must_use]
    pub fn storage(&self) -> watch::Receiver<Storage> {
        self.storage.clone()
    }

    /// Makes orders durable. Each stands alone; the answers come in order, after the commit.
    ///
    /// # Errors
    /// When the ledger is full or busy, or the disk failed. After `Storage` and `TimedOut` the outcome is unknown.
    pub async fn accept(&self, orders: Vec<NewOrder>) -> Result<Vec<Accepted>, LedgerError> {
        // Sealed here, so that the thread only writes.
        let orders = orders.into_iter().map(|new| self.sealed(new)).collect::<Result<_, _>>()?;
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(Request::Accept { orders, reply }).map_err(|_| LedgerError::Busy)?;
        answered(answer).await?
    }

    /// Binds orders to an origin, durably, and gives those that may be sent there, with their bodies.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn bind(&self, seqs: Vec<u64>, origin: OriginId) -> Result<Vec<Outgoing>, LedgerError> {
        let bound = self.write(|reply| Request::Bind { seqs, origin, at: wall(), reply }).await?;
        let mut orders = Vec::with_capacity(bound.len());
        let mut unusable = Vec::new();
        for Stored { value: mut order, sealed } in bound {
            match self.opened(sealed, &order.id, std::mem::take(&mut order.body), &order.sha256) {
                Ok(body) => orders.push(Outgoing { body, ..order }),
                Err(why) => unusable.push(Change { seq: order.seq, to: quarantined(why) }),
            }
        }
        if !unusable.is_empty() {
            tracing::error!(
                orders = unusable.len(),
                "bodies cannot be read; these orders go into quarantine"
            );
            self.change(unusable).await?;
        }
        Ok(orders)
    }

    fn sealed(&self, new: NewOrder) -> Result<Incoming, LedgerError> {
        let bytes = new.order.body.len();
        let sealed = self.keys.seal(&new.id, &new.order.body);
        let Some((key, body)) = sealed.map_err(|error| LedgerError::Storage(error.to_string()))? else {
            return Ok(Incoming { new, sealed: None, bytes });
        };
        let mut new = new;
        new.order.body = body;
        Ok(Incoming { new, sealed: Some(key), bytes })
    }

    /// The body as it was handed in, if it still is.
    fn opened(
        &self,
        key: Option<i64>,
        order: &str,
        body: Vec<u8>,
        digest: &[u8; 32],
    ) -> Result<Vec<u8>, Unreadable> {
        let body = self.keys.open(key, order, body)?;
        if sha256(&body) == *digest { Ok(body) } else { Err(Unreadable::Damaged) }
    }

    /// Records what became of orders.
    ///
    /// # Errors
    /// When the disk failed; losing such a record costs one repeat, which the origin absorbs.
    pub async fn change(&self, changes: Vec<Change>) -> Result<(), LedgerError> {
        self.write(|reply| Request::Change { changes, at: wall(), reply }).await
    }

    /// Makes orders that were held for a reason pending again.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn unhold(&self, hold: Hold) -> Result<(), LedgerError> {
        self.write(|reply| Request::Unhold { hold, reply }).await
    }

    /// Does what an operator asks of an order, by id or order number, and writes it down.
    ///
    /// # Errors
    /// When there is no such order or its state does not allow it.
    pub async fn intervene(
        &self,
        order: &str,
        what: Intervention,
        who: &str,
        reason: &str,
    ) -> Result<Record, LedgerError> {
        let seq = self.record(order).await?.ok_or(LedgerError::Unknown)?.receipt.seq;
        let (who, reason, at) = (who.to_owned(), reason.to_owned(), wall());
        self.write(|reply| Request::Intervene { seq, what, who, reason, at, reply }).await?;
        self.record(order).await?.ok_or(LedgerError::Unknown)
    }

    /// Pending orders of a group behind a place and not behind another, in order.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn heads(
        &self,
        group: Group,
        after: u64,
        up_to: u64,
        limit: usize,
    ) -> Result<Vec<Head>, LedgerError> {
        self.read(move |tables| tables.heads(&group, after, up_to, limit)).await
    }

    /// One order, by id or by order number (then the newest).
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn record(&self, order: &str) -> Result<Option<Record>, LedgerError> {
        let order = order.to_owned();
        let Some(found) = self.read(move |tables| tables.record(&order)).await? else { return Ok(None) };
        let Stored { value: mut record, sealed } = found;
        // A body that cannot be opened is not shown.
        let body = record.body.take();
        record.body = body.and_then(|body| self.keys.open(sealed, &record.receipt.id, body).ok());
        Ok(Some(record))
    }

    /// A page of at most 200 orders behind a place.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn page(
        &self,
        state: Option<State>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Record>, LedgerError> {
        self.read(move |tables| tables.page(state, after, limit.clamp(1, 200))).await
    }

    /// How many orders wait for one that was discarded.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn stranded(&self) -> Result<u64, LedgerError> {
        self.read(Tables::stranded).await
    }

    /// Counts and ages.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn summary(&self) -> Result<OrdersSummary, LedgerError> {
        let facts = self.read(Tables::facts).await?;
        Ok(summary(&self.backlog.borrow(), &facts))
    }

    async fn write<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Request,
    ) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply)).await?;
        answered(answer).await?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tables) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |tables: Result<&Tables, LedgerError>| {
            let (result, error) = match tables.map(work) {
                Ok(Ok(value)) => (Ok(value), None),
                Ok(Err(error)) => (Err(LedgerError::Storage(error.to_string())), Some(error)),
                Err(error) => (Err(error), None),
            };
            // The asker may have given up waiting; then nobody needs the answer.
            let _ = reply.send(result);
            error
        });
        self.send(Request::Read(work)).await?;
        answered(answer).await?
    }

    async fn send(&self, request: Request) -> Result<(), LedgerError> {
        match tokio::time::timeout(DEADLINE, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(LedgerError::Storage("its thread has ended".into())),
            Err(_) => Err(LedgerError::TimedOut),
        }
    }
}

fn quarantined(why: Unreadable) -> ChangeTo {
    let word = match why {
        Unreadable::NoKey => UNREADABLE,
        Unreadable::Damaged => DAMAGED,
    };
    ChangeTo::Quarantined { why: word.into(), detail: why.to_string() }
}

async fn answered<T>(answer: oneshot::Receiver<T>) -> Result<T, LedgerError> {
    match tokio::time::timeout(DEADLINE, answer).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) => Err(LedgerError::Storage("its thread has ended".into())),
        Err(_) => Err(LedgerError::TimedOut),
    }
}

#[cfg(test)]
mod tests;
