//! Reconciliation: device and origin compare digests over ranges of a ledger's sequence numbers, and narrow down to
//! the orders that only one of them has.
//!
//! A digest is a sum, not a chain: one order can be added without the others at hand, and the order in which they are
//! added does not matter. A sum rather than an exclusive or, so that an order counted twice does not vanish.
//!
//! ```text
//! device: count + digest ──► equal ──► match
//!            │                differ ──► match: false, no lists ──► the device halves the range and asks again
//!            └─ and keys (a leaf) ─────► match, or exactly which keys are `missing` and `unknown`
//! ```
//!
//! An origin cannot name an order that it lacks from a sum alone. So a device that has narrowed a difference down to a
//! leaf (at most [`LEAF_PLACES`] places) adds the keys that it has there:
//!
//! - A range *with* `keys` is answered with `match` and, when it is false, with exact lists of both kinds. A key that
//!   the origin has with the same content under another place (another ledger or sequence number of the same device,
//!   such as after a ledger was salvaged) is not missing: the origin takes over the device's place for it. A key that
//!   it has with other content is `missing`; sent again it is answered `conflict`.
//! - A range *without* `keys` that differs is answered `match: false` without lists, except in a leaf of
//!   which the origin can tell all the same: with a `count` of 0 all that it has there is `unknown`, and a single order
//!   that only the origin has is found by the difference of the sums.
//!
//! `keys` is an addition: an origin that knows only the contract ignores it. Whatever lists such an origin gives are
//! honoured; when a range of one place (`from_seq` = `to_seq`), in which the device has an order, does not match and
//! has no list at all, the device takes that order as missing.
//!
//! What is `unknown` to the digest need not be unknown to the device: an order whose answer got lost is at the origin
//! and still pending on the device. A device reports only keys of which it has no record. It asks only about ranges of
//! which it still has every order that this origin answered for; what was deleted by age is not asked about.

use crate::encoding::{hex, sha256};
use crate::{DeviceId, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most ranges in one request.
pub const MAX_RANGES: usize = 256;
/// A range of so many places or fewer is a leaf: it may carry keys. A wider one that differs is narrowed down by the
/// device.
pub const LEAF_PLACES: u64 = 256;
/// Most keys in one request, over all its ranges.
pub const MAX_KEYS: usize = 4096;
/// Largest sequence number, on all sides: what JSON's numbers hold exactly.
pub const MAX_SEQ: u64 = 1 << 53;

/// Σ SHA-256(key ∥ 0x00 ∥ sha256 of the body) mod 2^256, over a set of orders. On the wire: 64 lower-case hexadecimal
/// digits, big-endian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Adds one order.
    pub fn add(&mut self, key: &str, body_sha256: &[u8; 32]) {
        let mut text = Vec::with_capacity(key.len() + 33);
        text.extend_from_slice(key.as_bytes());
        text.push(0);
        text.extend_from_slice(body_sha256);
        let term = sha256(&text);
        let mut carry = 0_u16;
        for (sum, byte) in self.0.iter_mut().zip(term).rev() {
            let total = u16::from(*sum) + u16::from(byte) + carry;
            *sum = total.to_be_bytes()[1];
            carry = total >> 8;
        }
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = crate::encoding::sha256_from_hex(&text);
        digits.map(Self).ok_or_else(|| serde::de::Error::custom("a digest is 64 hexadecimal digits"))
    }
}

/// What a device asks: the orders that this origin answered `settled` or `duplicate`, range by range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileRequest {
    /// The device.
    pub device: DeviceId,
    /// UUID of its ledger; sequence numbers belong to one ledger.
    pub ledger: String,
    /// At most [`MAX_RANGES`], none overlapping another.
    pub ranges: Vec<RangeDigest>,
}

/// What the device has in one range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDigest {
    /// First place, included.
    pub from_seq: u64,
    /// Last place, included.
    pub to_seq: u64,
    /// Orders in it.
    pub count: u64,
    /// Their digest.
    pub digest: Digest,
    /// The orders themselves, `count` of them, each once; only in a leaf. Absent: the sum alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<KeyDigest>>,
}

/// One order of a leaf, as the device has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyDigest {
    /// Its place in the ledger.
    pub seq: u64,
    /// Idempotency key.
    pub key: String,
    /// Lower-case hex of the SHA-256 of the body.
    pub sha256: String,
}

/// What the origin answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileAnswer {
    /// One per range of the request.
    pub ranges: Vec<RangeVerdict>,
    /// The origin's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_time: Option<Timestamp>,
}

/// What the origin says of one range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeVerdict {
    /// First place, included.
    pub from_seq: u64,
    /// Last place, included.
    pub to_seq: u64,
    /// Whether both have the same orders.
    #[serde(rename = "match")]
    pub matches: bool,
    /// Keys that the origin lacks, or has with other content; the device sends these orders again. Absent when the
    /// origin cannot tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<String>>,
    /// Keys that the origin has and the range of the device has not. Absent when the origin cannot tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(orders: &[(&str, [u8; 32])]) -> Digest {
        let mut digest = Digest::default();
        orders.iter().for_each(|(key, sha256)| digest.add(key, sha256));
        digest
    }

    #[test]
    fn a_digest_is_the_sum_of_the_hashes_of_key_zero_and_body_hash() {
        // Computed with Python: sum of int.from_bytes(sha256(key + b"\0" + sha256(body))) modulo 2^256.
        let orders = [("A-1", sha256(b"{}")), ("A-2", sha256(b"{\"a\":1}")), ("A-3", sha256(b"[]"))];
        assert_eq!(
            serde_json::to_value(digest(&orders)).unwrap(),
            "c48c1bb5e6e9b88ee23b5710971b462f7511951356749b7bc46aadcafb050354"
        );
        assert_eq!(serde_json::to_value(Digest::default()).unwrap(), "0".repeat(64));
    }

    #[test]
    fn the_order_of_adding_does_not_matter_and_repeats_do() {
        let (one, two) = (("k1", sha256(b"1")), ("k2", sha256(b"2")));
        assert_eq!(digest(&[one, two]), digest(&[two, one]));
        assert_ne!(digest(&[one, two]), digest(&[one, two, two, two]));
    }

    #[test]
    fn keys_are_an_addition_that_is_not_written_when_absent() {
        let bare = r#"{"from_seq":1,"to_seq":2,"count":0,"digest":"0000000000000000000000000000000000000000000000000000000000000000"}"#;
        let mut range: RangeDigest = serde_json::from_str(bare).unwrap();
        assert_eq!(range.keys, None);
        assert_eq!(serde_json::to_string(&range).unwrap(), bare);
        range.keys = Some(vec![KeyDigest { seq: 2, key: "A-1".into(), sha256: "00".into() }]);
        let written = serde_json::to_value(&range).unwrap();
        assert_eq!(written["keys"], serde_json::json!([{ "seq": 2, "key": "A-1", "sha256": "00" }]));
    }

    #[test]
    fn an_answer_says_match_on_the_wire() {
        let answer: ReconcileAnswer =
            serde_json::from_str(r#"{"ranges":[{"from_seq":1,"to_seq":9,"match":false,"missing":["a"]}]}"#)
                .unwrap();
        assert_eq!(answer.ranges[0].missing.as_deref(), Some(&["a".to_owned()][..]));
        assert!(!answer.ranges[0].matches && answer.ranges[0].unknown.is_none());
    }
}
