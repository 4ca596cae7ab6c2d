//! A DNS server that does as it is told, over UDP and TCP on one loopback port.

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// What it does with a question.
#[derive(Debug, Clone)]
pub(super) enum Answers {
    Silence,
    ServFail,
    NoSuchName,
    Addresses(Vec<IpAddr>),
    /// Not over UDP.
    Truncated(Vec<IpAddr>),
    /// Noise, answers to other questions, and then the answer.
    AfterGarbage(IpAddr),
    /// Says nothing the first time; the answer has this life.
    SecondTime(IpAddr, u32),
    /// The name stands for `l1`, which stands for `l2`, and so on; one of them is slow.
    Chain {
        names: usize,
        ttl: u32,
        slow: usize,
        ms: u64,
    },
}

/// The server; ends with the test's runtime.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    datagrams: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
}

impl Server {
    pub(super) async fn answers(address: &str) -> Self {
        Self::start(Answers::Addresses(vec![address.parse().unwrap()])).await
    }

    pub(super) async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = Arc::new(UdpSocket::bind(address).await.unwrap());
        let (datagrams, streams) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        tokio::spawn(serve_udp(socket, answers.clone(), Arc::clone(&datagrams)));
        tokio::spawn(serve_tcp(listener, answers, Arc::clone(&streams)));
        Self { address, datagrams, streams }
    }

    /// Datagrams that came.
    pub(super) fn asked(&self) -> usize {
        self.datagrams.load(Ordering::SeqCst)
    }

    pub(super) fn asked_over_tcp(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, answers: Answers, asked: Arc<AtomicUsize>) {
    let mut buffer = [0; 4_096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let before = asked.fetch_add(1, Ordering::SeqCst);
        let question = Message::from_vec(&buffer[..length]).unwrap();
        let (socket, answers) = (Arc::clone(&socket), answers.clone());
        tokio::spawn(async move {
            for answer in datagrams(&answers, &question, before).await {
                socket.send_to(&answer, from).await.unwrap();
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, answers: Answers, asked: Arc<AtomicUsize>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        asked.fetch_add(1, Ordering::SeqCst);
        let Answers::Truncated(addresses) = &answers else { continue };
        let mut question = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut question).await.unwrap();
        let answer = found(&Message::from_vec(&question).unwrap(), addresses, 60).to_vec().unwrap();
        stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    }
}

async fn datagrams(answers: &Answers, question: &Message, before: usize) -> Vec<Vec<u8>> {
    let bytes = |message: Message| vec![message.to_vec().unwrap()];
    match answers {
        Answers::Silence => Vec::new(),
        Answers::ServFail => bytes(refused(question, ResponseCode::ServFail)),
        Answers::NoSuchName => bytes(refused(question, ResponseCode::NXDomain)),
        Answers::Addresses(addresses) => bytes(found(question, addresses, 60)),
        Answers::Truncated(_) => {
            let mut message = found(question, &[], 60);
            message.metadata.truncation = true;
            bytes(message)
        }
        Answers::AfterGarbage(address) => {
            let answer = found(question, &[*address], 60).to_vec().unwrap();
            let mut other = found(question, &["198.51.100.66".parse().unwrap()], 60);
            other.metadata.id = question.metadata.id.wrapping_add(1);
            let cut = answer[..answer.len() / 2].to_vec();
            vec![vec![0xff; 700], Vec::new(), cut, other.to_vec().unwrap(), answer]
        }
        // Two kinds of address are asked for, so the first time is two datagrams.
        Answers::SecondTime(..) if before < 2 => Vec::new(),
        Answers::SecondTime(address, ttl) => bytes(found(question, &[*address], *ttl)),
        Answers::Chain { names, ttl, slow, ms } => {
            let at = place(question);
            if at == *slow {
                tokio::time::sleep(Duration::from_millis(*ms)).await;
            }
            bytes(chain(question, at, *names, *ttl))
        }
    }
}

fn response(question: &Message) -> Message {
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.add_query(question.queries[0].clone());
    message
}

fn refused(question: &Message, code: ResponseCode) -> Message {
    let mut message = response(question);
    message.metadata.response_code = code;
    message
}

fn found(question: &Message, addresses: &[IpAddr], ttl: u32) -> Message {
    let mut message = response(question);
    let (name, kind) = (question.queries[0].name().clone(), question.queries[0].query_type());
    for address in addresses {
        let data = match (address, kind) {
            (IpAddr::V4(v4), RecordType::A) => RData::A(A(*v4)),
            (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA(AAAA(*v6)),
            _ => continue,
        };
        message.add_answer(Record::from_rdata(name.clone(), ttl, data));
    }
    message
}

/// Which link of the chain is asked for; the name itself is 0.
fn place(question: &Message) -> usize {
    let name = question.queries[0].name().to_ascii();
    let label = name.split('.').next().unwrap();
    label.strip_prefix('l').and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn chain(question: &Message, from: usize, names: usize, ttl: u32) -> Message {
    let link = |at: usize| Name::from_ascii(format!("l{at}.store.example.")).unwrap();
    let mut message = response(question);
    let mut owner = question.queries[0].name().clone();
    for at in from + 1..=names {
        message.add_answer(Record::from_rdata(owner, ttl, RData::CNAME(CNAME(link(at)))));
        owner = link(at);
    }
    if question.queries[0].query_type() == RecordType::A {
        message.add_answer(Record::from_rdata(owner, ttl, RData::A(A::new(203, 0, 113, 1))));
    }
    message
}
