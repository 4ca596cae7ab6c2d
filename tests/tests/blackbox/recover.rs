//! The line comes back: it is noticed at once, a new order goes first, and the old ones follow.

use crate::shop::{
    AFTER_RETRY, SOON, accepted, condition, exactly_these, place_many, sale, sale_with, settled, shop, token,
};
use anyhow::{Context, Result, ensure};
use http::Method;
use samovar_tests::origin::Behaviour;
use samovar_tests::{Agent, Origin, Proxy, TableBuilder, clock, eventually};
use serde_json::{Value, json};
use std::time::Duration;

/// A blind retry this far away cannot be what brings the order to the origin.
const FAR: Duration = Duration::from_secs(8);
/// What a new order may take from the line's return to the origin.
const AT_ONCE: Duration = Duration::from_secs(2);

struct Remote {
    agent: Agent,
    origin: Origin,
    line: Proxy,
}

/// A till whose origin is at the other end of a line.
async fn remote() -> Result<Remote> {
    let origin = Origin::start("us-west").await?;
    let line = Proxy::start(origin.address()).await?;
    let table = TableBuilder::new()?.origin("us-west", line.address());
    let agent = Agent::setup().table(&table).start().await?;
    Ok(Remote { agent, origin, line })
}

async fn lane(agent: &Agent) -> Option<Value> {
    let status = agent.api().get_json("/v1/status").await.ok()?;
    status["lanes"].as_array()?.first().cloned()
}

