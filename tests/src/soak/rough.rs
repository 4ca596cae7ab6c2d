//! An origin as a process of its own (`samovar-rough-origin`): killed, gone for a while, back on the same address with
//! all it had recorded.

use crate::binaries;
use crate::origin::journal::{self, Entry};
use crate::process::{Process, announced};
use anyhow::{Context, Result};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

const READY: Duration = Duration::from_secs(30);

/// How an origin is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// It is not.
    No,
    /// It records twice what comes twice.
    Forgets,
    /// It answers "settled" for orders that it does not record.
    Lies,
}

/// One origin.
pub struct RoughOrigin {
    name: String,
    address: SocketAddr,
    directory: PathBuf,
    broken: Broken,
    namespace: Option<String>,
    more: Vec<String>,
    process: Option<Process>,
}

impl RoughOrigin {
    /// An origin that keeps its records in this directory; it does not run yet.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn new(name: &str, directory: &Path, broken: Broken) -> Result<Self> {
        Ok(Self { broken, ..Self::elsewhere(name, directory, own_address()?) })
    }

    /// An origin at a given address.
    fn elsewhere(name: &str, directory: &Path, address: SocketAddr) -> Self {
        Self {
            name: name.into(),
            address,
            directory: directory.to_owned(),
            broken: Broken::No,
            namespace: None,
            more: Vec::new(),
            process: None,
        }
    }

    /// An origin in a network namespace, with more options of its program.
    #[must_use]
    pub fn within(namespace: &str, name: &str, directory: &Path, address: SocketAddr, more: &[&str]) -> Self {
        Self {
            namespace: Some(namespace.into()),
            more: more.iter().map(ToString::to_string).collect(),
            ..Self::elsewhere(name, directory, address)
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens, whenever it runs.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Starts it; with a seed it misbehaves.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(&mut self, mischief: Option<u64>) -> Result<()> {
        let announce = self.directory.join(format!("{}.run.json", self.name));
        let program = binaries::rough_origin()?;
        let mut command = match &self.namespace {
            // It becomes the program: a signal to it is one to the origin.
            Some(namespace) => {
                let mut command = Command::new(binaries::system("ip").context("`ip` is missing")?);
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(&self.more);
        command.args(["--name", &self.name, "--listen", &self.address.to_string(), "--records"]);
        command.arg(self.records()).arg("--announce").arg(&announce);
        if let Some(seed) = mischief {
            command.args(["--mischief", &seed.to_string()]);
        }
        match self.broken {
            Broken::No => {}
            Broken::Forgets => drop(command.arg("--forgets")),
            Broken::Lies => drop(command.arg("--lies")),
        }
        let log = self.directory.join(format!("{}.log", self.name));
        let mut process = Process::start(&mut command, &log)?;
        announced(&mut process, &announce, READY).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Cuts its power.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn sigkill(&mut self) -> Result<()> {
        self.process.take().with_context(|| format!("{} does not run", self.name))?.sigkill().await
    }

    fn records(&self) -> PathBuf {
        self.directory.join(format!("{}.records", self.name))
    }

    /// Everything it ever wrote down.
    ///
    /// # Errors
    /// When its records cannot be read.
    pub fn journal(&self) -> Result<Vec<Entry>> {
        journal::read(&self.records())
    }
}

/// An address on loopback that nobody else has: while an origin is dead, no outgoing connection (they leave from
/// 127.0.0.1) and no other test can take its port.
pub(super) fn own_address() -> Result<SocketAddr> {
    let ip = IpAddr::V4(Ipv4Addr::new(127, fastrand::u8(16..), fastrand::u8(..), fastrand::u8(1..255)));
    let free = TcpListener::bind((ip, 0)).context("no free port on an address of our own")?;
    free.local_addr().context("a listener without an address")
}
