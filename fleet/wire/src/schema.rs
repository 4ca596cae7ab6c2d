//! JSON schemas of the `data` of every MQTT channel, generated from the types themselves.

use crate::mqtt::{Ack, Channel, Desired, EventBatch, Metrics, Online, StateReport};
use crate::status::DeviceState;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

/// The schema of a channel's `data`; of `desired` that of the signed payload. `None` where the document is another's:
/// commands and replies come with the remote channel.
#[must_use]
pub fn of(channel: Channel) -> Option<Schema> {
    match channel {
        Channel::Online => Some(schema::<Online>()),
        Channel::State => Some(state()),
        Channel::Events => Some(schema::<EventBatch>()),
        Channel::Metrics => Some(schema::<Metrics>()),
        Channel::Desired => Some(schema::<Desired>()),
        Channel::Ack => Some(schema::<Ack>()),
        Channel::Reply | Channel::Command => None,
    }
}

/// Every schema, by the `type` of the envelope.
#[must_use]
pub fn all() -> Value {
    let schemas = Channel::ALL
        .into_iter()
        .filter_map(|channel| Some((channel.message_type().to_owned(), json!(of(channel)?))));
    Value::Object(schemas.collect())
}

fn schema<T: JsonSchema>() -> Schema {
    SchemaGenerator::default().into_root_schema_for::<T>()
}

/// The state travels as a document whose digest is told, so its type is not in the report's own.
fn state() -> Schema {
    let mut generator = SchemaGenerator::default();
    let device = generator.subschema_for::<DeviceState>();
    let mut report = generator.into_root_schema_for::<StateReport>();
    if let Some(state) = report.pointer_mut("/properties/state") {
        *state = json!(device);
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_of_this_version_has_a_schema_that_names_its_fields() {
        let all = all();
        assert_eq!(all.as_object().unwrap().len(), 6);
        assert!(all["samovar.online.v1"].to_string().contains("boot_id"));
        assert!(all["samovar.state.v1"].to_string().contains("oldest_pending_at"));
        assert!(all["samovar.state.v1"]["$defs"]["DeviceState"].is_object());
        assert!(all["samovar.ack.v1"]["properties"]["up_to"].is_object());
    }
}
