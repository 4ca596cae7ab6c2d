//! What every request can reach. A struct of handles, without behaviour of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::auth::lockout::{Gate, LoginGate};
use crate::config::Config;
use crate::db::Database;
use crate::ingest::Ingest;
use crate::metrics::Metrics;
use crate::orders::Intake;
use crate::overload::Overload;
use crate::pki::Authority;
use crate::pki::secrets::SigningKeys;

/// Shared by all handlers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// The handles themselves.
#[derive(Debug)]
pub struct Parts {
    /// The configuration, as checked at start.
    pub config: Config,
    /// Storage.
    pub database: Database,
    /// Issues certificates.
    pub authority: Authority,
    /// Signs route tables and commands.
    pub keys: Arc<SigningKeys>,
    /// What devices say, and what they should be.
    pub ingest: Ingest,
    /// Slows down password guessing.
    pub logins: LoginGate,
    /// Slows down claim guessing.
    pub guesses: Gate,
    /// Order intake: its limits.
    pub intake: Intake,
    /// How the orders are doing, and what is refused for it.
    pub overload: Overload,
    /// Where this server listens.
    pub addresses: Addresses,
    /// Counters.
    pub metrics: Metrics,
}

/// Where this server listens, and where MQTT is.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Plain HTTP.
    pub http: SocketAddr,
    /// HTTPS.
    pub https: SocketAddr,
    /// The broker for local tools and tests (`run.json`); `None` without a broker.
    pub mqtt: Option<String>,
    /// The broker as devices are told at activation; empty without one.
    pub mqtt_for_devices: String,
}

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The port of HTTPS as devices see it.
    #[must_use]
    pub fn public_port(&self) -> u16 {
        match self.config.server.public_port {
            0 => self.addresses.https.port(),
            port => port,
        }
    }

    /// The base URL of what devices use, over mutual TLS.
    #[must_use]
    pub fn device_url(&self) -> String {
        match (&self.config.server.public_host, self.public_port()) {
            (host, 443) => format!("https://{host}"),
            (host, port) => format!("https://{host}:{port}"),
        }
    }
}

impl std::ops::Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
