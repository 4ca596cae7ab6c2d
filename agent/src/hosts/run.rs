//! The loop: it owns the list, the hosts file follows the list, and both are told.

use super::apply::{HostsFile, Outcome};
use super::book;
use super::file::Conflict;
use super::follow::Follower;
use super::handle::{Compared, Event, Hosts, SetError};
use super::overrides::{CHECKPOINT, Ended, Override, Overrides};
use super::proof::{Target, prove};
use super::state::{FileState, Proof, Published, Scope, Shown};
use super::wish::{Refused, Source, Wish};
use crate::clock::{Mono, instant, mono};
use crate::heartbeat::Heartbeat;
use crate::net::{OverrideSource, Pointed, explain};
use crate::status::Board;
use crate::stop;
use crate::store::StoreError;
use futures_util::future::{BoxFuture, FutureExt, join_all, pending};
use samovar_wire::conditions::Condition;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Changes that wait for the loop. Full: told to come back.
const INBOX: usize = 16;
/// How often the clocks and the hosts file are looked at while there is an override.
const LOOK: Duration = Duration::from_secs(2);
/// What became of a request to a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// The origin answered.
    Answered,
    /// Something answered that is or says something else.
    Else(String),
    /// Nothing answered, or it did not prove that it is the name.
    NotReached(String),
}

/// What overrides need of routing.
pub trait Names: Send + Sync {
    /// Whether the table in force lets a name be pointed elsewhere.
    ///
    /// # Errors
    /// Why not.
    fn standing(&self, name: &str) -> Result<(), Refused>;
    /// One request to a name at another address, with the name's own TLS identity.
    fn try_at(&self, name: &str, address: IpAddr) -> BoxFuture<'static, Tried>;
    /// One request by the way that requests to a name take now, which should lead to this address.
    fn through(&self, name: &str, address: IpAddr) -> BoxFuture<'static, Tried>;
    /// Ticks when the table changes.
    fn changed(&self) -> watch::Receiver<u64>;
}

/// Takes what happened into the audit log.
pub type Events = Arc<dyn Fn(&'static str, Value) + Send + Sync>;

/// What the loop needs to begin.
pub struct Setup {
    /// The agent's data directory.
    pub data: PathBuf,
    /// The hosts file; `None` leaves it alone.
    pub file: Option<HostsFile>,
    /// Where the helper with the rights listens.
    pub helper: Option<PathBuf>,
    /// Routing.
    pub names: Arc<dyn Names>,
    /// Where conditions go.
    pub board: Board,
    /// Where events go.
    pub events: Events,
}

/// What was kept, before the loop begins: routing needs it first.
pub struct Kept {
    overrides: Overrides,
    ended: Vec<Override>,
    publish: watch::Sender<crate::net::Overrides>,
}

impl Kept {
    /// Reads what is kept. A damaged list is set aside and told; then no override is in force.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(data: &Path, board: &Board) -> Result<(Self, OverrideSource), StoreError> {
        let (mut overrides, damaged) = book::load(data)?;
        if let Some(kept) = damaged {
            board.raise(Condition::FileSetAside, format!("{}: kept as {}", book::FILE, kept.display()));
        }
        let ended = overrides.age(&book::now());
        let publish = watch::Sender::new(pointed(&overrides));
        let source = publish.subscribe();
        Ok((Self { overrides, ended, publish }, source))
    }
}

/// The loop, before it runs.
pub struct Runner {
    setup: Setup,
    book: Overrides,
    ended: Vec<Override>,
    publish: watch::Sender<crate::net::Overrides>,
    published: watch::Sender<Arc<Published>>,
    inbox: mpsc::Receiver<Event>,
    proofs: BTreeMap<String, Proof>,
    proving: Option<BoxFuture<'static, Vec<(String, Proof)>>>,
    follower: Follower,
    checkpoint: Mono,
}

