//! The store's line: a TCP proxy that can be cut, stalled and restored.
//!
//! Cut = connections are reset and new ones refused at once after they were accepted (the port stays ours). Stalled =
//! everything stays open and nothing moves, as when a router lost its uplink. Closed = nothing takes connections, as
//! when the other end is gone; a port that is open again is the same one.

use anyhow::{Context, Result};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    Stalled,
    Cut,
}

/// One proxied address.
pub struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    upstream: watch::Sender<Option<SocketAddr>>,
    far: watch::Receiver<Option<SocketAddr>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy on a free port towards an address.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let proxy = Self::to_nowhere().await?;
        proxy.lead_to(upstream);
        Ok(proxy)
    }

    /// Starts a proxy on a free port whose other end is not known yet; until it is, connections are cut.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn to_nowhere() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let address = listener.local_addr().context("a listener without an address")?;
        let (line, watched) = watch::channel(Line::Open);
        let (upstream, far) = watch::channel(None);
        let accepting = tokio::spawn(accept(listener, far.clone(), watched));
        Ok(Self { address, line, upstream, far, accepting })
    }

    /// Says where new connections go.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.upstream.send_replace(Some(upstream));
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection and refuses new ones.
    pub fn cut(&self) {
        self.line.send_replace(Line::Cut);
    }

    /// Cuts every connection and closes the port.
    pub async fn close(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }

    /// Opens the same port again.
    ///
    /// # Errors
    /// When the port was taken meanwhile.
    pub async fn open(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.address).await.context("the proxy's port was taken")?;
        self.accepting = tokio::spawn(accept(listener, self.far.clone(), self.line.subscribe()));
        Ok(())
    }

    /// Lets connections hang.
    pub fn stall(&self) {
        self.line.send_replace(Line::Stalled);
    }

    /// Lets everything through again.
    pub fn restore(&self) {
        self.line.send_replace(Line::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: watch::Receiver<Option<SocketAddr>>,
    line: watch::Receiver<Line>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let far = *upstream.borrow();
                if let (Ok((near, _)), Some(upstream)) = (accepted, far) && *line.borrow() != Line::Cut {
                    connections.spawn(carry(near, upstream, line.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(near: TcpStream, upstream: SocketAddr, mut line: watch::Receiver<Line>) {
    let mut cut = line.clone();
    let carried = async {
        // A line that hangs hangs from the first packet on.
        line.wait_for(|line| *line == Line::Open).await.ok()?;
        let far = TcpStream::connect(upstream).await.ok()?;
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        tokio::join!(pump(near_read, far_write, line.clone()), pump(far_read, near_write, line.clone()));
        Some(())
    };
    tokio::select! {
        _ = carried => {}
        _ = cut.wait_for(|line| *line == Line::Cut) => {}
    }
}

async fn pump(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, mut line: watch::Receiver<Line>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if line.wait_for(|line| *line == Line::Open).await.is_err()
            || to.write_all(&buffer[..count]).await.is_err()
        {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LocalApi, Origin};
    use std::time::Duration;

    #[tokio::test]
    async fn a_line_can_be_cut_stalled_and_restored() {
        let origin = Origin::start("o").await.unwrap();
        let proxy = Proxy::start(origin.address()).await.unwrap();
        let api = LocalApi::new(&format!("http://{}", proxy.address())).unwrap();
        let health = async || api.get("/.samovar/health").await;
        assert_eq!(health().await.unwrap().status, 204);
        proxy.cut();
        assert!(health().await.is_err());
        proxy.restore();
        assert_eq!(health().await.unwrap().header("samovar-origin"), "o");
        proxy.stall();
        let hangs = tokio::time::timeout(Duration::from_millis(200), health()).await;
        assert!(hangs.is_err(), "{hangs:?}");
        proxy.restore();
        assert_eq!(health().await.unwrap().status, 204);
    }
}
