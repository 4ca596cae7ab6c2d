//! Figures: what a slice came to, medians over rounds, ratios, and whether the aims are met.

use crate::disk::Disk;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

/// How long each order took, and all of them together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Timings {
    latencies_us: Vec<u64>,
    orders_each: usize,
    total: Duration,
}

impl Timings {
    /// One latency for each answer, which concerned so many orders.
    pub(crate) fn new(latencies: Vec<Duration>, orders_each: usize, total: Duration) -> Self {
        let mut latencies_us: Vec<u64> = latencies
            .into_iter()
            .map(|latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX))
            .collect();
        latencies_us.sort_unstable();
        Self { latencies_us, orders_each, total }
    }

    pub(crate) const fn orders(&self) -> usize {
        self.latencies_us.len() * self.orders_each
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.orders() as f64 / self.total.as_secs_f64()
    }

    /// The latency that so many of a hundred do not exceed, in milliseconds.
    pub(crate) fn percentile_ms(&self, percent: usize) -> f64 {
        let rank = (self.latencies_us.len() * percent).div_ceil(100).saturating_sub(1);
        self.latencies_us.get(rank).map_or(f64::NAN, |us| *us as f64 / 1000.0)
    }
}

/// Who was measured doing what; the order of the variants is that of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// Writing and syncing the same bytes into a file.
    Append,
    /// SQLite with the ledger's pragmas and tables, one transaction for as many orders as there are clients.
    Sqlite,
    /// The agent.
    Agent,
    /// The agent with `orders.encrypt_bodies = false`.
    Unsealed,
    /// A plain HTTP client.
    Plain,
}

impl Who {
    const fn name(self) -> &'static str {
        match self {
            Self::Append => "write + fdatasync",
            Self::Sqlite => "SQLite group commit",
            Self::Agent => "agent",
            Self::Unsealed => "agent, bodies plain",
            Self::Plain => "plain HTTP client",
        }
    }
}

/// What is measured: the same in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slice {
    pub(crate) disk: Disk,
    /// `accept`, or the kind of origin that orders are drained to.
    pub(crate) what: &'static str,
    /// Clients at once; of a drain, 1.
    pub(crate) clients: usize,
    pub(crate) who: Who,
}

/// One figure of a slice in one round.
pub(crate) type Name = &'static str;

/// Everything that was measured.
pub(crate) struct Figures {
    file: std::fs::File,
    values: BTreeMap<(Slice, Name), Vec<f64>>,
    missed: usize,
}

impl Figures {
    /// Every round is written to this file as well.
    pub(crate) fn new(file: &Path) -> Result<Self> {
        let mut file =
            std::fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
        writeln!(file, "disk,what,clients,who,round,figure,value,load")?;
        Ok(Self { file, values: BTreeMap::new(), missed: 0 })
    }

    pub(crate) fn add(&mut self, slice: Slice, round: usize, figures: &[(Name, f64)]) -> Result<()> {
        for (name, value) in figures {
            let Slice { disk, what, clients, who } = slice;
            let load = load_average();
            writeln!(self.file, "{disk},{what},{clients},{},{round},{name},{value:.3},{load}", who.name())?;
            self.values.entry((slice, name)).or_default().push(*value);
        }
        Ok(())
    }

    pub(crate) fn add_timings(&mut self, slice: Slice, round: usize, timings: &Timings) -> Result<()> {
        let (p50, p99) = (timings.percentile_ms(50), timings.percentile_ms(99));
        self.add(slice, round, &[("orders/s", timings.per_second()), ("p50 ms", p50), ("p99 ms", p99)])
    }

    /// The median over the rounds.
    pub(crate) fn median(&self, slice: Slice, name: Name) -> Option<f64> {
        median(self.values.get(&(slice, name))?.clone())
    }

    /// The median of the ratios of each round: what a noisy machine did to both cancels out.
    pub(crate) fn ratio(&self, slice: Slice, to: Slice, name: Name) -> Option<f64> {
        let (ours, theirs) = (self.values.get(&(slice, name))?, self.values.get(&(to, name))?);
        median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect())
    }

    /// The table of the slices of one kind.
    pub(crate) fn print(&self, what: &str) {
        println!(
            "\n{what}\n{:8}{:>8}  {:22}{:>11}{:>10}{:>10}",
            "disk", "clients", "who", "orders/s", "p50 ms", "p99 ms"
        );
        let mut slices: Vec<Slice> =
            self.values.keys().map(|(slice, _)| *slice).filter(|slice| slice.what == what).collect();
        slices.dedup();
        for slice in slices {
            let figure = |name, digits: usize| {
                self.median(slice, name).map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
            };
            print!(
                "{:8}{:>8}  {:22}{:>11}",
                slice.disk,
                slice.clients,
                slice.who.name(),
                figure("orders/s", 0)
            );
            print!("{:>10}{:>10}", figure("p50 ms", 2), figure("p99 ms", 2));
            for name in ["agent us/order", "mean batch", "RSS MiB", "PSS MiB", "peak MiB"] {
                if let Some(value) = self.median(slice, name) {
                    print!("   {name} {value:.1}");
                }
            }
            println!();
        }
    }

    /// Says whether an aim is met; `None` means that it was not measured.
    pub(crate) fn aim(&mut self, what: &str, value: Option<f64>, met: impl FnOnce(f64) -> bool) {
        match value {
            None => println!("not measured   {what}"),
            Some(value) if met(value) => println!("met     {value:>6.2}  {what}"),
            Some(value) => {
                self.missed += 1;
                println!("MISSED  {value:>6.2}  {what}");
            }
        }
    }

    /// How many aims were missed.
    pub(crate) const fn missed(&self) -> usize {
        self.missed
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// The one-minute load average, so that a figure taken on a busy machine shows it.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}
