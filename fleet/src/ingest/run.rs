//! The two loops of the flow: storing what devices say, and publishing what they should be (IO).

use super::client::{Delivery, Link};
use super::desired::{self, Content, DesiredConfig};
use super::figures;
use super::keep::{self, Outcome, Todo};
use super::message::{self, Body, Message, Refused};
use super::{Change, Counters, shed};
use crate::clock;
use crate::db::Database;
use crate::hosts::wanted;
use crate::overload::Overload;
use crate::overload::admission::Class;
use samovar_wire::mqtt::{Ack, Channel, Envelope, Topic};
use samovar_wire::{DeviceId, Timestamp};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

/// A batch is stored when it has this many rows …
const BATCH_ROWS: usize = 500;
/// … or is this old.
const BATCH_AGE: Duration = Duration::from_millis(50);
/// The same when orders need the database: as many messages as the broker sends before it waits for us, once a second.
const LOADED_ROWS: usize = 1000;
const LOADED_AGE: Duration = Duration::from_secs(1);
/// How often silence is looked for.
const SWEEP: Duration = Duration::from_secs(15);
/// How often old events are deleted, and how old they get.
const FORGET: Duration = Duration::from_secs(600);
const KEEP_EVENTS: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often the database is asked for a newer route table (another server may have published it).
const TABLE_POLL: Duration = Duration::from_secs(3);
/// Tries of a batch before its messages are tried one by one.
const TRIES: u32 = 3;
/// An acknowledgement that was not delivered by then is of no use: the device asks again.
const ACK_EXPIRY_S: u32 = 3600;

/// Stores what devices say.
pub(super) struct Storing {
    pub(super) environment: String,
    pub(super) database: Database,
    pub(super) link: Link,
    pub(super) changes: broadcast::Sender<Change>,
    pub(super) counters: Arc<Counters>,
    pub(super) to_check: Sender<DeviceId>,
    pub(super) acks: AtomicU64,
    pub(super) overload: Overload,
}

impl Storing {
    /// Until `stop` or the link ends. A batch in hand is finished.
    pub(super) async fn run(self, mut deliveries: Receiver<Delivery>, mut stop: watch::Receiver<bool>) {
        let listening_since = clock::now();
        let (mut sweep, mut forget) = (interval(SWEEP), interval(FORGET));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        forget.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopped(&mut stop) => return,
                first = deliveries.recv() => match first {
                    Some(first) => self.batch(first, &mut deliveries).await,
                    None => return,
                },
                _ = sweep.tick() => self.end_presence(listening_since).await,
                _ = forget.tick() => self.forget().await,
            }
        }
    }

    async fn batch(&self, first: Delivery, deliveries: &mut Receiver<Delivery>) {
        let calm = self.overload.admits(Class::Status);
        let (most, age) = if calm { (BATCH_ROWS, BATCH_AGE) } else { (LOADED_ROWS, LOADED_AGE) };
        let until = Instant::now() + age;
        let (mut taken, mut messages, mut rows) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(delivery) = next {
            if let Some(message) = self.read(&delivery) {
                rows += weight(&message);
                messages.push(message);
            }
            taken.push(delivery);
            next = if rows < most { timeout_at(until, deliveries.recv()).await.ok().flatten() } else { None };
        }
        if !calm {
            self.overload.refused(Class::Status, shed::replaced(&mut messages));
        }
        self.store(&messages).await;
        for delivery in taken {
            self.link.done(delivery).await;
        }
    }

    fn read(&self, delivery: &Delivery) -> Option<Message> {
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        match message::read(&self.environment, &delivery.topic, &delivery.payload) {
            Ok(message) => Some(message),
            Err(Refused::Empty) => None,
            Err(refused) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                let topic: String = delivery.topic.chars().take(160).collect();
                tracing::warn!(%topic, reason = %crate::ingest::chain(&refused), "a message was dropped");
                None
            }
        }
    }

    /// Stores a batch, however long the database is away: until then the broker keeps what we did not acknowledge.
    /// Only a message that alone makes a healthy database refuse is given up.
    async fn store(&self, messages: &[Message]) {
        if messages.is_empty() {
            return;
        }
        for tries in 0_u32.. {
            match keep::keep(&self.database, messages, clock::now()).await {
                Ok(outcome) => return self.react(outcome),
                Err(error) => {
                    tracing::warn!(error = %crate::ingest::chain(&error), messages = messages.len(), "messages could not be stored");
                }
            }
            if tries + 1 >= TRIES && messages.len() > 1 {
                for message in messages {
                    Box::pin(self.store(std::slice::from_ref(message))).await;
                }
                return;
            }
            if tries + 1 >= TRIES && self.database.check().await.is_ok() {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
                tracing::error!(device = %messages[0].device, "the database refuses this message for good; it was dropped");
                return;
            }
            sleep(Duration::from_millis(100 << tries.min(5))).await;
        }
    }

    fn react(&self, outcome: Outcome) {
        if outcome.strangers > 0 {
            self.counters.strangers.fetch_add(outcome.strangers as u64, Ordering::Relaxed);
            tracing::warn!(
                messages = outcome.strangers,
                "messages of devices that are not registered were dropped"
            );
        }
        if outcome.revoked > 0 {
            self.counters.revoked.fetch_add(outcome.revoked as u64, Ordering::Relaxed);
            tracing::warn!(messages = outcome.revoked, "messages of revoked devices were dropped");
        }
        for ((device, stream), up_to) in outcome.acks {
            let ack = Ack { stream: Some(stream), up_to: u64::try_from(up_to).ok(), resync: false };
            self.acknowledge(&device, ack);
        }
        for (device, todos) in outcome.reactions {
            for todo in todos {
                match todo {
                    Todo::Resync => self.acknowledge(&device, Ack { resync: true, ..Ack::default() }),
                    // When full: the sweep for a newer table, or the next birth, finds the device again.
                    Todo::CheckDesired => drop(self.to_check.try_send(device.clone())),
                }
            }
        }
        self.tell(outcome.changed, false);
        self.tell(outcome.events, true);
    }

    fn tell(&self, devices: impl IntoIterator<Item = (DeviceId, String)>, events: bool) {
        for (device, store) in devices {
            // Nobody listening is fine; who listens too slowly is told to read everything again.
            let _ = self.changes.send(Change { device, store, events });
        }
    }

    fn acknowledge(&self, device: &DeviceId, ack: Ack) {
        let topic =
            Topic { environment: self.environment.clone(), device: device.clone(), channel: Channel::Ack };
        let envelope = Envelope {
            v: 1,
            id: uuid::Uuid::now_v7().to_string(),
            at: clock::now(),
            epoch: 0,
            seq: self.acks.fetch_add(1, Ordering::Relaxed),
            kind: Channel::Ack.message_type().to_owned(),
            data: ack,
        };
        let Ok(payload) = serde_json::to_vec(&envelope) else { return };
        if self.link.publish(topic.to_string(), payload, false, Some(ACK_EXPIRY_S)).is_err() {
            tracing::warn!(%device, "an acknowledgement found no room; the device will ask again");
        }
    }

    async fn end_presence(&self, listening_since: Timestamp) {
        match keep::expire(&self.database, listening_since, clock::now()).await {
            Ok(ended) => self.tell(ended, false),
            Err(error) => {
                tracing::warn!(error = %crate::ingest::chain(&error), "silent devices could not be looked for");
            }
        }
    }

    async fn forget(&self) {
        let before = clock::earlier(clock::now(), KEEP_EVENTS);
        if let Err(error) = keep::forget(&self.database, before).await {
            tracing::warn!(error = %crate::ingest::chain(&error), "old events could not be deleted");
        }
        if let Err(error) = wanted::forget(&self.database, clock::now()).await {
            tracing::warn!(error = %crate::ingest::chain(&error), "old host overrides could not be deleted");
        }
        if let Err(error) = figures::forget(&self.database, clock::now()).await {
            tracing::warn!(error = %crate::ingest::chain(&error), "old figures could not be deleted");
        }
    }
}

