//! One probe: `GET {base}/.samovar/health`, which an origin answers with 204 and its own name; and a knock, which is no
//! more than a connection (IO).

use super::health::{Outcome, Probed};
use crate::clock::mono;
use crate::net::{Clients, Wanted, explain};
use futures_util::future::{FutureExt, select_ok};
use http::StatusCode;
use samovar_wire::OriginId;
use samovar_wire::route::{Decision, Scheme};
use std::time::Duration;
use tokio::net::TcpStream;

/// Header in which an origin says who it is.
const ORIGIN_HEADER: &str = "Samovar-Origin";

/// Longest wait for a knock to be answered.
const KNOCK_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for a name, when no address is known.
const KNOCK_RESOLVE_LIMIT: Duration = Duration::from_secs(1);

/// What a probe found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) origin: OriginId,
    pub(super) probed: Probed,
    /// From sending to the head of the answer.
    pub(super) took: Duration,
}

impl Found {
    pub(super) fn answered(&self) -> bool {
        self.probed == Probed::Sent(Outcome::Answered)
    }
}

/// Probes one origin. The time-outs are those of `clients`. An origin with an API of its own need not know its name:
/// whatever answers at its address, and is neither a failure nor a portal, is taken for it.
pub(super) async fn probe(clients: Clients, way: Decision) -> Found {
    let began = mono();
    let probed = match clients.client(&way) {
        Ok(client) => Probed::Sent(ask(&clients, &client, &way).await),
        Err(why) => Probed::NotSent(explain(&why)),
    };
    Found { origin: way.origin, probed, took: mono().after(began) }
}

/// Whether any address of the endpoint takes a connection. Names are asked for only when no address is known: while the
/// line is down nobody answers for names either, and hanging look-ups would pile up.
pub(super) async fn knock(clients: &Clients, way: &Decision) -> bool {
    let (resolver, wanted) = (clients.resolver(), wanted(way));
    let mut addresses = resolver.known(&wanted);
    if addresses.is_empty() {
        let found = resolver.find(&wanted, KNOCK_RESOLVE_LIMIT).await;
        addresses = found.map(|found| found.addresses).unwrap_or_default();
    }
    if clients.settings().scheme == Scheme::Http {
        addresses.retain(std::net::IpAddr::is_loopback);
    }
    let port = way.endpoint.port;
    let knocks: Vec<_> =
        addresses.into_iter().map(|address| TcpStream::connect((address, port)).boxed()).collect();
    if knocks.is_empty() {
        return false;
    }
    matches!(tokio::time::timeout(KNOCK_LIMIT, select_ok(knocks)).await, Ok(Ok(_)))
}

/// What became of a request that only asks whether anything answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// The origin did.
    Answered,
    /// Something did that is or says something else.
    Else(String),
    /// Nothing did, or it did not prove that it is the name.
    NotReached(String),
}

/// One request by a way, whatever is known of the origin's health.
pub(super) async fn try_way(clients: &Clients, way: &Decision) -> Tried {
    let client = match clients.client(way) {
        Ok(client) => client,
        Err(error) => return Tried::NotReached(explain(&error)),
    };
    let sent = client.get(format!("{}/.samovar/health", way.base_url)).send().await;
    match sent {
        Err(error) => Tried::NotReached(explain(&error.without_url())),
        Ok(response) => {
            let name = response.headers().get(ORIGIN_HEADER).map(http::HeaderValue::as_bytes);
            match judge(response.status(), name, &way.origin, clients.settings().named) {
                Outcome::Answered => Tried::Answered,
                Outcome::Failed(what) | Outcome::NotTheOrigin(what) => Tried::Else(what),
            }
        }
    }
}

/// What the names are asked for.
pub(super) fn wanted(way: &Decision) -> Wanted<'_> {
    Wanted { domain: &way.domain, host: &way.endpoint.host, listed: &way.endpoint.addresses }
}

async fn ask(clients: &Clients, client: &reqwest::Client, way: &Decision) -> Outcome {
    let (resolver, host) = (clients.resolver(), &way.endpoint.host);
    let began = mono();
    let sent = client.get(format!("{}/.samovar/health", way.base_url)).send().await;
    let response = match sent {
        Ok(response) => response,
        Err(error) => return Outcome::Failed(explain(&error.without_url())),
    };
    resolver.request_took(host, mono().after(began));
    let name = response.headers().get(ORIGIN_HEADER).map(http::HeaderValue::as_bytes);
    let outcome = judge(response.status(), name, &way.origin, clients.settings().named);
    if let (Outcome::Answered, Some(address)) = (&outcome, response.remote_addr()) {
        resolver.remember(host, address.ip());
    }
    outcome
}

