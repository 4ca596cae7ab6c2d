//! Fleet server and agent together: activation, mutual TLS, the embedded broker and mosquitto.

use crate::shop::{AFTER_RETRY, SOON, place_many, settled};
use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use http::Method;
use samovar_tests::{Agent, Answer, Broker, Fleet, LocalApi, eventually};
use samovar_wire::encoding::{hex, sha256};
use serde_json::{Value, json};

const STORE: &str = "US-0001";
const DEVICE: &str = "POS-US-0001";
const TOKEN: &str = "a-token-of-the-tests";

/// A fleet with one store.
async fn fleet(setup: samovar_tests::fleet::Setup) -> Result<Fleet> {
    let fleet = setup.set("server.fleet=USW").start().await?;
    fleet.add_store(STORE, "US", "Samovar on 5th").await?;
    Ok(fleet)
}

fn server(fleet: &Fleet) -> Result<String> {
    Ok(format!("https://localhost:{}", fleet.https()?.port()))
}

/// A till that was activated with a code of its fleet.
async fn activated(fleet: &Fleet) -> Result<Agent> {
    let mut agent = Agent::setup().to_be_activated().prepare()?;
    let claim = fleet.claim(STORE, DEVICE, "pos").await?;
    let output = agent.activate(&server(fleet)?, &claim, &fleet.ca()).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    agent.start().await?;
    Ok(agent)
}

async fn device_shows(fleet: &Fleet, what: &str, shows: impl Fn(&Value) -> bool) -> Result<Value> {
    let waited = eventually(what, AFTER_RETRY, async || {
        let device = fleet.get(&format!("/api/v1/devices/{DEVICE}")).await.ok()?;
        shows(&device).then_some(device)
    })
    .await;
    match waited {
        Ok(device) => Ok(device),
        Err(error) => {
            let device = fleet.get(&format!("/api/v1/devices/{DEVICE}")).await;
            Err(error.context(format!("{device:?}\n{}", fleet.last_words())))
        }
    }
}

#[tokio::test]
async fn an_activated_till_sells_and_is_seen_through_the_embedded_broker() -> Result<()> {
    let fleet = fleet(Fleet::setup()).await?;
    sells_and_is_seen(&fleet).await
}

#[tokio::test]
async fn an_activated_till_sells_and_is_seen_through_mosquitto() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = fleet(Fleet::setup().broker(broker.url())).await?;
    sells_and_is_seen(&fleet).await
}

async fn sells_and_is_seen(fleet: &Fleet) -> Result<()> {
    let agent = activated(fleet).await?;
    place_many(agent.api(), "T", 30).await?;
    settled(&agent, 30, SOON).await?;
    let orders = fleet.orders().await?;
    ensure!(orders.len() == 30 && orders.iter().all(|order| order.device == DEVICE), "{orders:?}");
    ensure!(fleet.order_count().await? == 30);
    let device = device_shows(fleet, "the device with 30 settled orders", |device| {
        device["online"] == true && device["state"]["orders"]["settled"] == 30
    })
    .await?;
    ensure!(device["store"] == STORE && device["class"] == "pos", "{device}");
    Ok(())
}

#[tokio::test]
async fn wrong_used_and_expired_codes_are_told_and_write_nothing() -> Result<()> {
    let fleet = fleet(Fleet::setup().broker("none")).await?;
    let used = fleet.claim(STORE, DEVICE, "pos").await?;
    let first = Agent::setup().to_be_activated().prepare()?;
    let output = first.activate(&server(&fleet)?, &used, &fleet.ca()).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let short = json!({ "store": STORE, "device": "POS-US-0002", "class": "pos", "expires_s": 1 });
    let expired = fleet.ask(Method::POST, "/api/v1/claims", Some(&short)).await?.text("claim");
    let made = samovar_tests::clock::now();
    // Asking earlier would use the code.
    eventually("the code's second is over", SOON, async || {
        (made.elapsed().as_millis() > 1_200).then_some(())
    })
    .await?;
    let codes = [("USW-0000-0000", "claim"), (&used, "used"), (&expired, "expired"), ("nonsense", "claim")];
    for (code, word) in codes {
        let agent = Agent::setup().to_be_activated().prepare()?;
        let output = agent.activate(&server(&fleet)?, code, &fleet.ca()).await?;
        nothing_written(&agent, &output, word)?;
    }
    Ok(())
}

fn nothing_written(agent: &Agent, output: &std::process::Output, word: &str) -> Result<()> {
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "it was accepted: {said}");
    ensure!(said.contains(word), "`{word}` is not in: {said}");
    let written: Vec<_> = files(&agent.data()).into_iter().filter(|name| name.ends_with(".pem")).collect();
    ensure!(written.is_empty(), "{written:?} after: {said}");
    Ok(())
}

fn files(directory: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() { files(&path) } else { vec![path.display().to_string()] }
        })
        .collect()
}

