//! The Samovar fleet server and the operators' command line.
//!
//! ```text
//! claim code + CSR ──► activation ──► certificate, route table, broker       activation/ pki/ routes/
//! batch of orders ──► intake ──► orders (exactly once for each key)          orders/
//! operator ──► auth ──► API ──► stores, claims, devices, routes, audit       auth/ api/
//! operator ──► host overrides ──► desired state of one device, until their end  hosts/
//! device ──► broker ──► ingest ──► live state, events ──► API, console       broker/ ingest/ console/
//! ```
//!
//! One process over SQLite or PostgreSQL; any number of processes over one PostgreSQL. [`assemble`] puts it together.
#![forbid(unsafe_code)]

pub mod activation;
pub mod api;
pub mod app;
pub mod assemble;
pub mod audit;
pub mod auth;
#[cfg(feature = "embedded-broker")]
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod db;
pub mod hosts;
pub mod ingest;
pub mod metrics;
pub mod mqtt;
pub mod orders;
pub mod overload;
pub mod pki;
pub mod problem;
pub mod random;
pub mod router;
pub mod routes;
pub mod server;
pub mod store;
