//! What a till is promised when it hands over an order.

use crate::shop::{
    SOON, accepted, condition, exactly_these, in_state, place_many, sale, sale_with, settled, shop, token,
};
use anyhow::Result;
use http::Method;
use samovar_tests::Behaviour;
use samovar_wire::encoding::{hex, sha256};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn an_accepted_order_reaches_the_origin_byte_for_byte() -> Result<()> {
    let shop = shop().await?;
    let body = " \n{ \"placed_at\":\"2026-11-20T08:15:00Z\", \"order_no\" : \"A-1\", \"total\": 1.50, \"n\":\"\\u8336 茶\" }\r\n\t";
    let answer = shop.agent.api().post("/v1/orders", body).await?;
    assert_eq!(answer.status, 202, "{}", answer.json());
    let receipt = answer.json();
    assert_eq!(receipt["order_no"], "A-1");
    assert_eq!(receipt["state"], "pending");
    assert!(receipt["seq"].as_u64() >= Some(1), "{receipt}");
    let id = answer.text("id");
    assert_eq!(id.as_bytes().get(14), Some(&b'7'), "a UUIDv7: {id}");
    let accepted_at = answer.text("accepted_at");
    assert_eq!(accepted_at.len(), "2026-11-20T08:15:00.000Z".len(), "{accepted_at}");

    let record = in_state(&shop.agent, &id, "settled", SOON).await?;
    assert_eq!(record["order_no"], "A-1");
    let held = shop.origin.store(|store| store.get("A-1").cloned()).unwrap();
    assert_eq!(held.body, body.trim());
    assert_eq!(held.sha256, hex(&sha256(body.trim().as_bytes())));
    assert_eq!(held.udl, "US");
    assert_eq!(held.seq, receipt["seq"].as_u64().unwrap());
    Ok(())
}

#[tokio::test]
async fn a_batch_names_its_sender_and_its_route() -> Result<()> {
    let shop = shop().await?;
    let id = accepted(shop.agent.api(), &sale("A-1")).await?;
    in_state(&shop.agent, &id, "settled", SOON).await?;
    let seen = shop.origin.requests().remove(0);
    assert_eq!(seen.header("samovar-device"), "POS-US-0001");
    assert_eq!(seen.header("samovar-store"), "US-0001");
    assert_eq!(seen.header("samovar-ledger").len(), 36, "{seen:?}");
    assert_eq!(seen.header("udl"), "US");
    assert_eq!(seen.header("content-type"), "application/json");
    assert_eq!(seen.header("traceparent").len(), 55, "{seen:?}");
    assert_eq!(seen.header("idempotency-key").len(), 36, "{seen:?}");
    assert_eq!(seen.host, format!("us.store.example:{}", shop.origin.address().port()));
    Ok(())
}

#[tokio::test]
async fn a_record_tells_its_history() -> Result<()> {
    let shop = shop().await?;
    shop.origin.once(Behaviour::status(500));
    let id = accepted(shop.agent.api(), &sale("A-1")).await?;
    let record = in_state(&shop.agent, &id, "settled", SOON).await?;
    let text = record.to_string();
    for word in ["accepted", "sent", "settled", "us-west", "500"] {
        assert!(text.contains(word), "`{word}` is not in {record}");
    }
    Ok(())
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_again_and_adds_nothing() -> Result<()> {
    let shop = shop().await?;
    let id = accepted(shop.agent.api(), &sale("A-1")).await?;
    for _ in 0..3 {
        let again = shop.agent.api().place(&sale("A-1")).await?;
        assert_eq!(again.status, 200);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.text("id"), id);
    }
    settled(&shop.agent, 1, SOON).await?;
    let again = shop.agent.api().place(&sale("A-1")).await?;
    assert_eq!((again.status, again.text("id")), (200, id));
    exactly_these(&shop.origin, &["A-1".into()])
}

#[tokio::test]
async fn a_hundred_tills_repeating_one_order_at_once_make_one_record() -> Result<()> {
    let shop = shop().await?;
    let order = sale("A-1");
    let answers =
        futures_util::future::try_join_all((0..100).map(|_| shop.agent.api().place(&order))).await?;
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer.text("id")).collect();
    let new = answers.iter().filter(|answer| answer.status == 202).count();
    assert_eq!((ids.len(), new), (1, 1), "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    settled(&shop.agent, 1, SOON).await
}

