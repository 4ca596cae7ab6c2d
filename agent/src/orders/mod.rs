//! Orders: from the till's POST to the origin's word, exactly once in effect.
//!
//! ```text
//!                    ┌───────────────── retry (operator) ────────────────┐
//!                    ▼                                                   │
//! POST ─► accept ─► pending ──(sending, never stored)──► settled         │
//!           │        │  ▲                                               │
//!           │        │  └─ cause gone ─┐                                 │
//!           │        ├──────────────► held (residency, depends_on, identity)
//!           │        ├──────────────► quarantined (the origin says never) ─┤
//!           └────────────────────────► quarantined (key reused)            │
//!                     pending, held, quarantined ──► discarded (operator, with a reason)
//! ```
//!
//! **Promise.** A 2xx is given only after the order is committed and synced to disk. Before the first byte of an
//! order goes to an origin, the binding order → origin is committed too, and the order stays with that origin until
//! the origin has answered for it; so a lost answer followed by a fail-over cannot put one order into two origins.
//! What is in flight lives in memory only: after a crash it is pending again and the origin absorbs the repeat.
//!
//! `order` reads the document, `ledger` keeps it, `dispatcher` (pure) decides what goes where and when, `outcome`
//! (pure) reads an origin's answer, `origin` sends, `run` is the loop between them, `intake` is the local API, `shadow`
//! compares a share of the orders with what another origin says of them, `recovery` (pure) notices that an origin is
//! back, `reconcile` compares afterwards what an origin has with what it settled, and sends again what it lost.

pub mod backoff;
pub mod conditions;
pub mod dispatcher;
pub mod intake;
pub mod ledger;
pub mod order;
pub mod origin;
pub mod outcome;
pub mod reconcile;
pub mod recovery;
pub mod run;
pub mod shadow;
