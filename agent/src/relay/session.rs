//! What to say to the broker next. Pure: the time and the facts come in through verbs, [`Session::next`] gives actions
//! until there is none, [`Session::wake_at`] says when to ask again. The states are drawn in `relay/mod.rs`.

use super::backoff::Backoff;
use super::cursor::Cursor;
use super::message::StateDocument;
use super::outbox::{Batch, OutboxLevel, Stream};
use super::settings::{Pace, RelaySettings};
use crate::clock::Mono;
use samovar_wire::mqtt::Ack;
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Replies that wait in here; more wait with the caller's queue.
const REPLIES: usize = 16;
/// Bytes of events in one message.
const BATCH_BYTES: usize = 32 * 1024;
/// What a message is allowed beside its events.
const BATCH_OVERHEAD: usize = 1024;
/// An outbox that gave no answer is asked again after this long.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How long the connection may take to end after the good-bye.
const CLOSE_LIMIT: Duration = Duration::from_millis(200);
/// How long leaving may take before the good-bye is said anyway.
const LEAVE_LIMIT: Duration = Duration::from_millis(700);

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting { until: Mono },
    Connecting,
    Online { since: Mono },
    Leaving { until: Mono, said: bool },
    Closing { until: Mono },
    Done,
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Open a connection; with `clean_start` the broker forgets what it kept for us.
    Connect { clean_start: bool },
    /// Drop the connection without a word.
    Cut,
    /// Say good-bye.
    Disconnect,
    /// Ask for the subscription once more.
    Subscribe,
    /// Send.
    Publish(Message),
    /// Read events from the outbox.
    Read { stream: Stream, after: u64, max_bytes: usize },
    /// Remove events from the outbox.
    Acknowledge { stream: Stream, up_to: u64 },
}

/// Something to send.
#[derive(Debug)]
pub(super) enum Message {
    Birth,
    Offline,
    State(Arc<StateDocument>),
    Beat(Arc<StateDocument>),
    Metrics,
    Reply(Box<RawValue>),
    Events(Batch),
}

/// Whether the connection is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    No,
    Wanted,
    Given,
}

/// A publish that waits for the broker's acknowledgement. Brokers acknowledge in the order in which they receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    State,
    Events { stream: Stream, after: u64 },
    Other,
}

/// The policy of the relay.
#[derive(Debug)]
pub(super) struct Session {
    pace: Pace,
    phase: Phase,
    backoff: Backoff,
    window: usize,
    batch_bytes: usize,
    in_flight: VecDeque<InFlight>,
    cut: Cut,
    /// The next connection follows without a wait.
    at_once: bool,
    clean_start: bool,
    subscribed: bool,
    subscribe_at: Option<Mono>,
    birth_due: bool,
    state: Arc<StateDocument>,
    state_due: bool,
    state_said: Option<Mono>,
    metrics_at: Mono,
    replies: VecDeque<Box<RawValue>>,
    cursors: [Cursor; 2],
    acknowledged: [Option<u64>; 2],
    reading: Option<(Stream, u64, u64)>,
    read_from: Mono,
    batch: Option<Batch>,
}

impl Session {
    pub(super) fn new(settings: &RelaySettings, state: Arc<StateDocument>, now: Mono) -> Self {
        let pace = settings.pace;
        Self {
            pace,
            phase: Phase::Waiting { until: now },
            backoff: Backoff::new(settings.reconnect_min, settings.reconnect_max),
            window: 0,
            batch_bytes: BATCH_BYTES,
            in_flight: VecDeque::new(),
            cut: Cut::No,
            at_once: false,
            clean_start: false,
            subscribed: false,
            subscribe_at: None,
            birth_due: false,
            state,
            state_due: false,
            state_said: None,
            metrics_at: now,
            replies: VecDeque::new(),
            cursors: [Cursor::new(&pace), Cursor::new(&pace)],
            acknowledged: [None; 2],
            reading: None,
            read_from: now,
            batch: None,
        }
    }

    // What has happened.

