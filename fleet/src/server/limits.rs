//! A deadline for every request, and problem documents for what no route answers.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode, Uri, header};

use crate::app::App;
use crate::problem::Failure;

/// Middleware: a request (its body included) whose answer has not begun in time is answered 408. Streams that have
/// begun are not cut.
pub async fn deadline(State(app): State<App>, request: Request, next: Next) -> Response {
    let limit = Duration::from_secs(app.config.server.request_timeout_s);
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request took too long")
            .retry_after(1)
            .into_response(),
    }
}

/// Middleware: text with a NUL character is refused before it reaches a handler: PostgreSQL stores none, and no name,
/// code or query means one. The origin's paths judge each order for themselves.
pub async fn no_nul(request: Request, next: Next) -> Response {
    let refused = || Failure::malformed("a NUL character is not text").into_response();
    let address = request.uri().path_and_query().map_or("", |address| address.as_str());
    if address.contains("%00") {
        return refused();
    }
    if request.uri().path().starts_with("/v1/") || request.method().is_safe() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, crate::router::BODY).await else {
        let detail = format!("a request has at most {} bytes", crate::router::BODY);
        return Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail).into_response();
    };
    let form =
        parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().ends_with(b"urlencoded"));
    if has_nul(&bytes, form) {
        return refused();
    }
    next.run(Request::from_parts(parts, bytes.into())).await
}

/// A NUL character in JSON (there a backslash only ever begins an escape) or in a form.
fn has_nul(body: &[u8], form: bool) -> bool {
    let mut rest = body;
    while let Some(place) = rest.iter().position(|byte| matches!(byte, 0 | b'\\' | b'%')) {
        rest = &rest[place..];
        match rest {
            [0, ..] | [b'\\', b'u', b'0', b'0', b'0', b'0', ..] => return true,
            [b'%', b'0', b'0', ..] if form => return true,
            [b'\\', _, after @ ..] | [_, after @ ..] => rest = after,
            [] => {}
        }
    }
    false
}

/// The answer when there is no such path.
pub async fn no_such_path(uri: Uri) -> Failure {
    Failure::not_found(format!("there is nothing at {}", uri.path()))
}

/// The answer when the path has no such method.
pub async fn no_such_method(method: Method, uri: Uri) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("{} does not take {method}", uri.path()),
    )
}

/// Middleware: refusals that the framework makes itself (a body that is not what the handler takes, a bad query)
/// become problem documents like all others.
pub async fn problems(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !status.is_client_error() || !plain {
        return response;
    }
    let slug = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "too-large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported",
        _ => "malformed",
    };
    // Axum says 422 for JSON of the wrong shape; the contract's word for it is 400.
    let status = if status == StatusCode::UNPROCESSABLE_ENTITY { StatusCode::BAD_REQUEST } else { status };
    let detail = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    Failure::new(status, slug, String::from_utf8_lossy(&detail)).into_response()
}

#[cfg(test)]
mod tests {
    use super::has_nul;

    #[test]
    fn a_nul_is_found_however_it_is_written() {
        for bad in [&b"\0"[..], br#"{"a":"x\u0000"}"#, br#"{"a":"\\\u0000"}"#, b"name=a%00b"] {
            assert!(has_nul(bad, bad.starts_with(b"name")), "{}", String::from_utf8_lossy(bad));
        }
        for good in [&b""[..], br#"{"a":"\\u0000 100%00"}"#, br#"{"a":"\u0001"}"#, b"name=a%20b", b"\\"] {
            assert!(!has_nul(good, good.starts_with(b"name")), "{}", String::from_utf8_lossy(good));
        }
    }
}
