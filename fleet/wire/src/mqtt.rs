//! MQTT topics, the envelope around every message, and the payloads.
//!
//! Everything that matters is in the payload, so that a 3.1.1 broker serves as well as a 5 one.

use crate::{DeviceId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Largest message in either direction; larger things go over HTTPS.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// A topic of one device: `samovar/v1/{env}/{device}/{channel}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// The environment of the route table.
    pub environment: String,
    /// The device.
    pub device: DeviceId,
    /// What the topic is for.
    pub channel: Channel,
}

/// The channels of a device; `up` is from the device, `dn` to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Birth and will, retained.
    Online,
    /// Reported state, retained, and its beat, not retained.
    State,
    /// Batches of events.
    Events,
    /// Metrics; loss allowed.
    Metrics,
    /// Replies to commands.
    Reply,
    /// Desired state, retained.
    Desired,
    /// A signed command.
    Command,
    /// Application acknowledgement.
    Ack,
}

impl Channel {
    /// Every channel.
    pub const ALL: [Self; 8] = [
        Self::Online,
        Self::State,
        Self::Events,
        Self::Metrics,
        Self::Reply,
        Self::Desired,
        Self::Command,
        Self::Ack,
    ];

    /// The last two levels of the topic.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Online => "up/online",
            Self::State => "up/state",
            Self::Events => "up/events",
            Self::Metrics => "up/metrics",
            Self::Reply => "up/reply",
            Self::Desired => "dn/desired",
            Self::Command => "dn/command",
            Self::Ack => "dn/ack",
        }
    }

    /// The `type` of the envelopes on this channel. `desired` and `command` carry a DSSE envelope instead.
    #[must_use]
    pub const fn message_type(self) -> &'static str {
        match self {
            Self::Online => "samovar.online.v1",
            Self::State => "samovar.state.v1",
            Self::Events => "samovar.events.v1",
            Self::Metrics => "samovar.metrics.v1",
            Self::Reply => "samovar.reply.v1",
            Self::Desired => "samovar.desired.v1",
            Self::Command => "samovar.command.v1",
            Self::Ack => "samovar.ack.v1",
        }
    }
}

impl Topic {
    /// Reads a topic; `None` when it is not one of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("samovar/v1/")?;
        let (environment, rest) = rest.split_once('/')?;
        let (device, path) = rest.split_once('/')?;
        let channel = Channel::ALL.into_iter().find(|channel| channel.path() == path)?;
        Some(Self { environment: environment.to_owned(), device: device.parse().ok()?, channel })
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "samovar/v1/{}/{}/{}", self.environment, self.device, self.channel.path())
    }
}

/// The one filter a device subscribes to.
#[must_use]
pub fn device_filter(environment: &str, device: &DeviceId) -> String {
    format!("samovar/v1/{environment}/{device}/dn/+")
}

/// The filter the fleet's ingest shares among its replicas.
#[must_use]
pub fn ingest_filter(environment: &str) -> String {
    format!("$share/ingest/samovar/v1/{environment}/+/up/+")
}

/// What is around every message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Envelope<T> {
    /// Version of this envelope.
    pub v: u32,
    /// UUIDv7 of the message.
    pub id: String,
    /// The sender's clock.
    pub at: Timestamp,
    /// Grows at each start of the sender.
    pub epoch: u64,
    /// Grows with each message of one epoch.
    pub seq: u64,
    /// What `data` is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The content.
    pub data: T,
}

/// `up/online`: birth (`online: true`) and will (`online: false`, only `epoch` beside it).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Online {
    /// Whether the device is there.
    pub online: bool,
    /// The agent's epoch; a will older than the last birth is ignored.
    pub epoch: u64,
    /// The rest of a birth.
    #[serde(flatten)]
    pub birth: Option<Birth>,
}

