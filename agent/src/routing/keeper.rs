//! Which route table is in force (IO on small files, at start and on change).
//!
//! ```text
//! routing.table (file) ───┐
//! DIR/route-table.json ───┼─► accept (signature, environment, version, time, sense) ──► in force ──► DIR/routes/in-force.json
//! pushed by the fleet ────┘        │                                                       └──► DIR/routes/previous.json
//!                                  ├─► refused: the old one stays, a condition says why
//!                                  └─► not yet: kept in DIR/routes/waiting.json and tried again when its time has come
//! ```
//!
//! At start the newest that verifies comes into force. When the kept table is damaged or no longer verifies, the one
//! before it routes as "last good". A kept table was accepted once, so neither its age nor the clock is held against
//! it again.

use super::shelf::{Place, Shelf};
use super::view::InForce;
use super::watched::{FILE_MAX, ReadError, WatchedFile};
use crate::store::StoreError;
use samovar_wire::Timestamp;
use samovar_wire::conditions::Condition;
use samovar_wire::dsse::{Envelope, OpenError, TrustedKeys};
use samovar_wire::route::{self, Refusal, Stored};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Where tables come from and who may sign them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// The environment of this device.
    pub environment: String,
    /// Keys that may sign route tables.
    pub keys: TrustedKeys,
}

/// A table was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is in force now.
    InForce {
        /// Its version.
        version: u64,
    },
    /// It was in force already.
    Unchanged {
        /// Its version.
        version: u64,
    },
}

/// A table was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableRefused {
    /// The document is larger than any envelope of a table may be.
    #[error("is larger than {FILE_MAX} bytes")]
    TooLarge,
    /// It is not a signed envelope.
    #[error("is not a signed envelope (DSSE): {0}")]
    NotAnEnvelope(String),
    /// A rule of acceptance.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Who offers a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// `routing.table`
    Configured,
    /// What activation left.
    Activation,
    /// The fleet.
    Pushed,
}

/// Keeps the table in force.
#[derive(Debug)]
pub(super) struct Keeper {
    shelf: Shelf,
    trust: Trust,
    files: Vec<(Source, WatchedFile)>,
    in_force: Option<Arc<InForce>>,
    /// Why each source's last offer was refused.
    refused: BTreeMap<Source, String>,
    /// Tables whose time has not come.
    waiting: BTreeMap<Source, (Timestamp, Vec<u8>)>,
    /// A table in force that could not be written yet.
    unkept: Option<Vec<u8>>,
    /// Why the kept table does not route.
    unusable: Option<String>,
}

impl Keeper {
    /// Opens what was kept and looks at every source once.
    pub(super) fn open(
        data: &Path,
        table: Option<&Path>,
        trust: Trust,
        now: Option<Timestamp>,
    ) -> Result<Self, StoreError> {
        let activation = data.join("route-table.json");
        let mut files = Vec::new();
        if let Some(table) = table {
            files.push((Source::Configured, WatchedFile::new(table.to_owned())));
        }
        if table != Some(&activation) {
            files.push((Source::Activation, WatchedFile::new(activation)));
        }
        let mut keeper = Self {
            shelf: Shelf::open(data)?,
            trust,
            files,
            in_force: None,
            refused: BTreeMap::new(),
            waiting: BTreeMap::new(),
            unkept: None,
            unusable: None,
        };
        keeper.recover(now);
        keeper.poll(now);
        Ok(keeper)
    }

    /// The table in force.
    pub(super) const fn in_force(&self) -> Option<&Arc<InForce>> {
        self.in_force.as_ref()
    }

    /// Looks whether a file changed, a waiting table's time has come, or a write that failed works now.
    pub(super) fn poll(&mut self, now: Option<Timestamp>) {
        for (source, content) in self.changed_files() {
            match content {
                Ok(content) => {
                    // Its refusal is kept for the condition.
                    let _ = self.offer_from(&source, &content, now);
                }
                Err(error) => self.refuse(&source, &error),
            }
        }
        self.retry_waiting(now);
        self.unkept = self.unkept.take().filter(|bytes| self.shelf.keep(bytes).is_err());
    }

    /// Takes a table that the fleet pushed, or says why not.
    pub(super) fn offer(&mut self, bytes: &[u8], now: Option<Timestamp>) -> Result<Taken, TableRefused> {
        self.offer_from(&Source::Pushed, bytes, now)
    }

