//! What [`Session`] wants done next, and when it wants to be asked again.

use super::{Action, CLOSE_LIMIT, Cut, InFlight, Message, Phase, Session};
use crate::clock::Mono;
use crate::relay::cursor::Cursor;
use crate::relay::outbox::Stream;
use std::sync::Arc;

impl Session {
    pub(in crate::relay) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    pub(in crate::relay) fn is_online(&self) -> bool {
        matches!(self.phase, Phase::Online { .. })
    }

    pub(in crate::relay) fn is_subscribed(&self) -> bool {
        self.subscribed
    }

    /// The next action; `None` until something happens or [`Self::wake_at`] comes.
    pub(in crate::relay) fn next(&mut self, now: Mono) -> Option<Action> {
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
    pub(in crate::relay) fn wake_at(&self) -> Option<Mono> {
        if self.cut == Cut::Given {
            return None;
        }
        match self.phase {
            Phase::Waiting { until } | Phase::Leaving { until, .. } | Phase::Closing { until } => Some(until),
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
