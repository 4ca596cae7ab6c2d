//! Orders that may be at fault themselves, and go beside the batches of their origin. Pure.
//!
//! ```text
//!  batch never answered ─► its orders are doubted ─┐              the origin answers others, or says that it is well
//!  sent three times in vain ───────────────────────┴─► isolated ──────────────┬──────────────► aside: one by one,
//!                                                          ▲                  │                beside the batches
//!                                                          │                  └─ neither ────► a probe like any other
//!                                                          └── no answer: its own wait, longer each time ◄──┘
//! ```
//!
//! Promises:
//! - An order that the origin never answers costs other orders the wait for one answer, once. After that it is alone
//!   on its way, and batches go as if it were not there.
//! - Those that were doubted without reason go before those that were tried more often, and two may be on their way.
//! - Nothing but the origin's word ends such an order: it stays pending and bound, and is tried at least once in a
//!   minute and the time that an answer may take.
//! - What an order meets aside says little of the origin: it moves the lane only when the origin asks for patience or
//!   refuses who we are, when nobody can be reached, or when nothing was answered since the lane was open.

use super::answers::{alone, sent_once_more};
use super::lane::Cause;
use super::model::{Action, Route, RouteQuery, Sending};
use super::{Change, ChangeTo, Dispatcher, Ends};
use crate::clock::Mono;
use crate::orders::ledger::{Group, Head, Hold};
use crate::orders::outcome::{BatchOutcome, OrderVerdict};
use samovar_wire::OriginId;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Least wait of a lane after a batch that was never answered: a look at the origin's health fits in before the next
/// probe, which may then be an order that is not doubted.
pub(super) const TIME_TO_LOOK: Duration = Duration::from_secs(5);

