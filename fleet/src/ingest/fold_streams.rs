//! Stories of streams of events on their way through several servers, and every order that chance can think of.

use super::*;
use std::collections::BTreeSet;

const T: fn(i64) -> Timestamp = |seconds| Timestamp::from_millis(seconds * 1000);

/// A device that does not say what it keeps; `seq` orders its messages.
fn plain(first: i64, last: i64, seq: i64) -> Span {
    Span { first, last, kept_from: None, place: (1, seq) }
}

fn keeping(kept_from: i64, first: i64, last: i64) -> Span {
    Span { first, last, kept_from: Some(kept_from), place: (1, 1) }
}

#[test]
fn a_stream_is_acknowledged_as_far_as_it_has_no_gap() {
    let mut stream = Stream::default();
    assert_eq!(batch(&mut stream, plain(1, 9, 1), T(0)), 9, "from its beginning");
    assert_eq!(batch(&mut stream, plain(10, 12, 2), T(1)), 12);
    assert_eq!(batch(&mut stream, plain(5, 12, 3), T(1)), 12, "a repeat");
    assert_eq!(batch(&mut stream, plain(20, 25, 5), T(2)), 12, "overtook its predecessor");
    assert_eq!(batch(&mut stream, plain(26, 30, 6), T(2)), 12, "and so did its successor");
    assert_eq!(batch(&mut stream, plain(13, 19, 4), T(4)), 30, "the predecessor");
    assert_eq!(stream.held, None);
}

#[test]
fn a_beginning_that_was_overtaken_is_not_acknowledged_away() {
    let mut stream = Stream::default();
    assert_eq!(batch(&mut stream, keeping(100, 102, 102), T(0)), 99);
    assert_eq!(batch(&mut stream, keeping(100, 100, 101), T(0)), 102);
    let mut stream = Stream::default();
    assert_eq!(batch(&mut stream, plain(102, 102, 2), T(0)), 0);
    assert_eq!(batch(&mut stream, plain(100, 101, 1), T(0)), 0);
    assert_eq!(batch(&mut stream, plain(100, 102, 3), T(9)), 102, "it begins there once more");
}

#[test]
fn what_the_device_no_longer_keeps_is_not_waited_for() {
    let mut stream = Stream { up_to: 500, held: None };
    assert_eq!(batch(&mut stream, keeping(490, 1025, 1030), T(0)), 500, "a crash skipped numbers");
    assert_eq!(batch(&mut stream, keeping(1025, 1025, 1030), T(0)), 1030, "501 to 1024 were never given");
    assert_eq!(batch(&mut stream, keeping(9000, 2000, 2001), T(0)), 2001, "never past its own first event");
}

#[test]
fn a_device_that_does_not_say_is_believed_when_it_begins_there_again_in_a_new_message() {
    let mut stream = Stream { up_to: 25, held: None };
    assert_eq!(batch(&mut stream, plain(40, 50, 7), T(10)), 25);
    assert_eq!(batch(&mut stream, plain(40, 50, 8), T(11)), 25, "at once");
    assert_eq!(batch(&mut stream, plain(40, 50, 7), T(60)), 25, "delivered again by the broker");
    assert_eq!(batch(&mut stream, plain(40, 45, 9), T(60)), 50);
}

/// A device with an outbox, and what is under way to the two servers.
struct World {
    chance: fastrand::Rng,
    says: bool,
    kept: BTreeSet<i64>,
    next: i64,
    acked: i64,
    cursor: i64,
    messages: i64,
    under_way: [Vec<Span>; 2],
    stream: Stream,
    stored: BTreeSet<i64>,
    dropped: BTreeSet<i64>,
    given: BTreeSet<i64>,
    contents: Vec<(i64, Vec<i64>)>,
    now: i64,
}