#[tokio::test]
async fn a_reused_key_is_refused_kept_and_shown() -> Result<()> {
    let shop = shop().await?;
    let first = accepted(shop.agent.api(), &sale("A-1")).await?;
    let other = sale_with("A-1", &json!({ "total": "9.90" }));
    let answer = shop.agent.api().place(&other).await?;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.problem(), "key-reused");
    let quarantined = shop.agent.api().orders_in("quarantined").await?;
    assert_eq!(quarantined.len(), 1, "{quarantined:?}");
    assert_ne!(quarantined[0]["id"], first);
    assert_eq!(quarantined[0]["conflict_with"], first);
    condition(&shop.agent, "key-conflict", true, SOON).await?;
    settled(&shop.agent, 1, SOON).await?;
    exactly_these(&shop.origin, &["A-1".into()])
}

#[tokio::test]
async fn a_header_key_comes_before_the_number_and_numbers_may_repeat() -> Result<()> {
    let shop = shop().await?;
    let api = shop.agent.api();
    let monday = api.place_with_key("mon-17", &sale_with("17", &json!({ "day": "mon" }))).await?;
    let tuesday = api.place_with_key("tue-17", &sale_with("17", &json!({ "day": "tue" }))).await?;
    assert_eq!((monday.status, tuesday.status), (202, 202));
    assert_eq!(api.order("17").await?["id"], tuesday.text("id"), "a look-up by number gives the newest");
    let nameless = json!({ "placed_at": "2026-11-20T08:15:00.000Z" });
    assert_eq!(api.place_with_key("k-3", &nameless).await?.status, 202, "a key makes up for the number");
    settled(&shop.agent, 3, SOON).await?;
    exactly_these(&shop.origin, &["mon-17".into(), "tue-17".into(), "k-3".into()])
}

#[tokio::test]
async fn numbers_with_slashes_spaces_and_other_scripts_are_found_again() -> Result<()> {
    let shop = shop().await?;
    for number in ["a/b c", "茶-1", "100%", "x?y#z"] {
        let id = accepted(shop.agent.api(), &sale(number)).await?;
        assert_eq!(shop.agent.api().order(number).await?["id"], id, "{number}");
    }
    settled(&shop.agent, 4, SOON).await
}

#[tokio::test]
async fn each_order_of_a_batch_stands_alone() -> Result<()> {
    let shop = shop().await?;
    accepted(shop.agent.api(), &sale("A-1")).await?;
    let batch = json!({ "orders": [
        { "order": sale("A-2") },
        { "order": { "order_no": "A-3" } },
        { "order": sale("A-1") },
        { "idempotency_key": "k-4", "order": sale("A-4") },
        { "order": sale_with("A-1", &json!({ "total": "9.90" })) },
    ] });
    let answer = shop.agent.api().post("/v1/orders:batch", batch.to_string()).await?;
    assert_eq!(answer.status, 207, "{}", answer.json());
    let results = answer.json()["results"].as_array().cloned().unwrap_or_default();
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64()).collect();
    assert_eq!(statuses, [202, 422, 200, 202, 422].map(Some), "{results:?}");
    settled(&shop.agent, 3, SOON).await?;
    exactly_these(&shop.origin, &["A-1".into(), "A-2".into(), "k-4".into()])
}

#[tokio::test]
async fn pages_show_every_order_once_in_ascending_order() -> Result<()> {
    let shop = shop().await?;
    place_many(shop.agent.api(), "P", 450).await?;
    settled(&shop.agent, 450, SOON).await?;
    let records = shop.agent.api().orders_in("settled").await?;
    let numbers: BTreeSet<_> = records.iter().map(|record| record["order_no"].to_string()).collect();
    assert_eq!((records.len(), numbers.len()), (450, 450));
    assert!(records.is_sorted_by_key(|record| record["seq"].as_u64()));
    Ok(())
}

