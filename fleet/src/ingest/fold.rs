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
//! `(epoch, seq)` wins and a repeat changes nothing. A will carries the time of the connect that it belongs to: one from
//! before the previous birth belongs to a connection that has since been replaced, and is ignored.

use super::message::{Body, Message};
use samovar_wire::Timestamp;
use samovar_wire::mqtt::Birth;
use serde_json::Value;
use std::time::Duration;

/// Presence ends when three reports in a row, one a minute, did not come.
pub const LEASE: Duration = Duration::from_secs(3 * 60 + 15);

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
    /// The device's clock at the birth before it, of the same run.
    pub previous_birth_at: i64,
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
            device.previous_birth_at = 0;
        }
        (device.epoch, device.seq) = (message.epoch, message.seq);
        device.last_seen = now.millis();
        set_online(device, true, now);
    }
    let reaction = match &message.body {
        Body::Birth(birth) => born(device, message, birth),
        Body::State { sha256, json } => reported(device, message, sha256, json),
        Body::Beat { sha256 } => beat(device, message, sha256),
        Body::Will | Body::Events(_) | Body::Metrics(_) | Body::Reply => None,
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
    let replaced = message.epoch == device.epoch && message.at.millis() < device.previous_birth_at;
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
    device.previous_birth_at = device.birth.1;
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
    /// Everything up to and including this one is stored.
    pub up_to: i64,
    /// Where a batch began beyond the next one expected, and when that was first seen, milliseconds.
    pub gap: Option<(i64, i64)>,
}

/// How long a gap must stand before the sender is believed that there is nothing in it.
const GAP_PATIENCE: Duration = Duration::from_secs(3);

/// A batch `first..=last` of a stream has been stored. `known` is whether anything of the stream was known before.
///
/// What is acknowledged is forgotten by the device, so a batch that overtook the one before it must not be acknowledged:
/// the device is told how far its stream really is and sends again from there. When it then still begins beyond the gap,
/// there is nothing to fill it with (its outbox was full and dropped its oldest), and the stream goes on.
pub fn batch(stream: &mut Stream, known: bool, first: i64, last: i64, now: Timestamp) -> i64 {
    let continues = !known || first <= stream.up_to.saturating_add(1);
    let believed = stream.gap.is_some_and(|(start, seen)| {
        start == first && now.since(Timestamp::from_millis(seen)) >= GAP_PATIENCE
    });
    if continues || believed {
        stream.up_to = stream.up_to.max(last);
        if stream.gap.is_some_and(|(start, _)| start <= stream.up_to) {
            stream.gap = None;
        }
    } else if stream.gap.is_none_or(|(start, _)| first < start) {
        stream.gap = Some((first, now.millis()));
    }
    stream.up_to
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
