//! Which origin an order goes to, and why; told by the agent and seen at the origins.

use crate::shop::{
    AFTER_RETRY, SOON, accepted, condition, in_state, place_many, sale, sale_with, settled, shop,
    shop_with_two_origins,
};
use anyhow::{Context, Result};
use samovar_tests::{Agent, Origin, TableBuilder, eventually};
use serde_json::{Value, json};

#[tokio::test]
async fn local_software_is_told_where_its_origin_is_and_why() -> Result<()> {
    let shop = shop().await?;
    let answer = shop.agent.api().get_json("/v1/resolve?service=orders").await?;
    assert_eq!(answer["service"], "orders");
    assert_eq!(answer["domain"], "us.store.example");
    assert_eq!(answer["origin"], "us-west");
    assert_eq!(answer["table_version"], 1);
    assert_eq!(answer["stale"], false);
    assert!(answer["valid_for_s"].is_u64(), "{answer}");
    assert_eq!(answer["base_url"], format!("http://us.store.example:{}", shop.origin.address().port()));
    assert!(answer["addresses"].to_string().contains("127.0.0.1"), "{answer}");
    assert!(answer["reason"].as_array().is_some_and(|rules| rules.len() >= 3), "{answer}");
    let japan = shop.agent.api().get_json("/v1/resolve?service=orders&udl=JP").await?;
    assert_eq!(japan["domain"], "jp.store.example");
    for query in ["service=nothing", "service=orders&udl=XX"] {
        let answer = shop.agent.api().get(&format!("/v1/resolve?{query}")).await?;
        assert!((400..500).contains(&answer.status), "{query}: {}", answer.status);
    }
    Ok(())
}

#[tokio::test]
async fn an_order_of_a_country_without_a_route_is_held_and_others_pass() -> Result<()> {
    let (mut agent, a, b, table) = shop_with_two_origins().await?;
    let id = accepted(agent.api(), &sale_with("FR-1", &json!({ "udl": "FR" }))).await?;
    let record = in_state(&agent, &id, "held", SOON).await?;
    assert!(record.to_string().contains("residency"), "it says why: {record}");
    condition(&agent, "residency-hold", true, SOON).await?;
    accepted(agent.api(), &sale("US-1")).await?;
    settled(&agent, 1, SOON).await?;
    assert_eq!(a.orders() + b.orders(), 1);

    let mut countries = table.document()["countries"].clone();
    countries["FR"] = countries["JP"].clone();
    countries["FR"]["residency"] = json!(["apac"]);
    agent.restart_with_table(&table.next_version().with("/countries", countries)?).await?;
    settled(&agent, 2, AFTER_RETRY).await?;
    assert!(b.holds("FR-1"));
    Ok(())
}

#[tokio::test]
async fn an_order_never_leaves_its_residency_even_when_the_only_origin_is_down() -> Result<()> {
    let (mut a, b) = (Origin::start("us-west").await?, Origin::start("apac").await?);
    let table = TableBuilder::new()?
        .origin("us-west", a.address())
        .origin("apac", b.address())
        .residency("US", &["us-west"])
        .residency("JP", &["apac"]);
    let agent = Agent::setup().table(&table).start().await?;
    a.stop().await;
    place_many(agent.api(), "US", 10).await?;
    let japan = sale_with("JP-1", &json!({ "udl": "JP" }));
    let id = accepted(agent.api(), &japan).await?;
    in_state(&agent, &id, "settled", AFTER_RETRY).await?;
    assert_eq!(b.store(|store| store.len()), 1, "only the Japanese order is at apac");
    assert_eq!(b.store(|store| store.get("JP-1").map(|held| held.udl.clone())), Some("JP".into()));
    assert_eq!(agent.api().summary().await?.pending, 10, "unreachable is pending, not held");
    a.restart().await?;
    settled(&agent, 11, AFTER_RETRY).await?;
    assert_eq!((a.orders(), b.orders()), (10, 1));
    Ok(())
}

#[tokio::test]
async fn an_order_of_several_regions_goes_where_the_majority_belongs() -> Result<()> {
    let (a, b) = (Origin::start("us-west").await?, Origin::start("apac").await?);
    let table = TableBuilder::new()?
        .origin("us-west", a.address())
        .origin("apac", b.address())
        .residency("US", &["us-west"])
        .residency("JP", &["apac"]);
    let agent = Agent::setup().table(&table).start().await?;
    accepted(agent.api(), &sale_with("most-jp", &json!({ "udl": ["JP", "US", "JP"] }))).await?;
    accepted(agent.api(), &sale_with("tie", &json!({ "udl": ["JP", "US"] }))).await?;
    settled(&agent, 2, SOON).await?;
    assert!(b.holds("most-jp") && a.holds("tie"));
    Ok(())
}

