//! The sections, each with its defaults and the rules its own values must keep.

use super::single::SingleSection;
use samovar_wire::dsse::TrustedKeys;
use samovar_wire::ids::DeviceClass;
use samovar_wire::route::Scheme;
use samovar_wire::{Country, DeviceId, StoreId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A key and what is wrong with its value.
type Wrong = (&'static str, String);

fn within(key: &'static str, value: u64, min: u64, max: u64) -> Result<(), Wrong> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err((key, format!("{value} is not within {min} and {max}")))
    }
}

/// `[identity]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySection {
    /// The device.
    pub device: Option<DeviceId>,
    /// Its store.
    pub store: Option<StoreId>,
    /// The store's country.
    pub country: Option<Country>,
    /// Its class.
    pub class: Option<DeviceClass>,
}

impl IdentitySection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let all = [
            ("identity.device", self.device.is_some()),
            ("identity.store", self.store.is_some()),
            ("identity.country", self.country.is_some()),
            ("identity.class", self.class.is_some()),
        ];
        match all.iter().find(|(_, given)| !given) {
            Some((missing, _)) if all.iter().any(|(_, given)| *given) => Err((
                missing,
                "missing: device, store, country and class are given together or not at all".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// `[routing]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoutingSection {
    /// A signed route table, read at start and whenever it changes.
    pub table: Option<PathBuf>,
    /// Keys that may sign route tables, by key id, besides those of the activation.
    pub trusted_keys: TrustedKeys,
    /// Environment of route tables and topics; the activation's when empty, else `prod`.
    pub environment: String,
    /// How long an origin that was left must answer before it is returned to.
    pub failback_after_s: u64,
    /// Each device waits a random part of this on top.
    pub failback_spread_s: u64,
}

impl Default for RoutingSection {
    fn default() -> Self {
        Self {
            table: None,
            trusted_keys: TrustedKeys::default(),
            environment: String::new(),
            failback_after_s: 300,
            failback_spread_s: 120,
        }
    }
}

impl RoutingSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        // The environment is a level of every topic.
        let is_level = self.environment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !is_level || self.environment.len() > 64 {
            return Err(("routing.environment", "use at most 64 of the characters A-Z a-z 0-9 _ -".into()));
        }
        within("routing.failback_after_s", self.failback_after_s, 0, 86_400)?;
        within("routing.failback_spread_s", self.failback_spread_s, 0, 3_600)
    }
}

/// `[dns]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSection {
    /// Servers that are asked for the names of the route table instead of the system's resolver; empty asks the system
    /// first and its servers next.
    pub servers: Vec<String>,
}

impl DnsSection {
    /// The servers.
    #[must_use]
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.servers.iter().filter_map(|text| crate::net::server(text)).collect()
    }

    pub(super) fn check(&self) -> Result<(), Wrong> {
        match self.servers.iter().find(|text| crate::net::server(text).is_none()) {
            Some(text) => {
                Err(("dns.servers", format!("`{text}` is not an address, or an address and a port")))
            }
            None if self.servers.len() > 4 => Err(("dns.servers", "give at most 4".into())),
            None => Ok(()),
        }
    }
}

/// `[origin]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OriginSection {
    /// Mutual TLS with files of one's own; the activation's when absent.
    pub tls: Option<OriginTls>,
    /// A bearer token instead of, or besides, a client certificate.
    pub token: String,
    /// `https`, or `http` for origins on loopback addresses.
    pub scheme: Scheme,
    /// Longest time to connect, TLS included.
    pub connect_timeout_ms: u64,
    /// Longest time from request to the end of the answer.
    pub request_timeout_ms: u64,
    /// Orders in batches, or one by one to an API of the origin's own.
    pub mode: OriginMode,
    /// With `mode = "single"`: that API.
    pub single: Option<SingleSection>,
    /// How batches are compressed.
    pub compression: Compression,
}

/// `[origin] mode`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OriginMode {
    /// Batches, as the origin contract has them.
    #[default]
    Batch,
    /// One request per order, to an API that the origin has already.
    Single,
}

/// `[origin] compression`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are; every origin reads that.
    #[default]
    None,
    /// gzip, until an origin answers that it cannot read it.
    Gzip,
}

impl Default for OriginSection {
    fn default() -> Self {
        Self {
            tls: None,
            token: String::new(),
            scheme: Scheme::Https,
            connect_timeout_ms: 5_000,
            request_timeout_ms: 15_000,
            mode: OriginMode::Batch,
            single: None,
            compression: Compression::None,
        }
    }
}

impl OriginSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        within("origin.connect_timeout_ms", self.connect_timeout_ms, 100, 60_000)?;
        within("origin.request_timeout_ms", self.request_timeout_ms, 100, 300_000)?;
        self.check_single()?;
        match &self.tls {
            Some(tls) if tls.cert.is_some() != tls.key.is_some() => {
                Err(("origin.tls", "cert and key are given together or not at all".into()))
            }
            _ => Ok(()),
        }
    }
}

impl OriginSection {
    fn check_single(&self) -> Result<(), Wrong> {
        match (self.mode, &self.single) {
            (OriginMode::Single, None) => {
                Err(("origin.mode", "\"single\" needs a section [origin.single] with a path".into()))
            }
            (OriginMode::Single, Some(_)) if self.compression != Compression::None => {
                Err(("origin.compression", "only batches are compressed".into()))
            }
            (_, Some(single)) => single
                .check(self.scheme == Scheme::Https, !self.token.is_empty())
                .map_err(|problem| ("origin.single", problem)),
            (OriginMode::Batch, None) => Ok(()),
        }
    }
}

