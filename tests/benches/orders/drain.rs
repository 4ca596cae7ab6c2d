//! Draining a backlog: an agent with all its orders pending meets an origin, beside a plain HTTP client that sends the
//! same orders in batches of the same sizes.
//!
//! The plain client is the same HTTP library with keep-alive and one batch in flight; it reads ready-made batches from
//! a plain file, and keeps no account of anything. The agent is begun anew for each round on a copy of the same data.

use crate::disk::{Disk, Place};
use crate::figures::{Figures, Slice, Who};
use crate::order::Order;
use crate::origin::{Kind, NAME, Origin, Seen};
use anyhow::{Context, Result, ensure};
use samovar_tests::local_api::http_client;
use samovar_tests::{Agent, LocalApi, TableBuilder, clock, eventually};
use samovar_wire::Timestamp;
use samovar_wire::orders::{BatchWriter, MAX_BATCH_ORDERS, OutgoingOrder};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(600);
/// How often the agent's memory is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What all rounds share.
pub(crate) struct Drain<'a> {
    place: &'a Place,
    table: TableBuilder,
    data: PathBuf,
    pending: usize,
}

impl<'a> Drain<'a> {
    /// Lets an agent accept so many orders that nobody takes.
    pub(crate) async fn prepare(place: &'a Place, pending: usize) -> Result<Self> {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let table = TableBuilder::new()?.origin(NAME, nobody);
        let mut agent = Agent::setup().table(&table).start().await?;
        let (mut order, run) = (Order::new(), fastrand::u32(..));
        for first in (0..pending).step_by(MAX_BATCH_ORDERS) {
            let mut body = br#"{"orders":["#.to_vec();
            for number in first..(first + MAX_BATCH_ORDERS).min(pending) {
                body.extend_from_slice(if number > first { br#",{"order":"# } else { br#"{"order":"# });
                body.extend_from_slice(order.numbered(run, 0, number));
                body.push(b'}');
            }
            body.extend_from_slice(b"]}");
            let answer = agent.api().post("/v1/orders:batch", body).await?;
            ensure!(answer.status == 207, "{} {}", answer.status, answer.json());
        }
        let summary = agent.api().summary().await?;
        ensure!(summary.pending == pending as u64, "{summary:?}");
        println!(
            "{pending} orders pending; the agent took them in with {:.1} MiB RSS, {:.1} MiB at most",
            mib(agent.resident_bytes()?),
            mib(agent.peak_bytes()?)
        );
        agent.sigterm(Duration::from_secs(20)).await?;
        let data = place.path("data");
        copy_directory(&agent.data(), &data)?;
        Ok(Self { place, table, data, pending })
    }

    /// One round on one disk with one kind of origin: the agent, then the plain client with the same batch sizes.
    pub(crate) async fn round(
        mut self,
        disk: Disk,
        kind: Kind,
        round: usize,
        figures: &mut Figures,
    ) -> Result<Self> {
        let slice = |who| Slice { disk, what: kind.what(), clients: 1, who };
        let origin = Origin::start(self.place, disk, kind)?;
        let endpoint = json!([{ "host": "127.0.0.1", "port": origin.address.port(), "addresses": ["127.0.0.1"],
            "basis_points": 10_000 }]);
        self.table = self.table.next_version().with(&format!("/origins/{NAME}/endpoints"), endpoint)?;
        let seen = self.agent(disk, &origin, slice(Who::Agent), round, figures).await?;
        drop(origin);
        let origin = Origin::start(self.place, disk, kind)?;
        let plain = plain(self.place, &origin, &seen).await?;
        figures.add(slice(Who::Plain), round, &[("orders/s", rate(&plain))])?;
        Ok(self)
    }

    async fn agent(
        &self,
        disk: Disk,
        origin: &Origin,
        slice: Slice,
        round: usize,
        figures: &mut Figures,
    ) -> Result<Seen> {
        let prefix = self.place.prefix(disk);
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        let mut agent = Agent::setup().table(&self.table).under(&prefix).prepare()?;
        copy_directory(&self.data, &agent.data())?;
        agent.start().await?;
        let api = LocalApi::new(&format!("http://{}", origin.address))?;
        let (resident, proportional) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let before = agent.processor_time()?;
        let started = clock::now();
        let seen = loop {
            resident.fetch_max(agent.resident_bytes()?, Ordering::Relaxed);
            proportional.fetch_max(agent.proportional_bytes()?, Ordering::Relaxed);
            let seen = origin.seen(&api).await?;
            if seen.orders >= self.pending {
                break seen;
            }
            ensure!(started.elapsed() < DEADLINE, "{} orders arrived: {}", seen.orders, agent.last_words());
            tokio::time::sleep(LOOK).await;
        };
        ensure!(seen.orders == self.pending, "{} orders arrived of {}", seen.orders, self.pending);
        let own = agent.processor_time()?.saturating_sub(before);
        eventually("everything is settled", DEADLINE, async || {
            (agent.api().summary().await.ok()?.settled == self.pending as u64).then_some(())
        })
        .await?;
        let memory = |bytes: &AtomicU64| mib(bytes.load(Ordering::Relaxed));
        figures.add(
            slice,
            round,
            &[
                ("orders/s", rate(&seen)),
                ("agent us/order", own.as_secs_f64() * 1e6 / self.pending as f64),
                ("RSS MiB", memory(&resident)),
                ("PSS MiB", memory(&proportional)),
                ("peak MiB", mib(agent.peak_bytes()?)),
                ("mean batch", self.pending as f64 / seen.batches.len() as f64),
            ],
        )?;
        Ok(seen)
    }
}

/// Sends ready-made batches of the sizes that the agent chose.
async fn plain(place: &Place, origin: &Origin, like: &Seen) -> Result<Seen> {
    let file = place.path("batches");
    let lengths = write_batches(&file, &like.batches)?;
    let url = format!("http://{}/v1/orders:batch", origin.address);
    let client = http_client(DEADLINE)?;
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (file, mut at) = (File::open(file)?, 0);
            for length in lengths {
                let mut body = vec![0; length];
                file.read_exact_at(&mut body, at)?;
                at += length as u64;
                let request = client.post(&url).header("content-type", "application/json").body(body);
                let answer = request.send().await?.error_for_status()?;
                answer.bytes().await?;
            }
            anyhow::Ok(())
        })
    })
    .await
    .context("the plain client died")??;
    let seen = origin.seen(&LocalApi::new(&format!("http://{}", origin.address))?).await?;
    ensure!(seen.orders == like.orders, "the plain client sent {} orders", seen.orders);
    Ok(seen)
}

