//! The sections of the configuration, with their defaults and checks.

use std::path::PathBuf;

use samovar_wire::dsse::TrustedKeys;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Listening, names and limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Plain HTTP: console and API, for this machine or behind a reverse proxy.
    pub listen: String,
    /// HTTPS for devices.
    pub https_listen: String,
    /// The name under which devices reach this server.
    pub public_host: String,
    /// The port of HTTPS as devices see it; 0 = the one listened on.
    pub public_port: u16,
    /// More names that browsers may use for the console and the API.
    pub hosts: Vec<String>,
    /// The name of this fleet: what its claim codes begin with.
    pub fleet: String,
    /// The environment of the route table and of MQTT topics.
    pub environment: String,
    /// Connections at once, for each listener.
    pub connections: usize,
    /// The longest a client may take to send a request's head, or be idle between requests.
    pub head_timeout_s: u64,
    /// The longest a request may take until its answer begins.
    pub request_timeout_s: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7700".into(),
            https_listen: "0.0.0.0:7743".into(),
            public_host: "localhost".into(),
            public_port: 0,
            hosts: Vec::new(),
            fleet: "HQ".into(),
            environment: "prod".into(),
            connections: 4096,
            head_timeout_s: 75,
            request_timeout_s: 30,
        }
    }
}

impl Server {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let named = (2..=8).contains(&self.fleet.len())
            && self.fleet.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        if !named {
            return Err(value("server.fleet", "must be 2 to 8 capital letters and digits"));
        }
        if self.public_host.is_empty() || self.public_host.contains([':', '/', ' ']) {
            return Err(value("server.public_host", "must be a bare host name or IPv4 address"));
        }
        if self.environment.is_empty() || self.environment.contains(['/', '+', '#', ' ']) {
            return Err(value("server.environment", "must be a plain word (it is a level of MQTT topics)"));
        }
        if self.connections == 0 || self.head_timeout_s == 0 || self.request_timeout_s == 0 {
            return Err(value("server", "limits and time-outs must be greater than 0"));
        }
        Ok(())
    }
}

/// Where things are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `sqlite://PATH` or `postgres://…`; empty = `fleet.db` in the data directory.
    pub url: String,
}

/// The MQTT broker, inside or outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Broker {
    /// `embedded`, `none`, or `mqtt://…` / `mqtts://…`.
    pub url: String,
    /// The embedded broker's port for devices (mutual TLS).
    pub tls_listen: String,
    /// The embedded broker's port for this server itself and for local tools (no TLS; loopback only).
    pub listen: String,
    /// The broker as devices are told at activation; empty = derived.
    pub device_url: String,
    /// For an external broker.
    pub username: String,
    /// For an external broker.
    pub password: String,
    /// The authority of an external `mqtts://` broker (PEM); empty = those of the system.
    pub ca: PathBuf,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            url: "embedded".into(),
            tls_listen: "0.0.0.0:7883".into(),
            listen: "127.0.0.1:0".into(),
            device_url: String::new(),
            username: String::new(),
            password: String::new(),
            ca: PathBuf::new(),
        }
    }
}

/// Which broker there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerChoice {
    /// The one inside this program.
    Embedded,
    /// None: an origin-only server.
    None,
    /// Somebody else's.
    External(String),
}

/// Reads the value of `--broker` and `broker.url`.
///
/// # Errors
/// [`ConfigError::Value`] when it is none of the three forms.
pub fn broker_choice(url: &str) -> Result<BrokerChoice, ConfigError> {
    match url {
        "embedded" => Ok(BrokerChoice::Embedded),
        "none" => Ok(BrokerChoice::None),
        _ if url.starts_with("mqtt://") || url.starts_with("mqtts://") => {
            Ok(BrokerChoice::External(url.into()))
        }
        _ => {
            Err(value("broker.url", "must be embedded, none, or a URL that begins with mqtt:// or mqtts://"))
        }
    }
}

impl Broker {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        broker_choice(&self.url).map(|_| ())
    }
}

/// Certificate files for servers that are not issued by this fleet's own authority. Empty = the own authority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate chain (PEM).
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// The authority that device certificates are checked against (PEM).
    pub client_ca: PathBuf,
}

impl Tls {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.cert.as_os_str().is_empty() == self.key.as_os_str().is_empty() {
            return Ok(());
        }
        Err(value("tls.cert", "cert and key go together"))
    }
}

/// The certificate authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pki {
    /// An authority of one's own instead of a generated one (PEM); empty = generated at first start.
    pub ca_cert: PathBuf,
    /// Its key (PEM).
    pub ca_key: PathBuf,
    /// How long a device certificate lives.
    pub device_days: u16,
}

impl Default for Pki {
    fn default() -> Self {
        Self { ca_cert: PathBuf::new(), ca_key: PathBuf::new(), device_days: 90 }
    }
}

