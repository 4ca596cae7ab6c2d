//! Which of the orders that may go to one origin are in the next batch. Pure.
//!
//! Live orders take at most three quarters of a batch while backlog waits, so that neither starves; after three
//! batches without backlog the next one begins with the backlog.

use super::lane::Lane;
use crate::orders::ledger::Head;
use std::collections::HashSet;

/// The orders of one group that may go to one origin now.
#[derive(Debug, Default)]
pub(super) struct Choice<'a> {
    live: Vec<&'a Head>,
    backlog: Vec<&'a Head>,
}

impl<'a> Choice<'a> {
    pub(super) fn offer(&mut self, head: &'a Head, live: bool) {
        if live { self.live.push(head) } else { self.backlog.push(head) }
    }

    /// Whether more offers of a kind change nothing.
    pub(super) fn has_enough(&self, live: bool, lane: &Lane) -> bool {
        let offers = if live { &self.live } else { &self.backlog };
        offers.len() >= lane.max_orders()
    }

    pub(super) const fn has_live(&self) -> bool {
        !self.live.is_empty()
    }

    /// Fills the next batch.
    pub(super) fn compose(&self, lane: &Lane) -> Batch {
        let (first, second) =
            if lane.owes_backlog() { (&self.backlog, &self.live) } else { (&self.live, &self.backlog) };
        let most = lane.max_orders();
        let share = if second.is_empty() { most } else { most - most / 4 };
        let mut batch = Batch { max_bytes: lane.max_bytes(), ..Batch::default() };
        batch.fill(first, share);
        batch.fill(second, most);
        batch.fill(first, most);
        batch.full |= batch.seqs.len() >= most;
        batch.live = self.live.iter().any(|head| batch.seqs.contains(&head.seq));
        batch.backlog = self.backlog.iter().any(|head| batch.seqs.contains(&head.seq));
        batch
    }
}

/// The next batch to one origin.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) seqs: HashSet<u64>,
    /// It carries live orders.
    pub(super) live: bool,
    /// It carries backlog.
    pub(super) backlog: bool,
    /// No more orders fit, as far as is known.
    pub(super) full: bool,
    bytes: u64,
    max_bytes: u64,
}

impl Batch {
    fn fill(&mut self, heads: &[&Head], up_to: usize) {
        for head in heads {
            if self.seqs.len() >= up_to {
                return;
            }
            if self.seqs.contains(&head.seq) {
                continue;
            }
            let bytes = u64::from(head.bytes);
            if !self.seqs.is_empty() && self.bytes + bytes > self.max_bytes {
                // The next kind may still have a small one.
                self.full = true;
                return;
            }
            self.seqs.insert(head.seq);
            self.bytes += bytes;
        }
    }
}
