//! How a connection of a client is made: the names, the race, and what it taught (IO).
//!
//! ```text
//! request ──► Dialling (a layer around the library's connector)
//!               names ──► addresses ──► winner of before │ race through TLS │ the only one
//!               └────► the library connects and checks TLS, at that address first ──► proof or doubt
//! ```
//!
//! The library's connector takes one call per connection, so a race has handshakes of its own, and the winner is then
//! dialled. That happens for the first connection of a host with several addresses, and again after a failure or ten
//! minutes: a session that TLS resumes makes the second handshake a short one. In the open (loopback only) there is
//! nothing that could stall behind a connection, and no race.

use super::clients::NetError;
use super::names::{Resolver, Wanted, Way, host_as_address};
use super::race::{in_turns, race};
use futures_util::future::{BoxFuture, FutureExt};
use hyper_util::client::legacy::connect::{Connection, HttpInfo};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use samovar_wire::route::{Endpoint, Scheme};
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tower::{Layer, Service};

type BoxError = Box<dyn Error + Send + Sync>;

tokio::task_local! {
    /// What the connection being made is to dial: the library asks for it by the URL's name, which is not the host's.
    static DIALLED: Vec<SocketAddr>;
}

/// One way: whom to dial, and whom TLS must prove there.
pub(super) struct Dialler {
    pub(super) resolver: Resolver,
    pub(super) domain: String,
    pub(super) endpoint: Endpoint,
    pub(super) scheme: Scheme,
    pub(super) tls: Arc<ClientConfig>,
    /// Longest wait for the names.
    pub(super) limit: Duration,
}

/// Gives the library what [`Dialling`] has found.
pub(super) struct Given;

impl Resolve for Given {
    fn resolve(&self, name: Name) -> Resolving {
        let given = DIALLED.try_with(Clone::clone);
        Box::pin(async move {
            match given {
                Ok(addresses) => Ok(Box::new(addresses.into_iter()) as Addrs),
                Err(_) => Err(format!("`{}` was not looked up", name.as_str()).into()),
            }
        })
    }
}

/// The layer around the library's connector.
#[derive(Clone)]
pub(super) struct Dials(pub(super) Arc<Dialler>);

impl<S> Layer<S> for Dials {
    type Service = Dialling<S>;

    fn layer(&self, inner: S) -> Dialling<S> {
        Dialling { dialler: Arc::clone(&self.0), inner }
    }
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Dialling<S> {
    dialler: Arc<Dialler>,
    inner: S,
}

impl<S, R> Service<R> for Dialling<S>
where
    S: Service<R, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Connection,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let dialler = Arc::clone(&self.dialler);
        // The one that is ready is the one to call.
        let other = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, other);
        async move {
            let addresses = dialler.addresses().await?;
            let attempt = Attempt { dialler: &dialler, is_over: false };
            let connected = DIALLED.scope(addresses, inner.call(request)).await;
            attempt.ended(connected.as_ref().map(remote_of));
            connected
        }
        .boxed()
    }
}

/// A connection being made. Dropped before its end (the time to connect is over) it has failed.
struct Attempt<'a> {
    dialler: &'a Dialler,
    is_over: bool,
}

impl Attempt<'_> {
    fn ended(mut self, connected: Result<Option<SocketAddr>, &BoxError>) {
        self.is_over = true;
        match connected {
            Ok(Some(remote)) => self.dialler.connected(remote),
            Ok(None) => {}
            Err(error) => self.dialler.failed(is_somebody_else(error.as_ref())),
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.dialler.failed(false);
        }
    }
}

impl Dialler {
    /// What to dial, best first.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, BoxError> {
        // The library dials a URL whose host is an address as it stands.
        if host_as_address(&self.domain).is_some() {
            return Ok(Vec::new());
        }
        let (host, listed) = (&self.endpoint.host, &self.endpoint.addresses);
        let wanted = Wanted { domain: &self.domain, host, listed };
        let found = self.resolver.find(&wanted, self.limit).await?.addresses;
        let found = if self.scheme == Scheme::Http { only_loopback(found)? } else { found };
        let port = self.endpoint.port;
        let sockets: Vec<_> = found.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let mut sockets = in_turns(&sockets, self.resolver.v6_is_broken());
        if sockets.len() > 1 && self.scheme == Scheme::Https {
            let first = match self.resolver.chosen(&self.way(), &sockets) {
                Some(chosen) => chosen,
                None => self.raced(&sockets).await?,
            };
            sockets.retain(|address| *address != first);
            sockets.insert(0, first);
        }
        Ok(sockets)
    }

    async fn raced(&self, sockets: &[SocketAddr]) -> Result<SocketAddr, BoxError> {
        let name = ServerName::try_from(self.domain.clone())?;
        let won = race(sockets, |address| prove(address, name.clone(), Arc::clone(&self.tls))).await;
        let won = won.inspect_err(|nobody| {
            self.failed(nobody.0.iter().any(|(_, why)| why.contains("invalid peer certificate")));
        })?;
        if won.winner.is_ipv4() && won.beaten.iter().any(SocketAddr::is_ipv6) {
            tracing::info!(
                host = self.endpoint.host,
                "IPv6 lost where it should have won; it comes last now"
            );
            self.resolver.v6_lost();
        }
        self.connected(won.winner);
        Ok(won.winner)
    }

    /// TLS has proved the name there; in the open a connection proves nothing.
    fn connected(&self, remote: SocketAddr) {
        if self.scheme == Scheme::Https {
            self.resolver.choose(self.way(), remote);
            self.resolver.remember(&self.endpoint.host, remote.ip());
        }
    }

    fn failed(&self, somebody_else: bool) {
        self.resolver.unchoose(&self.way());
        if somebody_else {
            self.resolver.doubt(&self.endpoint.host);
        }
    }

    fn way(&self) -> Way {
        (self.domain.clone(), self.endpoint.host.clone(), self.endpoint.port)
    }
}

/// A whole handshake, and nothing behind it.
async fn prove(address: SocketAddr, name: ServerName<'static>, tls: Arc<ClientConfig>) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(tls);
    connector.connect(name, stream).await.map_err(|error| error.to_string())?;
    Ok(())
}

fn remote_of(connection: &impl Connection) -> Option<SocketAddr> {
    let mut extras = http::Extensions::new();
    connection.connected().get_extras(&mut extras);
    extras.get::<HttpInfo>().map(HttpInfo::remote_addr)
}

/// Whether the other side answered and was not who it should be.
fn is_somebody_else(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inside.and_then(|inside| inside.downcast_ref()).or_else(|| error.downcast_ref());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn only_loopback(addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, NetError> {
    let (inside, outside): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_loopback);
    match outside.first() {
        Some(address) if inside.is_empty() => Err(NetError::NotLoopback { address: *address }),
        _ => Ok(inside),
    }
}
