//! Shadow traffic: a share of the orders is also sent elsewhere and compared; the orders themselves feel nothing of it.

use crate::shop::{
    AFTER_RETRY, SOON, accepted, exactly_these, in_state, place_many, sale, sale_with, settled, shop, token,
};
use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use http::Method;
use samovar_tests::agent::Setup;
use samovar_tests::origin::Behaviour;
use samovar_tests::table::ENVIRONMENT;
use samovar_tests::{Agent, Broker, Fleet, HeadOffice, LocalApi, Origin, TableBuilder, eventually};
use samovar_wire::encoding::{hex, sha256};
use serde_json::{Value, json};

struct Shadowed {
    agent: Agent,
    real: Origin,
    shadow: Origin,
}

impl Shadowed {
    /// A till whose every order is copied.
    async fn start(more: impl FnOnce(Setup) -> Setup) -> Result<Self> {
        let (real, shadow) = (Origin::start("us-west").await?, Origin::start("us-next").await?);
        let rule =
            json!({ "country": "US", "service": "orders", "origin": "us-next", "basis_points": 10_000 });
        let table = TableBuilder::new()?
            .origin("us-west", real.address())
            .origin("us-next", shadow.address())
            .with("/shadow", json!([rule]))?
            .with("/fallback/candidates", json!(["us-west"]))?;
        let agent = more(Agent::setup().table(&table)).start().await?;
        Ok(Self { agent, real, shadow })
    }
}

async fn report(agent: &Agent) -> Option<Value> {
    agent.api().get_json("/v1/status").await.ok().map(|status| status["shadow"].clone())
}

async fn counted(agent: &Agent, what: &str, count: u64) -> Result<Value> {
    let waited = eventually(&format!("{count} {what}"), SOON, async || {
        report(agent).await.filter(|report| report[what] == json!(count))
    })
    .await;
    match waited {
        Ok(report) => Ok(report),
        Err(error) => Err(error.context(format!("{:?}\n{}", report(agent).await, agent.last_words()))),
    }
}

#[tokio::test]
async fn copies_are_compared_and_differences_told_with_examples() -> Result<()> {
    let broker = Broker::start().await?;
    let office = HeadOffice::listen(broker.address(), ENVIRONMENT).await?;
    let world = Shadowed::start(|setup| setup.broker(&broker)).await?;
    world.real.always(Behaviour::RejectOrdersWith("spoiled"));
    world.shadow.always(Behaviour::RejectOrdersWith("new-rule"));
    let api = world.agent.api();
    let mut keys = place_many(api, "S", 10).await?;
    // Settled here, refused there; refused here, settled there; refused by both.
    accepted(api, &sale_with("strict", &json!({ "note": "new-rule" }))).await?;
    let lax = accepted(api, &sale_with("lax", &json!({ "note": "spoiled" }))).await?;
    let both = accepted(api, &sale_with("both", &json!({ "note": "spoiled new-rule" }))).await?;
    settled(&world.agent, 11, SOON).await?;
    in_state(&world.agent, &lax, "quarantined", SOON).await?;
    in_state(&world.agent, &both, "quarantined", SOON).await?;
    counted(&world.agent, "same", 11).await?;
    let report = counted(&world.agent, "different", 2).await?;
    assert_eq!((&report["sent"], &report["dropped"]), (&json!(13), &json!(0)), "{report}");
    let examples = report["examples"].as_array().context("no examples")?;
    let example =
        |key: &str| examples.iter().find(|example| example["key"] == key).cloned().unwrap_or_default();
    let (strict, lax) = (example("strict"), example("lax"));
    assert_eq!((&strict["origin"], &strict["shadow"]), (&json!("us-west"), &json!("us-next")), "{report}");
    assert_eq!(strict["answer"], json!({ "status": "settled" }));
    let refusal = json!({ "status": "rejected", "code": "poison", "detail": "the origin says poison" });
    assert_eq!(strict["shadow_answer"], refusal);
    assert_eq!((&lax["answer"], &lax["shadow_answer"]["status"]), (&refusal, &json!("settled")));

    keys.push("strict".into());
    exactly_these(&world.real, &keys)?;
    assert_eq!((world.shadow.orders(), world.shadow.shadows()), (0, 11));
    for seen in world.shadow.requests() {
        assert_eq!((seen.header("samovar-shadow"), seen.keys.len()), ("us-west", 1));
    }
    assert!(world.real.requests().iter().all(|seen| seen.header("samovar-shadow").is_empty()));
    let metrics = String::from_utf8_lossy(&api.get("/metrics").await?.body).into_owned();
    assert!(metrics.contains("samovar_shadow_different_total 2"), "{metrics}");
    let event = eventually("the event", SOON, async || {
        office.heard().events("POS-US-0001").find(|event| event.kind == "shadow.different").cloned()
    })
    .await?;
    assert!(event.data["different"].as_u64() >= Some(1), "{}", event.data);
    assert_eq!(event.data["examples"][0]["shadow"], "us-next", "{}", event.data);
    Ok(())
}

