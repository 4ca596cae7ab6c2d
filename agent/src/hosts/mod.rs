//! Host overrides: one name of one device points elsewhere for a while, and it always ends.
//!
//! ```text
//! page, CLI, fleet ──► Hosts ──pre-flight──► loop ──► overrides.json          the source of truth
//!                        ▲                    │
//!                        │                    ├──► Overrides (watch) ──► routing: dials the address given
//!                        └──── proof ─────────┴──► hosts file ──► every other program of the device
//!                                                   │ ourselves, or the helper with the rights
//! ```
//!
//! States of one override:
//!
//! ```text
//!             refused (name, address, limits, pre-flight, foreign line)
//!               ▲
//! asked for ────┴──► kept on disk ──► in force ──► ended: cleared · expired · forbidden by a newer table
//!                                       │ ▲
//!                                       ▼ │ proved again after each change of the hosts file
//!                                  effective: yes | no, and why          scope: device | agent, and why
//! ```
//!
//! States of the hosts file, for one apply (`apply.rs`):
//!
//! ```text
//!         ┌── temporary file, fsync ── rename ── fsync of the directory ──► new
//! old ────┤
//!         └── (bind mount) journal, fsync ── written in place, fsync ── journal gone ──► new
//!                                 killed here: the next apply, whoever makes it, finishes from the journal
//! ```
//!
//! | task | in | out |
//! |---|---|---|
//! | [`Runner::run`] | changes (bounded, 16; full: told to come back), time, the table, the hosts file | the overrides in force (`watch`, last value), `overrides.json`, the hosts file, conditions, events |
//!
//! Promises: an override ends by the wall clock or by the time the device has been up, whichever comes first, also when
//! the agent is dead (`samovar-agent hosts reconcile` at boot and on a timer); bytes of the hosts file that are not ours
//! are kept as they are; a name that the table protects is never pointed elsewhere; what could not be done for the other
//! programs of the device is said (`scope`). Absent on purpose: wildcards, ports, and any look at health: a technician
//! must see the real failure.

pub mod api;
mod apply;
mod book;
mod effect;
mod file;
mod follow;
mod handle;
pub mod helper;
mod in_place;
pub mod offline;
mod overrides;
mod proof;
mod run;
mod state;
mod trample;
mod wish;

pub use apply::{ApplyError, HostsFile, Outcome};
pub use book::FILE;
pub use effect::look_up;
pub use handle::{Hosts, SetError};
pub use run::{Events, Kept, Names, Runner, Setup, Tried, start};
pub use state::{FileState, Published, Scope, Shown};
pub use wish::{Refused, Source, TTL_DEFAULT, TTL_MAX, Wish, standing};

#[cfg(test)]
mod tests;
