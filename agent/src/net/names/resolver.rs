//! The resolver that everybody shares: callers ask it, look-ups fill it, proofs teach it (IO around `cache`, `known` and
//! `choices`).

use super::answer::By;
use super::cache::{Absent, Cache, Fallback, Look, STALE_FOR};
use super::choices::{Choices, Way};
use super::doh::{Doh, system_tls};
use super::flight::{self, Sources};
use super::known::{Known, KnownGood};
use super::ladder::{Trust, Verdict};
use super::network::Network;
use super::network_files;
use super::servers;
use super::shelf::{self, Writer};
use super::system::{System, system};
use super::wanted::{
    Found, LookupError, NamesSettings, Wanted, host_as_address, is_invalid, is_local, no_address,
    normal, put_together,
};
use crate::clock::{Mono, instant, mono, wall};
use crate::heartbeat::Heartbeat;
use crate::net::explain;
use crate::stop;
use samovar_wire::route::Dns;
use samovar_wire::status::NameState;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// When those who wait get what is known otherwise.
const STALE_AFTER: Duration = Duration::from_millis(1_800);
/// How long something that worked is kept, unless the table says otherwise.
const STALE_MAX: Duration = Duration::from_hours(7 * 24);
/// Addresses of one name that are tried; the table's own come on top.
const RESOLVED_MAX: usize = 4;
/// Look-ups at one time; more wait for a place.
const FLIGHTS_MAX: usize = 64;
/// Chains that are measured at one time.
const CHAINS_MAX: usize = 4;
/// Between two looks at the files of the network.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The resolver; clones share everything.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    system: System,
    servers: Vec<SocketAddr>,
    plain: bool,
    file: Option<PathBuf>,
    writer: Arc<Writer>,
    places: Semaphore,
    chains: Semaphore,
    changed: watch::Sender<u64>,
    shared: Mutex<Shared>,
}

/// What is known, under one lock that is never held across a wait.
#[derive(Default)]
struct Shared {
    cache: Cache,
    known: Known,
    choices: Choices,
    network: Network,
    /// Grows with each change of the network.
    generation: u64,
    flights: BTreeMap<String, Flight>,
    table: Dns,
    doh: Vec<Doh>,
}

/// A look-up under way; its sender goes when it ends.
#[derive(Clone)]
struct Flight {
    started: Mono,
    end: watch::Receiver<()>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("servers", &self.0.servers).finish_non_exhaustive()
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(NamesSettings::default(), system(), Known::default(), network_files::read())
    }
}

impl Resolver {
    /// A resolver with what the data directory remembers, and the words about a file that was damaged or cannot be read: a
    /// device can sell without it.
    #[must_use]
    pub fn open(settings: NamesSettings) -> (Self, Option<String>) {
        let loaded = settings.data.as_deref().map(|data| shelf::load(&shelf::file(data)));
        let (known, damaged) = match loaded {
            Some(Ok(loaded)) => loaded,
            Some(Err(error)) => (Known::default(), Some(explain(&error))),
            None => (Known::default(), None),
        };
        (Self::new(settings, system(), known, network_files::read()), damaged)
    }

    pub(super) fn new(settings: NamesSettings, system: System, known: Known, network: Network) -> Self {
        Self(Arc::new(Inner {
            system,
            servers: settings.servers,
            plain: settings.plain,
            file: settings.data.as_deref().map(shelf::file),
            writer: Arc::default(),
            places: Semaphore::new(FLIGHTS_MAX),
            chains: Semaphore::new(CHAINS_MAX),
            changed: watch::Sender::new(0),
            shared: Mutex::new(Shared { known, network, ..Shared::default() }),
        }))
    }