    /// The broker took us. `requeued` publishes of an earlier connection are on their way again.
    pub(super) fn connected(
        &mut self,
        window: u16,
        max_packet: usize,
        requeued: usize,
        subscribing: bool,
        now: Mono,
    ) {
        if self.phase != Phase::Connecting {
            return;
        }
        self.phase = Phase::Online { since: now };
        self.window = usize::from(window);
        self.batch_bytes = BATCH_BYTES.min(max_packet.saturating_sub(BATCH_OVERHEAD));
        self.in_flight.clear();
        self.in_flight.resize(requeued, InFlight::Other);
        self.clean_start = false;
        self.subscribed = !subscribing;
        self.subscribe_at = subscribing.then(|| now.plus(self.pace.subscribe));
        self.birth_due = true;
        self.state_due = true;
        self.state_said = None;
        self.cursors.iter_mut().for_each(Cursor::connected);
    }

    /// The connection is over. `random` in `0.0..1.0` spreads the devices of a fleet.
    pub(super) fn ended(&mut self, oversized_packet: bool, random: f64, now: Mono) {
        for lost in std::mem::take(&mut self.in_flight) {
            if let InFlight::Events { stream, after } = lost {
                self.cursors[stream.index()].lost(after);
            }
        }
        self.batch = None;
        self.clean_start = oversized_packet;
        self.cut = Cut::No;
        let at_once = std::mem::take(&mut self.at_once);
        if let Phase::Online { since } = self.phase {
            self.backoff.held(now.after(since));
        }
        self.phase = match self.phase {
            Phase::Leaving { .. } | Phase::Closing { .. } | Phase::Done => Phase::Done,
            _ if at_once => Phase::Waiting { until: now },
            _ => Phase::Waiting { until: now.plus(self.backoff.failed(random)) },
        };
    }

    /// The broker acknowledged the oldest publish.
    pub(super) fn publish_acknowledged(&mut self) {
        self.in_flight.pop_front();
    }

    /// The last publish was not taken by the connection.
    pub(super) fn not_sent(&mut self, connection_is_full: bool) {
        if let Some(InFlight::Events { stream, after }) = self.in_flight.pop_back()
            && connection_is_full
        {
            self.cursors[stream.index()].lost(after);
        }
        // The window is smaller than the connection's queue, so a full one does not move any more.
        if connection_is_full {
            self.want_cut();
        }
    }

    /// The broker answered the subscription.
    pub(super) fn subscribed(&mut self, granted: bool, now: Mono) {
        self.subscribed = granted;
        self.subscribe_at = (!granted).then(|| now.plus(self.pace.subscribe));
    }

    /// The fleet's word on events, or its wish for a whole state; whether it made sense.
    pub(super) fn acknowledged(&mut self, ack: &Ack, now: Mono) -> bool {
        self.state_due |= ack.resync;
        let (Some(name), Some(up_to)) = (&ack.stream, ack.up_to) else { return ack.resync };
        let Some(stream) = Stream::named(name) else { return false };
        let cursor = &mut self.cursors[stream.index()];
        if cursor.acknowledged(up_to, &self.pace, now) {
            self.acknowledged[stream.index()] = Some(up_to);
        }
        up_to <= cursor.last()
    }

    /// What the outbox holds.
    pub(super) fn level(&mut self, level: &OutboxLevel) {
        for (cursor, last) in self.cursors.iter_mut().zip(level.last) {
            cursor.known(last);
        }
    }

    /// The outbox answered, or could not.
    pub(super) fn read(&mut self, batch: Option<Batch>, now: Mono) {
        let Some((stream, after, last)) = self.reading.take() else { return };
        let cursor = &mut self.cursors[stream.index()];
        // After a rewind this is not what comes next.
        if cursor.at() != after {
            return;
        }
        match batch {
            Some(batch) if batch.span.is_some() => self.batch = Some(batch).filter(|_| self.is_online()),
            Some(_) => cursor.skip(last),
            None => self.read_from = now.plus(READ_AGAIN),
        }
    }

