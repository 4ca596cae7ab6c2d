//! What the ledger's thread does beside serving: it opens the file anew after a failure, moves the WAL, keeps room,
//! lets history go, gives space back, and salvages a damaged ledger.
//!
//! ```text
//! open ── I/O error ──► closed ── every 500 ms: open, write everything anew, sync ──► open
//!   └──── damage (or a page that cannot be read, three times) ──► set aside ──► a new ledger, open
//! ```
//!
//! Each chore is a short step. They run while nothing waits; under load one small step runs every twentieth of a second, so
//! that neither history nor the WAL grows without bound. The WAL is moved at 4 MiB whatever the load: it is never
//! longer than that and one group's pages.

use super::age::Age;
use super::files::{self, Opened, is_damage, is_full, is_unreadable};
use super::rescue::Watch;
use super::room::{self, Load};
use super::salvage::{self, Counted, Salvage, Step};
use super::tables::Tables;
use super::thread::Writer;
use super::{State, UNREADABLE, writes};
use crate::clock::{Mono, mono, trusted_wall, wall};
use samovar_wire::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// Idle time after which the WAL is moved into the ledger.
const CHECKPOINT_IDLE: Duration = Duration::from_millis(200);
/// Bytes in the WAL after which it is moved even without idle time.
const CHECKPOINT_BYTES: u64 = 4 * 1024 * 1024;
/// How often the thread looks for orders that may be let go, and for room.
const ROUND_EVERY: Duration = Duration::from_secs(60);
/// How often it looks when a limit is near.
const URGENT_EVERY: Duration = Duration::from_secs(1);
/// Steps in which history gives way to orders that wait for their answer; each is one commit.
const URGENT_STEPS: u8 = 8;
/// How often a ledger that failed is opened again.
const REOPEN_EVERY: Duration = Duration::from_millis(500);
/// Pause between chores while nothing waits: long enough to see what came in.
const BREATH: Duration = Duration::from_millis(1);
/// How often a step runs under load.
const BUSY_EVERY: Duration = Duration::from_millis(50);
/// Attempts to open a file of which a page cannot be read.
const READ_ATTEMPTS: u32 = 3;
/// Empty pages that are kept for the next orders.
const KEPT_PAGES: u64 = 256;
/// Pages given back in one step.
const VACUUM_PAGES: u32 = 256;

/// What is owed, and when.
pub(super) struct Care {
    /// The last place that was given.
    pub(super) highest_seq: u64,
    pub(super) watch: Watch,
    pub(super) reopen_at: Mono,
    owed: u64,
    /// The file is damaged, in these words, and could not be replaced so far.
    damage: Option<String>,
    unreadable: u32,
    retain_at: Mono,
    age: Option<Age>,
    /// Bytes of history, counted once per round.
    history: Option<u64>,
    vacuum: bool,
    ballast_at: Mono,
    busy_at: Mono,
    /// Chores wait until then, because the disk had no room for one.
    chores_at: Mono,
    salvage: Option<Salvage>,
    /// Keys that may open what is in quarantine for want of them.
    keys: Vec<i64>,
    out_of_space: bool,
}

impl Care {
    pub(super) const fn new(now: Mono) -> Self {
        Self {
            highest_seq: 0,
            watch: Watch::new(now),
            // What the last process left in the WAL is unknown: begin by moving it.
            owed: 1,
            reopen_at: now,
            damage: None,
            unreadable: 0,
            retain_at: now,
            age: None,
            history: None,
            vacuum: false,
            ballast_at: now,
            busy_at: now,
            chores_at: now,
            salvage: None,
            keys: Vec::new(),
            out_of_space: false,
        }
    }
}

impl Writer {
    /// Takes stock of a ledger that was just opened.
    pub(super) fn opened(&mut self) {
        let Some(tables) = &self.tables else { return };
        let found = tables.facts().and_then(|facts| {
            self.care.highest_seq = self.care.highest_seq.max(facts.accepted);
            Salvage::next(tables.connection(), &self.settings.path)
        });
        match found {
            Ok(salvage) => self.care.salvage = salvage,
            Err(error) => tracing::error!(%error, "a damaged ledger cannot be salvaged now"),
        }
        if self.published.backlog.borrow().count_why(State::Quarantined, UNREADABLE) > 0 {
            self.care.keys = self.keys.ids().collect();
        }
        self.tell_progress();
    }

