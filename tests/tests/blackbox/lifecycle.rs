//! Starting, stopping, dying and coming back.

use crate::shop::{AFTER_RETRY, SOON, accepted, exactly_these, place_many, sale, settled, shop, shop_with};
use anyhow::{Context, Result};
use samovar_tests::{Agent, Behaviour, Origin, TableBuilder, binaries, eventually};
use std::collections::BTreeSet;
use std::process::Output;
use std::time::Duration;
use tokio::process::Command;

#[tokio::test]
async fn a_killed_agent_comes_back_with_everything_it_accepted() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.stop().await;
    let mut keys = place_many(shop.agent.api(), "before", 200).await?;
    shop.agent.sigkill().await?;
    shop.agent.start().await?;
    let summary = shop.agent.api().summary().await?;
    assert_eq!((summary.accepted, summary.pending), (200, 200), "{summary:?}");
    keys.extend(place_many(shop.agent.api(), "after", 20).await?);
    let records = shop.agent.api().orders_in("pending").await?;
    let seqs: BTreeSet<_> = records.iter().filter_map(|record| record["seq"].as_u64()).collect();
    assert_eq!(seqs.len(), 220, "sequence numbers are never reused");
    shop.origin.restart().await?;
    settled(&shop.agent, 220, AFTER_RETRY).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn an_agent_killed_between_sending_and_hearing_doubles_nothing() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.always(Behaviour::CommitThenStall);
    let keys = place_many(shop.agent.api(), "K", 50).await?;
    eventually("the origin has some", SOON, async || (shop.origin.orders() > 0).then_some(())).await?;
    shop.agent.sigkill().await?;
    shop.origin.always(Behaviour::Honest);
    shop.agent.start().await?;
    settled(&shop.agent, 50, AFTER_RETRY).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn an_agent_killed_while_tills_sell_keeps_every_order_that_was_answered() -> Result<()> {
    let mut shop = shop().await?;
    let api = shop.agent.api().clone();
    let selling = tokio::spawn(async move {
        let mut answered = Vec::new();
        for n in 0.. {
            let number = format!("live-{n}");
            match api.place(&sale(&number)).await {
                Ok(answer) if answer.status == 202 => answered.push(number),
                _ => break,
            }
        }
        answered
    });
    eventually("some are settled", SOON, async || (shop.origin.orders() >= 30).then_some(())).await?;
    shop.agent.sigkill().await?;
    let answered = selling.await.context("the till broke")?;
    shop.agent.start().await?;
    eventually("all that was answered is at the origin", AFTER_RETRY, async || {
        answered.iter().all(|key| shop.origin.holds(key)).then_some(())
    })
    .await?;
    // The last order may have been accepted without its answer coming through; nothing else may be there.
    assert!(shop.origin.orders() <= answered.len() + 1);
    Ok(())
}

#[tokio::test]
async fn a_clean_stop_takes_less_than_two_seconds_and_keeps_work_in_hand() -> Result<()> {
    let mut shop = shop().await?;
    shop.origin.always(Behaviour::Stall);
    let keys = place_many(shop.agent.api(), "T", 50).await?;
    eventually("a batch is in flight", SOON, async || (shop.origin.request_count() > 0).then_some(()))
        .await?;
    let status = shop.agent.sigterm(Duration::from_secs(2)).await?;
    assert_eq!(status.code(), Some(0));
    shop.origin.always(Behaviour::Honest);
    shop.agent.start().await?;
    settled(&shop.agent, 50, AFTER_RETRY).await?;
    exactly_these(&shop.origin, &keys)
}

#[tokio::test]
async fn a_second_agent_on_the_same_data_ends_with_3_and_the_first_goes_on() -> Result<()> {
    let shop = shop().await?;
    let second = shop.agent.start_second().await?;
    assert_eq!(second.code(), Some(3));
    accepted(shop.agent.api(), &sale("A-1")).await?;
    settled(&shop.agent, 1, SOON).await
}

async fn run(agent: &Agent) -> Result<Output> {
    let mut command = agent.command()?;
    command.kill_on_drop(true);
    tokio::time::timeout(SOON, command.output()).await.context("the agent runs on")?.context("cannot run")
}

