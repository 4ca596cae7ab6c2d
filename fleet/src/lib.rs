//! x
#[cfg(feature = "embedded-broker")]
pub mod broker;
