//! What is known of one origin as a place to send to. Pure.
//!
//! ```text
//!                     answer (the size grows)
//!                     ┌───┐
//!                     ▼   │      no answer, busy, identity refused
//!              ┌──► closed ──────────────────────────────► open until …  ◄───────────┐
//!              │                                            │      │                 │ again, for longer
//!      answer  │                      the wait is over, or  │      └─ the line is back, and no answer was
//!              │                  there is a new identity   ▼         the reason: at once
//!              └──────────────────────────────────────── half-open ──────────────────┘
//!                                                         one order goes as a probe
//! ```
//!
//! One batch is under way at a time. Its size begins small, doubles with each answer and shrinks when a batch takes so
//! long that a live order would wait behind it. A wait that the origin asked for is kept whatever else is heard. A
//! batch that was refused as a whole leaves suspects, which are sent in halves, in turns with live orders.
//!
//! In a drain the batch behind the one under way is prepared: chosen and bound, so that disk and network work at once.
//!
//! ```text
//! under way   A ──── answer ─► B ──── answer ─► C          B goes when A was answered and the lane is still closed;
//! prepared      B bound ─────┘   C bound ─────┘            else B is withdrawn, and its orders wait as they are: bound
//! ```
//!
//! It costs that one batch more is bound to an origin that dies, and that a live order may wait for two batches. So it
//! is done only at full speed: with full batches, each answered within half a second.
//!
//! While the origin is well, orders that may be at fault themselves go one by one beside the batches (see `aside`).

use crate::clock::Mono;
use crate::orders::backoff::Backoff;
use crate::orders::ledger::Head;
use samovar_wire::Country;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// Waits between batches after a failure.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };
/// Orders in the first batch, and the fewest that a slow origin is sent.
const FIRST: usize = 8;
/// The fewest bytes worth a batch.
const LEAST_BYTES: u64 = 4 * 1024;
/// A batch should not take longer, because a live order may come while it is under way.
const TARGET: Duration = Duration::from_secs(2);
/// While batches are answered so quickly, the next one is prepared meanwhile.
const QUICK: Duration = Duration::from_millis(500);
/// An order that was sent so often in vain goes beside the others.
const ALONE_AFTER: u32 = 3;
/// Orders under way beside the batches: while one hangs, another may turn out to be innocent.
const MOST_ASIDE: u8 = 2;
/// Orders that are remembered as doubted. Beyond that all are forgotten: no single one of so many is the culprit.
const MOST_DOUBTED: usize = 2_048;
/// So many failures in a row are laid on single orders when the origin says that it is well.
const BELIEVED: u32 = 3;
/// Batches without backlog, while some waits, before one that begins with it.
const LIVE_IN_A_ROW: u8 = 3;

/// How much may be sent at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Orders in a batch.
    pub orders: usize,
    /// Bytes of bodies in a batch.
    pub bytes: u64,
}

/// Why nothing goes to an origin for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nobody answers there, or somebody who is not the origin.
    NoAnswer,
    /// It asked for patience.
    Busy,
    /// It failed.
    Failing,
    /// It does not accept who we are.
    Identity,
}

/// The circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneState {
    /// Batches go as they come.
    Closed,
    /// Nothing goes.
    Open {
        /// Until then.
        until: Mono,
        /// Why.
        cause: Cause,
    },
    /// One order may go, to see.
    HalfOpen {
        /// Why it was open.
        cause: Cause,
    },
}

/// One origin's lane.
#[derive(Debug)]
pub(super) struct Lane {
    limits: Limits,
    state: LaneState,
    /// Since when it is so.
    since: Mono,
    /// When the batch under way was sent.
    sent_at: Option<Mono>,
    /// Another batch waits behind it.
    prepared: bool,
    /// How long the last batch took that was answered without trouble.
    took: Duration,
    failures: u32,
    /// The first failure since the last answer.
    down_since: Option<Mono>,
    /// Something heard the origin answer since the last failure.
    heard: bool,
    /// The line came back while a batch from before was under way: live orders may go then.
    resume_at: Option<Mono>,
    /// The origin asked to be left alone until then.
    asked_until: Mono,
    /// The backlog may go from then on.
    backlog_from: Mono,
    /// What had come when the origin last failed.
    pub(super) boundary: u64,
    /// The country of the last batch.
    pub(super) country: Option<Country>,
    orders: usize,
    bytes: u64,
    /// The shortest time of a batch since the last failure: what even a small one takes.
    quickest: Duration,
    live_in_a_row: u8,
    suspects: VecDeque<(Country, Vec<Head>)>,
    live_before_suspects: bool,
    /// So many orders are under way beside the batches.
    aside: u8,
    /// Orders of batches that were never answered.
    doubted: HashSet<u64>,
}