#[tokio::test]
async fn a_bad_configuration_ends_with_2_and_names_file_line_and_key() -> Result<()> {
    let cases = [
        ("[orders]\nmax_bites = 7\n", "max_bites"),
        ("[orders]\nmax_bytes = \"many\"\n", "max_bytes"),
        ("[teapots]\ncount = 1\n", "teapots"),
    ];
    for (toml, key) in cases {
        let agent = Agent::setup().config(toml).prepare()?;
        let text = std::fs::read_to_string(agent.config_file())?;
        let line = text.lines().position(|line| line.contains(key)).context("the key is there")? + 1;
        let output = run(&agent).await?;
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in ["agent.toml", key, &line.to_string()] {
            assert!(said.contains(part), "`{part}` is not in: {said}");
        }
        assert!(!agent.data().join("run.json").exists());
    }
    Ok(())
}

#[tokio::test]
async fn bad_usage_ends_with_2() -> Result<()> {
    for arguments in [vec!["run", "--nonsense"], vec!["dance"], vec!["run", "--set", "orders.max_bites=7"]] {
        let data = tempfile::tempdir()?;
        let mut command = Command::new(binaries::agent()?);
        command.args(&arguments).env("HOME", data.path()).current_dir(data.path()).kill_on_drop(true);
        if arguments[0] == "run" {
            command.arg("--data").arg(data.path().join("data"));
        }
        let output = tokio::time::timeout(SOON, command.output()).await.context("it runs on")??;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_ends_with_4() -> Result<()> {
    let agent = Agent::setup().prepare()?;
    // A file where the directory should be: also the administrator cannot write into it.
    std::fs::write(agent.data(), "not a directory")?;
    let output = run(&agent).await?;
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn the_command_line_finds_the_running_agent() -> Result<()> {
    let shop = shop().await?;
    accepted(shop.agent.api(), &sale("A-1")).await?;
    settled(&shop.agent, 1, SOON).await?;
    let cases: [(&[&str], &str); 3] =
        [(&["status"], "POS-US-0001"), (&["orders", "list"], "A-1"), (&["resolve", "orders"], "us-west")];
    for (arguments, expected) in cases {
        let mut command = Command::new(binaries::agent()?);
        command.args(arguments).arg("--data").arg(shop.agent.data()).arg("--json").kill_on_drop(true);
        let output = tokio::time::timeout(SOON, command.output()).await.context("it runs on")??;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(serde_json::from_str::<serde_json::Value>(&said).is_ok(), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn check_config_judges_without_starting() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let good = Agent::setup().table(&table).prepare()?;
    let bad = Agent::setup().config("[orders]\nmax_bites = 7\n").prepare()?;
    for (agent, code) in [(&good, 0), (&bad, 2)] {
        let mut command = Command::new(binaries::agent()?);
        command.arg("check-config").arg("--config").arg(agent.config_file());
        let output = tokio::time::timeout(SOON, command.output()).await.context("it runs on")??;
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[tokio::test]
async fn health_metrics_pages_and_the_description_of_the_api_are_there() -> Result<()> {
    let shop = shop_with(|setup| setup).await?;
    let api = shop.agent.api();
    for path in ["/healthz", "/readyz"] {
        assert!((200..300).contains(&api.get(path).await?.status), "{path}");
    }
    let metrics = api.get("/metrics").await?;
    assert!(metrics.status == 200 && String::from_utf8_lossy(&metrics.body).contains("# TYPE"), "metrics");
    for path in ["/"] {
        let page = api.get(path).await?;
        assert_eq!(page.status, 200, "{path}");
        assert!(page.header("content-type").starts_with("text/html"), "{path}");
    }
    let openapi = api.get_json("/v1/openapi.json").await?;
    assert!(openapi["openapi"].is_string() && openapi["paths"]["/v1/orders"].is_object());
    let status = api.get_json("/v1/status").await?;
    assert_eq!(status["identity"]["device"], "POS-US-0001", "{status}");
    Ok(())
}
