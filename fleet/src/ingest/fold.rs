//! One device's row, and how each message changes it. Pure.
//!
//! ```text
//!            birth (newer epoch, seq)                will of this run and connection · lease over
//!  unknown ──────────────────────────► online ──────────────────────────────────────────────────► offline
//!                                        ▲                                                            │
//!                                        └──────── birth · any newer message of the same run ◄────────┘
//! ```
//!
//! Messages of one device may arrive in any order and more than once (shared subscriptions, redelivery), so the newest
//! `(epoch, seq)` wins and a repeat changes nothing. A will carries the time of the connect that it belongs to, and a
//! birth names that connect: a will of an earlier connect has since been replaced, and is ignored. The births of one
//! connection may be many, so the time of a birth itself says little.

use super::message::{Body, Message};
use samovar_wire::Timestamp;
use samovar_wire::mqtt::Birth;
use serde_json::Value;
use std::time::Duration;

/// Presence ends when three reports in a row, one a minute, did not come.
pub const LEASE: Duration = Duration::from_secs(3 * 60 + 15);

/// A birth follows its connect within this time. For devices that do not say which connection a birth belongs to.
const BORN_WITHIN: Duration = Duration::from_secs(60);

/// What is known of one device's live side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Whether it is there.
    pub online: bool,
    /// Since when `online` has been what it is, milliseconds.
    pub since: i64,
    /// The newest run seen.
    pub epoch: i64,
    /// The newest message of that run.
    pub seq: i64,
    /// The newest birth of that run: its place and the device's clock at it.
    pub birth: (i64, i64),
    /// The device's clock when the connection of that birth was made: a will from before belongs to another one.
    pub connected_at: i64,
    /// Place of the newest state.
    pub state_place: (i64, i64),
    /// The newest state, as sent.
    pub state: Option<String>,
    /// Its digest.
    pub state_sha256: Option<String>,
    /// The device's clock when it last confirmed its state.
    pub reported_at: i64,
    /// Our clock at the last fresh message.
    pub last_seen: i64,
    /// Version of the agent.
    pub version: Option<String>,
    /// What a command must carry.
    pub nonce: Option<String>,
    /// The operating system's boot.
    pub boot_id: Option<String>,
    /// What the agent can do, as a JSON array.
    pub capabilities: Option<String>,
    /// Version of the route table in force there.
    pub route_table: Option<i64>,
    /// Revision of the desired state applied there.
    pub config_revision: i64,
}

/// What is to be done after the row has been stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Ask for the whole state.
    Resync,
    /// Compare what it has with what it should have.
    CheckDesired,
}

/// Applies a message. Events, metrics and replies count as signs of life only; they are stored elsewhere.
/// Returns what it calls for and whether anything that people see has changed.
pub fn apply(device: &mut Device, message: &Message, now: Timestamp) -> (Option<Reaction>, bool) {
    if message.body == Body::Will {
        return (None, will(device, message, now));
    }
    let before = (device.online, device.state_sha256.clone(), device.route_table);
    let fresh = (message.epoch, message.seq) > (device.epoch, device.seq);
    if fresh {
        if message.epoch > device.epoch {
            device.birth = (-1, 0);
            device.connected_at = 0;
        }
        (device.epoch, device.seq) = (message.epoch, message.seq);
        device.last_seen = now.millis();
        set_online(device, true, now);
    }
    let reaction = match &message.body {
        Body::Birth(birth) => born(device, message, birth),
        Body::State { sha256, json } => reported(device, message, sha256, json),
        Body::Beat { sha256 } => beat(device, message, sha256),
        Body::Will | Body::Events(_) | Body::Metrics(..) | Body::Reply => None,
    };
    (reaction, before != (device.online, device.state_sha256.clone(), device.route_table))
}

/// Ends the presence of a device that has not been heard of for [`LEASE`]. `listening_since` is when this server began
/// to listen: silence before that says nothing.
pub fn expire(device: &mut Device, listening_since: Timestamp, now: Timestamp) -> bool {
    let heard = Timestamp::from_millis(device.last_seen.max(listening_since.millis()));
    if !device.online || now.since(heard) <= LEASE {
        return false;
    }
    set_online(device, false, now);
    true
}

fn set_online(device: &mut Device, online: bool, now: Timestamp) {
    if device.online != online || device.since == 0 {
        device.online = online;
        device.since = now.millis();
    }
}

fn will(device: &mut Device, message: &Message, now: Timestamp) -> bool {
    let replaced = message.epoch == device.epoch && message.at.millis() < device.connected_at;
    // A will never begins a run: the last one of a device's former life may come after it was activated anew.
    if message.epoch < device.epoch || replaced || !device.online {
        return false;
    }
    set_online(device, false, now);
    true
}