impl Lane {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: LaneState::Closed,
            since: Mono::default(),
            sent_at: None,
            prepared: false,
            took: Duration::MAX,
            failures: 0,
            down_since: None,
            heard: false,
            resume_at: None,
            asked_until: Mono::default(),
            backlog_from: Mono::default(),
            boundary: 0,
            country: None,
            orders: FIRST.min(limits.orders),
            bytes: limits.bytes,
            quickest: Duration::MAX,
            live_in_a_row: 0,
            suspects: VecDeque::new(),
            live_before_suspects: false,
            aside: 0,
            doubted: HashSet::new(),
        }
    }

    pub(super) const fn state(&self) -> (LaneState, Mono) {
        (self.state, self.since)
    }

    /// Ends a wait that is over. True when it was one for another identity.
    pub(super) fn tick(&mut self, now: Mono) -> bool {
        let LaneState::Open { until, cause } = self.state else { return false };
        if until > now {
            return false;
        }
        self.become_(LaneState::HalfOpen { cause }, now);
        cause == Cause::Identity
    }

    fn become_(&mut self, state: LaneState, now: Mono) {
        if self.state != state {
            (self.state, self.since) = (state, now);
        }
    }

    /// Whether something may be sent, or prepared, now.
    pub(super) fn ready(&self) -> bool {
        (!self.is_busy() || self.may_prepare()) && !matches!(self.state, LaneState::Open { .. })
    }

    /// A batch is under way.
    pub(super) const fn is_busy(&self) -> bool {
        self.sent_at.is_some()
    }

    fn may_prepare(&self) -> bool {
        !self.prepared && self.is_well() && self.orders >= self.limits.orders && self.took < QUICK
    }

    /// Nothing speaks against another batch.
    fn is_well(&self) -> bool {
        self.state == LaneState::Closed && self.suspects.is_empty()
    }

    /// Whether a batch that begins with live orders may be sent now, before everything else. A probe that goes on
    /// nobody's word goes with an order that the origin may have already: another one would be bound to it.
    pub(super) fn ready_for_live(&self) -> bool {
        let turn = self.suspects.is_empty() || self.live_before_suspects;
        self.ready() && !self.is_blind() && !self.owes_backlog() && turn
    }

    /// Whether a batch of any kind may be sent now.
    pub(super) fn ready_for_all(&self) -> bool {
        self.ready() && self.suspects.is_empty()
    }

    pub(super) fn ready_for_backlog(&self, now: Mono) -> bool {
        self.backlog_from <= now
    }

    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.state, LaneState::Closed)
    }

    /// The next order is a probe that goes on nobody's word.
    pub(super) const fn is_blind(&self) -> bool {
        matches!(self.state, LaneState::HalfOpen { cause: Cause::NoAnswer }) && !self.heard
    }

    pub(super) const fn owes_backlog(&self) -> bool {
        self.live_in_a_row >= LIVE_IN_A_ROW
    }

    pub(super) const fn max_orders(&self) -> usize {
        if matches!(self.state, LaneState::HalfOpen { .. }) { 1 } else { self.orders }
    }

    pub(super) const fn max_bytes(&self) -> u64 {
        self.bytes
    }

    /// A fresh batch goes, or is prepared behind the one under way.
    pub(super) const fn started(&mut self, live: bool, backlog: bool, now: Mono) {
        if self.is_busy() {
            self.prepared = true;
        } else {
            self.sent_at = Some(now);
        }
        self.live_before_suspects = false;
        self.live_in_a_row = if live && !backlog { self.live_in_a_row.saturating_add(1) } else { 0 };
    }

    /// Nothing was sent after all.
    pub(super) const fn aborted(&mut self) {
        self.sent_at = None;
    }

    /// Whether the batch that was prepared goes, now that the one before it has ended; then it is under way. `None` when
    /// there is none.
    pub(super) fn next_turn(&mut self, now: Mono) -> Option<bool> {
        if self.is_busy() || !std::mem::take(&mut self.prepared) {
            return None;
        }
        let goes = self.is_well();
        self.sent_at = goes.then_some(now);
        Some(goes)
    }

    /// The origin answered for a batch of so many orders.
    pub(super) fn succeeded(&mut self, sent: usize, now: Mono) {
        let took = self.sent_at.map_or(Duration::ZERO, |sent_at| now.after(sent_at));
        self.answered(now);
        self.took = took;
        self.quickest = self.quickest.min(took);
        // A line that is slow for one order is not made quicker by sending few.
        let target = TARGET.max(self.quickest.saturating_mul(2));
        self.orders = if took > target {
            let fitting = sent as f64 * target.as_secs_f64() / took.as_secs_f64();
            (fitting as usize).max(FIRST).min(self.limits.orders)
        } else {
            (self.orders * 2).min(self.limits.orders)
        };
        self.bytes = (self.bytes * 2).min(self.limits.bytes);
    }

    fn answered(&mut self, now: Mono) {
        self.sent_at = None;
        self.failures = 0;
        self.down_since = None;
        self.resume_at = None;
        self.asked_until = Mono::default();
        self.become_(LaneState::Closed, now);
    }

    /// After a failure the lane is open, for `least` at least. False when the batch failed only because it was sent
    /// before the line came back; that says nothing new.
    pub(super) fn failed(&mut self, cause: Cause, least: Option<Duration>, now: Mono, random: u32) -> bool {
        self.sent_at = None;
        if let Some(until) = self.resume_at.take().filter(|_| cause == Cause::NoAnswer) {
            self.become_(LaneState::Open { until, cause }, now);
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        self.down_since = self.down_since.or(Some(now));
        (self.heard, self.orders, self.live_in_a_row) = (false, 1, 0);
        (self.quickest, self.took) = (Duration::MAX, Duration::MAX);
        let wait = match cause {
            Cause::Identity => identity_wait(random),
            Cause::NoAnswer | Cause::Busy | Cause::Failing => {
                BACKOFF.wait(self.failures, random).max(least.unwrap_or_default())
            }
        };
        if let (Cause::Busy | Cause::Failing, Some(asked)) = (cause, least) {
            self.asked_until = now.plus(asked);
        }
        self.become_(LaneState::Open { until: now.plus(wait), cause }, now);
        true
    }

    /// A new identity: whatever was refused before may be tried at once.
    pub(super) fn forgive_identity(&mut self, now: Mono) {
        if matches!(self.state, LaneState::Open { cause: Cause::Identity, .. }) {
            self.become_(LaneState::HalfOpen { cause: Cause::Identity }, now);
        }
    }

    /// Since when it fails or does not answer, if a look at it may help; `None` also when it was heard since.
    pub(super) fn silent_since(&self, now: Mono) -> Option<Mono> {
        let silent = matches!(self.cause(), Some(Cause::NoAnswer | Cause::Failing));
        self.down_since.filter(|_| silent && !self.heard && self.asked_until <= now)
    }

    const fn cause(&self) -> Option<Cause> {
        match self.state {
            LaneState::Closed => None,
            LaneState::Open { cause, .. } | LaneState::HalfOpen { cause } => Some(cause),
        }
    }

    /// The origin was heard. True when a batch is under way that was sent before `line_up`: it may hang for long on a
    /// connection that is dead, and should be given up.
    pub(super) fn heard(&mut self, line_up: Mono, live_at: Mono, backlog_from: Mono, now: Mono) -> bool {
        if self.silent_since(now).is_none() {
            return false;
        }
        (self.heard, self.failures, self.backlog_from) = (true, 0, backlog_from);
        // That it was away explains what was not answered.
        self.doubted.clear();
        if let Some(sent_at) = self.sent_at {
            let from_before = sent_at < line_up && self.cause() == Some(Cause::NoAnswer);
            self.resume_at = from_before.then_some(live_at);
            return from_before;
        }
        if let LaneState::Open { until, cause } = self.state {
            self.become_(LaneState::Open { until: until.min(live_at), cause }, now);
        }
        false
    }

    /// The origin says that it is well, and nothing says that it was not all along. So the batch is to blame for what
    /// failed, and others may go; but when one after the other fails, the word is believed no longer.
    pub(super) fn well(&mut self, now: Mono) {
        let Some(cause) = self.cause().filter(|_| self.silent_since(now).is_some()) else { return };
        self.heard = self.failures <= BELIEVED;
        let over = self.heard || cause == Cause::Failing;
        if over && matches!(self.state, LaneState::Open { .. }) {
            self.become_(LaneState::Open { until: now, cause }, now);
        }
    }

    /// Whether orders that may be at fault themselves go beside the batches: only while nothing is wrong with the
    /// origin. Otherwise they are probes like any other.
    pub(super) fn sends_aside(&self) -> bool {
        match self.state {
            LaneState::Closed => true,
            LaneState::HalfOpen { cause: Cause::NoAnswer | Cause::Failing } => self.heard,
            _ => false,
        }
    }

    /// The order may be at fault itself.
    pub(super) fn isolates(&self, head: &Head) -> bool {
        head.attempts >= ALONE_AFTER || self.doubts(head.seq)
    }

    pub(super) fn doubts(&self, seq: u64) -> bool {
        self.doubted.contains(&seq)
    }

    /// One of these orders may be the reason why none was answered.
    pub(super) fn doubt(&mut self, heads: &[Head]) {
        if self.doubted.len() + heads.len() > MOST_DOUBTED {
            self.doubted.clear();
        }
        self.doubted.extend(heads.iter().map(|head| head.seq));
    }

    /// These orders are over.
    pub(super) fn forget(&mut self, seqs: impl IntoIterator<Item = u64>) {
        for seq in seqs {
            self.doubted.remove(&seq);
        }
    }

    pub(super) fn ready_aside(&self, now: Mono) -> bool {
        self.aside < MOST_ASIDE && self.sends_aside() && self.ready_for_backlog(now)
    }

    pub(super) const fn started_aside(&mut self) {
        self.aside += 1;
    }

    pub(super) const fn ended_aside(&mut self) {
        self.aside = self.aside.saturating_sub(1);
    }

    /// The next failure does not count, unless it is the first.
    pub(super) const fn count_once_less(&mut self) {
        self.failures = self.failures.saturating_sub(1);
    }

    /// The origin answered for an order that went aside.
    pub(super) fn answered_aside(&mut self, now: Mono) {
        if self.hears_aside() {
            self.answered(now);
        }
    }

    /// Whether what an order meets aside moves the lane: not while a batch is under way, whose answer says more, and
    /// not while it is open, or a wait that was asked for, or at whose end held orders are freed, would be forgotten.
    pub(super) const fn hears_aside(&self) -> bool {
        !self.is_busy() && !matches!(self.state, LaneState::Open { .. })
    }

    /// A batch was refused as a whole. True when it was a single order, which is then the culprit; else it will be
    /// sent again in halves.
    pub(super) fn refused(&mut self, country: &Country, heads: &[Head], too_large: bool, now: Mono) -> bool {
        // Whoever refuses is there.
        self.answered(now);
        if too_large {
            self.orders = (heads.len() / 2).clamp(1, self.limits.orders);
            self.bytes = (self.bytes / 2).max(LEAST_BYTES);
        }
        if heads.len() <= 1 {
            return true;
        }
        let (first, second) = heads.split_at(heads.len() / 2);
        self.suspects.push_front((country.clone(), second.to_vec()));
        self.suspects.push_front((country.clone(), first.to_vec()));
        false
    }

    /// The next part of a refused batch, if it may go now; it counts as under way.
    pub(super) fn next_suspects(&mut self, now: Mono) -> Option<(Country, Vec<Head>)> {
        if self.is_busy() || !self.ready() || !self.ready_for_backlog(now) {
            return None;
        }
        let (country, mut heads) = self.suspects.pop_front()?;
        if heads.len() > self.max_orders() && matches!(self.state, LaneState::HalfOpen { .. }) {
            let rest = heads.split_off(1);
            self.suspects.push_front((country.clone(), rest));
        }
        self.sent_at = Some(now);
        self.live_before_suspects = true;
        Some((country, heads))
    }

    /// When waiting ends, or looking for the origin may begin; `None` while an answer is awaited.
    pub(super) fn wakes_at(&self, now: Mono) -> Option<Mono> {
        match self.state {
            _ if self.sent_at.is_some() => None,
            LaneState::Open { .. } if self.asked_until > now => Some(self.asked_until),
            LaneState::Open { until, .. } => Some(until),
            _ => Some(self.backlog_from),
        }
    }
}

/// Half a minute to a minute.
fn identity_wait(random: u32) -> Duration {
    const HALF: Duration = Duration::from_secs(30);
    HALF + HALF.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
