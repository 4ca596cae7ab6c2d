//! Decides which orders go to which origin, and when. Pure: no clock, no lock, no IO; `now`, routes and randomness
//! come in, actions and "wake me at" go out.
//!
//! ```text
//! group (bound origin?, country):  window of heads ◄─ load ─ ledger
//! lane (one per origin):           idle ─ send ─► in flight ─ answer ─► idle | waiting until …
//!                                                     └─ refused as a whole ─► suspects, halved until one is left
//! ```
//!
//! One batch is in flight per origin. Its size starts small after a failure and doubles with each success. Orders
//! that belong to an origin that must wait stay in their window; those of other origins pass them by.
//! Memory is bounded by the window, not by the backlog.

mod lane;
mod partly;

pub use lane::Limits;

use super::backoff::Backoff;
use super::ledger::{Backlog, CONFLICT, Change, ChangeTo, Group, Head, Hold};
use super::outcome::{BatchOutcome, OrderVerdict};
use crate::clock::Mono;
use lane::Lane;
use samovar_wire::{Country, OriginId};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

/// Heads in memory per group.
const WINDOW: usize = 512;
/// Below so many heads a window is filled up again.
const REFILL: usize = 128;
/// Waits of one order that the origin asked to retry.
const ORDER_BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };

/// An order that failed so often travels alone, so that it cannot take others down with it.
const ALONE_AFTER: u32 = 3;

/// Where routing sends an order right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To this origin.
    To(OriginId),
    /// Nowhere, until the route table changes; the words say why.
    Hold(String),
    /// Nothing can be said yet.
    Wait,
}

/// What routing is asked.
#[derive(Debug, Clone, Copy)]
pub struct RouteQuery<'a> {
    /// The country of the order.
    pub country: &'a Country,
    /// The person it concerns.
    pub user: Option<&'a str>,
    /// The origin it is bound to.
    pub bound: Option<&'a OriginId>,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read more heads of a group and hand them to [`Dispatcher::loaded`].
    Load {
        /// Which group.
        group: Group,
        /// Behind this place.
        after: u64,
        /// At most so many.
        limit: usize,
    },
    /// Bind these orders, send them, and hand the outcome to [`Dispatcher::answered`].
    Send(Sending),
    /// Record these changes.
    Record(Vec<Change>),
    /// Make orders held for a reason pending again.
    Unhold(Hold),
}

/// A batch to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sending {
    /// To this origin.
    pub origin: OriginId,
    /// Orders of this country.
    pub country: Country,
    /// These orders, ascending.
    pub heads: Vec<Head>,
}

/// The dispatcher's memory.
#[derive(Debug)]
pub struct Dispatcher {
    limits: Limits,
    groups: BTreeMap<Group, Window>,
    lanes: BTreeMap<OriginId, Lane>,
    in_flight: HashSet<u64>,
    /// Orders the origin asked to be left alone for a while.
    not_before: BTreeMap<u64, Mono>,
    disturbed: u64,
    routes_version: Option<u64>,
    /// The group that was served last; the next turn begins behind it, so that none starves.
    last_served: Option<Group>,
}

/// The heads of a group that are in memory.
#[derive(Debug, Default)]
struct Window {
    heads: VecDeque<(Head, Mono)>,
    /// Everything up to here has been read.
    read_to: u64,
    /// The last arrival that was heard of.
    arrival: u64,
    /// The ledger has no more behind `read_to`.
    exhausted: bool,
    loading: bool,
}

