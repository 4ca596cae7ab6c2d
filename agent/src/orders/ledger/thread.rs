//! The thread that owns the ledger: takes what is queued, writes it in one transaction, answers after the commit.
//!
//! ```text
//! wait ─► drain ─► write each ─► more came? (≤ 256 writes, ≤ 1 MiB) ─► one commit = one sync ─► answers ─► one read …
//!   └─ idle: a step of whatever is owed (see `care`); under load a small one at times
//! ```
//!
//! Under load the sync itself is the time in which the next group gathers, and what comes while a group is being
//! written joins it; on a slow disk it waits a little for those who came together last time (see `pace`). Reads come
//! one at a time between commits, so a burst of page loads cannot delay a till.

use super::care::Care;
use super::files::is_full;
use super::model::{Accepted, Backlog, Change, Hold, Incoming, Intervention, Outgoing, State, Stored};
use super::pace::{Company, Pace};
use super::reconcile::{self, ReconcileWrite, Resent};
use super::room::give_up_ballast;
use super::seal::Keys;
use super::tables::Tables;
use super::writes::{self, Intervened, Move, count_new};
use super::{LedgerError, LedgerSettings, Storage, lineage};
use crate::clock::{Mono, mono};
use crate::heartbeat::Heartbeat;
use rusqlite::Transaction;
use samovar_wire::orders::MAX_BATCH_ORDERS;
use samovar_wire::{OriginId, Timestamp};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Most writes in one commit.
const GROUP_WRITES: usize = 256;
/// Most bytes of orders in one commit.
const GROUP_BYTES: usize = 1024 * 1024;
/// What an order counts beside its body.
const ORDER_BYTES: usize = 256;
/// How often the thread looks whether those whom a group waits for have come.
const LOOK_EVERY: Duration = Duration::from_micros(100);
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
    Renew { behind: u64, why: String, reply: Reply<String> },
    Read(ReadWork),
}

/// What a write did; told to the asker only after the commit.
enum Effect {
    Accepted(Vec<Accepted>),
    Bound(Vec<Stored<Outgoing>>, Vec<Move>),
    Moved(Vec<Move>),
    Reconciled(Resent, Vec<Move>),
    Renewed(String),
    Refused(LedgerError),
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Accept { orders, .. } => {
                orders.iter().map(|new| new.new.order.body.len() + ORDER_BYTES).sum()
            }
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
            Self::Renew { reply, .. } => drop(reply.send(Err(error))),
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
    pace: Pace,
}

impl Writer {
    pub(super) fn new(
        tables: Tables,
        settings: LedgerSettings,
        keys: Arc<Keys>,
        published: Published,
        heartbeat: Heartbeat,
    ) -> Self {
        let mut writer = Self {
            tables: Some(tables),
            settings,
            keys,
            published,
            heartbeat,
            care: Care::new(mono()),
            pace: Pace::default(),
        };
        writer.remember_files();
        writer.opened();
        writer
    }

