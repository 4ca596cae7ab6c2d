//! The policy in a world of its own: a broker that acknowledges when told to, hours in a millisecond.

use super::*;
use proptest::prelude::*;
use samovar_wire::DeviceId;

fn at(millis: u64) -> Mono {
    Mono(Duration::from_millis(millis))
}

fn state(text: &str) -> Arc<StateDocument> {
    Arc::new(StateDocument::of(&text).unwrap())
}

fn settings() -> RelaySettings {
    let device: DeviceId = "D".parse().unwrap();
    RelaySettings::new("mqtt://127.0.0.1".parse().unwrap(), "test", device, 1)
}

fn ack(stream: &str, up_to: u64) -> Ack {
    Ack { stream: Some(stream.into()), up_to: Some(up_to), resync: false }
}

fn level(events: u64, audit: u64) -> OutboxLevel {
    OutboxLevel { last: [events, audit], ..OutboxLevel::default() }
}

fn batch(stream: Stream, first: u64, last: u64) -> Batch {
    Batch { stream, span: Some((first, last)), data: RawValue::NULL.to_owned() }
}

/// A session and the outbox behind it, ten events to a batch.
struct World {
    session: Session,
    now: u64,
    last: [u64; 2],
}

impl World {
    fn new() -> Self {
        Self { session: Session::new(&settings(), state("0"), at(0)), now: 0, last: [0; 2] }
    }

    fn online() -> Self {
        let mut world = Self::new();
        world.connect(64);
        world
    }

    fn connect(&mut self, window: u16) {
        assert_eq!(self.actions().last().map(String::as_str), Some("connect"));
        self.session.connected(window, 260 * 1024, 0, true, at(self.now));
        self.session.subscribed(true, at(self.now));
    }

    fn record(&mut self, events: u64, audit: u64) {
        self.last = [self.last[0] + events, self.last[1] + audit];
        self.session.level(&level(self.last[0], self.last[1]));
    }

    /// Does what is due; reads are answered at once.
    fn actions(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(action) = self.session.next(at(self.now)) {
            assert!(done.len() < 10_000, "the session does not come to rest: {done:?}");
            match action {
                Action::Read { stream, after, .. } => {
                    let last = self.last[stream.index()].min(after + 10);
                    let batch = batch(stream, after + 1, last);
                    self.session.read(Some(batch), at(self.now));
                }
                other => done.push(name(&other)),
            }
        }
        let wake = self.session.wake_at();
        assert!(
            wake.is_none_or(|wake| wake > at(self.now)),
            "the loop would spin: {wake:?} is not after {}",
            self.now
        );
        done
    }

    fn acknowledge_all(&mut self) {
        while !self.session.in_flight.is_empty() {
            self.session.publish_acknowledged();
        }
    }

    fn after(&mut self, millis: u64) -> Vec<String> {
        self.now += millis;
        self.actions()
    }

    fn end(&mut self) {
        self.session.ended(false, 0.5, at(self.now));
    }
}

fn name(action: &Action) -> String {
    match action {
        Action::Connect { .. } => "connect".into(),
        Action::Cut => "cut".into(),
        Action::Disconnect => "disconnect".into(),
        Action::Subscribe => "subscribe".into(),
        Action::Read { .. } => "read".into(),
        Action::Acknowledge { stream, up_to } => format!("truncate {} {up_to}", stream.name()),
        Action::Publish(Message::Birth) => "birth".into(),
        Action::Publish(Message::Offline) => "offline".into(),
        Action::Publish(Message::State(_)) => "state".into(),
        Action::Publish(Message::Beat(_)) => "beat".into(),
        Action::Publish(Message::Metrics) => "metrics".into(),
        Action::Publish(Message::Reply(_)) => "reply".into(),
        Action::Publish(Message::Events(batch)) => {
            let (first, last) = batch.span.unwrap();
            format!("{} {first}-{last}", batch.stream.name())
        }
    }
}

fn reply() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