    /// The conditions that this flow owns, with their details when they hold.
    pub(super) fn conditions(&self, now: Option<Timestamp>) -> Vec<(Condition, Option<String>)> {
        let refused: Vec<_> = self.complaints().collect();
        let expired = self.in_force.as_ref().and_then(|in_force| {
            let table = &in_force.table;
            let ended = now.is_some_and(|now| table.expires_at <= now);
            ended.then(|| format!("version {} expired at {}", table.version, table.expires_at))
        });
        vec![
            (Condition::RouteTableMissing, self.in_force.is_none().then(|| self.missing())),
            (Condition::RouteTableRefused, (!refused.is_empty()).then(|| refused.join("; "))),
            (Condition::RouteTableExpired, expired),
        ]
    }

    /// Damaged files that were moved out of the way since the last call.
    pub(super) fn take_set_aside(&mut self) -> Vec<String> {
        self.shelf.take_set_aside()
    }

    /// Why no table is in force, and what to do.
    pub(super) fn missing(&self) -> String {
        if self.trust.keys.is_empty() {
            return "no key is trusted to sign route tables: activate, or set routing.trusted_keys"
                .to_owned();
        }
        let mut why: Vec<_> = self.unusable.iter().cloned().chain(self.complaints()).collect();
        for (source, file) in &self.files {
            if *source == Source::Configured && !file.exists() {
                why.push(format!("routing.table {} does not exist", file.path.display()));
            }
        }
        if why.is_empty() {
            return "none was found: activate, or set routing.table".to_owned();
        }
        why.join("; ")
    }

    fn complaints(&self) -> impl Iterator<Item = String> {
        self.refused.iter().map(|(source, why)| format!("{}: {why}", self.describe(source)))
    }

    fn describe(&self, source: &Source) -> String {
        let path =
            |(of, file): &(Source, WatchedFile)| (of == source).then(|| file.path.display().to_string());
        let path = self.files.iter().find_map(path).unwrap_or_default();
        match source {
            Source::Configured => format!("routing.table {path}"),
            Source::Activation => format!("the activation's table {path}"),
            Source::Pushed => "the fleet's table".to_owned(),
        }
    }

    fn changed_files(&mut self) -> Vec<(Source, Result<Vec<u8>, ReadError>)> {
        let mut changed = Vec::new();
        for (source, file) in &mut self.files {
            if let Some(content) = file.changed() {
                changed.push((source.clone(), content));
            } else if !file.exists() {
                // What is gone is no longer wrong.
                self.refused.remove(source);
            }
        }
        changed
    }

    fn offer_from(
        &mut self,
        source: &Source,
        bytes: &[u8],
        now: Option<Timestamp>,
    ) -> Result<Taken, TableRefused> {
        let result = self.judge(bytes, now);
        match &result {
            Ok(accepted) if accepted.unchanged => {
                let version = accepted.table.version;
                self.refused.remove(source);
                self.confirm();
                Ok(Taken::Unchanged { version })
            }
            Ok(_) => Ok(self.put_in_force(result?, bytes)),
            Err(refusal) => {
                self.note_refusal(source, refusal, bytes);
                Err(refusal.clone())
            }
        }
    }

    fn judge(&self, bytes: &[u8], now: Option<Timestamp>) -> Result<route::Accepted, TableRefused> {
        let stored = self
            .in_force
            .as_ref()
            .map(|in_force| Stored { version: in_force.table.version, sha256: in_force.sha256 });
        judge(bytes, &self.trust, stored, now)
    }

    /// A source holds the very table that routes as last good: then it is simply in force.
    fn confirm(&mut self) {
        if let Some(in_force) = self.in_force.as_mut().filter(|in_force| in_force.last_good) {
            Arc::make_mut(in_force).last_good = false;
        }
    }

    fn put_in_force(&mut self, accepted: route::Accepted, bytes: &[u8]) -> Taken {
        let version = accepted.table.version;
        tracing::info!(version, key = accepted.key_id, "route table in force");
        self.in_force = Some(Arc::new(in_force(accepted, false)));
        self.refused.clear();
        self.keep(bytes);
        Taken::InForce { version }
    }

