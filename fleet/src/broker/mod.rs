//! The MQTT broker inside the fleet server (cargo feature `embedded-broker`).
//!
//! ```text
//! start ──► open stores ──► bind ──► running ──► stop: nobody is accepted, connections end, the ports are free
//! ```
//!
//! `rmqtt` as a library, in a tokio runtime of its own: the broker's tasks can neither starve the server's nor outlive
//! [`Running`], and a stop is one call whatever the broker is doing. Devices come in by mutual TLS, where the certificate's
//! common name is the identity; the fleet's own client comes in on loopback with a password that is made at each start
//! and never leaves the process. Retained messages and sessions survive a restart of the process. What the broker has
//! acknowledged is *not* durable to the last message: everything that matters is acknowledged by the application.
//!
//! Absent on purpose: a second start on the same data directory in one process (only the end of the process closes the
//! broker's store), clustering (that is what `--broker mqtts://…` is for), any HTTP of the broker's.

mod access;
mod admission;
mod cut;
mod hooks;
mod listen;
#[cfg(test)]
pub(crate) mod tests;

pub use access::FLEET_CLIENT_PREFIX;
pub use admission::{Admission, Question};
pub use cut::Cutter;

use hooks::Gatekeeper;
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// The user name of the fleet's own client.
const FLEET_USER: &str = "fleet";
/// The broker hands retained messages to its store after it has acknowledged them; this is for the last of them.
const STORE_LINGER: Duration = Duration::from_millis(250);
/// The store writes to disk twice a second from a thread of its own and offers no way to ask for it.
const STORE_FLUSH: Duration = Duration::from_millis(550);

/// What the broker needs to start.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where retained messages and sessions are kept; created if absent.
    pub data_dir: PathBuf,
    /// The environment whose topics exist here.
    pub environment: String,
    /// The devices' listener; without it only the fleet itself can connect.
    pub tls: Option<TlsListen>,
    /// The fleet's own listener: a loopback address, port 0 for any.
    pub plain_listen: SocketAddr,
    /// Who says whether a certificate is still good; without it every one of the authority is.
    pub admission: Option<Admission>,
}

/// A listener that asks every client for a certificate.
#[derive(Debug, Clone)]
pub struct TlsListen {
    /// Address and port, port 0 for any.
    pub listen: SocketAddr,
    /// PEM of the authority whose certificates are let in.
    pub ca: PathBuf,
    /// PEM of the server's certificate chain.
    pub cert: PathBuf,
    /// PEM of the server's private key.
    pub key: PathBuf,
}

