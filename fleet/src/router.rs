//! One router from all routes, with what stands before them.
//!
//! ```text
//! request ──► deadline ──► /api/v1, /console: Host and Origin checked ──► handler (Operator)
//!                    └──► /v1, /.samovar, /activate/v1: overload ──► certificate or token ──► handler
//!                    └──► /healthz, /readyz, /metrics
//! ```

use axum::extract::{DefaultBodyLimit, State};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderName, HeaderValue, StatusCode, header};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;
use crate::auth::guard;
use crate::overload;
use crate::problem::Failure;
use crate::server::limits;

/// The largest body of an API or activation request.
pub(crate) const BODY: usize = 2 * 1024 * 1024;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Samovar fleet",
    description = "Devices use /activate/v1, /v1 and /.samovar; operators use /api/v1."
))]
struct Description;

/// Routes for people: with description, with the browser checks before them. Others add theirs here.
pub fn people() -> OpenApiRouter<App> {
    crate::api::router()
}

/// Routes for devices: with description.
pub fn devices() -> OpenApiRouter<App> {
    crate::activation::handlers::router()
        .merge(crate::orders::handlers::router())
        .merge(crate::ingest::http::router())
}

/// The whole server's router. `pages` are routes for people without description (the console).
pub fn assemble(app: &App, pages: Router<App>) -> Router {
    let (people, mut openapi) =
        OpenApiRouter::with_openapi(Description::openapi()).merge(people()).split_for_parts();
    let (devices, more) = devices().split_for_parts();
    let devices = devices.layer(from_fn_with_state(app.clone(), overload::http::admit));
    openapi.merge(more);
    describe_security(&mut openapi);
    let description = get(move || std::future::ready(Json(openapi)));
    let people = people
        .route("/api/v1/openapi.json", description)
        .route("/api/v1/schemas", get(|| std::future::ready(Json(samovar_wire::schema::all()))))
        .merge(pages)
        .layer(from_fn_with_state(app.clone(), guard::browsers));
    Router::new()
        .merge(people)
        .merge(devices)
        .route("/healthz", get(|| std::future::ready(StatusCode::OK)))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(limits::no_such_path)
        .method_not_allowed_fallback(limits::no_such_method)
        .layer(from_fn(limits::no_nul))
        .layer(from_fn(limits::problems))
        .layer(DefaultBodyLimit::max(BODY))
        .layer(from_fn_with_state(app.clone(), limits::deadline))
        .with_state(app.clone())
}

fn describe_security(openapi: &mut OpenApi) {
    let components = openapi.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    openapi.security = Some(vec![SecurityRequirement::new("token", std::iter::empty::<&str>())]);
}

/// Ready when the database takes writes.
async fn ready(State(app): State<App>) -> Result<StatusCode, Failure> {
    app.database.check().await?;
    Ok(StatusCode::OK)
}

async fn metrics(State(app): State<App>) -> ([(HeaderName, HeaderValue); 1], String) {
    let text = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(header::CONTENT_TYPE, text)], app.metrics.text() + &app.overload.metrics() + &app.ingest.metrics())
}