    fn note_refusal(&mut self, source: &Source, refusal: &TableRefused, bytes: &[u8]) {
        // An activation's table is the first of many: that a newer one has replaced it is as it should be.
        let replaced = matches!(refusal, TableRefused::Refused(Refusal::OlderVersion { .. }));
        if *source == Source::Activation && replaced {
            self.refused.remove(source);
            return;
        }
        if let TableRefused::Refused(Refusal::NotYet(from)) = refusal {
            self.wait_for(source, *from, bytes);
        }
        self.refuse(source, refusal);
    }

    fn refuse(&mut self, source: &Source, why: &impl ToString) {
        let why = why.to_string();
        tracing::warn!(source = self.describe(source), why, "route table refused");
        self.refused.insert(source.clone(), why);
    }

    /// Keeps the envelope on disk. The table is in force even if that fails: an emergency switch must work on a full
    /// disk. It is tried again with every look.
    fn keep(&mut self, bytes: &[u8]) {
        self.unkept = None;
        if let Err(error) = self.shelf.keep(bytes) {
            tracing::error!(error = crate::net::explain(&error), "the route table in force cannot be kept");
            self.unkept = Some(bytes.to_vec());
        }
    }

    /// A file can be read again; what was pushed is kept.
    fn wait_for(&mut self, source: &Source, from: Timestamp, bytes: &[u8]) {
        if *source == Source::Pushed {
            self.shelf.keep_waiting(Some(bytes));
        }
        self.waiting.insert(source.clone(), (from, bytes.to_vec()));
    }

    fn retry_waiting(&mut self, now: Option<Timestamp>) {
        let Some(time) = now else { return };
        let due: Vec<_> = self.waiting.extract_if(.., |_, (from, _)| *from <= time).collect();
        for (source, (_, bytes)) in due {
            self.offer_again(&source, &bytes, now);
        }
    }

    /// Offers a table that waited. That a newer one came meanwhile is no fault.
    fn offer_again(&mut self, source: &Source, bytes: &[u8], now: Option<Timestamp>) {
        if *source == Source::Pushed {
            self.shelf.keep_waiting(None);
        }
        if !matches!(self.judge(bytes, now), Err(TableRefused::Refused(Refusal::OlderVersion { .. }))) {
            // Its refusal is kept for the condition.
            let _ = self.offer_from(source, bytes, now);
        }
    }

    /// Brings the kept table back into force, or else the one before it, and the one that waits back to wait.
    fn recover(&mut self, now: Option<Timestamp>) {
        self.in_force =
            self.recover_from(Place::InForce).or_else(|| self.recover_from(Place::Previous)).map(Arc::new);
        if let Some(bytes) = self.shelf.read(Place::Waiting) {
            self.offer_again(&Source::Pushed, &bytes, now);
        }
    }

    fn recover_from(&mut self, place: Place) -> Option<InForce> {
        let bytes = self.shelf.read(place)?;
        // Accepted once: the clock is not asked again.
        match judge(&bytes, &self.trust, None, None) {
            Ok(accepted) => Some(in_force(accepted, place == Place::Previous)),
            Err(refusal) => {
                let path = self.shelf.path(place);
                tracing::error!(path = %path.display(), why = %refusal, "a kept route table is not usable");
                self.unusable = Some(format!("the kept table {}: {refusal}", path.display()));
                if is_damage(&refusal) {
                    self.shelf.move_aside(place, &refusal);
                }
                None
            }
        }
    }
}

fn judge(
    bytes: &[u8],
    trust: &Trust,
    stored: Option<Stored>,
    now: Option<Timestamp>,
) -> Result<route::Accepted, TableRefused> {
    if bytes.len() as u64 > FILE_MAX {
        return Err(TableRefused::TooLarge);
    }
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|error| TableRefused::NotAnEnvelope(error.to_string()))?;
    Ok(route::accept(&envelope, &trust.keys, &trust.environment, stored, now)?)
}

/// The bytes changed on disk. A table of other keys, another environment or other rules is whole, just not for now.
fn is_damage(refusal: &TableRefused) -> bool {
    match refusal {
        TableRefused::TooLarge | TableRefused::NotAnEnvelope(_) => true,
        TableRefused::Refused(Refusal::Untrusted(why)) => !matches!(why, OpenError::UnknownKey { .. }),
        TableRefused::Refused(_) => false,
    }
}

fn in_force(accepted: route::Accepted, last_good: bool) -> InForce {
    InForce { table: accepted.table, sha256: accepted.sha256, key_id: accepted.key_id, last_good }
}

#[cfg(test)]
mod tests;
