//! An origin that is a process of its own, so that it can be killed: what it records it has on disk before it answers,
//! and a kill takes nothing of it back. With a seed it misbehaves; with a defect it is broken.

use anyhow::{Context, Result};
use clap::Parser;
use samovar_tests::origin::journal::Journal;
use samovar_tests::origin::{Defect, Mischief, Origin, Store};
use samovar_tests::soak::POISON;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Parser)]
struct Options {
    /// Its name in the route table.
    #[arg(long)]
    name: String,
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// What it has recorded, a line per order.
    #[arg(long)]
    records: PathBuf,
    /// Written when it is ready: its pid.
    #[arg(long)]
    announce: PathBuf,
    /// It misbehaves as this seed says.
    #[arg(long)]
    mischief: Option<u64>,
    /// It records twice what comes twice.
    #[arg(long)]
    forgets: bool,
    /// It answers "settled" for orders that it does not record.
    #[arg(long, conflicts_with = "forgets")]
    lies: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let (journal, entries) = Journal::open(&options.records)?;
    let defect = options.forgets.then_some(Defect::Forgets).or_else(|| options.lies.then_some(Defect::Lies));
    let store = Store::with_journal(journal, entries).with_defect(defect).refusing(POISON);
    let origin = Origin::start_with(&options.name, options.listen, store).await?;
    if let Some(seed) = options.mischief {
        origin.misbehave(Mischief::new(seed));
    }
    let ready = serde_json::json!({ "pid": std::process::id(), "address": origin.address() });
    std::fs::write(&options.announce, ready.to_string()).context("cannot say that it is ready")?;
    std::future::pending().await
}