/// `[origin] tls`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OriginTls {
    /// Certificate authorities that origins are checked against, PEM.
    pub ca: Option<PathBuf>,
    /// The device's certificate, PEM, leaf first.
    pub cert: Option<PathBuf>,
    /// The device's key, PEM.
    pub key: Option<PathBuf>,
}

/// `[relay]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySection {
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://`; empty is off; absent is what the activation says.
    pub url: Option<String>,
    /// User name, when the broker wants one.
    pub username: String,
    /// Password, when the broker wants one.
    pub password: String,
    /// Keep-alive.
    pub keep_alive_s: u64,
    /// Room for events that nobody has acknowledged yet.
    pub outbox_max_bytes: u64,
}

impl Default for RelaySection {
    fn default() -> Self {
        Self {
            url: None,
            username: String::new(),
            password: String::new(),
            keep_alive_s: 60,
            outbox_max_bytes: 16 * 1024 * 1024,
        }
    }
}

impl RelaySection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        within("relay.keep_alive_s", self.keep_alive_s, 5, 3_600)?;
        within("relay.outbox_max_bytes", self.outbox_max_bytes, 64 * 1024, 1024 * 1024 * 1024)?;
        let known = ["mqtt://", "mqtts://", "ws://", "wss://"];
        match self.url.as_deref() {
            None | Some("") => Ok(()),
            Some(url) if known.iter().any(|scheme| url.starts_with(scheme)) => Ok(()),
            Some(url) => {
                Err(("relay.url", format!("`{url}` must begin with mqtt://, mqtts://, ws:// or wss://")))
            }
        }
    }
}

/// `[local_api]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalApiSection {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Names besides loopback that requests may be addressed to.
    pub names: Vec<String>,
    /// Most connections at one time; when full, the oldest idle one makes room.
    pub max_connections: usize,
}

impl Default for LocalApiSection {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 7780).into(), names: Vec::new(), max_connections: 512 }
    }
}

/// `[hosts]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostsSection {
    /// The hosts file that other programs read; empty leaves it alone.
    pub file: PathBuf,
    /// Socket of the helper that may write it, for an agent that may not; empty is none.
    pub helper: PathBuf,
}

impl Default for HostsSection {
    fn default() -> Self {
        Self { file: "/etc/hosts".into(), helper: "/run/samovar/helper.sock".into() }
    }
}

impl HostsSection {
    /// The hosts file, if it is to be written.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        Some(self.file.as_path()).filter(|path| !path.as_os_str().is_empty())
    }

    /// The helper's socket, if there is one.
    #[must_use]
    pub fn helper(&self) -> Option<&Path> {
        Some(self.helper.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

/// `[orders]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OrdersSection {
    /// Size of the ledger at which new orders are refused (507).
    pub max_bytes: u64,
    /// Unsettled orders at which new orders are refused (507).
    pub max_orders: u64,
    /// Percent of `max_bytes` that bodies of settled orders may take; beyond it the oldest go before their time.
    pub settled_share_percent: u8,
    /// Seal order bodies on the disk with a key of this device.
    pub encrypt_bodies: bool,
    /// Days for which the key of a settled order is remembered.
    pub key_retention_days: u64,
    /// Days for which the body of a settled order is kept; up to twice as long while its origin has not confirmed it.
    pub body_retention_days: u64,
    /// Most orders sent in one request.
    pub batch_max_orders: u64,
    /// Most bytes of order bodies sent in one request.
    pub batch_max_bytes: u64,
}

impl Default for OrdersSection {
    fn default() -> Self {
        Self {
            max_bytes: 512 * 1024 * 1024,
            max_orders: 200_000,
            settled_share_percent: 50,
            encrypt_bodies: true,
            key_retention_days: 180,
            body_retention_days: 14,
            batch_max_orders: 100,
            batch_max_bytes: 512 * 1024,
        }
    }
}

impl LocalApiSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        within("local_api.max_connections", self.max_connections as u64, 1, 65_536)
    }
}

impl OrdersSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        within("orders.max_bytes", self.max_bytes, 1024 * 1024, 1 << 40)?;
        within("orders.max_orders", self.max_orders, 100, 10_000_000)?;
        within("orders.settled_share_percent", u64::from(self.settled_share_percent), 1, 90)?;
        within("orders.key_retention_days", self.key_retention_days, 180, 3_650)?;
        within("orders.body_retention_days", self.body_retention_days, 0, 3_650)?;
        within("orders.batch_max_orders", self.batch_max_orders, 1, 500)?;
        within("orders.batch_max_bytes", self.batch_max_bytes, 1024, 8 * 1024 * 1024)
    }
}

/// `[logs]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsSection {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,samovar_agent::relay=debug`.
    pub level: String,
    /// Most bytes of all log files together.
    pub max_bytes: u64,
}

impl Default for LogsSection {
    fn default() -> Self {
        Self { level: "info".into(), max_bytes: 32 * 1024 * 1024 }
    }
}

impl LogsSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        within("logs.max_bytes", self.max_bytes, 1024 * 1024, 1 << 40)?;
        // A bare word that is no level would be taken for the name of a part of the program, and nothing would be logged.
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let bare = self.level.split(',').map(str::trim).filter(|part| !part.contains('='));
        for word in bare {
            if !levels.iter().any(|level| level.eq_ignore_ascii_case(word)) {
                return Err(("logs.level", format!("`{word}` is not one of {}", levels.join(", "))));
            }
        }
        self.level
            .parse::<tracing_subscriber::EnvFilter>()
            .map(|_| ())
            .map_err(|error| ("logs.level", error.to_string()))
    }
}
