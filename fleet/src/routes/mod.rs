//! Route tables on the fleet's side: kept as they were signed, validated before they come into force.
//!
//! ```text
//! no table of an operator yet:  stores, port, names ──► starter table ──► signed here, version + 1 when it changes
//! operator publishes:           envelope ──► verify, validate (the devices' own rules) ──► in force; no starter again
//!                               plain table ──► the same, signed here
//! ```
//!
//! In force is the highest version. Rows are only ever added.

pub mod handlers;
pub mod published;
mod sensible;
pub mod starter;

use samovar_wire::dsse::TrustedKeys;

use crate::app::App;

/// The keys that may sign route tables: this fleet's own and the configured ones.
#[must_use]
pub fn trusted_keys(app: &App) -> TrustedKeys {
    let mut keys = app.config.routes.trusted_keys.clone();
    keys.extend(app.keys.trusted());
    keys
}
