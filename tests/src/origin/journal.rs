//! What an origin that can be killed keeps outside its process: a line per order, synced before the answer.
//!
//! The lines are also the evidence of whoever judges the origin afterwards: what was recorded is in them as often as it
//! was recorded.

use anyhow::{Context, Result};
use samovar_wire::orders::IncomingOrder;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

/// One order as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Who sent it.
    pub device: String,
    /// Its key.
    pub key: String,
    /// Digest of its body, which the origin has checked.
    pub sha256: String,
    /// The till's number.
    pub order_no: String,
    /// Place in the device's ledger.
    pub seq: u64,
    /// UUID of that ledger.
    pub ledger: String,
    /// User data location.
    pub udl: String,
    /// The number of the order that had to be settled before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depends_on: Option<String>,
}

impl Recorded {
    /// An order as a device sent it.
    #[must_use]
    pub fn of(device: &str, ledger: &str, order: &IncomingOrder) -> Self {
        #[derive(Deserialize)]
        struct Chained {
            depends_on: Option<String>,
        }
        let chained = serde_json::from_str::<Chained>(order.body.get()).ok();
        Self {
            device: device.to_owned(),
            key: order.key.clone(),
            sha256: order.sha256.clone(),
            order_no: order.order_no.clone(),
            seq: order.seq,
            ledger: ledger.to_owned(),
            udl: order.udl.clone().unwrap_or_default(),
            depends_on: chained.and_then(|order| order.depends_on),
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// An order was recorded.
    Recorded(Recorded),
    /// An order came again and was answered as a duplicate.
    Repeated {
        /// Its key.
        key: String,
    },
    /// A digest did not match its body.
    Broken {
        /// The order's key.
        key: String,
    },
    /// A batch was treated so.
    Did {
        /// The behaviour's name.
        behaviour: String,
    },
}

/// The open file.
#[derive(Debug)]
pub struct Journal {
    file: File,
    lines: Vec<u8>,
}

impl Journal {
    /// Opens or makes the file; gives what it holds. A line that a kill cut short was never answered for: it goes.
    ///
    /// # Errors
    /// When the file cannot be read or written, or a whole line cannot be understood.
    pub fn open(path: &Path) -> Result<(Self, Vec<Entry>)> {
        let failed = || format!("cannot use {}", path.display());
        let file = File::options().create(true).append(true).open(path).with_context(failed)?;
        let text = std::fs::read(path).with_context(failed)?;
        let whole = whole_lines(&text);
        file.set_len(u64::try_from(whole.len())?).with_context(failed)?;
        Ok((Self { file, lines: Vec::new() }, parse(whole)?))
    }

    /// Adds a line to those that the next [`Self::write`] writes.
    pub fn push(&mut self, entry: &Entry) {
        if let Ok(line) = serde_json::to_vec(entry) {
            self.lines.extend(line);
            self.lines.push(b'\n');
        }
    }

    /// Writes what was pushed, and has it on disk before it returns.
    ///
    /// # Errors
    /// When the disk refuses; the lines stay for the next time.
    pub fn write(&mut self) -> std::io::Result<()> {
        self.file.write_all(&self.lines)?;
        self.file.sync_data()?;
        self.lines.clear();
        Ok(())
    }
}

/// Every whole line of a journal.
///
/// # Errors
/// When the file cannot be read or a line cannot be understood.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(whole_lines(&text))
}

fn whole_lines(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)]
}

fn parse(lines: &[u8]) -> Result<Vec<Entry>> {
    lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).context("a line of an origin's journal cannot be read"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cut_short_by_a_kill_is_dropped_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        let (mut journal, before) = Journal::open(&path).unwrap();
        assert_eq!(before, []);
        let entry = Entry::Repeated { key: "k".into() };
        journal.push(&entry);
        journal.write().unwrap();
        drop(journal);
        File::options().append(true).open(&path).unwrap().write_all(b"{\"recorded\":{\"dev").unwrap();
        let (mut journal, kept) = Journal::open(&path).unwrap();
        assert_eq!(kept, std::slice::from_ref(&entry));
        journal.push(&entry);
        journal.write().unwrap();
        assert_eq!(read(&path).unwrap(), [entry.clone(), entry]);
    }
}