#[test]
fn a_new_connection_says_birth_then_state_then_events_audit_first() {
    let mut world = World::new();
    world.record(12, 1);
    world.connect(64);
    assert_eq!(world.actions(), ["metrics", "birth", "state", "audit 1-1", "events 1-10", "events 11-12"]);
    assert_eq!(world.actions(), [""; 0]);
}

#[test]
fn state_goes_at_most_once_a_second_and_the_last_value_wins() {
    let mut world = World::online();
    world.actions();
    world.acknowledge_all();
    for value in 1..=100 {
        world.session.state(state(&value.to_string()));
    }
    assert_eq!(world.after(999), [""; 0]);
    assert_eq!(world.session.wake_at(), Some(at(1_000)));
    assert_eq!(world.after(1), ["state"]);
    world.session.state(state("100"));
    world.acknowledge_all();
    assert_eq!(world.after(5_000), [""; 0], "the same state again is no change");
}

#[test]
fn a_slow_line_gets_the_newest_state_and_no_queue() {
    let mut world = World::online();
    world.actions();
    for value in 0..60 {
        world.session.state(state(&value.to_string()));
        assert!(!world.after(500).contains(&"state".into()), "one is on its way already");
    }
    world.acknowledge_all();
    assert_eq!(world.actions(), ["state"]);
}

#[test]
fn an_unchanged_state_is_confirmed_every_minute() {
    let mut world = World::online();
    world.actions();
    let mut said = Vec::new();
    for _ in 0..180 {
        world.acknowledge_all();
        said.extend(world.after(1_000));
    }
    said.retain(|action| action != "metrics");
    assert_eq!(said, ["beat", "beat", "beat"]);
}

#[test]
fn a_resync_sends_the_whole_state_although_nothing_changed() {
    let mut world = World::online();
    world.actions();
    world.acknowledge_all();
    world.now += 2_000;
    assert!(world.session.acknowledged(&Ack { resync: true, ..Ack::default() }, at(world.now)));
    assert_eq!(world.actions(), ["state"]);
}

#[test]
fn metrics_go_once_a_minute_also_across_reconnects() {
    let mut world = World::online();
    assert!(world.actions().contains(&"metrics".into()));
    world.end();
    world.now += 2_000;
    world.connect(64);
    assert!(!world.actions().contains(&"metrics".into()));
    assert!(world.after(58_000).contains(&"metrics".into()));
}

#[test]
fn the_window_holds_everything_of_quality_one_and_leaves_room_beside_events() {
    let mut world = World::new();
    world.record(10_000, 0);
    world.connect(8);
    let said = world.actions();
    assert_eq!(said.iter().filter(|action| action.starts_with("events")).count(), 4);
    assert_eq!(world.session.in_flight.len(), 6);
    for _ in 0..5 {
        world.session.reply(reply());
    }
    assert_eq!(world.actions(), ["reply", "reply"]);
    world.session.publish_acknowledged();
    assert_eq!(world.actions(), ["reply"]);
    assert_eq!(world.session.in_flight.len(), 8);
}

#[test]
fn an_event_leaves_only_by_the_fleets_word() {
    let mut world = World::online();
    world.record(30, 0);
    world.actions();
    world.acknowledge_all();
    assert_eq!(world.after(60_000).iter().filter(|action| action.starts_with("truncate")).count(), 0);
    assert!(world.session.acknowledged(&ack("events", 20), at(world.now)));
    assert_eq!(world.actions(), ["truncate events 20"]);
    world.end();
    world.now += 2_000;
    world.connect(64);
    assert!(world.actions().contains(&"events 21-30".into()));
}

#[test]
fn acknowledgements_of_other_streams_and_of_numbers_never_given_are_refused() {
    let mut world = World::online();
    world.record(3, 0);
    world.actions();
    for nonsense in
        [ack("orders", 1), ack("events", 4), ack("audit", 1), ack("events", u64::MAX), Ack::default()]
    {
        assert!(!world.session.acknowledged(&nonsense, at(world.now)), "{nonsense:?}");
    }
    assert_eq!(world.actions(), [""; 0]);
}

