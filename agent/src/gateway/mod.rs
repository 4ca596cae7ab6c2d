//! The gateway: other programs of the store reach a service through the agent, with the device's identity, and keep
//! seeing the last good answer when the service cannot be reached.
//!
//! ```text
//! till ──► serve ──► Ways (which origin now, may answers be kept) ──► fetch ──► origin
//!            ▲                                                         │ 200 that may be kept
//!            └────── last good, Warning: 110, Age ◄── shelf ◄──────────┘
//! ```
//!
//! A `GET` of a service whose answers are kept:
//!
//! ```text
//! asked ──► waiting ── answer in time ──────────────► fresh (kept if it may be; 304 of the origin: the kept one)
//!              │ └──── no answer, 502-504, not the origin ─► stale if something is kept, else a problem
//!              └────── 2 s passed and something is kept ───► stale now; the request goes on and refreshes what is kept
//! ```
//!
//! Promises: whatever is not a `GET` of such a service passes through once, unkept and unrepeated; the till's cookies,
//! token and hop-by-hop headers stay here; redirects are handed on, never followed; at most
//! [`GatewaySettings::in_flight`] requests are under way, bodies and waits are bounded; what is kept is checked against
//! its digest before it is served and is bounded in bytes and count, the longest unused goes first. Absent on purpose:
//! freshness (the origin is asked every time it can be), retries, and orders, which have their own way in.

mod fetch;
mod policy;
mod serve;
mod shelf;

pub use serve::routes;

use crate::clock::{Mono, mono};
use crate::http::Failure;
use policy::Key;
use samovar_wire::{Country, DeviceId, OriginId, ServiceName, StoreId};
use shelf::{Kept, Limits, Shelf};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// What the gateway sees of routing and identity.
pub trait Ways: Send + Sync {
    /// The country that a request concerns, and whether answers of its service may be kept.
    ///
    /// # Errors
    /// When the device is not activated, or no table knows the service.
    fn rules(&self, service: &ServiceName, udl: Option<&Country>) -> Result<Rules, Failure>;
    /// The way to the origin that serves it now.
    ///
    /// # Errors
    /// When there is none.
    fn way(&self, service: &ServiceName, country: &Country) -> Result<Way, Failure>;
    /// Tells how an origin behaved, and how long the head of its answer took.
    fn report(&self, way: &Way, seen: Seen, took: Duration);
}

/// What holds for a service in a country.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The country: the request's own, else the store's.
    pub country: Country,
    /// Whether the last good answer may be served.
    pub keep: bool,
    /// The asking device.
    pub device: DeviceId,
    /// Its store.
    pub store: StoreId,
}

/// The way to an origin.
#[derive(Debug, Clone)]
pub struct Way {
    /// Who is there.
    pub origin: OriginId,
    /// What is dialled.
    pub host: String,
    /// Speaks to this origin and no other.
    pub client: reqwest::Client,
    /// `scheme://domain[:port]`
    pub base_url: String,
    /// Its name for TLS and `Host`.
    pub domain: String,
    /// It is known not to answer.
    pub down: bool,
}

/// How an origin behaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It answered.
    Answered,
    /// It did not, or says itself that it cannot.
    Failed(String),
    /// Something else answered.
    NotTheOrigin(String),
}

/// How the gateway is kept within bounds.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Where answers are kept.
    pub directory: PathBuf,
    /// Most bytes of kept answers.
    pub cache_max_bytes: u64,
    /// Most kept answers.
    pub cache_max_answers: usize,
    /// Most requests under way.
    pub in_flight: usize,
    /// Longest wait for the head of an answer.
    pub answer_timeout: Duration,
    /// Bearer token, when origins want one.
    pub token: Option<String>,
}

/// The gateway; clones are the same one.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    ways: Arc<dyn Ways>,
    shelf: Shelf,
    settings: GatewaySettings,
    places: Arc<Semaphore>,
    /// Since when each kept answer is being refreshed.
    refreshing: Mutex<HashMap<String, Mono>>,
}

impl Gateway {
    /// A gateway over what is kept in its directory already. Reads that directory.
    #[must_use]
    pub fn open(ways: Arc<dyn Ways>, settings: GatewaySettings) -> Self {
        let limits = Limits { bytes: settings.cache_max_bytes, answers: settings.cache_max_answers };
        let shelf = Shelf::open(settings.directory.clone(), limits);
        let places = Arc::new(Semaphore::new(settings.in_flight));
        Self(Arc::new(Inner { ways, shelf, settings, places, refreshing: Mutex::default() }))
    }

    /// What is kept for a request. Reading a file may take a while, so not on a thread that serves tills.
    async fn find(&self, key: &Key) -> Option<Arc<Kept>> {
        let (gateway, key) = (self.clone(), key.clone());
        let found = tokio::task::spawn_blocking(move || gateway.0.shelf.find(&key)).await;
        found.ok().flatten().map(Arc::new)
    }

    /// Does something with what is kept, on a thread that may wait for the disk.
    async fn on_shelf(&self, work: impl FnOnce(&Shelf) + Send + 'static) {
        let gateway = self.clone();
        // A panic there is logged by the process's hook; what is kept is only a copy.
        let _ = tokio::task::spawn_blocking(move || work(&gateway.0.shelf)).await;
    }

    /// How long the oldest refresh of an answer has been under way.
    fn refreshing_for(&self, key: &Key) -> Option<Duration> {
        let refreshing = self.refreshing();
        refreshing.get(&key.primary()).map(|since| mono().after(*since))
    }

    /// Notes a refresh until what is given is dropped; `None` when one is noted already.
    fn begin_refresh(&self, key: &Key) -> Option<Refresh> {
        let primary = key.primary();
        let mut refreshing = self.refreshing();
        if refreshing.contains_key(&primary) {
            return None;
        }
        refreshing.insert(primary.clone(), mono());
        Some(Refresh { gateway: self.clone(), primary })
    }

    fn refreshing(&self) -> std::sync::MutexGuard<'_, HashMap<String, Mono>> {
        // A panic while the map was held cannot leave it half changed.
        self.0.refreshing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A refresh under way.
struct Refresh {
    gateway: Gateway,
    primary: String,
}

impl Drop for Refresh {
    fn drop(&mut self) {
        self.gateway.refreshing().remove(&self.primary);
    }
}
