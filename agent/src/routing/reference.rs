//! References: plain HTTP places of the route table that echo a nonce. They tell a line that is down from origins that
//! are, and a sign-in page from both (IO).
//!
//! They are asked only when no origin answers, so that a fleet in peace leaves them alone. Plain HTTP on purpose: a
//! sign-in page cannot answer TLS in their name, and its answer is what we want to see.

use super::health::Reference;
use crate::net::read_limited;
use futures_util::future::join_all;
use http::{HeaderValue, StatusCode};
use std::sync::LazyLock;
use std::time::Duration;

/// What each is asked.
const PATH: &str = "/.samovar/echo204";
/// What it must give back unchanged.
const NONCE: &str = "Samovar-Nonce";
/// References asked at most.
const ASKED_MAX: usize = 3;
/// Longest wait for any of them.
const LIMIT: Duration = Duration::from_secs(3);
/// As much of a page as is read, so that the connection can be closed in peace.
const PAGE_MAX: usize = 4096;

/// Asks the references of a table, all at once. One that answers outweighs all others.
pub(super) async fn ask(bases: &[String]) -> Reference {
    let Some(client) = CLIENT.as_ref().filter(|_| !bases.is_empty()) else { return Reference::NotAsked };
    let asked = bases.iter().take(ASKED_MAX).map(|base| ask_one(client, base));
    let answers = join_all(asked).await;
    let rank = |answer: &Reference| match answer {
        Reference::Answered => 0,
        Reference::Portal(_) => 1,
        Reference::Silent => 2,
        Reference::NotAsked => 3,
    };
    answers.into_iter().min_by_key(rank).unwrap_or_default()
}

/// It must see what the network does to a plain request, so it follows nothing and goes through no proxy.
static CLIENT: LazyLock<Option<reqwest::Client>> = LazyLock::new(|| {
    let roots = rustls::RootCertStore::empty();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.ok()?.with_root_certificates(roots).with_no_client_auth())
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .pool_max_idle_per_host(0)
        .timeout(LIMIT)
        .build()
        .ok()
});

async fn ask_one(client: &reqwest::Client, base: &str) -> Reference {
    let nonce = format!("{:032x}", fastrand::u128(..));
    let url = format!("{}{PATH}", base.trim_end_matches('/'));
    let Ok(response) = client.get(&url).header(NONCE, &nonce).send().await else { return Reference::Silent };
    let status = response.status();
    let echoed = response.headers().get(NONCE).map(HeaderValue::as_bytes) == Some(nonce.as_bytes());
    // What it says besides is of no interest.
    let _ = read_limited(response, PAGE_MAX, LIMIT).await;
    match (status, echoed) {
        (StatusCode::NO_CONTENT, true) => Reference::Answered,
        // In front of a reference that is itself in trouble there is no sign-in page.
        (status, _) if status.is_server_error() && status != StatusCode::NETWORK_AUTHENTICATION_REQUIRED => {
            Reference::Silent
        }
        (status, _) => {
            Reference::Portal(format!("{url} was answered with {status} instead of 204 and our nonce"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;

    async fn serve(answer: fn(&HeaderMap) -> Response) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route(PATH, get(move |headers: HeaderMap| async move { answer(&headers) }));
        tokio::spawn(async move { axum::serve(listener, app).await });
        base
    }

    fn echo(headers: &HeaderMap) -> Response {
        (StatusCode::NO_CONTENT, [(NONCE, headers[NONCE].clone())]).into_response()
    }

    #[tokio::test]
    async fn only_the_nonce_back_with_204_is_a_line_that_works() {
        let good = serve(echo).await;
        let copied = serve(|_| (StatusCode::NO_CONTENT, [(NONCE, "00000000")]).into_response()).await;
        let sign_in =
            serve(|_| (StatusCode::FOUND, [("Location", "http://portal.test/")]).into_response()).await;
        let broken = serve(|_| StatusCode::BAD_GATEWAY.into_response()).await;
        let nobody = "http://127.0.0.1:1".to_owned();
        assert_eq!(ask(&[]).await, Reference::NotAsked);
        assert_eq!(ask(std::slice::from_ref(&good)).await, Reference::Answered);
        assert_eq!(ask(&[format!("{good}/")]).await, Reference::Answered);
        assert!(matches!(ask(&[copied]).await, Reference::Portal(_)));
        assert_eq!(ask(&[broken, nobody.clone()]).await, Reference::Silent);
        assert!(matches!(ask(&[nobody.clone(), sign_in.clone()]).await, Reference::Portal(_)));
        assert_eq!(
            ask(&[nobody, sign_in, good]).await,
            Reference::Answered,
            "one that answers outweighs all"
        );
    }
}
