//! Route tables on the fleet's side: written as drafts, looked at before they count, kept as they were signed.
//!
//! ```text
//! no table of an operator yet:  stores, port, names ──► starter table ──► signed here, version + 1 when it changes
//!
//!            edit (revision + 1)
//!              ┌───┐
//! in force ──► draft ──propose──► proposed ──approve (another operator)──► signed here ──┐
//!                │ ▲   (stamped)     │  │                                                ├──► in force
//!                │ └────withdraw─────┘  └──export──► signed elsewhere ──► envelope ──────┘
//!                └──discard──► discarded
//!
//! envelope of a trusted key, or a plain table:  verify, validate (the devices' own rules) ──► in force
//! an older version:                             its words, a higher version, new dates ──► in force (rollback)
//! ```
//!
//! In force is the highest version; published rows are only ever added. What is approved is what is signed, byte for
//! byte. With `routes.four_eyes` a table needs two people: who proposed and wrote it, and who approves it; or a
//! signature by one of `routes.trusted_keys`, which is made elsewhere. A rollback needs one: both have seen it before.

pub mod difference;
pub mod document;
pub mod draft_handlers;
pub mod drafts;
pub mod effect_handlers;
pub mod handlers;
pub mod impact;
pub mod published;
pub mod publishing;
pub mod schema;
mod sensible;
pub mod starter;
pub mod stragglers;

use samovar_wire::dsse::TrustedKeys;

use crate::app::App;

/// The keys that may sign route tables: this fleet's own and the configured ones.
#[must_use]
pub fn trusted_keys(app: &App) -> TrustedKeys {
    let mut keys = app.config.routes.trusted_keys.clone();
    keys.extend(app.keys.trusted());
    keys
}
