//! A disk that remembers: every operation of SQLite on the files of one directory, in the order in which they came,
//! and the faults it was told to have.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// A file, whatever its name is later.
pub(crate) type Inode = usize;

/// One operation.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// A file that was there before the log began.
    Found { inode: Inode, name: String, content: Vec<u8> },
    /// A new, empty file.
    Created { inode: Inode, name: String },
    /// Bytes at a place.
    Wrote { inode: Inode, at: usize, bytes: Vec<u8> },
    /// Cut to a length.
    Truncated { inode: Inode, size: usize },
    /// Flushed. `good` is false when the flush failed: what was not yet on the disk never gets there then, although
    /// it reads back, until it is written again.
    Synced { inode: Inode, good: bool },
    /// A name removed; `durable` when the directory was flushed too.
    Deleted { name: String, durable: bool },
    /// The directory was flushed by the product itself.
    DirectorySynced,
}

/// Operations that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Read,
    Write,
    Truncate,
    Sync,
    Open,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Truncate, Self::Sync, Self::Open];
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Trouble {
    /// EIO
    Failed,
    /// ENOSPC
    NoSpace,
}

/// A fault to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// Which operations.
    pub(crate) kind: Kind,
    /// The first that fails, counted from 0 when the fault is set.
    pub(crate) at: u64,
    pub(crate) trouble: Trouble,
    /// Whether all of this kind fail from then on. `NoSpace` that lasts leaves reads and syncs alone.
    pub(crate) lasting: bool,
}

#[derive(Debug, Default)]
struct State {
    log: Vec<Op>,
    /// When each operation of the log was done.
    times: Vec<Instant>,
    /// By inode: the name it has now, and the system's number of the file.
    names: Vec<Option<(String, u64)>>,
    fault: Option<Fault>,
    /// Operations of each kind since the fault was set.
    seen: [u64; 5],
    hits: u64,
}

/// One disk.
#[derive(Debug)]
pub(crate) struct Disk {
    directory: PathBuf,
    powersafe: bool,
    state: Mutex<State>,
}

static DISKS: Mutex<Vec<Weak<Disk>>> = Mutex::new(Vec::new());

/// The disk that a file lies on, if it is one of ours.
pub(crate) fn of(path: &Path) -> Option<Arc<Disk>> {
    let disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner);
    disks.iter().filter_map(Weak::upgrade).find(|disk| path.parent() == Some(&disk.directory))
}

impl State {
    fn push(&mut self, op: Op) {
        self.log.push(op);
        self.times.push(samovar_tests::clock::now());
    }

    fn forget(&mut self, name: &str) {
        for known in
            self.names.iter_mut().filter(|known| known.as_ref().is_some_and(|(known, _)| known == name))
        {
            *known = None;
        }
    }
}

impl Disk {
    /// Watches the files of a directory from now on. `powersafe`: the disk claims that it never harms neighbouring
    /// bytes of a sector, whatever SQLite was told.
    pub(crate) fn watch(directory: &Path, powersafe: bool) -> Arc<Self> {
        crate::vfs::install();
        let directory = directory.canonicalize().expect("a directory that exists");
        let disk = Arc::new(Self { directory, powersafe, state: Mutex::default() });
        disk.find();
        let mut disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner);
        disks.retain(|disk| disk.strong_count() > 0);
        disks.push(Arc::downgrade(&disk));
        disk
    }

    /// What is there already is on the disk.
    fn find(&self) {
        let entries = std::fs::read_dir(&self.directory).expect("a directory that can be listed");
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths.iter().filter(|path| name(path).starts_with("orders.db")) {
            self.opened(path, true);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many operations there were.
    pub(crate) fn position(&self) -> usize {
        self.lock().log.len()
    }

    /// All operations so far.
    pub(crate) fn log(&self) -> Vec<Op> {
        self.lock().log.clone()
    }

    /// When each operation was done.
    pub(crate) fn times(&self) -> Vec<Instant> {
        self.lock().times.clone()
    }

    /// Sets a fault.
    pub(crate) fn fail(&self, fault: Fault) {
        let mut state = self.lock();
        state.fault = Some(fault);
        state.seen = [0; 5];
        state.hits = 0;
    }

    /// Ends the fault; gives how often it struck.
    pub(crate) fn heal(&self) -> u64 {
        let mut state = self.lock();
        state.fault = None;
        state.hits
    }

    /// Operations of each kind since the last fault was set.
    pub(crate) fn seen(&self) -> [u64; 5] {
        self.lock().seen
    }

    /// The product has flushed the directory.
    pub(crate) fn directory_synced(&self) {
        self.lock().push(Op::DirectorySynced);
    }

    pub(crate) const fn claims_powersafe(&self) -> bool {
        self.powersafe
    }

    /// Whether this operation fails.
    pub(crate) fn trouble(&self, kind: Kind) -> Option<Trouble> {
        let mut state = self.lock();
        let number = state.seen[kind as usize];
        state.seen[kind as usize] += 1;
        let fault = state.fault?;
        let full = fault.lasting && fault.trouble == Trouble::NoSpace;
        // A disk that is full refuses what makes files longer, from the first refusal on, whatever kind that is.
        let strikes = if full && state.hits > 0 {
            matches!(kind, Kind::Write)
        } else {
            kind == fault.kind && (number == fault.at || fault.lasting && number > fault.at)
        };
        if strikes {
            state.hits += 1;
        }
        strikes.then_some(fault.trouble)
    }

    /// A file was opened. One that the product has put in the place of another, past SQLite, is taken as durable.
    pub(crate) fn opened(&self, path: &Path, existed: bool) -> Inode {
        let (name, number) = (name(path), number(path));
        let mut state = self.lock();
        let same = |known: &Option<(String, u64)>| known.as_ref() == Some(&(name.clone(), number));
        if let (true, Some(inode)) = (existed, state.names.iter().position(same)) {
            return inode;
        }
        state.forget(&name);
        let inode = state.names.len();
        state.names.push(Some((name.clone(), number)));
        state.push(if existed {
            Op::Found { inode, name, content: std::fs::read(path).unwrap_or_default() }
        } else {
            Op::Created { inode, name }
        });
        inode
    }

    pub(crate) fn deleted(&self, path: &Path, durable: bool) {
        let name = name(path);
        let mut state = self.lock();
        state.forget(&name);
        state.push(Op::Deleted { name, durable });
    }

    pub(crate) fn wrote(&self, inode: Inode, at: i64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap_or(0);
        self.lock().push(Op::Wrote { inode, at, bytes: bytes.to_vec() });
    }

    pub(crate) fn truncated(&self, inode: Inode, size: i64) {
        self.lock().push(Op::Truncated { inode, size: usize::try_from(size).unwrap_or(0) });
    }

    pub(crate) fn synced(&self, inode: Inode, good: bool) {
        self.lock().push(Op::Synced { inode, good });
    }
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn number(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |metadata| metadata.ino())
}
