//! Stories of a disk that is really full: the real agent, its data on a small file system of its own.
//!
//! Making a file system needs root; without it a story says that it proved nothing.

use anyhow::{Context, Result, bail, ensure};
use samovar_tests::{Agent, Origin, TableBuilder, eventually};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const AFTER_RETRY: Duration = Duration::from_secs(150);

/// A small file system; gone with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a file system of so many MiB on a new directory.
    fn at(directory: &Path, mib: u32) -> Result<Self> {
        std::fs::create_dir_all(directory).context("cannot make the directory")?;
        let size = format!("size={mib}m,mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "samovar-test"]).arg(directory).output();
        let mounted = mounted.context("cannot run mount")?;
        ensure!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        Ok(Self(directory.to_owned()))
    }

    fn free(&self) -> Result<u64> {
        let disk = rustix::fs::statvfs(&self.0).context("cannot ask for the free space")?;
        Ok(disk.f_bavail * disk.f_frsize)
    }

    /// Another program takes all that is left, to the last byte.
    fn fill(&self) -> Result<PathBuf> {
        self.fill_with("somebody-elses-file")
    }

    fn fill_with(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        let mut file = File::create(&path).context("cannot make the file")?;
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the agent may be ended only after this.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A till whose data are on a small disk; `None`, with the reason said, where that cannot be.
async fn till(table: &TableBuilder, mib: u32) -> Result<Option<(Agent, SmallDisk)>> {
    let mut agent = Agent::setup().table(table).set("origin.request_timeout_ms=2000").prepare()?;
    match SmallDisk::at(&agent.data(), mib) {
        Ok(disk) => {
            agent.start().await?;
            Ok(Some((agent, disk)))
        }
        Err(why) => {
            eprintln!(
                "SKIPPED: no small file system can be made ({why:#}), so nothing was proven about a full disk"
            );
            Ok(None)
        }
    }
}

fn sale(number: &str, size: usize) -> Value {
    json!({ "order_no": number, "placed_at": "2026-11-20T08:15:00.000Z", "note": "x".repeat(size) })
}

/// Hands in orders until one is refused; gives the numbers of those that were taken and the refusal.
async fn until_refused(agent: &Agent, prefix: &str, size: usize) -> Result<(Vec<String>, u16)> {
    let mut taken = Vec::new();
    for n in 0..20_000 {
        let number = format!("{prefix}-{n}");
        let answer = agent.api().place(&sale(&number, size)).await?;
        match answer.status {
            202 => taken.push(number),
            status => return Ok((taken, status)),
        }
    }
    bail!("a small disk took 20,000 orders")
}

async fn all_at(origin: &Origin, numbers: &[String]) -> Result<()> {
    eventually("all orders at the origin", AFTER_RETRY, async || {
        (origin.orders() >= numbers.len()).then_some(())
    })
    .await
    .with_context(|| format!("{} of {} orders are there", origin.orders(), numbers.len()))?;
    for number in numbers {
        ensure!(origin.holds(number), "{number} was acknowledged and is not at the origin");
    }
    ensure!(origin.orders() == numbers.len(), "{} orders at the origin", origin.orders());
    Ok(())
}

async fn settled(agent: &Agent, orders: usize) -> Result<()> {
    let waited = eventually("everything settled", AFTER_RETRY, async || {
        let summary = agent.api().summary().await.ok()?;
        (summary.settled == orders as u64 && summary.pending == 0).then_some(())
    });
    match waited.await {
        Ok(()) => Ok(()),
        Err(error) => {
            Err(error.context(format!("{:?}\n{}", agent.api().summary().await, agent.last_words())))
        }
    }
}

#[tokio::test]
async fn a_small_disk_is_full_of_orders_before_it_is_full_and_all_of_them_arrive() -> Result<()> {
    let mut origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    origin.stop().await;
    let Some((agent, disk)) = till(&table, 24).await? else { return Ok(()) };
    let (taken, status) = until_refused(&agent, "F", 20_000).await?;
    println!("{} orders of 20 kB on 24 MiB, then {status}; {} bytes free", taken.len(), disk.free()?);
    assert_eq!(status, 507);
    assert!(disk.free()? > 256 * 1024, "507 came too late: {} bytes are free", disk.free()?);
    assert!(taken.len() > 100, "only {} orders fit", taken.len());
    origin.restart().await?;
    all_at(&origin, &taken).await?;
    settled(&agent, taken.len()).await
}

#[tokio::test]
async fn a_disk_that_others_fill_to_the_last_byte_loses_nothing_and_heals() -> Result<()> {
    let mut origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    origin.stop().await;
    let Some((mut agent, disk)) = till(&table, 32).await? else { return Ok(()) };
    let mut taken = Vec::new();
    for n in 0..40 {
        let number = format!("B-{n}");
        let answer = agent.api().place(&sale(&number, 2_000)).await?;
        ensure!(answer.status == 202, "{number}: {}", answer.status);
        taken.push(number);
    }
    let filler = disk.fill()?;
    // What is answered "taken" now must be there in the end like all the rest.
    for n in 0..200 {
        let number = format!("C-{n}");
        match agent.api().place(&sale(&number, 2_000)).await?.status {
            202 => taken.push(number),
            503 | 507 => break,
            other => bail!("{number}: {other}"),
        }
    }
    println!("{} of them on a disk without a free byte", taken.len() - 40);
    let refused = agent.api().place(&sale("last", 2_000)).await?;
    assert!([503, 507].contains(&refused.status), "{}", refused.status);
    // The origin comes back. What can be delivered on a full disk is delivered, and nothing is given up.
    origin.restart().await?;
    let summary = agent.api().summary().await?;
    assert_eq!((summary.quarantined, summary.discarded), (0, 0), "{summary:?}");
    agent.sigkill().await?;
    agent.start().await.context("it does not start on a full disk")?;
    std::fs::remove_file(&filler).context("cannot free the space")?;
    all_at(&origin, &taken).await?;
    settled(&agent, taken.len()).await?;
    let again = agent.api().place(&sale("last", 2_000)).await?;
    assert_eq!(again.status, 202, "{}", again.json());
    Ok(())
}

/// The power goes while the disk is full, and comes back: what was accepted is delivered all the same.
#[tokio::test]
async fn an_agent_that_starts_on_a_full_disk_delivers_what_was_accepted() -> Result<()> {
    let mut origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    origin.stop().await;
    let Some((mut agent, disk)) = till(&table, 32).await? else { return Ok(()) };
    let mut taken = Vec::new();
    for n in 0..100 {
        let number = format!("S-{n}");
        let answer = agent.api().place(&sale(&number, 2_000)).await?;
        ensure!(answer.status == 202, "{number}: {}", answer.status);
        taken.push(number);
    }
    let ballast = agent.data().join("orders.ballast");
    eventually("the ballast", SOON, async || ballast.exists().then_some(())).await?;
    agent.sigkill().await?;
    disk.fill()?;
    agent.start().await.context("it does not start on a full disk")?;
    origin.restart().await?;
    all_at(&origin, &taken).await?;
    settled(&agent, taken.len()).await?;
    // And once more, now that the ballast is gone.
    agent.sigkill().await?;
    disk.fill_with("one-more-file")?;
    agent.start().await.context("it does not start on a full disk without ballast")?;
    settled(&agent, taken.len()).await
}

/// The disk is full while the agent runs, and has room again: no restart is needed.
#[tokio::test]
async fn an_agent_that_runs_on_a_full_disk_takes_orders_again_as_soon_as_there_is_room() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let Some((agent, disk)) = till(&table, 32).await? else { return Ok(()) };
    let filler = disk.fill()?;
    let mut taken = Vec::new();
    for n in 0..500 {
        let number = format!("H-{n}");
        match agent.api().place(&sale(&number, 20_000)).await?.status {
            202 => taken.push(number),
            503 | 507 => break,
            other => bail!("{number}: {other}"),
        }
    }
    OpenOptions::new().write(true).open(&filler)?.set_len(0).context("cannot free the space")?;
    let placed = eventually("an order taken", SOON, async || {
        (agent.api().place(&sale("room", 2_000)).await.ok()?.status == 202).then_some(())
    });
    placed.await.with_context(|| agent.last_words())?;
    taken.push("room".into());
    all_at(&origin, &taken).await?;
    settled(&agent, taken.len()).await
}
