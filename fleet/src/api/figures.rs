//! How long names and requests take, per endpoint and country, before and after a table.
#![expect(unused_qualifications, reason = "written by the macro that describes the query parameters")]

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Query, State};
use samovar_wire::Timestamp;
use samovar_wire::figures::Timing;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Operator;
use crate::ingest::figures::{self, Measured, Wanted};
use crate::problem::Failure;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(endpoints))
}

/// Durations in milliseconds.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct TimingView {
    /// How many were measured.
    count: u64,
    /// The middle one, rounded up to the edge of its bucket; null when nothing was measured.
    p50_ms: Option<u32>,
    /// One of twenty is slower.
    p95_ms: Option<u32>,
}

impl From<Timing> for TimingView {
    fn from(timing: Timing) -> Self {
        Self { count: timing.count, p50_ms: timing.p50_ms, p95_ms: timing.p95_ms }
    }
}

/// What was measured.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct MeasuredView {
    /// Looking the host's name up.
    dns: TimingView,
    /// From sending to the head of the answer.
    request: TimingView,
}

impl From<Measured> for MeasuredView {
    fn from(measured: Measured) -> Self {
        Self { dns: measured.dns.into(), request: measured.request.into() }
    }
}

/// One endpoint in one country, under one table.
#[derive(Debug, Serialize, ToSchema)]
struct EndpointView {
    country: String,
    origin: String,
    host: String,
    /// The table that was in force on the devices.
    table_version: i64,
    #[serde(flatten)]
    measured: MeasuredView,
}

/// One endpoint in one country, before and after a table.
#[derive(Debug, Serialize, ToSchema)]
struct ComparedView {
    country: String,
    origin: String,
    host: String,
    /// Under all earlier tables.
    before: MeasuredView,
    /// Under this table and later ones.
    after: MeasuredView,
}

/// Endpoints by country, origin and host.
#[derive(Debug, Serialize, ToSchema)]
struct EndpointList {
    endpoints: Vec<EndpointView>,
    /// With `version`: before and after that table.
    compared: Vec<ComparedView>,
}

/// Which figures.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Filter {
    /// Of this country only.
    country: Option<String>,
    /// From the day of this moment (RFC 3339, or a date).
    from: Option<String>,
    /// To the day of this moment.
    to: Option<String>,
    /// Compare before and after this table.
    version: Option<i64>,
}

/// DNS and request times per endpoint and country.
#[utoipa::path(get, path = "/api/v1/routes/endpoints", tag = "routes", params(Filter),
    responses((status = 200, body = EndpointList), (status = 400), (status = 401)))]
async fn endpoints(
    State(app): State<App>,
    _operator: Operator,
    Query(filter): Query<Filter>,
) -> Result<Json<EndpointList>, Failure> {
    let wanted = Wanted {
        from: moment("from", filter.from.as_deref())?,
        to: moment("to", filter.to.as_deref())?,
        country: filter.country.filter(|country| !country.is_empty()),
    };
    let measured = figures::measured(&app.database, &wanted).await?;
    let compared = filter.version.map(|version| compared(&measured, version)).unwrap_or_default();
    let endpoints = measured.into_iter().map(|((country, origin, host, table_version), measured)| {
        EndpointView { country, origin, host, table_version, measured: measured.into() }
    });
    Ok(Json(EndpointList { endpoints: endpoints.collect(), compared }))
}

fn moment(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, Failure> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let read = whole.parse().map_err(|_| Failure::malformed(format!("{name}: `{text}` is no date or time")));
    read.map(Some)
}

fn compared(measured: &BTreeMap<figures::Endpoint, Measured>, version: i64) -> Vec<ComparedView> {
    let split = figures::before_and_after(measured, version).into_iter();
    split
        .map(|((country, origin, host), [before, after])| {
            let (before, after) = (before.into(), after.into());
            ComparedView { country, origin, host, before, after }
        })
        .collect()
}