/// A 5xx may come from anything in front of the origin, so it counts before the name is looked at. A refusal that
/// carries the right name (too many requests, say) is an answer.
fn judge(status: StatusCode, name: Option<&[u8]>, expected: &OriginId, named: bool) -> Outcome {
    if status.is_server_error() && status != StatusCode::NETWORK_AUTHENTICATION_REQUIRED {
        return Outcome::Failed(format!("the health probe got {status}"));
    }
    let portal = status.is_redirection() || status.is_server_error();
    if !named && name.is_none() && !portal {
        return Outcome::Answered;
    }
    let is_it = name == Some(expected.as_str().as_bytes());
    if is_it && (status == StatusCode::NO_CONTENT || status.is_client_error()) {
        return Outcome::Answered;
    }
    let who = match name.map(String::from_utf8_lossy) {
        Some(name) => format!("{ORIGIN_HEADER}: {}", name.chars().take(64).collect::<String>()),
        None => format!("no {ORIGIN_HEADER}"),
    };
    Outcome::NotTheOrigin(format!("the health probe got {status} with {who}, expected 204 from {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_origin_answers_and_a_server_error_is_a_failure() {
        let expected: OriginId = "apac".parse().unwrap();
        let judged = |status: u16, name: Option<&str>| {
            judge(StatusCode::from_u16(status).unwrap(), name.map(str::as_bytes), &expected, true)
        };
        assert_eq!(judged(204, Some("apac")), Outcome::Answered);
        assert_eq!(judged(429, Some("apac")), Outcome::Answered);
        for (status, name) in
            [(204, None), (204, Some("us-west")), (200, Some("apac")), (302, None), (404, None), (511, None)]
        {
            assert!(matches!(judged(status, name), Outcome::NotTheOrigin(_)), "{status} {name:?}");
        }
        for status in [500, 502, 503, 504] {
            assert!(matches!(judged(status, Some("apac")), Outcome::Failed(_)), "{status}");
        }
    }

    #[test]
    fn an_origin_without_a_health_check_of_ours_answers_by_answering() {
        let expected: OriginId = "apac".parse().unwrap();
        let judged = |status: u16, name: Option<&str>| {
            judge(StatusCode::from_u16(status).unwrap(), name.map(str::as_bytes), &expected, false)
        };
        for status in [200, 204, 401, 404, 405] {
            assert_eq!(judged(status, None), Outcome::Answered, "{status}");
        }
        assert_eq!(judged(204, Some("apac")), Outcome::Answered);
        for (status, name) in [(302, None), (511, None), (204, Some("us-west"))] {
            assert!(matches!(judged(status, name), Outcome::NotTheOrigin(_)), "{status} {name:?}");
        }
        assert!(matches!(judged(503, None), Outcome::Failed(_)));
    }

    /// A TLS server for one name that answers as `us-west` and tells the names it was asked for; and who believes it.
    async fn tls_server(name: &str) -> (u16, tokio::sync::mpsc::Receiver<String>, rustls::ClientConfig) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(std::sync::Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, names) = tokio::sync::mpsc::channel(8);
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut tls) = acceptor.accept(stream).await else { continue };
                let _ = asked.send(tls.get_ref().1.server_name().unwrap_or_default().to_owned()).await;
                let mut request = [0_u8; 1024];
                let _ = tls.read(&mut request).await;
                let answer =
                    b"HTTP/1.1 204 No Content\r\nSamovar-Origin: us-west\r\nConnection: close\r\n\r\n";
                let _ = tls.write_all(answer).await;
                let _ = tls.shutdown().await;
            }
        });
        (port, names, client)
    }

    fn pointed(domain: &str, port: u16) -> Decision {
        let way = Decision {
            domain: domain.into(),
            base_url: format!("https://{domain}:{port}"),
            origin: "us-west".parse().unwrap(),
            endpoint: samovar_wire::route::Endpoint {
                host: "usw.store.test".into(),
                port,
                addresses: Vec::new(),
                basis_points: None,
            },
            rule: samovar_wire::route::Rule::Fallback,
            candidates: Vec::new(),
            reason: Vec::new(),
        };
        super::super::pointed::at(way, "127.0.0.1".parse().unwrap())
    }

    #[tokio::test]
    async fn another_address_must_prove_that_it_is_the_name() {
        let (port, mut names, config) = tls_server("us.store.test").await;
        let (_keep, tls) = tokio::sync::watch::channel(Some(std::sync::Arc::new(config)));
        let settings = crate::net::ClientSettings {
            scheme: Scheme::Https,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            named: true,
        };
        let clients = Clients::new(settings, tls, crate::net::Resolver::default());
        assert_eq!(try_way(&clients, &pointed("us.store.test", port)).await, Tried::Answered);
        assert_eq!(names.recv().await.as_deref(), Some("us.store.test"));
        let wrong = try_way(&clients, &pointed("jp.store.test", port)).await;
        let Tried::NotReached(why) = wrong else { panic!("{wrong:?}") };
        assert!(why.contains("certificate"), "{why}");
    }
}
