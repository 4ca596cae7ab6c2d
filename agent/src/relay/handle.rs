//! What the rest of the agent holds of the relay: verbs, no channel ends.

use super::message::{BirthFacts, StateDocument};
use super::outbox::Outbox;
use super::settings::RelaySettings;
use super::{SetCondition, run};
use crate::heartbeat::Heartbeat;
use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use samovar_wire::{Timestamp, encoding};
use serde::Serialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Replies that wait for the loop; [`RelayHandle::reply`] refuses when it is full.
const REPLIES: usize = 16;
/// Commands that wait for their reader; more are dropped and counted, the fleet repeats them.
const COMMANDS: usize = 16;
/// Largest `data` of a reply: a part of 64 KiB, written as JSON.
const REPLY_MAX_BYTES: usize = 128 * 1024;
/// A stop that takes longer is cut short.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// What the relay reads from the rest of the agent.
pub struct RelayInputs {
    /// The device's state; every change of its digest is sent.
    pub state: watch::Receiver<Arc<StateDocument>>,
    /// What a birth says; every change makes a new one.
    pub birth: watch::Receiver<Arc<BirthFacts>>,
    /// For `mqtts://` and `wss://`; a new value makes a new connection at once.
    pub tls: watch::Receiver<Option<Arc<rustls::ClientConfig>>>,
    /// Asked for once a minute while connected; must be quick.
    pub metrics: Box<dyn Fn() -> samovar_wire::mqtt::Metrics + Send + Sync>,
    /// The events.
    pub outbox: Outbox,
    /// Told of `RelayDisconnected`.
    pub conditions: SetCondition,
    /// Fed by the loop.
    pub heartbeat: Option<Heartbeat>,
}

/// How the relay is doing.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RelayStatus {
    /// Whether the broker has us.
    pub connected: bool,
    /// Since when it is so; absent before the first answer.
    pub since: Option<Timestamp>,
    /// Whether the broker has confirmed the subscription.
    pub subscribed: bool,
    /// Why the last connection ended or failed, or what the broker refused.
    pub last_error: Option<String>,
    /// Connections made since the start.
    pub connects: u64,
    /// Messages handed to a connection.
    pub published: u64,
    /// Publishes the broker acknowledged.
    pub acked: u64,
    /// Messages that were given up: too large, refused by the broker, or without room for them here.
    pub dropped: u64,
    /// The TLS configuration of the present connection; compare with `Arc::ptr_eq` to see that a renewed certificate works.
    #[serde(skip)]
    pub connected_with: Option<Arc<rustls::ClientConfig>>,
}

/// A reply that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Too many wait already: try again later.
    #[error("too many replies wait for the connection")]
    Busy,
    /// The relay has ended.
    #[error("the relay has ended")]
    Ended,
    /// Larger than a message may be.
    #[error("a reply of {0} bytes is larger than a message may be")]
    TooLarge(usize),
    /// It has no form as JSON.
    #[error("a reply cannot be written as JSON: {0}")]
    NotJson(String),
}

/// What the handle asks of the loop.
pub(super) enum Order {
    Birth,
    Stop,
}

/// The loop's ends of everything.
pub(super) struct LoopEnds {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) replies: mpsc::Receiver<Box<RawValue>>,
    pub(super) status: watch::Sender<RelayStatus>,
    pub(super) nonce: watch::Sender<String>,
    pub(super) desired: watch::Sender<Option<Bytes>>,
    pub(super) commands: mpsc::Sender<Bytes>,
}

/// Starts the relay.
pub struct Relay;

/// The verbs of a running relay. Dropping the last one ends the relay as [`RelayHandle::stop`] does, without waiting.
#[derive(Debug)]
pub struct RelayHandle {
    orders: mpsc::Sender<Order>,
    replies: mpsc::Sender<Box<RawValue>>,
    status: watch::Receiver<RelayStatus>,
    nonce: watch::Sender<String>,
    task: JoinHandle<()>,
}