fn write_batches(file: &Path, sizes: &[usize]) -> Result<Vec<usize>> {
    use std::io::Write as _;
    let (mut order, mut number) = (Order::new(), 0);
    let mut out = std::io::BufWriter::new(File::create(file)?);
    let mut lengths = Vec::with_capacity(sizes.len());
    for size in sizes {
        let mut writer = BatchWriter::new(&format!("{number:036}"));
        for _ in 0..*size {
            let body = order.numbered(0, 0, number);
            number += 1;
            let (id, key, sha256) =
                (format!("{number:036}"), format!("{number:024}"), format!("{number:064}"));
            let order = OutgoingOrder {
                id: &id,
                key: &key,
                sha256: &sha256,
                order_no: &key,
                seq: number as u64,
                udl: "US",
                accepted_at: Timestamp::from_millis(0),
            };
            writer.push(&order, body);
        }
        let bytes = writer.finish();
        out.write_all(&bytes)?;
        lengths.push(bytes.len());
    }
    out.flush()?;
    Ok(lengths)
}

fn rate(seen: &Seen) -> f64 {
    seen.orders as f64 / seen.time.as_secs_f64()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let to = to.join(entry.file_name());
        if kind.is_dir() {
            copy_directory(&entry.path(), &to)?;
        } else if kind.is_file() && entry.file_name() != "run.json" {
            std::fs::copy(entry.path(), to).context("cannot copy the agent's data")?;
        }
    }
    Ok(())
}
