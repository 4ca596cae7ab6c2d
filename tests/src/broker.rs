//! A real mosquitto, which can be stopped, killed and brought back on the same port with its data.

use crate::binaries;
use crate::process::Process;
use crate::wait::eventually;
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

const READY: Duration = Duration::from_secs(15);

/// One broker.
pub struct Broker {
    process: Option<Process>,
    address: SocketAddr,
    home: TempDir,
}

impl Broker {
    /// Starts a broker on a free port.
    ///
    /// # Errors
    /// When mosquitto is missing or does not start.
    pub async fn start() -> Result<Self> {
        let home = TempDir::with_prefix("samovar-broker-").context("cannot make a directory")?;
        // Another program can take the port between looking and starting: then look again.
        let mut last = None;
        for _ in 0..5 {
            let address = free_address().await?;
            let config = configuration(address, &home);
            std::fs::write(home.path().join("mosquitto.conf"), config)
                .context("cannot write mosquitto.conf")?;
            match launch(&home, address).await {
                Ok(process) => return Ok(Self { process: Some(process), address, home }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as the agent's configuration names it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Asks it to stop; it writes its sessions and retained messages to disk.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the broker is not running")?;
        process.signal(Signal::TERM)?;
        process.wait(READY).await.map(drop)
    }

    /// Ends it without warning.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn sigkill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the broker is not running")?;
        process.sigkill().await
    }

    /// Brings it back on the same port.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = Some(launch(&self.home, self.address).await?);
        Ok(())
    }
}

/// A port nobody listens on at the moment.
///
/// # Errors
/// When there is none.
pub async fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
    listener.local_addr().context("a listener without an address")
}

fn configuration(address: SocketAddr, home: &TempDir) -> String {
    // As root it would change to a user who may not write here.
    let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
    format!(
        "listener {} {}\nallow_anonymous true\npersistence true\npersistence_location {}/\n\
         max_queued_messages 0\nlog_type error\nlog_type warning\nlog_dest stderr\n{user}",
        address.port(),
        address.ip(),
        home.path().display()
    )
}

async fn launch(home: &TempDir, address: SocketAddr) -> Result<Process> {
    let program = binaries::system("mosquitto")
        .context("mosquitto is missing: `tests/run` installs it, or `apt-get install mosquitto`")?;
    let mut command = Command::new(program);
    command.arg("-c").arg(home.path().join("mosquitto.conf"));
    let mut process = Process::start(&mut command, &home.path().join("mosquitto.log"))?;
    let ready = eventually("mosquitto listens", READY, async || {
        let ended = process.ended().is_some();
        (ended || TcpStream::connect(address).await.is_ok()).then_some(ended)
    })
    .await;
    match ready {
        Ok(false) => Ok(process),
        Ok(true) | Err(_) => anyhow::bail!("mosquitto did not start:\n{}", process.last_words()),
    }
}
