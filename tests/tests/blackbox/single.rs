//! Single mode: an origin with an API of its own, one request per order (contracts §2), and compressed batches.

use crate::shop::{
    AFTER_RETRY, SOON, Shop, accepted, condition, exactly_these, in_state, others_pass, place_many, sale,
    sale_with, settled, shop_with,
};
use anyhow::Result;
use samovar_tests::origin::Behaviour;
use samovar_tests::{Origin, eventually};
use serde_json::json;
use std::time::Duration;

async fn ticket_shop(section: &str) -> Result<Shop> {
    let section = format!("[origin.single]\npath = \"/api/tickets/{{order_no}}\"\n{section}");
    shop_with(|setup| setup.config(&section).set("origin.mode=single").set("origin.request_timeout_ms=2000"))
        .await
}

/// How long after a request the next one came.
fn next_after(origin: &Origin, at: usize) -> Duration {
    let requests = origin.requests();
    requests[at + 1].at - requests[at].at
}

#[tokio::test]
async fn two_hundred_orders_arrive_once_each_through_every_fault_and_one_is_quarantined() -> Result<()> {
    let shop = ticket_shop("").await?;
    shop.origin.always(Behaviour::RejectOrdersWith("spoiled"));
    shop.origin.once(Behaviour::Status { status: 429, retry_after_s: Some(2) });
    accepted(shop.agent.api(), &sale("first")).await?;
    settled(&shop.agent, 1, AFTER_RETRY).await?;
    let waited = next_after(&shop.origin, 0);
    assert!(waited >= Duration::from_millis(1900), "asked again after {waited:?}");

    for behaviour in [
        Behaviour::CommitThenDrop,
        Behaviour::CommitThenDrop,
        Behaviour::Redirect,
        Behaviour::Portal,
        Behaviour::CommitThenStall,
        Behaviour::status(500),
        Behaviour::Drop,
        Behaviour::CommitThenDrop,
        Behaviour::status(404),
        Behaviour::CommitThenDrop,
    ] {
        shop.origin.once(behaviour);
        // One after the other they would be one long outage, with the waits of one.
        for _ in 0..3 {
            shop.origin.once(Behaviour::RejectOrdersWith("spoiled"));
        }
    }
    let mut keys = place_many(shop.agent.api(), "T", 100).await?;
    let poison = accepted(shop.agent.api(), &sale_with("bad", &json!({ "note": "spoiled" }))).await?;
    keys.extend(place_many(shop.agent.api(), "U", 99).await?);
    keys.push("first".into());
    settled(&shop.agent, 200, AFTER_RETRY).await?;
    let record = in_state(&shop.agent, &poison, "quarantined", SOON).await?;
    assert!(record.to_string().contains("the origin says poison"), "the origin's words: {record}");
    assert_eq!(record["attempts"], json!(1), "nobody bisected: {record}");
    let summary = shop.agent.api().summary().await?;
    assert_eq!((summary.quarantined, summary.pending, summary.held), (1, 0, 0), "{summary:?}");
    let repeats = shop.origin.store(samovar_tests::origin::Store::duplicates);
    assert!(repeats >= 4, "{repeats} orders came again after an answer was lost");
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn a_portal_settles_nothing_and_quarantines_nothing() -> Result<()> {
    for behaviour in [Behaviour::Portal, Behaviour::Redirect, Behaviour::status(404)] {
        let shop = ticket_shop("").await?;
        shop.origin.always(behaviour.clone());
        let keys = place_many(shop.agent.api(), "P", 3).await?;
        condition(&shop.agent, "not-the-origin", true, SOON)
            .await
            .map_err(|error| error.context(format!("{behaviour:?}")))?;
        let summary = shop.agent.api().summary().await?;
        assert_eq!((summary.pending, summary.quarantined), (3, 0), "{behaviour:?}: {summary:?}");
        shop.origin.always(Behaviour::Honest);
        settled(&shop.agent, 3, AFTER_RETRY).await?;
        condition(&shop.agent, "not-the-origin", false, SOON).await?;
        exactly_these(&shop.origin, &keys)?;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_without_the_expected_header_is_not_the_origins() -> Result<()> {
    let shop = ticket_shop("expect_header = \"X-Shop: tea\"").await?;
    accepted(shop.agent.api(), &sale("A-1")).await?;
    condition(&shop.agent, "not-the-origin", true, SOON).await?;
    let summary = shop.agent.api().summary().await?;
    assert_eq!((summary.pending, summary.settled), (1, 0), "{summary:?}");
    Ok(())
}

#[tokio::test]
async fn path_and_headers_carry_the_orders_own_values() -> Result<()> {
    let headers = "method = \"PUT\"\nheaders = { \"X-Ticket\" = \"{store}/{order_no} {kind}\", Authorization = \"Key k\" }";
    let shop = ticket_shop(headers).await?;
    let refund = sale_with("A/1 茶", &json!({ "kind": "refund" }));
    accepted(shop.agent.api(), &refund).await?;
    accepted(shop.agent.api(), &sale("..")).await?;
    settled(&shop.agent, 2, SOON).await?;
    let requests = shop.origin.requests();
    let ticket = requests.iter().find(|seen| seen.line.contains("A%2F1"));
    let ticket = ticket.unwrap_or_else(|| panic!("{requests:?}"));
    assert_eq!(ticket.line, "PUT /api/tickets/A%2F1%20%E8%8C%B6");
    assert_eq!(ticket.header("x-ticket"), "US-0001/A/1%20%E8%8C%B6 refund");
    assert_eq!(ticket.header("authorization"), "Key k");
    assert_eq!(ticket.header("idempotency-key"), "A/1%20%E8%8C%B6");
    assert_eq!((ticket.header("samovar-device"), ticket.header("udl")), ("POS-US-0001", "US"));
    assert_eq!(ticket.header("content-type"), "application/json");
    assert!(requests.iter().any(|seen| seen.line == "PUT /api/tickets/%252E%252E"), "{requests:?}");
    let body = shop.origin.store(|store| store.get("A/1%20%E8%8C%B6").map(|held| held.body.clone()));
    assert_eq!(body, Some(refund.to_string()), "the body as it was received");
    Ok(())
}

#[tokio::test]
async fn an_origin_without_our_health_check_is_not_called_down() -> Result<()> {
    let shop = ticket_shop("").await?;
    shop.origin.without_health_check();
    accepted(shop.agent.api(), &sale("A-1")).await?;
    settled(&shop.agent, 1, SOON).await?;
    let status = shop.agent.api().get_json("/v1/status").await?;
    assert_eq!((&status["line"], &status["conditions"]), (&json!("up"), &json!([])), "{status}");
    Ok(())
}

#[tokio::test]
async fn batches_travel_compressed_until_an_origin_cannot_read_them() -> Result<()> {
    let shop = shop_with(|setup| setup.set("origin.compression=gzip")).await?;
    let long = json!({ "note": "茉莉绿茶 ".repeat(200) });
    accepted(shop.agent.api(), &sale_with("A-1", &long)).await?;
    settled(&shop.agent, 1, SOON).await?;
    shop.origin.once(Behaviour::status(415));
    accepted(shop.agent.api(), &sale_with("A-2", &long)).await?;
    settled(&shop.agent, 2, SOON).await?;
    accepted(shop.agent.api(), &sale_with("A-3", &long)).await?;
    settled(&shop.agent, 3, SOON).await?;
    let encodings: Vec<_> =
        shop.origin.requests().iter().map(|seen| seen.header("content-encoding").to_owned()).collect();
    assert_eq!(encodings, ["gzip", "gzip", "", ""]);
    let conditions = shop.agent.api().conditions().await?;
    assert!(conditions.is_empty(), "{conditions:?}");
    exactly_these(&shop.origin, &["A-1".into(), "A-2".into(), "A-3".into()])
}

#[tokio::test]
async fn at_most_four_orders_are_bound_to_an_origin_that_does_not_answer() -> Result<()> {
    let shop = ticket_shop("").await?;
    shop.origin.always(Behaviour::Stall);
    place_many(shop.agent.api(), "S", 40).await?;
    eventually("the origin was tried twice", AFTER_RETRY, async || {
        (shop.origin.request_count() > 4).then_some(())
    })
    .await?;
    let bound: u64 = shop.agent.api().summary().await?.bound.iter().map(|bound| bound.orders).sum();
    assert!((1..=5).contains(&bound), "{bound} orders are bound");
    shop.origin.always(Behaviour::Honest);
    settled(&shop.agent, 40, AFTER_RETRY).await
}

#[tokio::test]
async fn new_orders_pass_one_that_the_origin_never_answers_one_by_one_too() -> Result<()> {
    let shop = ticket_shop("").await?;
    shop.origin.always(Behaviour::StallOn("spoiled"));
    accepted(shop.agent.api(), &sale_with("bad", &json!({ "note": "spoiled" }))).await?;
    place_many(shop.agent.api(), "with", 10).await?;
    others_pass(&shop, "bad", Duration::from_secs(2)).await?;
    shop.origin.behave();
    in_state(&shop.agent, "bad", "settled", AFTER_RETRY).await?;
    Ok(())
}
