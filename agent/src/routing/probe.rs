//! One probe: `GET {base}/.samovar/health`, which an origin answers with 204 and its own name; and a knock, which is no
//! more than a connection (IO).

use super::health::{Outcome, Probed};
use crate::clock::mono;
use crate::net::{Clients, explain};
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
    let took = mono().after(began);
    if probed == Probed::Sent(Outcome::Answered) {
        clients.figures().record_request(&way.origin, &way.endpoint.host, took);
    }
    Found { origin: way.origin, probed, took }
}

/// Whether any address of the endpoint takes a connection. Names are asked for only when no address is known: while the
/// line is down nobody answers for names either, and hanging look-ups would pile up.
pub(super) async fn knock(clients: &Clients, way: &Decision) -> bool {
    let (resolver, endpoint) = (clients.resolver(), &way.endpoint);
    let mut addresses = resolver.known(&endpoint.host, &endpoint.addresses);
    if addresses.is_empty() {
        let found = resolver.find(&endpoint.host, &[], KNOCK_RESOLVE_LIMIT).await;
        addresses = found.map(|found| found.addresses).unwrap_or_default();
    }
    if clients.settings().scheme == Scheme::Http {
        addresses.retain(std::net::IpAddr::is_loopback);
    }
    let port = endpoint.port;
    let knocks: Vec<_> =
        addresses.into_iter().map(|address| TcpStream::connect((address, port)).boxed()).collect();
    if knocks.is_empty() {
        return false;
    }
    matches!(tokio::time::timeout(KNOCK_LIMIT, select_ok(knocks)).await, Ok(Ok(_)))
}

async fn ask(clients: &Clients, client: &reqwest::Client, way: &Decision) -> Outcome {
    let sent = client.get(format!("{}/.samovar/health", way.base_url)).send().await;
    let response = match sent {
        Ok(response) => response,
        Err(error) => return Outcome::Failed(explain(&error.without_url())),
    };
    let name = response.headers().get(ORIGIN_HEADER).map(http::HeaderValue::as_bytes);
    let outcome = judge(response.status(), name, &way.origin, clients.settings().named);
    if let (Outcome::Answered, Some(address)) = (&outcome, response.remote_addr()) {
        clients.resolver().remember(&way.endpoint.host, address.ip());
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
}
