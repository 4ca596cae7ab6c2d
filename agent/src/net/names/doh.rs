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
