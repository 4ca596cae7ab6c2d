//! The thread that owns the ledger: takes what is queued, writes it in one transaction, answers after the commit.
//!
//! ```text
//! wait ─► drain (≤ 64 writes, ≤ 1 MiB) ─► one commit = one sync ─► answers ─► one read ─► drain …
//!   └─ idle: a step of whatever is owed (see `care`); under load a small one at times
//! ```
//!
//! No artificial wait: under load the sync itself is the time in which the next group gathers. Reads come one at a
//! time between commits, so a burst of page loads cannot delay a till.

use super::care::Care;
use super::files::is_full;
use super::model::{Accepted, Backlog, Change, Hold, Incoming, Intervention, Outgoing, Stored};
use super::reconcile::{self, ReconcileWrite, Resent};
use super::room::give_up_ballast;
use super::seal::Keys;
use super::tables::Tables;
use super::writes::{self, Intervened, Move, count_new};
use super::{LedgerError, LedgerSettings, Storage};
use crate::clock::mono;
use crate::heartbeat::Heartbeat;
use rusqlite::Transaction;
use samovar_wire::{OriginId, Timestamp};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Most writes in one commit.
const GROUP_WRITES: usize = 64;
/// Most bytes of orders in one commit.
const GROUP_BYTES: usize = 1024 * 1024;
type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;
/// Gives the error back that it met, beside telling the asker.
type ReadWork = Box<dyn FnOnce(Result<&Tables, LedgerError>) -> Option<rusqlite::Error> + Send>;

/// What can be asked of the thread.
pub(super) enum Request {
    Accept { orders: Vec<Incoming>, reply: Reply<Vec<Accepted>> },
    Bind { seqs: Vec<u64>, origin: OriginId, at: Timestamp, reply: Reply<Vec<Stored<Outgoing>>> },
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
            Self::Accept { orders, .. } => orders.iter().map(|new| new.new.order.body.len() + 256).sum(),
            _ => 1024,
        }
    }

    fn orders(&self) -> usize {
        match self {
            Self::Accept { orders, .. } => orders.len(),
            _ => 0,
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
            Self::Read(work) => drop(work(Err(error))),
        }
    }
}

/// Where the thread publishes what it knows.
pub(super) struct Published {
    pub(super) backlog: watch::Sender<Arc<Backlog>>,
    pub(super) storage: watch::Sender<Storage>,
    pub(super) id: watch::Sender<Arc<str>>,
}

/// The thread's state.
pub(super) struct Writer {
    /// `None` after a failure, until it opens again.
    pub(super) tables: Option<Tables>,
    pub(super) settings: LedgerSettings,
    pub(super) keys: Arc<Keys>,
    pub(super) published: Published,
    pub(super) heartbeat: Heartbeat,
    pub(super) care: Care,
}

impl Writer {
    pub(super) fn new(
        tables: Tables,
        settings: LedgerSettings,
        keys: Arc<Keys>,
        published: Published,
        heartbeat: Heartbeat,
    ) -> Self {
        let mut writer =
            Self { tables: Some(tables), settings, keys, published, heartbeat, care: Care::new(mono()) };
        writer.opened();
        writer
    }

    /// Serves until every handle is gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>, runtime: &tokio::runtime::Handle) {
        let mut reads: VecDeque<ReadWork> = VecDeque::new();
        loop {
            self.heartbeat.beat();
            let mut writes = Vec::new();
            if reads.is_empty() {
                let wait = self.patience();
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
                self.read(work);
            }
            self.busy();
        }
        if let Some(tables) = self.tables.take()
            && tables.checkpoint().is_err()
        {
            // What the disk did not take now is in the WAL, for the next start.
            tables.abandon();
        }
    }

    fn read(&mut self, work: ReadWork) {
        let failed = match self.tables() {
            Some(tables) => work(Ok(tables)),
            None => work(Err(self.unavailable())),
        };
        if let Some(error) = failed {
            self.trouble(&error);
        }
    }

    fn unavailable(&self) -> LedgerError {
        let failing = self.published.storage.borrow().failing.clone();
        LedgerError::Storage(failing.unwrap_or_else(|| "it is not open".into()))
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
        let mut result = group(tables, &requests);
        if result.as_ref().is_err_and(is_full) && give_up_ballast(&self.settings) {
            tracing::warn!("the disk is full: the ballast was given up, so that deliveries can be recorded");
            result = group(tables, &requests);
        }
        match result {
            Ok(effects) => self.succeed(requests, effects),
            Err(error) => {
                self.trouble(&error);
                let answer = if is_full(&error) {
                    LedgerError::Full("no space left on the disk".into())
                } else {
                    LedgerError::Storage(error.to_string())
                };
                requests.into_iter().for_each(|request| request.fail(answer.clone()));
            }
        }
        self.written();
    }

    fn refuse_when_full(&mut self, requests: Vec<Request>, bytes: usize) -> Vec<Request> {
        let orders: usize = requests.iter().map(Request::orders).sum();
        if orders == 0 {
            return requests;
        }
        if !self.has_room(orders as u64, bytes as u64) {
            let why = self.published.storage.borrow().full.clone().unwrap_or_default();
            let full = LedgerError::Full(why);
            let (accepts, others): (Vec<_>, Vec<_>) =
                requests.into_iter().partition(|request| request.orders() > 0);
            accepts.into_iter().for_each(|request| request.fail(full.clone()));
            return others;
        }
        requests
    }

    fn succeed(&mut self, requests: Vec<Request>, effects: Vec<Effect>) {
        self.published.storage.send_if_modified(|storage| storage.failing.take().is_some());
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
    fn count(&mut self, requests: &[Request], effects: &[Effect]) {
        let mut highest = self.care.highest_seq;
        self.published.backlog.send_if_modified(|published| {
            let mut backlog = (**published).clone();
            for (request, effect) in requests.iter().zip(effects) {
                match (request, effect) {
                    (Request::Accept { orders, .. }, Effect::Accepted(accepted)) => {
                        for (new, accepted) in orders.iter().zip(accepted) {
                            count_new(&mut backlog, new, accepted);
                            highest = highest.max(accepted.seq());
                        }
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
        self.care.highest_seq = highest;
    }

    fn outgoing(&mut self, seqs: &[u64]) -> Result<Vec<Stored<Outgoing>>, LedgerError> {
        let tables = self.tables.as_ref().ok_or_else(|| self.unavailable())?;
        tables.outgoing(seqs).map_err(|error| {
            self.trouble(&error);
            LedgerError::Storage(error.to_string())
        })
    }
}

/// Writes a group in one transaction.
fn group(tables: &mut Tables, requests: &[Request]) -> rusqlite::Result<Vec<Effect>> {
    tables.write(|t| requests.iter().map(|request| perform(t, request)).collect())
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
