//! What the ledger remembers for reconciliation, and every statement on it.
//!
//! A bucket of 256 places is marked by triggers whenever an origin settles an order in it (see `schema`), in the same
//! transaction, and stays marked until that origin has confirmed the bucket; so a gap of days is asked about as well
//! as one of minutes. Reads are bounded to one bucket, so that they never keep a till waiting.

use super::model::State;
use super::tables::{Tables, id};
use super::thread::Request;
use super::writes::{Move, make_pending};
use super::{Ledger, LedgerError};
use crate::clock::wall;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use samovar_wire::reconcile::LEAF_PLACES;
use samovar_wire::{Country, OriginId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Most marks that one pass takes on; the others wait for the next.
const MOST_MARKS: usize = 4_096;
/// Who sent an order again, in its history.
const WHO: &str = "reconciliation";
/// What was done, in its history.
const RESENT: &str = "resent";

/// True of an order that its origin has yet to confirm: its body must not be let go. An origin that does not reconcile
/// never will.
pub(super) const UNCONFIRMED: &str =
    "EXISTS(SELECT 1 FROM reconcile_marks m WHERE m.origin = orders.origin AND m.bucket = orders.seq / 256
     AND m.confirmed = 0
     AND NOT EXISTS(SELECT 1 FROM reconcile_origins o WHERE o.origin = m.origin AND o.supported = 0))";

/// How many of a bucket's orders were sent again and have no answer yet: of these a match says nothing.
const ON_THEIR_WAY: &str = "(SELECT count(*) FROM orders o WHERE o.seq BETWEEN ?2 * 256 AND ?2 * 256 + 255
     AND o.origin = ?1 AND o.state IN (0, 1)
     AND EXISTS(SELECT 1 FROM audit a WHERE a.seq = o.seq AND a.what = 'resent'))";

/// The bucket of a place.
#[must_use]
pub const fn bucket_of(seq: u64) -> u64 {
    seq / LEAF_PLACES
}

/// A bucket that an origin has yet to confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which bucket.
    pub bucket: u64,
    /// A match counts only for what was known when this was read.
    pub generation: u64,
    /// The origin has all of ours there, and orders besides that this ledger lacks; nothing has changed since.
    pub known: bool,
}

impl Mark {
    /// Whether nothing has settled there between the one reading and the other.
    #[must_use]
    pub const fn is_as(&self, other: &Self) -> bool {
        self.bucket == other.bucket && self.generation == other.generation
    }
}

/// Places in the ledger, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Places {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
}

/// An order that an origin has settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledOrder {
    /// Its place.
    pub seq: u64,
    /// Its key.
    pub key: String,
    /// Digest of its body.
    pub sha256: [u8; 32],
    /// The country that routed it.
    pub udl: Country,
}

/// The part of the ledger that can be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Keys up to here have been let go.
    pub forgotten_to: u64,
    /// The last place.
    pub last: u64,
}

/// How the last pass with an origin went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassNote {
    /// The origin.
    pub origin: OriginId,
    /// It reconciles at all.
    pub supported: bool,
    /// When it last answered.
    pub at: Timestamp,
    /// When it last had everything that it had settled.
    pub matched_at: Option<Timestamp>,
    /// When everything was last asked about.
    pub full_at: Option<Timestamp>,
    /// Ranges compared.
    pub ranges: u64,
    /// Orders compared.
    pub orders: u64,
    /// Orders sent again.
    pub resent: u64,
}

/// What an origin has not confirmed, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outstanding {
    /// The origin.
    pub origin: OriginId,
    /// Buckets it has yet to confirm.
    pub buckets: u64,
    /// Orders it was found to lack that are sent again, now or after a rest, and has not been seen to have since.
    pub resent: u64,
    /// Orders it lacks that cannot be sent again: their bodies have been let go.
    pub lost: u64,
    /// Orders it has that this ledger lacks.
    pub strange: u64,
    /// Those of them that lie behind the newest place of this ledger.
    pub beyond: u64,
}

/// An order that is on its way again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResentOrder {
    /// Its id.
    pub id: String,
    /// The till's number.
    pub order_no: String,
    /// Its place.
    pub seq: u64,
}

