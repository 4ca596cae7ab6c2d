//! `routes endpoints`: how long names and requests take, per endpoint and country.

use anyhow::Result;
use clap::Args;

use super::client::{Client, Target, with_query};
use super::print;

/// Arguments of `routes endpoints`.
#[derive(Args)]
pub(super) struct Endpoints {
    /// Of this country only
    #[arg(long)]
    country: Option<String>,
    /// From this day on, such as 2026-11-20
    #[arg(long)]
    from: Option<String>,
    /// To this day
    #[arg(long)]
    to: Option<String>,
    /// Compare before and after this route table
    #[arg(long, value_name = "VERSION")]
    version: Option<u64>,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(wanted: Endpoints) -> Result<()> {
    let Endpoints { country, from, to, version, target } = wanted;
    let version = version.map(|version| version.to_string());
    let parameters = [("country", country), ("from", from), ("to", to), ("version", version.clone())];
    let answer =
        Client::find(&target).await?.get(&with_query("/api/v1/routes/endpoints", &parameters)).await?;
    if target.json {
        print::json(&answer);
        return Ok(());
    }
    let (name, columns): (_, &[&str]) = match version {
        Some(_) => (
            "compared",
            &[
                "country",
                "origin",
                "host",
                "before.dns.p50_ms",
                "after.dns.p50_ms",
                "before.request.count",
                "after.request.count",
                "before.request.p50_ms",
                "after.request.p50_ms",
                "before.request.p95_ms",
                "after.request.p95_ms",
            ],
        ),
        None => (
            "endpoints",
            &[
                "country",
                "origin",
                "host",
                "table_version",
                "dns.count",
                "dns.p50_ms",
                "dns.p95_ms",
                "request.count",
                "request.p50_ms",
                "request.p95_ms",
            ],
        ),
    };
    print::table(answer[name].as_array().map_or(&[][..], Vec::as_slice), columns);
    Ok(())
}
