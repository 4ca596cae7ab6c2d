//! Which origin serves what, now.
//!
//! ```text
//! file, activation, fleet ──► keeper (verify, keep) ──► table in force ─┐
//! reports of traffic ──┐                                               ├──► view ──► choose, bound, resolve
//! probes ──────────────┴──► origins (health, line) ──► nearest ────────┘       └──► conditions
//! ```
//!
//! | task | in | out |
//! |---|---|---|
//! | [`Runner::run`] | reports and offers (bounded, 256; full: reports dropped, offers refused as busy), files, probes | the view (`watch`, last value), conditions |
//!
//! States: a table is *offered → in force → previous*, or *refused*, or *waiting* (drawn in `keeper.rs`); an origin is
//! *fresh, up, failing, down* (drawn in `health.rs`).
//!
//! Promises: an unverified table never routes; a refused one changes nothing; a request never leaves its residency; a
//! store whose own line is down never fails over; asking never waits for the network, but for
//! [`Routing::resolve`], which has a deadline. Routing alone raises and clears `route-table-*`, `line-down`,
//! `origin-unreachable` and `not-the-origin`; other flows report what they met. Host overrides come in from outside and are
//! followed (`pointed.rs`). Absent on purpose: orders, and any knowledge of what is sent.

mod handle;
mod health;
mod keeper;
mod nearest;
mod pointed;
mod probe;
mod reference;
mod run;
mod shelf;
mod targets;
mod verdict;
mod view;
mod watched;

pub use handle::{OfferError, Resolution, ResolvedBy, Routing, Snapshot};
pub use health::{HealthSettings, Outcome};
pub use keeper::{TableRefused, Taken, Trust};
pub use probe::Tried;
pub use run::{Membership, RoutingSettings, Runner, Setup, start};
pub use view::{Ask, InForce, RouteError};

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
