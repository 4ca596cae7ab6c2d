//! What is on the disk after a power cut. Pure: a log of operations and randomness in, files out.
//!
//! ```text
//! written ──► unsynced ──good sync──► on the disk
//!                └──────failed sync─► reads back, but is on the disk only by chance
//! cut: each unsynced write is kept, lost, torn, or takes the whole sector along, as the fate says
//! ```

use crate::disk::{Inode, Op};
use fastrand::Rng;
use std::collections::BTreeMap;

/// Bytes of a small and of a large sector.
pub(crate) const SMALL: usize = 512;
pub(crate) const LARGE: usize = 4096;

/// The files of a directory.
pub(crate) type Image = BTreeMap<String, Vec<u8>>;

/// What becomes of unsynced writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// All of them reached the disk.
    Kept,
    /// None of them did.
    Lost,
    /// Some did.
    Some,
    /// Some did, and of the last one some sectors of this size.
    Torn(usize),
    /// Some did, and a whole sector that one of them touches holds garbage: also bytes that were synced before.
    Wiped,
}

impl Fate {
    pub(crate) const ALL: [Self; 6] =
        [Self::Kept, Self::Lost, Self::Some, Self::Torn(SMALL), Self::Torn(LARGE), Self::Wiped];
}

#[derive(Debug, Clone)]
enum Unsynced {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Debug, Clone, Default)]
struct File {
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

/// One name: what it stands for on the disk, and the changes of that which are not flushed.
#[derive(Debug, Clone, Default)]
struct Entry {
    durable: Option<Inode>,
    unsynced: Vec<Option<Inode>>,
}

/// A disk on which a log is played back, operation by operation.
#[derive(Debug)]
pub(crate) struct Playback {
    files: Vec<File>,
    entries: BTreeMap<String, Entry>,
    /// Says that it flushed and did not.
    lies: bool,
    /// The share of writes that a failed flush brought to the disk all the same.
    survives: f64,
}

impl Playback {
    pub(crate) fn new(lies: bool, rng: &mut Rng) -> Self {
        let survives = *rng.choice(&[0.0, 0.0, 0.5, 1.0]).unwrap_or(&0.0);
        Self { files: Vec::new(), entries: BTreeMap::new(), lies, survives }
    }

    /// One more operation.
    pub(crate) fn apply(&mut self, op: &Op, rng: &mut Rng) {
        match op {
            Op::Found { inode, name, content } => {
                self.file(*inode).durable.clone_from(content);
                self.entries.insert(name.clone(), Entry { durable: Some(*inode), unsynced: Vec::new() });
            }
            Op::Created { inode, name } => {
                self.file(*inode);
                self.entries.entry(name.clone()).or_default().unsynced.push(Some(*inode));
            }
            Op::Wrote { inode, at, bytes } => {
                self.file(*inode).unsynced.push(Unsynced::Write { at: *at, bytes: bytes.clone() });
            }
            Op::Truncated { inode, size } => self.file(*inode).unsynced.push(Unsynced::Truncate(*size)),
            Op::Synced { inode, good: true } if !self.lies => self.synced(*inode),
            Op::Synced { inode, good: false } => {
                let survives = self.survives;
                let file = self.file(*inode);
                for change in std::mem::take(&mut file.unsynced) {
                    if rng.f64() < survives {
                        change.apply(&mut file.durable);
                    }
                }
            }
            Op::Synced { .. } => {}
            Op::Deleted { name, durable } => {
                let entry = self.entries.entry(name.clone()).or_default();
                entry.unsynced.push(None);
                if *durable && !self.lies {
                    entry.flush();
                }
            }
            Op::DirectorySynced => self.entries.values_mut().for_each(Entry::flush),
        }
    }

    fn file(&mut self, inode: Inode) -> &mut File {
        if self.files.len() <= inode {
            self.files.resize_with(inode + 1, File::default);
        }
        &mut self.files[inode]
    }

    fn synced(&mut self, inode: Inode) {
        let file = self.file(inode);
        for change in std::mem::take(&mut file.unsynced) {
            change.apply(&mut file.durable);
        }
        // With the first sync of a journal SQLite flushes its directory too; with that of a main file it does not.
        let journal = |name: &str| name.ends_with("-wal") || name.ends_with("-journal");
        for (name, entry) in &mut self.entries {
            if journal(name) && entry.unsynced.last() == Some(&Some(inode)) {
                entry.flush();
            }
        }
    }

    /// The files after a cut at this moment.
    pub(crate) fn cut(&self, fate: Fate, rng: &mut Rng) -> Image {
        let mut image = Image::new();
        for (name, entry) in &self.entries {
            let Some(file) = entry.after(fate, rng).and_then(|inode| self.files.get(inode)) else { continue };
            image.insert(name.clone(), file.after(fate, rng));
        }
        image
    }
}

impl Entry {
    fn flush(&mut self) {
        if let Some(last) = self.unsynced.drain(..).next_back() {
            self.durable = last;
        }
    }

