//! The fleet's connection to a broker: `rumqttc` 0.25 inside a guard.
//!
//! ```text
//! publish, acknowledge ──► outbox (bounded) ──► feeder task ──► rumqttc ──► broker
//!                                      Delivery (bounded) ◄── poll task ◄──┘
//! ```
//!
//! Promises, each of which `rumqttc` alone does not keep:
//! - The poll task never waits for anything but the broker: requests come from the feeder, deliveries go out without waiting.
//! - A stuck connection is noticed: no single poll may take longer than one and a half keep-alives.
//! - What was asked to be published survives a lost connection and a lost session.
//! - Subscriptions are made anew at each connection; a refused one is an error, not silence.
//! - Reconnects are spread over 1 to 60 s (full jitter).
//!
//! Deliveries are acknowledged to the broker only by [`Link::done`], after whoever took them has made them durable. When
//! the reader is so slow that deliveries fill up, the connection is dropped instead of the message: the broker, which
//! was never told that it arrived, delivers it again.

use super::url::BrokerUrl;
use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Filter, Packet, Publish, PublishProperties, SubAck, Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Request};
use rumqttc::{TlsConfiguration, Transport};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How often the broker hears from us at least.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT_S: u64 = 10;
/// How long the broker keeps our session while we are away.
const SESSION_EXPIRY_S: u32 = 24 * 3600;
/// Largest packet either way: the largest message and room for its topic.
const MAX_PACKET: u32 = 264 * 1024;
/// Deliveries that the broker may have under way to us.
const RECEIVE_MAXIMUM: u16 = 1000;
/// Deliveries waiting for the reader: what the broker may send at once, twice (again after a reconnect), and metrics.
const DELIVERIES: usize = 4 * RECEIVE_MAXIMUM as usize;
/// Publishes and acknowledgements waiting for the broker. Full: the publish is refused, the device asks again.
const OUTBOX: usize = 20_000;
/// Requests kept from a lost connection to the next; the oldest go first.
const SAVED: usize = 4000;
/// Requests inside `rumqttc`.
const REQUESTS: usize = 64;

/// How to reach a broker and what to listen to.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// The broker.
    pub url: BrokerUrl,
    /// Our name there; the same after each restart, so that the session is found again.
    pub client_id: String,
    /// What to listen to.
    pub filters: Vec<String>,
    /// For `mqtts://`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// A connection that cannot be tried.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No certificates to check the broker with.
    #[error("mqtts:// needs a TLS configuration")]
    NoTls,
}

/// Nothing more fits into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many messages wait for the broker")]
pub struct OutboxFull;

/// One message from the broker.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its topic.
    pub topic: String,
    /// Its content.
    pub payload: Bytes,
    connection: u64,
    packet: Publish,
}

enum Outgoing {
    Publish { topic: String, payload: Bytes, retain: bool, expiry_s: Option<u32> },
    Done(Box<Delivery>),
}

/// The writing end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    outbox: Sender<Outgoing>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    connected: AtomicBool,
    connection: AtomicU64,
}

/// The two tasks of a connection; dropping it ends them.
#[derive(Debug)]
pub struct LinkTasks([JoinHandle<()>; 2]);

impl Drop for LinkTasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl Link {
    /// Starts connecting, for as long as the returned tasks live.
    ///
    /// # Errors
    /// When `mqtts://` is asked for without certificates to trust.
    pub fn start(config: LinkConfig) -> Result<(Self, Receiver<Delivery>, LinkTasks), LinkError> {
        let options = options(&config)?;
        let (client, events) = AsyncClient::new(options, REQUESTS);
        let (outbox, to_send) = mpsc::channel(OUTBOX);
        let (deliver, deliveries) = mpsc::channel(DELIVERIES);
        let shared = Arc::new(Shared::default());
        let poll = Poll {
            events,
            deliver,
            shared: Arc::clone(&shared),
            saved: VecDeque::new(),
            config,
            failures: 0,
        };
        let tasks =
            LinkTasks([tokio::spawn(poll.run()), tokio::spawn(feed(client, to_send, Arc::clone(&shared)))]);
        Ok((Self { outbox, shared }, deliveries, tasks))
    }

    /// Hands a message over for publishing with QoS 1.
    ///
    /// # Errors
    /// When the outbox is full; the message is not kept.
    pub fn publish(
        &self,
        topic: String,
        payload: Vec<u8>,
        retain: bool,
        expiry_s: Option<u32>,
    ) -> Result<(), OutboxFull> {
        let message = Outgoing::Publish { topic, payload: payload.into(), retain, expiry_s };
        self.outbox.try_send(message).map_err(|_| OutboxFull)
    }

    /// Tells the broker that a delivery has been dealt with. Deliveries of an earlier connection are passed over: the
    /// broker will send them again.
    pub async fn done(&self, delivery: Delivery) {
        // The feeder ends only with the link itself.
        let _ = self.outbox.send(Outgoing::Done(Box::new(delivery))).await;
    }

    /// Whether there is a connection right now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Relaxed)
    }
}

fn options(config: &LinkConfig) -> Result<MqttOptions, LinkError> {
    let mut options = MqttOptions::new(&config.client_id, &config.url.host, config.url.port);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_connection_timeout(CONNECT_TIMEOUT_S)
        .set_clean_start(false)
        .set_session_expiry_interval(Some(SESSION_EXPIRY_S))
        .set_receive_maximum(Some(RECEIVE_MAXIMUM))
        .set_max_packet_size(Some(MAX_PACKET))
        .set_manual_acks(true)
        .set_outgoing_inflight_upper_limit(256);
    if let Some((user, password)) = &config.url.login {
        options.set_credentials(user, password);
    }
    if config.url.tls {
        let tls = config.tls.clone().ok_or(LinkError::NoTls)?;
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
    }
    Ok(options)
}

