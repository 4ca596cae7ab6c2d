//! IO: one connection of the MQTT library, kept within five rules. The library is sound on the happy path; each rule
//! closes a hole in it that was seen to lose messages or to hang for good.
//!
//! 1. A deadline of 1.5 keep-alives around each `poll`: pings make it return at least once per keep-alive, so a longer
//!    silence is a write that is stuck on a peer that stopped reading, which the library never notices.
//! 2. When a connection ends, the requests it still held are saved, the one in `collision` included.
//! 3. When the broker has lost the session, saved publishes get new packet IDs, the subscription is made again and
//!    the publishes are queued again; the library would drop all of it without a word.
//! 4. The task that polls never awaits a publish or subscribe: whoever publishes uses [`Link::submit`], which refuses
//!    when the queue is full. (The task does await room in the queue of events; the loop behind that queue never waits
//!    for this task, so the wait ends.)
//! 5. Limits are ours: packet sizes both ways, keep-alive, window, roots of trust, no topic aliases.
//!
//! Each connection has an event loop of its own, so nothing of an old one (numbering, window, unread events) leaks
//! into the next. What survives is the list of saved publishes, and only those that nobody else would send again.

use super::settings::{RelaySettings, Scheme};
use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, ConnectReturnCode, Filter, LastWill, Packet, PubAckReason, Publish,
    Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Request, StateError};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use samovar_wire::mqtt::MAX_MESSAGE_BYTES;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Publishes of quality 1 that may wait for the broker's acknowledgement.
pub(super) const WINDOW: u16 = 64;
/// Largest packet either way: the largest message, and room for its topic and properties.
const MAX_PACKET_BYTES: usize = MAX_MESSAGE_BYTES + 4 * 1024;
/// Requests that may wait for the polling task: the window, and those of quality 0 beside it.
const REQUESTS: usize = WINDOW as usize + 16;
/// Events that may wait for the loop. Full: the polling task waits, and TCP slows the broker down.
const EVENTS: usize = 32;
/// What the broker may send before we acknowledge.
const RECEIVE_MAXIMUM: u16 = 16;
/// The broker keeps our session this long.
const SESSION_EXPIRY_S: u32 = 24 * 3600;
const SHORTEST_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What one connection says to the loop.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The broker took us; `requeued` saved publishes are on their way again.
    Connected {
        /// Publishes of quality 1 the broker lets wait at a time.
        window: u16,
        /// Largest packet that may be sent.
        max_packet: usize,
        /// Saved publishes that were queued again and will be acknowledged like new ones.
        requeued: usize,
        /// Whether the subscription was asked for.
        subscribing: bool,
    },
    /// The broker acknowledged one publish, or refused it in these words.
    Acknowledged(Result<(), String>),
    /// The broker answered the subscription.
    Subscribed(Result<(), String>),
    /// A message for us.
    Received(Publish),
    /// The connection is over. Always the last event.
    Ended(Ended),
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) why: LinkError,
    /// What must be sent on the next connection.
    pub(super) saved: VecDeque<Publish>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// We asked for it.
    #[error("closed by this device")]
    Closed,
    /// Rule 1.
    #[error("the broker did not read or answer for {} s", .0.as_secs())]
    Stalled(Duration),
    /// The broker does not let us in.
    #[error("the broker refused the connection: {0:?}")]
    Refused(ConnectReturnCode),
    /// The broker's limits leave no way to publish.
    #[error("the broker allows no message to wait for its acknowledgement")]
    NoWindow,
    /// Anything the library reports.
    #[error("{0}")]
    Connection(Box<ConnectionError>),
    /// The address is encrypted and there is no certificate yet.
    #[error("the broker's address asks for TLS and no TLS configuration is there yet")]
    NoTls,
}

impl LinkError {
    /// A packet was larger than our limit. The broker would send it again as long as it keeps the session.
    pub(super) fn is_oversized_packet(&self) -> bool {
        use rumqttc::v5::mqttbytes::Error;
        let Self::Connection(error) = self else { return false };
        matches!(
            **error,
            ConnectionError::MqttState(
                StateError::Deserialization(Error::PayloadSizeLimitExceeded { .. })
                    | StateError::IncomingPacketTooLarge { .. }
            )
        )
    }
}

/// A publish that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SubmitError {
    /// It can never be sent on this connection.
    #[error("{bytes} bytes are more than the {limit} that may be sent")]
    TooLarge {
        /// Its size as a packet.
        bytes: usize,
        /// The smaller of our limit and the broker's.
        limit: usize,
    },
    /// The queue is full or the connection is over.
    #[error("the connection takes no more")]
    Full,
}

/// The loop's end of one connection.
pub(super) struct Link {
    client: AsyncClient,
    cut: Arc<Notify>,
    events: mpsc::Receiver<LinkEvent>,
    max_packet: usize,
}