/// What came of sending orders again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resent {
    /// Pending again.
    pub orders: Vec<ResentOrder>,
    /// Keys of orders that cannot be sent again: their bodies have been let go.
    pub lost: Vec<String>,
    /// Sent again not long ago; they rest.
    pub resting: u64,
}

/// What is written about a comparison.
#[derive(Debug, Clone)]
pub(super) enum ReconcileWrite {
    /// The origin has what we have.
    Matched { origin: OriginId, marks: Vec<Mark> },
    /// It has more than we have in these places, nothing less.
    Strange { origin: OriginId, within: Places, marks: Vec<Mark>, strange: u64 },
    /// It lacks these; at most so many are sent again.
    Missing { origin: OriginId, within: Places, keys: Vec<String>, most: usize, at: Timestamp },
    /// Everything from this place on is to be asked about.
    MarkFrom { origin: OriginId, from: u64 },
    /// How a pass went.
    Note(PassNote),
}

impl Ledger {
    /// Buckets that an origin has yet to confirm, ascending.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn marks(&self, origin: &OriginId) -> Result<Vec<Mark>, LedgerError> {
        let origin = origin.clone();
        self.read(move |tables| tables.marks(&origin)).await
    }

    /// Orders of one bucket at most that an origin has settled, ascending.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn settled(&self, origin: &OriginId, within: Places) -> Result<Vec<SettledOrder>, LedgerError> {
        let origin = origin.clone();
        self.read(move |tables| tables.settled(&origin, within)).await
    }

    /// What can be compared.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn extent(&self) -> Result<Extent, LedgerError> {
        self.read(Tables::extent).await
    }

    /// The first place that was settled at this time or later and still has its body.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn first_settled_since(&self, since: Timestamp) -> Result<Option<u64>, LedgerError> {
        self.read(move |tables| tables.first_settled_since(since)).await
    }

    /// Those of the keys (a few hundred at most) that no order of this ledger has.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn strangers(&self, keys: Vec<String>) -> Result<Vec<String>, LedgerError> {
        self.read(move |tables| tables.strangers(keys)).await
    }

    /// Whether the origin may have orders of these places whose answers are still to come, or were not heeded.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn in_motion(&self, origin: &OriginId, within: Places) -> Result<bool, LedgerError> {
        let origin = origin.clone();
        self.read(move |tables| {
            let sql =
                "SELECT 1 FROM orders WHERE seq BETWEEN ?1 AND ?2 AND +state <> 2 AND +origin = ?3 LIMIT 1";
            tables.prepare(sql)?.exists(params![within.from, within.to, origin.as_str()])
        })
        .await
    }

    /// Every origin that has settled anything: what it has not confirmed, and how the last pass went.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn compared(&self) -> Result<Vec<(Outstanding, Option<PassNote>)>, LedgerError> {
        self.read(Tables::compared).await
    }

    /// Records that an origin has what we have.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn matched(&self, origin: &OriginId, marks: Vec<Mark>) -> Result<(), LedgerError> {
        self.reconcile(ReconcileWrite::Matched { origin: origin.clone(), marks }).await.map(drop)
    }

    /// Records that an origin has everything of ours, and orders besides that this ledger lacks.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn strange(
        &self,
        origin: &OriginId,
        within: Places,
        marks: Vec<Mark>,
        strange: u64,
    ) -> Result<(), LedgerError> {
        let write = ReconcileWrite::Strange { origin: origin.clone(), within, marks, strange };
        self.reconcile(write).await.map(drop)
    }

    /// Makes orders pending again that their origin lacks, bound to it as before. Only orders that it has settled and
    /// that lie within the places count, at most `most` of them, and none that was sent again not long ago.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn resend(
        &self,
        origin: &OriginId,
        within: Places,
        keys: Vec<String>,
        most: usize,
    ) -> Result<Resent, LedgerError> {
        let write = ReconcileWrite::Missing { origin: origin.clone(), within, keys, most, at: wall() };
        self.reconcile(write).await
    }

    /// Marks everything from a place on.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn mark_from(&self, origin: &OriginId, from: u64) -> Result<(), LedgerError> {
        self.reconcile(ReconcileWrite::MarkFrom { origin: origin.clone(), from }).await.map(drop)
    }

    /// Keeps how a pass went.
    ///
    /// # Errors
    /// When the disk failed.
    pub async fn note_pass(&self, note: PassNote) -> Result<(), LedgerError> {
        self.reconcile(ReconcileWrite::Note(note)).await.map(drop)
    }

    async fn reconcile(&self, write: ReconcileWrite) -> Result<Resent, LedgerError> {
        self.write(|reply| Request::Reconcile { write, reply }).await
    }
}

