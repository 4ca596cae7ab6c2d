//! The harness of the black-box tests and of the demo: real binaries, a scripted world around them.
//!
//! ```text
//! story ──► Agent (real process) ──► Proxy ──► Origin (in this process, scripted, honest by default)
//!                │                      ├────► rough origins (real processes that are killed: `soak`)
//!                │                      └────► Fleet (real process)
//!                └──► Broker (real mosquitto) ◄── HeadOffice (MQTT client that acknowledges events)
//! ```
//!
//! Rules: loopback only, port 0, a temporary directory for everything, a deadline on every wait, no sleeping. What a
//! story started is stopped when the story's values are dropped, also when it fails.
//! Deliberately absent: knowledge of the programs' insides. The harness speaks the public contracts and nothing else.
#![forbid(unsafe_code)]

pub mod agent;
pub mod binaries;
pub mod broker;
pub mod clock;
pub mod csv;
pub mod dns;
pub mod fleet;
pub mod generator;
pub mod head_office;
pub mod local_api;
pub mod netns;
pub mod origin;
pub mod process;
pub mod proxy;
pub mod soak;
pub mod table;
pub mod tls;
pub mod wait;

pub use agent::Agent;
pub use broker::Broker;
pub use dns::DnsServer;
pub use fleet::Fleet;
pub use head_office::HeadOffice;
pub use local_api::{Answer, LocalApi};
pub use origin::{Behaviour, Comparison, Origin, Page, Visit};
pub use proxy::Proxy;
pub use table::TableBuilder;
pub use wait::eventually;
