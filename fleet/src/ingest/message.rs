//! A message from a device, read: topic and payload in, a checked [`Message`] out. Pure.
//!
//! Whoever can publish may send anything, so every number fits a database and every text that is stored is short and
//! free of control characters. What cannot be read is refused with a reason and never stops the stream.

use samovar_wire::figures::{EDGES_MS, ENDPOINTS_MAX, EndpointFigures, Timing};
use samovar_wire::mqtt::{
    Birth, Channel, Envelope, Event, EventBatch, MAX_MESSAGE_BYTES, Metrics, Online, Topic,
};
use samovar_wire::{DeviceId, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// Events of one batch.
const MAX_EVENTS: usize = 1000;
/// Numbers in one report of metrics.
const MAX_METRICS: usize = 500;
/// Durations of one kind that one report may count; a device that was cut off for days reports them at once.
const MAX_COUNT: u64 = 10_000_000;
/// Characters of a short text, such as a version.
const MAX_WORD: usize = 128;

/// One message, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Whose it is, from the topic (which the broker guards).
    pub device: DeviceId,
    /// The agent's run.
    pub epoch: i64,
    /// Its place in that run.
    pub seq: i64,
    /// The device's clock.
    pub at: Timestamp,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// The device is there.
    Birth(Birth),
    /// The broker says that the device is gone.
    Will,
    /// The whole state, as the JSON text that was sent.
    State {
        /// The device's digest of it.
        sha256: String,
        /// The document.
        json: String,
    },
    /// Nothing changed since the state with this digest.
    Beat {
        /// The digest.
        sha256: String,
    },
    /// Events of one stream, ascending.
    Events(EventBatch),
    /// Numbers, as JSON text, and what was measured of endpoints.
    Metrics(String, Vec<EndpointFigures>),
    /// An answer to a command.
    Reply,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Retained messages are cleared by empty ones; not an error.
    #[error("it is empty")]
    Empty,
    /// Not a topic of this environment, or not from a device.
    #[error("its topic is not one that devices of this environment report on")]
    Topic,
    /// Longer than the contract allows.
    #[error("it has {0} bytes; {MAX_MESSAGE_BYTES} is the most")]
    TooLarge(usize),
    /// Not the JSON that belongs on its topic.
    #[error("it is not the JSON that belongs on its topic")]
    Json(#[source] serde_json::Error),
    /// The envelope is of a version that this server does not know.
    #[error("its envelope has version {0}")]
    Version(u32),
    /// The type does not belong on this topic.
    #[error("its type does not belong on its topic")]
    Kind,
    /// A value outside of what can be kept.
    #[error("`{0}` has a value that cannot be kept")]
    Value(&'static str),
}

/// State as it is sent, with the document left as it is.
#[derive(Deserialize)]
struct RawState {
    sha256: String,
    #[serde(default)]
    state: Option<Box<RawValue>>,
}

/// Reads one message of `environment`.
///
/// # Errors
/// When it is not one that this server takes.
pub fn read(environment: &str, topic: &str, payload: &[u8]) -> Result<Message, Refused> {
    let topic = Topic::parse(topic).filter(|topic| topic.environment == environment).ok_or(Refused::Topic)?;
    if payload.is_empty() {
        return Err(Refused::Empty);
    }
    if payload.len() > MAX_MESSAGE_BYTES {
        return Err(Refused::TooLarge(payload.len()));
    }
    let device = topic.device;
    match topic.channel {
        Channel::Online => open(device, topic.channel, payload, online),
        Channel::State => open(device, topic.channel, payload, state),
        Channel::Events => open(device, topic.channel, payload, events),
        Channel::Metrics => open(device, topic.channel, payload, |data: Metrics| metrics(data)),
        Channel::Reply => open(device, topic.channel, payload, |_: Box<RawValue>| Ok(Body::Reply)),
        Channel::Desired | Channel::Command | Channel::Ack => Err(Refused::Topic),
    }
}

fn open<T: DeserializeOwned>(
    device: DeviceId,
    channel: Channel,
    payload: &[u8],
    check: impl FnOnce(T) -> Result<Body, Refused>,
) -> Result<Message, Refused> {
    // The content is parsed apart from its envelope: documents inside are kept as the text that was sent.
    let envelope: Envelope<Box<RawValue>> = serde_json::from_slice(payload).map_err(Refused::Json)?;
    if envelope.v != 1 {
        return Err(Refused::Version(envelope.v));
    }
    if envelope.kind != channel.message_type() {
        return Err(Refused::Kind);
    }
    let data: T = serde_json::from_str(envelope.data.get()).map_err(Refused::Json)?;
    let body = check(data)?;
    let (epoch, seq) = (number("epoch", envelope.epoch)?, number("seq", envelope.seq)?);
    Ok(Message { device, epoch, seq, at: envelope.at, body })
}

fn online(online: Online) -> Result<Body, Refused> {
    if !online.online {
        return Ok(Body::Will);
    }
    let birth = online.birth.ok_or(Refused::Value("data"))?;
    for (name, text) in [("version", &birth.version), ("boot_id", &birth.boot_id), ("nonce", &birth.nonce)] {
        word(name, text)?;
    }
    if birth.capabilities.len() > 100 || birth.capabilities.iter().any(|text| word("", text).is_err()) {
        return Err(Refused::Value("capabilities"));
    }
    number("route_table", birth.route_table.unwrap_or(0))?;
    number("config_revision", birth.config_revision)?;
    Ok(Body::Birth(birth))
}

fn state(state: RawState) -> Result<Body, Refused> {
    if samovar_wire::encoding::sha256_from_hex(&state.sha256).is_none() {
        return Err(Refused::Value("sha256"));
    }
    Ok(match state.state {
        Some(json) if json.get().starts_with('{') => {
            Body::State { sha256: state.sha256, json: json.get().to_owned() }
        }
        Some(_) => return Err(Refused::Value("state")),
        None => Body::Beat { sha256: state.sha256 },
    })
}

fn events(batch: EventBatch) -> Result<Body, Refused> {
    word("stream", &batch.stream)?;
    if batch.events.is_empty() || batch.events.len() > MAX_EVENTS {
        return Err(Refused::Value("events"));
    }
    if !batch.events.is_sorted_by(|one, next| one.seq < next.seq) {
        return Err(Refused::Value("seq"));
    }
    number("kept_from", batch.kept_from.unwrap_or(0))?;
    for Event { seq, kind, .. } in &batch.events {
        number("seq", *seq)?;
        word("kind", kind)?;
    }
    Ok(Body::Events(batch))
}

fn metrics(metrics: Metrics) -> Result<Body, Refused> {
    if metrics.metrics.len() > MAX_METRICS || metrics.metrics.keys().any(|name| word("", name).is_err()) {
        return Err(Refused::Value("metrics"));
    }
    if metrics.endpoints.len() > ENDPOINTS_MAX || !metrics.endpoints.iter().all(is_plausible) {
        return Err(Refused::Value("endpoints"));
    }
    let numbers = serde_json::to_string(&metrics.metrics).map_err(Refused::Json)?;
    Ok(Body::Metrics(numbers, metrics.endpoints))
}

/// Counts that a device can have made in the time between two reports.
fn is_plausible(figures: &EndpointFigures) -> bool {
    let counts = |timing: &Timing| {
        timing.buckets.len() <= EDGES_MS.len() && timing.buckets.iter().all(|n| *n <= MAX_COUNT)
    };
    let named = !figures.host.is_empty() && word("", &figures.host).is_ok();
    named && number("", figures.table_version).is_ok() && counts(&figures.dns) && counts(&figures.request)
}

/// A number that both databases can hold.
fn number(name: &'static str, value: u64) -> Result<i64, Refused> {
    i64::try_from(value).map_err(|_| Refused::Value(name))
}

fn word(name: &'static str, text: &str) -> Result<(), Refused> {
    let good = text.chars().count() <= MAX_WORD && !text.chars().any(char::is_control);
    if good { Ok(()) } else { Err(Refused::Value(name)) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub(in crate::ingest) fn envelope(kind: &str, epoch: u64, seq: u64, data: &Value) -> Vec<u8> {
        let at = Timestamp::from_millis(1_000 * i64::try_from(epoch * 1000 + seq).unwrap());
        json!({ "v": 1, "id": "x", "at": at, "epoch": epoch, "seq": seq, "type": kind, "data": data })
            .to_string()
            .into_bytes()
    }

    fn read_on(channel: &str, payload: &[u8]) -> Result<Message, Refused> {
        read("prod", &format!("samovar/v1/prod/POS-1/{channel}"), payload)
    }

    #[test]
    fn a_birth_a_will_a_state_and_a_beat_are_told_apart() {
        let birth = json!({ "online": true, "epoch": 3, "boot_id": "b", "version": "0.1.0", "nonce": "n",
                            "capabilities": [], "route_table": 7, "config_revision": 2, "new_field": 1 });
        let message = read_on("up/online", &envelope("samovar.online.v1", 3, 1, &birth)).unwrap();
        assert!(matches!(message.body, Body::Birth(ref birth) if birth.route_table == Some(7)));
        let will = read_on(
            "up/online",
            &envelope("samovar.online.v1", 3, 0, &json!({ "online": false, "epoch": 3 })),
        )
        .unwrap();
        assert_eq!((will.body, will.epoch, will.seq), (Body::Will, 3, 0));
        let sha = "ab".repeat(32);
        let state = json!({ "sha256": sha, "state": { "b": 1, "a": 2.50 } });
        let text =
            String::from_utf8(envelope("samovar.state.v1", 3, 2, &state)).unwrap().replace("2.5", "2.50");
        let message = read_on("up/state", text.as_bytes()).unwrap();
        assert!(
            matches!(message.body, Body::State { ref json, .. } if json.contains("2.50")),
            "kept as sent: {message:?}"
        );
        let beat =
            read_on("up/state", &envelope("samovar.state.v1", 3, 3, &json!({ "sha256": sha }))).unwrap();
        assert!(matches!(beat.body, Body::Beat { .. }));
    }

    #[test]
    fn what_does_not_belong_is_refused_with_a_reason() {
        let event = |seq: u64| json!({ "seq": seq, "at": "2026-11-20T00:00:00.000Z", "kind": "k" });
        let events =
            |list: Value| envelope("samovar.events.v1", 1, 1, &json!({ "stream": "events", "events": list }));
        assert!(read_on("up/events", &events(json!([event(1), event(2)]))).is_ok());
        for (payload, why) in [
            (events(json!([event(2), event(1)])), "descending"),
            (events(json!([])), "none"),
            (events(json!([event(u64::MAX)])), "too large a number"),
            (envelope("samovar.state.v1", 1, 1, &json!({})), "another type"),
            (b"{".to_vec(), "broken"),
            (b"[]".to_vec(), "not an envelope"),
            (vec![b' '; MAX_MESSAGE_BYTES + 1], "too large"),
            (Vec::new(), "empty"),
        ] {
            assert!(read_on("up/events", &payload).is_err(), "{why}");
        }
        assert!(matches!(read_on("dn/ack", b"{}"), Err(Refused::Topic)));
        assert!(matches!(read("test", "samovar/v1/prod/POS-1/up/state", b"{}"), Err(Refused::Topic)));
        let control = json!({ "stream": "a\u{0}b", "events": [event(1)] });
        assert!(read_on("up/events", &envelope("samovar.events.v1", 1, 1, &control)).is_err());
        let state = |sha: &str, state: Value| {
            envelope("samovar.state.v1", 1, 1, &json!({ "sha256": sha, "state": state }))
        };
        assert!(read_on("up/state", &state("nonsense", json!({}))).is_err());
        assert!(read_on("up/state", &state(&"ab".repeat(32), json!([1]))).is_err());
    }
}
