//! Events that wait for the fleet's word that they are durable there.
//!
//! ```text
//! record ──queue (bounded)──► owner thread ──► aux.db ──read──► up/events
//!    │ queue full: dropped, counted              │ over its bytes: the oldest go, audit last
//!    ▼                                           ▼ dn/ack {stream, up_to}: gone
//! never blocks, never fails
//! ```
//!
//! Promises: a number of a stream is never given twice, across restarts, power cuts and a replaced file; an event
//! leaves only by acknowledgement or because the outbox is full, which is a condition and is counted. Absent: any
//! promise to the caller of [`Outbox::record`] that the event is on disk; what must be durable first (orders, the
//! audit log) is not kept here. One thread owns the file; when it is damaged it is set aside, when no file can be had
//! events are kept in memory, within the same bound.

mod file;
mod owner;

pub use owner::OutboxSettings;

use samovar_wire::Timestamp;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Requests that may wait for the owner thread. Full: an event is dropped and counted.
const QUEUE: usize = 1024;
/// Bytes of events that may wait for the owner thread.
const QUEUE_BYTES: usize = 2 * 1024 * 1024;
/// An event with more data than this is recorded without it.
const EVENT_MAX_BYTES: usize = 32 * 1024;

/// A stream of events; each has its own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// What happened: fail-over, quarantine, faults, overrides.
    Events,
    /// Who did what; the last to be dropped.
    Audit,
}

impl Stream {
    /// Every stream, in the order in which they are dropped when there is no room.
    pub const ALL: [Self; 2] = [Self::Events, Self::Audit];

    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Audit => "audit",
        }
    }

    /// The stream of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.name() == name)
    }

    pub(super) const fn index(self) -> usize {
        match self {
            Self::Events => 0,
            Self::Audit => 1,
        }
    }
}

/// What is in the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxLevel {
    /// Events waiting.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events dropped since the start of the agent.
    pub dropped: u64,
    /// Highest number given in each stream, in the order of [`Stream::ALL`].
    pub(super) last: [u64; 2],
}

/// Some events of one stream, as the `data` of one message.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) stream: Stream,
    /// Numbers of the first and the last event; `None` when there was nothing to read.
    pub(super) span: Option<(u64, u64)>,
    pub(super) data: Box<RawValue>,
}

/// What the owner thread is asked to do.
enum Request {
    Record { stream: Stream, at: Timestamp, kind: String, data: String },
    Read { stream: Stream, after: u64, max_bytes: usize, answer: oneshot::Sender<Batch> },
    Acknowledge { stream: Stream, up_to: u64 },
    Close { answer: oneshot::Sender<()> },
}

/// Handle to the outbox; clones share it. The file is closed when the last one is gone or by [`Outbox::close`].
#[derive(Debug, Clone)]
pub struct Outbox {
    requests: SyncSender<Request>,
    waiting: Arc<Waiting>,
    level: watch::Receiver<OutboxLevel>,
}

/// What is between the callers and the owner thread.
#[derive(Debug, Default)]
struct Waiting {
    bytes: AtomicUsize,
    refused: AtomicU64,
}

/// The outbox could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread of the outbox")]
pub struct OutboxError(#[source] std::io::Error);

impl Outbox {
    /// Starts the owner thread, which opens the file; a damaged file delays nobody.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn open(settings: OutboxSettings) -> Result<Self, OutboxError> {
        let (requests, queue) = sync_channel(QUEUE);
        let waiting = Arc::new(Waiting::default());
        let (publish, level) = watch::channel(OutboxLevel::default());
        let shared = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("outbox".into())
            .spawn(move || owner::run(&settings, &queue, &shared, &publish))
            .map_err(OutboxError)?;
        Ok(Self { requests, waiting, level })
    }

    /// Records what happened now. Costs a serialisation and a queue; never waits, never fails. When the owner thread
    /// is behind by [`QUEUE`] events or [`QUEUE_BYTES`], the event is dropped and counted.
    pub fn record(&self, stream: Stream, kind: impl Into<String>, data: &serde_json::Value) {
        let mut data = data.to_string();
        if data.len() > EVENT_MAX_BYTES {
            data = format!(r#"{{"truncated":true,"bytes":{}}}"#, data.len());
        }
        let bytes = data.len();
        let at = crate::clock::wall();
        let request = Request::Record { stream, at, kind: kind.into(), data };
        let waiting = self.waiting.bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > QUEUE_BYTES || self.requests.try_send(request).is_err() {
            self.waiting.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.waiting.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is in it now.
    #[must_use]
    pub fn level(&self) -> OutboxLevel {
        *self.level.borrow()
    }

    /// Writes what is queued and closes the file, within a limit. The outbox takes nothing afterwards.
    pub async fn close(&self, limit: Duration) {
        let closed = async {
            let (answer, done) = oneshot::channel();
            let mut request = Request::Close { answer };
            loop {
                request = match self.requests.try_send(request) {
                    Ok(()) => break,
                    Err(TrySendError::Disconnected(_)) => return,
                    Err(TrySendError::Full(request)) => request,
                };
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // An error means that the thread has ended, which is what is asked.
            let _ = done.await;
        };
        if tokio::time::timeout(limit, closed).await.is_err() {
            tracing::warn!("the outbox did not close in time");
        }
    }

    /// Follows the level.
    pub(super) fn watch(&self) -> watch::Receiver<OutboxLevel> {
        self.level.clone()
    }

    /// Reads events of a stream after a number. The answer never comes when the thread is too busy to be asked.
    pub(super) fn read(&self, stream: Stream, after: u64, max_bytes: usize) -> oneshot::Receiver<Batch> {
        let (answer, batch) = oneshot::channel();
        // A refused request drops `answer`, which the receiver sees.
        let _ = self.requests.try_send(Request::Read { stream, after, max_bytes, answer });
        batch
    }

    /// The fleet has made everything up to this number durable. Best effort: lost when the thread is behind, and then
    /// the events are sent and acknowledged again.
    pub(super) fn acknowledge(&self, stream: Stream, up_to: u64) {
        let _ = self.requests.try_send(Request::Acknowledge { stream, up_to });
    }
}

#[cfg(test)]
mod tests;