/// What only a birth says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Birth {
    /// The operating system's boot.
    pub boot_id: String,
    /// Version of the agent.
    pub version: String,
    /// What a command must carry to prove it is fresh.
    pub nonce: String,
    /// What this agent can do, such as the kinds of commands it takes.
    pub capabilities: Vec<String>,
    /// Version of the route table in force; absent without one.
    pub route_table: Option<u64>,
    /// Revision of the desired state applied last.
    pub config_revision: u64,
    /// The `at` of the will of this connection. A device may be born again within one connection, and its will is
    /// then older than the last birth without being out of date; absent from devices that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_at: Option<Timestamp>,
}

/// `up/state`: the whole state, or a beat that says nothing changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StateReport {
    /// SHA-256 of the state document as JSON, hex.
    pub sha256: String,
    /// The state; absent in a beat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Value>,
}

/// `up/events`: one batch of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventBatch {
    /// The stream; sequence numbers are per stream.
    pub stream: String,
    /// The events, ascending.
    pub events: Vec<Event>,
    /// The lowest number of the stream that the sender still keeps: what is not stored below it will never come, so
    /// numbers that are missing there are waited for in vain. Absent from devices that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_from: Option<u64>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Place in its stream; never reused.
    pub seq: u64,
    /// When it happened, by the device's clock.
    pub at: Timestamp,
    /// What happened, such as `order.quarantined`.
    pub kind: String,
    /// The facts.
    #[serde(default)]
    pub data: Value,
}

/// `up/metrics`: numbers by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Metrics {
    /// Values by metric name.
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// What was measured of endpoints since the last report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<crate::figures::EndpointFigures>,
}

/// `dn/ack`: what the fleet has made durable, or a request for the whole state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ack {
    /// The stream that is acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Every event up to and including this one is durable at the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to: Option<u64>,
    /// Send the whole state.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resync: bool,
}

impl Ack {
    /// Reads an acknowledgement with or without the envelope around it.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let mut message: Value = serde_json::from_slice(payload).ok()?;
        let fields = message.as_object_mut()?;
        let data = fields.remove("data").unwrap_or(message);
        // An array would be read as the fields in order.
        if data.is_object() { serde_json::from_value(data).ok() } else { None }
    }
}

/// `dn/desired`, the signed payload: what a device should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Desired {
    /// For whom.
    pub device: DeviceId,
    /// Grows; an older one is ignored.
    pub revision: u64,
    /// Agent configuration to overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// The route table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_table: Option<DesiredDocument>,
    /// Host overrides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<Value>,
    /// The release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Value>,
}

/// A signed document inside a desired state: itself, or where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum DesiredDocument {
    /// The document.
    Inline(crate::dsse::Envelope),
    /// Where to fetch it.
    Reference {
        /// SHA-256 of the document's payload, hex.
        sha256: String,
        /// Where it is.
        url: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_as_they_are_written() {
        for channel in Channel::ALL {
            let topic = Topic { environment: "prod".into(), device: "POS-US-0001".parse().unwrap(), channel };
            assert_eq!(Topic::parse(&topic.to_string()), Some(topic));
        }
        for bad in ["samovar/v1/prod/x", "samovar/v2/prod/x/up/state", "samovar/v1/prod/a.b/up/state", ""] {
            assert_eq!(Topic::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_will_carries_nothing_but_its_epoch() {
        let will = Online { online: false, epoch: 17, birth: None };
        let text = serde_json::to_string(&will).unwrap();
        assert_eq!(text, r#"{"online":false,"epoch":17}"#);
        assert_eq!(serde_json::from_str::<Online>(&text).unwrap(), will);
    }

    #[test]
    fn an_acknowledgement_is_read_bare_and_in_an_envelope() {
        let ack = Ack { stream: Some("events".into()), up_to: Some(4), resync: false };
        let bare = serde_json::to_vec(&ack).unwrap();
        assert_eq!(Ack::parse(&bare), Some(ack.clone()));
        let envelope = Envelope {
            v: 1,
            id: "x".into(),
            at: Timestamp::from_millis(0),
            epoch: 0,
            seq: 1,
            kind: Channel::Ack.message_type().into(),
            data: ack.clone(),
        };
        assert_eq!(Ack::parse(&serde_json::to_vec(&envelope).unwrap()), Some(ack));
        assert_eq!(Ack::parse(b"[]"), None);
    }
}
