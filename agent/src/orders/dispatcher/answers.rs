//! What an origin's answer to a batch means for the lane, the windows and the ledger. Pure.

use super::aside::{TIME_TO_LOOK, refused};
use super::lane::{Cause, Lane};
use super::model::{Action, Sending};
use super::queue::Queue;
use super::{Dispatcher, Ends, Pause};
use crate::clock::Mono;
use crate::orders::backoff::Backoff;
use crate::orders::ledger::{CONFLICT, Change, ChangeTo, Group, Head, Hold};
use crate::orders::outcome::{BatchOutcome, OrderVerdict};
use samovar_wire::OriginId;
use std::time::Duration;

/// Waits of one order that failed alone, or that the origin asked to retry.
const ORDER_BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };

impl Dispatcher {
    /// Takes in what became of a batch. `random` is uniform in 0..=`u32::MAX`. What is over for an order stays out of
    /// the windows until [`Self::recorded`] says that it is on disk.
    pub fn answered(
        &mut self,
        sent: &Sending,
        outcome: &BatchOutcome,
        now: Mono,
        random: u32,
    ) -> Vec<Action> {
        let was_closed = self.lane(&sent.origin).is_closed();
        let changes = if sent.aside {
            self.aside_taken_in(sent, outcome, now, random)
        } else {
            self.taken_in(sent, outcome, now, random)
        };
        if !was_closed && self.lane(&sent.origin).is_closed() {
            // What failed as a probe waited for the origin, and that is there.
            self.end_waits(&[Ends::Answer(sent.origin.clone())], now);
        }
        let over = changes.iter().filter(|change| is_final(&change.to)).map(|change| change.seq);
        self.lane(&sent.origin).forget(over);
        self.in_flight.extend(changes.iter().filter(|change| is_final(&change.to)).map(|change| change.seq));
        let record = (!changes.is_empty()).then_some(Action::Record(changes));
        self.next_turn(&sent.origin, now).into_iter().chain(record).collect()
    }

    pub(super) fn taken_in(
        &mut self,
        sent: &Sending,
        outcome: &BatchOutcome,
        now: Mono,
        random: u32,
    ) -> Vec<Change> {
        if let BatchOutcome::Partly { verdicts, others } = outcome {
            return self.partly_taken_in(sent, verdicts, others, now, random);
        }
        self.dropped(&sent.heads);
        let mut changes = Vec::new();
        match outcome {
            BatchOutcome::Answered(verdicts) => {
                // An origin that asks to retry every single order is busy, whatever its status said; one that asks it
                // for one order, when all was well, may mean that order.
                let retries = verdicts.iter().all(|verdict| matches!(verdict, OrderVerdict::Retry(..)));
                if retries && (verdicts.len() > 1 || !self.lane(&sent.origin).is_closed()) {
                    self.failed(sent, Cause::Busy, None, now, random);
                } else if retries {
                    self.lane(&sent.origin).aborted();
                } else {
                    self.lane(&sent.origin).succeeded(sent.heads.len(), now);
                }
                for (head, verdict) in sent.heads.iter().zip(verdicts) {
                    let to = self.judged(sent, head, verdict, now, random);
                    changes.push(Change { seq: head.seq, to });
                }
            }
            BatchOutcome::Unreachable(detail) | BatchOutcome::NotTheOrigin(detail) => {
                let counts = self.failed(sent, Cause::NoAnswer, None, now, random);
                self.give_back(sent, counts, now, random);
                changes.extend(each(sent, |_| ChangeTo::Failed(detail.clone())));
            }
            BatchOutcome::Stalled(detail) => {
                let counts = self.failed(sent, Cause::NoAnswer, Some(TIME_TO_LOOK), now, random);
                if counts {
                    self.lane(&sent.origin).doubt(&sent.heads);
                }
                self.give_back(sent, counts, now, random);
                changes.extend(each(sent, |_| ChangeTo::Failed(detail.clone())));
            }
            BatchOutcome::Busy { failing, detail, retry_after } => {
                let cause = if *failing { Cause::Failing } else { Cause::Busy };
                self.failed(sent, cause, *retry_after, now, random);
                self.give_back(sent, true, now, random);
                changes.extend(each(sent, |_| ChangeTo::Failed(detail.clone())));
            }
            BatchOutcome::IdentityRefused(detail) => {
                self.failed(sent, Cause::Identity, None, now, random);
                changes.extend(each(sent, |_| ChangeTo::Held(Hold::Identity, detail.clone())));
            }
            BatchOutcome::TooLarge(detail) | BatchOutcome::BatchRefused(detail) => {
                let too_large = matches!(outcome, BatchOutcome::TooLarge(_));
                if self.lane(&sent.origin).refused(&sent.country, &sent.heads, too_large, now) {
                    changes.extend(each(sent, |_| refused(too_large, detail)));
                } else {
                    // They are on their way still, in halves.
                    self.in_flight.extend(sent.heads.iter().map(|head| head.seq));
                }
            }
            // Taken apart above.
            BatchOutcome::Partly { .. } => {}
        }
        changes
    }

