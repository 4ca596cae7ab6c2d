//! `cargo demo`: a day of one store with real parts, and the proof that nothing was lost and nothing came twice.
//!
//! ```text
//! build ──► fleet + two origins ──► activate POS, tea machine, queue screen ──► replay the day ──► drain ──► verdict
//!                                                        line cut ─┴─ POS killed ─┴─ POS back ─┴─ line back
//! ```
//!
//! Everything listens on loopback, on free ports, in temporary directories, and is gone when the demo ends.

mod build;
mod day;
mod replay;
mod screen;
mod stage;
mod verdict;

use anyhow::{Context, Result, bail};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::day::{Day, MAX_REPLAY};
use crate::screen::Screen;
use crate::stage::Stage;

/// A day of one store: fleet server, two origins, three devices, an outage in the rush hour, a power cut, and the
/// verdict. Exit code 0 only if nothing was lost and nothing came twice.
#[derive(Parser)]
#[command(name = "cargo demo")]
struct Arguments {
    /// Orders from a till's export (CSV), told as one day
    #[arg(long, value_name = "FILE")]
    orders: Option<PathBuf>,
    /// Seed of the generated day
    #[arg(long, default_value_t = 20_261_120)]
    seed: u64,
    /// How many times faster than life; as fast as fits into a minute unless given
    #[arg(long)]
    speed: Option<f64>,
    /// Keep everything running afterwards, to look around
    #[arg(long)]
    stay: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match tell(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn tell(arguments: &Arguments) -> Result<bool> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another crypto provider was there first");
    }
    let interrupted = tokio::signal::ctrl_c();
    tokio::select! {
        verdict = story(arguments) => verdict,
        pressed = interrupted => {
            pressed.context("cannot listen for Ctrl-C")?;
            // What was started ends when the story is dropped.
            println!("\ninterrupted: everything is being stopped");
            Ok(false)
        }
    }
}

async fn story(arguments: &Arguments) -> Result<bool> {
    let orders = match &arguments.orders {
        Some(file) => samovar_tests::csv::read(file)?,
        None => samovar_tests::generator::day(arguments.seed),
    };
    let day = Day::new(orders, arguments.speed);
    build::programs().await?;

    let started = samovar_tests::clock::now();
    let screen = Screen::new(day.orders.len() as u64);
    let mut stage = Stage::set(&screen).await?;
    screen.event(&match &arguments.orders {
        Some(file) => format!("{} orders of {}, told as one day", day.orders.len(), file.display()),
        None => format!("{} orders of a generated day (--seed {})", day.orders.len(), arguments.seed),
    });
    let chosen = if arguments.speed.is_some() { "as asked" } else { "faster than 100x to fit into a minute" };
    let (hours, seconds) = (day.hours(), day.replay().as_secs());
    screen.event(&format!("{hours:.1} h of orders in {seconds} s: {:.0}x, {chosen}", day.speed));

    let placed = replay::run(&day, &mut stage, &screen).await?;
    stage.drain(&screen, day.replay().max(MAX_REPLAY)).await;
    let verdict = verdict::judge(&placed, &stage).await?;
    screen.done();
    verdict.print(started.elapsed());
    if arguments.stay {
        stage.print_addresses()?;
        println!("everything keeps running: press Ctrl-C to end it");
        loop {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
    }
    Ok(verdict.clean())
}
