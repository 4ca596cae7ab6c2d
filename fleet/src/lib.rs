//! x
#[cfg(feature = "embedded-broker")]
pub mod broker;
pub mod clock;
pub mod config;
pub mod db;
pub mod ingest;
pub mod store;
