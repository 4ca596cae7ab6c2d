//! Host overrides of devices: wanted here for a while, obeyed there, and always ended.
//!
//! ```text
//! operator ──► API, console ──► rules (the device's own, of samovar-wire) ──► host_overrides ──► ingest::desired ──► device
//!                                                                                  │                                  │
//! list, pages ◄── merge: wanted beside reported ◄──────────────────────────────────┴────────── state, events ◄────────┘
//! ```
//!
//! States of one override, as they are shown:
//!
//! ```text
//! refused here (rule, role, number)                 cleared or replaced
//!   ▲                                                  ▲      │
//! asked for ──► wanted ──► wanted and in force ────────┤      ▼
//!                 │   ▲      effective: yes | no       │   in force, no longer wanted (the device was not told yet)
//!                 ▼   │                                ▼
//!           refused by the device, and why          over (its end has passed): not sent any more
//! ```
//!
//! Promises: the database is the truth, so that every server sends the same list; an override has an absolute end from
//! the moment it is set, and a device that hears of it late has only what is left; the deed is in the audit log in the
//! same transaction. Absent on purpose: clearing what was set at the device itself.

pub mod handlers;
pub mod listing;
pub mod merge;
pub mod schema;
pub mod wanted;
