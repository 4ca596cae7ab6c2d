//! Stories of one device, told as messages.

use super::super::message::{self, tests::envelope};
use super::*;
use serde_json::json;

const T: fn(i64) -> Timestamp = |seconds| Timestamp::from_millis(seconds * 1000);

fn at(mut message: Message, seconds: i64) -> Message {
    message.at = T(seconds);
    message
}

fn read(channel: &str, kind: &str, epoch: u64, seq: u64, data: &Value) -> Message {
    message::read("prod", &format!("samovar/v1/prod/POS-1/{channel}"), &envelope(kind, epoch, seq, data))
        .unwrap()
}

fn birth(epoch: u64, seq: u64, clock: i64) -> Message {
    let data = json!({ "online": true, "epoch": epoch, "boot_id": "b", "version": "0.1.0", "nonce": "n",
                       "capabilities": ["diagnose"], "route_table": 7, "config_revision": 2 });
    at(read("up/online", "samovar.online.v1", epoch, seq, &data), clock)
}

fn connected(mut message: Message, clock: i64) -> Message {
    if let Body::Birth(birth) = &mut message.body {
        birth.connected_at = Some(T(clock));
    }
    message
}

fn will(epoch: u64, clock: i64) -> Message {
    at(read("up/online", "samovar.online.v1", epoch, 0, &json!({ "online": false, "epoch": epoch })), clock)
}

fn sha(letter: &str) -> String {
    letter.repeat(64)
}

fn state(epoch: u64, seq: u64, letter: &str) -> Message {
    let data = json!({ "sha256": sha(letter), "state": { "version": "0.2.0", "route_table": { "version": 8 }, "x": letter } });
    read("up/state", "samovar.state.v1", epoch, seq, &data)
}

fn beat(epoch: u64, seq: u64, letter: &str) -> Message {
    read("up/state", "samovar.state.v1", epoch, seq, &json!({ "sha256": sha(letter) }))
}

fn told(messages: &[Message]) -> Device {
    let mut device = Device::default();
    for (second, message) in (100..).zip(messages) {
        apply(&mut device, message, T(second));
    }
    device
}

#[test]
fn a_birth_makes_a_device_present_and_its_will_ends_that() {
    let mut device = told(&[birth(3, 1, 50)]);
    assert!(device.online);
    assert_eq!(
        (device.since, device.version.as_deref(), device.route_table),
        (100_000, Some("0.1.0"), Some(7))
    );
    let (_, changed) = apply(&mut device, &will(3, 49), T(200));
    assert!(changed && !device.online);
    assert_eq!(device.since, 200_000);
}

#[test]
fn a_will_of_an_older_run_or_of_a_replaced_connection_is_ignored() {
    let mut device = told(&[birth(3, 1, 50), birth(4, 1, 60)]);
    apply(&mut device, &will(3, 49), T(200));
    assert!(device.online, "an older run");
    let mut device = told(&[connected(birth(3, 1, 50), 49), connected(birth(3, 9, 70), 69)]);
    apply(&mut device, &will(3, 49), T(200));
    assert!(device.online, "the connection before the last");
    apply(&mut device, &will(3, 69), T(200));
    assert!(!device.online, "the last connection");
}

#[test]
fn a_device_born_again_within_its_connection_is_still_ended_by_its_will() {
    let births = [1, 2, 3].map(|seq| connected(birth(3, seq, 50 + 600 * i64::try_from(seq).unwrap()), 49));
    let mut device = told(&births);
    apply(&mut device, &will(3, 48), T(200));
    assert!(device.online, "another connection");
    apply(&mut device, &will(3, 49), T(200));
    assert!(!device.online);
}

#[test]
fn without_the_connection_a_will_is_old_when_it_is_long_before_the_birth() {
    let mut device = told(&[birth(3, 1, 5000), birth(3, 2, 5003), birth(3, 3, 5004)]);
    apply(&mut device, &will(3, 5000 - 3600), T(200));
    assert!(device.online, "an hour before the only birth");
    apply(&mut device, &will(3, 4999), T(200));
    assert!(!device.online);
}

#[test]
fn a_will_of_a_device_never_heard_of_leaves_no_trace() {
    let mut device = Device::default();
    assert_eq!(apply(&mut device, &will(50, 49), T(1)), (None, false));
    assert_eq!(device, Device::default());
}

#[test]
fn any_newer_message_of_the_run_proves_a_will_wrong_but_a_repeat_does_not() {
    let mut device = told(&[birth(3, 1, 50), state(3, 2, "a"), will(3, 49)]);
    apply(&mut device, &state(3, 2, "a"), T(200));
    assert!(!device.online, "a redelivery");
    apply(&mut device, &beat(3, 3, "a"), T(201));
    assert!(device.online);
}

#[test]
fn the_newest_state_wins_in_whatever_order_it_comes() {
    for order in [
        [state(3, 2, "a"), state(3, 5, "b"), state(2, 99, "c")],
        [state(2, 99, "c"), state(3, 5, "b"), state(3, 2, "a")],
    ] {
        let device = told(&order);
        assert_eq!(device.state_sha256, Some(sha("b")));
        assert_eq!((device.epoch, device.seq, device.route_table), (3, 5, Some(8)));
        assert_eq!(device.version.as_deref(), Some("0.2.0"));
    }
}

#[test]
fn a_beat_of_an_unknown_state_asks_for_the_whole() {
    let mut device = Device::default();
    assert_eq!(apply(&mut device, &beat(3, 1, "a"), T(1)).0, Some(Reaction::Resync));
    apply(&mut device, &state(3, 2, "a"), T(2));
    assert_eq!(apply(&mut device, &beat(3, 3, "a"), T(3)).0, None);
    assert_eq!(device.state_place, (3, 3));
    assert_eq!(apply(&mut device, &beat(3, 4, "b"), T(4)).0, Some(Reaction::Resync));
    assert_eq!(apply(&mut device, &beat(3, 2, "e"), T(5)).0, None, "an old beat says nothing");
}

#[test]
fn a_stale_birth_changes_nothing() {
    let device = told(&[birth(4, 1, 60)]);
    let mut again = device.clone();
    for old in [birth(3, 9, 50), birth(4, 1, 60)] {
        assert_eq!(apply(&mut again, &old, T(300)), (None, false));
    }
    assert_eq!(again, device);
}

#[test]
fn silence_ends_presence_but_not_the_silence_before_we_listened() {
    let mut device = told(&[birth(3, 1, 50)]);
    assert!(!expire(&mut device, T(0), T(100 + 190)));
    assert!(!expire(&mut device, T(1000), T(1100)), "just started listening");
    assert!(expire(&mut device, T(0), T(100 + 196)));
    assert!(!device.online);
    assert!(!expire(&mut device, T(0), T(9999)), "once");
}
