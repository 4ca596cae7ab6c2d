//! The Samovar agent: one daemon per store device.
//!
//! ```text
//! POST ──► intake ──► ledger ──► dispatcher ──► routing ──► origin            orders/
//! route table ──► verify ──► choose ──► health ──► names ──► race             routing/, net/
//! every flow ──► board ──► report ──► outbox ──► MQTT                         status/  relay/
//! page, CLI, fleet ──► overrides.json ──► resolver, hosts file                hosts/
//! claim ──► key, CSR ──► certificate ──► renewal                              identity/
//! API, CLI ◄── snapshots of all of the above                                  page/  cli/
//! ```
//!
//! One loop per flow; policy without clock, lock or IO beside it; flows do not import each other. What connects them
//! is `assemble`.

pub mod assemble;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod desired;
pub mod heartbeat;
pub mod hosts;
pub mod http;
pub mod identity;
pub mod logging;
pub mod net;
pub mod orders;
pub mod page;
pub mod relay;
pub mod routing;
pub mod status;
pub mod stop;
pub mod store;
