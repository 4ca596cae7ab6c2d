//! A DNS server of a story: knows a few names, or falls silent.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Seconds for which an answer may be used: the shortest that the agent keeps to.
const LIFE: u32 = 5;

/// The server. Its port stays taken until it is dropped, so that silence is silence and not a refusal.
pub struct DnsServer {
    address: SocketAddr,
    silent: Arc<AtomicBool>,
    serving: JoinHandle<()>,
}

impl DnsServer {
    /// Answers for these names; no other name exists.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(names: &[(&str, Ipv4Addr)]) -> Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), names).await
    }

    /// The same at a given address.
    ///
    /// # Errors
    /// When it is taken, or needs rights that the test lacks.
    pub async fn start_at(at: SocketAddr, names: &[(&str, Ipv4Addr)]) -> Result<Self> {
        let socket = UdpSocket::bind(at).await.with_context(|| format!("no DNS server at {at}"))?;
        let address = socket.local_addr()?;
        let silent = Arc::new(AtomicBool::new(false));
        let names = names.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let serving = tokio::spawn(serve(socket, names, Arc::clone(&silent)));
        Ok(Self { address, silent, serving })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it answers nothing.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(socket: UdpSocket, names: BTreeMap<String, Ipv4Addr>, silent: Arc<AtomicBool>) {
    let mut buffer = [0; 1_500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let Some(answer) = answer(&buffer[..length], &names) else { continue };
        if !silent.load(Ordering::SeqCst) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// The answer to one question (RFC 1035 §4); nothing to what is none.
fn answer(question: &[u8], names: &BTreeMap<String, Ipv4Addr>) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let asked = question.get(12..at + 4)?;
    let known = names.get(&labels.join("."));
    let address = known.filter(|_| question[at..at + 2] == [0, 1]);
    let code = if known.is_some() { 0 } else { 3 };
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(asked);
    if let Some(address) = address {
        // The name is the one at byte 12.
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(LIFE.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
