//! What others hold of host overrides: a list that costs nothing to read, and verbs that wait for their outcome.

use super::book;
use super::file::Conflict;
use super::run::{Names, Tried};
use super::state::{FileState, Published, Shown};
use super::wish::{Refused, Source, TTL_DEFAULT, Wish};
use crate::store::StoreError;
use samovar_wire::Timestamp;
use samovar_wire::hosts::{address, name};
use serde::Deserialize;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Longest wait for the new address to prove that it is the name.
const PREFLIGHT_LIMIT: Duration = Duration::from_secs(8);
/// Longest wait for the loop.
const CHANGE_LIMIT: Duration = Duration::from_secs(15);
/// Longest wait for the proof of effect.
const PROOF_LIMIT: Duration = Duration::from_secs(15);

/// Host overrides, as others see them.
#[derive(Clone)]
pub struct Hosts {
    pub(super) inbox: mpsc::Sender<Event>,
    pub(super) published: watch::Receiver<Arc<Published>>,
    pub(super) names: Arc<dyn Names>,
}

/// What the loop is told.
pub(super) enum Event {
    Set {
        wish: Box<Wish>,
        answer: oneshot::Sender<Result<Shown, SetError>>,
    },
    Clear {
        name: String,
        by: String,
        answer: oneshot::Sender<Result<Shown, SetError>>,
    },
    /// Which of these ids of the fleet are known, and the names of those of the fleet that are not among them.
    Compare {
        ids: Vec<String>,
        answer: oneshot::Sender<Compared>,
    },
    Refused {
        name: String,
        owner: String,
        why: String,
    },
}

/// The fleet's list beside ours.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) known: Vec<bool>,
    pub(super) gone: Vec<String>,
}

/// An override was not changed.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// It may not be.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The new address did not prove that it is the name.
    #[error("{address} did not prove that it is {name}, so nothing was changed: {why}")]
    Preflight {
        /// The name.
        name: String,
        /// The address.
        address: IpAddr,
        /// What happened.
        why: String,
    },
    /// A foreign line of the hosts file says something else.
    #[error("a line of the hosts file that is not ours is in the way of {}: `{}`", .0.name, .0.line)]
    Conflict(Conflict),
    /// There is none.
    #[error("`{0}` is not overridden")]
    Absent(String),
    /// The list of overrides cannot be kept.
    #[error("the override cannot be kept")]
    Storage(#[source] StoreError),
    /// Too many changes at once, or the agent is stopping.
    #[error("other overrides are being changed: come back in a moment")]
    Busy,
}

impl Hosts {
    /// The overrides in force, and how the hosts file is.
    #[must_use]
    pub fn list(&self) -> (Vec<Shown>, FileState) {
        let published = Arc::clone(&self.published.borrow());
        (published.overrides.iter().cloned().map(Shown::counted).collect(), published.file.clone())
    }

    /// The overrides as the status shows them: only what changes when a fact changes.
    #[must_use]
    pub fn states(&self) -> Vec<Value> {
        self.published
            .borrow()
            .overrides
            .iter()
            .filter_map(|shown| serde_json::to_value(shown).ok())
            .collect()
    }

