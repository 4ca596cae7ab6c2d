//! Reconciliation: device and origin compare what the origin has settled, and what it lost is sent again.
//!
//! ```text
//! settled ─► bucket marked (trigger, same commit) ─► pass ─┬─ match ──────────► confirmed, mark cleared
//!                ▲                                         ├─ missing ────────► pending again, same origin, mark stays
//!                └── settled again ◄── dispatcher ◄────────┘                    (body let go: reported as lost)
//!                                                          ├─ unknown to us ──► reported, never acted on; known from
//!                                                          │                    then on, left out until it changes
//!                                                          ├─ single mode ────► need not be asked: said in the status
//!                                                          ├─ 404 ────────────► not supported; asked again daily
//!                                                          └─ anything else ──► full-jitter back-off, mark stays
//! ```
//!
//! **Promise.** An order that an origin acknowledged and then lost comes back by itself, for as long as its body is
//! kept, and a body is kept until the origin has confirmed that it has the order. An answer changes nothing but orders
//! that this origin had settled within the range that was asked about; an order that is sent again stays with its
//! origin. An origin that always says "missing" gets each order ever more seldom.
//!
//! It is background work: one request at a time, after orders have had their turn on the line, and never more than one
//! bucket read from the ledger at once. `plan` (pure) says what to ask and what answers mean, `schedule` (pure) when,
//! `view` (pure) what is shown; `ask` sends one request, `pass` goes through one origin, `run` is the loop, `api` the
//! local API.

pub mod api;
mod ask;
mod pass;
mod plan;
mod run;
mod schedule;
mod view;

pub use run::{Demand, Reconcile, Reconciler};
pub use schedule::Pace;

#[cfg(test)]
mod tests;