    /// The open ledger; tries to open one that failed, but not at every request.
    pub(super) fn tables(&mut self) -> Option<&mut Tables> {
        if self.tables.is_none() && mono() >= self.care.reopen_at {
            self.care.reopen_at = mono().plus(REOPEN_EVERY);
            match self.care.damage.clone() {
                _ if self.care.watch.has_stranded() => self.rescue(),
                Some(why) => self.begin_anew(&why),
                None => self.reopen(),
            }
        }
        self.tables.as_mut()
    }

    pub(super) fn reopen(&mut self) {
        match files::reopen(&self.settings) {
            Ok(tables) => {
                tracing::info!("the ledger is open again");
                self.serve(tables);
            }
            Err(error) => {
                tracing::error!(%error, "the ledger cannot be opened again yet");
                self.published.storage.send_if_modified(|storage| {
                    storage.failing.replace(error.to_string()).as_ref() != storage.failing.as_ref()
                });
                self.judge(&error);
            }
        }
    }

    fn serve(&mut self, tables: Tables) {
        self.remember_files();
        // The failed commit may or may not be in the file: count anew.
        match tables.backlog() {
            Ok(counted) => {
                let mut counted = counted;
                let before = self.published.backlog.borrow().clone();
                counted.arrivals = before.arrivals + 1;
                counted.disturbed = before.disturbed + 1;
                counted.groups.values_mut().for_each(|waiting| waiting.last_arrival = counted.arrivals);
                self.published.backlog.send_replace(Arc::new(counted));
            }
            Err(error) => {
                tables.abandon();
                self.judge(&error);
                return;
            }
        }
        self.tables = Some(tables);
        (self.care.unreadable, self.care.history, self.care.out_of_space) = (0, None, false);
        self.published.storage.send_if_modified(|storage| storage.failing.take().is_some());
        self.opened();
    }

    /// Reacts to a failure of the ledger itself.
    pub(super) fn trouble(&mut self, error: &rusqlite::Error) {
        if matches!(error, rusqlite::Error::QueryReturnedNoRows) {
            return;
        }
        tracing::error!(%error, "the ledger failed");
        self.published.storage.send_modify(|storage| storage.failing = Some(error.to_string()));
        if is_full(error) {
            // Nothing of the group was written, and what was written before is as good as ever.
            self.care.out_of_space = true;
            return;
        }
        if !self.is_in_place() {
            // Opening cannot help, and what is open is all there is.
            return;
        }
        if let Some(tables) = self.tables.take() {
            tables.abandon();
        }
        self.care.reopen_at = mono();
        self.judge(error);
    }

    /// Decides whether opening the file again can help.
    fn judge(&mut self, error: &rusqlite::Error) {
        self.care.unreadable = if is_unreadable(error) { self.care.unreadable + 1 } else { 0 };
        if is_damage(error) || self.care.unreadable >= READ_ATTEMPTS {
            self.begin_anew(&error.to_string());
        }
    }

    fn begin_anew(&mut self, why: &str) {
        match files::begin_anew(&self.settings, self.care.highest_seq, why) {
            Ok(Opened { tables, told }) => {
                self.care.damage = None;
                self.published.storage.send_modify(|storage| storage.set_aside = told);
                self.published.id.send_replace(tables.ledger_id.as_str().into());
                self.serve(tables);
            }
            Err(error) => {
                tracing::error!(%error, "no new ledger can be begun yet");
                self.care.damage = Some(why.to_owned());
            }
        }
    }