impl Tables {
    fn marks(&self, origin: &OriginId) -> rusqlite::Result<Vec<Mark>> {
        self.prepare(
            "SELECT bucket, generation, confirmed = 1 AND strange > 0 FROM reconcile_marks WHERE origin = ?1
             ORDER BY bucket LIMIT ?2",
        )?
        .query_map(params![origin.as_str(), MOST_MARKS], |row| {
            Ok(Mark { bucket: row.get(0)?, generation: row.get(1)?, known: row.get(2)? })
        })?
        .collect()
    }

    fn settled(&self, origin: &OriginId, within: Places) -> rusqlite::Result<Vec<SettledOrder>> {
        let to = within.to.min(within.from.saturating_add(LEAF_PLACES - 1));
        self.prepare(
            "SELECT seq, key, sha256, udl FROM orders
             WHERE seq BETWEEN ?1 AND ?2 AND +state = 2 AND +origin = ?3 ORDER BY seq",
        )?
        .query_map(params![within.from, to, origin.as_str()], |row| {
            Ok(SettledOrder { seq: row.get(0)?, key: row.get(1)?, sha256: row.get(2)?, udl: id(row, 3)? })
        })?
        .collect()
    }

    fn extent(&self) -> rusqlite::Result<Extent> {
        let one = |sql| self.prepare(sql)?.query_row([], |row| row.get::<_, Option<u64>>(0)).optional();
        let forgotten_to = one("SELECT CAST(v AS INTEGER) FROM meta WHERE k = 'forgotten_to'")?;
        let last = one("SELECT seq FROM sqlite_sequence WHERE name = 'orders'")?;
        Ok(Extent { forgotten_to: forgotten_to.flatten().unwrap_or(0), last: last.flatten().unwrap_or(0) })
    }

    fn first_settled_since(&self, since: Timestamp) -> rusqlite::Result<Option<u64>> {
        self.prepare("SELECT min(+seq) FROM orders WHERE state = 2 AND body IS NOT NULL AND closed_at >= ?1")?
            .query_row([since.millis()], |row| row.get(0))
    }

