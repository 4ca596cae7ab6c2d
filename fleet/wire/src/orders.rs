//! The origin protocol: batches of orders out, one outcome per order back.
//!
//! Bodies are opaque. They are spliced into the batch as the bytes that were received and are read back as the same
//! bytes ([`RawValue`]); nothing in between parses or re-serialises them, because the digest is over those bytes.

use crate::encoding::{hex, sha256};
use crate::{OriginId, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// Largest body of one order.
pub const MAX_BODY_BYTES: usize = 256 * 1024;
/// Most orders in one batch.
pub const MAX_BATCH_ORDERS: usize = 500;
/// Longest order number and longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 128;

/// Request header: the device that sends.
pub const HEADER_DEVICE: &str = "samovar-device";
/// Request header: the device's store.
pub const HEADER_STORE: &str = "samovar-store";
/// Request header: the UUID made with the ledger.
pub const HEADER_LEDGER: &str = "samovar-ledger";
/// Request header: the user data location of every order in the batch.
pub const HEADER_UDL: &str = "udl";
/// Request header of orders that are sent to be compared and must not be recorded as orders; its value is the origin
/// that the order really belongs to.
pub const HEADER_SHADOW: &str = "samovar-shadow";
/// Answer header of the health check: the origin that answered.
pub const HEADER_ORIGIN: &str = "samovar-origin";
/// Request and answer header of the captive-portal test.
pub const HEADER_NONCE: &str = "samovar-nonce";
/// Header that makes a repeat safe.
pub const HEADER_IDEMPOTENCY_KEY: &str = "idempotency-key";

/// One order as it stands in a batch that is being written.
#[derive(Debug, Clone, Serialize)]
pub struct OutgoingOrder<'a> {
    /// The order's own UUIDv7.
    pub id: &'a str,
    /// Idempotency key.
    pub key: &'a str,
    /// Lower-case hex of the SHA-256 of the body bytes.
    pub sha256: &'a str,
    /// The till's number.
    pub order_no: &'a str,
    /// Place in the ledger.
    pub seq: u64,
    /// User data location that routed the order.
    pub udl: &'a str,
    /// When the agent made it durable.
    pub accepted_at: Timestamp,
}

/// Writes a batch request, splicing each body in unparsed.
#[derive(Debug)]
pub struct BatchWriter {
    bytes: Vec<u8>,
    orders: usize,
}

impl BatchWriter {
    /// Starts a batch with its id.
    #[must_use]
    pub fn new(batch_id: &str) -> Self {
        let mut bytes = br#"{"batch":"#.to_vec();
        write_json(&mut bytes, &batch_id);
        bytes.extend_from_slice(br#","orders":["#);
        Self { bytes, orders: 0 }
    }

    /// Adds one order. `body` must be one JSON value; the ledger holds nothing else.
    pub fn push(&mut self, order: &OutgoingOrder<'_>, body: &[u8]) {
        if self.orders > 0 {
            self.bytes.push(b',');
        }
        write_json(&mut self.bytes, order);
        self.bytes.pop();
        self.bytes.extend_from_slice(br#","body":"#);
        self.bytes.extend_from_slice(body);
        self.bytes.push(b'}');
        self.orders += 1;
    }

    /// The finished request body.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(b"]}");
        self.bytes
    }
}

fn write_json<T: Serialize>(bytes: &mut Vec<u8>, value: &T) {
    // Strings and plain structs always serialise into memory.
    let _ = serde_json::to_writer(bytes, value);
}

/// A batch as the origin reads it.
#[derive(Debug, Deserialize)]
pub struct Batch {
    /// Batch id, echoed in the answer.
    pub batch: String,
    /// The orders.
    pub orders: Vec<IncomingOrder>,
}

/// One order as the origin reads it.
#[derive(Debug, Deserialize)]
pub struct IncomingOrder {
    /// The order's id.
    pub id: String,
    /// Idempotency key.
    pub key: String,
    /// Lower-case hex digest of `body`.
    pub sha256: String,
    /// The till's number.
    pub order_no: String,
    /// Place in the sender's ledger.
    pub seq: u64,
    /// User data location.
    #[serde(default)]
    pub udl: Option<String>,
    /// When the sender made it durable.
    pub accepted_at: Timestamp,
    /// The document, byte for byte.
    pub body: Box<RawValue>,
}

impl IncomingOrder {
    /// Whether `sha256` is the digest of the body bytes.
    #[must_use]
    pub fn digest_matches(&self) -> bool {
        hex(&sha256(self.body.get().as_bytes())) == self.sha256
    }
}

/// An origin's answer to a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchAnswer {
    /// The id of the batch that is answered.
    pub batch: String,
    /// The origin's clock.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "readable_time")]
    pub server_time: Option<Timestamp>,
    /// One result per order; an order without a result counts as `retry`, and a result that cannot be read is none.
    #[serde(default, deserialize_with = "readable_results")]
    pub results: Vec<OrderResult>,
}

