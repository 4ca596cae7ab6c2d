//! A child process that cannot outlive its story: killed when dropped, its words kept in a file.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a killed process may take to be gone.
const REAP: Duration = Duration::from_secs(10);

/// A running child.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it says goes to `log`.
    ///
    /// # Errors
    /// When the program cannot be started or the log cannot be opened.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let err = out.try_clone().context("cannot share the log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Its process id; `None` once it has ended and was waited for.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.with_context(|| format!("{} is not running", self.name))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it is still running at the deadline.
    pub async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        match timeout(deadline, self.child.wait()).await {
            Ok(status) => status.with_context(|| format!("cannot wait for {}", self.name)),
            Err(_) => bail!("{} still runs after {} ms", self.name, deadline.as_millis()),
        }
    }

    /// Ends it without warning, as a power cut would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn sigkill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(REAP).await.map(drop)
    }

    /// The last lines it said.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Resident memory in bytes, from `/proc`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.pid().with_context(|| format!("{} is not running", self.name))?;
        resident_bytes(pid)
    }
}

/// Resident memory of a process in bytes, from `/proc`.
///
/// # Errors
/// When the process is gone.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The most resident memory a process ever had, in bytes.
///
/// # Errors
/// When the process is gone.
pub fn peak_bytes(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// The part of a process's resident memory that is its program and other files, in bytes.
///
/// # Errors
/// When the process is gone.
pub fn program_bytes(pid: u32) -> Result<u64> {
    memory(pid, "RssFile:")
}

/// Resident memory of a process without the share that others have in its pages, in bytes.
///
/// # Errors
/// When the process is gone, or is somebody else's.
pub fn proportional_bytes(pid: u32) -> Result<u64> {
    kib_of(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Processor time that a process has used so far.
///
/// # Errors
/// When the process is gone.
pub fn processor_time(pid: u32) -> Result<Duration> {
    /// What `/proc` counts in, whatever the kernel's own clock.
    const TICKS_PER_SECOND: u64 = 100;
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / TICKS_PER_SECOND))
}

fn memory(pid: u32, field: &str) -> Result<u64> {
    kib_of(&format!("/proc/{pid}/status"), field)
}

fn kib_of(path: &str, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .with_context(|| format!("{path} has no {field}"))?;
    Ok(kib * 1024)
}

/// Lets this process and its children hold as many open files as the system allows; gives that number.
///
/// # Errors
/// When the limit cannot be raised.
pub fn raise_open_files() -> Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the number of open files")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Waits for the file in which a program says where it listens (`run.json`), written by the process given.
///
/// # Errors
/// When the process ends first, or the file has not come by the deadline.
pub async fn announced(process: &mut Process, file: &Path, deadline: Duration) -> Result<serde_json::Value> {
    let started = crate::clock::now();
    let pid = process.pid();
    loop {
        if let Some(status) = process.ended() {
            bail!("{} ended with {status} before it was ready:\n{}", process.name, process.last_words());
        }
        if let Some(run) = read_announcement(file, pid) {
            return Ok(run);
        }
        if started.elapsed() > deadline {
            let words = process.last_words();
            bail!("{} wrote no {} within {} s:\n{words}", process.name, file.display(), deadline.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A file left by an earlier process does not count; a process may run under another one (strace), so that only
/// "older than this start" is told by the pid being alive.
fn read_announcement(file: &Path, pid: Option<u32>) -> Option<serde_json::Value> {
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let announced = run.get("pid")?.as_u64()?;
    let own = pid.is_some_and(|pid| u64::from(pid) == announced);
    let child = || {
        let stat = std::fs::read_to_string(format!("/proc/{announced}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (Some(parent) == pid).then_some(())
    };
    (own || child().is_some()).then_some(run)
}
