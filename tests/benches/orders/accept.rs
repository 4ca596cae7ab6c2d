//! Accepting: 1 to 256 tills against one agent, beside the same bytes written without it. Nobody takes the orders.

use crate::disk::{Disk, Place};
use crate::figures::{Figures, Slice, Who};
use crate::load;
use crate::reference::{self, Job};
use anyhow::{Context, Result, ensure};
use samovar_tests::agent::Setup;
use samovar_tests::{Agent, Origin, TableBuilder};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tills at once.
pub(crate) const TILLS: [usize; 4] = [1, 8, 64, 256];
/// Tills with which sealed bodies are compared with plain ones.
pub(crate) const SEALING_TILLS: usize = 64;
/// How long one slice lasts.
const SLICE: Duration = Duration::from_millis(1500);
const WARM: Duration = Duration::from_millis(500);
const STOP: Duration = Duration::from_secs(20);

/// What all rounds share.
pub(crate) struct Accept<'a> {
    place: &'a Place,
    table: TableBuilder,
    /// A ledger with one order in it.
    ledger: PathBuf,
    file: PathBuf,
}

impl<'a> Accept<'a> {
    pub(crate) async fn prepare(place: &'a Place) -> Result<Self> {
        let mut nobody = Origin::start("us-west").await?;
        let table = TableBuilder::new()?.origin("us-west", nobody.address());
        nobody.stop().await;
        let (ledger, file) = (place.path("template.db"), place.path("append"));
        reference::preallocate(&file)?;
        let mut agent = Agent::setup().table(&table).start().await?;
        let answer =
            agent.api().post("/v1/orders", crate::order::Order::new().numbered(0, 0, 0).to_vec()).await?;
        ensure!(answer.status == 202, "{} {}", answer.status, answer.json());
        agent.sigterm(STOP).await?;
        copy_ledger(&agent.data().join("orders.db"), &ledger)?;
        Ok(Self { place, table, ledger, file })
    }

    /// One round on one disk: for each number of tills the agent and its references, in turn.
    pub(crate) async fn round(&self, disk: Disk, round: usize, figures: &mut Figures) -> Result<()> {
        let sqlite = self.place.path("reference.db");
        copy_ledger(&self.ledger, &sqlite)?;
        let prefix = self.place.prefix(disk);
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        let agent = warm(Agent::setup().table(&self.table).under(&prefix)).await?;
        let plain = Agent::setup().table(&self.table).set("orders.encrypt_bodies=false");
        let unsealed = warm(plain.under(&prefix)).await?;
        for tills in TILLS {
            let mut turns = vec![Who::Append, Who::Sqlite, Who::Agent];
            turns.extend((tills == SEALING_TILLS).then_some(Who::Unsealed));
            let first = round % turns.len();
            turns.rotate_left(first);
            for who in turns {
                let slice = Slice { disk, what: "accept", clients: tills, who };
                let millis = u64::try_from(SLICE.as_millis()).unwrap_or(u64::MAX);
                let job = |file: &PathBuf| Job { file: file.clone(), batch: tills, millis };
                let timings = match who {
                    Who::Append => reference::run(self.place, disk, "append", &job(&self.file))?,
                    Who::Sqlite => reference::run(self.place, disk, "sqlite", &job(&sqlite))?,
                    who => {
                        let agent = if who == Who::Agent { &agent } else { &unsealed };
                        let address = address_of(agent)?;
                        let before = agent.processor_time()?;
                        let load = in_thread(move || load::run(address, tills, SLICE)).await?;
                        let own = agent.processor_time()?.saturating_sub(before);
                        let each = own.as_secs_f64() * 1e6 / load.timings.orders() as f64;
                        figures.add(slice, round, &[("agent us/order", each)])?;
                        load.timings
                    }
                };
                figures.add_timings(slice, round, &timings)?;
            }
        }
        // The library that slows syncs down must have been at work in the agent too.
        if disk == Disk::Slow {
            let one = Slice { disk, what: "accept", clients: 1, who: Who::Agent };
            let p50 = figures.median(one, "p50 ms").context("nothing was measured")?;
            ensure!(p50 >= 3.9, "an accept takes {p50} ms: the agent's syncs are not slowed down");
        }
        Ok(())
    }
}

/// Starts an agent and lets it take some orders in.
async fn warm(setup: Setup) -> Result<Agent> {
    let agent = setup.start().await?;
    let address = address_of(&agent)?;
    in_thread(move || load::run(address, 8, WARM)).await?;
    Ok(agent)
}

fn address_of(agent: &Agent) -> Result<SocketAddr> {
    Ok(agent.api().base().trim_start_matches("http://").parse()?)
}

/// The load blocks its thread; the runtime goes on.
async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("the load died")?
}

fn copy_ledger(from: &Path, to: &Path) -> Result<()> {
    for suffix in ["", "-wal"] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        match std::fs::remove_file(with(to)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if with(from).exists() {
            std::fs::copy(with(from), with(to)).context("cannot copy a ledger")?;
        }
    }
    Ok(())
}
