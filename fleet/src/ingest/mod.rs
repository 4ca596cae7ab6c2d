//! Devices' side of the fleet over MQTT: what they say is stored, what they should be is published.
//!
//! ```text
//! broker ──► client ──► message ──► fold, keep (batches, one transaction) ──► acknowledge to device, then to broker
//!                                      │
//!                                      ├──► changes ──► console, API (SSE)
//! route table ──► desired ──► client ◄─┘ (a birth that is behind)
//! ```
//!
//! Promises: a message is acknowledged, to the device and to the broker, only after the database has committed it; each
//! event is stored once however often it comes; the newest report wins in whatever order reports come; what cannot be
//! read is counted and dropped and never stops the rest; a database that is away stops the flow without losing anything.
//! The broker is only ever a broker: embedded, Mosquitto or a cluster, all by the same code.
//!
//! | queue | bound | when full |
//! |---|---|---|
//! | outbox to the broker | 20,000 messages | acknowledgements are dropped (devices ask again), desired states wait |
//! | deliveries from the broker | 4,000 messages | the connection is dropped; the broker delivers again |
//! | devices to compare | 10,000 names | dropped; the next birth or table finds them |
//! | orders in need of the database | – | batches are larger and rarer, and of states and metrics only the last value of each device is stored |
//! | changes to listeners | 1,024 | a slow listener is told to read everything again |

pub mod client;
pub mod desired;
pub mod entity;
pub mod figures;
pub mod fold;
pub mod http;
mod keep;
pub mod live;
pub mod message;
mod rows;
mod run;
pub mod schema;
mod shed;
#[cfg(test)]
mod tests;
pub mod url;

use crate::db::Database;
use crate::overload::Overload;
use client::{Link, LinkConfig, LinkError, LinkTasks};
use desired::DesiredConfig;
use samovar_wire::DeviceId;
use samovar_wire::mqtt::ingest_filter;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Devices waiting to be compared with what they should be.
const TO_CHECK: usize = 10_000;
/// Changes that a listener may be behind.
const CHANGES: usize = 1024;

/// What the flow needs.
#[derive(Clone)]
pub struct IngestConfig {
    /// The broker.
    pub url: url::BrokerUrl,
    /// Our client ID there: the same after each restart, another one for each server.
    pub client_id: String,
    /// For `mqtts://`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Desired states.
    pub desired: DesiredConfig,
    /// How the orders are doing.
    pub overload: Overload,
}

/// Something about a device that people see has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The device.
    pub device: DeviceId,
    /// Its store.
    pub store: String,
    /// New events, not a new state.
    pub events: bool,
}

/// What the flow has done since the server started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages taken from the broker.
    pub received: AtomicU64,
    /// Messages that could not be read.
    pub refused: AtomicU64,
    /// Messages of devices that nobody registered.
    pub strangers: AtomicU64,
    /// Messages of devices whose certificates are all revoked.
    pub revoked: AtomicU64,
    /// Messages that the database refused for good.
    pub lost: AtomicU64,
}

/// The flow as the rest of the server sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    changes: broadcast::Sender<Change>,
    counters: Arc<Counters>,
    table_changed: Arc<Notify>,
    revocations: Arc<Notify>,
    to_check: Option<mpsc::Sender<DeviceId>>,
    link: Option<Link>,
}

/// The flow's tasks.
#[derive(Debug)]
pub struct IngestTasks {
    stop: watch::Sender<bool>,
    loops: [JoinHandle<()>; 2],
    _link: LinkTasks,
}

impl Ingest {
    /// A server without a broker: nothing is ever heard.
    #[must_use]
    pub fn without_broker() -> Self {
        Self {
            changes: broadcast::channel(CHANGES).0,
            counters: Arc::default(),
            table_changed: Arc::default(),
            revocations: Arc::default(),
            to_check: None,
            link: None,
        }
    }

