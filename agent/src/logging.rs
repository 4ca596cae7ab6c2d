//! The agent's own logs: lines on standard output, JSON in files with a size budget.
//!
//! What strangers wrote into a value cannot steer the terminal that shows a line, nor forge one.
//!
//! Files are `DIR/logs/agent.jsonl` and its predecessors `agent.1.jsonl` … `agent.7.jsonl`; together they stay within
//! `logs.max_bytes`. Writing happens on a thread of its own; when the disk cannot follow, the newest lines are
//! dropped and counted rather than anything waiting for a log.

use crate::config::LogsSection;
use samovar_wire::plain;
use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// Files that share the budget.
const FILES: u64 = 8;
/// Lines that may wait for the disk.
const QUEUE_LINES: usize = 4_096;

/// Logs cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write logs in {path}")]
pub struct LoggingError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Starts logging. What is in the queue is written when the guard is dropped.
///
/// # Errors
/// When the directory cannot be written.
pub fn start(data: &Path, settings: &LogsSection) -> Result<WorkerGuard, LoggingError> {
    let directory = data.join("logs");
    let failed = |source| LoggingError { path: directory.clone(), source };
    fs::create_dir_all(&directory).map_err(failed)?;
    let files = SizedFiles::open(&directory, settings.max_bytes / FILES).map_err(failed)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE_LINES)
        .lossy(true)
        .thread_name("logs")
        .finish(files);
    // The level was checked with the configuration.
    let filter = || EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt::layer()
        .with_ansi(io::stdout().is_terminal())
        .with_target(false)
        .with_writer(|| Harmless { to: io::stdout(), harmless: plain::log_line })
        .with_filter(filter());
    let json = fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(move || Harmless { to: writer.clone(), harmless: plain::json })
        .with_filter(filter());
    // A second start in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(lines).with(json).try_init();
    Ok(guard)
}

/// Writes whole lines in a form that can be shown on any terminal.
struct Harmless<W> {
    to: W,
    harmless: fn(&str) -> Cow<'_, str>,
}

impl<W: Write> Write for Harmless<W> {
    // The subscriber hands over each event in one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.to.write_all((self.harmless)(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A file that makes room for itself: when it is full it becomes `.1`, `.1` becomes `.2`, and the last goes.
struct SizedFiles {
    directory: PathBuf,
    limit: u64,
    file: File,
    written: u64,
}

impl SizedFiles {
    fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(name(directory, 0))?;
        let written = file.metadata()?.len();
        Ok(Self { directory: directory.to_owned(), limit, file, written })
    }

    fn rotate(&mut self) -> io::Result<()> {
        for index in (0..FILES - 1).rev() {
            let from = name(&self.directory, index);
            if from.exists() {
                fs::rename(from, name(&self.directory, index + 1))?;
            }
        }
        *self = Self::open(&self.directory, self.limit)?;
        Ok(())
    }
}

fn name(directory: &Path, index: u64) -> PathBuf {
    directory.join(if index == 0 { "agent.jsonl".to_owned() } else { format!("agent.{index}.jsonl") })
}

impl Write for SizedFiles {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + line.len() as u64 > self.limit {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_together_stay_within_their_budget_and_keep_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = SizedFiles::open(dir.path(), 1_000).unwrap();
        for n in 0..1_000 {
            files.write_all(format!("line {n:05} {}\n", "x".repeat(88)).as_bytes()).unwrap();
        }
        let sizes: Vec<u64> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len() as u64, FILES);
        assert!(sizes.iter().sum::<u64>() <= 1_000 * FILES);
        assert!(fs::read_to_string(name(dir.path(), 0)).unwrap().contains("line 00999"));
    }

    #[test]
    fn a_line_shows_what_a_stranger_wrote_without_obeying_it() {
        let mut lines = Harmless { to: Vec::new(), harmless: plain::log_line };
        lines.write_all("INFO key=A\u{202e}1\nINFO forged\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(lines.to).unwrap(), "INFO key=A\u{fffd}1\u{fffd}INFO forged\n");
    }

    #[test]
    fn a_file_that_is_there_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        for line in ["one\n", "two\n"] {
            SizedFiles::open(dir.path(), 1_000).unwrap().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(name(dir.path(), 0)).unwrap(), "one\ntwo\n");
    }
}
