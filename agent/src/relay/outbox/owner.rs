//! IO: the thread that owns the file. Commits what is queued in groups, answers reads between them.

use super::file::{OutboxFile, Removed, is_damage};
use super::{OutboxLevel, Request, Stream, Waiting};
use crate::relay::SetCondition;
use crate::store;
use samovar_wire::conditions::Condition;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Most events in one commit.
const GROUP: usize = 256;
/// Refused events are noticed at least this often.
const LOOK: Duration = Duration::from_secs(1);

/// Where the outbox is and how large it may grow.
#[derive(Clone)]
pub struct OutboxSettings {
    /// The SQLite file, `DIR/aux.db`.
    pub path: PathBuf,
    /// Bytes of events kept at most.
    pub max_bytes: u64,
    /// Told of `OutboxOverflow` and `FileSetAside`.
    pub conditions: SetCondition,
}

/// Runs until closed or until every handle is gone.
pub(super) fn run(
    settings: &OutboxSettings,
    queue: &Receiver<Request>,
    waiting: &Waiting,
    publish: &watch::Sender<OutboxLevel>,
) {
    let mut owner = Owner { settings, file: None, level: OutboxLevel::default(), overflowing: false };
    owner.file = owner.open();
    owner.measure();
    let mut closed = None;
    while closed.is_none() {
        publish.send_replace(owner.level);
        let first = match queue.recv_timeout(LOOK) {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let group: Vec<_> = first.into_iter().chain(queue.try_iter().take(GROUP - 1)).collect();
        for request in &group {
            if let Request::Record { data, .. } = request {
                waiting.bytes.fetch_sub(data.len(), Ordering::Relaxed);
            }
        }
        closed = owner.handle(group);
        owner.count_dropped(waiting.refused.swap(0, Ordering::Relaxed));
    }
    if let Some(Err(error)) = owner.file.take().map(OutboxFile::close) {
        tracing::warn!(%error, "the outbox did not close cleanly");
    }
    publish.send_replace(owner.level);
    if let Some(answer) = closed {
        // Whoever asked may have stopped waiting.
        let _ = answer.send(());
    }
}

struct Owner<'a> {
    settings: &'a OutboxSettings,
    file: Option<OutboxFile>,
    level: OutboxLevel,
    overflowing: bool,
}

impl Owner<'_> {
    /// Handles requests in order, neighbouring events in one commit; gives the answer to a request to close.
    fn handle(&mut self, requests: Vec<Request>) -> Option<oneshot::Sender<()>> {
        let mut closed = None;
        let mut records = Vec::new();
        for request in requests {
            match request {
                Request::Record { .. } => {
                    records.push(request);
                    continue;
                }
                Request::Read { stream, after, max_bytes, answer } => {
                    self.add(&std::mem::take(&mut records));
                    // Without a batch the answer is dropped, which the asker sees; and the asker may be gone.
                    let batch = self.with_file(|file| file.read(stream, after, max_bytes));
                    let _ = batch.map(|batch| answer.send(batch));
                }
                Request::Acknowledge { stream, up_to } => self.acknowledge(stream, up_to),
                Request::Close { answer } => closed = Some(answer),
            }
        }
        self.add(&records);
        closed
    }

    fn acknowledge(&mut self, stream: Stream, up_to: u64) {
        if let Some(removed) = self.with_file(|file| file.acknowledge(stream, up_to)) {
            self.forget(removed);
        }
        if self.overflowing && self.level.bytes < self.settings.max_bytes / 2 {
            self.overflowing = false;
            (self.settings.conditions)(Condition::OutboxOverflow, None);
        }
    }

    fn add(&mut self, records: &[Request]) {
        if records.is_empty() {
            return;
        }
        let count = records.len() as u64;
        let added = self.with_file(|file| {
            for stream in Stream::ALL {
                file.reserve(stream, count)?;
            }
            file.begin()?;
            let mut bytes = 0;
            for record in records {
                if let Request::Record { stream, at, kind, data } = record {
                    bytes += file.add(*stream, *at, kind, data)?;
                }
            }
            file.commit()?;
            Ok((bytes, file.last()))
        });
        let Some((bytes, last)) = added else { return self.count_dropped(count) };
        self.level.events += count;
        self.level.bytes += bytes;
        self.level.last = last;
        let excess = self.level.bytes.saturating_sub(self.settings.max_bytes);
        if excess > 0
            && let Some(removed) = self.with_file(|file| file.make_room(excess))
        {
            self.forget(removed);
            self.count_dropped(removed.events);
        }
    }

    fn count_dropped(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        self.level.dropped += count;
        self.overflowing = true;
        let detail = format!("{} events dropped since the start", self.level.dropped);
        (self.settings.conditions)(Condition::OutboxOverflow, Some(detail));
    }

    fn forget(&mut self, removed: Removed) {
        self.level.events = self.level.events.saturating_sub(removed.events);
        self.level.bytes = self.level.bytes.saturating_sub(removed.bytes);
    }

    /// Does something with the file. A damaged file is replaced; anything else (a full disk) costs this operation.
    fn with_file<T>(&mut self, operation: impl FnOnce(&mut OutboxFile) -> rusqlite::Result<T>) -> Option<T> {
        if self.file.is_none() {
            self.file = self.open();
            self.measure();
        }
        let file = self.file.as_mut()?;
        match operation(file) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::error!(%error, "the outbox failed");
                file.roll_back();
                if is_damage(&error) {
                    self.file = None;
                    self.set_aside(&error.to_string());
                    self.file = self.open();
                    self.measure();
                }
                None
            }
        }
    }

    fn measure(&mut self) {
        let Some(file) = &self.file else { return };
        let size = file.size().unwrap_or_default();
        self.level = OutboxLevel { events: size.events, bytes: size.bytes, last: file.last(), ..self.level };
    }

    fn open(&self) -> Option<OutboxFile> {
        let path = &self.settings.path;
        let error = match OutboxFile::open(Some(path), first_number()) {
            Ok(file) => return Some(file),
            Err(error) => error,
        };
        if is_damage(&error) {
            self.set_aside(&error.to_string());
            if let Ok(file) = OutboxFile::open(Some(path), first_number()) {
                return Some(file);
            }
        }
        tracing::error!(%error, path = %path.display(), "events are kept in memory: the outbox cannot be opened");
        let detail = format!("{}: {error}; events are kept in memory", path.display());
        (self.settings.conditions)(Condition::FileSetAside, Some(detail));
        OutboxFile::open(None, first_number()).ok()
    }

    fn set_aside(&self, why: &str) {
        let path = &self.settings.path;
        let kept = match store::set_aside(path) {
            Ok(kept) => kept.display().to_string(),
            Err(error) => error.to_string(),
        };
        for suffix in ["-wal", "-shm"] {
            remove_beside(path, suffix);
        }
        (self.settings.conditions)(Condition::FileSetAside, Some(format!("{kept}: {why}")));
    }
}

fn remove_beside(path: &Path, suffix: &str) {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    if let Err(error) = store::remove(Path::new(&name)) {
        tracing::warn!(%error, "a part of a damaged outbox stays");
    }
}

/// Where a new file begins. Numbers of an earlier file of this device, which nobody here remembers, were below the
/// present time in milliseconds, because no device makes a thousand events a second for years.
fn first_number() -> u64 {
    u64::try_from(crate::clock::wall().millis()).unwrap_or(0).max(1)
}