    /// How long to wait for requests before looking after what is owed.
    pub(super) fn patience(&self) -> Duration {
        if self.tables.is_none() {
            self.care.reopen_at.after(mono()).clamp(BREATH, REOPEN_EVERY)
        } else if self.has_chores(mono()) {
            BREATH
        } else if self.care.owed > 0 || self.care.out_of_space {
            CHECKPOINT_IDLE
        } else {
            self.care.watch.due_in(mono()).clamp(BREATH, self.heartbeat.interval())
        }
    }

    fn has_chores(&self, now: Mono) -> bool {
        let care = &self.care;
        let any = care.salvage.is_some() || care.vacuum || !care.keys.is_empty() || now >= care.retain_at;
        any && now >= care.chores_at
    }

    /// Nothing waits: one step of what is owed.
    pub(super) fn idle(&mut self) {
        if self.tables().is_none() || !self.looked_after() {
            return;
        }
        let now = mono();
        if self.has_chores(now) {
            self.chore(1, now);
            self.written();
            return;
        }
        if self.care.owed > 0 {
            self.checkpoint();
        }
        if now >= self.care.ballast_at {
            self.care.ballast_at = now.plus(ROUND_EVERY);
            room::keep_ballast(&self.settings);
            if let Err(error) = self.keys.keep_file() {
                tracing::error!(%error, "the ledger's key is gone from its place and cannot be put back");
            }
        }
        self.has_room(0, 0);
        if self.care.out_of_space && self.published.storage.borrow().full.is_none() {
            self.care.out_of_space = false;
            self.published.storage.send_modify(|storage| storage.failing = None);
        }
    }

    /// Something always waits: a small step at times.
    pub(super) fn busy(&mut self) {
        let now = mono();
        if self.tables.is_some() && now >= self.care.busy_at && self.has_chores(now) {
            self.chore(4, now);
            self.written();
            self.care.busy_at = mono().plus(BUSY_EVERY);
        }
    }

    /// One step; a larger part makes it smaller.
    fn chore(&mut self, part: u32, now: Mono) {
        if self.care.salvage.is_some() {
            self.salvage(64 / part);
        } else if let Some(key) = self.care.keys.last().copied() {
            self.give_back(key, 256 / part as usize);
        } else if now >= self.care.retain_at {
            self.retain(256 / part as usize);
        } else if part == 1 {
            self.vacuum();
        }
    }

