//! The document, as `route-table.v1` writes it.

use super::pins::Pins;
use crate::ids::DeviceClass;
use crate::{Country, OriginId, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Version of the form; 1.
    pub schema: u32,
    /// Which environment this table is for, such as `prod`.
    pub environment: String,
    /// Grows with each publication.
    pub version: u64,
    /// When it was made.
    pub issued_at: Timestamp,
    /// Not to be used before.
    pub not_before: Timestamp,
    /// Should have been replaced by then; in force even so until it is.
    pub expires_at: Timestamp,
    /// How often a device asks for a newer one.
    #[serde(default = "default_refresh")]
    pub refresh_after_s: u64,
    /// The sites.
    pub origins: BTreeMap<OriginId, OriginEntry>,
    /// Where devices are activated.
    #[serde(default)]
    pub activation: Option<Activation>,
    /// Domains and residency per country.
    pub countries: BTreeMap<Country, CountryRoutes>,
    /// Single IDs sent to a named origin.
    #[serde(default)]
    pub pins: Pins,
    /// Shares of IDs.
    #[serde(default)]
    pub splits: Vec<Split>,
    /// What holds when nothing else does.
    #[serde(default)]
    pub fallback: Fallback,
    /// Shadow traffic.
    #[serde(default)]
    pub shadow: Vec<Shadow>,
    /// Switches of whole countries.
    #[serde(default)]
    pub emergency: Vec<Emergency>,
    /// Names that no rule and no override may move.
    #[serde(default)]
    pub protected: Vec<String>,
    /// Forbids host overrides everywhere.
    #[serde(default)]
    pub disable_overrides: bool,
    /// Base URLs of the captive-portal test, plain HTTP.
    #[serde(default)]
    pub probes: Vec<String>,
    /// Resolvers.
    #[serde(default)]
    pub dns: Dns,
}

const fn default_refresh() -> u64 {
    900
}

/// One site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginEntry {
    /// Where it can be dialled.
    pub endpoints: Vec<Endpoint>,
    /// Regions it lies in.
    #[serde(default)]
    pub regions: Vec<String>,
    /// Whether it takes new work.
    #[serde(default)]
    pub state: OriginState,
}

/// One way into a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The name (or address) that is dialled.
    pub host: String,
    /// The port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Addresses to use when the name does not resolve.
    #[serde(default)]
    pub addresses: Vec<std::net::IpAddr>,
    /// Share of devices, when there are several endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis_points: Option<u32>,
}

const fn default_port() -> u16 {
    443
}

/// Whether a site takes new work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OriginState {
    /// Yes.
    #[default]
    Active,
    /// Keeps what is bound to it, gets nothing new.
    Draining,
    /// Nothing is sent to it.
    Off,
}

/// Where devices are activated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// The one domain common to all origins.
    pub domain: String,
    /// The origins behind it.
    #[serde(default)]
    pub origins: Vec<OriginId>,
}

/// What one country has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountryRoutes {
    /// Origins that may hold this country's data, preferred first.
    pub residency: Vec<OriginId>,
    /// Its services.
    pub services: BTreeMap<ServiceName, Service>,
}

/// One service of one country.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Domain by device class; `default` serves the rest.
    pub domains: BTreeMap<DeviceClass, String>,
    /// Whether a host override may move it.
    #[serde(default)]
    pub overridable: bool,
    /// Whether the gateway may serve the last good answer.
    #[serde(default)]
    pub cache: CacheMode,
    /// A narrower residency than the country's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residency: Option<Vec<OriginId>>,
}

/// Whether the gateway may serve the last good answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// No.
    #[default]
    Off,
    /// Yes.
    LastGood,
}

/// IDs sent to one origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// `store:…`, `device:…` or `user:…`.
    pub ids: Vec<String>,
    /// Services it holds for; `*` is all.
    #[serde(default = "all_services")]
    pub services: Vec<String>,
    /// Where they go.
    pub origin: OriginId,
    /// When it ends; without it, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

fn all_services() -> Vec<String> {
    vec!["*".to_owned()]
}

/// Shares of one country and service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The country of the order.
    pub country: Country,
    /// The service; `*` is all.
    pub service: String,
    /// Makes this split's buckets its own.
    #[serde(default)]
    pub salt: String,
    /// Which ID is hashed.
    #[serde(default)]
    pub by: By,
    /// The shares, in order; together 10,000.
    pub shares: Vec<Share>,
}

/// Which ID is hashed for a share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The device that sends.
    Device,
    /// Its store.
    #[default]
    Store,
    /// The person the order concerns.
    User,
}

/// One share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Where it goes.
    pub origin: OriginId,
    /// How much, of 10,000.
    pub basis_points: u32,
}

/// What holds when nothing else does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// How to choose.
    #[serde(default)]
    pub mode: FallbackMode,
    /// Origins to choose among, in order.
    #[serde(default)]
    pub candidates: Vec<OriginId>,
    /// With `shares`: how much each gets.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// With `shares`: makes the buckets its own.
    #[serde(default)]
    pub salt: String,
    /// With `shares`: which ID is hashed.
    #[serde(default)]
    pub by: By,
}

/// How the fallback chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FallbackMode {
    /// The nearest by measured time; before any measurement, the first listed.
    #[default]
    Nearest,
    /// By shares.
    Shares,
}

/// A share of orders that is also sent, marked as shadow, to another origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// The country of the order.
    pub country: Country,
    /// The service.
    pub service: String,
    /// Where the copies go.
    pub origin: OriginId,
    /// How much, of 10,000.
    pub basis_points: u32,
}

/// A switch of a whole country.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emergency {
    /// The country.
    pub country: Country,
    /// Services it holds for; `*` is all.
    #[serde(default = "all_services")]
    pub services: Vec<String>,
    /// Where they go.
    pub origin: OriginId,
    /// When it ends; without it, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// Resolvers that devices may ask.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Plain DNS servers.
    #[serde(default)]
    pub servers: Vec<serde_json::Value>,
    /// DNS over HTTPS servers.
    #[serde(default)]
    pub doh: Vec<serde_json::Value>,
    /// How long a stale answer may be used.
    #[serde(default)]
    pub stale_max_s: Option<u64>,
}

impl Table {
    /// The origins that may hold a country's data for one service, preferred first; `None` when the country or the
    /// service is not in the table.
    #[must_use]
    pub fn residency(&self, country: &Country, service: &str) -> Option<&[OriginId]> {
        let routes = self.countries.get(country)?;
        let narrowed = routes.services.get(service)?.residency.as_deref();
        Some(narrowed.unwrap_or(&routes.residency))
    }
}
