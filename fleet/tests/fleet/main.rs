//! The fleet server as its clients see it: a real server on free ports, in this process, over HTTP and mutual TLS.
//!
//! Every story is told on SQLite, and on PostgreSQL as well when `SAMOVAR_TEST_POSTGRES` names a server
//! (`postgres://user:password@host/database`, whose user may create databases).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits in real time"
)]

mod activation;
mod api;
#[cfg(feature = "embedded-broker")]
mod devices;
mod guards;
mod hosts;
mod intake;
mod pressure;
mod program;
mod reconcile;
mod replicas;
mod routes;
mod routes_console;
mod routes_program;
mod world;
