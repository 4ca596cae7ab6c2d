//! The store's own line goes and returns, or a sign-in page stands in it: nothing moves, nothing is settled by it.

use crate::shop::{Hold, SOON, Shop};
use anyhow::{Result, ensure};
use samovar_tests::netns::{Cut, Place, is_long, sandboxed};
use std::time::Duration;

const LIVE: Duration = Duration::from_secs(2);

/// `SAMOVAR_NETNS=long`: ten minutes.
fn cut_for() -> Duration {
    if is_long() { Duration::from_mins(10) } else { Duration::from_secs(30) }
}

/// New orders go where they always went, and no origin was ever taken for dead.
fn nothing_moved(shop: &Shop) -> Result<()> {
    ensure!(shop.told.len() == 1, "new orders moved: {:?}", shop.told);
    ensure!(shop.now_at() == Place::UsWest.name(), "{}", shop.now_at());
    let log = std::fs::read_to_string(shop.agent.home().join("agent.log"))?;
    let moves: Vec<_> = log
        .lines()
        .filter(|line| line.contains("origin health changed") && line.contains("to=Down"))
        .collect();
    ensure!(moves.is_empty(), "an origin was left: {moves:?}");
    Ok(())
}

async fn story(cut: Cut, words: &str) -> Result<()> {
    let mut shop = Shop::open(Hold::of_profile()).await?;
    shop.net.cut(cut)?;
    let before = shop.recorded(0)?.len();
    let told = shop.condition("line-down", SOON).await?;
    println!("{cut:?}: line-down: {told}");
    shop.sell_for(cut_for()).await?;
    nothing_moved(&shop)?;
    let told = shop.conditions.get("line-down").cloned().unwrap_or_default();
    ensure!(told.contains(words), "line-down does not say `{words}`: {told}");
    ensure!(
        !shop.conditions.contains_key("origin-unreachable"),
        "an origin is blamed: {:?}",
        shop.conditions
    );
    let waiting = shop.sold() - shop.recorded(0)?.len();
    ensure!(waiting > 20 && shop.recorded(0)?.len() <= before + 1, "only {waiting} orders waited");
    shop.net.mend(cut)?;
    let first = shop.first_order_out().await?;
    shop.sell_for(Duration::from_secs(20)).await?;
    nothing_moved(&shop)?;
    ensure!(!shop.conditions.contains_key("line-down"), "{:?}", shop.conditions);
    shop.settle().await?;
    nothing_moved(&shop)?;
    println!(
        "{cut:?} for {:?}: 0 changes of origin, {waiting} orders waited, first out {first:.2?} after the return, all {} \
         settled once",
        cut_for(),
        shop.sold()
    );
    ensure!(first < LIVE, "the first order left {first:?} after the return");
    Ok(())
}

#[tokio::test]
async fn a_pulled_cable_moves_nothing() -> Result<()> {
    if !sandboxed("line::a_pulled_cable_moves_nothing")? {
        return Ok(());
    }
    story(Cut::Cable, "no link").await
}

#[tokio::test]
async fn a_router_that_is_silent_moves_nothing() -> Result<()> {
    if !sandboxed("line::a_router_that_is_silent_moves_nothing")? {
        return Ok(());
    }
    story(Cut::Router, "router does not answer").await
}

#[tokio::test]
async fn a_line_that_is_dead_behind_the_router_moves_nothing() -> Result<()> {
    if !sandboxed("line::a_line_that_is_dead_behind_the_router_moves_nothing")? {
        return Ok(());
    }
    story(Cut::Upstream, "the router answered lately); no reference answers").await
}

#[tokio::test]
async fn a_sign_in_page_settles_nothing_and_moves_nothing() -> Result<()> {
    if !sandboxed("line::a_sign_in_page_settles_nothing_and_moves_nothing")? {
        return Ok(());
    }
    let mut shop = Shop::open(Hold::of_profile()).await?;
    let _page = shop.sign_in_page().await?;
    shop.net.redirect(true)?;
    let before = shop.agent.api().summary().await?.settled;
    let told = shop.condition("line-down", SOON).await?;
    println!("sign-in page: line-down: {told}");
    ensure!(told.contains("sign-in page"), "{told}");
    shop.sell_for(cut_for()).await?;
    nothing_moved(&shop)?;
    let settled = shop.agent.api().summary().await?.settled;
    // One was on its way when the page appeared.
    ensure!(settled <= before + 1, "{} orders were settled by a page", settled - before);
    shop.net.redirect(false)?;
    let first = shop.first_order_out().await?;
    shop.settle().await?;
    nothing_moved(&shop)?;
    println!(
        "sign-in page for {:?}: 0 changes of origin, first out {first:.2?} after it was gone",
        cut_for()
    );
    ensure!(first < LIVE, "the first order left {first:?} after the return");
    Ok(())
}