    /// Obeys the `dns` part of a route table.
    pub fn obey(&self, dns: &Dns) {
        if self.lock().table == *dns {
            return;
        }
        let listed = servers::doh(&dns.doh);
        let doh = if listed.is_empty() {
            Vec::new()
        } else {
            let tls = system_tls();
            listed.iter().filter_map(|server| Doh::new(server, &tls)).collect()
        };
        let mut shared = self.lock();
        shared.table = dns.clone();
        shared.doh = doh;
    }

    /// The addresses of a host, with those the table lists behind the ones found.
    ///
    /// # Errors
    /// When the name does not resolve in time and no address of it is known or listed.
    pub async fn find(&self, wanted: &Wanted<'_>, limit: Duration) -> Result<Found, LookupError> {
        if let Some(found) = self.without_asking(wanted) {
            return Ok(found);
        }
        let host = normal(wanted.host);
        let deadline = mono().plus(limit);
        loop {
            let (look, fallback) = self.look(wanted, &host);
            match look {
                Look::Fresh { addresses, by, left } => {
                    self.measure_chain(&host);
                    return Ok(self.fresh(wanted, &host, addresses, by, left));
                }
                Look::Without { absent, recheck } => {
                    if recheck {
                        self.flight(&host);
                    }
                    return self.otherwise(wanted, &host, &absent, None);
                }
                Look::Ask => {
                    let flight = self.flight(&host);
                    let overdue = flight.started.plus(STALE_AFTER);
                    let waits_on = fallback == Fallback::Nothing;
                    let until = if waits_on { deadline } else { deadline.min(overdue) };
                    if !flight.ended_by(until).await {
                        if !waits_on && overdue <= deadline {
                            self.lock().cache.overdue(&host, mono());
                        }
                        return self.otherwise(wanted, &host, &Absent::default(), Some(limit));
                    }
                }
            }
        }
    }

    /// The addresses of a host that are known without asking anybody.
    #[must_use]
    pub fn known(&self, wanted: &Wanted<'_>) -> Vec<IpAddr> {
        if let Some(found) = self.without_asking(wanted) {
            return found.addresses;
        }
        let host = normal(wanted.host);
        let good = self.known_good(&host);
        let shared = self.lock();
        let fresh = shared.cache.fresh(&host, mono()).iter().copied();
        put_together(fresh.chain(good.here), wanted.listed, good.elsewhere)
    }

    /// Remembers that behind this address TLS has proved the name, or the right origin has answered.
    pub fn remember(&self, host: &str, address: IpAddr) {
        let host = normal(host);
        if host_as_address(&host).is_some() || is_local(&host) {
            return;
        }
        let worth_writing = {
            let mut shared = self.lock();
            shared.cache.confirm(&host, address);
            let network = shared.network.clone();
            shared.known.remember(&network, &host, address, wall())
        };
        if let (true, Some(file)) = (worth_writing, &self.0.file) {
            let resolver = self.clone();
            self.0.writer.write(file.clone(), move || resolver.lock().known.clone());
        }
    }

    /// Tells how long a request to a host took.
    pub fn request_took(&self, host: &str, took: Duration) {
        let host = normal(host);
        if host_as_address(&host).is_none() {
            self.lock().cache.request_took(&host, took, mono());
        }
    }

    /// What is reported of the names in use.
    #[must_use]
    pub fn states(&self) -> Vec<NameState> {
        self.lock().cache.states(mono())
    }