/// Why the broker did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The operating system gave no threads.
    #[error("starting the broker's threads")]
    Runtime(#[source] io::Error),
    /// The fleet's listener would be reachable from outside.
    #[error("the broker's plain listener must be a loopback address, not {0}")]
    PlainNotLoopback(SocketAddr),
    /// No password could be made.
    #[error("the system's source of randomness failed")]
    Random,
    /// A directory of the broker's data could not be made.
    #[error("creating {}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of the broker's stores could not be opened.
    #[error("opening the broker's store of {part}")]
    Store {
        /// Which of them.
        part: &'static str,
        /// What the broker said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An address could not be listened on.
    #[error("listening for MQTT on {addr}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the broker said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Certificates or key could not be used.
    #[error("using the MQTT server certificate {}", cert.display())]
    Tls {
        /// The certificate.
        cert: PathBuf,
        /// What the broker said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The broker's own task ended while starting.
    #[error("the broker ended while it was starting")]
    Died,
    /// The listeners were still open at the deadline.
    #[error("the broker did not stop in time")]
    StopTimeout,
}

/// The broker: see [`Broker::start`].
#[derive(Debug)]
pub struct Broker;

/// A broker at work. Dropping it stops the broker too, without waiting for the ports to be free.
pub struct Running {
    runtime: OwnRuntime,
    accepting: AbortHandle,
    tls: Option<SocketAddr>,
    plain: SocketAddr,
    password: String,
    cutter: Cutter,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("tls", &self.tls).field("plain", &self.plain).finish_non_exhaustive()
    }
}

impl Broker {
    /// Opens the stores, binds the listeners and serves until [`Running::stop`].
    ///
    /// # Errors
    /// When an address, a store or a certificate cannot be used; nothing is left running.
    pub async fn start(config: BrokerConfig) -> Result<Running, BrokerError> {
        if !config.plain_listen.ip().is_loopback() {
            return Err(BrokerError::PlainNotLoopback(config.plain_listen));
        }
        let password = random_password()?;
        let gatekeeper =
            Gatekeeper::new(&config.environment, FLEET_USER, &password, config.admission.clone());
        let runtime = OwnRuntime::start()?;
        let opened = runtime
            .spawn(async move {
                let opened = listen::open(&config, &gatekeeper).await?;
                let server = opened.server.clone();
                let accepting = tokio::spawn(async move {
                    if let Err(error) = server.run().await {
                        tracing::error!(%error, "the broker ended");
                    }
                });
                let cutter = Cutter::new(tokio::runtime::Handle::current(), opened.context);
                Ok::<_, BrokerError>((opened.tls, opened.plain, accepting.abort_handle(), cutter))
            })
            .await
            .map_err(|_| BrokerError::Died)?;
        let (tls, plain, accepting, cutter) = opened?;
        tracing::info!(?tls, %plain, "MQTT broker listening");
        Ok(Running { runtime, accepting, tls, plain, password, cutter })
    }
}

impl Running {
    /// Where devices connect.
    #[must_use]
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls
    }

    /// What ends the connections of devices.
    #[must_use]
    pub fn cutter(&self) -> Cutter {
        self.cutter.clone()
    }

    /// Where the fleet's own client connects.
    #[must_use]
    pub fn plain_addr(&self) -> SocketAddr {
        self.plain
    }

    /// The URL, password included, for the fleet's own client. Not for logs.
    #[must_use]
    pub fn fleet_url(&self) -> String {
        format!("mqtt://{FLEET_USER}:{}@{}", self.password, self.plain)
    }

    /// Ends the broker and returns when its ports are free and what it kept is on disk.
    ///
    /// # Errors
    /// [`BrokerError::StopTimeout`] when a port is still answered at the deadline.
    pub async fn stop(self, deadline: Duration) -> Result<(), BrokerError> {
        let until = Instant::now() + deadline;
        let ports = [Some(self.plain), self.tls.map(reachable)];
        self.accepting.abort();
        sleep_until((Instant::now() + STORE_LINGER).min(until)).await;
        drop(self.runtime);
        let ended = Instant::now();
        for port in ports.into_iter().flatten() {
            while !matches!(timeout_at(until, TcpStream::connect(port)).await, Ok(Err(_))) {
                if Instant::now() >= until {
                    return Err(BrokerError::StopTimeout);
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        sleep_until((ended + STORE_FLUSH).min(until)).await;
        Ok(())
    }
}

/// Where a listener on "any address" can be called from this machine.
fn reachable(addr: SocketAddr) -> SocketAddr {
    if !addr.ip().is_unspecified() {
        return addr;
    }
    let loopback = if addr.is_ipv4() {
        std::net::Ipv4Addr::LOCALHOST.into()
    } else {
        std::net::Ipv6Addr::LOCALHOST.into()
    };
    SocketAddr::new(loopback, addr.port())
}

fn random_password() -> Result<String, BrokerError> {
    let mut bytes = [0_u8; 24];
    SystemRandom::new().fill(&mut bytes).map_err(|_| BrokerError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A runtime that can be dropped anywhere: the broker's storage tasks never end by themselves, so nobody waits for them.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn start() -> Result<Self, BrokerError> {
        let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("broker")
            .enable_all()
            .build()
            .map_err(BrokerError::Runtime)?;
        Ok(Self(Some(runtime)))
    }

    fn spawn<F>(&self, work: F) -> impl Future<Output = Result<F::Output, ()>> + use<F>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = self.0.as_ref().map(|runtime| runtime.spawn(work));
        async move {
            match task {
                Some(task) => task.await.map_err(drop),
                None => Err(()),
            }
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
