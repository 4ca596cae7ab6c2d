//! A disk that fails for a while: what the kernel was told to answer, by `strace`.

use crate::shop::{SOON, condition, sale};
use anyhow::{Context, Result, ensure};
use samovar_tests::{Agent, Origin, TableBuilder, binaries, eventually};
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
