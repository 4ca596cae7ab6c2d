//! What may be left out when orders need the database: reports that a later one of the same batch replaces. Pure.
//!
//! The last value wins: a state replaces earlier states and heartbeats, a heartbeat earlier heartbeats, metrics earlier
//! metrics. Births, wills, events and replies are never left out, so nothing is acknowledged that is not stored.

use std::collections::HashMap;

use samovar_wire::DeviceId;

use super::message::{Body, Message};

/// What replaces what.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    State,
    Beat,
    Metrics,
}

fn kind(body: &Body) -> Option<Kind> {
    match body {
        Body::State { .. } => Some(Kind::State),
        Body::Beat { .. } => Some(Kind::Beat),
        Body::Metrics(..) => Some(Kind::Metrics),
        Body::Birth(_) | Body::Will | Body::Events(_) | Body::Reply => None,
    }
}

/// Leaves out what is replaced, and says how many that were.
pub(super) fn replaced(messages: &mut Vec<Message>) -> usize {
    let mut newest: HashMap<(DeviceId, Kind), (i64, i64)> = HashMap::new();
    for message in messages.iter() {
        let Some(kind) = kind(&message.body) else { continue };
        let place = (message.epoch, message.seq);
        let mut replaces = |kind| {
            let newest = newest.entry((message.device.clone(), kind)).or_insert(place);
            *newest = place.max(*newest);
        };
        replaces(kind);
        if kind == Kind::State {
            replaces(Kind::Beat);
        }
    }
    let before = messages.len();
    messages.retain(|message| {
        let Some(kind) = kind(&message.body) else { return true };
        newest
            .get(&(message.device.clone(), kind))
            .is_none_or(|newest| (message.epoch, message.seq) >= *newest)
    });
    before - messages.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use samovar_wire::Timestamp;

    fn message(device: &str, seq: i64, body: Body) -> Message {
        let device = device.parse().unwrap();
        Message { device, epoch: 1, seq, at: Timestamp::from_millis(seq), body }
    }

    fn left(mut messages: Vec<Message>) -> (Vec<(String, i64)>, usize) {
        let dropped = replaced(&mut messages);
        (messages.iter().map(|message| (message.device.to_string(), message.seq)).collect(), dropped)
    }

    fn state() -> Body {
        Body::State { sha256: "a".into(), json: "{}".into() }
    }

    fn beat() -> Body {
        Body::Beat { sha256: "a".into() }
    }

    fn metrics() -> Body {
        Body::Metrics("{}".into(), Vec::new())
    }

    #[test]
    fn of_each_device_the_last_state_and_the_last_metrics_are_left_in_whatever_order_they_came() {
        let (left, dropped) = left(vec![
            message("A", 1, state()),
            message("A", 2, metrics()),
            message("B", 1, state()),
            message("A", 5, state()),
            message("A", 4, metrics()),
            message("A", 3, state()),
        ]);
        assert_eq!(left, [("B".into(), 1), ("A".into(), 5), ("A".into(), 4)]);
        assert_eq!(dropped, 3);
    }

    #[test]
    fn a_heartbeat_never_replaces_the_state_that_it_confirms() {
        let (kept, _) =
            left(vec![message("A", 1, state()), message("A", 2, beat()), message("A", 3, beat())]);
        assert_eq!(kept, [("A".into(), 1), ("A".into(), 3)]);
        assert_eq!(left(vec![message("A", 1, beat()), message("A", 2, state())]).0, [("A".into(), 2)]);
    }

    #[test]
    fn what_must_be_stored_is_never_left_out() {
        let events = |seq| {
            let batch = serde_json::json!({ "stream": "events", "events": [{ "seq": seq, "at": "2026-11-20T00:00:00.000Z", "kind": "k" }] });
            message("A", seq, Body::Events(serde_json::from_value(batch).unwrap()))
        };
        let all =
            vec![message("A", 1, Body::Will), events(2), events(3), message("A", 4, Body::Reply), events(2)];
        assert_eq!(left(all).1, 0);
    }
}