fn weight(message: &Message) -> usize {
    match &message.body {
        Body::Events(batch) => batch.events.len(),
        _ => 1,
    }
}

/// Publishes what devices should be.
pub(super) struct Desiring {
    pub(super) config: DesiredConfig,
    pub(super) database: Database,
    pub(super) link: Link,
    pub(super) table_changed: Arc<Notify>,
}

impl Desiring {
    /// Until `stop`.
    pub(super) async fn run(self, mut to_check: Receiver<DeviceId>, mut stop: watch::Receiver<bool>) {
        let mut content = None;
        let mut poll = interval(TABLE_POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopped(&mut stop) => return,
                _ = poll.tick() => {
                    self.refresh(&mut content).await;
                    self.overridden(&content).await;
                }
                () = self.table_changed.notified() => self.refresh(&mut content).await,
                Some(device) = to_check.recv() => {
                    let mut devices = BTreeSet::from([device]);
                    while let Ok(device) = to_check.try_recv() {
                        devices.insert(device);
                    }
                    self.check(&content, devices).await;
                }
            }
        }
    }

    async fn refresh(&self, content: &mut Option<Content>) {
        let known = content.as_ref().and_then(Content::version);
        match desired::latest_table(&self.database).await {
            Ok(newest) if content.is_some() && newest.as_ref().map(|row| row.version) == known => return,
            Ok(_) => {}
            Err(error) => {
                return tracing::warn!(error = %crate::ingest::chain(&error), "the newest route table could not be read");
            }
        }
        if let Err(error) = self.distribute(content).await {
            tracing::warn!(error = %crate::ingest::chain(&error), "a new route table could not be sent to every device; trying again");
            *content = None;
        }
    }

    async fn distribute(&self, content: &mut Option<Content>) -> Result<(), desired::DesiredError> {
        let new = content.insert(Content::load(&self.database, &self.config).await?);
        let sent = desired::sweep(&self.database, &self.config, new, &self.link, clock::now).await?;
        if sent > 0 {
            tracing::info!(devices = sent, route_table = new.version(), "new desired states published");
        }
        Ok(())
    }

    /// Another server may have changed overrides, and they end by themselves.
    async fn overridden(&self, content: &Option<Content>) {
        let Some(loaded) = content else { return };
        match desired::overridden(&self.database, loaded, clock::now()).await {
            Ok(devices) => self.check(content, devices.into_iter().collect()).await,
            Err(error) => {
                tracing::warn!(error = %crate::ingest::chain(&error), "host overrides could not be read");
            }
        }
    }

    async fn check(&self, content: &Option<Content>, devices: BTreeSet<DeviceId>) {
        let Some(content) = content else { return };
        for device in devices {
            let checked =
                desired::check(&self.database, &self.config, content, &self.link, &device, clock::now())
                    .await;
            if let Err(error) = checked {
                tracing::warn!(%device, error = %crate::ingest::chain(&error), "a desired state could not be published");
            }
        }
    }
}

/// Comes back when a stop is asked for or nobody is left to ask.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