/// Moves requests from our outbox into `rumqttc`'s, waiting there so that the poll task never has to.
async fn feed(client: AsyncClient, mut to_send: Receiver<Outgoing>, shared: Arc<Shared>) {
    while let Some(outgoing) = to_send.recv().await {
        let sent = match outgoing {
            Outgoing::Publish { topic, payload, retain, expiry_s } => {
                let properties =
                    PublishProperties { message_expiry_interval: expiry_s, ..PublishProperties::default() };
                client.publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties).await
            }
            Outgoing::Done(delivery) if delivery.connection == shared.connection.load(Ordering::Acquire) => {
                client.ack(&delivery.packet).await
            }
            Outgoing::Done(_) => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The task that owns the event loop.
struct Poll {
    events: EventLoop,
    deliver: Sender<Delivery>,
    shared: Arc<Shared>,
    /// Requests of a lost connection, until the next one.
    saved: VecDeque<Request>,
    config: LinkConfig,
    failures: u32,
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Connection(Box<ConnectionError>),
    #[error("the broker did not take or give a byte for {} s", (KEEP_ALIVE * 3 / 2).as_secs())]
    Stalled,
    #[error("the broker refuses the subscription: {0:?}")]
    Refused(SubscribeReasonCode),
    #[error("deliveries come faster than they can be stored")]
    Full,
}

impl Poll {
    async fn run(mut self) {
        while !self.deliver.is_closed() {
            if let Err(lost) = self.step().await {
                self.shared.connected.store(false, Ordering::Relaxed);
                self.save();
                let pause = backoff(self.failures, fastrand::f64());
                self.failures = self.failures.saturating_add(1);
                tracing::warn!(broker = %self.config.url, error = %lost, retry_ms = pause.as_millis(), "no connection to the MQTT broker");
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn step(&mut self) -> Result<(), Lost> {
        let event = timeout(KEEP_ALIVE * 3 / 2, self.events.poll()).await.map_err(|_| Lost::Stalled)?;
        let event = event.map_err(|error| Lost::Connection(Box::new(error)))?;
        match event {
            Event::Incoming(Packet::ConnAck(ack)) => self.connected(&ack),
            Event::Incoming(Packet::SubAck(ack)) => self.subscribed(&ack)?,
            Event::Incoming(Packet::Publish(publish)) => self.delivered(publish)?,
            _ => {}
        }
        Ok(())
    }

    fn connected(&mut self, ack: &ConnAck) {
        self.shared.connection.fetch_add(1, Ordering::AcqRel);
        let filters = self.config.filters.iter().map(|filter| Filter::new(filter, QoS::AtLeastOnce));
        self.events.pending.push_back(Request::Subscribe(Subscribe::new_many(filters, None)));
        for request in self.saved.drain(..) {
            // The rest is made anew above or was meant for the connection that is gone.
            let Request::Publish(mut publish) = request else { continue };
            if !ack.session_present {
                publish.pkid = 0;
            }
            self.events.pending.push_back(Request::Publish(publish));
        }
    }

    fn subscribed(&mut self, ack: &SubAck) -> Result<(), Lost> {
        if let Some(refused) =
            ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)))
        {
            return Err(Lost::Refused(*refused));
        }
        self.failures = 0;
        if !self.shared.connected.swap(true, Ordering::Relaxed) {
            tracing::info!(broker = %self.config.url, "connected to the MQTT broker");
        }
        Ok(())
    }

    fn delivered(&mut self, packet: Publish) -> Result<(), Lost> {
        let delivery = Delivery {
            topic: String::from_utf8_lossy(&packet.topic).into_owned(),
            payload: packet.payload.clone(),
            connection: self.shared.connection.load(Ordering::Acquire),
            packet,
        };
        match self.deliver.try_send(delivery) {
            Err(mpsc::error::TrySendError::Full(lost)) if lost.packet.qos != QoS::AtMostOnce => {
                Err(Lost::Full)
            }
            // Metrics may be lost; a closed channel ends the loop.
            _ => Ok(()),
        }
    }

    /// Drops the connection and keeps what was not yet published.
    fn save(&mut self) {
        self.events.clean();
        if let Some(publish) = self.events.state.collision.take() {
            self.events.pending.push_back(Request::Publish(publish));
        }
        self.saved.extend(self.events.pending.drain(..));
        let surplus = self.saved.len().saturating_sub(SAVED);
        self.saved.drain(..surplus);
    }
}

/// Full jitter: anywhere between nothing and the limit, which doubles from 1 s to 60 s. `random` is in `0..1`.
fn backoff(failures: u32, random: f64) -> Duration {
    let limit = Duration::from_secs(1 << failures.min(6)).min(Duration::from_secs(60));
    limit.mul_f64(random.clamp(0.0, 1.0)).max(Duration::from_millis(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_spread_over_one_to_sixty_seconds() {
        assert_eq!(backoff(0, 1.0), Duration::from_secs(1));
        assert_eq!(backoff(3, 0.5), Duration::from_secs(4));
        assert_eq!(backoff(40, 1.0), Duration::from_secs(60));
        assert_eq!(backoff(40, 0.0), Duration::from_millis(20));
    }
}