/// What a new connection needs beside the settings.
pub(super) struct ConnectWith {
    /// Published by the broker when we are gone.
    pub(super) will: LastWill,
    /// Ask the broker to forget what it kept for us.
    pub(super) clean_start: bool,
    /// For encrypted addresses.
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// The filter to subscribe to.
    pub(super) filter: String,
    /// Whether the broker has confirmed the subscription before.
    pub(super) subscribed: bool,
    /// From the connection before.
    pub(super) saved: VecDeque<Publish>,
    /// Which publishes are worth saving: those that nobody else would send again.
    pub(super) worth_saving: fn(&Publish) -> bool,
}

impl Link {
    /// Starts a connection; its first event is `Connected` or `Ended`.
    pub(super) fn open(settings: &RelaySettings, with: ConnectWith) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        let cut = Arc::new(Notify::new());
        let options = match options(settings, &with) {
            Ok(options) => options,
            Err(why) => {
                // The channel is new and has room.
                let _ = sender.try_send(LinkEvent::Ended(Ended { why, saved: with.saved }));
                let (client, _) = AsyncClient::new(MqttOptions::new("unused", "localhost", 1), 1);
                return Self { client, cut, events, max_packet: 0 };
            }
        };
        let (client, event_loop) = AsyncClient::new(options, REQUESTS);
        let poller = Poller {
            event_loop,
            keep_alive: keep_alive(settings),
            connect_limit: settings.connect_timeout + Duration::from_secs(1),
            filter: with.filter,
            subscribed: with.subscribed,
            saved: with.saved,
            worth_saving: with.worth_saving,
            window: 0,
        };
        tokio::spawn(poller.run(sender, Arc::clone(&cut)));
        Self { client, cut, events, max_packet: MAX_PACKET_BYTES }
    }

    /// What the connection says next; `None` after `Ended`.
    pub(super) async fn next(&mut self) -> Option<LinkEvent> {
        let event = self.events.recv().await;
        if let Some(LinkEvent::Connected { max_packet, .. }) = &event {
            self.max_packet = *max_packet;
        }
        event
    }

    /// Hands a publish over. Never waits.
    pub(super) fn submit(
        &self,
        topic: &str,
        qos: QoS,
        retain: bool,
        payload: Bytes,
    ) -> Result<(), SubmitError> {
        // The packet ID is not there yet and takes two bytes more.
        let bytes = Publish::new(topic, qos, payload.clone(), None).size() + 2;
        if bytes > self.max_packet {
            return Err(SubmitError::TooLarge { bytes, limit: self.max_packet });
        }
        self.client.try_publish(topic, qos, retain, payload).map_err(|_| SubmitError::Full)
    }

    /// Asks for the subscription once more. Never waits.
    pub(super) fn subscribe(&self, filter: &str) -> Result<(), SubmitError> {
        self.client.try_subscribe(filter, QoS::AtLeastOnce).map_err(|_| SubmitError::Full)
    }

    /// Says good-bye, so that the broker keeps the will to itself; `Ended` follows.
    pub(super) fn disconnect(&self) {
        if self.client.try_disconnect().is_err() {
            self.cut();
        }
    }

    /// Drops the connection without a word; `Ended` follows.
    pub(super) fn cut(&self) {
        self.cut.notify_one();
    }
}

impl Drop for Link {
    /// Nobody listens any more.
    fn drop(&mut self) {
        self.cut();
    }
}

fn keep_alive(settings: &RelaySettings) -> Duration {
    // The library panics below five seconds.
    settings.keep_alive.clamp(SHORTEST_KEEP_ALIVE, Duration::from_secs(u64::from(u16::MAX)))
}

fn options(settings: &RelaySettings, with: &ConnectWith) -> Result<MqttOptions, LinkError> {
    let url = &settings.url;
    let host =
        if matches!(url.scheme, Scheme::Ws | Scheme::Wss) { url.to_string() } else { url.host.clone() };
    let mut options = MqttOptions::new(settings.device.as_str(), host, url.port);
    options.set_transport(transport(url.scheme, with.tls.clone())?);
    options.set_keep_alive(keep_alive(settings));
    options.set_connection_timeout(settings.connect_timeout.as_secs().max(1));
    options.set_clean_start(with.clean_start);
    options.set_last_will(with.will.clone());
    options.set_outgoing_inflight_upper_limit(WINDOW);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(SESSION_EXPIRY_S);
    properties.receive_maximum = Some(RECEIVE_MAXIMUM);
    properties.max_packet_size = u32::try_from(MAX_PACKET_BYTES).ok();
    properties.topic_alias_max = Some(0);
    options.set_connect_properties(properties);
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if let Some(login) = &settings.login {
        options.set_credentials(&login.username, &login.password);
    }
    Ok(options)
}

fn transport(scheme: Scheme, tls: Option<Arc<rustls::ClientConfig>>) -> Result<Transport, LinkError> {
    let tls = || tls.map(TlsConfiguration::Rustls).ok_or(LinkError::NoTls);
    Ok(match scheme {
        Scheme::Mqtt => Transport::Tcp,
        Scheme::Mqtts => Transport::Tls(tls()?),
        Scheme::Ws => Transport::Ws,
        Scheme::Wss => Transport::Wss(tls()?),
    })
}