    /// A new state; one that says the same is no change.
    pub(super) fn state(&mut self, state: Arc<StateDocument>) {
        self.state_due |= state.sha256() != self.state.sha256();
        self.state = state;
    }

    /// The birth says something else now.
    pub(super) fn birth_changed(&mut self) {
        self.birth_due = true;
    }

    pub(super) fn takes_replies(&self) -> bool {
        self.replies.len() < REPLIES
    }

    pub(super) fn reply(&mut self, data: Box<RawValue>) {
        self.replies.push_back(data);
    }

    /// The TLS configuration is another one: connect with it at once.
    pub(super) fn reconnect(&mut self, now: Mono) {
        match self.phase {
            Phase::Waiting { .. } => self.phase = Phase::Waiting { until: now },
            Phase::Connecting | Phase::Online { .. } => {
                self.want_cut();
                self.at_once = true;
            }
            Phase::Leaving { .. } | Phase::Closing { .. } | Phase::Done => {}
        }
    }

    /// Say good-bye and end.
    pub(super) fn stop(&mut self, now: Mono) {
        self.phase = match self.phase {
            Phase::Waiting { .. } | Phase::Done => Phase::Done,
            Phase::Connecting => {
                self.want_cut();
                Phase::Closing { until: now.plus(CLOSE_LIMIT) }
            }
            Phase::Online { .. } => Phase::Leaving { until: now.plus(LEAVE_LIMIT), said: false },
            leaving => leaving,
        };
    }

    // What to do.

    pub(super) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    pub(super) fn is_online(&self) -> bool {
        matches!(self.phase, Phase::Online { .. })
    }

    pub(super) fn is_subscribed(&self) -> bool {
        self.subscribed
    }

    /// The next action; `None` until something happens or [`Self::wake_at`] comes.
    pub(super) fn next(&mut self, now: Mono) -> Option<Action> {
        match self.cut {
            Cut::Wanted => {
                self.cut = Cut::Given;
                return Some(Action::Cut);
            }
            // Nothing more is said on a connection that is being dropped.
            Cut::Given => return None,
            Cut::No => {}
        }
        for stream in Stream::ALL {
            if let Some(up_to) = self.acknowledged[stream.index()].take() {
                return Some(Action::Acknowledge { stream, up_to });
            }
        }
        match self.phase {
            Phase::Waiting { until } if until <= now => {
                self.phase = Phase::Connecting;
                Some(Action::Connect { clean_start: self.clean_start })
            }
            Phase::Online { .. } => self.next_online(now),
            Phase::Leaving { until, said } => self.next_leaving(until, said, now),
            Phase::Closing { until } if until <= now => {
                self.cut = Cut::Given;
                Some(Action::Cut)
            }
            _ => None,
        }
    }

    /// When to ask again at the latest.
    pub(super) fn wake_at(&self) -> Option<Mono> {
        match self.phase {
            Phase::Waiting { until } | Phase::Leaving { until, .. } => Some(until),
            Phase::Closing { until } => Some(until).filter(|_| self.cut == Cut::No),
            Phase::Connecting | Phase::Done => None,
            Phase::Online { .. } => {
                // What waits for the window is woken by an acknowledgement, not by a timer.
                let room = self.in_flight.len() < self.window;
                let ours = [self.state_at(), self.beat_at()].into_iter().filter(|_| room);
                let read = Some(self.read_from).filter(|_| self.reading.is_none() && self.unread().is_some());
                let timers =
                    [self.subscribe_at, Some(self.metrics_at), read.filter(|_| self.has_room_for_events())];
                timers.into_iter().chain(ours).chain(self.cursors.iter().map(Cursor::wake_at)).flatten().min()
            }
        }
    }