impl World {
    fn new(seed: u64, says: bool) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let next = chance.i64(1..2_000_000);
        Self {
            chance,
            says,
            kept: BTreeSet::new(),
            next,
            acked: 0,
            cursor: 0,
            messages: 0,
            under_way: Default::default(),
            stream: Stream::default(),
            stored: BTreeSet::new(),
            dropped: BTreeSet::new(),
            given: BTreeSet::new(),
            contents: Vec::new(),
            now: 0,
        }
    }

    fn record(&mut self) {
        if self.chance.u8(..) < 8 {
            self.next += self.chance.i64(1..1024);
        }
        self.kept.insert(self.next);
        self.given.insert(self.next);
        self.next += 1;
    }

    fn send(&mut self) {
        let most = self.chance.usize(1..5);
        let events: Vec<i64> = self.kept.range(self.cursor + 1..).take(most).copied().collect();
        let (Some(first), Some(last)) = (events.first().copied(), events.last().copied()) else { return };
        self.messages += 1;
        let kept_from = self.kept.first().copied().filter(|_| self.says);
        let span = Span { first, last, kept_from, place: (1, self.messages) };
        self.cursor = last;
        self.contents.push((self.messages, events));
        self.under_way[self.chance.usize(0..2)].push(span);
    }

    /// One server takes any of its messages, not the first of them, and sometimes keeps it to take it again.
    fn deliver(&mut self, server: usize) {
        let queue = &mut self.under_way[server];
        if queue.is_empty() {
            return;
        }
        let which = self.chance.usize(..queue.len());
        let span = if self.chance.u8(..) < 30 { queue[which] } else { queue.swap_remove(which) };
        let events =
            self.contents.iter().find(|(place, _)| *place == span.place.1).map(|(_, events)| events.clone());
        self.stored.extend(events.unwrap_or_default());
        let up_to = batch(&mut self.stream, span, T(self.now));
        for event in self.kept.range(..=up_to) {
            assert!(self.stored.contains(event), "{event} was acknowledged ({up_to}) and never stored");
        }
        // The acknowledgement may be lost.
        if self.chance.u8(..) < 200 && up_to >= self.acked {
            self.acked = up_to;
            self.kept = self.kept.split_off(&(up_to + 1));
            self.cursor = self.cursor.max(up_to);
        }
    }

    fn rewind(&mut self) {
        self.cursor = self.acked;
    }

    fn finish(&mut self) {
        for _ in 0..1000 {
            if self.kept.is_empty() {
                break;
            }
            self.now += 10;
            self.rewind();
            while self.kept.range(self.cursor + 1..).next().is_some() {
                self.send();
            }
            while self.under_way.iter().any(|queue| !queue.is_empty()) {
                self.deliver(0);
                self.deliver(1);
            }
        }
        assert!(self.kept.is_empty(), "the stream does not get on: {:?} of {:?}", self.stream, self.kept);
        let missing: Vec<_> =
            self.given.difference(&self.stored).filter(|event| !self.dropped.contains(event)).collect();
        assert!(missing.is_empty(), "lost: {missing:?}");
    }
}

#[test]
fn nothing_is_acknowledged_unstored_in_whatever_order_two_servers_take_it() {
    for seed in 0..400 {
        let mut world = World::new(seed, true);
        for _ in 0..300 {
            match world.chance.u8(0..20) {
                0..6 => world.record(),
                6..11 => world.send(),
                11..14 => world.deliver(0),
                14..17 => world.deliver(1),
                17 => world.rewind(),
                18 => world.now += world.chance.i64(0..20),
                _ if world.chance.bool() => {
                    // The broker loses something.
                    let server = world.chance.usize(0..2);
                    world.under_way[server].pop();
                }
                _ => {
                    // The outbox is full.
                    let oldest = world.kept.pop_first();
                    world.dropped.extend(oldest);
                }
            }
        }
        world.finish();
    }
}

#[test]
fn a_device_that_does_not_say_loses_nothing_while_messages_take_less_than_patience() {
    for seed in 0..400 {
        let mut world = World::new(seed, false);
        for _ in 0..60 {
            for _ in 0..world.chance.usize(1..8) {
                world.record();
                world.send();
            }
            while world.under_way.iter().any(|queue| !queue.is_empty()) {
                world.deliver(0);
                world.deliver(1);
            }
            world.now += world.chance.i64(0..20);
            if world.chance.bool() {
                world.rewind();
            }
        }
        world.finish();
    }
}