/// Makes the handle and the loop behind it.
#[must_use]
pub fn start(kept: Kept, setup: Setup) -> (Hosts, Runner) {
    let follower = Follower::new(setup.file.clone(), setup.helper.clone());
    let nothing = Published { overrides: Vec::new(), file: follower.state().clone() };
    let published = watch::Sender::new(Arc::new(nothing));
    let (writer, inbox) = mpsc::channel(INBOX);
    let hosts = Hosts { inbox: writer, published: published.subscribe(), names: Arc::clone(&setup.names) };
    let runner = Runner {
        setup,
        book: kept.overrides,
        ended: kept.ended,
        publish: kept.publish,
        published,
        inbox,
        proofs: BTreeMap::new(),
        proving: None,
        follower,
        checkpoint: mono(),
    };
    runner.show();
    (hosts, runner)
}

impl Runner {
    /// Runs until `stop` becomes true. Overrides stay in the hosts file then: they end by themselves.
    pub async fn run(mut self, heartbeat: Heartbeat, mut stop: watch::Receiver<bool>) {
        let mut table = self.setup.names.changed();
        self.begin().await;
        loop {
            self.begin_proofs();
            self.show();
            let wake = self.wake(heartbeat.interval());
            tokio::select! {
                biased;
                () = stop::asked(&mut stop) => return,
                Some(event) = self.inbox.recv() => self.take(event).await,
                proofs = finished(&mut self.proving) => self.proved(proofs),
                () = change(&mut table) => self.forbid().await,
                () = tokio::time::sleep_until(instant(wake)) => self.look().await,
            }
            heartbeat.beat();
        }
    }

    async fn begin(&mut self) {
        let ended = std::mem::take(&mut self.ended);
        if !ended.is_empty() {
            self.keep();
        }
        for old in ended {
            self.tell_end(&old, &Ended::Expired);
        }
        self.forbid().await;
        self.apply().await;
    }

