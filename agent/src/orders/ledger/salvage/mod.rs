//! Brings the orders of a damaged ledger, which was set aside, into the new one: page by page, in small steps between
//! commits, resumable, and the same however often it is done.
//!
//! ```text
//! set aside ─► orders (pages 1…n) ─► what operators did, conflicts (pages 1…n) ─► done: marker file, words, event
//!                    └─ each step: rows and the place it has come to, in one transaction of the new ledger
//! ```
//!
//! **Promise.** Every row that can be read comes over with its id, key, state, binding and attempts, and gets a place
//! of its own. A key that is there with the same content is merged with the state that is further along; with other
//! content it is kept in quarantine. A body that does not match its digest is kept in quarantine. What could not be
//! read is told by places. The damaged files are only read, and stay.

mod image;
mod merge;
mod rows;

pub(super) use image::{Run, journal_is_broken, journal_of, journal_run};
pub(super) use merge::Counted;

use super::seal::Keys;
use crate::store;
use image::Image;
use merge::{Merge, Old};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use samovar_wire::Timestamp;
use std::path::{Path, PathBuf};

/// Mark of a damaged ledger whose salvage is done; holds the words.
const DONE: &str = ".salvaged";
/// Most gaps that are named one by one.
const NAMED_GAPS: usize = 20;

/// How a salvage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Salvaged {
    /// The damaged ledger, which is kept.
    pub file: String,
    /// What happened, in words.
    pub told: String,
    /// Something could not be read or is in quarantine.
    pub losses: bool,
    /// It ended before this start.
    pub earlier: bool,
}

/// A salvage that is under way.
pub(super) struct Salvage {
    file: String,
    image: Image,
    columns: Vec<String>,
}

/// What a step did.
pub(super) enum Step {
    /// There is more to do.
    More(Vec<Counted>),
    /// This file is done.
    Done(Vec<Counted>, Salvaged),
}

