//! Origins that die: left, and returned to when they have proved themselves.

use crate::shop::{Hold, SEVERAL_PROBES, SOON, Shop};
use anyhow::{Result, ensure};
use samovar_tests::netns::{Place, is_long, sandboxed};
use samovar_tests::{clock, eventually};
use std::time::{Duration, Instant};

/// From the fault to the first new order at the other origin, and to the agent's saying so.
const LEFT_WITHIN: Duration = Duration::from_secs(15);
const LIVE: Duration = Duration::from_secs(2);
const EAST: usize = 1;

/// The preferred origin is gone since then: what is sold goes to the other one in time.
async fn is_left(shop: &mut Shop, gone_at: Instant, how: &str) -> Result<()> {
    let before = shop.recorded(EAST)?.len();
    let arrived = shop
        .until("orders go to the other origin", 3 * LEFT_WITHIN, async |shop| {
            (shop.recorded(EAST).ok()?.len() > before).then(|| gone_at.elapsed())
        })
        .await?;
    shop.until("the other origin is told", LEFT_WITHIN, async |shop| {
        (shop.now_at() == Place::Apac.name()).then_some(())
    })
    .await?;
    let told = shop.told.last().map_or(Duration::MAX, |(at, _)| at.duration_since(gone_at));
    println!("{how}: told after {told:.1?}, first order at the other origin after {arrived:.1?}");
    ensure!(told < LEFT_WITHIN && arrived < LEFT_WITHIN, "told after {told:?}, there after {arrived:?}");
    Ok(())
}

/// The preferred origin is back since then: it is used again after its hold, not before.
async fn is_returned_to(shop: &mut Shop, back_at: Instant, hold: Hold) -> Result<()> {
    let (least, most) = (Duration::from_secs(hold.after), Duration::from_secs(hold.after + hold.spread));
    shop.until("the first origin is told again", most + SEVERAL_PROBES, async |shop| {
        (shop.now_at() == Place::UsWest.name()).then_some(())
    })
    .await?;
    let after = shop.told.last().map_or(Duration::MAX, |(at, _)| at.duration_since(back_at));
    println!("returned to {after:.1?} after it came back; two probes and a hold of {least:?} to {most:?}");
    ensure!(after >= least && after < most + SEVERAL_PROBES, "returned to after {after:?}");
    let number = shop.sell().await?;
    eventually("an order is there", SOON, async || shop.has(0, &number).then_some(())).await
}

#[tokio::test]
async fn an_origin_that_is_killed_is_left_within_fifteen_seconds_and_returned_to() -> Result<()> {
    if !sandboxed("away::an_origin_that_is_killed_is_left_within_fifteen_seconds_and_returned_to")? {
        return Ok(());
    }
    let hold = Hold::of_profile();
    let mut shop = Shop::open(hold).await?;
    let gone_at = clock::now();
    shop.origins[0].sigkill().await?;
    is_left(&mut shop, gone_at, "killed").await?;
    let back_at = clock::now();
    shop.origins[0].start(None).await?;
    is_returned_to(&mut shop, back_at, hold).await?;
    ensure!(shop.told.len() == 3, "{:?}", shop.told);
    shop.settle().await
}

#[tokio::test]
async fn an_origin_whose_packets_vanish_is_left_within_fifteen_seconds_and_returned_to() -> Result<()> {
    if !sandboxed("away::an_origin_whose_packets_vanish_is_left_within_fifteen_seconds_and_returned_to")? {
        return Ok(());
    }
    let hold = Hold::of_profile();
    let mut shop = Shop::open(hold).await?;
    let gone_at = clock::now();
    shop.net.black_hole(Place::UsWest, true)?;
    is_left(&mut shop, gone_at, "black hole under open connections").await?;
    let back_at = clock::now();
    shop.net.black_hole(Place::UsWest, false)?;
    is_returned_to(&mut shop, back_at, hold).await?;
    ensure!(shop.told.len() == 3, "{:?}", shop.told);
    shop.settle().await
}

/// By hand only: six times two probes of an origin that was left.
#[tokio::test]
async fn an_origin_that_stumbles_while_it_proves_itself_begins_anew() -> Result<()> {
    if !is_long() {
        return Ok(());
    }
    if !sandboxed("away::an_origin_that_stumbles_while_it_proves_itself_begins_anew")? {
        return Ok(());
    }
    let hold = Hold { after: 90, spread: 0 };
    let mut shop = Shop::open(hold).await?;
    let gone_at = clock::now();
    shop.origins[0].sigkill().await?;
    is_left(&mut shop, gone_at, "killed").await?;
    shop.origins[0].start(None).await?;
    let proving = async |shop: &Shop| {
        let status = shop.agent.api().get_json("/v1/status").await.ok()?;
        let origins = status["origins"].as_array()?;
        let west = origins.iter().find(|origin| origin["origin"] == Place::UsWest.name())?;
        (west["health"] == "up" && west["returns_in_s"].is_u64()).then_some(())
    };
    shop.until("it proves itself", SEVERAL_PROBES, proving).await?;
    shop.origins[0].sigkill().await?;
    shop.until("its stumbling is seen", SEVERAL_PROBES, async |shop| {
        (shop.health().await.ok()?.get(Place::UsWest.name())? == "down").then_some(())
    })
    .await?;
    let back_at = clock::now();
    shop.origins[0].start(None).await?;
    is_returned_to(&mut shop, back_at, hold).await?;
    ensure!(shop.told.len() == 3, "{:?}", shop.told);
    shop.settle().await
}

#[tokio::test]
async fn while_both_origins_are_dead_orders_wait_and_leave_when_one_returns() -> Result<()> {
    if !sandboxed("away::while_both_origins_are_dead_orders_wait_and_leave_when_one_returns")? {
        return Ok(());
    }
    let mut shop = Shop::open(Hold::of_profile()).await?;
    for origin in &mut shop.origins {
        origin.sigkill().await?;
    }
    let before = shop.recorded(0)?.len() + shop.recorded(EAST)?.len();
    let told = shop.condition("origin-unreachable", SOON).await?;
    println!("both dead: origin-unreachable: {told}");
    shop.sell_for(Duration::from_secs(if is_long() { 600 } else { 20 })).await?;
    ensure!(shop.ever.iter().all(|(name, _)| name != "line-down"), "the line was blamed: {:?}", shop.ever);
    let summary = shop.agent.api().summary().await?;
    let waiting = u64::try_from(shop.sold() - before)?;
    ensure!(summary.pending == waiting, "{waiting} should wait: {summary:?}");
    // The one that is not preferred: what is bound to the other waits on.
    shop.origins[EAST].start(None).await?;
    let first = shop.first_order_out().await?;
    println!("{waiting} orders waited; first order out {first:.2?} after one origin was back");
    ensure!(first < LIVE, "{first:?}");
    shop.origins[0].start(None).await?;
    shop.settle().await
}
