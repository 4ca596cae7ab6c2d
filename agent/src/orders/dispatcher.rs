//! Decides which orders go to which origin, and when. Pure: no clock, no lock, no IO; `now`, routes and randomness
//! come in, actions and "wake me at" go out.
//!
//! ```text
//! group (bound origin?, country):  backlog window │ live window   ◄─ load ─ ledger        (see `queue`)
//!                                        └───┬────────┘
//!                                  live first, a share for the backlog                     (see `batch`)
//!                                            ▼
//! lane (one per origin):           closed ─ failure ─► open ─► half-open ─ answer ─► closed   (see `lane`)
//!                                     ├─ refused as a whole ─► suspects, halved until one is left
//!                                     └─ never answered ─► doubted, one by one beside the batches (see `aside`)
//! ```
//!
//! One batch is in flight per origin; in a drain the next one is bound meanwhile (see `lane`). Orders that belong to an
//! origin that must wait stay in their window; those of other origins pass them by. Memory is bounded by the windows,
//! not by the backlog.
//!
//! After an outage live orders go at once and the backlog when [`Dispatcher::heard`] said: a whole country comes back
//! in the same second.

mod answers;
mod aside;
mod batch;
mod desk;
mod lane;
mod model;
mod partly;
mod queue;

pub use lane::{Cause, LaneState, Limits};
pub use model::{Action, Route, RouteQuery, Sending};
pub use queue::Page;

use super::ledger::{Backlog, Change, ChangeTo, Group, Head, Hold};
use super::recovery::{Return, Silent};
use crate::clock::Mono;
use batch::{Batch, Choice};
use desk::{Desk, Pass};
use lane::Lane;
use queue::{Queue, WINDOW};
use samovar_wire::OriginId;
use std::collections::{BTreeMap, HashSet};

/// The dispatcher's memory.
#[derive(Debug)]
pub struct Dispatcher {
    limits: Limits,
    groups: BTreeMap<Group, Queue>,
    lanes: BTreeMap<OriginId, Lane>,
    in_flight: HashSet<u64>,
    /// Orders that must be left alone for a while.
    pauses: BTreeMap<u64, Pause>,
    disturbed: u64,
    /// The highest place the ledger has given; `None` before it was heard of.
    newest: Option<u64>,
    routes_version: Option<u64>,
    /// The group that was served last; the next turn begins behind it, so that none starves.
    last_served: Option<Group>,
}

/// Why and how long one order waits.
#[derive(Debug)]
struct Pause {
    until: Mono,
    /// What ends the wait before that.
    ends: Ends,
}

