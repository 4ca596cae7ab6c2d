//! DNS servers that are asked over HTTPS at a fixed address (IO). Never asked before anybody else, and only when the route
//! table names one: not every country allows it.

use super::answer::Reply;
use super::direct::both;
use super::message::{Family, Question, Read};
use super::servers::DohServer;
use crate::net::{explain, read_limited};
use rustls::ClientConfig;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Longest time for one question.
const LIMIT: Duration = Duration::from_secs(3);
/// More than any answer about addresses.
const ANSWER_MAX: usize = 64 * 1024;
/// What question and answer are written in (RFC 8484).
const MESSAGE: &str = "application/dns-message";

/// One server; its connection is kept for the second kind of address.
#[derive(Debug, Clone)]
pub(super) struct Doh {
    url: String,
    client: reqwest::Client,
}

impl Doh {
    /// `None` when no client can be made for it; that is told.
    pub(super) fn new(server: &DohServer, tls: &ClientConfig) -> Option<Self> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .https_only(true)
            .resolve(&server.name, SocketAddr::new(server.address, server.port))
            .timeout(LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .http1_only()
            .build();
        match client {
            Ok(client) => Some(Self { url: server.url(), client }),
            Err(error) => {
                tracing::warn!(error = explain(&error), server = server.url(), "no HTTPS client for DNS");
                None
            }
        }
    }

    pub(super) async fn ask(&self, host: &str) -> Reply {
        both(|family| self.exchange(host, family)).await
    }

    async fn exchange(&self, host: &str, family: Family) -> Reply {
        // The same number for every question: answers can then be kept by whoever stands between (RFC 8484 §4.1).
        let Some(question) = Question::new(0, host, family) else {
            return Reply::Failed(format!("`{host}` is not a name of the DNS"));
        };
        let failed = |why: String| Reply::Failed(format!("{}: {why}", self.url));
        let request = self.client.post(&self.url).header("content-type", MESSAGE).header("accept", MESSAGE);
        let response = match request.body(question.bytes.clone()).send().await {
            Ok(response) if response.status() == http::StatusCode::OK => response,
            Ok(response) => return failed(format!("HTTP {}", response.status().as_u16())),
            Err(error) => return failed(explain(&error.without_url())),
        };
        match read_limited(response, ANSWER_MAX, LIMIT).await {
            Ok(answer) => match question.read(&answer) {
                Read::Reply(reply) => reply,
                _ => failed("this is not an answer to the question".into()),
            },
            Err(error) => failed(explain(&error)),
        }
    }
}

/// Whom such servers are believed by: those whom the system believes, for they belong to others than the origins.
pub(super) fn system_tls() -> Arc<ClientConfig> {
    static TLS: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    Arc::clone(TLS.get_or_init(|| {
        let mut roots = rustls::RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        tracing::info!(authorities = added, "DNS over HTTPS believes the system's authorities");
        Arc::new(crate::net::clients::tls_with(roots))
    }))
}

#[cfg(test)]
mod tests {
    use super::super::answer::Answer;
    use super::*;
    use hickory_proto::op::{Message, MessageType, OpCode};
    use hickory_proto::rr::{RData, Record, RecordType, rdata::A};
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

    /// A server for `dns.example` that has one address for every name; and whom it is believed by.
    async fn server() -> (DohServer, ClientConfig) {
        let signed = rcgen::generate_simple_self_signed(vec!["dns.example".to_owned()]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(signed.cert.der().clone()).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                tokio::spawn(answer(stream));
            }
        });
        let server = DohServer {
            address: address.ip(),
            name: "dns.example".into(),
            port: address.port(),
            path: "/dns-query".into(),
        };
        (server, crate::net::clients::tls_with(roots))
    }

    async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut request = Vec::new();
        let body = loop {
            if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                return;
            }
            let head = request.windows(4).position(|end| end == b"\r\n\r\n");
            let Some(head) = head else { continue };
            let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
            assert!(text.starts_with("post /dns-query") && text.contains(MESSAGE), "{text}");
            let length = text.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
            let length: usize = length.parse().unwrap();
            if request.len() >= head + 4 + length {
                break request[head + 4..].to_vec();
            }
        };
        let question = Message::from_vec(&body).unwrap();
        let query = question.queries[0].clone();
        let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        if query.query_type() == RecordType::A {
            let data = RData::A(A::new(203, 0, 113, 1));
            message.add_answer(Record::from_rdata(query.name().clone(), 60, data));
        }
        message.add_query(query);
        let body = message.to_vec().unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        let _ = stream.shutdown().await;
    }

    #[tokio::test]
    async fn a_server_is_asked_at_its_address_and_must_prove_its_name() {
        let (server, tls) = server().await;
        let doh = Doh::new(&server, &tls).unwrap();
        let answer = Answer {
            addresses: vec!["203.0.113.1".parse().unwrap()],
            ttl: Some(Duration::from_secs(60)),
            chain: Vec::new(),
        };
        assert_eq!(doh.ask("usw.store.example").await, Reply::Found(answer));
        let other = DohServer { name: "other.example".into(), ..server };
        let Reply::Failed(why) = Doh::new(&other, &tls).unwrap().ask("usw.store.example").await else {
            panic!()
        };
        assert!(why.contains("certificate"), "{why}");
    }
}
