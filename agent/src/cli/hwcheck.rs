//! `samovar-agent hwcheck`: what this machine has, and whether its disk keeps what it is told to keep.
//!
//! A disk that answers a sync faster than flash can write has most likely only put the data into a cache that a power
//! cut empties; no setting of ours can help there, so the installer must know.

use super::ask::AskError;
use crate::clock::mono;
use clap::Args;
use samovar_drivers::ports::{self, Port};
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Syncs that are measured.
const SYNCS: usize = 50;
/// No flash and no disk writes faster than this; a controller with a battery does.
const SUSPICIOUS: Duration = Duration::from_micros(40);

/// Arguments of `hwcheck`.
#[derive(Debug, Args)]
pub(super) struct HwcheckArgs {
    /// The directory whose disk is measured
    #[arg(long, value_name = "DIR", default_value = super::DATA)]
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    ports: Vec<Port>,
    /// Median and slowest of the measured syncs.
    sync_median_us: u128,
    sync_slowest_us: u128,
    sync_suspicious: bool,
    warnings: Vec<String>,
}

pub(super) fn run(args: &HwcheckArgs) -> Result<String, AskError> {
    let mut warnings = Vec::new();
    let ports = ports::list().unwrap_or_else(|error| {
        warnings.push(error.to_string());
        Vec::new()
    });
    let times = measure(&args.data).map_err(|error| {
        AskError::Refused(format!("cannot measure the disk of {}: {error}", args.data.display()))
    })?;
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    let suspicious = median < SUSPICIOUS;
    if suspicious {
        warnings.push(format!(
            "a sync takes {} µs: the disk has a cache; make sure that it survives a power cut",
            median.as_micros()
        ));
    }
    let report = Report {
        ports,
        sync_median_us: median.as_micros(),
        sync_slowest_us: slowest.as_micros(),
        sync_suspicious: suspicious,
        warnings,
    };
    Ok(if args.json { serde_json::to_string_pretty(&report).unwrap_or_default() } else { show(&report) })
}

/// Writes and syncs a small file many times, as the ledger does; sorted times.
fn measure(directory: &Path) -> io::Result<Vec<Duration>> {
    let path = directory.join(format!("hwcheck-{}.tmp", std::process::id()));
    let mut file = std::fs::File::create_new(&path)?;
    let result = (|| {
        let mut times = Vec::with_capacity(SYNCS);
        for _ in 0..SYNCS {
            let start = mono();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            times.push(mono().0.saturating_sub(start.0));
        }
        times.sort_unstable();
        Ok(times)
    })();
    std::fs::remove_file(&path)?;
    result
}

fn show(report: &Report) -> String {
    let mut lines: Vec<String> = report
        .ports
        .iter()
        .map(|port| {
            let usb = port.usb.as_ref().map(|usb| {
                format!(
                    "{}:{} {} {}",
                    usb.vendor,
                    usb.product,
                    usb.serial.as_deref().unwrap_or("-"),
                    usb.name.as_deref().unwrap_or("-")
                )
            });
            format!("port       {} {}", port.path, usb.unwrap_or_default())
        })
        .collect();
    if lines.is_empty() {
        lines.push("port       none".into());
    }
    lines.push(format!(
        "disk sync  median {} µs, slowest {} µs",
        report.sync_median_us, report.sync_slowest_us
    ));
    lines.extend(report.warnings.iter().map(|warning| format!("warning    {warning}")));
    lines.join("\n")
}
