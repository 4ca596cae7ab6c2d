//! The loop of the relay: takes what happens to [`Session`], does what it says. One `select!`; the only waits are in it.
//!
//! | queue | capacity | from → to | when full |
//! |---|---|---|---|
//! | replies | 16 + 16 | callers → loop | the caller is refused |
//! | commands | 16 | loop → commands | the command is dropped and counted |
//! | desired | 1 | loop → twin | the newest wins |
//! | state, birth, tls | 1 | callers → loop | the newest wins |
//! | events of the connection | 32 | guard → loop | the guard waits, TCP slows the broker down |
//! | requests of the connection | 80 | loop → guard | cannot be: the window is smaller; else the connection is dropped |

use super::guard::{ConnectWith, Link, LinkEvent, SubmitError};
use super::handle::{LoopEnds, Order, RelayInputs, new_nonce};
use super::message::Envelopes;
use super::outbox::{Batch, Outbox};
use super::session::{Action, Message, Session};
use super::settings::RelaySettings;
use crate::clock::{self, Mono, mono, wall};
use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, LastWillProperties, Publish};
use samovar_wire::Timestamp;
use samovar_wire::conditions::Condition;
use samovar_wire::mqtt::{Ack, Channel, MAX_MESSAGE_BYTES, Topic, device_filter};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// The broker speaks of our end this long after it.
const WILL_DELAY_S: u32 = 30;
/// Without a heartbeat to feed, the loop goes round this often.
const IDLE: Duration = Duration::from_secs(30);

/// Runs until stopped or until the last handle is gone.
pub(super) async fn run(settings: RelaySettings, inputs: RelayInputs, ends: LoopEnds) {
    let RelayInputs { mut state, mut birth, mut tls, metrics, outbox, conditions, heartbeat } = inputs;
    let LoopEnds { mut orders, mut replies, status, nonce, desired, commands } = ends;
    let mut session = Session::new(&settings, state.borrow_and_update().clone(), mono());
    let mut level = outbox.watch();
    session.level(&level.borrow_and_update());
    let idle = heartbeat.as_ref().map_or(IDLE, crate::heartbeat::Heartbeat::interval);
    let mut shell = Shell {
        envelopes: Envelopes::new(settings.epoch),
        connected_at: wall(),
        settings,
        outbox,
        status,
        nonce,
        desired,
        commands,
        conditions,
        metrics,
        birth: birth.clone(),
        tls: tls.clone(),
        link: None,
        reading: None,
        saved: VecDeque::new(),
    };
    loop {
        while let Some(action) = session.next(mono()) {
            shell.perform(action, &mut session);
        }
        if session.is_done() {
            return;
        }
        if let Some(heartbeat) = &heartbeat {
            heartbeat.beat();
        }
        let wake = session.wake_at().unwrap_or(Mono(Duration::MAX)).min(mono().plus(idle));
        tokio::select! {
            event = next_event(&mut shell.link) => shell.happened(event, &mut session),
            () = changed(&mut state) => session.state(state.borrow_and_update().clone()),
            () = changed(&mut birth) => session.birth_changed(),
            () = changed(&mut level) => session.level(&level.borrow_and_update()),
            () = changed(&mut tls), if shell.settings.url.scheme.is_encrypted() => session.reconnect(mono()),
            batch = next_batch(&mut shell.reading) => session.read(batch, mono()),
            Some(reply) = replies.recv(), if session.takes_replies() => session.reply(reply),
            order = orders.recv() => match order {
                Some(Order::Birth) => session.birth_changed(),
                Some(Order::Stop) | None => session.stop(mono()),
            },
            () = tokio::time::sleep_until(clock::instant(wake)) => {}
        }
    }
}

/// Waits for a change; for ever when nobody is left to make one.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    match receiver.changed().await {
        Ok(()) => {
            receiver.borrow_and_update();
        }
        Err(_) => std::future::pending().await,
    }
}

async fn next_event(link: &mut Option<Link>) -> Option<LinkEvent> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

async fn next_batch(reading: &mut Option<oneshot::Receiver<Batch>>) -> Option<Batch> {
    let Some(answer) = reading else { return std::future::pending().await };
    let batch = answer.await.ok();
    *reading = None;
    batch
}