    fn strangers(&self, mut keys: Vec<String>) -> rusqlite::Result<Vec<String>> {
        let mut statement = self.prepare(
            "SELECT 1 FROM orders WHERE key = ?1 AND conflict_with IS NULL UNION ALL
             SELECT 1 FROM orders WHERE key = ?1 AND conflict_with IS NOT NULL",
        )?;
        let mut failed = None;
        keys.retain(|key| match statement.exists([key]) {
            Ok(known) => !known,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        failed.map_or(Ok(keys), Err)
    }

    fn compared(&self) -> rusqlite::Result<Vec<(Outstanding, Option<PassNote>)>> {
        self.prepare(
            "SELECT origins.origin, count(m.bucket), coalesce(sum(m.resent), 0), coalesce(sum(m.lost), 0),
               coalesce(sum(m.strange), 0),
               coalesce(sum(m.strange) FILTER
                 (WHERE m.bucket > (SELECT seq / 256 FROM sqlite_sequence WHERE name = 'orders')), 0), o.supported, o.at, o.matched_at, o.full_at, o.ranges, o.orders, o.resent
             FROM (SELECT origin FROM reconcile_marks UNION SELECT origin FROM reconcile_origins) origins
             LEFT JOIN reconcile_marks m ON m.origin = origins.origin
             LEFT JOIN reconcile_origins o ON o.origin = origins.origin
             GROUP BY origins.origin ORDER BY origins.origin",
        )?
        .query_map([], |row| {
            let outstanding = Outstanding {
                origin: id(row, 0)?,
                buckets: row.get(1)?,
                resent: row.get(2)?,
                lost: row.get(3)?,
                strange: row.get(4)?,
                beyond: row.get(5)?,
            };
            let note = pass_note(row, &outstanding.origin)?;
            Ok((outstanding, note))
        })?
        .collect()
    }
}

fn pass_note(row: &Row<'_>, origin: &OriginId) -> rusqlite::Result<Option<PassNote>> {
    let Some(at) = row.get::<_, Option<i64>>(7)? else { return Ok(None) };
    let time =
        |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(index)?.map(Timestamp::from_millis));
    Ok(Some(PassNote {
        origin: origin.clone(),
        supported: row.get(6)?,
        at: Timestamp::from_millis(at),
        matched_at: time(8)?,
        full_at: time(9)?,
        ranges: row.get(10)?,
        orders: row.get(11)?,
        resent: row.get(12)?,
    }))
}

/// Does one write inside the group's transaction.
pub(super) fn perform(t: &Transaction<'_>, write: &ReconcileWrite) -> rusqlite::Result<(Resent, Vec<Move>)> {
    match write {
        ReconcileWrite::Matched { origin, marks } => {
            let mut keep = t.prepare_cached(&format!(
                "UPDATE reconcile_marks SET confirmed = 1, lost = 0, strange = 0, resent = {ON_THEIR_WAY}
                 WHERE origin = ?1 AND bucket = ?2 AND generation = ?3 AND resent > 0"
            ))?;
            let mut clear = t.prepare_cached(
                "DELETE FROM reconcile_marks WHERE origin = ?1 AND bucket = ?2 AND generation = ?3 AND resent = 0",
            )?;
            for mark in marks {
                keep.execute(params![origin.as_str(), mark.bucket, mark.generation])?;
                clear.execute(params![origin.as_str(), mark.bucket, mark.generation])?;
            }
        }
        ReconcileWrite::Strange { origin, within, marks, strange } => {
            note_strange(t, (origin, *within), marks, *strange)?;
        }
        ReconcileWrite::Missing { origin, within, keys, most, at } => {
            return resend(t, (origin, *within), keys, *most, *at);
        }
        ReconcileWrite::MarkFrom { origin, from } => mark_from(t, origin, *from)?,
        ReconcileWrite::Note(note) => note_pass(t, note)?,
    }
    Ok((Resent::default(), Vec::new()))
}

/// Nothing of ours is missing there, so the bodies may go; the marks stay, so that it is asked again.
fn note_strange(
    t: &Transaction<'_>,
    (origin, within): (&OriginId, Places),
    marks: &[Mark],
    strange: u64,
) -> rusqlite::Result<()> {
    if marks.is_empty() {
        // A bucket that was confirmed before. One that was marked meanwhile is asked about anyhow.
        t.prepare_cached(
            "INSERT INTO reconcile_marks(origin, bucket, confirmed, strange) VALUES(?1, ?2, 1, ?3)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![origin.as_str(), bucket_of(within.from), strange])?;
    }
    let mut update = t.prepare_cached(&format!(
        "UPDATE reconcile_marks SET confirmed = 1, lost = 0, strange = ?4,
           resent = iif(resent > 0, {ON_THEIR_WAY}, 0)
         WHERE origin = ?1 AND bucket = ?2 AND generation = ?3"
    ))?;
    let mut told = strange;
    for mark in marks {
        update.execute(params![origin.as_str(), mark.bucket, mark.generation, told])?;
        // A range of several buckets does not say in which of them: counted once.
        told = 0;
    }
    Ok(())
}

/// An origin keeps keys for longer than we do: up to the last place that was forgotten there is nothing to compare.
pub(super) fn forgotten(t: &Transaction<'_>, up_to: Option<u64>) -> rusqlite::Result<()> {
    let Some(up_to) = up_to else { return Ok(()) };
    t.prepare_cached(
        "INSERT INTO meta(k, v) VALUES('forgotten_to', CAST(?1 AS TEXT))
         ON CONFLICT(k) DO UPDATE SET v = CAST(max(CAST(v AS INTEGER), ?1) AS TEXT)",
    )?
    .execute([up_to])
    .map(drop)
}

fn mark_from(t: &Transaction<'_>, origin: &OriginId, from: u64) -> rusqlite::Result<()> {
    t.prepare_cached(
        "INSERT INTO reconcile_marks(origin, bucket)
         WITH RECURSIVE b(n) AS (
           SELECT ?2 UNION ALL SELECT n + 1 FROM b WHERE n < (SELECT max(seq) / ?3 FROM orders))
         SELECT ?1, n FROM b WHERE true
         ON CONFLICT(origin, bucket) DO UPDATE SET generation = generation + 1, confirmed = 0",
    )?
    .execute(params![origin.as_str(), bucket_of(from), LEAF_PLACES])
    .map(drop)
}

fn note_pass(t: &Transaction<'_>, note: &PassNote) -> rusqlite::Result<()> {
    t.prepare_cached(
        "INSERT INTO reconcile_origins(origin, supported, at, matched_at, full_at, ranges, orders, resent)
         VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT(origin) DO UPDATE SET supported = excluded.supported, at = excluded.at,
           matched_at = coalesce(excluded.matched_at, matched_at), full_at = coalesce(excluded.full_at, full_at),
           ranges = excluded.ranges, orders = excluded.orders, resent = excluded.resent",
    )?
    .execute(params![
        note.origin.as_str(),
        note.supported,
        note.at.millis(),
        note.matched_at.map(Timestamp::millis),
        note.full_at.map(Timestamp::millis),
        note.ranges,
        note.orders,
        note.resent
    ])
    .map(drop)
}

fn resend(
    t: &Transaction<'_>,
    (origin, within): (&OriginId, Places),
    keys: &[String],
    most: usize,
    now: Timestamp,
) -> rusqlite::Result<(Resent, Vec<Move>)> {
    let (mut resent, mut moves) = (Resent::default(), Vec::new());
    let mut find = t.prepare_cached(
        "SELECT seq, id, order_no, body IS NOT NULL, (SELECT count(*) FROM audit a WHERE a.seq = orders.seq AND what = ?6),
           (SELECT max(at) FROM audit a WHERE a.seq = orders.seq AND what = ?6)
         FROM orders WHERE key = ?1 AND conflict_with IS NULL AND state = ?2 AND origin = ?3 AND seq BETWEEN ?4 AND ?5",
    )?;
    let mut mark = t.prepare_cached(
        "INSERT INTO reconcile_marks(origin, bucket, resent, lost) VALUES(?1, ?2, ?3, ?4)
         ON CONFLICT(origin, bucket) DO UPDATE SET generation = generation + 1, confirmed = 0,
           resent = excluded.resent, lost = excluded.lost",
    )?;
    // By bucket: those that can be sent again, and those that cannot. Each counts once, however often it is sent.
    let mut lacks: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    // An origin may name a key twice.
    for key in keys.iter().collect::<BTreeSet<_>>() {
        let row = find
            .query_row(
                params![key, State::Settled as u8, origin.as_str(), within.from, within.to, RESENT],
                |row| {
                    let order = ResentOrder { seq: row.get(0)?, id: row.get(1)?, order_no: row.get(2)? };
                    let last: Option<i64> = row.get(5)?;
                    Ok((order, row.get::<_, bool>(3)?, row.get::<_, u32>(4)?, last))
                },
            )
            .optional()?;
        let Some((order, has_body, times, last)) = row else { continue };
        let (again, gone) = lacks.entry(bucket_of(order.seq)).or_default();
        *again += u64::from(has_body);
        *gone += u64::from(!has_body);
        if !has_body {
            resent.lost.push(key.clone());
        } else if rests(times, last, now) || resent.orders.len() >= most {
            resent.resting += 1;
        } else {
            let reason = format!("{origin} lacks it");
            t.prepare_cached("INSERT INTO audit(at, seq, what, who, reason) VALUES(?1, ?2, ?3, ?4, ?5)")?
                .execute(params![now.millis(), order.seq, RESENT, WHO, reason])?;
            moves.extend(make_pending(t, order.seq, false)?);
            resent.orders.push(order);
        }
    }
    for (bucket, (again, gone)) in lacks {
        mark.execute(params![origin.as_str(), bucket, again, gone])?;
    }
    Ok((resent, moves))
}

/// An order that was sent again rests before it is sent again once more, four times as long each time, up to a day: an
/// origin that always says "missing" must not keep the line busy. A clock that was set back ends the rest.
fn rests(times: u32, last: Option<i64>, now: Timestamp) -> bool {
    const MINUTE: i64 = 60_000;
    const DAY: i64 = 24 * 60 * MINUTE;
    let Some(last) = last else { return false };
    let rest = 4_i64.saturating_pow(times.saturating_sub(1)).saturating_mul(MINUTE / 2).min(DAY);
    (0..rest).contains(&now.millis().saturating_sub(last))
}

#[cfg(test)]
mod tests;