impl Dispatcher {
    /// Starts with nothing known.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            groups: BTreeMap::new(),
            lanes: BTreeMap::new(),
            in_flight: HashSet::new(),
            not_before: BTreeMap::new(),
            disturbed: 0,
            routes_version: None,
            last_served: None,
        }
    }

    /// The places of the orders that are being sent right now.
    #[must_use]
    pub const fn in_flight(&self) -> &HashSet<u64> {
        &self.in_flight
    }

    /// Takes in what the ledger holds.
    pub fn backlog(&mut self, backlog: &Backlog) {
        if backlog.disturbed != self.disturbed {
            // Orders became pending again behind the place that was read up to: read the windows anew.
            self.disturbed = backlog.disturbed;
            self.groups.values_mut().for_each(Window::rewind);
        }
        self.groups.retain(|group, window| window.loading || backlog.groups.contains_key(group));
        for (group, waiting) in &backlog.groups {
            let window = self.groups.entry(group.clone()).or_default();
            if window.arrival != waiting.last_arrival {
                window.arrival = waiting.last_arrival;
                window.exhausted = false;
            }
        }
    }

    /// Takes in the heads that were asked for; `None` when the ledger could not be read.
    pub fn loaded(&mut self, group: &Group, after: u64, limit: usize, heads: Option<Vec<Head>>, now: Mono) {
        let Some(window) = self.groups.get_mut(group) else { return };
        window.loading = false;
        let Some(heads) = heads.filter(|_| window.read_to == after) else { return };
        window.exhausted = heads.len() < limit;
        for head in heads {
            window.read_to = head.seq;
            if !self.in_flight.contains(&head.seq) {
                let ready_at = self.not_before.get(&head.seq).copied().unwrap_or(now);
                window.heads.push_back((head, ready_at));
            }
        }
    }

    /// Tells that routing may answer differently now. `table_version` is that of the table in force: a new table
    /// gives orders that were held for residency another chance.
    pub fn routes_changed(&mut self, table_version: Option<u64>) -> Option<Action> {
        let changed = self.routes_version != table_version;
        self.routes_version = table_version;
        changed.then_some(Action::Unhold(Hold::Residency))
    }

    /// Tells that this device has a new identity.
    pub fn identity_changed(&mut self) -> Action {
        self.lanes.values_mut().for_each(Lane::forgive_identity);
        Action::Unhold(Hold::Identity)
    }

    /// What to do now, and when to ask again if nothing happens before.
    pub fn poll(
        &mut self,
        now: Mono,
        route: &mut dyn FnMut(RouteQuery<'_>) -> Route,
    ) -> (Vec<Action>, Option<Mono>) {
        let mut actions = Vec::new();
        for lane in self.lanes.values_mut() {
            if lane.identity_wait_over(now) {
                actions.push(Action::Unhold(Hold::Identity));
            }
        }
        self.resend_suspects(now, &mut actions);
        self.not_before.retain(|_, at| *at > now);
        for group in self.turns() {
            self.send_from(&group, now, route, &mut actions);
        }
        for (group, window) in &mut self.groups {
            actions.extend(window.refill(group));
        }
        (actions, self.wake_at(now))
    }

    /// The groups in the order of their turns.
    fn turns(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.groups.keys().cloned().collect();
        if let Some(last) = &self.last_served {
            let next = groups.partition_point(|group| group <= last);
            groups.rotate_left(next);
        }
        groups
    }

    /// A batch that was refused as a whole is sent again in halves before anything else goes to that origin.
    fn resend_suspects(&mut self, now: Mono, actions: &mut Vec<Action>) {
        for (origin, lane) in &mut self.lanes {
            if let Some((country, heads)) = lane.next_suspects(now) {
                actions.push(Action::Send(Sending { origin: origin.clone(), country, heads }));
            }
        }
    }

    fn send_from(
        &mut self,
        group: &Group,
        now: Mono,
        route: &mut dyn FnMut(RouteQuery<'_>) -> Route,
        actions: &mut Vec<Action>,
    ) {
        let Some(window) = self.groups.get_mut(group) else { return };
        // Without a pin of their own, all orders of a group go the same way: ask once.
        let mut common: Option<Route> = None;
        let mut held = Vec::new();
        let mut batches: BTreeMap<OriginId, Batch> = BTreeMap::new();
        for (index, (head, ready_at)) in window.heads.iter().enumerate() {
            if *ready_at > now {
                continue;
            }
            let mut ask =
                |user| route(RouteQuery { country: &group.udl, user, bound: group.origin.as_ref() });
            let way = match head.user.as_deref() {
                Some(user) => ask(Some(user)),
                None => common.get_or_insert_with(|| ask(None)).clone(),
            };
            match way {
                Route::Wait => {}
                Route::Hold(why) => held.push((index, why)),
                Route::To(origin) => {
                    let limits = self.limits;
                    let lane = self.lanes.entry(origin.clone()).or_insert_with(|| Lane::new(limits));
                    if lane.ready(now) {
                        let batch = batches.entry(origin).or_default();
                        batch.offer(index, head, lane);
                    }
                }
            }
            if batches.len() == 1 && head.user.is_none() && batches.values().all(|batch| batch.full) {
                break;
            }
        }
        self.take(group, &held, batches, actions);
    }

    /// Takes what was chosen out of the window.
    fn take(
        &mut self,
        group: &Group,
        held: &[(usize, String)],
        batches: BTreeMap<OriginId, Batch>,
        actions: &mut Vec<Action>,
    ) {
        let Some(window) = self.groups.get_mut(group) else { return };
        let mut taken: HashSet<usize> = held.iter().map(|(index, _)| *index).collect();
        let changes: Vec<Change> = held
            .iter()
            .map(|(index, why)| Change {
                seq: window.heads[*index].0.seq,
                to: ChangeTo::Held(Hold::Residency, why.clone()),
            })
            .collect();
        if !changes.is_empty() {
            actions.push(Action::Record(changes));
        }
        if !batches.is_empty() {
            self.last_served = Some(group.clone());
        }
        for (origin, batch) in batches {
            let heads: Vec<Head> = batch.indices.iter().map(|index| window.heads[*index].0.clone()).collect();
            taken.extend(&batch.indices);
            self.in_flight.extend(heads.iter().map(|head| head.seq));
            if let Some(lane) = self.lanes.get_mut(&origin) {
                lane.started();
            }
            actions.push(Action::Send(Sending { origin, country: group.udl.clone(), heads }));
        }
        if !taken.is_empty() {
            let mut index = 0;
            window.heads.retain(|_| {
                index += 1;
                !taken.contains(&(index - 1))
            });
        }
    }

    /// Takes in what became of a batch. `random` is uniform in 0..=`u32::MAX`.
    pub fn answered(
        &mut self,
        sent: &Sending,
        outcome: &BatchOutcome,
        now: Mono,
        random: u32,
    ) -> Vec<Action> {
        if let BatchOutcome::Partly { verdicts, others } = outcome {
            return self.answered_partly(sent, verdicts, others, now, random);
        }
        for head in &sent.heads {
            self.in_flight.remove(&head.seq);
        }
        let limits = self.limits;
        let lane = self.lanes.entry(sent.origin.clone()).or_insert_with(|| Lane::new(limits));
        let mut changes = Vec::new();
        match outcome {
            BatchOutcome::Answered(verdicts) => {
                // An origin that asks to retry every single order is busy, whatever its status said.
                if verdicts.iter().all(|verdict| matches!(verdict, OrderVerdict::Retry(..))) {
                    lane.failed(now, None, random);
                } else {
                    lane.succeeded();
                }
                for (head, verdict) in sent.heads.iter().zip(verdicts) {
                    let to = self.judged(sent, head, verdict, now, random);
                    changes.push(Change { seq: head.seq, to });
                }
            }
            BatchOutcome::Unreachable(detail) | BatchOutcome::NotTheOrigin(detail) => {
                lane.failed(now, None, random);
                self.give_back(sent, detail, now, random, &mut changes);
            }
            BatchOutcome::Busy { detail, retry_after, .. } => {
                lane.failed(now, *retry_after, random);
                self.give_back(sent, detail, now, random, &mut changes);
            }
            BatchOutcome::IdentityRefused(detail) => {
                lane.refused_identity(now, random);
                changes.extend(each(sent, |_| ChangeTo::Held(Hold::Identity, detail.clone())));
            }
            BatchOutcome::TooLarge(detail) | BatchOutcome::BatchRefused(detail) => {
                let too_large = matches!(outcome, BatchOutcome::TooLarge(_));
                if lane.refused(&sent.country, &sent.heads, too_large) {
                    changes.extend(each(sent, |_| ChangeTo::Quarantined {
                        why: if too_large { "too-large" } else { "rejected" }.into(),
                        detail: detail.clone(),
                    }));
                } else {
                    // They are on their way still, in halves.
                    self.in_flight.extend(sent.heads.iter().map(|head| head.seq));
                }
            }
            // Taken apart above.
            BatchOutcome::Partly { .. } => {}
        }
        if changes.is_empty() { Vec::new() } else { vec![Action::Record(changes)] }
    }

    /// Tells that a batch could not be bound: the ledger failed, and nothing left the device.
    pub fn not_bound(&mut self, sent: &Sending, now: Mono, random: u32) {
        self.dropped(&sent.heads);
        if let Some(lane) = self.lanes.get_mut(&sent.origin) {
            lane.failed(now, None, random);
        }
        self.groups.values_mut().for_each(Window::rewind);
    }

    /// Tells that some orders of a batch are no longer to be sent (settled or discarded meanwhile), and whether
    /// anything of the batch is left.
    pub fn left_out(&mut self, origin: &OriginId, heads: &[Head], anything_left: bool) {
        self.dropped(heads);
        if let Some(lane) = self.lanes.get_mut(origin).filter(|_| !anything_left) {
            lane.aborted();
        }
    }

    fn dropped(&mut self, heads: &[Head]) {
        for head in heads {
            self.in_flight.remove(&head.seq);
        }
    }

    fn judged(
        &mut self,
        sent: &Sending,
        head: &Head,
        verdict: &OrderVerdict,
        now: Mono,
        random: u32,
    ) -> ChangeTo {
        match verdict {
            OrderVerdict::Settled => ChangeTo::Settled,
            OrderVerdict::Refused { code, detail, conflict } => ChangeTo::Quarantined {
                why: if *conflict { CONFLICT.into() } else { code.clone() },
                detail: detail.clone(),
            },
            OrderVerdict::Retry(wait, detail) => {
                let wait = wait.unwrap_or_else(|| ORDER_BACKOFF.wait(head.attempts + 1, random));
                self.put_back(sent, head, now, now.plus(wait));
                ChangeTo::Failed(detail.clone())
            }
        }
    }

    /// A batch that failed comes back at once, to be probed order by order. A single order that failed waits by itself,
    /// longer each time, so that one that breaks the origin does not stand before all others for ever.
    fn give_back(&mut self, sent: &Sending, detail: &str, now: Mono, random: u32, changes: &mut Vec<Change>) {
        let alone = sent.heads.len() == 1;
        for head in &sent.heads {
            // At least half of the ceiling: a probe of the next order must fit in before it comes again.
            let wait = ORDER_BACKOFF.wait(head.attempts + 1, u32::MAX / 2 + random / 2);
            self.put_back(sent, head, now, if alone { now.plus(wait) } else { now });
        }
        changes.extend(each(sent, |_| ChangeTo::Failed(detail.to_owned())));
    }

    /// What was sent is bound now, so it goes into the window of its origin; or, when that window has not been read
    /// so far, it is read in its turn.
    fn put_back(&mut self, sent: &Sending, head: &Head, now: Mono, ready_at: Mono) {
        if ready_at > now {
            self.not_before.insert(head.seq, ready_at);
        }
        let group = Group { origin: Some(sent.origin.clone()), udl: sent.country.clone() };
        let window = self.groups.entry(group).or_default();
        if head.seq > window.read_to {
            window.exhausted = false;
            return;
        }
        let head = Head { attempts: head.attempts.saturating_add(1), ..head.clone() };
        let at = window.heads.partition_point(|(other, _)| other.seq < head.seq);
        if window.heads.get(at).is_none_or(|(other, _)| other.seq != head.seq) {
            window.heads.insert(at, (head, ready_at));
        }
    }

    fn wake_at(&self, now: Mono) -> Option<Mono> {
        let lanes = self.lanes.values().filter_map(Lane::wakes_at);
        let heads =
            self.groups.values().flat_map(|window| window.heads.iter().map(|(_, ready_at)| *ready_at));
        lanes.chain(heads).filter(|at| *at > now).min()
    }
}

fn each<'a>(sent: &'a Sending, to: impl Fn(&Head) -> ChangeTo + 'a) -> impl Iterator<Item = Change> + 'a {
    sent.heads.iter().map(move |head| Change { seq: head.seq, to: to(head) })
}

impl Window {
    fn rewind(&mut self) {
        *self = Self { arrival: self.arrival, ..Self::default() };
    }

    fn refill(&mut self, group: &Group) -> Option<Action> {
        if self.loading || self.exhausted || self.heads.len() >= REFILL {
            return None;
        }
        self.loading = true;
        Some(Action::Load { group: group.clone(), after: self.read_to, limit: WINDOW - self.heads.len() })
    }
}

/// The part of a window that goes to one origin.
#[derive(Debug, Default)]
struct Batch {
    indices: Vec<usize>,
    bytes: u64,
    full: bool,
}

impl Batch {
    fn offer(&mut self, index: usize, head: &Head, lane: &Lane) {
        let bytes = u64::from(head.bytes);
        if head.attempts >= ALONE_AFTER {
            if self.indices.is_empty() {
                self.indices.push(index);
                self.full = true;
            }
            return;
        }
        let fits = self.indices.is_empty() || self.bytes + bytes <= lane.max_bytes();
        if self.full || !fits {
            self.full = true;
            return;
        }
        self.indices.push(index);
        self.bytes += bytes;
        self.full = self.indices.len() >= lane.max_orders();
    }
}

#[cfg(test)]
mod tests;
