//! Names: what the agent does when DNS does not.

use crate::shop::{SOON, accepted, sale, settled};
use anyhow::{Context, Result, ensure};
use samovar_tests::{Agent, DnsServer, Origin, TableBuilder, eventually};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const HOST: &str = "usw.origin.test";

/// A table whose origin is dialled by a name, and no address of it is listed.
fn table(origin: &Origin) -> Result<TableBuilder> {
    TableBuilder::new()?
        .origin("us-west", origin.address())
        .with("/origins/us-west/endpoints/0/host", json!(HOST))?
        .with("/origins/us-west/endpoints/0/addresses", json!([]))
}

fn asking(servers: &[&DnsServer]) -> String {
    let servers: Vec<_> = servers.iter().map(|server| server.address().to_string()).collect();
    format!("[dns]\nservers = {}\n", json!(servers))
}

async fn resolve(agent: &Agent) -> Result<Value> {
    agent.api().get_json("/v1/resolve?service=orders").await
}

/// Hands over an order and gives the time until the origin has it.
#[expect(clippy::disallowed_methods, reason = "a story measures from outside")]
async fn delivered(agent: &Agent, origin: &Origin, order_no: &str) -> Result<Duration> {
    let began = Instant::now();
    accepted(agent.api(), &sale(order_no)).await?;
    eventually(&format!("{order_no} is at its origin"), SOON, async || origin.holds(order_no).then_some(()))
        .await?;
    Ok(began.elapsed())
}

#[tokio::test]
async fn with_dns_dead_at_start_the_first_order_leaves_for_the_address_that_worked_before() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let dns = DnsServer::start(&[(HOST, Ipv4Addr::LOCALHOST)]).await?;
    let mut agent = Agent::setup().table(&table(&origin)?).config(&asking(&[&dns])).start().await?;
    delivered(&agent, &origin, "BEFORE").await?;
    let answer = resolve(&agent).await?;
    ensure!(answer["stale"] == false && answer["dns"]["answered_by"] == "direct", "{answer}");
    ensure!(answer["valid_for_s"].as_u64().is_some_and(|life| (1..=5).contains(&life)), "{answer}");
    let kept = agent.data().join("names.json");
    eventually("the address is kept", SOON, async || {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.contains(HOST)).then_some(())
    })
    .await?;

    agent.sigkill().await?;
    dns.fall_silent();
    agent.start().await?;
    let took = delivered(&agent, &origin, "AFTER").await?;
    println!("first order with DNS dead and an address that worked before: {} ms", took.as_millis());
    ensure!(took < Duration::from_secs(5), "{took:?}");
    let answer = resolve(&agent).await?;
    ensure!(answer["stale"] == true && answer["dns"]["answered_by"] == "stale", "{answer}");
    ensure!(answer["valid_for_s"].as_u64().is_some_and(|life| life <= 30), "{answer}");
    ensure!(answer["addresses"] == json!(["127.0.0.1"]), "{answer}");
    let status = agent.api().get_json("/v1/status").await?;
    let names = status["names"].as_array().context("the status lists the names in use")?;
    ensure!(names.iter().any(|name| name["name"] == HOST && name["answered_by"] == "stale"), "{names:?}");
    settled(&agent, 2, SOON).await
}

#[tokio::test]
async fn the_first_of_two_resolvers_may_be_dead_and_an_unknown_name_is_said_to_be_one() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let (dead, good) =
        (DnsServer::start(&[]).await?, DnsServer::start(&[(HOST, Ipv4Addr::LOCALHOST)]).await?);
    dead.fall_silent();
    let agent = Agent::setup().table(&table(&origin)?).config(&asking(&[&dead, &good])).start().await?;
    let took = delivered(&agent, &origin, "FIRST").await?;
    println!("first order with the first of two resolvers dead: {} ms", took.as_millis());
    let answer = resolve(&agent).await?;
    ensure!(answer["dns"]["answered_by"] == "direct" && answer["dns"]["host"] == HOST, "{answer}");

    let nothing = DnsServer::start(&[]).await?;
    let agent = Agent::setup().table(&table(&origin)?).config(&asking(&[&nothing])).start().await?;
    let answer = resolve(&agent).await?;
    ensure!(answer["addresses"] == json!([]) && answer.get("dns").is_none(), "{answer}");
    accepted(agent.api(), &sale("WAITS")).await?;
    let unreachable = eventually("the reason is told", SOON, async || {
        let conditions = agent.api().get_json("/v1/status").await.ok()?;
        conditions["origins"].to_string().contains("does not resolve").then_some(())
    });
    unreachable.await
}

/// With the system's own resolver, which waits five seconds for a dead server before it asks the next one. The system
/// knows DNS servers by address alone, so this story needs port 53 of two loopback addresses and a `resolv.conf` of its
/// own, which takes the rights of root; without them it says so and ends.
#[tokio::test]
async fn the_systems_first_resolver_may_be_dead_without_costing_the_five_seconds_that_it_waits() -> Result<()>
{
    let [a, b] = [fastrand::u8(1..250), fastrand::u8(1..250)];
    let at = |last: u8| (Ipv4Addr::new(127, 53 + a % 100, b, last), 53).into();
    let names = [(HOST, Ipv4Addr::LOCALHOST)];
    let servers = (DnsServer::start_at(at(1), &[]).await, DnsServer::start_at(at(2), &names).await);
    let (Ok(dead), Ok(good)) = servers else {
        eprintln!("skipped: port 53 cannot be used");
        return Ok(());
    };
    let origin = Origin::start("us-west").await?;
    let home = tempfile::tempdir()?;
    let of_the_system = home.path().join("resolv.conf");
    let mount = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", of_the_system.display());
    let private = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    let mut took = Vec::new();
    for (listed, silent) in [(vec![&good], false), (vec![&dead, &good], true)] {
        let lines: String =
            listed.iter().map(|server| format!("nameserver {}\n", server.address().ip())).collect();
        std::fs::write(&of_the_system, lines)?;
        let tried = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", &mount, "sh", "true"])
            .status();
        if !tried.is_ok_and(|status| status.success()) {
            eprintln!("skipped: /etc/resolv.conf cannot be another one for one program");
            return Ok(());
        }
        if silent {
            dead.fall_silent();
        }
        let mut agent = Agent::setup().table(&table(&origin)?).under(&private).prepare()?;
        agent.start().await?;
        took.push(delivered(&agent, &origin, &format!("WITH-{}", listed.len())).await?);
    }
    println!("first order with one good resolver: {:?}; with the first of two dead: {:?}", took[0], took[1]);
    ensure!(
        took[1] < took[0] + Duration::from_secs(3),
        "the system's own five seconds were waited for: {took:?}"
    );
    Ok(())
}
