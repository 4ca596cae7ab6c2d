//! What the agent is compared with, each in a process of its own, so that slow syncs can be preloaded: writing and
//! syncing the bytes of the orders, and SQLite committing them in groups.
//!
//! SQLite works on a copy of a ledger that the agent made, with the agent's pragmas: the real table with its indexes.
//! Each row is a copy of an order that the agent accepted, under another id, key, number and digest. It moves its
//! journal into the file as often as the agent does.

use crate::disk::{Disk, Place};
use crate::figures::Timings;
use crate::order::{BYTES, Order, number_of};
use anyhow::{Context, Result, ensure};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use samovar_tests::clock;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Bytes of the file that is overwritten.
const FILE_BYTES: usize = 64 * 1024 * 1024;
/// As in the agent: bytes in the journal after which it is moved.
const CHECKPOINT_BYTES: i64 = 4 * 1024 * 1024;

/// What a process of its own does.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Job {
    /// The file.
    pub(crate) file: PathBuf,
    /// Orders in one sync.
    pub(crate) batch: usize,
    /// For so many milliseconds.
    pub(crate) millis: u64,
}

/// Runs a reference in a process of its own.
pub(crate) fn run(place: &Place, disk: Disk, name: &str, job: &Job) -> Result<Timings> {
    let output = child(place, disk)?
        .arg(name)
        .arg(&job.file)
        .args([job.batch.to_string(), job.millis.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run the reference")?;
    ensure!(output.status.success(), "the reference `{name}` failed");
    serde_json::from_slice(&output.stdout).context("the reference's figures cannot be read")
}

/// This program again, with the syncs of this disk.
pub(crate) fn child(place: &Place, disk: Disk) -> Result<Command> {
    let own = std::env::current_exe().context("cannot find the path of this program")?;
    let prefix = place.prefix(disk);
    Ok(match prefix.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(own);
            command
        }
        None => Command::new(own),
    })
}

/// Writes the file in full once, so that later writes only overwrite.
pub(crate) fn preallocate(file: &Path) -> Result<()> {
    std::fs::write(file, vec![b'.'; FILE_BYTES]).context("cannot write the file")?;
    File::open(file)?.sync_all().context("cannot sync the file")
}

/// The child: overwrites a file, one sync for each batch.
pub(crate) fn append(job: &Job) -> Result<Timings> {
    let file = File::options().write(true).open(&job.file).context("cannot open the file")?;
    let mut order = Order::new();
    let mut bytes = Vec::with_capacity(job.batch * BYTES);
    let mut at = 0;
    timed(job, |number| {
        bytes.clear();
        for till in 0..job.batch {
            bytes.extend_from_slice(order.numbered(0, till, number));
        }
        if at + bytes.len() > FILE_BYTES {
            at = 0;
        }
        file.write_all_at(&bytes, at as u64)?;
        at += bytes.len();
        file.sync_data()?;
        Ok(())
    })
}

/// The child: inserts orders into a ledger, one transaction for each batch.
pub(crate) fn sqlite(job: &Job) -> Result<Timings> {
    let mut connection = open(&job.file)?;
    let (columns, template) = row(&connection)?;
    let insert = format!(
        "INSERT INTO orders({}) VALUES({})",
        columns.join(","),
        (1..=columns.len()).map(|n| format!("?{n}")).collect::<Vec<_>>().join(",")
    );
    let page_bytes: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let mut random = fastrand::Rng::new();
    let run = random.u32(..);
    timed(job, |number| {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut statement = transaction.prepare_cached(&insert)?;
        for till in 0..job.batch {
            let place = (run, till, number);
            let values =
                columns.iter().zip(&template).map(|(name, value)| another(&mut random, place, name, value));
            statement.execute(rusqlite::params_from_iter(values))?;
        }
        drop(statement);
        transaction.commit()?;
        let unmoved: i64 = connection.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| {
            Ok(row.get::<_, i64>(1)?.saturating_sub(row.get(2)?) * page_bytes)
        })?;
        if unmoved > CHECKPOINT_BYTES {
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        }
        Ok(())
    })
}

fn open(file: &Path) -> Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{}?psow=0", file.display()), flags)?;
    connection.execute_batch(
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
         PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=8388608; PRAGMA cell_size_check=ON;
         PRAGMA trusted_schema=OFF; PRAGMA mmap_size=0; PRAGMA cache_size=-2048; PRAGMA temp_store=MEMORY;",
    )?;
    Ok(connection)
}

/// The columns of an order, less its place, and the values of the first one.
fn row(connection: &Connection) -> Result<(Vec<String>, Vec<Value>)> {
    let mut statement = connection.prepare("SELECT * FROM orders ORDER BY seq LIMIT 1")?;
    let columns: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
    let values: Vec<Value> =
        statement.query_row([], |row| (0..columns.len()).map(|at| row.get(at)).collect())?;
    Ok(columns.into_iter().zip(values).filter(|(name, _)| name != "seq").unzip())
}

/// What differs from order to order, of the same length and in the order in which the agent would write it: ids grow
/// with time, numbers with each till.
fn another(
    random: &mut fastrand::Rng,
    (run, till, number): (u32, usize, usize),
    name: &str,
    value: &Value,
) -> Value {
    match (name, value) {
        ("id", Value::Text(_)) => Value::Text(format!("{run:08x}-{number:012}-{till:014}")),
        ("key" | "order_no", Value::Text(_)) => Value::Text(number_of(run, till, number)),
        ("sha256", Value::Blob(bytes)) => {
            let mut bytes = bytes.clone();
            random.fill(&mut bytes);
            Value::Blob(bytes)
        }
        _ => value.clone(),
    }
}

fn timed(job: &Job, mut work: impl FnMut(usize) -> Result<()>) -> Result<Timings> {
    let (started, time) = (clock::now(), Duration::from_millis(job.millis));
    let mut latencies = Vec::new();
    while started.elapsed() < time {
        let begun = clock::now();
        work(latencies.len())?;
        latencies.push(begun.elapsed());
    }
    Ok(Timings::new(latencies, job.batch, started.elapsed()))
}
