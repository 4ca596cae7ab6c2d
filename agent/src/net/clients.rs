//! One HTTP client for each way to an origin.
//!
//! A pool keyed by the domain alone would keep talking to the old origin after a switch, because the domain stays the
//! same; so the key holds the origin, what is dialled, the network the device is in and
//! the identity in use. The cache is small and the least
//! recently used client goes first: a client that is dropped closes its idle connections, requests under way keep
//! theirs.

use super::dial::{Dialler, Dials, Given};
use super::names::{Resolver, host_as_address};
use rustls::ClientConfig;
use samovar_wire::OriginId;
use samovar_wire::route::{Decision, Endpoint, Scheme};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Clients kept at one time: a few origins, a few domains, two generations while an identity is renewed.
const CLIENTS_MAX: usize = 32;
/// Longest wait for a name.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);
/// How long an idle connection is kept: longer than the idle probes are apart, so that they need no new handshake.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// The TLS identity in use, as whoever renews it publishes it; `None` until there is one.
pub type TlsSource = watch::Receiver<Option<Arc<ClientConfig>>>;

/// How origins are spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSettings {
    /// TLS, or plain to loopback addresses only.
    pub scheme: Scheme,
    /// Longest time to connect: name, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Longest time from the request to the end of the answer.
    pub request_timeout: Duration,
    /// Whether origins say their name when they are probed, as the origin contract has it.
    pub named: bool,
}

/// No client can be made for a decision, or an address may not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// HTTPS without anybody to trust.
    #[error("no certificate authority configured: activate or set origin.tls.ca")]
    NoAuthority,
    /// Plain HTTP to another machine.
    #[error(
        "{address} is not a loopback address: origin.scheme = \"http\" connects to loopback addresses only"
    )]
    NotLoopback {
        /// The address that would have been dialled.
        address: IpAddr,
    },
    /// A domain that is an address cannot stand for another host.
    #[error("domain {domain} is an address and origin {origin} is at {host}: give the domain a name")]
    DomainIsAddress {
        /// The domain of the route table.
        domain: String,
        /// The origin chosen.
        origin: OriginId,
        /// Its host.
        host: String,
    },
    /// The TLS configuration was not accepted.
    #[error("the HTTP client cannot be made")]
    Build(#[source] reqwest::Error),
}

/// The clients; clones share one cache.
#[derive(Debug, Clone)]
pub struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: ClientSettings,
    tls: TlsSource,
    resolver: Resolver,
    cache: Mutex<Vec<Cached>>,
}

/// What a pool of connections is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    origin: OriginId,
    domain: String,
    endpoint: Endpoint,
}

#[derive(Debug)]
struct Cached {
    key: Key,
    /// The network that the device was in.
    network: u64,
    /// Held so that "the same identity" is the same allocation.
    tls: Arc<ClientConfig>,
    client: reqwest::Client,
}

impl Clients {
    /// Clients with these settings that look names up with `resolver`.
    #[must_use]
    pub fn new(settings: ClientSettings, tls: TlsSource, resolver: Resolver) -> Self {
        Self(Arc::new(Inner { settings, tls, resolver, cache: Mutex::default() }))
    }

    /// How names are looked up.
    #[must_use]
    pub fn resolver(&self) -> &Resolver {
        &self.0.resolver
    }

    /// How origins are spoken to.
    #[must_use]
    pub fn settings(&self) -> ClientSettings {
        self.0.settings
    }

    /// The client for a decision. Requests go to `decision.base_url` with a path behind it.
    ///
    /// # Errors
    /// When there is no TLS identity for HTTPS, or the table names a way that may not be gone.
    pub fn client(&self, decision: &Decision) -> Result<reqwest::Client, NetError> {
        let tls = self.tls()?;
        let key = Key {
            origin: decision.origin.clone(),
            domain: decision.domain.clone(),
            endpoint: decision.endpoint.clone(),
        };
        let resolver = &self.0.resolver;
        let network = resolver.generation();
        // A panic while the cache was held cannot leave it half changed.
        let mut cache = self.0.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|cached| cached.network == network);
        let same = |cached: &Cached| cached.network == network && Arc::ptr_eq(&cached.tls, &tls);
        let known = cache.iter().position(|cached| cached.key == key && same(cached));
        if let Some(at) = known {
            cache[at..].rotate_left(1);
            return Ok(cache[cache.len() - 1].client.clone());
        }
        let client = self.build(&key, &tls)?;
        // The same way with the identity of before is not used again.
        cache.retain(|cached| cached.key != key);
        if cache.len() >= CLIENTS_MAX {
            cache.remove(0);
        }
        cache.push(Cached { key, network, tls, client: client.clone() });
        Ok(client)
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, NetError> {
        match self.0.settings.scheme {
            Scheme::Https => self.0.tls.borrow().clone().ok_or(NetError::NoAuthority),
            Scheme::Http => Ok(Arc::clone(&TRUSTS_NOBODY)),
        }
    }

    fn build(&self, key: &Key, tls: &Arc<ClientConfig>) -> Result<reqwest::Client, NetError> {
        let settings = self.0.settings;
        self.check_literal_domain(key)?;
        let dialler = Dialler {
            resolver: self.0.resolver.clone(),
            domain: key.domain.clone(),
            endpoint: key.endpoint.clone(),
            scheme: settings.scheme,
            tls: Arc::clone(tls),
            // Names may take half of the time to connect, so that a dead resolver leaves time to dial.
            limit: RESOLVE_LIMIT.min(settings.connect_timeout / 2),
        };
        reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(tls))
            .https_only(settings.scheme == Scheme::Https)
            .dns_resolver(Arc::new(Given))
            .connector_layer(Dials(Arc::new(dialler)))
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.request_timeout)
            .pool_idle_timeout(IDLE_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .http1_only()
            .user_agent(concat!("samovar-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(NetError::Build)
    }

    /// A URL whose host is an address is dialled as it stands, past every resolver: it must be the origin's own.
    fn check_literal_domain(&self, key: &Key) -> Result<(), NetError> {
        let Some(address) = host_as_address(&key.domain) else { return Ok(()) };
        let host = &key.endpoint.host;
        let own = host_as_address(host) == Some(address)
            || key.endpoint.addresses.contains(&address)
            || (host.eq_ignore_ascii_case("localhost") && address.is_loopback());
        if !own {
            return Err(NetError::DomainIsAddress {
                domain: key.domain.clone(),
                origin: key.origin.clone(),
                host: host.clone(),
            });
        }
        if self.0.settings.scheme == Scheme::Http { loopback(address) } else { Ok(()) }
    }
}

/// For plain HTTP: reqwest would otherwise ask the process for a crypto provider and the system for its authorities.
static TRUSTS_NOBODY: LazyLock<Arc<ClientConfig>> =
    LazyLock::new(|| Arc::new(tls_with(rustls::RootCertStore::empty())));

/// A TLS configuration that believes these authorities and shows no certificate.
pub(super) fn tls_with(roots: rustls::RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring serves the default protocol versions: both are compiled in");
    builder.with_root_certificates(roots).with_no_client_auth()
}

fn loopback(address: IpAddr) -> Result<(), NetError> {
    if address.is_loopback() { Ok(()) } else { Err(NetError::NotLoopback { address }) }
}

#[cfg(test)]
mod tests;