#[tokio::test]
async fn bodies_are_shown_to_the_bearer_of_the_token_only() -> Result<()> {
    let shop = shop().await?;
    let id = accepted(shop.agent.api(), &sale_with("A-1", &json!({ "guest": "Mrs. Rosewater" }))).await?;
    let path = format!("/v1/orders/{id}");
    let open = shop.agent.api().get(&path).await?;
    assert!(!String::from_utf8_lossy(&open.body).contains("Rosewater"), "redacted without a token");
    let bearer = token(&shop.agent)?;
    let told = shop.agent.api().send(Method::GET, &path, &[("authorization", &bearer)], "").await?;
    assert!(String::from_utf8_lossy(&told.body).contains("Rosewater"), "{}", told.json());
    Ok(())
}

#[tokio::test]
async fn discarding_needs_the_token_and_a_reason_and_is_remembered() -> Result<()> {
    let shop = shop().await?;
    shop.origin.always(Behaviour::RejectOrdersWith("spoiled"));
    let id = accepted(shop.agent.api(), &sale_with("A-1", &json!({ "note": "spoiled" }))).await?;
    in_state(&shop.agent, &id, "quarantined", SOON).await?;
    let (api, path) = (shop.agent.api(), format!("/v1/orders/{id}/discard"));
    let reason = json!({ "reason": "the guest left" }).to_string();
    let stranger = api.post(&path, reason.clone()).await?;
    assert!(matches!(stranger.status, 401 | 403), "{}", stranger.status);
    let bearer = token(&shop.agent)?;
    let silent = api.send(Method::POST, &path, &[JSON, ("authorization", &bearer)], "{}").await?;
    assert!(matches!(silent.status, 400 | 422), "{}", silent.status);
    let done = api.send(Method::POST, &path, &[JSON, ("authorization", &bearer)], reason).await?;
    assert!((200..300).contains(&done.status), "{} {}", done.status, done.json());
    let record = in_state(&shop.agent, &id, "discarded", SOON).await?;
    assert!(record.to_string().contains("the guest left"), "{record}");
    Ok(())
}

#[tokio::test]
async fn a_quarantined_order_can_be_tried_again() -> Result<()> {
    let shop = shop().await?;
    shop.origin.always(Behaviour::RejectOrdersWith("spoiled"));
    let id = accepted(shop.agent.api(), &sale_with("A-1", &json!({ "note": "spoiled" }))).await?;
    in_state(&shop.agent, &id, "quarantined", SOON).await?;
    shop.origin.always(Behaviour::Honest);
    let bearer = token(&shop.agent)?;
    let path = format!("/v1/orders/{id}/retry");
    let headers = [JSON, ("authorization", bearer.as_str())];
    let discard = format!("/v1/orders/{id}/discard");
    for silent in ["{}", "", r#"{"reason":" \t"}"#] {
        let refused = shop.agent.api().send(Method::POST, &discard, &headers, silent).await?;
        assert_eq!((refused.status, refused.problem().as_str()), (422, "reason-required"), "{silent}");
    }
    let reason = r#"{"reason":"the origin was mended"}"#;
    let done = shop.agent.api().send(Method::POST, &path, &headers, reason).await?;
    assert!((200..300).contains(&done.status), "{} {}", done.status, done.json());
    in_state(&shop.agent, &id, "settled", SOON).await?;
    exactly_these(&shop.origin, &["A-1".into()])
}

#[tokio::test]
async fn the_summary_counts_what_there_is() -> Result<()> {
    let shop = shop().await?;
    shop.origin.always(Behaviour::status(503));
    place_many(shop.agent.api(), "S", 7).await?;
    let summary = shop.agent.api().summary().await?;
    assert_eq!((summary.accepted, summary.pending, summary.settled), (7, 7, 0), "{summary:?}");
    assert!(summary.oldest_pending_at.is_some() && summary.ledger_bytes > 0, "{summary:?}");
    let unknown = shop.agent.api().get("/v1/orders/nobody").await?;
    assert_eq!(unknown.status, 404);
    assert_ne!(unknown.json(), Value::Null);
    Ok(())
}