/// Replies are nobody else's to send again: births and states are made anew, events are in the outbox.
fn worth_saving(publish: &Publish) -> bool {
    publish.topic.ends_with(Channel::Reply.path().as_bytes())
}

/// What the loop acts with.
struct Shell {
    settings: RelaySettings,
    envelopes: Envelopes,
    /// When the present connection was begun; its will says so, and so do its births.
    connected_at: Timestamp,
    outbox: Outbox,
    status: watch::Sender<super::RelayStatus>,
    nonce: watch::Sender<String>,
    desired: watch::Sender<Option<Bytes>>,
    commands: mpsc::Sender<Bytes>,
    conditions: super::SetCondition,
    metrics: Box<dyn Fn() -> samovar_wire::mqtt::Metrics + Send + Sync>,
    birth: watch::Receiver<Arc<super::BirthFacts>>,
    tls: watch::Receiver<Option<Arc<rustls::ClientConfig>>>,
    link: Option<Link>,
    reading: Option<oneshot::Receiver<Batch>>,
    saved: VecDeque<Publish>,
}

impl Shell {
    fn perform(&mut self, action: Action, session: &mut Session) {
        match action {
            Action::Connect { clean_start } => self.connect(clean_start, session.is_subscribed()),
            Action::Cut => self.link.iter().for_each(Link::cut),
            Action::Disconnect => self.link.iter().for_each(Link::disconnect),
            Action::Subscribe => {
                let filter = self.filter();
                if let Some(Err(error)) = self.link.as_ref().map(|link| link.subscribe(&filter)) {
                    tracing::warn!(%error, "cannot subscribe");
                }
            }
            Action::Publish(message) => self.publish(message, session),
            Action::Read { stream, after, max_bytes } => {
                self.reading = Some(self.outbox.read(stream, after, max_bytes));
            }
            Action::Acknowledge { stream, up_to } => self.outbox.acknowledge(stream, up_to),
        }
    }

