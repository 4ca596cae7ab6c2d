//! What is wrong right now, and what the device says of itself.
//!
//! ```text
//! every flow ──raise/clear──► board (conditions) ─┐
//! orders, routing, relay snapshots ───────────────┴─► report (DeviceState) ──► local API, MQTT
//! ```

pub mod board;
pub mod metrics;
pub mod report;

pub use board::Board;
