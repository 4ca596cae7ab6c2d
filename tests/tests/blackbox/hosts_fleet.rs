//! Host overrides from head office: a real fleet with its own broker, a real till, and an origin that has moved.

use crate::shop::{AFTER_RETRY, SOON, accepted, sale, settled};
use anyhow::{Context, Result, ensure};
use http::Method;
use samovar_tests::origin::Store;
use samovar_tests::{Agent, Fleet, Origin, binaries, eventually};
use serde_json::{Value, json};
use tokio::process::Command;

const NAME: &str = "us.store.example";
const DEVICE: &str = "POS-US-0001";
const LIST: &str = "/api/v1/hosts?device=POS-US-0001";

/// The route table says 127.0.0.1, where nobody listens; the origin is at 127.0.0.2.
struct Moved {
    fleet: Fleet,
    agent: Agent,
    origin: Origin,
}

async fn moved() -> Result<Moved> {
    let fleet = Fleet::setup().set("server.fleet=USW").start().await?;
    fleet.add_store("US-0001", "US", "Samovar on 5th").await?;
    let origin = Origin::start_with("us-west", "127.0.0.2:0".parse()?, Store::default()).await?;
    let mut table = fleet.get("/api/v1/routes/current").await?["document"].clone();
    let version = fleet.table_version().await? + 1;
    table["version"] = json!(version);
    let endpoint = json!({ "host": NAME, "port": origin.address().port(), "addresses": ["127.0.0.1"] });
    table["origins"]["us-west"] = json!({ "endpoints": [endpoint], "regions": [], "state": "active" });
    table["countries"]["US"]["residency"] = json!(["us-west"]);
    table["countries"]["US"]["services"]["orders"]["domains"] = json!({ "default": NAME });
    table["fallback"]["candidates"] = json!(["us-west"]);
    fleet.publish(&table).await?;
    let mut agent = Agent::setup().to_be_activated().set("origin.scheme=http").prepare()?;
    let claim = fleet.claim("US-0001", DEVICE, "pos").await?;
    let server = format!("https://localhost:{}", fleet.https()?.port());
    let output = agent.activate(&server, &claim, &fleet.ca()).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    agent.start().await?;
    Ok(Moved { fleet, agent, origin })
}

impl Moved {
    async fn set(&self, ttl_s: u64) -> Result<Value> {
        let body = json!({ "address": "127.0.0.2", "reason": "moved", "ticket": "T-1", "ttl_s": ttl_s });
        let path = format!("/api/v1/devices/{DEVICE}/hosts/{NAME}");
        let answer = self.fleet.ask(Method::PUT, &path, Some(&body)).await?;
        ensure!(answer.status == 202, "{} {}", answer.status, answer.json());
        Ok(answer.json())
    }

    /// What the fleet lists, when it is as it should be.
    async fn listed(&self, what: &str, right: impl Fn(&Value) -> bool) -> Result<Value> {
        let waited = eventually(what, AFTER_RETRY, async || {
            let hosts = self.fleet.get(LIST).await.ok()?["hosts"].clone();
            right(&hosts).then_some(hosts)
        });
        let waited = waited.await;
        match waited {
            Ok(hosts) => Ok(hosts),
            Err(error) => {
                let list = self.fleet.get(LIST).await;
                Err(error).with_context(|| format!("{list:?}\n{}", self.agent.last_words()))
            }
        }
    }

    async fn at_the_till(&self) -> Result<Value> {
        Ok(self.agent.api().get_json("/v1/hosts").await?["overrides"].clone())
    }

