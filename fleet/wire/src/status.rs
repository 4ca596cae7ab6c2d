//! What a device says of itself: the same document on the local API, over MQTT and in the console.

use crate::conditions::Condition;
use crate::ids::DeviceClass;
use crate::orders::OrdersSummary;
use crate::{Country, DeviceId, OriginId, ServiceName, StoreId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The whole reported state of a device. Holds points in time, not ages, so that it changes only when a fact changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceState {
    /// Who this is; absent before activation.
    pub identity: Option<Identity>,
    /// Version of the agent.
    pub version: String,
    /// Grows at each start of the agent.
    pub epoch: u64,
    /// When the agent started.
    pub started_at: Timestamp,
    /// The route table in force.
    #[serde(default)]
    pub route_table: Option<RouteTableState>,
    /// Revision of the desired state that was applied last.
    #[serde(default)]
    pub config_revision: u64,
    /// Where orders go now.
    #[serde(default)]
    pub origin: Option<SelectedOrigin>,
    /// Every origin this device knows, with its health as seen from here.
    #[serde(default)]
    pub origins: Vec<OriginState>,
    /// The store's own line.
    #[serde(default)]
    pub line: Line,
    /// The ledger.
    #[serde(default)]
    pub orders: OrdersSummary,
    /// What is wrong, worst first.
    #[serde(default)]
    pub conditions: Vec<ActiveCondition>,
    /// Devices on the wires.
    #[serde(default)]
    pub devices: Vec<Value>,
    /// Release in force and update under way.
    #[serde(default)]
    pub update: Option<Value>,
    /// Host overrides in force.
    #[serde(default)]
    pub overrides: Vec<Value>,
    /// What comparing orders with each origin came to.
    #[serde(default)]
    pub reconcile: Vec<ReconcileState>,
    /// The names that origins are dialled by.
    #[serde(default)]
    pub names: Vec<NameState>,
}

/// How one name of the route table is found, and how long that and requests to it take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NameState {
    /// The host of an endpoint.
    pub name: String,
    /// Who gave the addresses in use: `system`, `direct`, `doh`, `stale`, `table` or `unconfirmed`.
    pub answered_by: String,
    /// The names it stands for, one after the other; empty also when nobody has said so yet.
    #[serde(default)]
    pub chain: Vec<ChainLink>,
    /// Time to find its addresses, over the last five minutes in which they were sought.
    #[serde(default)]
    pub dns_ms: Option<Percentiles>,
    /// Time from a request to the head of its answer, over the last five minutes in which there were any.
    #[serde(default)]
    pub request_ms: Option<Percentiles>,
}

/// One name that another stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChainLink {
    /// The name.
    pub name: String,
    /// What this link alone cost when it was last measured, in milliseconds.
    #[serde(default)]
    pub ms: Option<u32>,
}

/// How long something takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Percentiles {
    /// Half took no longer, in milliseconds.
    pub p50_ms: u32,
    /// Nineteen of twenty took no longer, in milliseconds.
    pub p95_ms: u32,
    /// How many there were.
    pub count: u32,
}

/// How the orders that an origin has settled compare with what it has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReconcileState {
    /// The origin.
    pub origin: OriginId,
    /// Whether it reconciles at all.
    pub supported: bool,
    /// When it last answered.
    #[serde(default)]
    pub at: Option<Timestamp>,
    /// When it last had everything that it had settled, and nothing else.
    #[serde(default)]
    pub matched_at: Option<Timestamp>,
    /// Ranges compared in the last pass.
    #[serde(default)]
    pub ranges: u64,
    /// Orders compared in the last pass.
    #[serde(default)]
    pub orders: u64,
    /// Orders sent again in the last pass.
    #[serde(default)]
    pub resent: u64,
    /// Orders it was found to lack, and has not been seen to have since.
    #[serde(default)]
    pub missing: u64,
    /// Orders it has that the device does not know.
    #[serde(default)]
    pub unknown: u64,
    /// When it is asked again.
    #[serde(default)]
    pub next_at: Option<Timestamp>,
    /// Why the last pass did not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Why nothing is compared, when nothing need be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
}

/// Who a device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Identity {
    /// The device.
    pub device: DeviceId,
    /// Its store.
    pub store: StoreId,
    /// The store's country.
    pub country: Country,
    /// Its class.
    pub class: DeviceClass,
}

/// The route table a device obeys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RouteTableState {
    /// Its version.
    pub version: u64,
    /// Its environment.
    pub environment: String,
    /// SHA-256 of the signed bytes, hex.
    pub sha256: String,
    /// When it should have been replaced.
    pub expires_at: Timestamp,
    /// The key that signed it.
    pub key_id: String,
}

/// Where the orders of this device's own store go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SelectedOrigin {
    /// The service that was resolved.
    pub service: ServiceName,
    /// The name that is used for TLS and `Host`.
    pub domain: String,
    /// Where requests are addressed.
    pub base_url: String,
    /// The origin chosen.
    pub origin: OriginId,
    /// The rule that chose it.
    pub rule: String,
}

/// Health of one origin as seen from a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OriginState {
    /// The origin.
    pub origin: OriginId,
    /// What is known.
    pub health: Health,
    /// Since when.
    pub since: Timestamp,
    /// Last thing that went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// It answers again, and is returned to in so many seconds if it goes on doing so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returns_in_s: Option<u64>,
}

/// Whether an origin answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing was asked of it yet; counts as usable.
    #[default]
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Down,
}

/// The store's own line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// Nothing was tried yet.
    #[default]
    Unknown,
    /// Something outside the store answers.
    Up,
    /// Nothing outside the store answers.
    Down,
}

/// A condition that holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ActiveCondition {
    /// Which of the closed list; a name this version does not know is kept as text by readers that show it.
    pub name: Condition,
    /// How much it matters.
    pub severity: crate::conditions::Severity,
    /// Since when it has held.
    pub since: Timestamp,
    /// What exactly, for a technician: the number, the name, the other side's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}
