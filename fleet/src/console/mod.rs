//! The console: pages for support and operations, rendered here, in English and Chinese.
//!
//! ```text
//! browser ──► guard (Host, Origin) ──► Visitor (session, language) ──► pages ──► view (pure) ──► templates (escaped)
//!    ▲                                                                                               │
//!    └── a change (SSE of the API) ──► our script reads the page again and puts its content in place ◄┘
//! ```
//!
//! Promises: everything a device, a till or an operator wrote is escaped by the templates, and the content security
//! policy lets no script run but our own file; each page works without scripts (it then refreshes itself); nothing is
//! loaded from anywhere else. The pages look; only those of route tables and host overrides change something, by
//! forms with a CSRF token.

mod endpoints;
mod hosts;
mod pages;
mod route_drafts;
mod route_map;
mod route_preview;
mod route_view;
mod routes;
mod sign_in;
mod view;
mod visitor;
mod words;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use http::{HeaderValue, StatusCode, header};

use crate::app::App;
use crate::problem::{Failure, chain};
use askama::Template;

/// Only our own files, and nobody may put our pages into theirs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// The largest form: a table of 1 MiB, with every quotation mark encoded.
const FORM: usize = 4 * 1024 * 1024;

/// The pages, for [`crate::router::assemble`].
#[must_use = "the pages are to be served"]
pub fn router() -> Router<App> {
    Router::new()
        .route("/", get(|| std::future::ready(Redirect::to("/console"))))
        .route("/console", get(pages::overview))
        .route("/console/", get(|| std::future::ready(Redirect::permanent("/console"))))
        .route("/console/stores/{id}", get(pages::store))
        .route("/console/devices/{id}", get(pages::device))
        .route("/console/devices/{id}/hosts", get(hosts::of_device).post(hosts::change))
        .route("/console/hosts", get(hosts::everywhere))
        .merge(route_pages())
        .route("/console/endpoints", get(endpoints::endpoints))
        .route("/console/{*rest}", get(pages::nothing))
        .route("/console/sign-in", get(sign_in::form).post(sign_in::sign_in))
        .route("/console/sign-out", post(sign_in::sign_out))
        .route(
            "/console/assets/console.css",
            get(|| asset("text/css; charset=utf-8", include_str!("assets/console.css"))),
        )
        .route(
            "/console/assets/console.js",
            get(|| asset("text/javascript; charset=utf-8", include_str!("assets/console.js"))),
        )
        .route("/console/assets/icon.svg", get(|| asset("image/svg+xml", include_str!("assets/icon.svg"))))
}

fn route_pages() -> Router<App> {
    Router::new()
        .route("/console/routes", get(routes::overview))
        .route("/console/routes/stragglers", get(routes::stragglers))
        .route("/console/routes/drafts", post(routes::begin))
        .route("/console/routes/drafts/{id}", get(route_drafts::draft).post(route_drafts::change))
        .route("/console/routes/drafts/{id}/preview", get(route_preview::draft))
        .route("/console/routes/{version}", get(routes::table).post(routes::bring_back))
        .route("/console/routes/{version}/preview", get(route_preview::version))
        .layer(DefaultBodyLimit::max(FORM))
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "public, max-age=300"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}

/// A page as it is sent: never stored, never framed, scripts from our own file only.
fn page(status: StatusCode, template: &impl Template, cookie: Option<String>) -> Response {
    let html = match template.render() {
        Ok(html) => html,
        Err(error) => return Failure::unavailable(&error).into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let mut response = (status, headers, html).into_response();
    if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// For the log, when a page could not be made.
fn inside(error: &(dyn std::error::Error + 'static)) {
    tracing::error!(error = %chain(error), "a page could not be made");
}
