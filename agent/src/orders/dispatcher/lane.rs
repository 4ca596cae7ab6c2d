//! What is known of one origin as a place to send to: whether a batch is under way, how long to wait, how much to
//! send at once, and what is left of a batch that was refused as a whole.

use crate::clock::Mono;
use crate::orders::backoff::Backoff;
use crate::orders::ledger::Head;
use samovar_wire::Country;
use std::collections::VecDeque;
use std::time::Duration;

/// Waits between batches after a failure.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };
/// Orders in the first batch, and in the first after the origin asked for smaller ones.
const FIRST: usize = 8;
/// The fewest bytes worth a batch.
const LEAST_BYTES: u64 = 4 * 1024;

/// How much may be sent at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Orders in a batch.
    pub orders: usize,
    /// Bytes of bodies in a batch.
    pub bytes: u64,
}

/// One origin's lane.
#[derive(Debug)]
pub(super) struct Lane {
    limits: Limits,
    in_flight: bool,
    failures: u32,
    not_before: Mono,
    identity_wait: bool,
    orders: usize,
    bytes: u64,
    suspects: VecDeque<(Country, Vec<Head>)>,
}

impl Lane {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            in_flight: false,
            failures: 0,
            not_before: Mono::default(),
            identity_wait: false,
            orders: FIRST.min(limits.orders),
            bytes: limits.bytes,
            suspects: VecDeque::new(),
        }
    }

    /// Whether a fresh batch may start now.
    pub(super) fn ready(&self, now: Mono) -> bool {
        self.free(now) && self.suspects.is_empty()
    }

    fn free(&self, now: Mono) -> bool {
        !self.in_flight && !self.identity_wait && self.not_before <= now
    }

    pub(super) const fn max_orders(&self) -> usize {
        self.orders
    }

    pub(super) const fn max_bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) const fn started(&mut self) {
        self.in_flight = true;
    }

    /// Nothing was sent after all.
    pub(super) const fn aborted(&mut self) {
        self.in_flight = false;
    }

    pub(super) fn succeeded(&mut self) {
        self.in_flight = false;
        self.failures = 0;
        self.not_before = Mono::default();
        self.orders = (self.orders * 2).min(self.limits.orders);
        self.bytes = (self.bytes * 2).min(self.limits.bytes);
    }

    /// After a failure the next batch is a probe of one order.
    pub(super) fn failed(&mut self, now: Mono, retry_after: Option<Duration>, random: u32) {
        self.in_flight = false;
        self.failures = self.failures.saturating_add(1);
        let own = BACKOFF.wait(self.failures, random);
        self.not_before = now.plus(retry_after.map_or(own, |asked| asked.max(own)));
        self.orders = 1;
    }

    /// The origin does not accept who we are: tried again after half a minute to a minute, or on renewal.
    pub(super) fn refused_identity(&mut self, now: Mono, random: u32) {
        const HALF: Duration = Duration::from_secs(30);
        self.in_flight = false;
        self.identity_wait = true;
        self.not_before = now.plus(HALF + HALF.mul_f64(f64::from(random) / f64::from(u32::MAX)));
        self.orders = 1;
    }

    /// True once, when the wait for another identity is over.
    pub(super) fn identity_wait_over(&mut self, now: Mono) -> bool {
        let over = self.identity_wait && self.not_before <= now;
        self.identity_wait &= !over;
        over
    }

    /// A new identity: whatever was refused before may be tried at once.
    pub(super) fn forgive_identity(&mut self) {
        if self.identity_wait {
            self.identity_wait = false;
            self.not_before = Mono::default();
        }
    }

    /// A batch was refused as a whole. True when it was a single order, which is then the culprit; else it will be
    /// sent again in halves.
    pub(super) fn refused(&mut self, country: &Country, heads: &[Head], too_large: bool) -> bool {
        self.in_flight = false;
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
        let next = if self.free(now) { self.suspects.pop_front() } else { None };
        self.in_flight |= next.is_some();
        next
    }

    /// When waiting ends; `None` while an answer is awaited.
    pub(super) fn wakes_at(&self) -> Option<Mono> {
        (!self.in_flight).then_some(self.not_before)
    }
}
