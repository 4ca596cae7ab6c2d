//! Browsers kept honest: the `Host` must be a name of this server (no DNS rebinding), and requests from other sites'
//! pages are refused. For the console and the API; devices are known by certificate or token instead.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode, header};

use crate::app::App;
use crate::problem::Failure;

/// Middleware: 421 for a foreign `Host`, 403 for a request that a page of another site makes.
pub async fn browsers(State(app): State<App>, request: Request, next: Next) -> Response {
    let server = &app.config.server;
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .or_else(|| request.uri().authority().map(http::uri::Authority::as_str))
        .unwrap_or_default();
    if !is_ours(host, &server.public_host, &server.hosts) {
        let detail = format!("`{host}` is not a name of this server (see server.hosts)");
        return Failure::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", detail).into_response();
    }
    if is_foreign(request.headers(), host) {
        return Failure::new(StatusCode::FORBIDDEN, "cross-origin", "requests from other sites are refused")
            .into_response();
    }
    next.run(request).await
}

/// Addresses are always ours: rebinding needs a name.
fn is_ours(host: &str, public_host: &str, more: &[String]) -> bool {
    let name = without_port(host);
    !name.is_empty()
        && (name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || name.eq_ignore_ascii_case(public_host)
            || more.iter().any(|one| name.eq_ignore_ascii_case(one)))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

fn is_foreign(headers: &HeaderMap, host: &str) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if text("sec-fetch-site") == Some("cross-site") {
        return true;
    }
    // "null" (a sandboxed page, a file) is nobody we know.
    text("origin").is_some_and(|origin| {
        origin.split_once("://").is_none_or(|(_, authority)| !authority.eq_ignore_ascii_case(host))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_configured_names_are_ours_and_nothing_else() {
        let more = ["console.example".to_owned()];
        for ours in [
            "127.0.0.1:7700",
            "[::1]:80",
            "[::1]",
            "localhost",
            "LOCALHOST:1",
            "fleet.example:7743",
            "Console.example",
        ] {
            assert!(is_ours(ours, "fleet.example", &more), "{ours}");
        }
        for foreign in ["", "evil.example", "localhost.evil.example", ":80", "fleet.example.evil"] {
            assert!(!is_ours(foreign, "fleet.example", &more), "{foreign}");
        }
    }

    #[test]
    fn only_a_request_of_our_own_page_or_of_no_page_passes() {
        let with = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
        };
        assert!(!is_foreign(&HeaderMap::new(), "localhost:7700"));
        assert!(!is_foreign(&with("origin", "http://localhost:7700"), "localhost:7700"));
        assert!(is_foreign(&with("origin", "http://evil.example"), "localhost:7700"));
        assert!(is_foreign(&with("origin", "null"), "localhost:7700"));
        assert!(is_foreign(&with("sec-fetch-site", "cross-site"), "localhost:7700"));
    }
}