/// The task that owns the library's event loop.
struct Poller {
    event_loop: EventLoop,
    keep_alive: Duration,
    connect_limit: Duration,
    filter: String,
    subscribed: bool,
    saved: VecDeque<Publish>,
    worth_saving: fn(&Publish) -> bool,
    /// Zero until connected.
    window: u16,
}

impl Poller {
    async fn run(mut self, events: mpsc::Sender<LinkEvent>, cut: Arc<Notify>) {
        let why = tokio::select! {
            why = self.poll_until_over(&events) => why,
            () = cut.notified() => LinkError::Closed,
        };
        self.rescue();
        // What had been read before the end is delivered before it.
        while let Some(event) = self.event_loop.state.events.pop_front() {
            if let Some(event) = translate(event) {
                let _ = events.send(event).await;
            }
        }
        let saved = self.saved;
        let _ = events.send(LinkEvent::Ended(Ended { why, saved })).await;
    }

    async fn poll_until_over(&mut self, events: &mpsc::Sender<LinkEvent>) -> LinkError {
        loop {
            self.feed();
            let limit = self.deadline();
            let event = match tokio::time::timeout(limit, self.event_loop.poll()).await {
                Err(_) => return LinkError::Stalled(limit),
                Ok(Err(ConnectionError::ConnectionRefused(code))) => return LinkError::Refused(code),
                Ok(Err(error)) => return LinkError::Connection(Box::new(error)),
                Ok(Ok(event)) => event,
            };
            let said = match event {
                Event::Outgoing(Outgoing::Disconnect) => return LinkError::Closed,
                Event::Incoming(Packet::ConnAck(connack)) => match self.connected(&connack) {
                    Ok(event) => Some(event),
                    Err(why) => return why,
                },
                other => translate(other),
            };
            if let Some(said) = said
                && events.send(said).await.is_err()
            {
                return LinkError::Closed;
            }
        }
    }

    /// Rule 1. The broker may have asked for another keep-alive than ours.
    fn deadline(&self) -> Duration {
        let limit = self.event_loop.options.keep_alive().mul_f64(1.5);
        if self.window == 0 { limit.max(self.connect_limit) } else { limit }
    }

    /// Rules 3 and 5, at the broker's first answer.
    fn connected(&mut self, connack: &ConnAck) -> Result<LinkEvent, LinkError> {
        let properties = connack.properties.as_ref();
        self.window = properties.and_then(|p| p.receive_max).map_or(WINDOW, |maximum| maximum.min(WINDOW));
        if self.window == 0 {
            return Err(LinkError::NoWindow);
        }
        let broker_limit =
            properties.and_then(|p| p.max_packet_size).and_then(|max| usize::try_from(max).ok());
        let max_packet = broker_limit.unwrap_or(MAX_PACKET_BYTES).min(MAX_PACKET_BYTES);
        if self.event_loop.options.keep_alive().is_zero() {
            // The broker gave up on keep-alive; the library would send pings without a pause.
            self.event_loop.options.set_keep_alive(self.keep_alive);
        }
        self.saved.retain(|publish| publish.size() + 2 <= max_packet);
        if !connack.session_present {
            self.saved.iter_mut().for_each(|publish| publish.pkid = 0);
        }
        let subscribing = !(connack.session_present && self.subscribed);
        if subscribing {
            let filter = Filter::new(&self.filter, QoS::AtLeastOnce);
            self.event_loop.pending.push_back(Request::Subscribe(Subscribe::new(filter, None)));
        }
        Ok(LinkEvent::Connected { window: self.window, max_packet, requeued: self.saved.len(), subscribing })
    }

    /// Rule 3: queues saved publishes again, within the window, which the library does not heed for `pending`.
    fn feed(&mut self) {
        let state = &self.event_loop.state;
        let room = state.inflight() < self.window && state.collision.is_none();
        if room
            && self.event_loop.pending.is_empty()
            && let Some(publish) = self.saved.pop_front()
        {
            self.event_loop.pending.push_back(Request::Publish(publish));
        }
    }

    /// Rule 2.
    fn rescue(&mut self) {
        self.event_loop.clean();
        let collision = self.event_loop.state.collision.take();
        let pending = self.event_loop.pending.drain(..).filter_map(|request| match request {
            Request::Publish(publish) => Some(publish),
            _ => None,
        });
        let held = pending.chain(collision).filter(|publish| publish.qos == QoS::AtLeastOnce);
        let mut saved: VecDeque<_> = held.filter(self.worth_saving).collect();
        saved.append(&mut self.saved);
        self.saved = saved;
    }
}

fn translate(event: Event) -> Option<LinkEvent> {
    let Event::Incoming(packet) = event else { return None };
    match packet {
        Packet::PubAck(ack) => Some(LinkEvent::Acknowledged(match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            refusal => Err(format!("{refusal:?}")),
        })),
        Packet::SubAck(ack) => {
            let refusal =
                ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
            Some(LinkEvent::Subscribed(refusal.map_or(Ok(()), |code| Err(format!("{code:?}")))))
        }
        Packet::Publish(publish) => Some(LinkEvent::Received(publish)),
        _ => None,
    }
}