    /// Tells that changes are on disk, or that the ledger failed. Then these orders are sent again; the origin absorbs
    /// that.
    pub fn recorded(&mut self, origin: &OriginId, changes: &[Change], done: bool, now: Mono, random: u32) {
        let over: Vec<u64> =
            changes.iter().filter(|change| is_final(&change.to)).map(|change| change.seq).collect();
        for seq in &over {
            self.in_flight.remove(seq);
        }
        if done || over.is_empty() {
            return;
        }
        self.groups.values_mut().for_each(Queue::rewind);
        // Whatever is under way there ends by itself, and cannot be followed by another before the ledger binds it.
        let lane = self.lane(origin);
        if !lane.is_busy() {
            lane.failed(Cause::Busy, None, now, random);
        }
    }

    /// Takes a batch back that was prepared and not sent. If it was `bound` it stays so, as everything does that was
    /// bound once; that it was not sent is written down, because orders that were sent often travel alone.
    pub fn withdrawn(&mut self, sent: &Sending, bound: bool, now: Mono) -> Vec<Action> {
        self.dropped(&sent.heads);
        if !bound {
            self.groups.values_mut().for_each(Queue::rewind);
            return Vec::new();
        }
        for head in &sent.heads {
            self.put_back(sent, head.clone(), now, now, Ends::Never);
        }
        let changes: Vec<Change> = each(sent, |_| ChangeTo::Withdrawn).collect();
        if changes.is_empty() { Vec::new() } else { vec![Action::Record(changes)] }
    }

    pub(super) fn lane(&mut self, origin: &OriginId) -> &mut Lane {
        let limits = self.limits;
        self.lanes.entry(origin.clone()).or_insert_with(|| Lane::new(limits))
    }

    /// Opens the lane. What has come until now is backlog from now on, wherever it waits for this origin.
    pub(super) fn failed(
        &mut self,
        sent: &Sending,
        cause: Cause,
        least: Option<Duration>,
        now: Mono,
        random: u32,
    ) -> bool {
        let newest = self.newest.unwrap_or(0);
        let lane = self.lane(&sent.origin);
        lane.country = Some(sent.country.clone());
        if !lane.failed(cause, least, now, random) {
            return false;
        }
        lane.boundary = newest;
        for (group, queue) in &mut self.groups {
            let origin = group.origin.as_ref().or(queue.routed.as_ref());
            if origin == Some(&sent.origin) {
                queue.split(newest);
            }
        }
        true
    }

    pub(super) fn judged(
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
                let wait = wait.unwrap_or_else(|| alone(head, random));
                self.put_back(sent, sent_once_more(head), now, now.plus(wait), Ends::Never);
                ChangeTo::Failed(detail.clone())
            }
        }
    }

    /// A batch that failed comes back at once, to be probed order by order. A single order that failed waits by itself,
    /// longer each time, so that one that breaks the origin does not stand before all others for ever.
    fn give_back(&mut self, sent: &Sending, counts: bool, now: Mono, random: u32) {
        let alone_and_counted = sent.heads.len() == 1 && counts;
        for head in &sent.heads {
            let ready_at = if alone_and_counted { now.plus(alone(head, random)) } else { now };
            self.put_back(sent, sent_once_more(head), now, ready_at, Ends::Answer(sent.origin.clone()));
        }
    }

    /// What was prepared is bound now, so it goes into the window of its origin; or, when that window has not been read
    /// so far, it is read in its turn.
    pub(super) fn put_back(&mut self, sent: &Sending, head: Head, now: Mono, ready_at: Mono, ends: Ends) {
        if ready_at > now {
            let pause = Pause { until: ready_at, ends };
            self.pauses.insert(head.seq, pause);
        }
        let group = Group { origin: Some(sent.origin.clone()), udl: sent.country.clone() };
        let boundary = self.lane(&sent.origin).boundary;
        let queue = self.groups.entry(group).or_insert_with(|| Queue::new(boundary));
        queue.put_back(head, ready_at);
    }
}

pub(super) fn sent_once_more(head: &Head) -> Head {
    Head { attempts: head.attempts.saturating_add(1), ..head.clone() }
}

/// The order is not pending any more.
const fn is_final(to: &ChangeTo) -> bool {
    !matches!(to, ChangeTo::Failed(_) | ChangeTo::Withdrawn)
}

/// The wait of an order that failed by itself. At least half of the ceiling: a probe of the next order must fit in
/// before it comes again.
pub(super) fn alone(head: &Head, random: u32) -> Duration {
    ORDER_BACKOFF.wait(head.attempts + 1, u32::MAX / 2 + random / 2)
}

fn each<'a>(sent: &'a Sending, to: impl Fn(&Head) -> ChangeTo + 'a) -> impl Iterator<Item = Change> + 'a {
    sent.heads.iter().map(move |head| Change { seq: head.seq, to: to(head) })
}