    fn connect(&mut self, clean_start: bool, subscribed: bool) {
        self.nonce.send_replace(new_nonce());
        self.connected_at = wall();
        let tls = self.tls.borrow().clone();
        self.status.send_modify(|status| status.connected_with.clone_from(&tls));
        let properties = LastWillProperties {
            delay_interval: Some(WILL_DELAY_S),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        // A struct of numbers and short texts always has a form as JSON.
        let will = self.envelopes.will(self.connected_at).unwrap_or_default();
        let will = LastWill::new(self.topic(Channel::Online), will, QoS::AtLeastOnce, true, Some(properties));
        self.link = Some(Link::open(
            &self.settings,
            ConnectWith {
                will,
                clean_start,
                tls,
                filter: self.filter(),
                subscribed,
                saved: std::mem::take(&mut self.saved),
                worth_saving,
            },
        ));
    }

    fn publish(&mut self, message: Message, session: &mut Session) {
        let at = wall();
        let is_metrics = matches!(message, Message::Metrics);
        let envelopes = &self.envelopes;
        let (channel, retain, payload) = match message {
            Message::Birth => {
                let facts = Arc::clone(&self.birth.borrow());
                (Channel::Online, true, envelopes.birth(at, &facts, &self.nonce.borrow(), self.connected_at))
            }
            Message::Offline => (Channel::Online, true, envelopes.offline(at)),
            Message::State(state) => (Channel::State, true, envelopes.state(at, &state)),
            Message::Beat(state) => (Channel::State, false, envelopes.beat(at, &state)),
            Message::Metrics => (Channel::Metrics, false, envelopes.metrics(at, &(self.metrics)())),
            Message::Reply(data) => (Channel::Reply, false, envelopes.raw(Channel::Reply, at, &data)),
            Message::Events(batch) => {
                (Channel::Events, false, envelopes.raw(Channel::Events, at, &batch.data))
            }
        };
        let qos = if is_metrics { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let topic = self.topic(channel);
        let sent = match (payload, &self.link) {
            (Ok(payload), Some(link)) => link.submit(&topic, qos, retain, payload.into()),
            // Metrics with a number that JSON does not know are written as null, so no message fails to be written.
            (Err(_), _) | (_, None) => Err(SubmitError::Full),
        };
        match sent {
            Ok(()) => self.status.send_modify(|status| status.published += 1),
            Err(error) => {
                if !is_metrics {
                    session.not_sent(error == SubmitError::Full);
                }
                self.dropped(format!("{topic}: {error}"));
            }
        }
    }

    fn happened(&mut self, event: Option<LinkEvent>, session: &mut Session) {
        match event {
            Some(LinkEvent::Connected { window, max_packet, requeued, subscribing }) => {
                session.connected(window, max_packet, requeued, subscribing, mono());
                self.status.send_modify(|status| {
                    status.connected = true;
                    status.since = Some(wall());
                    status.connects += 1;
                    status.subscribed = session.is_subscribed();
                });
                (self.conditions)(Condition::RelayDisconnected, None);
                tracing::info!(broker = %self.settings.url, "connected");
            }
            Some(LinkEvent::Acknowledged(result)) => {
                session.publish_acknowledged();
                match result {
                    Ok(()) => self.status.send_modify(|status| status.acked += 1),
                    Err(refusal) => self.dropped(format!("the broker refused a message: {refusal}")),
                }
            }
            Some(LinkEvent::Subscribed(result)) => {
                session.subscribed(result.is_ok(), mono());
                self.status.send_modify(|status| {
                    status.subscribed = result.is_ok();
                    if let Err(refusal) = result {
                        status.last_error = Some(format!("the broker refused the subscription: {refusal}"));
                    }
                });
            }
            Some(LinkEvent::Received(publish)) => self.received(&publish, session),
            Some(LinkEvent::Ended(ended)) => {
                self.saved = ended.saved;
                session.ended(ended.why.is_oversized_packet(), fastrand::f64(), mono());
                self.ended(&ended.why.to_string(), session.is_done());
            }
            // The task of the connection is gone without a word, which only a defect of the library can do.
            None => {
                session.ended(false, fastrand::f64(), mono());
                self.ended("the connection broke down", session.is_done());
            }
        }
    }

    fn ended(&mut self, why: &str, for_good: bool) {
        self.link = None;
        tracing::info!(broker = %self.settings.url, why, "not connected");
        self.status.send_modify(|status| {
            if status.connected || status.since.is_none() {
                status.since = Some(wall());
            }
            status.connected = false;
            status.subscribed = false;
            status.last_error = Some(why.to_owned());
        });
        // A relay that was told to end is not missed.
        (self.conditions)(Condition::RelayDisconnected, Some(why.to_owned()).filter(|_| !for_good));
    }

    fn received(&mut self, publish: &Publish, session: &mut Session) {
        let topic = std::str::from_utf8(&publish.topic).ok().and_then(Topic::parse);
        let channel = topic.map(|topic| topic.channel);
        // A slice would keep the whole network buffer alive for as long as somebody holds the message.
        let payload = Bytes::copy_from_slice(&publish.payload);
        if payload.len() > MAX_MESSAGE_BYTES {
            return self.dropped("a message from the broker was too large".into());
        }
        match channel {
            // An empty retained message is a retained message deleted.
            Some(Channel::Desired | Channel::Command) if payload.is_empty() => {}
            Some(Channel::Desired) => {
                self.desired.send_replace(Some(payload));
            }
            Some(Channel::Command) => {
                if self.commands.try_send(payload).is_err() {
                    self.dropped("a command was dropped: too many wait".into());
                }
            }
            Some(Channel::Ack) => match Ack::parse(&payload) {
                Some(ack) if session.acknowledged(&ack, mono()) => {}
                _ => tracing::warn!("an acknowledgement makes no sense and is ignored"),
            },
            _ => tracing::debug!(topic = ?publish.topic, "a message on a topic of no meaning is ignored"),
        }
    }

    fn dropped(&self, why: String) {
        tracing::warn!(why, "a message was given up");
        self.status.send_modify(|status| {
            status.dropped += 1;
            status.last_error = Some(why);
        });
    }

    fn topic(&self, channel: Channel) -> String {
        let settings = &self.settings;
        Topic { environment: settings.environment.clone(), device: settings.device.clone(), channel }
            .to_string()
    }

    fn filter(&self) -> String {
        device_filter(&self.settings.environment, &self.settings.device)
    }
}