    fn next_online(&mut self, now: Mono) -> Option<Action> {
        if self.subscribe_at.is_some_and(|at| at <= now) {
            self.subscribe_at = Some(now.plus(self.pace.subscribe));
            return Some(Action::Subscribe);
        }
        if self.metrics_at <= now {
            self.metrics_at = now.plus(self.pace.metrics);
            return Some(Action::Publish(Message::Metrics));
        }
        self.cursors.iter_mut().for_each(|cursor| cursor.tick(&self.pace, now));
        self.next_of_ours(now).or_else(|| self.next_events(now))
    }

    /// Birth first, so that whoever sees anything else knows the epoch; then what somebody waits for.
    fn next_of_ours(&mut self, now: Mono) -> Option<Action> {
        if self.in_flight.len() >= self.window {
            return None;
        }
        if std::mem::take(&mut self.birth_due) {
            return Some(self.publish(InFlight::Other, Message::Birth));
        }
        if let Some(reply) = self.replies.pop_front() {
            return Some(self.publish(InFlight::Other, Message::Reply(reply)));
        }
        if self.state_at().is_some_and(|at| at <= now) {
            self.state_due = false;
            self.state_said = Some(now);
            let state = Arc::clone(&self.state);
            return Some(self.publish(InFlight::State, Message::State(state)));
        }
        if self.beat_at().is_some_and(|at| at <= now) {
            self.state_said = Some(now);
            let state = Arc::clone(&self.state);
            return Some(self.publish(InFlight::Other, Message::Beat(state)));
        }
        None
    }

    /// Events leave a quarter of the window to everything else.
    fn has_room_for_events(&self) -> bool {
        self.in_flight.len() < (self.window * 3 / 4).max(1)
    }

    /// A stream with something to send, and after which number; audit first.
    fn unread(&self) -> Option<(Stream, u64)> {
        let next = |stream: Stream| Some((stream, self.cursors[stream.index()].read_after()?));
        Stream::ALL.into_iter().rev().find_map(next)
    }

    fn next_events(&mut self, now: Mono) -> Option<Action> {
        if !self.has_room_for_events() {
            return None;
        }
        if let Some(batch) = self.batch.take()
            && let Some((first, last)) = batch.span
        {
            let cursor = &mut self.cursors[batch.stream.index()];
            let sent = InFlight::Events { stream: batch.stream, after: cursor.at() };
            cursor.sent(first, last, now);
            return Some(self.publish(sent, Message::Events(batch)));
        }
        if self.reading.is_some() || now < self.read_from {
            return None;
        }
        let (stream, after) = self.unread()?;
        self.reading = Some((stream, after, self.cursors[stream.index()].last()));
        Some(Action::Read { stream, after, max_bytes: self.batch_bytes })
    }

    fn next_leaving(&mut self, until: Mono, said: bool, now: Mono) -> Option<Action> {
        if until <= now || (said && self.in_flight.is_empty()) {
            self.phase = Phase::Closing { until: now.plus(CLOSE_LIMIT) };
            return Some(Action::Disconnect);
        }
        if said || self.in_flight.len() >= self.window {
            return None;
        }
        if let Some(reply) = self.replies.pop_front() {
            return Some(self.publish(InFlight::Other, Message::Reply(reply)));
        }
        self.phase = Phase::Leaving { until, said: true };
        Some(self.publish(InFlight::Other, Message::Offline))
    }

    fn publish(&mut self, waits_as: InFlight, message: Message) -> Action {
        self.in_flight.push_back(waits_as);
        Action::Publish(message)
    }

    fn want_cut(&mut self) {
        if self.cut == Cut::No {
            self.cut = Cut::Wanted;
        }
    }

    /// When the whole state may go: at most one is on its way, so that a slow line gets the newest and no queue.
    fn state_at(&self) -> Option<Mono> {
        let may_go = self.state_due && !self.in_flight.contains(&InFlight::State);
        may_go.then(|| self.state_said.map_or(Mono::default(), |said| said.plus(self.pace.state)))
    }

    fn beat_at(&self) -> Option<Mono> {
        let said = self.state_said.filter(|_| !self.state_due)?;
        Some(said.plus(self.pace.beat))
    }
}

#[cfg(test)]
mod tests;
