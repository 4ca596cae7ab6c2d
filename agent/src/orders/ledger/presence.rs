//! Whether the ledger's files are still the ones that are open, under their names (IO).
//!
//! SQLite goes on writing into a file that was removed, renamed or replaced, and syncs it too; at the next start nothing
//! of that is there. So the names are looked up after a commit, before anybody is told of it, unless that was done a
//! moment ago; and at least once a second. It costs two system calls.

use super::salvage::journal_of;
use std::path::Path;
use std::time::Duration;

/// How often the names are looked up while nothing is written.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a look counts while orders come in: what is acknowledged in that time is brought back too.
pub(super) const MOMENT: Duration = Duration::from_millis(10);

/// A file, whatever its name: the device and the number on it.
type FileId = (u64, u64);

/// The files that were opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Present {
    main: Option<FileId>,
    journal: Option<FileId>,
}

/// What is no longer under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// The main file, and perhaps the journal.
    Main,
    /// The journal alone.
    Journal,
}

impl Gone {
    /// For people.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Main => "the ledger's file was removed, moved or replaced while it was open",
            Self::Journal => "the ledger's journal was removed, moved or replaced while it was open",
        }
    }
}

impl Present {
    /// Nothing is open, so nothing is missed.
    pub(super) const NONE: Self = Self { main: None, journal: None };

    /// What is there now. To be asked right after opening.
    pub(super) fn now(ledger: &Path) -> Self {
        Self { main: id(ledger), journal: id(&journal_of(ledger)) }
    }

    /// What is gone since. A file that was not there then is not missed.
    pub(super) fn gone(self, ledger: &Path) -> Option<Gone> {
        if self.main.is_some() && id(ledger) != self.main {
            Some(Gone::Main)
        } else if self.journal.is_some() && !self.has_journal(ledger) {
            Some(Gone::Journal)
        } else {
            None
        }
    }

    /// Whether the journal beside the ledger is the one that is open.
    pub(super) fn has_journal(self, ledger: &Path) -> bool {
        id(&journal_of(ledger)) == self.journal
    }
}

#[cfg(unix)]
fn id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Where open files cannot be removed or renamed there is nothing to miss.
#[cfg(not(unix))]
fn id(_path: &Path) -> Option<FileId> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_file_that_was_removed_moved_or_replaced_is_missed_and_one_that_was_written_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (main, journal) = (dir.path().join("orders.db"), dir.path().join("orders.db-wal"));
        let fresh = || {
            for file in [&main, &journal] {
                let _ = std::fs::remove_file(file);
                std::fs::write(file, "1").unwrap();
            }
            Present::now(&main)
        };
        let present = fresh();
        std::fs::OpenOptions::new().append(true).open(&main).unwrap().set_len(7).unwrap();
        assert_eq!(present.gone(&main), None);
        std::fs::rename(&journal, dir.path().join("moved")).unwrap();
        assert_eq!(present.gone(&main), Some(Gone::Journal));
        std::fs::copy(dir.path().join("moved"), &journal).unwrap();
        assert_eq!(present.gone(&main), Some(Gone::Journal));
        let present = fresh();
        let copy = dir.path().join("copy");
        std::fs::copy(&main, &copy).unwrap();
        std::fs::rename(&copy, &main).unwrap();
        assert_eq!(present.gone(&main), Some(Gone::Main));
        let present = fresh();
        std::fs::remove_file(&main).unwrap();
        assert_eq!(present.gone(&main), Some(Gone::Main));
        assert_eq!(Present::NONE.gone(&main), None);
    }
}