    /// Starts the flow.
    ///
    /// # Errors
    /// When `mqtts://` is asked for without certificates to trust.
    pub fn start(database: &Database, config: IngestConfig) -> Result<(Self, IngestTasks), LinkError> {
        let environment = config.desired.environment.clone();
        let (link, deliveries, link_tasks) = Link::start(LinkConfig {
            url: config.url,
            client_id: config.client_id,
            filters: vec![ingest_filter(&environment)],
            tls: config.tls,
        })?;
        let (to_check, checks) = mpsc::channel(TO_CHECK);
        let ingest =
            Self { link: Some(link.clone()), to_check: Some(to_check.clone()), ..Self::without_broker() };
        let (stop, stopping) = watch::channel(false);
        let storing = run::Storing {
            environment,
            database: database.clone(),
            link: link.clone(),
            changes: ingest.changes.clone(),
            counters: Arc::clone(&ingest.counters),
            to_check,
            acks: AtomicU64::new(1),
            overload: config.overload,
        };
        let desiring = run::Desiring {
            config: config.desired,
            database: database.clone(),
            link,
            table_changed: Arc::clone(&ingest.table_changed),
        };
        let loops = [
            tokio::spawn(storing.run(deliveries, stopping.clone())),
            tokio::spawn(desiring.run(checks, stopping)),
        ];
        Ok((ingest, IngestTasks { stop, loops, _link: link_tasks }))
    }

    /// Tells from now on what changes. A listener that lags is told so by the channel and reads everything again.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The counters and the connection, as Prometheus reads them.
    #[must_use]
    pub fn metrics(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::from(
            "# HELP samovar_fleet_mqtt_connected Whether there is a connection to the MQTT broker\n",
        );
        let counters = &*self.counters;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE samovar_fleet_mqtt_connected gauge");
        let _ = writeln!(text, "samovar_fleet_mqtt_connected {}", u8::from(self.is_connected()));
        let _ = writeln!(
            text,
            "# HELP samovar_fleet_mqtt_messages_total Messages of devices by what became of them"
        );
        let _ = writeln!(text, "# TYPE samovar_fleet_mqtt_messages_total counter");
        for (outcome, counter) in [
            ("received", &counters.received),
            ("refused", &counters.refused),
            ("stranger", &counters.strangers),
            ("revoked", &counters.revoked),
            ("lost", &counters.lost),
        ] {
            let number = counter.load(std::sync::atomic::Ordering::Relaxed);
            let _ = writeln!(text, "samovar_fleet_mqtt_messages_total{{outcome=\"{outcome}\"}} {number}");
        }
        text
    }

    /// A route table was published: every device gets a new desired state.
    pub fn route_table_published(&self) {
        self.table_changed.notify_one();
    }

    /// What a device should be was changed: it is told, and so is who watches it.
    pub fn desired_changed(&self, device: &DeviceId, store: &str) {
        if let Some(to_check) = &self.to_check {
            // When full: the next look at the overrides finds it.
            let _ = to_check.try_send(device.clone());
        }
        // Nobody listening is fine.
        let _ = self.changes.send(Change { device: device.clone(), store: store.to_owned(), events: false });
    }

    /// A device's certificates were revoked: it is cut off, and who watches it is told.
    pub fn revoked(&self, device: &DeviceId, store: &str) {
        self.revocations.notify_one();
        // Nobody listening is fine.
        let _ = self.changes.send(Change { device: device.clone(), store: store.to_owned(), events: false });
    }

    /// Wakes whoever cuts off connections.
    #[must_use]
    pub fn revocations(&self) -> Arc<Notify> {
        Arc::clone(&self.revocations)
    }

    /// Whether there is a connection to the broker right now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_connected)
    }
}

impl IngestTasks {
    /// Finishes the batch in hand and ends.
    pub async fn stop(self, deadline: Duration) {
        let _ = self.stop.send(true);
        for mut task in self.loops {
            if timeout(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