/// The damaged ledgers beside a ledger.
fn damaged_files(ledger: &Path) -> Vec<String> {
    let Some((directory, name)) = ledger.parent().zip(ledger.file_name().and_then(|name| name.to_str()))
    else {
        return Vec::new();
    };
    let prefix = format!("{name}.damaged-");
    let is_file = |name: &String| {
        name.strip_prefix(&prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        names.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_file).collect();
    names.sort();
    names
}

/// The damaged ledger that was set aside last.
pub(super) fn newest_damaged(ledger: &Path) -> Option<PathBuf> {
    let number = |file: &String| file.rsplit('-').next().and_then(|number| number.parse::<u32>().ok());
    damaged_files(ledger).into_iter().max_by_key(number).map(|file| ledger.with_file_name(file))
}

fn marker(ledger: &Path, file: &str) -> PathBuf {
    ledger.with_file_name(format!("{file}{DONE}"))
}

/// Remembers which damaged ledgers are to be salvaged.
pub(super) fn register(connection: &Connection, ledger: &Path) -> rusqlite::Result<()> {
    for file in damaged_files(ledger).into_iter().filter(|file| !marker(ledger, file).exists()) {
        connection.execute("INSERT INTO salvage(file) VALUES(?1) ON CONFLICT DO NOTHING", [file])?;
    }
    Ok(())
}

/// What was salvaged before, from files that are still there.
pub(super) fn finished(ledger: &Path) -> Vec<Salvaged> {
    let told = |file: String| {
        let told = String::from_utf8(store::read(&marker(ledger, &file)).ok()??).ok()?;
        let losses = told.starts_with('!');
        Some(Salvaged { file, told: told.trim_start_matches('!').to_owned(), losses, earlier: true })
    };
    damaged_files(ledger).into_iter().filter_map(told).collect()
}

impl Salvage {
    /// The next file that waits for it; `None` when there is none.
    pub(super) fn next(connection: &Connection, ledger: &Path) -> rusqlite::Result<Option<Self>> {
        let next = "SELECT file FROM salvage WHERE stage < 2 ORDER BY rowid LIMIT 1";
        let Some(file) = connection.query_row(next, [], |row| row.get::<_, String>(0)).optional()? else {
            return Ok(None);
        };
        let mut columns = Vec::new();
        connection.pragma(None, "table_info", "orders", |row| {
            columns.push(row.get(1)?);
            Ok(())
        })?;
        let image = Image::open(&ledger.with_file_name(&file)).map_err(as_sqlite)?;
        Ok(Some(Self { file, image, columns }))
    }

    /// Says how far it is.
    pub(super) fn progress(&self, connection: &Connection) -> String {
        let (stage, page) = self.place(connection).unwrap_or((0, 0));
        let all = 2 * u64::from(self.image.pages().max(1));
        let done = u64::from(page) + u64::from(stage) * all / 2;
        format!(
            "the ledger was damaged and is kept as {}; its orders are brought over: {} %",
            self.file,
            100 * done / all
        )
    }

    fn place(&self, connection: &Connection) -> rusqlite::Result<(u32, u32)> {
        let select = "SELECT stage, page FROM salvage WHERE file = ?1";
        connection.prepare_cached(select)?.query_row([&self.file], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// Works through a few pages. Runs in a transaction of the new ledger.
    pub(super) fn step(
        &mut self,
        t: &Transaction<'_>,
        keys: &Keys,
        pages: u32,
        now: Timestamp,
        keys_since: Timestamp,
    ) -> rusqlite::Result<Step> {
        let (mut stage, done) = self.place(t)?;
        let end = done.saturating_add(pages).min(self.image.pages());
        let mut merge = Merge { t, file: &self.file, keys, now, keys_since, counted: Vec::new() };
        let mut unreadable = 0;
        for page in done + 1..=end {
            unreadable += u32::from(!page_over(&mut self.image, &self.columns, page, stage, &mut merge)?);
        }
        let counted = std::mem::take(&mut merge.counted);
        let mut place = end;
        if end >= self.image.pages() {
            (stage, place) = (stage + 1, 0);
        }
        t.prepare_cached("UPDATE salvage SET stage = ?2, page = ?3, unreadable_pages = unreadable_pages + ?4 WHERE file = ?1")?
            .execute(params![self.file, stage, place, if stage == 0 { unreadable } else { 0 }])?;
        if stage < 2 {
            return Ok(Step::More(counted));
        }
        merge::link_conflicts(t, &self.file)?;
        let salvaged = self.result(t, keys_since)?;
        t.execute("DELETE FROM salvaged WHERE file = ?1", [&self.file])?;
        Ok(Step::Done(counted, salvaged))
    }

    fn result(&self, t: &Transaction<'_>, keys_since: Timestamp) -> rusqlite::Result<Salvaged> {
        let select = "SELECT came, merged, unreadable_pages FROM salvage WHERE file = ?1";
        let (came, merged, pages): (u64, u64, u64) =
            t.query_row(select, [&self.file], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let damaged = "SELECT count(*) FROM salvaged s JOIN orders o ON o.seq = s.seq
            WHERE s.file = ?1 AND o.state = 3 AND o.why = 'damaged'";
        let quarantined: u64 = t.query_row(damaged, [&self.file], |row| row.get(0))?;
        let gaps = gaps(t, &self.file, keys_since)?;
        let file = &self.file;
        let mut told =
            format!("{came} orders of the damaged ledger were brought over, {merged} were there already");
        if quarantined > 0 {
            told += &format!("; {quarantined} of them are in quarantine because they were damaged");
        }
        if !gaps.is_empty() {
            told += &format!("; not found: the orders at {}", named(&gaps));
        }
        if pages > 0 {
            told += &format!("; {pages} pages could not be read");
        }
        told += &format!("; the damaged ledger is kept as {file}");
        t.execute("UPDATE salvage SET told = ?2 WHERE file = ?1", params![file, told])?;
        let nothing = came + merged == 0;
        let losses = quarantined > 0 || !gaps.is_empty() || pages > 0 || nothing;
        Ok(Salvaged { file: file.clone(), told, losses, earlier: false })
    }
}

/// Marks a file as done, so that a later ledger does not begin anew with it.
pub(super) fn mark_done(ledger: &Path, done: &Salvaged) -> Result<(), store::StoreError> {
    let words = format!("{}{}", if done.losses { "!" } else { "" }, done.told);
    store::replace(&marker(ledger, &done.file), words.as_bytes(), 0o600)
}

/// False when the disk does not give the page.
fn page_over(
    image: &mut Image,
    columns: &[String],
    page: u32,
    stage: u32,
    merge: &mut Merge<'_>,
) -> rusqlite::Result<bool> {
    let stale = image.is_free(page);
    let versions = image.versions(page);
    let readable = !versions.is_empty();
    for version in versions {
        let usable = image.usable();
        // A long row goes on in pages of its own time.
        let mut continued = |next| if version.doubtful { image.last(next) } else { image.newest(next) };
        let found = rows::rows(&version.content, page == 1, usable, &mut continued);
        for row in found {
            match (stage, row.values.len()) {
                (0, 2) => merge.last_place(&row)?,
                (1, 5) => merge.audit(&row)?,
                (0, 6..) => {
                    let old = Old::read(row, columns, stale);
                    if let Some(old) = old {
                        merge.order(&old)?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(readable)
}

/// Places at which nothing was found: lost, or let go before the damage.
fn gaps(t: &Transaction<'_>, file: &str, keys_since: Timestamp) -> rusqlite::Result<Vec<(u64, u64)>> {
    // The first orders of an old ledger were let go; those of a young one were not.
    const DAY_MS: i64 = 86_400_000;
    let first: Option<(u64, i64)> = t
        .query_row(
            "SELECT s.old_seq, o.accepted_at FROM salvaged s JOIN orders o ON o.seq = s.seq
             WHERE s.file = ?1 ORDER BY s.old_seq LIMIT 1",
            [file],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let young = first.filter(|(seq, at)| *seq > 1 && *at > keys_since.millis() + DAY_MS);
    let mut gaps: Vec<(u64, u64)> = young.map(|(seq, _)| (1, seq - 1)).into_iter().collect();
    let between = t
        .prepare(
            "SELECT old_seq + 1, following - 1 FROM
               (SELECT old_seq, lead(old_seq, 1, (SELECT highest + 1 FROM salvage WHERE file = ?1))
                  OVER (ORDER BY old_seq) AS following FROM salvaged WHERE file = ?1)
             WHERE following > old_seq + 1 LIMIT 1000",
        )?
        .query_map([file], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    gaps.extend(between);
    if first.is_none() {
        let highest = t.query_row("SELECT highest FROM salvage WHERE file = ?1", [file], |row| row.get(0))?;
        gaps.extend((highest > 0).then_some((1, highest)));
    }
    Ok(gaps)
}

fn named(gaps: &[(u64, u64)]) -> String {
    let one = |(from, to): &(u64, u64)| if from == to { format!("{from}") } else { format!("{from}-{to}") };
    let mut words = gaps.iter().take(NAMED_GAPS).map(one).collect::<Vec<_>>().join(", ");
    if gaps.len() > NAMED_GAPS {
        words += &format!(" and {} more ranges", gaps.len() - NAMED_GAPS);
    }
    words
}

fn as_sqlite(error: std::io::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

#[cfg(test)]
pub(super) mod testing {
    //! Tells tests which orders stand where, so that they know what a damage may cost.

    use super::{Image, rows};
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    /// Which orders have a part of theirs on which page.
    pub(crate) struct Places {
        pages: BTreeMap<u32, BTreeSet<u64>>,
        /// The page of each frame of the journal.
        frames: Vec<u32>,
    }

    const PAGE: usize = 4096;
    const FRAME: usize = PAGE + 24;

    impl Places {
        /// The orders that a change of these bytes may cost. A frame stands for its page.
        pub(crate) fn touched(&self, in_wal: bool, at: usize, length: usize) -> BTreeSet<u64> {
            let pages: Vec<u32> = if in_wal {
                let end = (at + length).saturating_sub(32).div_ceil(FRAME);
                let first = at.saturating_sub(32) / FRAME;
                (first..end).filter_map(|frame| self.frames.get(frame).copied()).collect()
            } else {
                (at / PAGE..(at + length).div_ceil(PAGE))
                    .filter_map(|page| u32::try_from(page + 1).ok())
                    .collect()
            };
            pages.iter().filter_map(|page| self.pages.get(page)).flatten().copied().collect()
        }
    }

    /// Reads a sound ledger.
    pub(crate) fn places(ledger: &Path) -> Places {
        let mut image = Image::open(ledger).unwrap();
        let mut pages: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for page in 1..=image.pages() {
            let Some(content) = image.newest(page) else { continue };
            let (usable, mut long) = (image.usable(), Vec::new());
            let found = rows::rows(&content, page == 1, usable, &mut |next| {
                long.push(next);
                image.newest(next)
            });
            let orders = found.iter().filter(|row| row.values.len() > 6).map(|row| row.rowid.cast_unsigned());
            let orders: BTreeSet<u64> = orders.collect();
            for page in long.into_iter().chain([page]) {
                pages.entry(page).or_default().extend(&orders);
            }
        }
        let wal = std::fs::read(super::journal_of(ledger)).unwrap_or_default();
        let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let frames = wal.get(32..).unwrap_or(&[]).chunks_exact(FRAME).map(number).collect();
        Places { pages, frames }
    }
}
