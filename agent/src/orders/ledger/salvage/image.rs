//! Reads the pages of a damaged ledger without SQLite, which gives up where one page is bad: the main file overlaid
//! with its journal. Only reads; whatever the bytes are, nothing in here panics or loops.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const DEFAULT_PAGE: usize = 4096;
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// Entry of a pointer map for a page that is not in use.
const FREE_PAGE: u8 = 2;

/// A damaged ledger, open for reading.
pub(super) struct Image {
    main: Option<File>,
    wal: Option<File>,
    frames: Frames,
    page_size: usize,
    usable: usize,
    pages: u32,
}

/// A page as it was at some time.
pub(super) struct Version {
    pub(super) content: Vec<u8>,
    /// It stands behind a break of the journal.
    pub(super) doubtful: bool,
}

/// Where the journal has pages.
#[derive(Debug, Default, PartialEq, Eq)]
struct Frames {
    /// The newest committed version of a page, by its place in the file.
    committed: HashMap<u32, u64>,
    /// Versions behind a break of the journal's chain of checksums, in order.
    doubtful: HashMap<u32, Vec<u64>>,
    /// A transaction that is whole stands behind the break, and one that was begun after it: see `Behind`.
    broken: bool,
}

/// What follows a break of the journal, frame by frame. An ordinary power cut leaves breaks too: only the last
/// transaction and what fills its sector up may be unsynced, and of these any part may be missing. So behind the break of
/// a cut there is at most one transaction, which nobody was told of. Only when a later one was begun had it been synced,
/// and all before it: then the break is damage.
///
/// Each frame must prove that it was written behind the one before it: what a failed write left at these places does not.
#[derive(Debug, Default)]
struct Behind {
    /// The checksum that the frame before claims.
    claimed: Option<(u32, u32)>,
    /// The last frame, if it ended a transaction.
    ended: Option<Vec<u8>>,
}

impl Behind {
    /// Takes one more frame of this journal; true when it belongs to a second transaction.
    fn takes(&mut self, big_endian: bool, frame: &[u8]) -> bool {
        let follows = self.claimed.is_some_and(|before| sum_of(big_endian, before, frame) == claim(frame));
        self.claimed = Some(claim(frame));
        let ended = self.ended.take().filter(|_| follows);
        // The last frame is repeated to fill its sector up.
        let same = |last: &Vec<u8>| last[..8] == frame[..8] && last[FRAME_HEADER..] == frame[FRAME_HEADER..];
        if ended.as_ref().is_some_and(|last| !same(last)) {
            return true;
        }
        self.ended = (follows && number(frame, 4) != 0).then(|| frame.to_vec());
        false
    }
}

/// The journal of a ledger.
pub(in crate::orders::ledger) fn journal_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Whether the journal of a ledger was damaged in its middle. SQLite would take everything behind the damage for an
/// unfinished write, and drop acknowledged orders without a word.
pub(in crate::orders::ledger) fn journal_is_broken(ledger: &Path) -> io::Result<bool> {
    let mut image = Image::open(ledger)?;
    if !image.frames.broken {
        return Ok(false);
    }
    // A journal that began anew when the power went may have such frames too: of what was moved to the file before.
    let pages: Vec<u32> = image.frames.doubtful.keys().copied().collect();
    Ok(pages.into_iter().any(|page| image.last(page) != image.newest(page)))
}

/// What a journal says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::orders::ledger) enum Run {
    /// There is none.
    Missing,
    /// Its head cannot be believed.
    Torn,
    /// The same for as long as it is continued: SQLite moves its first salt on by one with each round.
    Of(u32),
}

/// Which journal lies beside a ledger.
pub(in crate::orders::ledger) fn journal_run(ledger: &Path) -> io::Result<Run> {
    let mut header = [0; WAL_HEADER];
    let read = File::open(journal_of(ledger)).and_then(|mut file| file.read_exact(&mut header));
    match read {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
            return Ok(Run::Missing);
        }
        other => other?,
    }
    let sum = checksum(number(&header, 0) & 1 == 1, (0, 0), &header[..24]);
    if sum != (number(&header, 24), number(&header, 28)) {
        return Ok(Run::Torn);
    }
    Ok(Run::Of(number(&header, 16).wrapping_sub(number(&header, 12))))
}