/// What the origin says of one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderResult {
    /// The order.
    pub id: String,
    /// The outcome.
    pub status: Outcome,
    /// Stable code of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "words")]
    pub code: Option<String>,
    /// The origin's words.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "words")]
    pub detail: Option<String>,
    /// With `retry`: not before so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole_seconds")]
    pub retry_after_s: Option<u64>,
}

/// One odd result must not void what the origin says of the other orders.
fn readable_results<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OrderResult>, D::Error> {
    let results = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(results.into_iter().filter_map(|result| serde_json::from_value(result).ok()).collect())
}

/// A code that is a number, or words that are an object, are words too: what counts is the status beside them.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text),
        other => Some(other.to_string()),
    })
}

/// A time that is none is left out: nothing depends on it.
fn readable_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_str().and_then(|text| text.parse().ok()))
}

/// A wait that is not a number of seconds is none.
fn whole_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    // Beyond 2^53 seconds the fraction is the least of our worries; the conversion saturates.
    Ok(value.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds.ceil() as u64))
}

/// Outcome of one order at an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Recorded now.
    Settled,
    /// Was recorded before, with the same content.
    Duplicate,
    /// The key is known with other content.
    Conflict,
    /// The origin will never take it.
    Rejected,
    /// Not now. Also what an outcome counts as that this version does not know.
    #[serde(other)]
    Retry,
}

/// Counts and ages of a ledger, as the local API, MQTT and the console show them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OrdersSummary {
    /// Waiting to be sent or answered.
    pub pending: u64,
    /// Waiting for something named: residency, a dependency, an identity.
    pub held: u64,
    /// Refused for good, or a key conflict; a person must look.
    pub quarantined: u64,
    /// Recorded by an origin.
    pub settled: u64,
    /// Given up by an operator.
    pub discarded: u64,
    /// Accepted since the ledger was made.
    pub accepted: u64,
    /// When the oldest pending order was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_pending_at: Option<Timestamp>,
    /// When an origin last settled an order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_settled_at: Option<Timestamp>,
    /// Size of the ledger on disk.
    pub ledger_bytes: u64,
    /// Pending and held orders by the origin they are bound to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bound: Vec<BoundOrders>,
}

/// Orders that wait for one origin's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BoundOrders {
    /// The origin.
    pub origin: OriginId,
    /// How many.
    pub orders: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_travel_byte_for_byte() {
        let body = br#"{ "b" : 1.50, "a":"\u00e9" }"#;
        let digest = hex(&sha256(body));
        let order = OutgoingOrder {
            id: "i1",
            key: "k\"1",
            sha256: &digest,
            order_no: "n1",
            seq: 7,
            udl: "JP",
            accepted_at: Timestamp::from_millis(0),
        };
        let mut writer = BatchWriter::new("b1");
        writer.push(&order, body);
        writer.push(&OutgoingOrder { id: "i2", ..order.clone() }, b"{}");
        let read: Batch = serde_json::from_slice(&writer.finish()).unwrap();
        assert_eq!(read.batch, "b1");
        assert_eq!(read.orders[0].body.get().as_bytes(), body);
        assert_eq!(read.orders[0].key, "k\"1");
        assert!(read.orders[0].digest_matches());
        assert!(!read.orders[1].digest_matches());
    }

    #[test]
    fn an_empty_batch_is_still_json() {
        let read: Batch = serde_json::from_slice(&BatchWriter::new("b").finish()).unwrap();
        assert!(read.orders.is_empty());
    }

    #[test]
    fn one_odd_result_voids_no_other() {
        let answer: BatchAnswer = serde_json::from_str(
            r#"{"batch":"b","results":[null,{"id":"i1","status":"settled"},{"status":"settled"},
                {"id":"i2","status":"retry","retry_after_s":1.5},{"id":"i3","status":"retry","retry_after_s":"soon"},7]}"#,
        )
        .unwrap();
        let ids: Vec<_> =
            answer.results.iter().map(|result| (result.id.as_str(), result.retry_after_s)).collect();
        assert_eq!(ids, [("i1", None), ("i2", Some(2)), ("i3", None)]);
    }

    #[test]
    fn an_outcome_from_the_future_counts_as_retry() {
        let answer: BatchAnswer =
            serde_json::from_str(r#"{"batch":"b","results":[{"id":"i","status":"postponed","new":1}]}"#)
                .unwrap();
        assert_eq!(answer.results[0].status, Outcome::Retry);
    }
}
