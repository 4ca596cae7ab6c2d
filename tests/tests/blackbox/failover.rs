//! Fail-over and fail-back at random moments, while the active origin loses its answers after it has committed: each
//! order ends at one origin, what is bound waits for its origin, and what is not moves.

use crate::shop::{AFTER_RETRY, SOON, sale, shop_with_two_origins};
use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use futures_util::future::join_all;
use samovar_tests::{Agent, Behaviour, LocalApi, Origin, TableBuilder, eventually};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

const NAMES: [&str; 2] = ["us-west", "apac"];
const ROUNDS: u32 = 8;

/// Sells a few orders; gives their keys.
async fn sell(api: &LocalApi, name: &str, count: u32) -> Result<Vec<String>> {
    let keys: Vec<_> = (0..count).map(|n| format!("{name}-{n}")).collect();
    let answers =
        join_all(keys.iter().map(async |key| api.place_until_answered(&sale(key), SOON).await)).await;
    for answer in answers {
        let answer = answer?;
        ensure!(matches!(answer.status, 200 | 202), "{} {}", answer.status, answer.json());
    }
    Ok(keys)
}

fn pinned_to(table: TableBuilder, origin: usize) -> Result<TableBuilder> {
    let pin = json!([{ "ids": ["store:US-0001"], "services": ["*"], "origin": NAMES[origin], "reason": "fail-over" }]);
    table.next_version().with("/pins", pin)
}

/// Which origin new orders go to now.
async fn chosen(api: &LocalApi) -> Option<String> {
    let answer = api.get_json("/v1/resolve?service=orders").await.ok()?;
    answer["origin"].as_str().map(ToOwned::to_owned)
}

/// Keys of orders that wait for this origin.
async fn bound_to(agent: &Agent, origin: &str) -> Result<BTreeSet<String>> {
    let mut waiting = agent.api().orders_in("pending").await?;
    waiting.retain(|order| order["origin"] == origin);
    Ok(waiting.iter().filter_map(|order| order["key"].as_str().map(ToOwned::to_owned)).collect())
}

/// Each of these is at exactly one origin, and nothing else is at either.
fn once_in_all(origins: &[Origin; 2], keys: &[String]) -> Result<()> {
    let doubled: Vec<_> = keys.iter().filter(|key| origins.iter().all(|o| o.holds(key))).collect();
    let lost: Vec<_> = keys.iter().filter(|key| !origins.iter().any(|o| o.holds(key))).collect();
    ensure!(doubled.is_empty() && lost.is_empty(), "doubled {doubled:?}, lost {lost:?}");
    let held: usize = origins.iter().map(Origin::orders).sum();
    ensure!(held == keys.len(), "{held} orders at the origins, {} sold", keys.len());
    Ok(())
}

#[tokio::test]
async fn fail_over_and_fail_back_at_random_moments_double_nothing() -> Result<()> {
    let seed = match std::env::var("SAMOVAR_SEED") {
        Ok(seed) => seed.parse().context("SAMOVAR_SEED is not a number")?,
        Err(_) => fastrand::u64(..),
    };
    eprintln!("SAMOVAR_SEED={seed}");
    switching(seed).await.with_context(|| format!("SAMOVAR_SEED={seed}"))
}