    /// Ticks when a name is answered by somebody else, or stands for other names.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Grows when the device is in another network; connections made before belong to the old one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Notices that the device is in another network, until `stop`.
    pub async fn watch_network(
        self,
        mut line: watch::Receiver<u64>,
        heartbeat: Heartbeat,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let pause = tokio::time::sleep(LOOK_AGAIN.min(heartbeat.interval()));
            tokio::select! {
                () = stop::asked(&mut stop) => return,
                Ok(()) = line.changed() => {}
                () = pause => {}
            }
            heartbeat.beat();
            self.enter(network_files::read());
        }
    }

    /// The device is in this network.
    pub(super) fn enter(&self, network: Network) {
        let mut shared = self.lock();
        let another = network.is_another(&shared.network);
        if another {
            tracing::info!(interface = network.interface, gateway = ?network.gateway, "another network");
            shared.generation += 1;
            shared.cache.forget_answers();
            shared.choices.forget();
            shared.flights.clear();
        }
        // Its router's hardware address may have been learned.
        shared.network = network;
        drop(shared);
        if another {
            self.tell();
        }
    }

    /// The cable is in another socket.
    #[cfg(test)]
    pub(in crate::net) fn enter_another_network(&self) {
        let interface = format!("another-{}", self.generation());
        self.enter(Network { interface, ..Network::default() });
    }

    /// Behind the addresses that a look-up gave, somebody else was found.
    pub(in crate::net) fn doubt(&self, host: &str) {
        self.lock().cache.doubt(&normal(host), mono());
    }

    pub(in crate::net) fn chosen(&self, way: &Way, among: &[SocketAddr]) -> Option<SocketAddr> {
        self.lock().choices.chosen(way, among, mono())
    }

    pub(in crate::net) fn choose(&self, way: Way, address: SocketAddr) {
        self.lock().choices.choose(way, address, mono());
    }

    pub(in crate::net) fn unchoose(&self, way: &Way) {
        self.lock().choices.unchoose(way);
    }

    pub(in crate::net) fn v6_is_broken(&self) -> bool {
        self.lock().choices.v6_is_broken(mono())
    }

    pub(in crate::net) fn v6_lost(&self) {
        self.lock().choices.v6_lost(mono());
    }

    fn without_asking(&self, wanted: &Wanted<'_>) -> Option<Found> {
        let found = |addresses, by| Found { addresses, by, valid_for: Duration::MAX, chain: Vec::new() };
        let address = host_as_address(wanted.host)?;
        Some(found(put_together([address], wanted.listed, Vec::new()), By::Literal))
    }

    fn look(&self, wanted: &Wanted<'_>, host: &str) -> (Look, Fallback) {
        let good = self.known_good(host);
        let fallback = if !good.here.is_empty() {
            Fallback::Proven
        } else if !wanted.listed.is_empty() || !good.elsewhere.is_empty() {
            Fallback::Listed
        } else {
            Fallback::Nothing
        };
        (self.lock().cache.look(host, fallback, mono()), fallback)
    }

    fn fresh(
        &self,
        wanted: &Wanted<'_>,
        host: &str,
        addresses: Vec<IpAddr>,
        by: By,
        left: Duration,
    ) -> Found {
        let addresses = put_together(addresses.into_iter().take(RESOLVED_MAX), wanted.listed, Vec::new());
        self.found(host, addresses, by, left)
    }

    fn otherwise(
        &self,
        wanted: &Wanted<'_>,
        host: &str,
        absent: &Absent,
        timed_out: Option<Duration>,
    ) -> Result<Found, LookupError> {
        let good = self.known_good(host);
        let by = match (&good.here[..], wanted.listed, &absent.suspects[..], &good.elsewhere[..]) {
            ([_, ..], ..) | ([], [], [], [_, ..]) => By::Stale,
            ([], [_, ..], ..) => By::Table,
            ([], [], [_, ..], _) => By::Unconfirmed,
            ([], [], [], []) => return Err(no_address(host, absent, timed_out)),
        };
        let last = absent.suspects.iter().copied().chain(good.elsewhere).collect();
        let addresses = put_together(good.here, wanted.listed, last);
        Ok(self.found(host, addresses, by, STALE_FOR))
    }

    fn found(&self, host: &str, addresses: Vec<IpAddr>, by: By, valid_for: Duration) -> Found {
        let mut shared = self.lock();
        let other = shared.cache.served(host, by, mono());
        let chain = shared.cache.chain(host);
        drop(shared);
        if other {
            self.tell();
        }
        Found { addresses, by, valid_for, chain }
    }

    fn known_good(&self, host: &str) -> KnownGood {
        let shared = self.lock();
        let max = shared.table.stale_max_s.map_or(STALE_MAX, Duration::from_secs);
        shared.known.of(&shared.network, host, wall(), max)
    }

    /// The look-up of a name that is under way, or a new one.
    fn flight(&self, host: &str) -> Flight {
        let mut shared = self.lock();
        let under_way = shared.flights.get(host).filter(|flight| flight.end.has_changed().is_ok());
        if let Some(flight) = under_way {
            return flight.clone();
        }
        let (ended, end) = watch::channel(());
        let flight = Flight { started: mono(), end };
        shared.flights.retain(|_, flight| flight.end.has_changed().is_ok());
        shared.flights.insert(host.to_owned(), flight.clone());
        let (sources, generation) = (self.sources(host, &shared), shared.generation);
        let max = shared.table.stale_max_s.map_or(STALE_MAX, Duration::from_secs);
        let proven = shared.known.of(&shared.network, host, wall(), max).here;
        drop(shared);
        let trust = Trust { proven, loopback: self.0.plain || is_local(host) };
        let (resolver, host, started) = (self.clone(), host.to_owned(), flight.started);
        tokio::spawn(async move {
            // Held until the look-up ends, which it does within its limit.
            let _place = resolver.0.places.acquire().await;
            let verdict = flight::look_up(&host, &sources, trust, started).await;
            resolver.landed(&host, verdict, started, generation);
            drop(ended);
        });
        flight
    }

    fn landed(&self, host: &str, verdict: Verdict, started: Mono, generation: u64) {
        let mut shared = self.lock();
        // An answer from the network of before says nothing about this one.
        if shared.generation == generation {
            let now = mono();
            shared.cache.conclude(host, verdict, now.after(started), now);
            shared.flights.remove(host);
        }
    }

    /// `localhost` is the system's business; for everything else there is also the network's servers, those that the
    /// table names, and HTTPS. Servers of the configuration take the place of the system and its network.
    fn sources(&self, host: &str, shared: &Shared) -> Sources {
        let mut sources = Sources::default();
        if is_invalid(host) {
            return sources;
        }
        if self.0.servers.is_empty() || is_local(host) {
            sources.system(Arc::clone(&self.0.system));
        }
        if is_local(host) {
            return sources;
        }
        if self.0.servers.is_empty() {
            shared.network.servers.iter().for_each(|server| sources.of_network(*server));
        }
        self.0.servers.iter().for_each(|server| sources.chosen(*server));
        servers::plain(&shared.table.servers).into_iter().for_each(|server| sources.chosen(server));
        shared.doh.iter().for_each(|doh| sources.doh(doh.clone()));
        sources
    }

    /// Measures the chain behind a name in use, now and then, in nobody's way.
    fn measure_chain(&self, host: &str) {
        if is_local(host) {
            return;
        }
        let mut shared = self.lock();
        if self.0.chains.available_permits() == 0 || !shared.cache.chain_is_due(host, mono()) {
            return;
        }
        let sources = self.sources(host, &shared);
        drop(shared);
        let (resolver, host) = (self.clone(), host.to_owned());
        tokio::spawn(async move {
            let Ok(_place) = resolver.0.chains.try_acquire() else { return };
            let Some(chain) = flight::chain(&host, &sources).await else { return };
            let other = resolver.lock().cache.set_chain(&host, chain, mono());
            if other {
                resolver.tell();
            }
        });
    }

    fn tell(&self) {
        self.0.changed.send_modify(|changes| *changes += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic while it was held can at worst have left an answer out.
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Whether it has ended by then.
    async fn ended_by(mut self, until: Mono) -> bool {
        // Nothing is ever sent; the sender goes when the look-up ends.
        tokio::time::timeout_at(instant(until), self.end.changed()).await.is_ok()
    }
}