impl Image {
    /// Opens a file and its journal; either may be missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let there = |path: &Path| match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let (mut main, mut wal) = (there(path)?, there(&journal_of(path))?);
        let (page_size, reserved) = main.as_mut().and_then(page_size).unwrap_or((DEFAULT_PAGE, 0));
        let frames = match &mut wal {
            Some(file) => frames(file, page_size)?,
            None => Frames::default(),
        };
        let length = main.as_ref().map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        let in_main = u32::try_from(length.div_ceil(page_size as u64)).unwrap_or(u32::MAX);
        // A page number out of a damaged frame may be anything; no ledger grows by so much in one journal.
        let most = in_main.saturating_add(1 << 16);
        let in_wal =
            frames.committed.keys().chain(frames.doubtful.keys()).copied().filter(|page| *page <= most);
        let pages = in_wal.max().unwrap_or(0).max(in_main);
        Ok(Self { main, wal, frames, page_size, usable: page_size - reserved, pages })
    }

    /// How many pages there are.
    pub(super) const fn pages(&self) -> u32 {
        self.pages
    }

    /// Bytes of a page that hold content.
    pub(super) const fn usable(&self) -> usize {
        self.usable
    }

    /// The last version of a page that is doubtful, if any, then the newest committed one; those that the disk gives.
    pub(super) fn versions(&mut self, page: u32) -> Vec<Version> {
        let doubtful = self.frames.doubtful.get(&page).and_then(|places| places.last().copied());
        let doubtful =
            doubtful.and_then(|at| self.frame(at)).map(|content| Version { content, doubtful: true });
        let newest = self.newest(page).map(|content| Version { content, doubtful: false });
        doubtful.into_iter().chain(newest).collect()
    }

    /// The newest committed version of a page.
    pub(super) fn newest(&mut self, page: u32) -> Option<Vec<u8>> {
        if let Some(at) = self.frames.committed.get(&page).copied() {
            return self.frame(at);
        }
        let at = u64::from(page.checked_sub(1)?) * self.page_size as u64;
        // A page that only the doubtful part of the journal has is not in the main file.
        read_at(self.main.as_mut()?, at, self.page_size)
    }

    /// The last version that anything has of a page: what a doubtful row continues in.
    pub(super) fn last(&mut self, page: u32) -> Option<Vec<u8>> {
        let doubtful = self.frames.doubtful.get(&page).and_then(|places| places.last().copied());
        doubtful.and_then(|at| self.frame(at)).or_else(|| self.newest(page))
    }

    fn frame(&mut self, at: u64) -> Option<Vec<u8>> {
        read_at(self.wal.as_mut()?, at, self.page_size)
    }

    /// Whether the pointer map says that a page is not in use; what stands on it is old.
    pub(super) fn is_free(&mut self, page: u32) -> bool {
        let every = self.usable / 5 + 1;
        let Some(index) = (page as usize).checked_sub(2) else { return false };
        let map = index / every * every + 2;
        let Some(entry) = (page as usize).checked_sub(map + 1) else { return false };
        let Ok(map) = u32::try_from(map) else { return false };
        self.newest(map).is_some_and(|content| content.get(5 * entry) == Some(&FREE_PAGE))
    }
}

fn read_at(file: &mut File, at: u64, length: usize) -> Option<Vec<u8>> {
    let mut content = vec![0; length];
    file.seek(SeekFrom::Start(at)).ok()?;
    file.read_exact(&mut content).ok()?;
    Some(content)
}

/// Page size and reserved bytes, when the header of the file can be believed.
fn page_size(main: &mut File) -> Option<(usize, usize)> {
    let header = read_at(main, 0, 100)?;
    let size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => usize::from(size),
    };
    let reserved = usize::from(header[20]);
    let believable = header.starts_with(b"SQLite format 3\0") && size.is_power_of_two() && size >= 512;
    (believable && reserved <= 32).then_some((size, reserved))
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

/// Reads where the journal has which page. Its frames form a chain of checksums that ends with what was written last.
fn frames(file: &mut File, size: usize) -> io::Result<Frames> {
    let mut found = Frames::default();
    file.seek(SeekFrom::Start(0))?;
    let mut input = io::BufReader::with_capacity(256 * 1024, file);
    let mut header = [0; WAL_HEADER];
    if input.read_exact(&mut header).is_err() {
        return Ok(found);
    }
    let own_size = number(&header, 8) as usize;
    let own_size = Some(own_size).filter(|size| size.is_power_of_two() && (512..=65_536).contains(size));
    let big_endian = number(&header, 0) & 1 == 1;
    let mut sum = checksum(big_endian, (0, 0), &header[..24]);
    // The salts tell this generation of the journal from what older ones left behind it.
    let mut salts = (number(&header, 16), number(&header, 20));
    let header_good = sum == (number(&header, 24), number(&header, 28)) && own_size == Some(size);
    let mut chained = header_good;
    let (mut open, mut behind) = (Vec::new(), Behind::default());
    // A header that was hit does not say how its checksums were made; SQLite makes them in the order of the machine.
    let big_endian = if header_good { big_endian } else { cfg!(target_endian = "big") };
    let mut at = WAL_HEADER as u64;
    let mut frame = vec![0; FRAME_HEADER + size];
    while input.read_exact(&mut frame).is_ok() {
        let content_at = at + FRAME_HEADER as u64;
        at = content_at + size as u64;
        let (page, commit) = (number(&frame, 0), number(&frame, 4) != 0);
        if !header_good && content_at < 100 {
            // The header itself was hit: the first frame knows the salts too.
            salts = (number(&frame, 8), number(&frame, 12));
        }
        let ours = salts == (number(&frame, 8), number(&frame, 12));
        if chained {
            sum = sum_of(big_endian, sum, &frame);
            chained = ours && sum == claim(&frame);
        }
        if chained {
            open.push((page, content_at));
            if commit {
                found.committed.extend(open.drain(..));
            }
        } else if ours && page != 0 {
            found.broken |= behind.takes(big_endian, &frame);
            // What the broken transaction had before the break belongs to what is doubtful.
            for (page, at) in open.drain(..).chain([(page, content_at)]) {
                found.doubtful.entry(page).or_default().push(at);
            }
        } else {
            behind = Behind { claimed: Some(claim(&frame)), ended: None };
        }
    }
    Ok(found)
}

/// The checksum that a frame claims.
fn claim(frame: &[u8]) -> (u32, u32) {
    (number(frame, 16), number(frame, 20))
}

/// The checksum of a frame behind one with a checksum.
fn sum_of(big_endian: bool, before: (u32, u32), frame: &[u8]) -> (u32, u32) {
    checksum(big_endian, checksum(big_endian, before, &frame[..8]), &frame[FRAME_HEADER..])
}

fn checksum(big_endian: bool, mut sum: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        sum.0 = sum.0.wrapping_add(word(0)).wrapping_add(sum.1);
        sum.1 = sum.1.wrapping_add(word(4)).wrapping_add(sum.0);
    }
    sum
}