impl Pki {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.ca_cert.as_os_str().is_empty() != self.ca_key.as_os_str().is_empty() {
            return Err(value("pki.ca_cert", "ca_cert and ca_key go together"));
        }
        if !(1..=825).contains(&self.device_days) {
            return Err(value("pki.device_days", "must be 1 to 825"));
        }
        Ok(())
    }
}

/// Order intake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Intake {
    /// The name of this origin in route tables.
    pub origin: String,
    /// Bearer tokens accepted instead of a client certificate (also over plain HTTP).
    pub tokens: Vec<String>,
    /// The largest batch, before and after decompression.
    pub max_body_bytes: usize,
    /// The largest number of orders in one batch.
    pub max_orders: usize,
    /// Memory for bodies being received; a batch waits for its part, up to the request time-out.
    pub memory_bytes: usize,
    /// Batches worked on at once; more wait, up to the request time-out.
    pub in_flight: usize,
    /// Batches of one device at once; more are answered 429.
    pub in_flight_per_device: usize,
    /// Orders of one device in a second, after ten seconds' worth at once; more are answered 429.
    pub device_orders_per_s: u32,
    /// Batches of one device in a second, after ten seconds' worth at once; more are answered 429.
    pub device_requests_per_s: u32,
    /// Comparisons of one device in a minute; more are answered 429.
    pub device_reconciles_per_min: u32,
    /// Bodies are forgotten after this many days; 0 = never.
    pub keep_bodies_days: u32,
    /// Keys are forgotten after this many days (the contract asks for 180 or more).
    pub keep_keys_days: u32,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            origin: "origin-1".into(),
            tokens: Vec::new(),
            max_body_bytes: 8 * 1024 * 1024,
            max_orders: 1000,
            memory_bytes: 256 * 1024 * 1024,
            in_flight: 64,
            in_flight_per_device: 64,
            device_orders_per_s: 10_000,
            device_requests_per_s: 200,
            device_reconciles_per_min: 60,
            keep_bodies_days: 0,
            keep_keys_days: 400,
        }
    }
}

impl Intake {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.keep_keys_days < 180 {
            return Err(value(
                "intake.keep_keys_days",
                "must be 180 or more: devices may repeat a key for that long",
            ));
        }
        if self.origin.parse::<samovar_wire::OriginId>().is_err() {
            return Err(value("intake.origin", "must be 1 to 64 of the characters A-Z a-z 0-9 _ -"));
        }
        if self.max_body_bytes == 0
            || self.max_orders == 0
            || self.in_flight == 0
            || self.in_flight_per_device == 0
            || self.device_orders_per_s == 0
            || self.device_requests_per_s == 0
            || self.device_reconciles_per_min == 0
        {
            return Err(value("intake", "limits must be greater than 0"));
        }
        if self.memory_bytes < self.max_body_bytes || self.memory_bytes > 1 << 40 {
            return Err(value("intake.memory_bytes", "must be at least max_body_bytes, and at most 1 TiB"));
        }
        if self.tokens.iter().any(|token| token.len() < 16) {
            return Err(value("intake.tokens", "must have 16 characters or more each"));
        }
        Ok(())
    }
}

/// Route tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Routes {
    /// More keys that may sign route tables, besides this fleet's own: base64 Ed25519 public keys by key id.
    pub trusted_keys: TrustedKeys,
    /// Whether this server has a key of its own and signs tables with it.
    pub sign: bool,
    /// Whether a table needs a second operator, or the signature of a trusted key, before it is published.
    pub four_eyes: bool,
}

impl Default for Routes {
    fn default() -> Self {
        Self { trusted_keys: TrustedKeys::new(), sign: true, four_eyes: false }
    }
}

impl Routes {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !self.sign && self.trusted_keys.is_empty() {
            return Err(value("routes.sign", "without it, routes.trusted_keys must name the key that signs"));
        }
        Ok(())
    }
}

/// Claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Activation {
    /// How long a claim code lives when nobody says otherwise.
    pub claim_hours: u32,
    /// Wrong codes that one address may try before it has to wait.
    pub guesses: u32,
}

impl Default for Activation {
    fn default() -> Self {
        Self { claim_hours: 24, guesses: 20 }
    }
}

/// People who log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Operators {
    /// How long a login lasts.
    pub session_hours: u32,
    /// Whether the console's cookie is sent over HTTPS only.
    pub secure_cookie: bool,
}

impl Default for Operators {
    fn default() -> Self {
        Self { session_hours: 12, secure_cookie: false }
    }
}

/// What is written to standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A filter such as `info` or `info,samovar_fleet=debug`.
    pub filter: String,
    /// JSON lines instead of text.
    pub json: bool,
}

impl Log {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let parsed = self.filter.parse::<tracing_subscriber::EnvFilter>();
        parsed.map(drop).map_err(|error| value("log.filter", &error.to_string()))
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info,sqlx=warn,sea_orm_migration=warn".into(), json: false }
    }
}

fn value(key: &'static str, message: &str) -> ConfigError {
    ConfigError::Value { key, message: message.to_owned() }
}
