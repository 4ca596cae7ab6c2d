//! One DNS server, asked directly: a datagram, the same once more, and TCP when the answer does not fit (IO).

use super::answer::{Reply, combine};
use super::message::{Family, Question, Read};
use futures_util::future::{Either, select};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Longest wait for one server, in all.
const LIMIT: Duration = Duration::from_millis(3_000);
/// A datagram that was lost is sent again after this.
const AGAIN: Duration = Duration::from_millis(400);
/// How long an answer for one kind of address waits for the other kind (RFC 8305).
const OTHER_FAMILY: Duration = Duration::from_millis(50);
/// Longer than what we say we can take.
const DATAGRAM_MAX: usize = 4_096;

/// Asks for both kinds of address.
pub(super) async fn ask(server: SocketAddr, host: &str) -> Reply {
    both(|family| exchange(server, host, family)).await
}

/// Asks one source for both kinds of address at once; the first that is found waits a moment for the other.
pub(super) async fn both<F: Future<Output = Reply>>(ask: impl Fn(Family) -> F) -> Reply {
    let (v4, v6) = (pin!(ask(Family::V4)), pin!(ask(Family::V6)));
    match select(v4, v6).await {
        Either::Left((first, other)) => finish(first, other).await,
        Either::Right((first, other)) => finish(first, other).await,
    }
}

async fn finish(first: Reply, other: impl Future<Output = Reply>) -> Reply {
    if !matches!(first, Reply::Found(_)) {
        return combine(first, other.await);
    }
    match timeout(OTHER_FAMILY, other).await {
        Ok(second) => combine(first, second),
        Err(_) => first,
    }
}

/// Asks for one kind of address.
pub(super) async fn exchange(server: SocketAddr, host: &str, family: Family) -> Reply {
    let Some(question) = Question::new(fastrand::u16(..), host, family) else {
        return Reply::Failed(format!("`{host}` is not a name of the DNS"));
    };
    let asked = async {
        match datagram(server, &question).await? {
            Read::Reply(reply) => Ok(reply),
            _ => stream(server, &question).await,
        }
    };
    match timeout(LIMIT, asked).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => Reply::Failed(format!("{server}: {error}")),
        Err(_) => Reply::Failed(format!("{server} does not answer")),
    }
}

/// An answer, or that it was too long. A socket of its own: the port is one more thing that a forger must guess.
async fn datagram(server: SocketAddr, question: &Question) -> io::Result<Read> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    loop {
        socket.send(&question.bytes).await?;
        if let Ok(read) = timeout(AGAIN, answer(&socket, question)).await {
            return read;
        }
    }
}

async fn answer(socket: &UdpSocket, question: &Question) -> io::Result<Read> {
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let read = question.read(&buffer[..length]);
        if read != Read::NotOurs {
            return Ok(read);
        }
    }
}

async fn stream(server: SocketAddr, question: &Question) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &question.bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    match question.read(&answer) {
        Read::Reply(reply) => Ok(reply),
        _ => Err(io::Error::other("the answer over TCP is not to the question")),
    }
}
