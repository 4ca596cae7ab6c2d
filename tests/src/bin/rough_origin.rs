//! An origin that is a process of its own, so that it can be killed: what it records it has on disk before it answers,
//! and a kill takes nothing of it back. With a seed it misbehaves; with a defect it is broken.

use anyhow::{Context, Result};
use clap::Parser;
use samovar_tests::origin::journal::Journal;
use samovar_tests::origin::{Defect, Mischief, Origin, Store};
use samovar_tests::soak::POISON;
use samovar_tests::tls;
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
    /// A directory with `cert.pem` and `key.pem`: it speaks TLS.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// It is no origin at all: whatever comes, on whatever port of these besides, is sent to a sign-in page.
    #[arg(long)]
    sign_in_page: Option<u16>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(port) = options.sign_in_page {
        let addresses = [options.listen, SocketAddr::new(options.listen.ip(), port)];
        let listening = tls::listen_at(&addresses).await?;
        announce(&options, options.listen)?;
        return tls::sign_in_page(listening).await;
    }
    let (journal, entries) = Journal::open(&options.records)?;
    let defect = options.forgets.then_some(Defect::Forgets).or_else(|| options.lies.then_some(Defect::Lies));
    let store = Store::with_journal(journal, entries).with_defect(defect).refusing(POISON);
    let inside = match options.tls {
        Some(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
        None => options.listen,
    };
    let origin = Origin::start_with(&options.name, inside, store).await?;
    if let Some(seed) = options.mischief {
        origin.misbehave(Mischief::new(seed));
    }
    let Some(files) = &options.tls else {
        announce(&options, origin.address())?;
        return std::future::pending().await;
    };
    let front = tls::Front::open(files, options.listen).await?;
    announce(&options, options.listen)?;
    front.serve(origin.address()).await
}

fn announce(options: &Options, address: SocketAddr) -> Result<()> {
    let ready = serde_json::json!({ "pid": std::process::id(), "address": address });
    std::fs::write(&options.announce, ready.to_string()).context("cannot say that it is ready")
}