#[tokio::test]
async fn all_orders_of_one_batch_have_one_country() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.stop().await;
    for n in 0..20 {
        let udl = if n % 2 == 0 { "US" } else { "JP" };
        accepted(shop.agent.api(), &sale_with(&format!("{udl}-{n}"), &json!({ "udl": udl }))).await?;
    }
    shop.origin.restart().await?;
    settled(&shop.agent, 20, AFTER_RETRY).await?;
    for seen in shop.origin.requests() {
        let udl = seen.header("udl");
        assert!(seen.keys.iter().all(|key| key.starts_with(udl)), "{udl}: {:?}", seen.keys);
    }
    Ok(())
}

#[tokio::test]
async fn a_pinned_store_goes_to_its_pin_and_the_reason_says_so() -> Result<()> {
    let (a, b) = (Origin::start("us-west").await?, Origin::start("apac").await?);
    let pin =
        json!([{ "ids": ["store:US-0001"], "services": ["*"], "origin": "apac", "reason": "point test" }]);
    let table =
        TableBuilder::new()?.origin("us-west", a.address()).origin("apac", b.address()).with("/pins", pin)?;
    let agent = Agent::setup().table(&table).start().await?;
    let answer = agent.api().get_json("/v1/resolve?service=orders").await?;
    assert_eq!(answer["origin"], "apac");
    assert!(answer["reason"].to_string().contains("point test"), "{answer}");
    accepted(agent.api(), &sale("A-1")).await?;
    settled(&agent, 1, SOON).await?;
    assert_eq!((a.orders(), b.orders()), (0, 1));
    Ok(())
}

#[tokio::test]
async fn a_table_that_does_not_verify_is_refused_and_orders_are_kept() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let mut agent = Agent::setup().table(&table).prepare()?;
    let file = agent.home().join("route-table.json");
    let mut forged: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let forger = TableBuilder::new()?.origin("us-west", origin.address()).next_version();
    forged["payload"] = serde_json::to_value(forger.sign())?["payload"].clone();
    std::fs::write(&file, forged.to_string())?;
    agent.start().await?;
    condition(&agent, "route-table-missing", true, SOON).await?;
    accepted(agent.api(), &sale("A-1")).await?;
    agent.restart_with_table(&table).await?;
    settled(&agent, 1, AFTER_RETRY).await?;
    assert!(origin.holds("A-1"));
    Ok(())
}

#[tokio::test]
async fn an_older_table_is_refused_and_the_newer_stays_in_force() -> Result<()> {
    let (a, b) = (Origin::start("us-west").await?, Origin::start("apac").await?);
    let old = TableBuilder::new()?.origin("us-west", a.address());
    let mut agent = Agent::setup().table(&old).start().await?;
    // The same key signs the newer table.
    let newer = old.next_version().origin("apac", b.address()).residency("US", &["apac"]);
    let newer = newer.with("/fallback/candidates", json!(["apac"]))?;
    agent.restart_with_table(&newer).await?;
    assert_eq!(agent.api().get_json("/v1/resolve?service=orders").await?["origin"], "apac");
    let older = newer.with("/version", json!(1))?;
    agent.restart_with_table(&older).await?;
    condition(&agent, "route-table-refused", true, SOON).await?;
    let answer = agent.api().get_json("/v1/resolve?service=orders").await?;
    assert_eq!((answer["origin"].as_str(), answer["table_version"].as_u64()), (Some("apac"), Some(2)));
    Ok(())
}