#[test]
fn in_one_connection_an_event_is_repeated_only_by_the_long_timer() {
    let mut world = World::online();
    world.record(1, 0);
    let mut sent = Vec::new();
    for second in 0..3_600 {
        if world.after(1_000).contains(&"events 1-1".into()) {
            sent.push(second);
        }
        world.acknowledge_all();
    }
    assert_eq!(sent, [0, 300, 900, 2_100]);
}

#[test]
fn what_the_broker_did_not_acknowledge_is_sent_again_also_when_repeats_are_rare() {
    let mut world = World::online();
    world.record(10, 0);
    for _ in 0..10 {
        world.actions();
        world.acknowledge_all();
        world.end();
        world.now += 60_000;
        world.connect(64);
    }
    world.actions();
    world.acknowledge_all();
    world.record(5, 0);
    assert_eq!(world.actions(), ["events 11-15"]);
    world.end();
    world.now += 60_000;
    world.connect(64);
    assert!(world.actions().contains(&"events 11-15".into()));
}

#[test]
fn a_batch_that_was_read_for_the_connection_before_is_not_sent_out_of_place() {
    let mut world = World::online();
    world.record(20, 0);
    assert!(world.actions().contains(&"events 11-20".into()));
    world.record(5, 0);
    let Some(Action::Read { after: 20, .. }) = world.session.next(at(world.now)) else { panic!("a read") };
    world.end();
    world.now += 60_000;
    world.connect(64);
    world.session.read(Some(batch(Stream::Events, 21, 25)), at(world.now));
    let said: Vec<_> = world.actions().into_iter().filter(|action| action.starts_with("events")).collect();
    assert_eq!(said, ["events 1-10", "events 11-20", "events 21-25"]);
}

#[test]
fn an_outbox_that_gives_no_answer_is_asked_again_after_a_second_not_at_once() {
    let mut world = World::online();
    world.actions();
    world.record(1, 0);
    assert!(matches!(world.session.next(at(0)), Some(Action::Read { .. })));
    world.session.read(None, at(0));
    assert!(world.session.next(at(999)).is_none());
    assert_eq!(world.session.wake_at(), Some(at(1_000)));
    assert!(matches!(world.session.next(at(1_000)), Some(Action::Read { .. })));
}

#[test]
fn a_message_too_large_for_the_broker_is_passed_over_and_the_rest_goes_on() {
    let mut world = World::online();
    world.record(20, 0);
    let mut said = Vec::new();
    while let Some(action) = world.session.next(at(0)) {
        match action {
            Action::Read { after, .. } => {
                world.session.read(Some(batch(Stream::Events, after + 1, after + 10)), at(0));
            }
            action => {
                if name(&action) == "events 1-10" {
                    world.session.not_sent(false);
                }
                said.push(name(&action));
            }
        }
    }
    assert!(said.contains(&"events 11-20".into()), "{said:?}");
}

#[test]
fn a_subscription_that_is_not_confirmed_is_asked_for_again() {
    let mut world = World::new();
    assert_eq!(world.actions(), ["connect"]);
    world.session.connected(64, 1 << 18, 0, true, at(0));
    world.actions();
    assert!(world.after(60_000).contains(&"subscribe".into()));
    world.session.subscribed(false, at(world.now));
    assert!(!world.session.is_subscribed());
    assert!(world.after(60_000).contains(&"subscribe".into()));
    world.session.subscribed(true, at(world.now));
    assert!(!world.after(600_000).contains(&"subscribe".into()));
}

#[test]
fn a_lost_connection_is_tried_again_after_a_wait_and_a_renewed_certificate_at_once() {
    let mut world = World::online();
    world.actions();
    world.end();
    assert_eq!(world.actions(), [""; 0]);
    assert_eq!(world.session.wake_at(), Some(at(1_500)));
    world.now = 1_500;
    world.connect(64);
    world.actions();
    world.session.reconnect(at(world.now));
    assert_eq!(world.actions(), ["cut"]);
    assert_eq!(world.after(600_000), [""; 0], "nothing is said on a connection that is being dropped");
    world.end();
    assert_eq!(world.actions(), ["connect"]);
}

