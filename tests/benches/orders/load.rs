//! Tills that hand orders in as fast as they are answered: keep-alive HTTP/1.1 on plain sockets, one thread for all.
//!
//! No HTTP library: the generator must cost less than the agent that it measures on the same processors. What it costs
//! is measured against a server that does nothing and printed with the figures.

use crate::figures::Timings;
use crate::order::{BYTES, Order};
use anyhow::{Context, Result, bail, ensure};
use samovar_tests::clock;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::task::{JoinSet, LocalSet};

/// What a load came to.
pub(crate) struct Load {
    pub(crate) timings: Timings,
    /// Processor time of the generator for one order, in microseconds.
    pub(crate) own_us: f64,
}

/// Lets so many tills place orders for so long. Blocks.
pub(crate) fn run(address: SocketAddr, tills: usize, time: Duration) -> Result<Load> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = thread_time();
    let timings = LocalSet::new().block_on(&runtime, place(address, tills, time))?;
    let own = thread_time().saturating_sub(before);
    let own_us = own.as_secs_f64() * 1e6 / timings.orders() as f64;
    Ok(Load { timings, own_us })
}

async fn place(address: SocketAddr, tills: usize, time: Duration) -> Result<Timings> {
    let (run, barrier) = (fastrand::u32(..), Arc::new(Barrier::new(tills + 1)));
    let mut set = JoinSet::new();
    for till in 0..tills {
        let barrier = Arc::clone(&barrier);
        set.spawn_local(async move {
            let connected = TcpStream::connect(address).await;
            barrier.wait().await;
            let stream = connected.context("a till cannot connect")?;
            stream.set_nodelay(true)?;
            one_till(stream, run, till, clock::now() + time).await
        });
    }
    barrier.wait().await;
    let started = clock::now();
    let mut latencies = Vec::new();
    while let Some(till) = set.join_next().await {
        latencies.extend(till.context("a till died")??);
    }
    Ok(Timings::new(latencies, 1, started.elapsed()))
}

async fn one_till(mut stream: TcpStream, run: u32, till: usize, until: Instant) -> Result<Vec<Duration>> {
    let mut order = Order::new();
    let head = format!(
        "POST /v1/orders HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {BYTES}\r\n\r\n"
    );
    let mut request = head.clone().into_bytes();
    let mut answer = Vec::with_capacity(1024);
    let mut latencies = Vec::new();
    for number in 0.. {
        request.truncate(head.len());
        request.extend_from_slice(order.numbered(run, till, number));
        let sent = clock::now();
        if sent >= until {
            break;
        }
        stream.write_all(&request).await?;
        read_message(&mut stream, &mut answer).await?;
        latencies.push(sent.elapsed());
        ensure!(answer.starts_with(b"HTTP/1.1 202"), "{}", String::from_utf8_lossy(&answer));
    }
    Ok(latencies)
}

/// Reads one message that has a length.
async fn read_message(stream: &mut TcpStream, message: &mut Vec<u8>) -> Result<()> {
    message.clear();
    loop {
        if stream.read_buf(message).await? == 0 {
            bail!("the connection was closed");
        }
        if message_length(message).is_some_and(|length| message.len() >= length) {
            return Ok(());
        }
    }
}

/// Bytes of head and body; `None` while the head is not complete.
fn message_length(message: &[u8]) -> Option<usize> {
    let head = message.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&message[..head]).ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Some(head + length.unwrap_or(0))
}

/// A server that reads an order and says 202, for measuring the generator itself.
pub(crate) fn null_server() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        LocalSet::new().block_on(&runtime, async {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::task::spawn_local(say_yes(stream));
            }
        });
    });
    Ok(address)
}

async fn say_yes(mut stream: TcpStream) -> Result<()> {
    const YES: &[u8] =
        b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let mut request = Vec::with_capacity(2 * BYTES);
    loop {
        read_message(&mut stream, &mut request).await?;
        stream.write_all(YES).await?;
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}