    fn after(&self, fate: Fate, rng: &mut Rng) -> Option<Inode> {
        let changes = match fate {
            Fate::Kept => self.unsynced.len(),
            Fate::Lost => 0,
            _ => rng.usize(0..=self.unsynced.len()),
        };
        if changes == 0 { self.durable } else { self.unsynced[changes - 1] }
    }
}

impl File {
    fn after(&self, fate: Fate, rng: &mut Rng) -> Vec<u8> {
        let mut content = self.durable.clone();
        // Reordering in the large: sometimes nearly all came through, sometimes nearly nothing.
        let share = *rng.choice(&[0.1, 0.5, 0.9, 1.0]).unwrap_or(&0.5);
        // And sometimes they came through in order, up to a point.
        let up_to = rng.bool().then(|| rng.usize(0..=self.unsynced.len()));
        let victim = match fate {
            Fate::Torn(_) => self.unsynced.len().checked_sub(1),
            Fate::Wiped if rng.bool() => self.unsynced.len().checked_sub(1),
            Fate::Wiped => (0..self.unsynced.len()).nth(rng.usize(0..self.unsynced.len().max(1))),
            _ => None,
        };
        for (index, change) in self.unsynced.iter().enumerate() {
            let keep = match fate {
                Fate::Kept => true,
                Fate::Lost => false,
                _ => up_to.map_or_else(|| rng.f64() < share, |up_to| index < up_to),
            };
            match (change, fate) {
                (Unsynced::Write { at, bytes }, Fate::Torn(sector)) if victim == Some(index) => {
                    tear(&mut content, *at, bytes, sector, rng);
                }
                _ if keep => change.apply(&mut content),
                _ => {}
            }
        }
        if let (Fate::Wiped, Some(Unsynced::Write { at, bytes })) =
            (fate, victim.and_then(|victim| self.unsynced.get(victim)))
        {
            wipe(&mut content, *at, bytes.len(), rng);
        }
        content
    }
}

impl Unsynced {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => put(content, *at, bytes),
            Self::Truncate(size) => content.truncate(*size),
        }
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

/// Some sectors of the write arrive.
fn tear(content: &mut Vec<u8>, at: usize, bytes: &[u8], sector: usize, rng: &mut Rng) {
    let mut from = 0;
    while from < bytes.len() {
        let to = ((at + from) / sector * sector + sector - at).min(bytes.len());
        if rng.bool() {
            put(content, at + from, &bytes[from..to]);
        }
        from = to;
    }
}

/// One whole sector that the write touches holds garbage.
fn wipe(content: &mut Vec<u8>, at: usize, length: usize, rng: &mut Rng) {
    let first = at / LARGE;
    let last = (at + length.max(1) - 1) / LARGE;
    let start = rng.usize(first..=last) * LARGE;
    // A file does not become longer than the write would have made it.
    let end = (start + LARGE).min(content.len().max(at + length));
    let garbage: Vec<u8> = (start..end).map(|_| rng.u8(..)).collect();
    put(content, start, &garbage);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(ops: &[Op], lies: bool) -> Playback {
        let mut rng = Rng::with_seed(1);
        let mut disk = Playback::new(lies, &mut rng);
        disk.survives = 0.0;
        ops.iter().for_each(|op| disk.apply(op, &mut rng));
        disk
    }

    fn wrote(at: usize, byte: u8, length: usize) -> Op {
        Op::Wrote { inode: 0, at, bytes: vec![byte; length] }
    }

    fn begin() -> [Op; 2] {
        [Op::Created { inode: 0, name: "x-wal".into() }, wrote(0, 1, 8192)]
    }

    #[test]
    fn what_was_synced_is_there_and_the_rest_is_as_the_fate_says() {
        let mut ops = begin().to_vec();
        ops.extend([Op::Synced { inode: 0, good: true }, wrote(8192, 2, 100)]);
        let (disk, mut rng) = (play(&ops, false), Rng::with_seed(2));
        assert_eq!(disk.cut(Fate::Lost, &mut rng)["x-wal"], vec![1; 8192]);
        assert_eq!(disk.cut(Fate::Kept, &mut rng)["x-wal"].len(), 8292);
        assert!(play(&ops, true).cut(Fate::Lost, &mut rng).is_empty());
    }

    #[test]
    fn what_a_failed_sync_dropped_stays_lost_until_it_is_written_again() {
        let mut ops = begin().to_vec();
        ops.extend([
            Op::Synced { inode: 0, good: true },
            wrote(0, 7, 10),
            Op::Synced { inode: 0, good: false },
        ]);
        ops.push(Op::Synced { inode: 0, good: true });
        let mut rng = Rng::with_seed(2);
        assert_eq!(play(&ops, false).cut(Fate::Kept, &mut rng)["x-wal"][0], 1);
        ops.extend([wrote(0, 7, 10), Op::Synced { inode: 0, good: true }]);
        assert_eq!(play(&ops, false).cut(Fate::Lost, &mut rng)["x-wal"][0], 7);
    }

    #[test]
    fn a_wiped_sector_takes_synced_neighbours_along_and_a_torn_write_does_not() {
        let mut ops = begin().to_vec();
        ops.extend([Op::Synced { inode: 0, good: true }, wrote(100, 2, 600)]);
        let (disk, mut rng) = (play(&ops, false), Rng::with_seed(2));
        let wiped = &disk.cut(Fate::Wiped, &mut rng)["x-wal"];
        assert!(wiped[..100] != [1; 100] && wiped[4096..] == [1; 4096]);
        for _ in 0..20 {
            let torn = &disk.cut(Fate::Torn(SMALL), &mut rng)["x-wal"];
            assert!(torn[..100] == [1; 100] && torn[700..] == [1; 7492]);
            assert!(torn[100..512] == [torn[100]; 412] && torn[512..700] == [torn[512]; 188]);
        }
    }
}