fn born(device: &mut Device, message: &Message, birth: &Birth) -> Option<Reaction> {
    if message.epoch < device.epoch || message.seq <= device.birth.0 {
        return None;
    }
    device.connected_at =
        birth.connected_at.unwrap_or_else(|| crate::clock::earlier(message.at, BORN_WITHIN)).millis();
    device.birth = (message.seq, message.at.millis());
    device.version = Some(birth.version.clone());
    device.nonce = Some(birth.nonce.clone());
    device.boot_id = Some(birth.boot_id.clone());
    device.capabilities = serde_json::to_string(&birth.capabilities).ok();
    device.route_table = birth.route_table.and_then(|version| i64::try_from(version).ok());
    device.config_revision = i64::try_from(birth.config_revision).unwrap_or(i64::MAX);
    Some(Reaction::CheckDesired)
}

fn reported(device: &mut Device, message: &Message, sha256: &str, json: &str) -> Option<Reaction> {
    if (message.epoch, message.seq) <= device.state_place {
        return None;
    }
    device.state_place = (message.epoch, message.seq);
    device.reported_at = message.at.millis();
    device.state_sha256 = Some(sha256.to_owned());
    device.state = Some(json.to_owned());
    let state: Value = serde_json::from_str(json).unwrap_or_default();
    if let Some(version) = state["version"].as_str() {
        device.version = Some(version.chars().filter(|c| !c.is_control()).take(128).collect());
    }
    let applied = (device.route_table, device.config_revision);
    device.route_table = state["route_table"]["version"].as_i64().or(device.route_table);
    device.config_revision = state["config_revision"].as_i64().unwrap_or(device.config_revision);
    (applied != (device.route_table, device.config_revision)).then_some(Reaction::CheckDesired)
}

fn beat(device: &mut Device, message: &Message, sha256: &str) -> Option<Reaction> {
    if (message.epoch, message.seq) <= device.state_place {
        return None;
    }
    if device.state_sha256.as_deref() != Some(sha256) {
        return Some(Reaction::Resync);
    }
    device.state_place = (message.epoch, message.seq);
    device.reported_at = message.at.millis();
    None
}

/// How far a device's stream of events is durable here, without a gap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stream {
    /// Everything up to and including this one is stored, or will never come.
    pub up_to: i64,
    /// The lowest run of events that is stored beyond what is missing.
    pub held: Option<Held>,
}

/// Events that are stored, with some before them that are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The first of them.
    pub first: i64,
    /// The last, with nothing between that the device still has.
    pub last: i64,
    /// Our clock when the device first began a batch there, milliseconds.
    pub seen: i64,
    /// The message that began there: its epoch and seq.
    pub place: (i64, i64),
}

/// One batch of a stream, as numbers.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Its first event.
    pub first: i64,
    /// Its last event; between them is everything that the device has.
    pub last: i64,
    /// What is missing below this number will never come, if the device says so.
    pub kept_from: Option<i64>,
    /// The message: its epoch and seq.
    pub place: (i64, i64),
}

/// How long a gap must stand before a sender that does not say what it keeps is believed to have nothing in it.
const GAP_PATIENCE: Duration = Duration::from_secs(3);

/// A batch of a stream has been stored; gives how far the stream may be acknowledged.
///
/// What is acknowledged is forgotten by the device, so nothing is acknowledged past an event that may still come: a
/// batch may overtake the one before it on its way through another server, the very first batches too. Numbers that are
/// missing for good (a device counts from its clock, skips numbers after a crash, drops its oldest events when it is
/// full) are told apart by what the device says it keeps. One that does not say is believed when it begins a *new*
/// message at the same place again after [`GAP_PATIENCE`]: the acknowledgement was held back, so it would have begun
/// earlier if it had anything there. A message that the broker delivers again proves nothing.
pub fn batch(stream: &mut Stream, span: Span, now: Timestamp) -> i64 {
    if let Some(kept_from) = span.kept_from {
        stream.up_to = stream.up_to.max(kept_from.min(span.first).saturating_sub(1));
    }
    let believed = span.kept_from.is_none()
        && stream.held.is_some_and(|held| {
            held.first == span.first
                && span.place > held.place
                && now.since(Timestamp::from_millis(held.seen)) >= GAP_PATIENCE
        });
    if believed || span.first <= stream.up_to.saturating_add(1) {
        stream.up_to = stream.up_to.max(span.last);
    } else {
        stream.held = Some(hold(stream.held, span, now));
    }
    if let Some(held) = stream.held.filter(|held| held.first <= stream.up_to.saturating_add(1)) {
        stream.up_to = stream.up_to.max(held.last);
        stream.held = None;
    }
    stream.up_to
}

/// Only the lowest run is remembered: the device sends the rest again.
fn hold(held: Option<Held>, span: Span, now: Timestamp) -> Held {
    let new = Held { first: span.first, last: span.last, seen: now.millis(), place: span.place };
    match held {
        None => new,
        Some(held) => {
            let touches =
                span.first <= held.last.saturating_add(1) && held.first <= span.last.saturating_add(1);
            let lowest = if span.first < held.first { new } else { held };
            let last = if touches { held.last.max(span.last) } else { lowest.last };
            Held { last, ..lowest }
        }
    }
}

#[cfg(test)]
#[path = "fold_streams.rs"]
mod streams;
#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