    /// Serves until every handle is gone.
    pub(super) fn run(mut self, queue: mpsc::Receiver<Request>, runtime: &tokio::runtime::Handle) {
        let mut source = Source { queue, reads: VecDeque::new(), runtime };
        loop {
            self.heartbeat.beat();
            let mut writes = Vec::new();
            // What lies there already came while the last commit ran.
            let queued = source.drain(&mut writes, 0);
            if writes.is_empty() && source.reads.is_empty() {
                match source.wait(self.patience()) {
                    Ok(None) => break,
                    Ok(Some(request)) => sort(request, &mut writes, &mut source.reads),
                    Err(_) => {
                        self.idle();
                        continue;
                    }
                }
            }
            if !writes.is_empty() {
                let company = self.pace.company(accepts(&writes), queued, mono());
                self.commit(writes, company, &mut source);
            }
            if let Some(work) = source.reads.pop_front() {
                self.read(work);
            }
            self.busy();
        }
        if self.tables.is_none() || !self.is_in_place() {
            self.rescue();
        }
        if let Some(mut tables) = self.tables.take()
            && lineage::unmark(&mut tables).is_err()
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
    fn commit(&mut self, requests: Vec<Request>, company: Company, source: &mut Source<'_>) {
        let bytes = requests.iter().map(Request::bytes).sum();
        let requests = self.refuse_when_full(requests, bytes);
        if requests.is_empty() {
            return;
        }
        // Also for what joins the group later.
        let not_before = self.history_clock();
        if self.tables().is_none() {
            let error = self.unavailable();
            requests.into_iter().for_each(|request| request.fail(error.clone()));
            return;
        }
        let mut group = Group { requests, bytes, not_before, company: self.has_slack().then_some(company) };
        let Some(tables) = &mut self.tables else { return };
        let mut result = group.write(tables, source);
        if result.as_ref().is_err_and(is_full) && give_up_ballast(&self.settings) {
            tracing::warn!("the disk is full: the ballast was given up, so that deliveries can be recorded");
            group.company = None;
            result = group.write(tables, source);
        }
        let requests = group.requests;
        match result {
            // Written into files that are gone from their place: nobody may be told.
            Ok(_) if !self.may_tell() => {
                let error = self.unavailable();
                requests.into_iter().for_each(|request| request.fail(error.clone()));
            }
            Ok((effects, written_at)) => {
                let now = mono();
                self.pace.committed(accepts(&requests), now.after(written_at), now);
                self.succeed(requests, effects);
            }
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

    /// Whether a group may grow after it was asked whether there is room for it: any limit is farther away than the
    /// largest group reaches.
    fn has_slack(&self) -> bool {
        let open: u64 = {
            let backlog = self.published.backlog.borrow();
            [State::Pending, State::Held, State::Quarantined].map(|state| backlog.count(state)).iter().sum()
        };
        let most = (GROUP_BYTES / ORDER_BYTES + MAX_BATCH_ORDERS) as u64;
        // At less than 80 % a fifth of the bytes is free.
        !self.published.storage.borrow().nearly_full
            && self.settings.max_bytes / 5 > 4 * GROUP_BYTES as u64
            && open + most <= self.settings.max_orders
    }

    fn succeed(&mut self, requests: Vec<Request>, effects: Vec<Effect>) {
        self.published.storage.send_if_modified(|storage| storage.failing.take().is_some());
        self.count(&requests, &effects);
        for (request, effect) in requests.into_iter().zip(effects) {
            // Askers that have given up waiting need no answer.
            match (request, effect) {
                (Request::Accept { reply, .. }, Effect::Accepted(accepted)) => drop(reply.send(Ok(accepted))),
                (Request::Bind { reply, .. }, Effect::Bound(orders, _)) => drop(reply.send(Ok(orders))),
                (
                    Request::Change { reply, .. }
                    | Request::Unhold { reply, .. }
                    | Request::Intervene { reply, .. },
                    Effect::Moved(_),
                ) => drop(reply.send(Ok(()))),
                (Request::Reconcile { reply, .. }, Effect::Reconciled(resent, _)) => {
                    drop(reply.send(Ok(resent)));
                }
                (Request::Renew { why, reply, .. }, Effect::Renewed(id)) => {
                    self.renewed(&id, &why);
                    drop(reply.send(Ok(id)));
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
}

/// Where requests come from.
struct Source<'a> {
    queue: mpsc::Receiver<Request>,
    /// Those that only read wait here for their turn.
    reads: VecDeque<ReadWork>,
    runtime: &'a tokio::runtime::Handle,
}

impl Source<'_> {
    fn wait(&mut self, time: Duration) -> Result<Option<Request>, tokio::time::error::Elapsed> {
        self.runtime.block_on(async { tokio::time::timeout(time, self.queue.recv()).await })
    }

    fn has_place(&self, writes: &[Request], bytes: usize) -> bool {
        writes.len() < GROUP_WRITES && bytes < GROUP_BYTES && self.reads.len() < GROUP_WRITES
    }

    /// Takes what is there, as far as it fits in a group that has so many bytes; says whether there was a write.
    fn drain(&mut self, writes: &mut Vec<Request>, mut bytes: usize) -> bool {
        let before = writes.len();
        while self.has_place(writes, bytes) {
            let Ok(request) = self.queue.try_recv() else { break };
            bytes += request.bytes();
            sort(request, writes, &mut self.reads);
        }
        writes.len() > before
    }

    /// Takes what came while a group was written, or waits for the company that is expected. It looks every so often
    /// instead of being woken by each of them: being woken costs as much as writing an order.
    fn more(&mut self, writes: &mut Vec<Request>, bytes: usize, company: &mut Company) {
        let begun = mono();
        while !self.drain(writes, bytes)
            && company.is_missed_by(accepts(writes).min(GROUP_WRITES), mono().after(begun))
            && self.has_place(writes, bytes)
        {
            let asleep = mono();
            std::thread::sleep(LOOK_EVERY);
            company.waited(mono().after(asleep));
        }
    }
}

/// What is written in one transaction.
struct Group {
    requests: Vec<Request>,
    bytes: usize,
    /// No order is closed before this time: a clock that is behind for a while must not make it old at once.
    not_before: Timestamp,
    /// Whom it waits for; `None` when nobody may join it.
    company: Option<Company>,
}

impl Group {
    /// Gives what each request did, and when the last one was written.
    fn write(
        &mut self,
        tables: &mut Tables,
        source: &mut Source<'_>,
    ) -> rusqlite::Result<(Vec<Effect>, Mono)> {
        tables.write(|t| {
            let mut effects = Vec::with_capacity(self.requests.len());
            while let Some(request) = self.requests.get(effects.len()) {
                effects.push(perform(t, request, self.not_before)?);
                let written = effects.len();
                if let Some(company) = self.company.as_mut().filter(|_| written == self.requests.len()) {
                    source.more(&mut self.requests, self.bytes, company);
                    self.bytes += self.requests[written..].iter().map(Request::bytes).sum::<usize>();
                }
            }
            Ok((effects, mono()))
        })
    }
}

/// How many of these are orders that tills hand in.
fn accepts(requests: &[Request]) -> usize {
    requests.iter().filter(|request| matches!(request, Request::Accept { .. })).count()
}

/// Does one write inside the group's transaction.
fn perform(t: &Transaction<'_>, request: &Request, not_before: Timestamp) -> rusqlite::Result<Effect> {
    match request {
        Request::Accept { orders, .. } => {
            orders.iter().map(|new| writes::accept(t, new)).collect::<Result<_, _>>().map(Effect::Accepted)
        }
        Request::Bind { seqs, origin, at, .. } => {
            writes::bind(t, seqs, origin, *at).map(|(bound, moves)| Effect::Bound(bound, moves))
        }
        Request::Change { changes, at, .. } => {
            writes::change(t, changes, (*at).max(not_before)).map(Effect::Moved)
        }
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
        Request::Renew { behind, .. } => lineage::renew(t, *behind).map(Effect::Renewed),
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
