//! Too many guests at once.

use crate::shop::{SOON, place_many, sale, settled, shop};
use anyhow::{Context, Result};
use futures_util::{StreamExt, stream};
use samovar_tests::{LocalApi, eventually, process};
use std::net::SocketAddr;
use tokio::net::TcpStream;

const GUESTS: usize = 10_000;

#[tokio::test]
async fn ten_thousand_open_connections_do_not_keep_a_till_from_selling() -> Result<()> {
    let limit = process::raise_open_files()?;
    anyhow::ensure!(
        limit > GUESTS as u64 + 500,
        "this system allows only {limit} open files; raise the hard limit"
    );
    let mut shop = shop().await?;
    let mut keys = place_many(shop.agent.api(), "before", 10).await?;
    let address: SocketAddr = shop.agent.api().base().trim_start_matches("http://").parse()?;
    // A connection that is refused or cut is an answer too; only the agent's health counts.
    let guests: Vec<_> = stream::iter(0..GUESTS)
        .map(|_| tokio::time::timeout(SOON, TcpStream::connect(address)))
        .buffer_unordered(512)
        .filter_map(async |guest| guest.ok()?.ok())
        .collect()
        .await;
    assert!(guests.len() > GUESTS / 2, "only {} connections came about", guests.len());
    let order = sale("during");
    let fresh = LocalApi::new(shop.agent.api().base())?;
    let sold = fresh.place_until_answered(&order, SOON).await.context("while they are open")?;
    assert!(matches!(sold.status, 200 | 202), "{}", sold.status);
    keys.push("during".into());
    drop(guests);
    eventually("a new connection is served", SOON, async || {
        let fresh = LocalApi::new(shop.agent.api().base()).ok()?;
        fresh.summary().await.ok()
    })
    .await?;
    keys.extend(place_many(shop.agent.api(), "after", 10).await?);
    assert!(shop.agent.is_running());
    settled(&shop.agent, 21, SOON).await?;
    crate::shop::exactly_these(&shop.origin, &keys)
}