/// Waits until the next try of a blind back-off would be at least so far away.
async fn far_from_the_next_try(agent: &Agent, least: Duration) -> Result<()> {
    eventually("a long back-off", AFTER_RETRY, async || {
        let lane = lane(agent).await?;
        let next = lane["next_try_in_ms"].as_u64()?;
        (lane["state"] == "open" && u128::from(next) > least.as_millis()).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_new_order_arrives_within_two_seconds_of_the_lines_return_and_the_old_ones_follow() -> Result<()> {
    let Remote { agent, origin, mut line } = remote().await?;
    let mut keys = place_many(agent.api(), "before", 3).await?;
    settled(&agent, 3, SOON).await?;
    line.close().await;
    keys.extend(place_many(agent.api(), "during", 300).await?);
    far_from_the_next_try(&agent, FAR).await?;

    accepted(agent.api(), &sale("new")).await?;
    keys.push("new".into());
    line.open().await?;
    let back = clock::now();
    eventually("the new order is at the origin", SOON, async || origin.holds("new").then_some(())).await?;
    let took = back.elapsed();
    ensure!(took < AT_ONCE, "it took {took:?}\n{}", agent.last_words());
    settled(&agent, 304, AFTER_RETRY).await?;
    let lane = lane(&agent).await.context("no lane in the status")?;
    ensure!(lane["state"] == "closed" && lane["origin"] == "us-west", "{lane}");
    exactly_these(&origin, &keys)
}

#[tokio::test]
async fn orders_placed_after_the_lines_return_wait_for_no_backlog_while_it_drains() -> Result<()> {
    let Remote { agent, origin, mut line } = remote().await?;
    line.close().await;
    for batch in 0..6 {
        let orders: Vec<_> =
            (0..500).map(|n| json!({ "order": sale(&format!("old-{batch}-{n}")) })).collect();
        let answer = agent.api().post("/v1/orders:batch", json!({ "orders": orders }).to_string()).await?;
        ensure!(answer.status == 207, "{}", answer.json());
    }
    far_from_the_next_try(&agent, FAR).await?;
    line.open().await?;
    let mut live = 0;
    while origin.orders() < 3_000 + live {
        live += 1;
        let (key, placed) = (format!("new-{live}"), clock::now());
        accepted(agent.api(), &sale(&key)).await?;
        eventually("the new order is at the origin", SOON, async || origin.holds(&key).then_some(())).await?;
        let took = placed.elapsed();
        ensure!(took < AT_ONCE, "{key} took {took:?}\n{}", agent.last_words());
    }
    ensure!(live > 3, "the backlog came at once: nothing was shown");
    settled(&agent, 3_000 + live as u64, SOON).await
}

#[tokio::test]
async fn a_refund_gets_past_its_unsettled_sale_only_with_the_token() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.stop().await;
    accepted(shop.agent.api(), &sale("S-1")).await?;
    let refund = sale_with("R-1", &json!({ "kind": "refund", "depends_on": "S-1" }));
    let id = accepted(shop.agent.api(), &refund).await?;
    let api = shop.agent.api();
    let refused = api.post(&format!("/v1/orders/{id}/retry"), r#"{"reason":"now"}"#).await?;
    ensure!(refused.status == 409, "{}", refused.json());
    let record = api.order(&id).await?;
    ensure!(record["state"] == "held", "{record}");
    let (reason, bearer) = (json!({ "reason": "seen by Ann" }).to_string(), token(&shop.agent)?);
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let forced = api.send(Method::POST, &format!("/v1/orders/{id}/retry"), &headers, reason).await?;
    ensure!(forced.status == 200 && forced.json()["state"] == "pending", "{}", forced.json());
    Ok(())
}

#[tokio::test]
async fn a_bound_order_is_released_only_with_the_token_and_a_reason() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.stop().await;
    let id = accepted(shop.agent.api(), &sale("A-1")).await?;
    let api = shop.agent.api();
    eventually("the order is bound", SOON, async || {
        let record = api.order(&id).await.ok()?;
        (record["origin"] == "us-west").then_some(())
    })
    .await?;
    let (path, bearer) = (format!("/v1/orders/{id}/release"), token(&shop.agent)?);
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let stranger = api.post(&path, r#"{"reason":"the origin is gone"}"#).await?;
    ensure!(matches!(stranger.status, 401 | 403), "{}", stranger.json());
    let silent = api.send(Method::POST, &path, &headers, "{}").await?;
    ensure!(matches!(silent.status, 400 | 422), "{}", silent.json());
    let done = api.send(Method::POST, &path, &headers, r#"{"reason":"the origin is gone"}"#).await?;
    ensure!(done.status == 200 && done.json()["history"].to_string().contains("release"), "{}", done.json());
    shop.origin.restart().await?;
    settled(&shop.agent, 1, AFTER_RETRY).await
}

/// A balancer answers 503 to everything for an origin that is down.
#[tokio::test]
async fn an_origin_that_is_there_and_unhealthy_is_noticed_soon_when_it_is_well_again() -> Result<()> {
    let shop = shop().await?;
    let mut keys = place_many(shop.agent.api(), "before", 3).await?;
    settled(&shop.agent, 3, SOON).await?;
    shop.origin.always(Behaviour::status(503));
    shop.origin.set_healthy(false);
    keys.extend(place_many(shop.agent.api(), "during", 20).await?);
    far_from_the_next_try(&shop.agent, FAR).await?;
    accepted(shop.agent.api(), &sale("new")).await?;
    keys.push("new".into());
    shop.origin.set_healthy(true);
    shop.origin.behave();
    let back = clock::now();
    eventually("the new order is at the origin", SOON, async || shop.origin.holds("new").then_some(()))
        .await?;
    let took = back.elapsed();
    eprintln!("the first order arrived {took:?} after the origin was well again");
    ensure!(took < Duration::from_secs(5), "it took {took:?}\n{}", shop.agent.last_words());
    settled(&shop.agent, 24, AFTER_RETRY).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn a_refund_whose_sale_was_discarded_calls_for_a_person_until_it_has_gone() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.stop().await;
    let sale = accepted(shop.agent.api(), &sale("S-1")).await?;
    let refund = sale_with("R-1", &json!({ "kind": "refund", "depends_on": "S-1" }));
    let refund = accepted(shop.agent.api(), &refund).await?;
    discard(&shop.agent, &sale).await?;
    let told = condition(&shop.agent, "orders-stranded", true, AFTER_RETRY).await?;
    ensure!(told.contains("1 order held"), "{told}");
    discard(&shop.agent, &refund).await?;
    condition(&shop.agent, "orders-stranded", false, AFTER_RETRY).await?;
    Ok(())
}

async fn discard(agent: &Agent, id: &str) -> Result<()> {
    let (reason, bearer) = (json!({ "reason": "seen by Ann" }).to_string(), token(agent)?);
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let answer =
        agent.api().send(Method::POST, &format!("/v1/orders/{id}/discard"), &headers, reason).await?;
    ensure!(answer.status == 200, "{}", answer.json());
    Ok(())
}

#[tokio::test]
async fn an_origin_that_contradicts_itself_is_told_until_it_has_made_up_its_mind() -> Result<()> {
    let shop = shop().await?;
    shop.origin.always(Behaviour::ContradictItself);
    accepted(shop.agent.api(), &sale("A-1")).await?;
    let told = condition(&shop.agent, "origin-contradicts-itself", true, AFTER_RETRY).await?;
    ensure!(told.contains("us-west"), "{told}");
    shop.origin.behave();
    settled(&shop.agent, 1, AFTER_RETRY).await?;
    condition(&shop.agent, "origin-contradicts-itself", false, AFTER_RETRY).await?;
    Ok(())
}
