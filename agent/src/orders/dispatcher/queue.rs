//! The pending orders of one group that are in memory: a window of live ones and a window of the backlog. Pure.
//!
//! ```text
//! seq   0 ───────────── boundary ─────────────► newest
//!         backlog window │ live window
//! ```
//!
//! The boundary is the newest place that the ledger had given when the origin last failed, when the process began, or
//! when more than a window had piled up. What came behind it is live: a customer stands at the till. When the boundary
//! moves, the live window is dropped and read again as backlog, by index; so moving it is cheap however much waits.
//! Memory is bounded by the windows, not by the backlog.

use crate::clock::Mono;
use crate::orders::ledger::Head;
use samovar_wire::OriginId;
use std::collections::{HashSet, VecDeque};

/// Heads that may go now, in memory per window.
pub(super) const WINDOW: usize = 512;
/// Below so many of them a window is filled up again.
const REFILL: usize = 128;
/// Heads in memory per window, with those that must wait: orders that the origin asked to leave alone shall not keep
/// those behind them from being read.
const MOST: usize = 4 * WINDOW;

/// A piece of a group that is to be read from the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Behind this place.
    pub after: u64,
    /// Not behind this place.
    pub up_to: u64,
    /// At most so many.
    pub limit: usize,
}

/// The orders of one group.
#[derive(Debug)]
pub(super) struct Queue {
    boundary: u64,
    live: Window,
    backlog: Window,
    /// The last arrival that was heard of.
    last_arrival: u64,
    /// Where its orders went when routing was last asked.
    pub(super) routed: Option<OriginId>,
}

impl Queue {
    /// Nothing read yet; what came up to `boundary` is backlog.
    pub(super) fn new(boundary: u64) -> Self {
        Self {
            boundary,
            live: Window::behind(boundary),
            backlog: Window { exhausted: boundary == 0, ..Window::behind(0) },
            last_arrival: 0,
            routed: None,
        }
    }

    /// Orders came into the group, if the number is another than before.
    pub(super) const fn arrived(&mut self, last_arrival: u64) {
        if self.last_arrival != last_arrival {
            self.last_arrival = last_arrival;
            self.live.has_more();
        }
    }

    /// Everything up to `newest` is backlog from now on.
    pub(super) fn split(&mut self, newest: u64) {
        if newest > self.boundary {
            self.boundary = newest;
            self.live = Window::behind(newest);
            self.backlog.has_more();
        }
    }

    /// Orders became pending again behind the places that were read up to: read both windows anew.
    pub(super) fn rewind(&mut self) {
        self.live = Window::behind(self.boundary);
        self.backlog = Window { exhausted: self.boundary == 0, ..Window::behind(0) };
    }

    /// Whether nothing of the backlog is left to be sent.
    pub(super) fn backlog_done(&self) -> bool {
        self.backlog.exhausted && self.backlog.heads.is_empty()
    }

    pub(super) fn is_loading(&self) -> bool {
        self.live.loading || self.backlog.loading
    }

    /// The live orders in memory, oldest first, and when each may go.
    pub(super) fn live(&self) -> impl Iterator<Item = &(Head, Mono)> {
        self.live.heads.iter()
    }

    /// The orders of the backlog in memory, oldest first, and when each may go.
    pub(super) fn backlog(&self) -> impl Iterator<Item = &(Head, Mono)> {
        self.backlog.heads.iter()
    }

    /// Takes these orders out; ascending.
    pub(super) fn take(&mut self, seqs: &HashSet<u64>) -> Vec<Head> {
        let mut taken = self.backlog.take(seqs);
        taken.extend(self.live.take(seqs));
        taken
    }

    /// Puts an order back that was taken out.
    pub(super) fn put_back(&mut self, head: Head, ready_at: Mono) {
        let window = if head.seq > self.boundary { &mut self.live } else { &mut self.backlog };
        window.put_back(head, ready_at);
    }

    /// These orders may go now, whatever they were waiting for.
    pub(super) fn ready_now(&mut self, seqs: &HashSet<u64>, now: Mono) {
        for (head, ready_at) in self.live.heads.iter_mut().chain(&mut self.backlog.heads) {
            if seqs.contains(&head.seq) {
                *ready_at = now;
            }
        }
    }

    /// What to read now.
    pub(super) fn refill(&mut self, now: Mono) -> Vec<Page> {
        let live = self.live.refill(u64::MAX, now);
        let backlog = self.backlog.refill(self.boundary, now);
        live.into_iter().chain(backlog).collect()
    }