/// Each is put in the place of the table's file while the agent runs.
#[tokio::test]
async fn a_table_that_breaks_a_rule_is_refused_with_its_reason_and_the_old_one_stays_in_force() -> Result<()>
{
    let (a, b) = (Origin::start("us-west").await?, Origin::start("apac").await?);
    let first = TableBuilder::new()?.origin("us-west", a.address());
    let agent = Agent::setup().table(&first).start().await?;
    let second = first.next_version();
    agent.write_table(&second)?;
    told_version(&agent, 2).await?;
    let signed = |table: &TableBuilder| serde_json::to_value(table.sign());
    let old = signed(&second)?;
    // Each would move the store to the other origin, if it were taken.
    let apac = second.next_version().origin("apac", b.address()).residency("US", &["apac"]);
    let mut base = apac.with("/fallback/candidates", json!(["apac"]))?;
    let write = |text: &str| -> Result<()> {
        let new = agent.home().join("route-table.new");
        std::fs::write(&new, text)?;
        Ok(std::fs::rename(new, agent.home().join("route-table.json"))?)
    };
    let mut refused = async |pointer: &str, value: Value, word: &str| -> Result<()> {
        let before = base.document().pointer(pointer).cloned().unwrap_or_default();
        base.set(pointer, value)?;
        write(&signed(&base)?.to_string())?;
        base.set(pointer, before)?;
        refused_with(&agent, word).await
    };
    refused("/version", json!(1), "version 2 is in force (a rollback").await?;
    refused("/version", json!(2), "other content").await?;
    refused("/environment", json!("staging"), "`staging`").await?;
    refused("/not_before", json!("2098-01-01T00:00:00.000Z"), "not valid before 2098-01-01").await?;
    refused("/schema", json!(2), "schema 2").await?;
    refused("/fallback/candidates", json!(["nowhere"]), "nowhere").await?;
    refused("/probes", json!([format!("http://{}", "x".repeat(1024 * 1024))]), "too large").await?;

    // Tampered with: the signature is of another document; signed by somebody else; no table at all.
    let mut tampered = signed(&base)?;
    tampered["signatures"] = old["signatures"].clone();
    write(&tampered.to_string())?;
    refused_with(&agent, "not trusted").await?;
    let stranger = TableBuilder::new()?.origin("us-west", a.address()).with("/version", json!(3))?;
    write(&signed(&stranger)?.to_string())?;
    refused_with(&agent, "not trusted").await?;
    write("<html>Please sign in</html>")?;
    refused_with(&agent, "not a signed envelope").await?;
    write(&"x".repeat(3 * 1024 * 1024))?;
    refused_with(&agent, "larger than").await?;

    accepted(agent.api(), &sale("A-1")).await?;
    settled(&agent, 1, SOON).await?;
    assert_eq!((a.orders(), b.orders()), (1, 0));
    agent.write_table(&base)?;
    told_version(&agent, 3).await?;
    condition(&agent, "route-table-refused", false, SOON).await?;
    accepted(agent.api(), &sale("A-2")).await?;
    settled(&agent, 2, SOON).await?;
    assert_eq!((a.orders(), b.orders()), (1, 1));
    Ok(())
}

async fn told_version(agent: &Agent, version: u64) -> Result<()> {
    eventually(&format!("table {version} is in force"), SOON, async || {
        let answer = agent.api().get_json("/v1/resolve?service=orders").await.ok()?;
        (answer["table_version"] == version).then_some(())
    })
    .await
}

/// The condition says this, and the table in force is the one before.
async fn refused_with(agent: &Agent, word: &str) -> Result<()> {
    let told = eventually(&format!("refused with `{word}`"), SOON, async || {
        let told = agent.api().conditions().await.ok()?.get("route-table-refused").cloned()?;
        told.contains(word).then_some(told)
    })
    .await;
    let told = told.with_context(|| agent.last_words())?;
    eprintln!("{told}");
    let answer = agent.api().get_json("/v1/resolve?service=orders").await?;
    assert_eq!((answer["origin"].as_str(), answer["table_version"].as_u64()), (Some("us-west"), Some(2)));
    Ok(())
}

#[tokio::test]
async fn plain_http_is_refused_towards_an_address_that_is_not_loopback() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    // 192.0.2.0/24 is for documentation: nothing may be sent there, and nothing would answer.
    let table = TableBuilder::new()?.origin("us-west", origin.address()).with(
        "/origins/us-west/endpoints",
        json!([{ "host": "192.0.2.1", "port": origin.address().port(), "addresses": ["192.0.2.1"] }]),
    )?;
    let agent = Agent::setup().table(&table).start().await?;
    accepted(agent.api(), &sale("A-1")).await?;
    eventually("the refusal is told", SOON, async || {
        let status = agent.api().get_json("/v1/status").await.ok()?;
        let record = agent.api().order("A-1").await.ok()?;
        (status.to_string() + &record.to_string()).contains("loopback").then_some(())
    })
    .await?;
    assert_eq!(agent.api().summary().await?.pending, 1);
    Ok(())
}