    /// After a write: the WAL is moved when it has grown long.
    pub(super) fn written(&mut self) {
        let Some(tables) = &self.tables else { return };
        self.care.owed = tables.owed().unwrap_or(self.care.owed + CHECKPOINT_BYTES / 16);
        if self.care.owed > CHECKPOINT_BYTES {
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        let Some(tables) = &self.tables else { return };
        let mut result = tables.checkpoint();
        if result.as_ref().is_err_and(is_full) && room::give_up_ballast(&self.settings) {
            result = tables.checkpoint();
        }
        match result {
            Ok(()) => {
                self.care.owed = 0;
                self.look_for_empty_pages();
            }
            // It stays owed; everything that was acknowledged is in the WAL.
            Err(error) if is_full(&error) => {
                tracing::debug!(%error, "checkpoint failed");
                self.care.out_of_space = true;
            }
            Err(error) => self.trouble(&error),
        }
    }

    fn look_for_empty_pages(&mut self) {
        let Some(tables) = &self.tables else { return };
        let (Ok(free), Ok(pages)) = (tables.free_pages(), tables.pages()) else { return };
        // Giving back costs writes, and the next orders would take them again: only much is worth it, unless others
        // need the room.
        let needed = self.published.storage.borrow().full.is_some();
        let kept = if needed { 0 } else { KEPT_PAGES + pages / 8 };
        let enough = if self.care.vacuum { kept } else { kept * 2 };
        self.care.vacuum = free > enough;
    }

    fn vacuum(&mut self) {
        let Some(tables) = &mut self.tables else { return };
        let result = tables.vacuum(VACUUM_PAGES);
        self.care.vacuum = result.is_ok();
        match result {
            Ok(()) => self.look_for_empty_pages(),
            Err(error) if is_full(&error) => {}
            Err(error) => self.trouble(&error),
        }
    }

    /// Compares what there is with the limits and publishes what is new. History gives way before an order is refused.
    pub(super) fn has_room(&mut self, incoming: u64, incoming_bytes: u64) -> bool {
        for step in (0..=URGENT_STEPS).rev() {
            let Some(bytes) = self.tables.as_ref().and_then(|tables| tables.bytes().ok()) else {
                return true;
            };
            let backlog = self.published.backlog.borrow().clone();
            let open = [State::Pending, State::Held, State::Quarantined].map(|state| backlog.count(state));
            let load =
                Load { bytes, owed: self.care.owed, open: open.iter().sum(), incoming, incoming_bytes };
            let verdict = room::verdict(&self.settings, load, room::disk(&self.settings.path));
            if verdict.nearly_full {
                self.care.retain_at = self.care.retain_at.min(mono().plus(URGENT_EVERY));
            }
            let crowded = bytes + incoming_bytes >= self.settings.max_bytes;
            if crowded && step > 0 && backlog.count(State::Settled) > 0 {
                self.care.history = None;
                self.retain(256);
                let gave_way = self.care.history.is_some();
                if gave_way {
                    continue;
                }
            }
            self.published.storage.send_if_modified(|storage| {
                let changed = storage.full != verdict.full || storage.nearly_full != verdict.nearly_full;
                (storage.full, storage.nearly_full) = (verdict.full.clone(), verdict.nearly_full);
                changed
            });
            return verdict.full.is_none();
        }
        true
    }

    /// Lets some history go: marks what may go, then acts.
    fn retain(&mut self, step: usize) {
        let now = self.history_at();
        let (bodies, keys) =
            (before(now, self.settings.body_retention), before(now, self.settings.key_retention));
        // An origin that never confirms must not fill the disk.
        let unconfirmed = before(now, (self.settings.body_retention * 2).max(Duration::from_secs(86_400)));
        let known = self.care.history;
        let Some(tables) = &mut self.tables else { return };
        let settings = &self.settings;
        let result = (|| {
            let history = known.map_or_else(|| tables.history_bytes(), Ok)?;
            let bytes = tables.bytes()?;
            let mut candidates = tables.history(step, unconfirmed)?;
            let mut old_before = bodies;
            if candidates.is_empty() && room::excess(settings, history, bytes) > 0 {
                // New orders have the right of way even over what an origin has yet to confirm: only as much as must.
                candidates = tables.history(step, Timestamp::from_millis(i64::MAX))?;
                old_before = Timestamp::from_millis(0);
                tracing::warn!("room is made with the bodies of orders that their origin has yet to confirm");
            }
            let (old, crowded) = room::may_go(settings, &candidates, old_before, history, bytes);
            let (seqs, sizes): (Vec<u64>, Vec<u64>) =
                candidates[..old + crowded].iter().map(|kept| (kept.seq, kept.bytes)).unzip();
            let forgotten = tables.let_go(&seqs, keys, step)?;
            Ok((old, crowded, forgotten, history.saturating_sub(sizes.iter().sum())))
        })();
        match result {
            Ok((0, 0, 0, _)) => {
                self.care.history = None;
                self.care.retain_at = mono().plus(ROUND_EVERY);
            }
            Ok((old, crowded, forgotten, history)) => {
                tracing::debug!(
                    old,
                    crowded,
                    forgotten,
                    "history was let go: past its time, over its share, keys"
                );
                self.care.history = Some(history);
                self.care.retain_at = mono();
                self.forget(forgotten as u64);
            }
            Err(error) => {
                self.care.retain_at = mono().plus(URGENT_EVERY);
                if !is_full(&error) {
                    self.trouble(&error);
                }
            }
        }
    }

    /// Where the clock of history stands; long ago where it is not known.
    pub(super) fn history_clock(&mut self) -> Timestamp {
        match self.care.age {
            Some(age) => age.at(),
            None => self.history_at(),
        }
    }

    /// The time by which history is old: while the clock cannot be believed, the last that is known; long ago where
    /// none is, so that nothing is old.
    fn history_at(&mut self) -> Timestamp {
        let long_ago = Timestamp::from_millis(0);
        let Some(tables) = &mut self.tables else { return long_ago };
        let Some(wall) = trusted_wall() else {
            // Nothing grows old by a clock that cannot be believed. What is settled now is no older than what was
            // noted, or than the newest order.
            let known = [tables.noted_time(), tables.newest_time()].map(|time| time.ok().flatten());
            return self.care.age.map(Age::at).max(known.into_iter().max().flatten()).unwrap_or(long_ago);
        };
        let known = self.care.age.map_or_else(
            || Ok(Age::begin(tables.noted_time()?, tables.newest_time()?, wall, mono())),
            Ok::<_, rusqlite::Error>,
        );
        let Ok(mut age) = known else { return long_ago };
        let at = age.advance(wall, mono());
        if let Some(due) = age.to_note() {
            match tables.note_time(due) {
                Ok(()) => age.noted(due),
                Err(error) if is_full(&error) => {}
                Err(error) => {
                    self.trouble(&error);
                    return long_ago;
                }
            }
        }
        self.care.age = Some(age);
        at
    }

    /// Settled rows that are gone are no longer counted.
    fn forget(&self, rows: u64) {
        self.published.backlog.send_if_modified(|published| {
            let settled = &mut Arc::make_mut(published).states[State::Settled as usize];
            *settled = settled.saturating_sub(rows);
            rows > 0
        });
    }

    /// Orders whose key is back become pending again.
    fn give_back(&mut self, key: i64, step: usize) {
        let Some(tables) = &mut self.tables else { return };
        match tables.write(|t| writes::reopen(t, key, step)) {
            Ok(moves) if moves.is_empty() => drop(self.care.keys.pop()),
            Ok(moves) => self.recount(moves.into_iter().map(Counted::Moved).collect()),
            Err(error) => {
                self.care.keys.clear();
                self.trouble(&error);
            }
        }
    }

    fn recount(&self, counted: Vec<Counted>) {
        if counted.is_empty() {
            return;
        }
        self.published.backlog.send_modify(|published| {
            let backlog = Arc::make_mut(published);
            for change in counted {
                match change {
                    Counted::Came(place) => place.add(backlog),
                    Counted::Moved(step) => step.apply(backlog),
                }
            }
        });
    }

    fn salvage(&mut self, pages: u32) {
        let keys_since = before(self.history_at(), self.settings.key_retention);
        let (Some(mut salvage), Some(tables)) = (self.care.salvage.take(), &mut self.tables) else { return };
        let keys = Arc::clone(&self.keys);
        match tables.write(|t| salvage.step(t, &keys, pages.max(1), wall(), keys_since)) {
            Ok(Step::More(counted)) => {
                self.care.salvage = Some(salvage);
                self.recount(counted);
                self.tell_progress();
            }
            Ok(Step::Done(counted, done)) => {
                self.recount(counted);
                tracing::error!(
                    told = done.told,
                    losses = done.losses,
                    "the salvage of a damaged ledger is done"
                );
                if let Err(error) = salvage::mark_done(&self.settings.path, &done) {
                    tracing::warn!(%error, "the salvage will be done again with a later ledger");
                }
                self.published.storage.send_modify(|storage| {
                    storage.set_aside = None;
                    storage.salvaged.push(done);
                });
                self.opened();
            }
            Err(error) if is_full(&error) => {
                self.care.salvage = Some(salvage);
                self.care.chores_at = mono().plus(URGENT_EVERY);
            }
            // It goes on when the ledger is open again.
            Err(error) => self.trouble(&error),
        }
    }

    fn tell_progress(&self) {
        let (Some(salvage), Some(tables)) = (&self.care.salvage, &self.tables) else { return };
        let told = salvage.progress(tables.connection());
        self.published.storage.send_if_modified(|storage| {
            storage.set_aside.replace(told).as_ref() != storage.set_aside.as_ref()
        });
    }
}

/// So long before a time.
fn before(now: Timestamp, age: Duration) -> Timestamp {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX / 2);
    Timestamp::from_millis(now.millis() - age)
}