    fn wake(&self, at_latest: Duration) -> Mono {
        let now = mono();
        let next = match self.book.next_end(&book::now()) {
            Some(end) => end.min(LOOK),
            None => at_latest,
        };
        let next = now.plus(next.min(at_latest).max(Duration::from_millis(10)));
        self.follower.retry().map_or(next, |retry| retry.min(next).max(now.plus(Duration::from_millis(10))))
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Set { wish, answer } => {
                // Whoever asked may have stopped waiting; the change counts all the same.
                let set = self.set(*wish).await;
                self.show();
                let _ = answer.send(set);
            }
            Event::Clear { name, by, answer } => {
                let _ = answer.send(self.clear(&name, by).await);
            }
            Event::Compare { ids, answer } => {
                let of_fleet =
                    |known: &&Override| matches!(&known.source, Source::Fleet(id) if !ids.contains(id));
                let gone =
                    self.book.overrides.iter().filter(of_fleet).map(|known| known.name.clone()).collect();
                let known = ids.iter().map(|id| self.book.knows(id)).collect();
                let _ = answer.send(Compared { known, gone });
            }
            Event::Refused { name, owner, why } => {
                tracing::warn!(name, owner, why, "an override was refused");
                (self.setup.events)("hosts.refused", json!({ "name": name, "owner": owner, "why": why }));
            }
        }
    }

    async fn set(&mut self, wish: Wish) -> Result<Shown, SetError> {
        self.setup.names.standing(&wish.name)?;
        let before = self.book.clone();
        let (name, owner) = (wish.name.clone(), wish.owner.clone());
        let id = uuid::Uuid::now_v7().simple().to_string()[24..].to_owned();
        let replaced = self.book.put(wish, id.clone(), &book::now())?;
        if let Some(conflict) = self.follower.in_the_way(self.book.block(), &name).await {
            self.book = before;
            self.tell_conflict(&conflict);
            return Err(SetError::Conflict(conflict));
        }
        if let Err(error) = book::save(&self.setup.data, &self.book) {
            self.book = before;
            return Err(SetError::Storage(error));
        }
        if let Some(old) = replaced {
            self.tell_end(&old, &Ended::Replaced { by: owner });
        }
        let Some(known) = self.book.get(&name).cloned() else { return Err(SetError::Absent(name)) };
        (self.setup.events)("hosts.created", facts(&known));
        self.changed().await;
        Ok(self.shown(&known))
    }

    async fn clear(&mut self, name: &str, by: String) -> Result<Shown, SetError> {
        let before = self.book.clone();
        let Some(old) = self.book.remove(name) else { return Err(SetError::Absent(name.to_owned())) };
        if let Err(error) = book::save(&self.setup.data, &self.book) {
            self.book = before;
            return Err(SetError::Storage(error));
        }
        let shown = self.shown(&old);
        self.tell_end(&old, &Ended::Cleared { by });
        self.changed().await;
        Ok(shown.counted())
    }

    /// The list was changed and kept.
    async fn changed(&mut self) {
        self.follower.forget();
        self.point();
        self.apply().await;
    }

    /// Tells the agent's own clients where names point.
    fn point(&self) {
        let now = pointed(&self.book);
        self.publish.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
    }

    /// What a newer table does not allow ends.
    async fn forbid(&mut self) {
        let names = Arc::clone(&self.setup.names);
        let over = self.book.end(|known| match names.standing(&known.name) {
            // Without a table nobody says which names there are; what is in force ends by its time.
            Ok(()) | Err(Refused::NoTable) => None,
            Err(refused) => Some(refused),
        });
        if over.is_empty() {
            return;
        }
        self.keep();
        for (old, why) in over {
            self.tell_end(&old, &Ended::Forbidden(why));
        }
        self.changed().await;
    }

    /// Looks at the clocks and the file.
    async fn look(&mut self) {
        let over = self.book.age(&book::now());
        if !over.is_empty() {
            self.keep();
            for old in over {
                self.tell_end(&old, &Ended::Expired);
            }
            self.changed().await;
        } else if !self.book.overrides.is_empty() && mono().after(self.checkpoint) >= CHECKPOINT {
            self.keep();
        }
        if self.follower.retry().is_some_and(|retry| retry <= mono()) {
            self.apply().await;
        }
        if !self.book.overrides.is_empty() && self.follower.is_changed() && self.apply().await {
            self.put_back();
        }
    }

    /// Our lines were not as we had left them.
    fn put_back(&mut self) {
        self.proofs.clear();
        if self.follower.put_back() {
            let FileState { path, why, .. } = self.follower.state();
            (self.setup.events)("hosts.conflict", json!({ "path": path, "why": why }));
        }
    }

    /// A list that is in force but cannot be kept ends no later than one that is kept.
    fn keep(&mut self) {
        self.checkpoint = mono();
        if let Err(error) = book::save(&self.setup.data, &self.book) {
            tracing::error!(error = explain(&error), "the overrides cannot be kept");
        }
    }

    /// Brings the hosts file to the list; gives whether it was written.
    async fn apply(&mut self) -> bool {
        let followed = self.follower.apply(self.book.block()).await;
        for conflict in &followed.conflicts {
            self.tell_conflict(conflict);
        }
        let Some((outcome, by)) = followed.written else { return false };
        let Outcome { before, after, tampered, recovered, .. } = outcome;
        let path = &self.follower.state().path;
        let facts = json!({ "path": path, "before": before, "after": after, "by": by,
            "generation": self.book.generation, "tampered": tampered, "recovered": recovered });
        (self.setup.events)("hosts.applied", facts);
        true
    }

    fn begin_proofs(&mut self) {
        if self.proving.is_some() {
            return;
        }
        self.proofs.retain(|id, _| self.book.overrides.iter().any(|known| known.id == *id));
        let open = self.book.overrides.iter().filter(|known| !self.proofs.contains_key(&known.id));
        let targets: Vec<_> = open
            .map(|known| Target {
                id: known.id.clone(),
                name: known.name.clone(),
                address: known.address,
                file: self.file_of(known),
            })
            .collect();
        if !targets.is_empty() {
            let names = Arc::clone(&self.setup.names);
            let proofs = targets.into_iter().map(move |target| prove(Arc::clone(&names), target));
            self.proving = Some(join_all(proofs).boxed());
        }
    }

    fn proved(&mut self, proofs: Vec<(String, Proof)>) {
        self.proving = None;
        for (id, proof) in proofs {
            if let Some(known) = self.book.overrides.iter().find(|known| known.id == id) {
                let facts = json!({ "id": id, "name": known.name, "address": known.address,
                    "effective": proof.effective, "why": proof.why });
                (self.setup.events)("hosts.verified", facts);
            }
            self.proofs.insert(id, proof);
        }
    }

    /// The hosts file, if it holds this override.
    fn file_of(&self, known: &Override) -> Option<PathBuf> {
        let holds = self.follower.scope(&known.name).0 == Scope::Device;
        holds.then(|| self.follower.state().path.clone())
    }

    fn shown(&self, known: &Override) -> Shown {
        Shown::new(known, &book::now(), self.follower.scope(&known.name), self.proofs.get(&known.id))
    }

    /// Publishes the list and the conditions that follow from it.
    fn show(&self) {
        let overrides: Vec<_> = self.book.overrides.iter().map(|known| self.shown(known)).collect();
        let list = |part: &[&Shown], say: &dyn Fn(&Shown) -> String| {
            (!part.is_empty()).then(|| part.iter().map(|shown| say(shown)).collect::<Vec<_>>().join("; "))
        };
        let all: Vec<_> = overrides.iter().collect();
        let active = list(&all, &|shown| {
            format!(
                "{} is at {} until {}, by {}: {}",
                shown.name, shown.address, shown.until, shown.owner, shown.reason
            )
        });
        let idle: Vec<_> = overrides.iter().filter(|shown| shown.effective == Some(false)).collect();
        let idle = list(&idle, &|shown| format!("{}: {}", shown.name, shown.why));
        let trouble = self.follower.trouble(overrides.is_empty());
        self.setup.board.set(Condition::OverrideActive, active);
        self.setup.board.set(Condition::OverrideNotEffective, idle);
        self.setup.board.set(Condition::HostsFileConflict, trouble);
        let published = Published { overrides, file: self.follower.state().clone() };
        self.published.send_if_modified(|told| {
            let changed = told.differs(&published);
            *told = Arc::new(published);
            changed
        });
    }

    fn tell_conflict(&self, conflict: &Conflict) {
        (self.setup.events)("hosts.conflict", json!({ "name": conflict.name, "line": conflict.line }));
    }

    fn tell_end(&self, old: &Override, how: &Ended) {
        let (kind, by, why) = match how {
            Ended::Expired => ("hosts.expired", None, None),
            Ended::Cleared { by } => ("hosts.removed", Some(by), None),
            Ended::Replaced { by } => ("hosts.removed", Some(by), Some("another took its place".to_owned())),
            Ended::Forbidden(why) => ("hosts.removed", None, Some(why.to_string())),
        };
        tracing::info!(name = old.name, id = old.id, kind, why, "an override ended");
        let mut facts = facts(old);
        facts["by"] = json!(by);
        facts["why"] = json!(why);
        (self.setup.events)(kind, facts);
    }
}

fn pointed(book: &Overrides) -> crate::net::Overrides {
    let pointed = book.overrides.iter().map(|known| {
        let pointed = Pointed { address: known.address, owner: known.owner.clone(), until: known.until };
        (known.name.clone(), pointed)
    });
    crate::net::Overrides::new(pointed.collect())
}

fn facts(known: &Override) -> Value {
    json!({ "id": known.id, "name": known.name, "address": known.address, "owner": known.owner,
        "reason": known.reason, "ticket": known.ticket, "forced": known.forced, "source": known.source,
        "set_at": known.set_at, "until": known.until })
}

/// The end of what is under way; never, when nothing is.
async fn finished(proving: &mut Option<BoxFuture<'static, Vec<(String, Proof)>>>) -> Vec<(String, Proof)> {
    match proving {
        Some(proofs) => proofs.await,
        None => pending().await,
    }
}

/// The next change; never, when whoever could change it is gone.
async fn change<T>(source: &mut watch::Receiver<T>) {
    if source.changed().await.is_err() {
        pending::<()>().await;
    }
}