const TOKEN: &str = "a-token-of-the-tests";

/// The fleet's server as an origin.
async fn intake(origin: &str) -> Result<Fleet> {
    let tokens = format!("intake.tokens=[\"{TOKEN}\"]");
    Fleet::setup().broker("none").set(tokens).set(format!("intake.origin={origin}")).start().await
}

/// What an intake has from the time before: another content under this key of the till.
async fn occupied(fleet: &Fleet, key: &str) -> Result<()> {
    let body = "{\"of\":\"another time\"}";
    let batch = format!(
        "{{\"batch\":\"before\",\"orders\":[{{\"id\":\"before\",\"key\":\"{key}\",\"sha256\":\"{}\",\"order_no\":\"{key}\",\
         \"seq\":1,\"udl\":\"US\",\"accepted_at\":\"2026-11-20T00:00:00.000Z\",\"body\":{body}}}]}}",
        hex(&sha256(body.as_bytes()))
    );
    let token = format!("Bearer {TOKEN}");
    let headers = [
        ("content-type", "application/json"),
        ("authorization", &*token),
        ("samovar-device", "POS-US-0001"),
        ("samovar-ledger", "before"),
        ("udl", "US"),
    ];
    let api = LocalApi::new(fleet.url()?)?;
    let answer = api.send(Method::POST, "/v1/orders:batch", &headers, batch).await?;
    anyhow::ensure!(answer.json()["results"][0]["status"] == "settled", "{}", answer.json());
    Ok(())
}

#[tokio::test]
async fn the_real_intake_judges_copies_and_records_none() -> Result<()> {
    let (main, next) = tokio::try_join!(intake("us-west"), intake("us-next"))?;
    occupied(&next, "S-0007").await?;
    let address = |fleet: &Fleet| -> Result<std::net::SocketAddr> {
        fleet.url()?.trim_start_matches("http://").parse().context("the fleet's address")
    };
    let rule = json!({ "country": "US", "service": "orders", "origin": "us-next", "basis_points": 10_000 });
    let table = TableBuilder::new()?
        .origin("us-west", address(&main)?)
        .origin("us-next", address(&next)?)
        .with("/shadow", json!([rule]))?
        .with("/fallback/candidates", json!(["us-west"]))?;
    let agent = Agent::setup().table(&table).set(&format!("origin.token={TOKEN}")).start().await?;
    let keys = place_many(agent.api(), "S", 40).await?;
    settled(&agent, 40, AFTER_RETRY).await?;
    counted(&agent, "same", 39).await?;
    let report = counted(&agent, "different", 1).await?;
    let example = &report["examples"][0];
    assert_eq!((&example["key"], &example["shadow"]), (&json!("S-0007"), &json!("us-next")), "{report}");
    assert_eq!(example["answer"], json!({ "status": "settled" }), "{report}");
    assert_eq!(example["shadow_answer"]["status"], "conflict", "{report}");

    let mut held: Vec<String> = main.orders().await?.into_iter().map(|order| order.key).collect();
    held.sort_unstable();
    assert_eq!(held, keys);
    let there: Vec<String> = next.orders().await?.into_iter().map(|order| order.key).collect();
    assert_eq!(there, ["S-0007"], "what it had before, and none of the copies");
    let metrics = next.ask(Method::GET, "/metrics", None).await?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("samovar_fleet_shadow_orders_total{status=\"settled\"} 39"), "{metrics}");
    let audit = next.get("/api/v1/audit").await?;
    assert!(!audit.to_string().contains("order.conflict"), "a copy raises no alarm: {audit}");
    Ok(())
}