async fn switching(seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let (agent, a, b, mut table) = shop_with_two_origins().await?;
    let origins = [a, b];
    let (mut keys, mut active, mut waited) = (Vec::new(), 0, 0);
    for round in 0..ROUNDS {
        // The one that is active commits and loses its answer, now and then at once, now and then in silence.
        for _ in 0..rng.u32(1..4) {
            let lost = [Behaviour::CommitThenDrop, Behaviour::CommitThenReset, Behaviour::CommitThenStall];
            origins[active].once(lost[rng.usize(0..3)].clone());
        }
        keys.extend(sell(agent.api(), &format!("r{round}-before"), rng.u32(1..30)).await?);
        tokio::time::sleep(Duration::from_millis(rng.u64(0..400))).await;
        // It falls silent in the middle of it: what it was sent is bound to it and must wait.
        origins[active].always(Behaviour::Stall);
        keys.extend(sell(agent.api(), &format!("r{round}-between"), rng.u32(1..30)).await?);
        let (left, next) = (active, 1 - active);
        table = pinned_to(table, next)?;
        agent.write_table(&table)?;
        active = next;
        eventually("the new table is in force", SOON, async || {
            (chosen(agent.api()).await? == NAMES[active]).then_some(())
        })
        .await?;
        let moved = sell(agent.api(), &format!("r{round}-after"), rng.u32(5..30)).await?;
        // New ones are at the new origin although the old one still has some that wait.
        eventually("new orders move", AFTER_RETRY, async || {
            moved.iter().all(|key| origins[active].holds(key)).then_some(())
        })
        .await?;
        let bound = bound_to(&agent, NAMES[left]).await?;
        ensure!(
            moved.iter().all(|key| !bound.contains(key)),
            "a new order was bound to the origin that was left"
        );
        let strayed: Vec<_> = bound.iter().filter(|key| origins[active].holds(key)).collect();
        ensure!(strayed.is_empty(), "bound to {}, and at {}: {strayed:?}", NAMES[left], NAMES[active]);
        waited += bound.len();
        keys.extend(moved);
        origins[left].always(Behaviour::Honest);
    }
    let all = u64::try_from(keys.len())?;
    crate::shop::settled(&agent, all, AFTER_RETRY).await?;
    once_in_all(&origins, &keys)?;
    let repeats: u64 = origins.iter().map(|origin| origin.store(|store| store.duplicates())).sum();
    eprintln!(
        "{} orders, {ROUNDS} switches, {waited} waited for the origin they were bound to, {repeats} sent again, {} and \
         {} at the origins",
        keys.len(),
        origins[0].orders(),
        origins[1].orders()
    );
    ensure!(waited > 0 && repeats > 0, "nothing was bound ({waited}) or no answer was lost ({repeats})");
    Ok(())
}

/// Nobody changes a table: the origin is gone, its health says so, and later it is back.
#[tokio::test]
async fn an_origin_that_goes_and_returns_moves_only_what_is_not_bound_to_it() -> Result<()> {
    let (agent, mut a, b, _) = shop_with_two_origins().await?;
    let mut keys = sell(agent.api(), "before", 10).await?;
    a.once(Behaviour::CommitThenDrop);
    a.always(Behaviour::Stall);
    keys.extend(sell(agent.api(), "bound", 10).await?);
    eventually("the origin has committed", SOON, async || {
        (!bound_to(&agent, NAMES[0]).await.ok()?.is_empty() && a.request_count() > 0).then_some(())
    })
    .await?;
    a.stop().await;
    eventually("orders go to the other", AFTER_RETRY, async || {
        let later = sell(agent.api(), &format!("later-{}", fastrand::u32(..)), 1).await.ok()?;
        keys.extend(later);
        (b.orders() > 0).then_some(())
    })
    .await?;
    let bound = bound_to(&agent, NAMES[0]).await?;
    ensure!(!bound.is_empty() && bound.iter().all(|key| !b.holds(key)), "{bound:?}");
    a.behave();
    a.restart().await?;
    eventually("orders go to the first again", AFTER_RETRY, async || {
        (chosen(agent.api()).await? == NAMES[0]).then_some(())
    })
    .await?;
    keys.extend(sell(agent.api(), "back", 10).await?);
    crate::shop::settled(&agent, u64::try_from(keys.len())?, AFTER_RETRY).await?;
    ensure!((0..10).all(|n| a.holds(&format!("back-{n}"))), "new orders did not return");
    ensure!(bound.iter().all(|key| a.holds(key) && !b.holds(key)), "a bound order moved");
    once_in_all(&[a, b], &keys)
}