/// What ends the wait of an order early.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ends {
    /// Nothing.
    Never,
    /// That this origin returns from an outage.
    Return(OriginId),
    /// The same, or that it answers another order: this one was a probe.
    Answer(OriginId),
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
            pauses: BTreeMap::new(),
            disturbed: 0,
            newest: None,
            routes_version: None,
            last_served: None,
        }
    }

    /// The places of the orders on their way: prepared, being sent, or answered with a word that is not on disk yet.
    #[must_use]
    pub const fn in_flight(&self) -> &HashSet<u64> {
        &self.in_flight
    }

    /// The breaker of each origin, and since when it is so.
    pub fn lanes(&self) -> impl Iterator<Item = (&OriginId, LaneState, Mono)> {
        self.lanes.iter().map(|(origin, lane)| {
            let (state, since) = lane.state();
            (origin, state, since)
        })
    }

    /// Takes in what the ledger holds.
    pub fn backlog(&mut self, backlog: &Backlog) {
        let first = self.newest.is_none();
        self.newest = Some(backlog.newest);
        if backlog.disturbed != self.disturbed {
            // Orders became pending again behind the places that were read up to.
            self.disturbed = backlog.disturbed;
            self.groups.values_mut().for_each(Queue::rewind);
        }
        self.groups.retain(|group, queue| queue.is_loading() || backlog.groups.contains_key(group));
        for (group, waiting) in &backlog.groups {
            let lanes = &self.lanes;
            let queue = self.groups.entry(group.clone()).or_insert_with(|| {
                let lane = group.origin.as_ref().and_then(|origin| lanes.get(origin));
                // What an earlier process left is backlog, all of it.
                Queue::new(if first { backlog.newest } else { lane.map_or(0, |lane| lane.boundary) })
            });
            queue.arrived(waiting.last_arrival);
            if waiting.orders > WINDOW as u64 && queue.backlog_done() {
                queue.split(backlog.newest);
            }
        }
    }

    /// Takes in the heads that were asked for; `None` when the ledger could not be read.
    pub fn loaded(&mut self, group: &Group, page: &Page, heads: Option<Vec<Head>>, now: Mono) {
        let Some(queue) = self.groups.get_mut(group) else { return };
        let (in_flight, pauses) = (&self.in_flight, &self.pauses);
        queue.loaded(page, heads, |head| {
            let ready_at = pauses.get(&head.seq).map_or(now, |pause| pause.until);
            (!in_flight.contains(&head.seq)).then_some(ready_at)
        });
    }

    /// Tells that routing may answer differently now. `table_version` is that of the table in force: a new table
    /// gives orders that were held for residency another chance.
    pub fn routes_changed(&mut self, table_version: Option<u64>) -> Option<Action> {
        let changed = self.routes_version != table_version;
        self.routes_version = table_version;
        changed.then_some(Action::Unhold(Hold::Residency))
    }

    /// Tells that this device has a new identity.
    pub fn identity_changed(&mut self, now: Mono) -> Action {
        self.lanes.values_mut().for_each(|lane| lane.forgive_identity(now));
        Action::Unhold(Hold::Identity)
    }

    /// The origins that fail or do not answer, did not ask for patience, and of which nothing was heard since.
    #[must_use]
    pub fn silent(&self, now: Mono) -> Vec<Silent> {
        let silent = self.lanes.iter().filter_map(|(origin, lane)| {
            let (since, country) = (lane.silent_since(now)?, lane.country.clone()?);
            Some(Silent { origin: origin.clone(), country, since, urgent: self.has_live(origin) })
        });
        silent.collect()
    }

    fn has_live(&self, origin: &OriginId) -> bool {
        self.groups.iter().any(|(group, queue)| {
            let goes_there = match &group.origin {
                Some(bound) => bound == origin,
                None => queue.routed.as_ref().is_none_or(|routed| routed == origin),
            };
            goes_there && queue.live().next().is_some()
        })
    }

    /// Tells that an origin that was silent was heard. True when the batch under way to it was sent before and
    /// should be given up: it may hang for long on a connection that is dead.
    pub fn heard(&mut self, back: &Return, now: Mono) -> bool {
        let Some(lane) = self.lanes.get_mut(&back.origin).filter(|lane| lane.silent_since(now).is_some())
        else {
            return false;
        };
        let give_up = lane.heard(back.line_up, back.live_at, back.backlog_from, now);
        self.end_waits(&[Ends::Return(back.origin.clone()), Ends::Answer(back.origin.clone())], now);
        give_up
    }

    /// Tells that an origin says that it is well, and was never away.
    pub fn well(&mut self, origin: &OriginId, now: Mono) {
        if let Some(lane) = self.lanes.get_mut(origin) {
            lane.well(now);
        }
    }

    fn end_waits(&mut self, which: &[Ends], now: Mono) {
        let over = self.pauses.extract_if(.., |_, pause| which.contains(&pause.ends));
        let freed: HashSet<u64> = over.map(|(seq, _)| seq).collect();
        self.groups.values_mut().for_each(|queue| queue.ready_now(&freed, now));
    }

    /// What to do now, and when to ask again if nothing happens before.
    pub fn poll(
        &mut self,
        now: Mono,
        route: &mut dyn FnMut(RouteQuery<'_>) -> Route,
    ) -> (Vec<Action>, Option<Mono>) {
        let mut actions = Vec::new();
        for lane in self.lanes.values_mut() {
            if lane.tick(now) {
                actions.push(Action::Unhold(Hold::Identity));
            }
        }
        self.pauses.retain(|_, pause| pause.until > now);
        self.serve_all(Pass::Live, now, route, &mut actions);
        self.resend_suspects(now, &mut actions);
        if self.lanes.values().any(|lane| Pass::Bound.allows(lane)) {
            self.serve_all(Pass::Bound, now, route, &mut actions);
        }
        self.serve_all(Pass::All, now, route, &mut actions);
        self.send_aside(now, route, &mut actions);
        for (group, queue) in &mut self.groups {
            let pages = queue.refill(now).into_iter();
            actions.extend(pages.map(|page| Action::Load { group: group.clone(), page }));
        }
        (actions, self.wake_at(now))
    }

    fn serve_all(
        &mut self,
        pass: Pass,
        now: Mono,
        route: &mut dyn FnMut(RouteQuery<'_>) -> Route,
        actions: &mut Vec<Action>,
    ) {
        let mut groups: Vec<Group> = self.groups.keys().cloned().collect();
        if let Some(last) = &self.last_served {
            let next = groups.partition_point(|group| group <= last);
            groups.rotate_left(next);
        }
        for group in groups {
            if pass == Pass::Bound && group.origin.is_none() {
                continue;
            }
            self.serve(&group, pass, now, route, actions);
        }
    }

    /// A batch that was refused as a whole is sent again in halves, in turns with live orders.
    fn resend_suspects(&mut self, now: Mono, actions: &mut Vec<Action>) {
        for (origin, lane) in &mut self.lanes {
            if let Some((country, heads)) = lane.next_suspects(now) {
                let origin = origin.clone();
                actions.push(Action::Send(Sending { origin, country, heads, aside: false }));
            }
        }
    }

    fn serve(
        &mut self,
        group: &Group,
        pass: Pass,
        now: Mono,
        route: &mut dyn FnMut(RouteQuery<'_>) -> Route,
        actions: &mut Vec<Action>,
    ) {
        let Some(queue) = self.groups.get(group) else { return };
        let mut desk = Desk { group, route, common: None, held: Vec::new(), choices: BTreeMap::new() };
        desk.offer(queue.live(), true, pass, now, &mut self.lanes, self.limits);
        if pass != Pass::Live || desk.choices.values().any(Choice::has_live) {
            desk.offer(queue.backlog(), false, pass, now, &mut self.lanes, self.limits);
        }
        let batches: Vec<(OriginId, Batch)> = desk
            .choices
            .iter()
            .filter(|(_, choice)| pass != Pass::Live || choice.has_live())
            .filter_map(|(origin, choice)| {
                let lane = self.lanes.get(origin)?;
                let batch = choice.compose(lane);
                // Only a drain is worth preparing; a single order goes when the batch under way was answered.
                (batch.full || !lane.is_busy()).then(|| (origin.clone(), batch))
            })
            .collect();
        let routed = match desk.common {
            Some(Route::To(origin)) => Some(origin),
            _ => None,
        };
        let held = desk.held;
        if let Some(queue) = self.groups.get_mut(group) {
            queue.routed = routed.or_else(|| queue.routed.take());
        }
        self.hold(group, held, actions);
        for (origin, batch) in batches {
            self.send(group, origin, &batch, now, actions);
        }
    }

    fn hold(&mut self, group: &Group, held: Vec<(u64, String)>, actions: &mut Vec<Action>) {
        let Some(queue) = self.groups.get_mut(group).filter(|_| !held.is_empty()) else { return };
        queue.take(&held.iter().map(|(seq, _)| *seq).collect());
        let to = |why| ChangeTo::Held(Hold::Residency, why);
        let changes = held.into_iter().map(|(seq, why)| Change { seq, to: to(why) }).collect();
        actions.push(Action::Record(changes));
    }

    fn send(&mut self, group: &Group, origin: OriginId, batch: &Batch, now: Mono, actions: &mut Vec<Action>) {
        let (Some(queue), Some(lane)) = (self.groups.get_mut(group), self.lanes.get_mut(&origin)) else {
            return;
        };
        let behind = lane.is_busy();
        lane.started(batch.live, batch.backlog, now);
        let heads = queue.take(&batch.seqs);
        self.in_flight.extend(&batch.seqs);
        self.last_served = Some(group.clone());
        let sending = Sending { origin, country: group.udl.clone(), heads, aside: false };
        actions.push(if behind { Action::Prepare(sending) } else { Action::Send(sending) });
    }

    /// Tells that a batch whose turn it was could not be bound: the ledger failed, and nothing left the device.
    pub fn not_bound(&mut self, sent: &Sending, now: Mono, random: u32) -> Option<Action> {
        self.dropped(&sent.heads);
        if let Some(lane) = self.lanes.get_mut(&sent.origin) {
            if sent.aside {
                lane.ended_aside();
            }
            if !sent.aside || lane.hears_aside() {
                lane.failed(Cause::Busy, None, now, random);
            }
        }
        self.groups.values_mut().for_each(Queue::rewind);
        self.next_turn(&sent.origin, now)
    }

    /// Tells that some orders of a batch are no longer to be sent (settled or discarded meanwhile).
    pub fn left_out(&mut self, heads: &[Head]) {
        self.dropped(heads);
        for lane in self.lanes.values_mut() {
            lane.forget(heads.iter().map(|head| head.seq));
        }
    }

    /// Tells that a batch whose turn it was had nothing left in it.
    pub fn nothing_left(&mut self, sent: &Sending, now: Mono) -> Option<Action> {
        let lane = self.lanes.get_mut(&sent.origin)?;
        if sent.aside {
            lane.ended_aside();
            return None;
        }
        lane.aborted();
        self.next_turn(&sent.origin, now)
    }

    /// The batch to an origin has ended: what becomes of the one that was prepared.
    fn next_turn(&mut self, origin: &OriginId, now: Mono) -> Option<Action> {
        let goes = self.lanes.get_mut(origin)?.next_turn(now)?;
        Some(if goes { Action::Go(origin.clone()) } else { Action::Withdraw(origin.clone()) })
    }

    fn dropped(&mut self, heads: &[Head]) {
        for head in heads {
            self.in_flight.remove(&head.seq);
        }
    }

    fn wake_at(&self, now: Mono) -> Option<Mono> {
        let lanes = self.lanes.values().filter_map(|lane| lane.wakes_at(now));
        let heads = self.groups.values().flat_map(|queue| queue.live().chain(queue.backlog()));
        lanes.chain(heads.map(|(_, ready_at)| *ready_at)).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests;
