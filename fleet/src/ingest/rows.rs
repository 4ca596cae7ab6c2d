//! Between the rows of the database and what [`super::fold`] works on.

use super::entity::{device_event, device_metric, device_status, device_stream};
use super::fold::{Device, Held, Stream};
use super::message::Message;
use samovar_wire::Timestamp;
use samovar_wire::mqtt::Event;
use sea_orm::ActiveValue::Set;

/// Reports of numbers that are kept of each device: the last two hours, at one a minute.
const METRIC_SLOTS: i64 = 120;

/// A stored device; an empty one when it was activated anew since.
pub(super) fn device(row: device_status::Model, activation: i64) -> Device {
    if row.activation != activation {
        return Device::default();
    }
    Device {
        online: row.online,
        since: row.since,
        epoch: row.epoch,
        seq: row.seq,
        birth: (row.birth_seq, row.birth_at),
        connected_at: row.connected_at,
        state_place: (row.state_epoch, row.state_seq),
        state: row.state,
        state_sha256: row.state_sha256,
        reported_at: row.reported_at,
        last_seen: row.last_seen,
        version: row.version,
        nonce: row.nonce,
        boot_id: row.boot_id,
        capabilities: row.capabilities,
        route_table: row.route_table,
        config_revision: row.config_revision,
    }
}

/// A device as it is stored.
pub(super) fn status_row(name: &str, activation: i64, device: Device) -> device_status::ActiveModel {
    device_status::ActiveModel {
        device: Set(name.to_owned()),
        activation: Set(activation),
        online: Set(device.online),
        since: Set(device.since),
        epoch: Set(device.epoch),
        seq: Set(device.seq),
        birth_seq: Set(device.birth.0),
        birth_at: Set(device.birth.1),
        connected_at: Set(device.connected_at),
        state_epoch: Set(device.state_place.0),
        state_seq: Set(device.state_place.1),
        state: Set(device.state),
        state_sha256: Set(device.state_sha256),
        reported_at: Set(device.reported_at),
        last_seen: Set(device.last_seen),
        version: Set(device.version),
        nonce: Set(device.nonce),
        boot_id: Set(device.boot_id),
        capabilities: Set(device.capabilities),
        route_table: Set(device.route_table),
        config_revision: Set(device.config_revision),
    }
}

/// A stored stream.
pub(super) fn stream(row: &device_stream::Model) -> Stream {
    let gap = row.gap_start.zip(row.gap_seen).zip(row.gap_last);
    // A row of before this was remembered has no last: the device begins there again.
    let held = gap.map(|((first, seen), last)| Held {
        first,
        last,
        seen,
        place: (row.gap_epoch.unwrap_or(0), row.gap_seq.unwrap_or(0)),
    });
    Stream { up_to: row.up_to, held }
}

/// A stream as it is stored.
pub(super) fn stream_row(
    name: &str,
    activation: i64,
    key: &str,
    stream: &Stream,
) -> device_stream::ActiveModel {
    device_stream::ActiveModel {
        device: Set(name.to_owned()),
        activation: Set(activation),
        stream: Set(key.to_owned()),
        up_to: Set(stream.up_to),
        gap_start: Set(stream.held.map(|held| held.first)),
        gap_seen: Set(stream.held.map(|held| held.seen)),
        gap_last: Set(stream.held.map(|held| held.last)),
        gap_epoch: Set(stream.held.map(|held| held.place.0)),
        gap_seq: Set(stream.held.map(|held| held.place.1)),
    }
}

/// An event as it is stored.
pub(super) fn event_row(
    message: &Message,
    activation: i64,
    stream: &str,
    event: &Event,
    now: Timestamp,
) -> device_event::ActiveModel {
    device_event::ActiveModel {
        position: sea_orm::ActiveValue::NotSet,
        device: Set(message.device.as_str().to_owned()),
        activation: Set(activation),
        stream: Set(stream.to_owned()),
        seq: Set(i64::try_from(event.seq).unwrap_or(i64::MAX)),
        epoch: Set(message.epoch),
        at: Set(event.at.millis()),
        kind: Set(event.kind.clone()),
        data: Set(event.data.to_string()),
        received_at: Set(now.millis()),
    }
}

/// A report of numbers as it is stored, over the one of two hours before.
pub(super) fn metric_row(message: &Message, numbers: &str, now: Timestamp) -> device_metric::ActiveModel {
    device_metric::ActiveModel {
        device: Set(message.device.as_str().to_owned()),
        slot: Set(now.millis() / 60_000 % METRIC_SLOTS),
        at: Set(message.at.millis()),
        received_at: Set(now.millis()),
        numbers: Set(numbers.to_owned()),
    }
}
