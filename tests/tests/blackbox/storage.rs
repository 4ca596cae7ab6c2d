//! A disk that fails for a while (what the kernel was told to answer, by `strace`), and files of the ledger that somebody
//! takes away: while it is open, and between two starts.

use crate::shop::{SOON, condition, in_state, place_many, sale, sale_with, token};
use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use samovar_tests::{Agent, Behaviour, Origin, TableBuilder, binaries, eventually};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// Syncs that fail, of the thread that makes them.
const FAILING: &str = "inject=fdatasync:error=EIO:when=30..34";

#[tokio::test]
async fn after_a_failed_sync_everything_is_written_anew_before_the_next_order_is_acknowledged() -> Result<()>
{
    let strace = binaries::system("strace");
    let can = match &strace {
        Some(strace) => Command::new(strace)
            .args(["-f", "-o", "/dev/null", "-e", FAILING, "true"])
            .output()
            .await
            .is_ok_and(|output| output.status.success()),
        None => false,
    };
    if !can {
        eprintln!("SKIPPED: strace cannot make syncs fail here, so nothing was proven about failed syncs");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let trace = directory.path().join("trace");
    let mut nobody = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", nobody.address());
    nobody.stop().await;
    let calls = "trace=fdatasync,fsync,ftruncate,write,writev,sendto,sendmsg";
    let to = trace.to_str().context("a path that is text")?;
    let mut agent = Agent::setup()
        .table(&table)
        .under(&["strace", "-f", "-y", "-s", "40", "-e", calls, "-e", FAILING, "-o", to])
        .start()
        .await?;
    for n in 0..60 {
        let order = sale(&format!("A-{n}"));
        // A 5xx means unknown: the till repeats with the same key until it is told.
        eventually("the order is taken", SOON, async || {
            let answer = agent.api().place(&order).await.ok()?;
            match answer.status {
                200 | 202 => Some(()),
                _ => None,
            }
        })
        .await?;
    }
    condition(&agent, "storage-failing", false, SOON).await?;
    let summary = agent.api().get_json("/v1/orders:summary").await?;
    ensure!(summary["pending"] == 60, "{summary}");
    agent.sigterm(Duration::from_secs(10)).await?;
    let trace = std::fs::read_to_string(&trace)?;
    check(&trace)
}

/// Between the last sync that failed and the next answer "202", the main file was synced and the journal begun anew.
fn check(trace: &str) -> Result<()> {
    let failed = trace.lines().filter(|line| line.contains("EIO")).count();
    ensure!(failed > 0, "no sync failed, so nothing was shown");
    let (mut owed, mut synced, mut answers) = (false, false, 0);
    for line in trace.lines() {
        if line.contains("EIO") {
            (owed, synced) = (true, false);
        } else if line.contains("fdatasync(") && line.contains("/orders.db>") {
            synced = true;
        } else if line.contains("ftruncate(") && line.contains("/orders.db-wal>") && synced {
            owed = false;
        } else if line.contains("HTTP/1.1 202") {
            answers += 1;
            ensure!(!owed, "answer {answers} went out before everything was written anew");
        }
    }
    ensure!(answers > 0, "no answers in the trace");
    Ok(())
}

/// A till whose origin is away, so that every order stays in its ledger.
async fn lonely() -> Result<Agent> {
    let mut nobody = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", nobody.address());
    nobody.stop().await;
    Agent::setup().table(&table).start().await
}

/// So many tills, each handing in orders until it is told, while something happens to the data directory; then the
/// power is cut.
async fn open_while(what: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    const TILLS: usize = 8;
    const ORDERS: usize = 60;
    let mut agent = lonely().await?;
    place_many(agent.api(), "early", 40).await?;
    let (api, data) = (agent.api(), agent.data());
    let till = async |till: usize| {
        for n in 0..ORDERS {
            if till == 0 && n == ORDERS / 3 {
                what(&data)?;
            }
            let order = sale(&format!("till-{till}-{n}"));
            let answer = api.place_until_answered(&order, SOON).await?;
            ensure!(matches!(answer.status, 200 | 202), "{} {}", answer.status, answer.json());
        }
        Ok(())
    };
    try_join_all((0..TILLS).map(till)).await?;
    condition(&agent, "ledger-rescued", true, SOON).await?;
    condition(&agent, "storage-failing", false, SOON).await?;
    agent.sigkill().await?;
    agent.start().await?;
    eventually("every acknowledged order is there", SOON, async || {
        let summary = agent.api().summary().await.ok()?;
        (summary.pending == (40 + TILLS * ORDERS) as u64).then_some(())
    })
    .await?;
    let conditions = agent.api().conditions().await?;
    ensure!(!conditions.contains_key("ledger-doubt"), "{conditions:?}");
    Ok(())
}

#[tokio::test]
async fn a_ledger_removed_under_load_comes_back_and_no_acknowledged_order_is_lost() -> Result<()> {
    open_while(|data| std::fs::remove_file(data.join("orders.db"))).await
}

#[tokio::test]
async fn a_journal_removed_under_load_costs_no_acknowledged_order() -> Result<()> {
    open_while(|data| std::fs::remove_file(data.join("orders.db-wal"))).await
}

#[tokio::test]
async fn a_ledger_replaced_under_load_by_an_older_copy_stays_the_newer_one() -> Result<()> {
    open_while(|data| {
        std::fs::copy(data.join("orders.db"), data.join("older"))?;
        std::fs::rename(data.join("older"), data.join("orders.db"))
    })
    .await
}

/// The highest place and the number of orders.
async fn extent(agent: &Agent) -> Result<(u64, u64)> {
    let orders = agent.api().orders_in("pending").await?;
    let highest = orders.iter().filter_map(|order| order["seq"].as_u64()).max().context("an order")?;
    Ok((highest, orders.len() as u64))
}

/// After a kill and something done to the data directory, the agent says that orders may be missing, keeps what is there,
/// and gives no place again.
async fn doubted(between: impl Fn(&Path, &Path) -> std::io::Result<()>) -> Result<()> {
    let mut agent = lonely().await?;
    place_many(agent.api(), "first", 30).await?;
    // A copy of the main file once the first orders are in it.
    let (data, copy) = (agent.data(), agent.home().join("older"));
    eventually("the journal was moved", SOON, async || {
        std::fs::copy(data.join("orders.db"), &copy).ok()?;
        let content = std::fs::read(&copy).ok()?;
        content.windows(10).any(|window| window == b"first-0030").then_some(())
    })
    .await?;
    let ledger = std::fs::read_to_string(data.join("orders.id"))?;
    place_many(agent.api(), "second", 30).await?;
    let (highest, _) = extent(&agent).await?;
    agent.sigkill().await?;
    between(&data, &copy)?;
    agent.start().await?;
    condition(&agent, "ledger-doubt", true, SOON).await?;
    ensure!(std::fs::read_to_string(data.join("orders.id"))? != ledger, "places of the old ledger go on");
    place_many(agent.api(), "third", 5).await?;
    let (new, orders) = extent(&agent).await?;
    ensure!(new > highest && orders >= 35, "{new} after {highest}, {orders} orders");
    // The tills hand in what they sold, and what is missing is there again.
    for n in 1..=30 {
        let order = sale(&format!("second-{n:04}"));
        let answer = agent.api().place(&order).await?;
        ensure!(matches!(answer.status, 200 | 202), "{} {}", answer.status, answer.json());
    }
    ensure!(extent(&agent).await?.1 == 65, "{:?}", extent(&agent).await?);
    Ok(())
}

#[tokio::test]
async fn a_journal_that_is_gone_after_a_kill_is_told_and_no_place_is_given_twice() -> Result<()> {
    doubted(|data, _| std::fs::remove_file(data.join("orders.db-wal"))).await
}

#[tokio::test]
async fn an_older_copy_of_the_ledger_put_in_its_place_is_told_and_no_place_is_given_twice() -> Result<()> {
    doubted(|data, copy| {
        std::fs::remove_file(data.join("orders.db-wal"))?;
        std::fs::copy(copy, data.join("orders.db")).map(drop)
    })
    .await
}

#[tokio::test]
async fn what_an_origin_quotes_of_an_order_is_neither_shown_nor_kept() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let agent = Agent::setup().table(&table).start().await?;
    origin.always(Behaviour::QuoteOrdersWith("Zhang Xiaoming"));
    let guest = json!({ "guest": { "name": "Zhang Xiaoming" } });
    agent.api().place(&sale_with("P-1", &guest)).await?;
    let record = in_state(&agent, "P-1", "quarantined", SOON).await?;
    ensure!(record["last_error"] == "guest … is not served", "{record}");
    let bearer = token(&agent)?;
    let client = samovar_tests::local_api::http_client(SOON)?;
    let shown = client
        .get(format!("{}/v1/orders/P-1", agent.api().base()))
        .header("authorization", bearer)
        .send()
        .await?;
    let shown = shown.text().await?;
    ensure!(shown.matches("Xiaoming").count() == 1, "in the body alone: {shown}");
    for entry in std::fs::read_dir(agent.data())? {
        let path = entry?.path();
        if path.is_file() {
            let content = std::fs::read(&path)?;
            ensure!(!content.windows(8).any(|window| window == b"Xiaoming"), "plain in {}", path.display());
        }
    }
    Ok(())
}