#[tokio::test]
async fn a_device_is_let_in_by_its_certificate_only() -> Result<()> {
    let fleet = fleet(Fleet::setup().broker("none")).await?;
    let agent = activated(&fleet).await?;
    place_many(agent.api(), "M", 3).await?;
    settled(&agent, 3, SOON).await?;
    // Without a certificate and without a token nobody gets an order in, also on the plain port.
    let plain = LocalApi::new(fleet.url()?)?;
    let answer = plain.post("/v1/orders:batch", r#"{"batch":"b","orders":[]}"#).await?;
    assert!(matches!(answer.status, 401 | 403), "{}", answer.status);
    let revoked =
        fleet.ask(Method::POST, &format!("/api/v1/devices/{DEVICE}/revoke"), Some(&json!({}))).await?;
    ensure!(revoked.status == 200, "{}", revoked.json());
    place_many(agent.api(), "N", 3).await?;
    crate::shop::condition(&agent, "identity-refused", true, AFTER_RETRY).await?;
    assert_eq!(fleet.order_count().await?, 3, "a revoked device gets nothing in");
    assert_eq!(agent.api().summary().await?.accepted, 6, "and loses nothing");
    Ok(())
}

#[tokio::test]
async fn a_new_route_table_reaches_devices() -> Result<()> {
    let fleet = fleet(Fleet::setup()).await?;
    let agent = activated(&fleet).await?;
    let before = agent.api().get_json("/v1/resolve?service=orders").await?;
    let current = fleet.get("/api/v1/routes/current").await?;
    let mut table = current["document"].clone();
    let version = fleet.table_version().await? + 1;
    table["version"] = json!(version);
    table["countries"]["US"]["services"]["orders"]["domains"]["pos"] = json!("localhost");
    fleet.publish(&table).await?;
    eventually("the device obeys the new table", AFTER_RETRY, async || {
        let now = agent.api().get_json("/v1/resolve?service=orders").await.ok()?;
        (now["table_version"] == version).then_some(())
    })
    .await
    .with_context(|| format!("before: {before}\n{}", agent.last_words()))
}

#[tokio::test]
async fn a_fleet_that_was_killed_comes_back_with_every_order() -> Result<()> {
    let mut fleet =
        fleet(Fleet::setup().broker("none").set("intake.tokens=[\"a-token-of-the-tests\"]")).await?;
    let batch = batch("b-1", (0..50).map(|n| (format!("k-{n}"), json!({ "n": n }))));
    let answer = deliver(&fleet, &batch).await?;
    ensure!(statuses(&answer).iter().all(|status| status == "settled"), "{}", answer.json());
    fleet.sigkill().await?;
    fleet.start().await?;
    assert_eq!(fleet.order_count().await?, 50);
    let again = deliver(&fleet, &batch).await?;
    assert!(statuses(&again).iter().all(|status| status == "duplicate"), "{}", again.json());
    assert_eq!(fleet.order_count().await?, 50);
    Ok(())
}

#[tokio::test]
async fn the_intake_records_an_order_once_however_often_it_comes_at_once() -> Result<()> {
    let fleet = fleet(Fleet::setup().broker("none").set("intake.tokens=[\"a-token-of-the-tests\"]")).await?;
    let batch = batch("b-1", (0..20).map(|n| (format!("k-{n}"), json!({ "n": n, "name": "茶" }))));
    let answers = try_join_all((0..16).map(|_| deliver(&fleet, &batch))).await?;
    let all: Vec<_> = answers.iter().flat_map(statuses).collect();
    let settled = all.iter().filter(|status| *status == "settled").count();
    let repeated = all.iter().filter(|status| *status == "duplicate").count();
    assert_eq!((settled, repeated), (20, 15 * 20), "{all:?}");
    assert_eq!(fleet.order_count().await?, 20);
    let conflict = self::batch("b-2", [("k-0".to_owned(), json!({ "n": "other" }))]);
    assert_eq!(statuses(&deliver(&fleet, &conflict).await?), ["conflict"]);
    Ok(())
}

/// A batch as the contract describes it, written by hand: the test speaks for origins' other clients.
fn batch(id: &str, orders: impl IntoIterator<Item = (String, Value)>) -> String {
    let orders: Vec<_> = orders
        .into_iter()
        .enumerate()
        .map(|(seq, (key, body))| {
            let body = body.to_string();
            let digest = hex(&sha256(body.as_bytes()));
            format!(
                r#"{{"id":"01900000-0000-7000-8000-{seq:012}","key":"{key}","sha256":"{digest}","order_no":"{key}",
                "seq":{},"udl":"US","accepted_at":"2026-11-20T08:15:00.000Z","body":{body}}}"#,
                seq + 1
            )
        })
        .collect();
    format!(r#"{{"batch":"{id}","orders":[{}]}}"#, orders.join(","))
}

async fn deliver(fleet: &Fleet, batch: &str) -> Result<Answer> {
    let id = serde_json::from_str::<Value>(batch)?["batch"].as_str().unwrap_or_default().to_owned();
    let bearer = format!("Bearer {TOKEN}");
    let headers = [
        ("content-type", "application/json"),
        ("authorization", bearer.as_str()),
        ("samovar-device", DEVICE),
        ("samovar-store", STORE),
        ("samovar-ledger", "01900000-0000-7000-8000-000000000000"),
        ("udl", "US"),
        ("idempotency-key", &id),
    ];
    let api = LocalApi::new(fleet.url()?)?;
    let answer = api.send(Method::POST, "/v1/orders:batch", &headers, batch.to_owned()).await?;
    ensure!(answer.status == 200 && answer.text("batch") == id, "{} {}", answer.status, answer.json());
    Ok(answer)
}

fn statuses(answer: &Answer) -> Vec<String> {
    let results = answer.json()["results"].as_array().cloned().unwrap_or_default();
    results.iter().map(|result| result["status"].as_str().unwrap_or_default().to_owned()).collect()
}
