//! What an origin's answer means for the lane, the windows and the ledger. Pure.

use super::lane::{Cause, Lane};
use super::model::{Action, Sending};
use super::queue::Queue;
use super::{Dispatcher, Pause};
use crate::clock::Mono;
use crate::orders::backoff::Backoff;
use crate::orders::ledger::{CONFLICT, Change, ChangeTo, Group, Head, Hold};
use crate::orders::outcome::{BatchOutcome, OrderVerdict};
use samovar_wire::OriginId;
use std::time::Duration;

/// Waits of one order that failed alone, or that the origin asked to retry.
const ORDER_BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };

impl Dispatcher {
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
                self.give_back(sent, counts, Some(&sent.origin), now, random);
                changes.extend(each(sent, |_| ChangeTo::Failed(detail.clone())));
            }
            BatchOutcome::Busy { detail, retry_after, .. } => {
                self.failed(sent, Cause::Busy, *retry_after, now, random);
                self.give_back(sent, true, None, now, random);
                changes.extend(each(sent, |_| ChangeTo::Failed(detail.clone())));
            }
            BatchOutcome::IdentityRefused(detail) => {
                self.failed(sent, Cause::Identity, None, now, random);
                changes.extend(each(sent, |_| ChangeTo::Held(Hold::Identity, detail.clone())));
            }
            BatchOutcome::TooLarge(detail) | BatchOutcome::BatchRefused(detail) => {
                let too_large = matches!(outcome, BatchOutcome::TooLarge(_));
                if self.lane(&sent.origin).refused(&sent.country, &sent.heads, too_large, now) {
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

    pub(super) fn lane(&mut self, origin: &OriginId) -> &mut Lane {
        let limits = self.limits;
        self.lanes.entry(origin.clone()).or_insert_with(|| Lane::new(limits))
    }

    /// Opens the lane. What has come until now is backlog from now on, wherever it waits for this origin.
    fn failed(
        &mut self,
        sent: &Sending,
        cause: Cause,
        retry_after: Option<Duration>,
        now: Mono,
        random: u32,
    ) -> bool {
        let newest = self.newest.unwrap_or(0);
        let lane = self.lane(&sent.origin);
        lane.country = Some(sent.country.clone());
        if !lane.failed(cause, retry_after, now, random) {
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
                let wait = wait.unwrap_or_else(|| alone(head, random));
                self.put_back(sent, head, now, now.plus(wait), None);
                ChangeTo::Failed(detail.clone())
            }
        }
    }

    /// A batch that failed comes back at once, to be probed order by order. A single order that failed waits by itself,
    /// longer each time, so that one that breaks the origin does not stand before all others for ever.
    fn give_back(
        &mut self,
        sent: &Sending,
        counts: bool,
        unanswered_by: Option<&OriginId>,
        now: Mono,
        random: u32,
    ) {
        let alone_and_counted = sent.heads.len() == 1 && counts;
        for head in &sent.heads {
            let ready_at = if alone_and_counted { now.plus(alone(head, random)) } else { now };
            self.put_back(sent, head, now, ready_at, unanswered_by);
        }
    }

    /// What was sent is bound now, so it goes into the window of its origin; or, when that window has not been read
    /// so far, it is read in its turn.
    fn put_back(
        &mut self,
        sent: &Sending,
        head: &Head,
        now: Mono,
        ready_at: Mono,
        unanswered_by: Option<&OriginId>,
    ) {
        if ready_at > now {
            let pause = Pause { until: ready_at, unanswered_by: unanswered_by.cloned() };
            self.pauses.insert(head.seq, pause);
        }
        let group = Group { origin: Some(sent.origin.clone()), udl: sent.country.clone() };
        let boundary = self.lane(&sent.origin).boundary;
        let queue = self.groups.entry(group).or_insert_with(|| Queue::new(boundary));
        let head = Head { attempts: head.attempts.saturating_add(1), ..head.clone() };
        queue.put_back(head, ready_at);
    }
}

/// The wait of an order that failed by itself. At least half of the ceiling: a probe of the next order must fit in
/// before it comes again.
fn alone(head: &Head, random: u32) -> Duration {
    ORDER_BACKOFF.wait(head.attempts + 1, u32::MAX / 2 + random / 2)
}

fn each<'a>(sent: &'a Sending, to: impl Fn(&Head) -> ChangeTo + 'a) -> impl Iterator<Item = Change> + 'a {
    sent.heads.iter().map(move |head| Change { seq: head.seq, to: to(head) })
}
