//! A country whose orders only one origin may hold: when that one is down nothing leaves, however well another one is.

use crate::shop::{AFTER_RETRY, SOON, accepted, condition, place_many, sale_with, settled};
use anyhow::{Result, ensure};
use samovar_tests::{Agent, Origin, TableBuilder, eventually};
use serde_json::json;

#[tokio::test]
async fn nothing_leaves_for_another_origin_and_the_condition_says_why() -> Result<()> {
    let (mut allowed, other) = (Origin::start("us-west").await?, Origin::start("apac").await?);
    let table = TableBuilder::new()?
        .origin("us-west", allowed.address())
        .origin("apac", other.address())
        .residency("US", &["us-west"])
        .residency("JP", &["apac"]);
    let agent = Agent::setup().table(&table).start().await?;
    allowed.stop().await;
    let keys = place_many(agent.api(), "US", 50).await?;

    condition(&agent, "origin-unreachable", true, AFTER_RETRY).await?;
    // The other one answers this device all the while: it gets the orders of its own country.
    accepted(agent.api(), &sale_with("JP-1", &json!({ "udl": "JP" }))).await?;
    settled(&agent, 1, AFTER_RETRY).await?;
    let why = eventually("the condition names the rule", SOON, async || {
        let detail = agent.api().conditions().await.ok()?.remove("origin-unreachable")?;
        detail.contains("residency").then_some(detail)
    })
    .await?;
    ensure!(why.contains("us-west") && why.contains("apac") && why.contains("US"), "{why}");

    let summary = agent.api().summary().await?;
    ensure!((summary.pending, summary.held, summary.quarantined) == (50, 0, 0), "{summary:?}");
    ensure!(keys.iter().all(|key| !other.holds(key)), "an order left its residency");
    ensure!(other.requests().iter().all(|seen| seen.header("udl") == "JP"), "a batch left its residency");
    let chosen = agent.api().get_json("/v1/resolve?service=orders").await?;
    ensure!(chosen["origin"] == "us-west", "{chosen}");

    allowed.restart().await?;
    settled(&agent, 51, AFTER_RETRY).await?;
    ensure!((allowed.orders(), other.orders()) == (50, 1));
    Ok(())
}
