//! The page of endpoints: DNS and request times per endpoint and country, before and after a table (IO).

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use http::StatusCode;
use samovar_wire::Timestamp;
use samovar_wire::figures::Timing;
use serde::Deserialize;
use std::collections::BTreeMap;

use super::page;
use super::visitor::{Shell, Visitor};
use crate::app::App;
use crate::clock;
use crate::ingest::figures::{self, Measured, Wanted};
use crate::problem::Failure;
use crate::routes::published;

/// Days that the page looks back.
const DAYS: i64 = 7;

#[derive(Template)]
#[template(path = "console/endpoints.html")]
struct EndpointsPage {
    shell: Shell,
    version: i64,
    rows: Vec<Row>,
}

/// One endpoint in one country.
struct Row {
    country: String,
    origin: String,
    host: String,
    /// Before and after: number of requests, DNS, request.
    cells: [[String; 3]; 2],
}

/// Which table.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    version: Option<i64>,
}

/// Before and after a table: that in force unless another is asked for.
pub(super) async fn endpoints(
    State(app): State<App>,
    visitor: Visitor,
    Query(which): Query<Which>,
) -> Result<Response, Failure> {
    let in_force = published::in_force(&app.database).await?.map_or(0, |row| row.version);
    let version = which.version.unwrap_or(in_force);
    let from = Timestamp::from_millis(clock::now().millis() - DAYS * 86_400_000);
    let wanted = Wanted { from: Some(from), ..Wanted::default() };
    let measured = figures::measured(&app.database, &wanted).await?;
    let template =
        EndpointsPage { shell: visitor.shell(String::new()), version, rows: rows(&measured, version) };
    Ok(page(StatusCode::OK, &template, visitor.speech.cookie))
}

fn rows(measured: &BTreeMap<figures::Endpoint, Measured>, version: i64) -> Vec<Row> {
    let row = |((country, origin, host), both): ((String, String, String), [Measured; 2])| Row {
        country,
        origin,
        host,
        cells: both.map(|measured| {
            [measured.request.count.to_string(), times(&measured.dns), times(&measured.request)]
        }),
    };
    figures::before_and_after(measured, version).into_iter().map(row).collect()
}

/// The middle and the slow end, in milliseconds.
fn times(timing: &Timing) -> String {
    match (timing.p50_ms, timing.p95_ms) {
        (Some(p50), Some(p95)) => format!("{p50} / {p95}"),
        _ => "–".to_owned(),
    }
}
