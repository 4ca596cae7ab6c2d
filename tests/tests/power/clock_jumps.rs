//! Stories of a wall clock that jumps by a year and back, told to the real agent by libfaketime. The monotonic clock
//! is left alone, as it is on a device whose time is set.
//!
//! Without libfaketime a story says that it proved nothing.

use anyhow::{Context, Result, ensure};
use samovar_tests::{Agent, Origin, TableBuilder, eventually};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const AFTER_RETRY: Duration = Duration::from_secs(100);

fn library() -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let found = folders.iter().map(|folder| Path::new(folder).join("faketime/libfaketime.so.1"));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: libfaketime is not installed, so nothing was proven about clocks that jump");
    }
    found
}

/// A till with a clock of its own.
struct Till {
    agent: Agent,
    clock: PathBuf,
    _directory: tempfile::TempDir,
}

impl Till {
    async fn start(table: &TableBuilder, library: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let clock = directory.path().join("clock");
        std::fs::write(&clock, "+0").context("cannot set the clock")?;
        let preload = format!("LD_PRELOAD={}", library.display());
        let file = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
        let under = ["env", &preload, &file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
        let agent = Agent::setup().table(table).under(&under).start().await?;
        Ok(Self { agent, clock, _directory: directory })
    }

    /// Sets the clock: `+1y`, `-1y`, `+0`.
    fn jump(&self, to: &str) -> Result<()> {
        let new = self.clock.with_extension("new");
        std::fs::write(&new, to).context("cannot set the clock")?;
        std::fs::rename(&new, &self.clock).context("cannot set the clock")
    }

    /// When the journal was last moved into the ledger, by the system's own clock.
    fn moved(&self) -> Result<SystemTime> {
        Ok(std::fs::metadata(self.agent.data().join("orders.db"))?.modified()?)
    }

    async fn settled(&self, orders: usize) -> Result<()> {
        let waited = eventually("everything settled", AFTER_RETRY, async || {
            let summary = self.agent.api().summary().await.ok()?;
            (summary.settled == orders as u64 && summary.pending == 0).then_some(())
        });
        match waited.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(format!("{:?}", self.agent.api().summary().await))),
        }
    }
}

fn sale(number: &str) -> Value {
    json!({ "order_no": number, "placed_at": "2026-11-20T08:15:00.000Z" })
}

#[tokio::test]
async fn a_clock_that_jumps_by_a_year_and_back_loses_strands_and_repeats_nothing() -> Result<()> {
    let Some(library) = library() else { return Ok(()) };
    let mut origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let till = Till::start(&table, &library).await?;
    let mut orders = 0;
    for (round, to) in ["+0", "+1y", "-1y", "+1y", "+0", "-1y", "+0"].into_iter().enumerate() {
        // Some jumps come while the line is cut and what waits must go out under another time.
        let cut = round % 2 == 1;
        if cut {
            origin.stop().await;
        }
        till.jump(to)?;
        let mut years = Vec::new();
        for n in 0..12 {
            let answer = till.agent.api().place(&sale(&format!("J-{round}-{n}"))).await?;
            ensure!(answer.status == 202, "{to}: {}", answer.status);
            years.push(answer.text("accepted_at")[..4].parse::<i32>()?);
            orders += 1;
        }
        println!("clock {to}: accepted in {}", years[0]);
        // The jump is seen, or this story tells nothing.
        ensure!(to == "+0" || years[0] != 2026 || years[11] != 2026, "the clock did not jump: {years:?}");
        if cut {
            till.jump("+0")?;
            origin.restart().await?;
        }
        till.settled(orders).await?;
    }
    ensure!(origin.orders() == orders, "{} of {orders} orders are at the origin", origin.orders());
    for (round, n) in (0..7).flat_map(|round| (0..12).map(move |n| (round, n))) {
        let again = till.agent.api().place(&sale(&format!("J-{round}-{n}"))).await?;
        ensure!(again.status == 200, "a repeat of J-{round}-{n}: {}", again.status);
    }
    Ok(())
}

/// What is kept for 180 days is not old because a clock says so for a few minutes.
#[tokio::test]
async fn a_clock_that_is_a_year_ahead_for_a_while_makes_no_key_forgotten() -> Result<()> {
    let Some(library) = library() else { return Ok(()) };
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let mut till = Till::start(&table, &library).await?;
    for n in 0..5 {
        let answer = till.agent.api().place(&sale(&format!("R-{n}"))).await?;
        ensure!(answer.status == 202, "{}", answer.status);
    }
    till.settled(5).await?;
    till.jump("+1y")?;
    // An agent that starts looks for what may be let go before it moves its journal.
    till.agent.sigkill().await?;
    till.agent.start().await?;
    let before = till.moved()?;
    let answer = till.agent.api().place(&sale("R-later")).await?;
    ensure!(answer.status == 202, "{}", answer.status);
    till.settled(6).await?;
    let moved =
        eventually("the journal moved", AFTER_RETRY, async || (till.moved().ok()? > before).then_some(()));
    moved.await?;
    till.jump("+0")?;
    for n in 0..5 {
        let number = format!("R-{n}");
        let again = till.agent.api().place(&sale(&number)).await?;
        ensure!(again.status == 200, "{number} was handed in again and taken as new");
        let record = till.agent.api().order(&number).await?;
        ensure!(record["state"] == "settled" && record["body_redacted"] == true, "{record}");
    }
    Ok(())
}

/// A board without a battery wakes up long ago; what is settled then was settled no earlier than what was noted before.
#[tokio::test]
async fn what_is_settled_while_the_clock_stands_long_ago_is_remembered_when_it_is_right() -> Result<()> {
    let Some(library) = library() else { return Ok(()) };
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let mut till = Till::start(&table, &library).await?;
    ensure!(till.agent.api().place(&sale("B-0")).await?.status == 202);
    till.settled(1).await?;
    till.agent.sigkill().await?;
    till.jump("-50y")?;
    till.agent.start().await?;
    for n in 1..6 {
        let answer = till.agent.api().place(&sale(&format!("B-{n}"))).await?;
        ensure!(
            answer.status == 202 && answer.text("accepted_at").as_str() < "2000",
            "{} {}",
            answer.status,
            answer.json()
        );
    }
    till.settled(6).await?;
    till.agent.sigkill().await?;
    till.jump("+0")?;
    till.agent.start().await?;
    // An agent that starts looks for what may be let go before it moves its journal.
    let before = till.moved()?;
    ensure!(till.agent.api().place(&sale("B-later")).await?.status == 202);
    till.settled(7).await?;
    let moved =
        eventually("the journal moved", AFTER_RETRY, async || (till.moved().ok()? > before).then_some(()));
    moved.await?;
    for n in 0..6 {
        let again = till.agent.api().place(&sale(&format!("B-{n}"))).await?;
        ensure!(again.status == 200, "B-{n} was handed in again and taken as new");
    }
    Ok(())
}