    /// Ticks with every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.published.clone()
    }

    /// Points a name elsewhere: the new address is tried before, the effect afterwards.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn set(&self, wish: Wish) -> Result<Shown, SetError> {
        let wish = wish.checked()?;
        self.names.standing(&wish.name)?;
        if !wish.force {
            self.preflight(&wish).await?;
        }
        let (answer, answered) = oneshot::channel();
        self.send(Event::Set { wish: Box::new(wish), answer })?;
        let set = wait(answered).await??;
        let mut published = self.published.clone();
        let ours =
            |published: &Arc<Published>| published.overrides.iter().find(|shown| shown.id == set.id).cloned();
        let proven =
            |published: &Arc<Published>| ours(published).is_none_or(|shown| shown.effective.is_some());
        let _ = tokio::time::timeout(PROOF_LIMIT, published.wait_for(proven)).await;
        let shown = ours(&self.published.borrow());
        // One that ended meanwhile was in force all the same.
        Ok(shown.unwrap_or(set).counted())
    }

    async fn preflight(&self, wish: &Wish) -> Result<(), SetError> {
        let trying = self.names.try_at(&wish.name, wish.address);
        let failed = |why| SetError::Preflight { name: wish.name.clone(), address: wish.address, why };
        match tokio::time::timeout(PREFLIGHT_LIMIT, trying).await {
            Ok(Tried::Answered | Tried::Else(_)) => Ok(()),
            Ok(Tried::NotReached(why)) => Err(failed(why)),
            Err(_) => Err(failed(format!("no answer within {} s", PREFLIGHT_LIMIT.as_secs()))),
        }
    }

    /// Ends an override; gives it as it was.
    ///
    /// # Errors
    /// When there is none, or the list cannot be kept.
    pub async fn clear(&self, given: &str, by: &str) -> Result<Shown, SetError> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Clear { name: name(given)?, by: by.to_owned(), answer })?;
        wait(answered).await?
    }

    /// Brings the fleet's overrides to what its desired state lists: new ones are set, those that it no longer lists are
    /// cleared. One that was in force before does not come back. What is refused is an event and changes nothing else.
    pub async fn desire(&self, wanted: &Value) {
        let entries = wanted_by_fleet(wanted);
        let (answer, answered) = oneshot::channel();
        let ids = entries.iter().map(|entry| entry.id.clone()).collect();
        if self.send(Event::Compare { ids, answer }).is_err() {
            return;
        }
        let Ok(compared) = wait(answered).await else { return };
        for gone in compared.gone {
            if let Err(error) = self.clear(&gone, "fleet").await {
                tracing::warn!(name = gone, %error, "an override of the fleet was not cleared");
            }
        }
        for (entry, known) in entries.into_iter().zip(compared.known) {
            let now = book::now();
            let left = entry.left(now.trusted.then_some(now.wall));
            if known || (left.is_zero() && entry.until.is_some()) {
                continue;
            }
            let (name, owner) = (entry.name.clone(), entry.owner.clone());
            let result = match entry.wish(left) {
                Ok(wish) => self.set(wish).await.map(drop),
                Err(refused) => Err(refused.into()),
            };
            if let Err(error) = result {
                let _ = self.send(Event::Refused { name, owner, why: crate::net::explain(&error) });
            }
        }
    }

    fn send(&self, event: Event) -> Result<(), SetError> {
        self.inbox.try_send(event).map_err(|_| SetError::Busy)
    }
}

async fn wait<T>(answered: oneshot::Receiver<T>) -> Result<T, SetError> {
    match tokio::time::timeout(CHANGE_LIMIT, answered).await {
        Ok(Ok(answer)) => Ok(answer),
        _ => Err(SetError::Busy),
    }
}

/// One entry of the desired state: the fields of the local API and the name, with an id of the fleet's own.
#[derive(Debug, Deserialize)]
struct Entry {
    /// Without one, the entry's own content tells it from others.
    #[serde(default)]
    id: String,
    name: String,
    address: String,
    #[serde(default = "fleet")]
    owner: String,
    #[serde(default)]
    reason: String,
    ticket: Option<String>,
    ttl_s: Option<u64>,
    /// When it ends by the fleet's clock: what lay at the broker for an hour has an hour less.
    until: Option<Timestamp>,
    #[serde(default)]
    force: bool,
}

fn fleet() -> String {
    "fleet".into()
}

impl Entry {
    /// What is left of it, by a clock that is to be believed.
    fn left(&self, now: Option<Timestamp>) -> Duration {
        let ttl = self.ttl_s.map_or(TTL_DEFAULT, Duration::from_secs);
        self.until.zip(now).map_or(ttl, |(until, now)| ttl.min(until.since(now)))
    }

    fn wish(self, ttl: Duration) -> Result<Wish, Refused> {
        Ok(Wish {
            name: self.name,
            address: address(&self.address)?,
            owner: self.owner,
            reason: self.reason,
            ticket: self.ticket,
            ttl,
            force: self.force,
            source: Source::Fleet(self.id),
        })
    }
}

fn wanted_by_fleet(wanted: &Value) -> Vec<Entry> {
    let entries = wanted.as_array().map(Vec::as_slice).unwrap_or_default();
    let read = |value: &Value| match serde_json::from_value::<Entry>(value.clone()) {
        Ok(mut entry) => {
            if entry.id.is_empty() {
                let digest = samovar_wire::encoding::sha256(value.to_string().as_bytes());
                entry.id = samovar_wire::encoding::hex(&digest[..16]);
            }
            Some(entry)
        }
        Err(error) => {
            tracing::warn!(%error, "an override of the desired state cannot be read");
            None
        }
    };
    entries.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_lay_at_the_broker_has_only_what_is_left() {
        let entry = |text: &str| serde_json::from_str::<Entry>(text).unwrap();
        let dated =
            entry(r#"{"name":"a.example","address":"::1","ttl_s":3600,"until":"2026-11-20T01:00:00.000Z"}"#);
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        assert_eq!(dated.left(at("2026-11-20T00:50:00.000Z")), Duration::from_secs(600));
        assert_eq!(dated.left(at("2026-11-19T00:00:00.000Z")), Duration::from_secs(3600), "never more");
        assert_eq!(dated.left(at("2026-11-20T02:00:00.000Z")), Duration::ZERO);
        assert_eq!(dated.left(None), Duration::from_secs(3600), "no clock to believe");
        assert_eq!(entry(r#"{"name":"a.example","address":"::1"}"#).left(None), TTL_DEFAULT);
    }
}
