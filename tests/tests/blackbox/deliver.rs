//! Exactly once in effect: whatever the origin and the line do, each order is at the origin once or in quarantine.

use crate::shop::{
    AFTER_RETRY, SOON, accepted, condition, exactly_these, in_state, place_many, sale, sale_with, settled,
    shop, shop_with, shop_with_two_origins,
};
use anyhow::Result;
use futures_util::future::try_join_all;
use samovar_tests::{Agent, Behaviour, Origin, Proxy, TableBuilder, eventually};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn an_outage_loses_nothing_and_doubles_nothing() -> Result<()> {
    let mut shop = shop().await?;
    let mut keys = place_many(shop.agent.api(), "before", 20).await?;
    settled(&shop.agent, 20, SOON).await?;
    shop.origin.stop().await;
    keys.extend(place_many(shop.agent.api(), "during", 200).await?);
    let summary = shop.agent.api().summary().await?;
    assert_eq!((summary.pending, summary.settled), (200, 20), "unreachable is pending: {summary:?}");
    shop.origin.restart().await?;
    settled(&shop.agent, 220, AFTER_RETRY).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn answers_that_are_lost_on_the_way_double_nothing() -> Result<()> {
    let shop = shop_with(|setup| setup.set("origin.request_timeout_ms=1500")).await?;
    for behaviour in [Behaviour::CommitThenDrop, Behaviour::CommitThenStall, Behaviour::CommitThenDrop] {
        shop.origin.once(behaviour);
    }
    let keys = place_many(shop.agent.api(), "lost", 120).await?;
    settled(&shop.agent, 120, AFTER_RETRY).await?;
    assert!(shop.origin.store(|store| store.duplicates()) > 0, "the answers were not lost at all");
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn a_line_that_breaks_again_and_again_loses_nothing() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let proxy = Proxy::start(origin.address()).await?;
    let table = TableBuilder::new()?.origin("us-west", proxy.address());
    let agent = Agent::setup().table(&table).set("origin.request_timeout_ms=1500").start().await?;
    let mut keys = Vec::new();
    for round in 0..4 {
        if round % 2 == 0 {
            proxy.cut();
        } else {
            proxy.stall();
        }
        keys.extend(place_many(agent.api(), &format!("r{round}"), 50).await?);
        proxy.restore();
        keys.extend(place_many(agent.api(), &format!("s{round}"), 50).await?);
    }
    settled(&agent, 400, AFTER_RETRY).await?;
    exactly_these(&origin, &keys)
}

/// Captive portals, wrong servers, broken proxies.
#[tokio::test]
async fn what_is_not_the_origin_settles_nothing_and_is_told() -> Result<()> {
    let impostors = [
        Behaviour::Portal,
        Behaviour::Redirect,
        Behaviour::EmptyObject,
        Behaviour::WrongBatchId,
        Behaviour::status(404),
        Behaviour::status(405),
        Behaviour::status(511),
        Behaviour::status(201),
    ];
    try_join_all(impostors.map(not_the_origin)).await.map(drop)
}

async fn not_the_origin(behaviour: Behaviour) -> Result<()> {
    let shop = shop().await?;
    shop.origin.always(behaviour.clone());
    let keys = place_many(shop.agent.api(), "P", 3).await?;
    condition(&shop.agent, "not-the-origin", true, SOON)
        .await
        .map_err(|e| e.context(format!("{behaviour:?}")))?;
    let summary = shop.agent.api().summary().await?;
    assert_eq!((summary.pending, summary.quarantined), (3, 0), "{behaviour:?}: {summary:?}");
    shop.origin.always(Behaviour::Honest);
    settled(&shop.agent, 3, AFTER_RETRY).await.map_err(|e| e.context(format!("{behaviour:?}")))?;
    condition(&shop.agent, "not-the-origin", false, SOON).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn a_busy_origin_is_asked_again_and_nothing_is_quarantined() -> Result<()> {
    try_join_all([408, 425, 429, 500, 502, 503, 504].map(busy)).await.map(drop)
}

async fn busy(status: u16) -> Result<()> {
    let shop = shop().await?;
    shop.origin.once(Behaviour::status(status));
    shop.origin.once(Behaviour::status(status));
    let keys = place_many(shop.agent.api(), "B", 3).await?;
    settled(&shop.agent, 3, AFTER_RETRY).await.map_err(|error| error.context(format!("status {status}")))?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn retry_after_is_obeyed() -> Result<()> {
    let shop = shop().await?;
    shop.origin.once(Behaviour::Status { status: 503, retry_after_s: Some(4) });
    let id = accepted(shop.agent.api(), &sale("A-1")).await?;
    in_state(&shop.agent, &id, "settled", AFTER_RETRY).await?;
    let requests = shop.origin.requests();
    let waited = requests[1].at - requests[0].at;
    assert!(waited >= Duration::from_millis(3900), "asked again after {waited:?}");

    shop.origin.once(Behaviour::RetryAll { retry_after_s: 4 });
    let id = accepted(shop.agent.api(), &sale("A-2")).await?;
    in_state(&shop.agent, &id, "settled", AFTER_RETRY).await?;
    let requests = shop.origin.requests();
    let waited = requests[3].at - requests[2].at;
    assert!(waited >= Duration::from_millis(3900), "asked again after {waited:?}");
    Ok(())
}

#[tokio::test]
async fn orders_without_a_result_are_sent_again_and_stray_results_ignored() -> Result<()> {
    let shop = shop_with(|setup| setup.set("origin.request_timeout_ms=1500")).await?;
    // While one batch hangs the next fills up.
    shop.origin.always(Behaviour::Stall);
    accepted(shop.agent.api(), &sale("M-1")).await?;
    eventually("a batch hangs", SOON, async || (shop.origin.request_count() > 0).then_some(())).await?;
    shop.origin.always(Behaviour::Honest);
    shop.origin.once(Behaviour::AnswerOnlyFirst);
    shop.origin.once(Behaviour::StrayResults);
    place_many(shop.agent.api(), "N", 19).await?;
    settled(&shop.agent, 20, AFTER_RETRY).await?;
    let summary = shop.agent.api().summary().await?;
    assert_eq!((summary.accepted, summary.quarantined), (20, 0), "{summary:?}");
    assert_eq!(shop.origin.orders(), 20);
    Ok(())
}

#[tokio::test]
async fn a_poisonous_order_is_found_in_its_batch_and_quarantined_alone() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.always(Behaviour::RefuseBatchWith("poison"));
    shop.origin.stop().await;
    let mut keys = place_many(shop.agent.api(), "good", 30).await?;
    let poison = accepted(shop.agent.api(), &sale_with("bad", &json!({ "note": "poison" }))).await?;
    keys.extend(place_many(shop.agent.api(), "fine", 30).await?);
    shop.origin.restart().await?;
    settled(&shop.agent, 60, AFTER_RETRY).await?;
    let record = in_state(&shop.agent, &poison, "quarantined", SOON).await?;
    assert!(record.to_string().contains("400"), "the origin's answer is told: {record}");
    condition(&shop.agent, "orders-quarantined", true, SOON).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_split() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.always(Behaviour::AtMost(3));
    shop.origin.stop().await;
    let keys = place_many(shop.agent.api(), "L", 40).await?;
    shop.origin.restart().await?;
    settled(&shop.agent, 40, AFTER_RETRY).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn a_refusal_of_one_order_quarantines_that_order_with_the_origins_words() -> Result<()> {
    let shop = shop().await?;
    shop.origin.always(Behaviour::RejectOrdersWith("spoiled"));
    let id = accepted(shop.agent.api(), &sale_with("bad", &json!({ "note": "spoiled" }))).await?;
    accepted(shop.agent.api(), &sale("good")).await?;
    let record = in_state(&shop.agent, &id, "quarantined", SOON).await?;
    assert!(record.to_string().contains("the origin says poison"), "{record}");
    settled(&shop.agent, 1, SOON).await
}

#[tokio::test]
async fn a_key_that_the_origin_knows_with_other_content_is_quarantined_with_an_alarm() -> Result<()> {
    let shop = shop().await?;
    shop.origin.occupy("POS-US-0001", "A-1");
    let id = accepted(shop.agent.api(), &sale("A-1")).await?;
    in_state(&shop.agent, &id, "quarantined", SOON).await?;
    eventually("the alarm", SOON, async || {
        let conditions = shop.agent.api().conditions().await.ok()?;
        (conditions.contains_key("key-conflict") || conditions.contains_key("orders-quarantined"))
            .then_some(())
    })
    .await
}

#[tokio::test]
async fn a_refused_identity_holds_orders_until_it_is_accepted_again() -> Result<()> {
    let shop = shop().await?;
    shop.origin.always(Behaviour::status(401));
    let keys = place_many(shop.agent.api(), "I", 5).await?;
    condition(&shop.agent, "identity-refused", true, SOON).await?;
    eventually("the orders are held", SOON, async || {
        let summary = shop.agent.api().summary().await.ok()?;
        (summary.held == 5 && summary.quarantined == 0).then_some(())
    })
    .await?;
    shop.origin.always(Behaviour::Honest);
    settled(&shop.agent, 5, AFTER_RETRY).await?;
    condition(&shop.agent, "identity-refused", false, SOON).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn a_refund_waits_for_its_sale() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.stop().await;
    let refund = sale_with("R-1", &json!({ "kind": "refund", "depends_on": "S-1" }));
    accepted(shop.agent.api(), &sale("S-1")).await?;
    let id = accepted(shop.agent.api(), &refund).await?;
    let record = in_state(&shop.agent, &id, "held", SOON).await?;
    assert!(record.to_string().contains("depends_on"), "it says why: {record}");
    shop.origin.restart().await?;
    settled(&shop.agent, 2, AFTER_RETRY).await?;
    let place = |key: &str| shop.origin.store(|store| store.get(key).map(|held| held.recorded));
    assert!(place("S-1") < place("R-1"));
    Ok(())
}

#[tokio::test]
async fn a_refund_of_a_refused_sale_stays_held() -> Result<()> {
    let shop = shop().await?;
    shop.origin.always(Behaviour::RejectOrdersWith("spoiled"));
    let sale_id = accepted(shop.agent.api(), &sale_with("S-1", &json!({ "note": "spoiled" }))).await?;
    in_state(&shop.agent, &sale_id, "quarantined", SOON).await?;
    let refund = sale_with("R-1", &json!({ "kind": "refund", "depends_on": "S-1" }));
    let id = accepted(shop.agent.api(), &refund).await?;
    in_state(&shop.agent, &id, "held", SOON).await?;
    // Others pass it.
    accepted(shop.agent.api(), &sale("S-2")).await?;
    settled(&shop.agent, 1, SOON).await?;
    assert!(!shop.origin.holds("R-1"));
    Ok(())
}

/// The story behind stickiness: A committed, the answer was lost, the line to A is dead; the order must not go to B.
#[tokio::test]
async fn an_order_that_a_committed_in_silence_is_never_sent_to_b() -> Result<()> {
    let (agent, a, b, _) = shop_with_two_origins().await?;
    a.once(Behaviour::CommitThenStall);
    a.always(Behaviour::Stall);
    a.set_healthy(false);
    accepted(agent.api(), &sale("first")).await?;
    eventually("A has the order", SOON, async || a.holds("first").then_some(())).await?;
    // A is silent now: what comes later goes to B.
    eventually("orders fail over to B", AFTER_RETRY, async || {
        let number = format!("later-{}", fastrand::u32(..));
        agent.api().place(&sale(&number)).await.ok()?;
        (b.orders() > 0).then_some(())
    })
    .await?;
    assert!(!b.holds("first"), "the order was sent to both");
    let record = agent.api().order("first").await?;
    assert!(record["state"] == "pending" || record["state"] == "sending", "{record}");
    a.always(Behaviour::Honest);
    a.set_healthy(true);
    let accepted = agent.api().summary().await?.accepted;
    settled(&agent, accepted, AFTER_RETRY).await?;
    let (at_a, at_b) = (a.store(|s| s.get("first").is_some()), b.holds("first"));
    assert_eq!((at_a, at_b), (true, false), "one order in all, at A");
    assert_eq!(u64::try_from(a.orders() + b.orders())?, accepted, "every order is at one origin");
    Ok(())
}

#[tokio::test]
async fn an_origin_that_is_gone_is_replaced_by_the_next_for_new_orders() -> Result<()> {
    let (agent, mut a, b, _) = shop_with_two_origins().await?;
    a.stop().await;
    place_many(agent.api(), "F", 10).await?;
    eventually("later orders are at B", AFTER_RETRY, async || {
        let number = format!("later-{}", fastrand::u32(..));
        agent.api().place(&sale(&number)).await.ok()?;
        (b.orders() > 0).then_some(())
    })
    .await?;
    a.restart().await?;
    let accepted = agent.api().summary().await?.accepted;
    settled(&agent, accepted, AFTER_RETRY).await?;
    assert_eq!(u64::try_from(a.orders() + b.orders())?, accepted, "every order is at one origin");
    Ok(())
}
