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