#[test]
fn an_oversized_packet_makes_the_next_connection_start_clean() {
    let mut world = World::online();
    world.session.ended(true, 0.0, at(0));
    world.now = 60_000;
    assert!(matches!(world.session.next(at(world.now)), Some(Action::Connect { clean_start: true })));
    world.session.connected(64, 1 << 18, 0, true, at(world.now));
    world.end();
    world.now = 120_000;
    assert!(matches!(world.session.next(at(world.now)), Some(Action::Connect { clean_start: false })));
}

#[test]
fn a_stop_sends_waiting_replies_then_says_offline_then_disconnects() {
    let mut world = World::online();
    world.actions();
    world.session.reply(reply());
    world.session.stop(at(world.now));
    assert_eq!(world.actions(), ["reply", "offline"]);
    assert_eq!(world.actions(), [""; 0]);
    world.acknowledge_all();
    assert_eq!(world.actions(), ["disconnect"]);
    world.end();
    assert!(world.session.is_done());
}

#[test]
fn a_stop_ends_within_a_second_whatever_the_broker_does() {
    let mut world = World::online();
    world.actions();
    world.session.stop(at(0));
    assert_eq!(world.actions(), ["offline"]);
    assert_eq!(world.after(700), ["disconnect"]);
    assert_eq!(world.after(200), ["cut"]);
    world.end();
    assert!(world.session.is_done());
    let mut waiting = World::new();
    waiting.session.stop(at(0));
    assert!(waiting.session.is_done());
    let mut connecting = World::new();
    connecting.actions();
    connecting.session.stop(at(0));
    assert_eq!(connecting.actions(), ["cut"]);
}

proptest! {
    /// Whatever the line and the fleet do, once both work for a while the fleet has every event, and at no time are
    /// more publishes waiting than the window allows.
    #[test]
    fn every_event_reaches_the_fleet_in_the_end(steps in prop::collection::vec((0_u8..8, 1_u64..40), 1..200)) {
        let mut world = World::new();
        let mut received = 0; // the fleet's highest number without a gap
        let mut truncated = 0;
        let mut online = false;
        let mut deliver = |world: &mut World, online: bool| {
            for action in world.actions() {
                if let Some(span) = action.strip_prefix("events ") {
                    let (first, last) = span.split_once('-').unwrap();
                    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
                    if online && first <= received + 1 {
                        received = received.max(last);
                    }
                }
                if let Some(up_to) = action.strip_prefix("truncate events ") {
                    truncated = up_to.parse().unwrap();
                }
                assert!(world.session.in_flight.len() <= 8);
            }
            (received, truncated)
        };
        for (step, amount) in steps {
            match step {
                0 | 1 => world.record(amount, 0),
                2 if online => {
                    deliver(&mut world, true);
                    world.end();
                    online = false;
                }
                3 if !online => {
                    world.now += 61_000;
                    world.connect(8);
                    online = true;
                }
                4 => world.now += amount * 1_000,
                5 => for _ in 0..amount.min(world.session.in_flight.len() as u64) {
                    world.session.publish_acknowledged();
                },
                6 if online => {
                    let up_to = deliver(&mut world, online).0;
                    world.session.acknowledged(&ack("events", up_to), at(world.now));
                }
                _ if online => { deliver(&mut world, online); }
                _ => {}
            }
        }
        if !online {
            world.now += 61_000;
            world.connect(8);
        }
        for _ in 0..10_000 {
            let (received, truncated) = deliver(&mut world, true);
            if truncated == world.last[0] {
                return Ok(());
            }
            world.session.acknowledged(&ack("events", received), at(world.now));
            world.acknowledge_all();
            world.now += 60_000;
        }
        prop_assert!(world.last[0] == 0, "the fleet lacks events after a week of a good line");
    }
}