/// Reader of `dn/command`: signed envelopes as bytes, not looked at.
#[derive(Debug)]
pub struct Commands(mpsc::Receiver<Bytes>);

/// Reader of `dn/desired`: the newest signed envelope as bytes, not looked at.
#[derive(Debug)]
pub struct DesiredState(watch::Receiver<Option<Bytes>>);

impl Relay {
    /// Starts the loop in the present runtime. Returns at once; the connection is made in the background, for ever.
    #[must_use]
    pub fn start(settings: RelaySettings, inputs: RelayInputs) -> (RelayHandle, DesiredState, Commands) {
        let (orders, orders_end) = mpsc::channel(4);
        let (replies, replies_end) = mpsc::channel(REPLIES);
        let (status_end, status) = watch::channel(RelayStatus::default());
        let (commands_end, commands) = mpsc::channel(COMMANDS);
        let (desired_end, desired) = watch::channel(None);
        let nonce = watch::Sender::new(new_nonce());
        let ends = LoopEnds {
            orders: orders_end,
            replies: replies_end,
            status: status_end,
            nonce: nonce.clone(),
            desired: desired_end,
            commands: commands_end,
        };
        let task = tokio::spawn(run::run(settings, inputs, ends));
        let handle = RelayHandle { orders, replies, status, nonce, task };
        (handle, DesiredState(desired), Commands(commands))
    }
}

impl RelayHandle {
    /// Sends a reply to a command; never waits.
    ///
    /// # Errors
    /// When it is too large or too many wait.
    pub fn reply(&self, data: &impl Serialize) -> Result<(), ReplyError> {
        let data =
            serde_json::value::to_raw_value(data).map_err(|error| ReplyError::NotJson(error.to_string()))?;
        if data.get().len() > REPLY_MAX_BYTES {
            return Err(ReplyError::TooLarge(data.get().len()));
        }
        self.replies.try_send(data).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReplyError::Busy,
            mpsc::error::TrySendError::Closed(_) => ReplyError::Ended,
        })
    }

    /// What a command must carry now to prove that it is fresh.
    #[must_use]
    pub fn nonce(&self) -> String {
        self.nonce.borrow().clone()
    }

    /// Makes a new nonce, because a command has used the old one, and tells the fleet with a new birth.
    pub fn rotate_nonce(&self) {
        self.nonce.send_replace(new_nonce());
        // A full queue holds a request for a birth already, and that birth will carry this nonce.
        let _ = self.orders.try_send(Order::Birth);
    }

    /// How the relay is doing now.
    #[must_use]
    pub fn status(&self) -> RelayStatus {
        self.status.borrow().clone()
    }

    /// Follows [`Self::status`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<RelayStatus> {
        self.status.clone()
    }

    /// Tells the fleet that the device goes, disconnects and ends, within a second. Events stay in the outbox.
    pub async fn stop(mut self) {
        let stopped = async {
            // An error means that the loop has ended already.
            let _ = self.orders.send(Order::Stop).await;
            let _ = (&mut self.task).await;
        };
        if tokio::time::timeout(STOP_LIMIT, stopped).await.is_err() {
            tracing::warn!("the relay did not end in time");
            self.task.abort();
        }
    }
}

impl Commands {
    /// The next command; `None` when the relay has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

impl DesiredState {
    /// The newest desired state that was not given yet; `None` when the relay has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.0.changed().await.ok()?;
            let newest = self.0.borrow_and_update().clone();
            if newest.is_some() {
                return newest;
            }
        }
    }
}

/// 128 random bits in hexadecimal. It is published, so it need not be secret, only never seen before.
pub(super) fn new_nonce() -> String {
    let mut bytes = [0; 16];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => encoding::hex(&bytes),
        Err(_) => uuid::Uuid::now_v7().simple().to_string(),
    }
}