    /// Takes in what was read; `None` when the ledger could not be read. `ready_at` is `None` for an order that is on
    /// its way.
    pub(super) fn loaded(
        &mut self,
        page: &Page,
        heads: Option<Vec<Head>>,
        ready_at: impl Fn(&Head) -> Option<Mono>,
    ) {
        let window = if page.up_to == u64::MAX { &mut self.live } else { &mut self.backlog };
        window.loading = false;
        let outdated = std::mem::take(&mut window.outdated);
        let Some(heads) = heads.filter(|_| window.read_to == page.after) else {
            // The page belongs to a window that was begun anew meanwhile; what it says of the end is not known.
            window.exhausted = false;
            return;
        };
        window.exhausted = heads.len() < page.limit && !outdated;
        for head in heads {
            window.read_to = head.seq;
            if let Some(ready_at) = ready_at(&head) {
                window.heads.push_back((head, ready_at));
            }
        }
    }
}

/// A run of heads in memory.
#[derive(Debug, Default)]
struct Window {
    heads: VecDeque<(Head, Mono)>,
    /// Everything up to here has been read.
    read_to: u64,
    /// The ledger has no more behind `read_to`.
    exhausted: bool,
    loading: bool,
    /// More came while a page was being read: that page does not say where the end is.
    outdated: bool,
}

impl Window {
    fn behind(place: u64) -> Self {
        Self { read_to: place, ..Self::default() }
    }

    /// There may be more behind `read_to` than was thought.
    const fn has_more(&mut self) {
        self.exhausted = false;
        self.outdated = self.loading;
    }

    fn refill(&mut self, up_to: u64, now: Mono) -> Option<Page> {
        if self.loading || self.exhausted || self.heads.len() >= MOST {
            return None;
        }
        let ready = self.heads.iter().filter(|(_, ready_at)| *ready_at <= now).count();
        if ready >= REFILL {
            return None;
        }
        self.loading = true;
        Some(Page { after: self.read_to, up_to, limit: WINDOW - ready })
    }

    fn take(&mut self, seqs: &HashSet<u64>) -> Vec<Head> {
        let mut taken = Vec::new();
        self.heads.retain(|(head, _)| {
            let wanted = seqs.contains(&head.seq);
            if wanted {
                taken.push(head.clone());
            }
            !wanted
        });
        taken
    }

    /// A place that was not read so far is read in its turn.
    fn put_back(&mut self, head: Head, ready_at: Mono) {
        if head.seq > self.read_to {
            self.has_more();
            return;
        }
        let at = self.heads.partition_point(|(other, _)| other.seq < head.seq);
        if self.heads.get(at).is_none_or(|(other, _)| other.seq != head.seq) {
            self.heads.insert(at, (head, ready_at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(seq: u64) -> Head {
        Head { seq, bytes: 9, attempts: 0, user: None }
    }

    fn read(queue: &mut Queue, page: &Page, seqs: &[u64]) {
        queue.loaded(page, Some(seqs.iter().copied().map(head).collect()), |_| Some(Mono::default()));
    }

    #[test]
    fn what_comes_while_a_page_is_read_is_read_in_its_turn() {
        let now = Mono::default();
        let mut queue = Queue::new(0);
        let page = queue.refill(now).remove(0);
        queue.arrived(1);
        read(&mut queue, &page, &[]);
        let page = queue.refill(now).remove(0);
        read(&mut queue, &page, &[1]);
        assert_eq!(queue.live().count(), 1);
        assert_eq!(queue.refill(now), [], "nothing else came");
    }

    #[test]
    fn a_boundary_that_moves_while_a_page_is_read_hides_no_order() {
        let now = Mono::default();
        let mut queue = Queue::new(13);
        let pages = queue.refill(now);
        // Place 37 was sent, failed, and lies behind the new boundary, which the pages do not know of.
        queue.split(37);
        queue.put_back(head(37), now);
        pages.iter().for_each(|page| read(&mut queue, page, &[]));
        let pages = queue.refill(now);
        let backlog = pages.iter().find(|page| page.up_to == 37).expect("the backlog is read again");
        read(&mut queue, backlog, &[37]);
        assert_eq!(queue.backlog().map(|(head, _)| head.seq).collect::<Vec<_>>(), [37]);
    }
}
