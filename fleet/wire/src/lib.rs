//! The words that agent and fleet share: identifiers, signed envelopes, the route table and its rules, the order
//! protocol, MQTT topics and payloads, problems and conditions.
//!
//! Types, codecs and pure rules only. There is no clock, no file and no socket in here: `now` comes in as an argument.
//! Agent and fleet ship apart and meet old versions of each other, so two rules hold for every type on the wire:
//! fields are added, never given another meaning; readers ignore fields they do not know.
#![forbid(unsafe_code)]

pub mod activation;
pub mod conditions;
pub mod dsse;
pub mod encoding;
pub mod figures;
pub mod hosts;
pub mod ids;
pub mod mqtt;
pub mod orders;
pub mod plain;
pub mod problem;
pub mod reconcile;
pub mod route;
#[cfg(feature = "schema")]
pub mod schema;
pub mod status;
pub mod timestamp;

pub use ids::{Country, DeviceId, OriginId, ServiceName, StoreId};
pub use timestamp::Timestamp;
