//! Messages as bytes: the envelope, its numbering, and the shapes of `data` that only the relay writes.
//!
//! State, events and replies arrive as JSON text and are spliced in unparsed, so that the digest of a state is the
//! digest of exactly these bytes.

use samovar_wire::mqtt::{Birth, Channel, Envelope, Metrics, Online};
use samovar_wire::{Timestamp, encoding};
use serde::Serialize;
use serde_json::value::RawValue;
use std::sync::atomic::{AtomicU64, Ordering};

/// The whole reported state as JSON, with its digest.
#[derive(Debug, Clone)]
pub struct StateDocument {
    json: Box<RawValue>,
    sha256: String,
}

impl StateDocument {
    /// Takes a state that is JSON already.
    #[must_use]
    pub fn new(json: Box<RawValue>) -> Self {
        let sha256 = encoding::hex(&encoding::sha256(json.get().as_bytes()));
        Self { json, sha256 }
    }

    /// Writes a state as JSON.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn of(state: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(state).map(Self::new)
    }

    /// The JSON text.
    #[must_use]
    pub fn json(&self) -> &RawValue {
        &self.json
    }

    /// SHA-256 of the JSON text, lower-case hex.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// What a birth says beside the nonce, which is the relay's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BirthFacts {
    /// The operating system's boot.
    pub boot_id: String,
    /// Version of the agent.
    pub version: String,
    /// What this agent can do.
    pub capabilities: Vec<String>,
    /// Version of the route table in force.
    pub route_table: Option<u64>,
    /// Revision of the desired state applied last.
    pub config_revision: u64,
}

/// The `data` of `up/state` with the state spliced in; same fields as `samovar_wire::mqtt::StateReport`.
#[derive(Serialize)]
struct StateReport<'a> {
    sha256: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a RawValue>,
}

/// The last number given. An epoch is one run of the process, and a relay that is started anew within it (another
/// broker, another identity) goes on counting: consumers take a lower number for an older message.
static LAST_SEQ: AtomicU64 = AtomicU64::new(0);

/// Numbers and wraps the messages of one epoch.
#[derive(Debug)]
pub(super) struct Envelopes {
    epoch: u64,
}

impl Envelopes {
    pub(super) const fn new(epoch: u64) -> Self {
        Self { epoch }
    }

    /// What the broker says for us when we are gone. It is older than anything this epoch says itself: `seq` 0.
    pub(super) fn will(&self, at: Timestamp) -> serde_json::Result<Vec<u8>> {
        self.write(0, Channel::Online, at, &Online { online: false, epoch: self.epoch, birth: None })
    }

    pub(super) fn offline(&self, at: Timestamp) -> serde_json::Result<Vec<u8>> {
        self.wrap(Channel::Online, at, &Online { online: false, epoch: self.epoch, birth: None })
    }

    pub(super) fn birth(
        &self,
        at: Timestamp,
        facts: &BirthFacts,
        nonce: &str,
        connected_at: Timestamp,
    ) -> serde_json::Result<Vec<u8>> {
        let birth = Birth {
            boot_id: facts.boot_id.clone(),
            version: facts.version.clone(),
            nonce: nonce.to_owned(),
            capabilities: facts.capabilities.clone(),
            route_table: facts.route_table,
            config_revision: facts.config_revision,
            connected_at: Some(connected_at),
        };
        self.wrap(Channel::Online, at, &Online { online: true, epoch: self.epoch, birth: Some(birth) })
    }

    pub(super) fn state(&self, at: Timestamp, state: &StateDocument) -> serde_json::Result<Vec<u8>> {
        self.wrap(Channel::State, at, &StateReport { sha256: &state.sha256, state: Some(&state.json) })
    }

    pub(super) fn beat(&self, at: Timestamp, state: &StateDocument) -> serde_json::Result<Vec<u8>> {
        self.wrap(Channel::State, at, &StateReport { sha256: &state.sha256, state: None })
    }

    pub(super) fn metrics(&self, at: Timestamp, metrics: &Metrics) -> serde_json::Result<Vec<u8>> {
        self.wrap(Channel::Metrics, at, metrics)
    }

    /// A message whose `data` is JSON text already.
    pub(super) fn raw(
        &self,
        channel: Channel,
        at: Timestamp,
        data: &RawValue,
    ) -> serde_json::Result<Vec<u8>> {
        self.wrap(channel, at, data)
    }

    fn wrap<T: Serialize + ?Sized>(
        &self,
        channel: Channel,
        at: Timestamp,
        data: &T,
    ) -> serde_json::Result<Vec<u8>> {
        let seq = LAST_SEQ.fetch_add(1, Ordering::Relaxed) + 1;
        self.write(seq, channel, at, data)
    }

    fn write<T: Serialize + ?Sized>(
        &self,
        seq: u64,
        channel: Channel,
        at: Timestamp,
        data: &T,
    ) -> serde_json::Result<Vec<u8>> {
        let id = uuid::Uuid::now_v7().to_string();
        let kind = channel.message_type().to_owned();
        serde_json::to_vec(&Envelope { v: 1, id, at, epoch: self.epoch, seq, kind, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use samovar_wire::mqtt::StateReport as WireStateReport;
    use serde_json::Value;

    fn state() -> StateDocument {
        StateDocument::of(&serde_json::json!({"line": "up", "orders": {"pending": 3}})).unwrap()
    }

    #[test]
    fn seq_grows_with_each_message_also_of_the_next_relay_and_the_will_stays_before_all_of_them() {
        let at = Timestamp::from_millis(1);
        let seq = |bytes: Vec<u8>| serde_json::from_slice::<Envelope<Value>>(&bytes).unwrap().seq;
        let envelopes = Envelopes::new(17);
        let birth = seq(envelopes.birth(at, &BirthFacts::default(), "n", at).unwrap());
        let state = seq(envelopes.state(at, &state()).unwrap());
        let next = seq(Envelopes::new(17).offline(at).unwrap());
        assert!(0 < birth && birth < state && state < next);
        assert_eq!(seq(envelopes.will(at).unwrap()), 0);
    }

    #[test]
    fn the_will_carries_nothing_but_its_epoch() {
        let will = Envelopes::new(17).will(Timestamp::from_millis(1)).unwrap();
        let will: Envelope<Value> = serde_json::from_slice(&will).unwrap();
        assert_eq!(will.kind, "samovar.online.v1");
        assert_eq!(will.data, serde_json::json!({"online": false, "epoch": 17}));
    }

    #[test]
    fn a_state_is_spliced_in_with_the_digest_of_its_own_bytes_and_a_beat_carries_only_the_digest() {
        let envelopes = Envelopes::new(1);
        let at = Timestamp::from_millis(1);
        let text = String::from_utf8(envelopes.state(at, &state()).unwrap()).unwrap();
        assert!(text.contains(state().json().get()));
        let read: Envelope<WireStateReport> = serde_json::from_str(&text).unwrap();
        assert_eq!(read.data.sha256, state().sha256());
        let beat: Envelope<WireStateReport> =
            serde_json::from_slice(&envelopes.beat(at, &state()).unwrap()).unwrap();
        assert_eq!((beat.data.sha256.as_str(), beat.data.state), (state().sha256(), None));
    }
}