impl Dispatcher {
    /// Sends what goes beside the batches: of each origin one order, and another when it is asked again.
    pub(super) fn send_aside(
        &mut self,
        now: Mono,
        route: &mut dyn FnMut(RouteQuery<'_>) -> Route,
        actions: &mut Vec<Action>,
    ) {
        if !self.lanes.values().any(|lane| lane.ready_aside(now)) {
            return;
        }
        for (origin, (seq, group)) in self.next_aside(now, route) {
            let (Some(queue), Some(lane)) = (self.groups.get_mut(&group), self.lanes.get_mut(&origin)) else {
                continue;
            };
            let heads = queue.take(&HashSet::from([seq]));
            lane.started_aside();
            self.in_flight.insert(seq);
            actions.push(Action::Send(Sending { origin, country: group.udl, heads, aside: true }));
        }
    }

    /// Of each origin that may be sent one, the order that was tried least.
    fn next_aside(
        &self,
        now: Mono,
        route: &mut dyn FnMut(RouteQuery<'_>) -> Route,
    ) -> BTreeMap<OriginId, (u64, Group)> {
        let mut best: BTreeMap<OriginId, (u32, u64, Group)> = BTreeMap::new();
        for (group, queue) in &self.groups {
            let mut common = None;
            let ready = queue.backlog().chain(queue.live()).filter(|(_, ready_at)| *ready_at <= now);
            for (head, _) in ready.filter(|(head, _)| self.lanes.values().any(|lane| lane.isolates(head))) {
                let mut way =
                    |user| route(RouteQuery { country: &group.udl, user, bound: group.origin.as_ref() });
                let route = match head.user.as_deref() {
                    Some(user) => way(Some(user)),
                    None => common.get_or_insert_with(|| way(None)).clone(),
                };
                let Route::To(origin) = route else { continue };
                let goes = |lane: &super::Lane| lane.ready_aside(now) && lane.isolates(head);
                let better =
                    best.get(&origin).is_none_or(|best| (head.attempts, head.seq) < (best.0, best.1));
                if better && self.lanes.get(&origin).is_some_and(goes) {
                    best.insert(origin, (head.attempts, head.seq, group.clone()));
                }
            }
        }
        best.into_iter().map(|(origin, (_, seq, group))| (origin, (seq, group))).collect()
    }

    /// Takes in what became of an order that went aside.
    pub(super) fn aside_taken_in(
        &mut self,
        sent: &Sending,
        outcome: &BatchOutcome,
        now: Mono,
        random: u32,
    ) -> Vec<Change> {
        self.dropped(&sent.heads);
        self.lane(&sent.origin).ended_aside();
        let all =
            |to: ChangeTo| sent.heads.iter().map(|head| Change { seq: head.seq, to: to.clone() }).collect();
        match outcome {
            BatchOutcome::Answered(verdicts) => {
                if verdicts.iter().any(|verdict| !matches!(verdict, OrderVerdict::Retry(..))) {
                    self.lane(&sent.origin).answered_aside(now);
                }
                let judged = sent.heads.iter().zip(verdicts).map(|(head, verdict)| Change {
                    seq: head.seq,
                    to: self.judged(sent, head, verdict, now, random),
                });
                judged.collect()
            }
            BatchOutcome::TooLarge(detail) | BatchOutcome::BatchRefused(detail) => {
                self.lane(&sent.origin).answered_aside(now);
                all(refused(matches!(outcome, BatchOutcome::TooLarge(_)), detail))
            }
            // Held orders are freed when the lane's wait for another identity is over, so it must have one.
            BatchOutcome::IdentityRefused(detail) if !self.lane(&sent.origin).hears_aside() => {
                self.wait_alone(sent, None, now, random);
                all(ChangeTo::Failed(detail.clone()))
            }
            BatchOutcome::IdentityRefused(detail) => {
                self.failed_aside(sent, Cause::Identity, None, now, random);
                all(ChangeTo::Held(Hold::Identity, detail.clone()))
            }
            BatchOutcome::Busy { failing, detail, retry_after } => {
                let asked = !failing || retry_after.is_some();
                let cause = if *failing { Cause::Failing } else { Cause::Busy };
                if asked || self.is_unproven(&sent.origin) {
                    self.failed_aside(sent, cause, *retry_after, now, random);
                }
                self.wait_alone(sent, *retry_after, now, random);
                all(ChangeTo::Failed(detail.clone()))
            }
            BatchOutcome::Stalled(detail) => {
                if self.is_unproven(&sent.origin) {
                    self.failed_aside(sent, Cause::NoAnswer, Some(TIME_TO_LOOK), now, random);
                }
                self.wait_alone(sent, None, now, random);
                all(ChangeTo::Failed(detail.clone()))
            }
            BatchOutcome::Unreachable(detail) | BatchOutcome::NotTheOrigin(detail) => {
                self.failed_aside(sent, Cause::NoAnswer, None, now, random);
                self.wait_alone(sent, None, now, random);
                all(ChangeTo::Failed(detail.clone()))
            }
            // One order has one answer, so the rest is the whole.
            BatchOutcome::Partly { others, .. } => self.aside_taken_in(sent, others, now, random),
        }
    }

    /// Takes in orders that got no answer while the origin answered others: they are what is wrong.
    pub(super) fn stalled_alone(
        &mut self,
        sent: &Sending,
        detail: &str,
        now: Mono,
        random: u32,
    ) -> Vec<Change> {
        self.dropped(&sent.heads);
        self.lane(&sent.origin).doubt(&sent.heads);
        self.wait_alone(sent, None, now, random);
        let failed = |head: &Head| Change { seq: head.seq, to: ChangeTo::Failed(detail.to_owned()) };
        sent.heads.iter().map(failed).collect()
    }

    /// Nothing was answered since the lane was open.
    fn is_unproven(&mut self, origin: &OriginId) -> bool {
        !self.lane(origin).is_closed()
    }

    /// Opens the lane, if it hears of what goes aside. However often the order fails, it
    /// counts no more than once: others shall not wait for long because of it.
    fn failed_aside(
        &mut self,
        sent: &Sending,
        cause: Cause,
        least: Option<Duration>,
        now: Mono,
        random: u32,
    ) {
        let lane = self.lane(&sent.origin);
        if lane.hears_aside() {
            lane.count_once_less();
            self.failed(sent, cause, least, now, random);
        }
    }

    /// That others are answered is no reason to try it earlier, but that the origin was away is.
    fn wait_alone(&mut self, sent: &Sending, least: Option<Duration>, now: Mono, random: u32) {
        for head in &sent.heads {
            let ready_at = now.plus(alone(head, random).max(least.unwrap_or_default()));
            let ends = Ends::Return(sent.origin.clone());
            self.put_back(sent, sent_once_more(head), now, ready_at, ends);
        }
    }
}

/// What becomes of an order that the origin refused when it stood alone.
pub(super) fn refused(too_large: bool, detail: &str) -> ChangeTo {
    ChangeTo::Quarantined {
        why: if too_large { "too-large" } else { "rejected" }.into(),
        detail: detail.to_owned(),
    }
}
