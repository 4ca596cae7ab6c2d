//! Brings a ledger back whose files were taken away while it was open. SQLite still has them, so nothing that was
//! acknowledged is lost for as long as the process lives; until it is in its place again nothing is acknowledged.
//!
//! ```text
//! file gone ─► copy (orders.db.new) ─ synced ─► orders.db.rescued ─► what stands in the place is set aside ─► orders.db
//! journal gone ─► moved into the main file, synced ─► opened again
//! ```
//!
//! A start goes on where a rescue was cut short. What was set aside is salvaged like a damaged ledger: it may be an older
//! copy, and orders that it has alone come over.

use super::connection::{is_in_use, truncate_wal, uri};
use super::files;
use super::presence::{Gone, LOOK_EVERY, MOMENT, Present};
use super::salvage::{self, journal_of};
use super::tables::{OpenError, Tables};
use super::thread::Writer;
use crate::clock::{Mono, mono};
use crate::store::{self, StoreError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pause between attempts: each may write the whole ledger.
const EVERY: Duration = Duration::from_secs(2);

/// The watch over the files of the ledger that is open.
pub(super) struct Watch {
    present: Present,
    look_at: Mono,
    /// A ledger that is open and no longer in its place.
    stranded: Option<(Tables, Gone)>,
}

impl Watch {
    pub(super) const fn new(now: Mono) -> Self {
        Self { present: Present::NONE, look_at: now, stranded: None }
    }

    /// Whether a ledger waits to be brought back.
    pub(super) const fn has_stranded(&self) -> bool {
        self.stranded.is_some()
    }

    /// How long until the next look.
    pub(super) fn due_in(&self, now: Mono) -> Duration {
        self.look_at.after(now)
    }
}

impl Writer {
    /// Remembers the files that were just opened.
    pub(super) fn remember_files(&mut self) {
        self.care.watch.present = Present::now(&self.settings.path);
    }

    /// Whether the files that are open are still in their place. If not, nothing is done with them but bringing them back.
    pub(super) fn is_in_place(&mut self) -> bool {
        self.care.watch.look_at = mono().plus(LOOK_EVERY);
        if self.tables.is_none() {
            // Nothing is open that could be missed.
            return true;
        }
        let Some(gone) = self.care.watch.present.gone(&self.settings.path) else { return true };
        tracing::error!(ledger = %self.settings.path.display(), "{}", gone.words());
        self.published.storage.send_modify(|storage| storage.failing = Some(gone.words().into()));
        self.care.watch.stranded = self.tables.take().map(|tables| (tables, gone));
        self.care.reopen_at = mono();
        false
    }

    /// Whether orders that were just written may be acknowledged.
    pub(super) fn may_tell(&mut self) -> bool {
        self.care.watch.due_in(mono()) > LOOK_EVERY.saturating_sub(MOMENT) || self.is_in_place()
    }

    /// Looks at times when nothing is written; false when the ledger is not there to be used.
    pub(super) fn looked_after(&mut self) -> bool {
        mono() < self.care.watch.look_at || self.is_in_place()
    }

    /// Brings a stranded ledger back and opens it.
    pub(super) fn rescue(&mut self) {
        let Some((tables, gone)) = self.care.watch.stranded.take() else { return };
        let path = self.settings.path.clone();
        let present = self.care.watch.present;
        // A watchdog that ends the process ends the ledger too.
        let pulse = self.heartbeat.pulse();
        let beat = move || {
            pulse();
            false
        };
        let beats = tables.connection().progress_handler(50_000, Some(beat));
        let back = beats
            .map_err(OpenError::from)
            .and_then(|()| self.keys.keep_file().map_err(OpenError::from))
            .and_then(|()| match gone {
                Gone::Main => bring_back(&path, &tables, present),
                Gone::Journal => move_journal(&path, &tables, present),
            });
        if let Err(error) = back {
            let why = format!("{}, and cannot be brought back yet: {}", gone.words(), chain(&error));
            tracing::error!("{why}");
            self.published.storage.send_modify(|storage| storage.failing = Some(why));
            self.care.reopen_at = mono().plus(EVERY);
            self.care.watch.stranded = Some((tables, gone));
            return;
        }
        let id = tables.ledger_id.clone();
        tables.abandon();
        tracing::error!(ledger = %path.display(), "the ledger was brought back into its place, with every order");
        self.published.storage.send_modify(|storage| {
            storage.rescued = Some(format!("{}; every order was brought back", gone.words()));
        });
        if let Err(error) = files::keep_marker(&path, &id) {
            tracing::warn!(%error, "the ledger's marker cannot be written");
        }
        self.reopen();
        let Some(tables) = &self.tables else { return };
        match salvage::register(tables.connection(), &path) {
            Ok(()) => self.opened(),
            Err(error) => self.trouble(&error),
        }
    }
}

/// The whole content, from the files that SQLite still has open, back into the place.
fn bring_back(path: &Path, tables: &Tables, present: Present) -> Result<(), OpenError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        store::make_dir(directory)?;
    }
    let rescued = rescued(path);
    // Nothing was written since an earlier attempt made it.
    if !rescued.exists() {
        let temporary = store::temporary_of(path);
        store::remove(&temporary)?;
        tables.connection().execute("VACUUM INTO ?1", [uri(&temporary)])?;
        store::sync(&temporary)?;
        store::rename_if_there(&temporary, &rescued)?;
    }
    if present.has_journal(path) {
        // All of it is in the copy, and must not be taken for the journal of what may stand in the place.
        store::remove(&journal_of(path))?;
    }
    put_in_place(path)
}

/// What the journal has, into the main file. Both are open still.
fn move_journal(path: &Path, tables: &Tables, present: Present) -> Result<(), OpenError> {
    truncate_wal(tables.connection())?;
    let journal = journal_of(path);
    if journal.exists() && !present.has_journal(path) {
        let kept = store::set_aside(&journal)?;
        tracing::warn!(kept = %kept.display(), "a journal that is not the ledger's stood beside it");
    }
    Ok(())
}

fn rescued(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".rescued");
    name.into()
}

/// Puts a ledger that was rescued where it belongs, if there is one. What stands there is set aside.
pub(super) fn put_in_place(path: &Path) -> Result<(), OpenError> {
    let rescued = rescued(path);
    if !rescued.exists() {
        return Ok(());
    }
    if path.exists() {
        if is_in_use(path) {
            return Err(OpenError::InUse);
        }
        files::set_aside_pair(path)?;
    } else if journal_of(path).exists() {
        store::set_aside(&journal_of(path))?;
    }
    store::rename_if_there(&rescued, path).map_err(StoreError::into)
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}
