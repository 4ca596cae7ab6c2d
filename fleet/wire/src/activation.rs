//! Activation and renewal: how a machine with a claim code becomes a known device of a store.

use crate::dsse::{Envelope, TrustedKeys};
use crate::ids::DeviceClass;
use crate::{Country, DeviceId, StoreId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `POST /activate/v1/claims`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// The code an operator made, such as `USW-7K2M-9QXD`.
    pub claim: String,
    /// Certificate signing request, PEM; the key never leaves the device.
    pub csr: String,
    /// What the device says of itself; shown to operators, trusted for nothing.
    #[serde(default)]
    pub hardware: BTreeMap<String, String>,
}

/// Answer to an accepted claim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimAnswer {
    /// The device's certificate, PEM (leaf first).
    pub certificate: String,
    /// The certificate authority of the fleet and its origins, PEM.
    pub ca: String,
    /// Who the device is now.
    pub device: DeviceId,
    /// Its store.
    pub store: StoreId,
    /// The store's country.
    pub country: Country,
    /// The device's class.
    pub class: DeviceClass,
    /// Environment of route tables and topics.
    pub environment: String,
    /// Keys that sign route tables.
    pub trusted_keys: TrustedKeys,
    /// The route table in force.
    pub route_table: Envelope,
    /// Base URL of the fleet's device API (renewals, route tables) over mutual TLS; empty: the server the claim
    /// was sent to.
    #[serde(default)]
    pub fleet_url: String,
    /// Where MQTT is; empty when the fleet has none.
    pub mqtt_url: String,
    /// Keys that sign commands and desired states, with the role each has.
    pub commands_keys: BTreeMap<String, CommandKey>,
}

/// A key that may sign commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandKey {
    /// The public key.
    pub key: crate::dsse::PublicKey,
    /// What it may ask for.
    pub role: Role,
}

/// What a signer or an operator may do; each can do what the one before can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Viewer,
    /// Diagnose and read logs.
    Support,
    /// On site: also host overrides of up to four hours.
    Field,
    /// Routes, configuration, overrides.
    Netops,
    /// Everything.
    Admin,
}

/// `POST /activate/v1/renewals`, over mutual TLS with the certificate that is to be replaced.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewalRequest {
    /// Certificate signing request, PEM.
    pub csr: String,
}

/// Answer to a renewal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewalAnswer {
    /// The new certificate, PEM (leaf first).
    pub certificate: String,
    /// The certificate authority, PEM; may hold more than one while it is being replaced.
    pub ca: String,
}