#[tokio::test]
async fn a_shadow_origin_that_misbehaves_is_felt_by_no_order() -> Result<()> {
    let faults = [
        Behaviour::Stall,
        Behaviour::Drop,
        Behaviour::Portal,
        Behaviour::EmptyObject,
        Behaviour::WrongBatchId,
        Behaviour::status(401),
        Behaviour::Status { status: 503, retry_after_s: Some(900) },
        Behaviour::RetryAll { retry_after_s: 900 },
    ];
    try_join_all(faults.map(felt_by_nobody)).await.map(drop)
}

async fn felt_by_nobody(fault: Behaviour) -> Result<()> {
    let world = Shadowed::start(|setup| setup).await?;
    world.shadow.always(fault.clone());
    // One after the other: a copy that stood in the way of the next order would cost its deadline each time.
    for n in 0..10 {
        place_many(world.agent.api(), &format!("F{n}"), 5).await?;
        settled(&world.agent, (n + 1) * 5, SOON)
            .await
            .map_err(|error| error.context(format!("{fault:?}")))?;
    }
    let told = eventually("a copy that could not be compared", SOON, async || {
        report(&world.agent).await.filter(|report| report["not_compared"].as_u64() > Some(0))
    })
    .await
    .with_context(|| format!("{fault:?}"))?;
    assert_eq!((&told["same"], &told["different"]), (&json!(0), &json!(0)), "{fault:?}: {told}");
    let summary = world.agent.api().summary().await?;
    let counts = (summary.settled, summary.pending, summary.held, summary.quarantined);
    assert_eq!(counts, (50, 0, 0, 0), "{fault:?}");
    let mut conditions = world.agent.api().conditions().await?;
    // Every origin of the country is probed, and a portal in the place of one is worth a word.
    conditions.retain(|_, detail| !detail.contains("health probe"));
    assert!(conditions.is_empty(), "{fault:?}: {conditions:?}");
    assert_eq!((world.real.orders(), world.shadow.orders()), (50, 0), "{fault:?}");
    Ok(())
}

#[tokio::test]
async fn copies_wait_until_no_order_waits() -> Result<()> {
    let ticket = |setup: Setup| {
        setup.config("[origin.single]\npath = \"/api/tickets/{id}\"").set("origin.mode=single")
    };
    let world = Shadowed::start(ticket).await?;
    // 409 without a meaning: this order alone is tried again and again, the others pass it.
    world.real.occupy("POS-US-0001", "stuck");
    accepted(world.agent.api(), &sale("stuck")).await?;
    for n in 0..5 {
        place_many(world.agent.api(), &format!("B{n}"), 2).await?;
        settled(&world.agent, (n + 1) * 2, AFTER_RETRY).await?;
    }
    let waiting = report(&world.agent).await.context("no status")?;
    assert_eq!((&waiting["waiting"], &waiting["sent"]), (&json!(10), &json!(0)), "{waiting}");
    assert_eq!(world.shadow.request_count(), 0);
    let headers = [("content-type", "application/json"), ("authorization", &*token(&world.agent)?)];
    let reason = json!({ "reason": "a copy of another till's order" }).to_string();
    let answer = world.agent.api().send(Method::POST, "/v1/orders/stuck/discard", &headers, reason).await?;
    assert_eq!(answer.status, 200, "{}", answer.json());
    counted(&world.agent, "same", 10).await?;
    Ok(())
}

#[tokio::test]
async fn without_a_rule_there_is_no_shadow() -> Result<()> {
    let shop = shop().await?;
    place_many(shop.agent.api(), "N", 3).await?;
    settled(&shop.agent, 3, SOON).await?;
    let status = shop.agent.api().get_json("/v1/status").await?;
    assert_eq!(status["shadow"], Value::Null, "{status}");
    assert!(status.as_object().is_some_and(|status| status.contains_key("shadow")));
    Ok(())
}
