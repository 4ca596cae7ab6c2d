//! What to say to the broker next. Pure: the time and the facts come in through the verbs in here; `next.rs` has the
//! other half, [`Session::next`], which gives actions until there is none, and [`Session::wake_at`], which says when to
//! ask again. The states are drawn in `relay/mod.rs`.

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

    fn want_cut(&mut self) {
        if self.cut == Cut::No {
            self.cut = Cut::Wanted;
        }
    }
}

mod next;
#[cfg(test)]
mod tests;
