//! The few requests of activation and renewal: explicit time-outs, explicit roots, no proxy from the environment, no
//! redirect followed unseen, answers bounded.

use super::tls::{self, Roots, TlsError};
use crate::net::{BodyError, read_limited};
use reqwest::{Client, Url};
use serde::Serialize;
use std::net::IpAddr;
use std::time::Duration;

/// Longest time for one request, from the connection to the end of the answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// A route table of 1 MiB in base64, and room for the rest.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// An address that is not spoken to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL with a host.
    #[error("`{0}` is not a URL such as https://activate.store.example")]
    NotAUrl(String),
    /// Plain HTTP to another machine would show the claim to everyone on the way.
    #[error("`{0}` must begin with https:// (http:// is accepted for loopback addresses only)")]
    NotHttps(String),
}

/// A request without a usable answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The client cannot be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// The server was not reached, so it knows nothing of the request.
    #[error("cannot connect to {host}")]
    NotConnected {
        /// Whom.
        host: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The request may have arrived, its answer did not.
    #[error("no answer from {host}")]
    Lost {
        /// From whom.
        host: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer began, and was too long or broke off.
    #[error("no whole answer from {host}")]
    Unread {
        /// From whom.
        host: String,
        /// Why.
        #[source]
        source: BodyError,
    },
    /// The request has no text form.
    #[error("cannot write the request as JSON")]
    Encode(#[source] serde_json::Error),
}

/// What a server said.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub body: Vec<u8>,
}

/// Reads a server's address: `https`, or `http` on this very machine.
pub(super) fn server_url(text: &str) -> Result<Url, UrlError> {
    let url = Url::parse(text.trim()).map_err(|_| UrlError::NotAUrl(text.to_owned()))?;
    allowed(url)
}

/// Refuses plain HTTP to other machines, whoever asks for it.
pub(super) fn allowed(url: Url) -> Result<Url, UrlError> {
    match (url.scheme(), url.host_str()) {
        ("https", Some(_)) => Ok(url),
        ("http", Some(host)) if is_loopback(host) => Ok(url),
        ("http", Some(_)) => Err(UrlError::NotHttps(url.into())),
        _ => Err(UrlError::NotAUrl(url.into())),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A path below a base URL, whether or not the base ends in a slash.
pub(super) fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url.set_query(None);
    url.set_fragment(None);
    url
}

/// A client for a server without TLS needs no roots, but the library needs a configuration that is ours.
pub(super) fn plain_client() -> Result<Client, HttpError> {
    client(tls::client_config(&Roots::none(), None)?)
}

pub(super) fn client(tls: rustls::ClientConfig) -> Result<Client, HttpError> {
    client_within(tls, DEADLINE)
}

fn client_within(tls: rustls::ClientConfig, deadline: Duration) -> Result<Client, HttpError> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("samovar-agent/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT)
        .timeout(deadline)
        // One request, one connection: a renewal must not ride on a session of the old certificate.
        .pool_max_idle_per_host(0)
        .build()
        .map_err(HttpError::Client)
}

pub(super) async fn post(client: &Client, url: Url, body: &impl Serialize) -> Result<Answer, HttpError> {
    let body = serde_json::to_vec(body).map_err(HttpError::Encode)?;
    let json = "application/json";
    let request = client.post(url.clone()).header("Content-Type", json).header("Accept", json).body(body);
    send(request, &url).await
}

pub(super) async fn get(client: &Client, url: Url) -> Result<Answer, HttpError> {
    send(client.get(url.clone()), &url).await
}

async fn send(request: reqwest::RequestBuilder, url: &Url) -> Result<Answer, HttpError> {
    let host = || url.authority().to_owned();
    let failed = |source: reqwest::Error| match source.is_connect() {
        true => HttpError::NotConnected { host: host(), source: source.without_url() },
        false => HttpError::Lost { host: host(), source: source.without_url() },
    };
    let response = request.send().await.map_err(failed)?;
    let location =
        response.headers().get("Location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let status = response.status().as_u16();
    let body = read_limited(response, MAX_ANSWER, DEADLINE).await;
    let body = body.map_err(|source| HttpError::Unread { host: host(), source })?;
    Ok(Answer { status, location, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for good in ["https://a.example", "http://127.0.0.1:80/x", "http://localhost", "http://[::1]:8080"] {
            assert!(server_url(good).is_ok(), "{good}");
        }
        for bad in ["http://a.example", "http://10.0.0.1", "http://localhost.example", "http://[fe80::1]"] {
            assert!(matches!(server_url(bad), Err(UrlError::NotHttps(_))), "{bad}");
        }
        for bad in ["", "a.example", "ftp://a.example", "mailto:x", "https://"] {
            assert!(matches!(server_url(bad), Err(UrlError::NotAUrl(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_server_that_never_answers_costs_a_bounded_wait_and_leaves_the_outcome_open() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = server_url(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
        let tls = tls::client_config(&Roots::none(), None).unwrap();
        let client = client_within(tls, Duration::from_millis(50)).unwrap();
        let error = post(&client, url, &"x").await.unwrap_err();
        assert!(matches!(error, HttpError::Lost { .. }), "{error:?}");
    }

    #[test]
    fn a_path_goes_below_the_base_without_a_double_slash() {
        for base in ["https://a.example", "https://a.example/", "https://a.example/?q#f"] {
            assert_eq!(below(&server_url(base).unwrap(), "/x").as_str(), "https://a.example/x");
        }
        assert_eq!(
            below(&server_url("https://a.example/f/").unwrap(), "/x").as_str(),
            "https://a.example/f/x"
        );
    }
}
