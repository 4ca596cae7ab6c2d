//! Store devices as bytes in, observations out. Knows nothing of orders, MQTT or configuration files.
//!
//! So far: which ports a machine has. Drivers come one folder per device family.
#![forbid(unsafe_code)]

pub mod ports;
