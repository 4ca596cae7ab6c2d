//! What an order costs: accepting it, and draining a backlog of them, beside the least that the same disk and the same
//! network allow.
//!
//! `cargo build --release -p samovar-agent && cargo bench -p samovar-tests --bench orders`
//!
//! Slices of agent and references take turns, round by round; ratios are taken within a round and their median is
//! printed. So a machine that is busy with something else slows both down alike. All rounds are written to a file.
//! The program fails when an aim is missed.

mod accept;
mod disk;
mod drain;
mod figures;
mod load;
mod order;
mod origin;
mod reference;

use accept::{Accept, SEALING_TILLS, TILLS};
use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use disk::{Disk, Place};
use drain::Drain;
use figures::{Figures, Slice, Who};
use origin::Kind;
use reference::Job;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measures accepting and draining orders.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds of accepting; draining takes a third of them, at least one
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Orders that are drained; 0 leaves draining out
    #[arg(long, default_value_t = 100_000)]
    pending: usize,
    /// Only this disk
    #[arg(long)]
    disk: Option<Disk>,
    /// What Cargo adds
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    child: Option<Child>,
}

/// What this program does when it started itself.
#[derive(Debug, Clone, Subcommand)]
enum Child {
    #[command(hide = true)]
    Append(Job),
    #[command(hide = true)]
    Sqlite(Job),
    #[command(hide = true)]
    Origin {
        #[arg(long)]
        file: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.child {
        Some(Child::Append(job)) => println!("{}", serde_json::to_string(&reference::append(job)?)?),
        Some(Child::Sqlite(job)) => println!("{}", serde_json::to_string(&reference::sqlite(job)?)?),
        Some(Child::Origin { file }) => origin::serve(file.as_ref())?,
        None => {
            let _ = rustls::crypto::ring::default_provider().install_default();
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
                .block_on(measure(&arguments))?;
        }
    }
    Ok(())
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let place = Place::new()?;
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("orders-bench.csv");
    let mut figures = Figures::new(&file)?;
    let disks: Vec<Disk> =
        place.disks().into_iter().filter(|disk| arguments.disk.is_none_or(|only| only == *disk)).collect();
    let load = figures::load_average();
    println!(
        "{} processors, load average {load}",
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    let null = load::null_server()?;
    let own = tokio::task::spawn_blocking(move || load::run(null, 64, Duration::from_secs(2))).await??;
    println!(
        "the generator with 64 tills and a server that does nothing: {:.0} orders/s, {:.1} us of a processor each",
        own.timings.per_second(),
        own.own_us
    );
    if arguments.rounds > 0 {
        let accept = Accept::prepare(&place).await?;
        for round in 0..arguments.rounds {
            for disk in &disks {
                accept.round(*disk, round, &mut figures).await?;
            }
        }
        figures.print("accept");
    }
    if arguments.pending > 0 {
        let mut drain = Drain::prepare(&place, arguments.pending).await?;
        for round in 0..arguments.rounds.div_ceil(3).max(1) {
            for disk in &disks {
                for kind in [Kind::Forgetful, Kind::Durable] {
                    drain = drain.round(*disk, kind, round, &mut figures).await?;
                }
            }
        }
        figures.print(Kind::Forgetful.what());
        figures.print(Kind::Durable.what());
    }
    ratios(&mut figures, &disks);
    println!("all rounds: {}", file.display());
    ensure!(figures.missed() == 0, "{} aims were missed", figures.missed());
    Ok(())
}

fn ratios(figures: &mut Figures, disks: &[Disk]) {
    println!("\nratios (medians of the rounds)");
    for disk in disks {
        let accept = |clients, who| Slice { disk: *disk, what: "accept", clients, who };
        for tills in TILLS {
            let rate = |who| figures.ratio(accept(tills, Who::Agent), accept(tills, who), "orders/s");
            if let (Some(append), Some(sqlite)) = (rate(Who::Append), rate(Who::Sqlite)) {
                println!(
                    "{disk:8}{tills:>4} tills: {sqlite:.2} of SQLite group commit, {append:.2} of write + fdatasync"
                );
            }
        }
        let sealing = |who| accept(SEALING_TILLS, who);
        if let Some(ratio) = figures.ratio(sealing(Who::Agent), sealing(Who::Unsealed), "orders/s") {
            println!("{disk:8}{SEALING_TILLS:>4} tills: {ratio:.2} of an agent that keeps bodies plain");
        }
        for kind in [Kind::Forgetful, Kind::Durable] {
            let drain = |who| Slice { disk: *disk, what: kind.what(), clients: 1, who };
            if let Some(ratio) = figures.ratio(drain(Who::Agent), drain(Who::Plain), "orders/s") {
                println!("{disk:8}{}: {ratio:.2} of the plain client", kind.what());
            }
        }
    }
    println!("\naims");
    let accept = |clients, who| Slice { disk: Disk::Slow, what: "accept", clients, who };
    let drain = |disk, who| Slice { disk, what: Kind::Durable.what(), clients: 1, who };
    let many = figures.ratio(accept(64, Who::Agent), accept(64, Who::Sqlite), "orders/s");
    figures.aim("4 ms syncs, 64 tills: orders/s of SQLite group commit (0.8 or more)", many, |r| r >= 0.8);
    let sealed = figures.ratio(accept(64, Who::Agent), accept(64, Who::Unsealed), "orders/s");
    figures.aim("4 ms syncs, 64 tills: orders/s of an agent with plain bodies (0.9 or more)", sealed, |r| {
        r >= 0.9
    });
    let one = figures.ratio(accept(1, Who::Agent), accept(1, Who::Append), "p99 ms");
    figures.aim("4 ms syncs, 1 till: p99 in p99s of write + fdatasync (3 or less)", one, |r| r <= 3.0);
    let drained = figures.ratio(drain(Disk::Slow, Who::Agent), drain(Disk::Slow, Who::Plain), "orders/s");
    figures.aim("4 ms syncs: drained orders/s of the plain client (0.6 or more)", drained, |r| r >= 0.6);
    for disk in disks {
        let memory = figures.median(drain(*disk, Who::Agent), "peak MiB");
        figures.aim(&format!("{disk}: MiB of the agent's memory while draining (under 40)"), memory, |m| {
            m < 40.0
        });
    }
}
