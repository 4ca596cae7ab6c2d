//! Refusals over HTTP: before anything is read, with the time to wait.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use samovar_wire::orders::HEADER_SHADOW;

use super::admission;
use crate::app::App;
use crate::problem::Failure;
use crate::server::body;

/// Middleware: under overload, 503 for whatever matters less than what is being worked on.
pub async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    let shadow = request.headers().contains_key(HEADER_SHADOW);
    let class = admission::class(request.uri().path(), shadow);
    let Some(class) = class.filter(|class| !app.overload.admits(*class)) else {
        return next.run(request).await;
    };
    app.overload.refused(class, 1);
    body::throw_away(request.into_body()).await;
    Failure::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        "the server is busy with orders; try again later",
    )
    .retry_after(spread(class.wait_s()))
    .into_response()
}

/// At least so many seconds and up to twice as many, so that those who were refused together do not return together.
#[must_use]
pub fn spread(seconds: u64) -> u64 {
    seconds.saturating_add(fastrand::u64(0..=seconds.max(1)))
}