    async fn cli(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(binaries::fleet()?);
        command.arg("hosts").args(args).arg("--json").arg("--data").arg(self.fleet.data()).kill_on_drop(true);
        let output = tokio::time::timeout(SOON, command.output()).await??;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

#[tokio::test]
async fn an_override_of_the_fleet_takes_effect_moves_the_orders_and_is_cleared() -> Result<()> {
    let moved = moved().await?;
    accepted(moved.agent.api(), &sale("A-1")).await?;
    let set = moved.set(600).await?;
    assert_eq!((&set["wanted"], &set["owner"]), (&json!(true), &json!("admin")), "{set}");
    let hosts = moved
        .listed("the till reports it effective", |hosts| {
            hosts[0]["in_force"] == true && hosts[0]["effective"] == true
        })
        .await?;
    assert_eq!(hosts.as_array().map(Vec::len), Some(1), "once, not twice: {hosts}");
    assert_eq!((&hosts[0]["id"], &hosts[0]["wanted"]), (&set["id"], &json!(true)), "{hosts}");
    settled(&moved.agent, 1, AFTER_RETRY).await?;
    assert!(moved.origin.holds("A-1"));
    let till = moved.at_the_till().await?;
    assert_eq!((&till[0]["source"], &till[0]["ticket"]), (&json!("fleet"), &json!("T-1")), "{till}");
    assert!(till[0]["remaining_s"].as_u64().is_some_and(|left| left <= 600), "{till}");
    let page = String::from_utf8(moved.agent.api().get("/?lang=en").await?.body)?;
    assert!(page.contains("from head office"), "{page}");

    // Replaced from the command line, then cleared.
    let args = ["set", DEVICE, NAME, "127.0.0.2", "--reason", "again", "--ttl", "1h"];
    let second = moved.cli(&args).await?;
    assert_ne!(second["id"], set["id"]);
    moved
        .listed("the till reports the second", |hosts| {
            hosts[0]["id"] == second["id"] && hosts[0]["effective"] == true && hosts[1].is_null()
        })
        .await?;
    let cleared = moved.cli(&["clear", DEVICE, NAME]).await?;
    assert_eq!(cleared["cleared"]["in_force"], true, "{cleared}");
    moved.listed("nothing is left", |hosts| *hosts == json!([])).await?;
    assert_eq!(moved.at_the_till().await?, json!([]));
    assert_eq!(moved.cli(&["list"]).await?, json!({ "hosts": [] }));
    Ok(())
}

#[tokio::test]
async fn an_override_of_the_fleet_ends_by_itself_while_head_office_is_away() -> Result<()> {
    let mut moved = moved().await?;
    moved.set(15).await?;
    eventually("it is in force", AFTER_RETRY, async || {
        (moved.at_the_till().await.ok()?[0]["name"] == NAME).then_some(())
    })
    .await?;
    moved.fleet.sigkill().await?;
    eventually("it has ended", AFTER_RETRY, async || {
        (moved.at_the_till().await.ok()? == json!([])).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_till_that_was_off_is_never_told_of_what_is_over() -> Result<()> {
    let mut moved = moved().await?;
    let path = format!("/api/v1/devices/{DEVICE}");
    eventually("the till is there", AFTER_RETRY, async || {
        (moved.fleet.get(&path).await.ok()?["online"] == true).then_some(())
    })
    .await?;
    moved.agent.sigterm(SOON).await?;
    moved.set(2).await?;
    moved.listed("its time is over", |hosts| *hosts == json!([])).await?;
    let ended = moved.fleet.get(&path).await?["desired_revision"].clone();
    moved.agent.start().await?;
    eventually("the till has what it should", AFTER_RETRY, async || {
        let device = moved.fleet.get(&path).await.ok()?;
        let (has, wanted) = (device["config_revision"].as_u64()?, device["desired_revision"].as_u64()?);
        (device["online"] == true && has == wanted && wanted >= ended.as_u64()?).then_some(())
    })
    .await?;
    assert_eq!(moved.at_the_till().await?, json!([]));
    let events = moved.fleet.get(&format!("{path}/events")).await?.to_string();
    assert!(!events.contains("hosts.created") && !events.contains("hosts.refused"), "{events}");
    Ok(())
}
