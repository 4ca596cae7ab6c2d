//! What devices fetch because it is too large for a message (over mutual TLS).

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::activation;
use crate::app::App;
use crate::pki::PeerCertificate;
use crate::problem::Failure;

/// The path that desired states name.
pub const ROUTE_TABLE: &str = "/device/v1/route-table";

/// The routes.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(route_table))
}

/// The signed route table in force, for devices (with `If-None-Match`).
#[utoipa::path(get, path = "/device/v1/route-table", tag = "devices",
    responses((status = 200, description = "a DSSE envelope, with ETag"), (status = 304, description = "unchanged"),
        (status = 401, description = "no client certificate")))]
async fn route_table(
    app: State<App>,
    peer: Option<Extension<PeerCertificate>>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    activation::handlers::route_table(app, peer, headers).await
}
