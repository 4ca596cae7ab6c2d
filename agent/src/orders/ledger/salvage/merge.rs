//! Takes one row of a damaged ledger into the new one. Every statement of salvage that changes orders is here.

use super::rows::Found;
use crate::orders::ledger::model::{DAMAGED, Group, KEY_REUSED, State};
use crate::orders::ledger::seal::{Keys, Unreadable};
use crate::orders::ledger::writes::{Move, Place, place};
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Transaction, params};
use samovar_wire::encoding::sha256;
use samovar_wire::{Country, OriginId, Timestamp};

/// Stands for an order that had the key first until that one is found.
const UNKNOWN: i64 = 0;
/// Country of an order whose own cannot be read; it is in quarantine.
const NOWHERE: &str = "ZZ";

/// How the counts change.
#[derive(Debug)]
pub(in crate::orders::ledger) enum Counted {
    /// An order came.
    Came(Place),
    /// One that was there moved.
    Moved(Move),
}

/// An order of the damaged ledger.
#[derive(Debug)]
pub(super) struct Old {
    seq: i64,
    id: String,
    key: String,
    conflict_with: Option<i64>,
    order_no: String,
    sha256: [u8; 32],
    udl: Option<Country>,
    user: Option<String>,
    kind: String,
    depends_on: Option<String>,
    body: Option<Vec<u8>>,
    bytes: i64,
    accepted_at: Option<i64>,
    state: Option<State>,
    why: Option<String>,
    detail: Option<String>,
    origin: Result<Option<OriginId>, ()>,
    attempts: i64,
    first_sent_at: Option<i64>,
    sent_at: Option<i64>,
    closed_at: Option<i64>,
    sealed: Option<i64>,
    /// Part of the row is missing.
    cut: bool,
    /// It stood on a page that was no longer in use.
    stale: bool,
}

impl Old {
    /// Reads a row; `None` when it is no order after all.
    pub(super) fn read(mut row: Found, columns: &[String], stale: bool) -> Option<Self> {
        let mut take = |name: &str| {
            let at = columns.iter().position(|column| column == name)?;
            row.values.get_mut(at).map(|value| std::mem::replace(value, Value::Null))
        };
        let id = text(take("id")).filter(|id| uuid::Uuid::try_parse(id).is_ok())?;
        let Some(Value::Blob(digest)) = take("sha256") else { return None };
        let origin = match text(take("origin")) {
            Some(origin) => origin.parse().map(Some).map_err(|_| ()),
            None => Ok(None),
        };
        let attempts = whole(take("attempts")).unwrap_or(0).clamp(0, i64::from(u32::MAX));
        Some(Self {
            seq: row.rowid,
            id,
            key: text(take("key")).filter(|key| !key.is_empty())?,
            conflict_with: whole(take("conflict_with")),
            order_no: text(take("order_no"))?,
            sha256: digest.try_into().ok()?,
            udl: text(take("udl")).and_then(|udl| udl.parse().ok()),
            user: text(take("user")),
            kind: text(take("kind")).unwrap_or_default(),
            depends_on: text(take("depends_on")),
            body: match take("body") {
                Some(Value::Blob(body)) => Some(body),
                _ => None,
            },
            bytes: whole(take("bytes")).unwrap_or(0).clamp(0, i64::from(u32::MAX)),
            accepted_at: whole(take("accepted_at")),
            state: whole(take("state"))
                .and_then(|state| usize::try_from(state).ok())
                .and_then(|state| State::ALL.get(state).copied()),
            why: text(take("why")),
            detail: text(take("detail")),
            origin,
            // A binding without a count means that part of the row is gone.
            attempts,
            first_sent_at: whole(take("first_sent_at")),
            sent_at: whole(take("sent_at")),
            closed_at: whole(take("closed_at")),
            sealed: whole(take("sealed")),
            cut: row.cut,
            stale,
        })
    }

    /// What is wrong with it: the words go into quarantine with it.
    fn damage(&self, keys: &Keys) -> Option<&'static str> {
        let Some(state) = self.state else { return Some("its state could not be read") };
        if self.cut || self.udl.is_none() || self.origin.is_err() || self.accepted_at.is_none() {
            return Some("part of its record could not be read");
        }
        let Some(body) = &self.body else {
            let needs_body = matches!(state, State::Pending | State::Held);
            return needs_body.then_some("its body could not be read");
        };
        match keys.open(self.sealed, &self.id, body.clone()) {
            Ok(body) if sha256(&body) == self.sha256 => None,
            // Without the key nothing can be said; sending it will.
            Err(Unreadable::NoKey) => None,
            Ok(_) | Err(Unreadable::Damaged) => Some("its body does not match its digest"),
        }
    }
}

fn text(value: Option<Value>) -> Option<String> {
    match value {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "stands beside `text`, which consumes its value")]
fn whole(value: Option<Value>) -> Option<i64> {
    match value {
        Some(Value::Integer(number)) => Some(number),
        _ => None,
    }
}

/// How far along an order is: what salvage finds never takes one back.
const fn rank(state: State) -> u8 {
    match state {
        State::Held => 0,
        State::Pending => 1,
        State::Quarantined => 2,
        State::Discarded => 3,
        State::Settled => 4,
    }
}

/// Where rows go.
pub(super) struct Merge<'a> {
    pub(super) t: &'a Transaction<'a>,
    pub(super) file: &'a str,
    pub(super) keys: &'a Keys,
    pub(super) now: Timestamp,
    /// Keys of settled orders are remembered since then.
    pub(super) keys_since: Timestamp,
    pub(super) counted: Vec<Counted>,
}

/// An order that the new ledger has already.
struct Known {
    seq: i64,
    sha256: [u8; 32],
    /// It is in quarantine because only a damaged copy of it was found so far.
    damaged: bool,
}

impl Merge<'_> {
    /// Takes an order over.
    pub(super) fn order(&mut self, old: &Old) -> rusqlite::Result<()> {
        if old.stale && old.accepted_at.is_none_or(|at| at < self.keys_since.millis()) {
            return Ok(());
        }
        let damage = old.damage(self.keys);
        if let Some(known) = self.known("id = ?1", &old.id)? {
            if damage.is_none() && known.damaged {
                self.heal(known.seq, old)?;
            } else if damage.is_none() && !old.stale {
                self.advance(known.seq, old)?;
            }
            return self.remember(old, known.seq);
        }
        let first = self.known("key = ?1 AND conflict_with IS NULL", &old.key)?;
        match first {
            Some(first) if old.conflict_with.is_none() && first.sha256 == old.sha256 => {
                if damage.is_none() {
                    self.advance(first.seq, old)?;
                }
                self.add("merged")?;
                self.remember(old, first.seq)
            }
            Some(first) if old.conflict_with.is_none() => {
                let seq = self.insert(old, damage, Some(first.seq))?;
                self.remember(old, seq)
            }
            _ => {
                let seq = self.insert(old, damage, old.conflict_with.map(|_| UNKNOWN))?;
                self.remember(old, seq)
            }
        }
    }

    fn known(&self, which: &str, value: &str) -> rusqlite::Result<Option<Known>> {
        self.t
            .prepare_cached(&format!("SELECT seq, sha256, why IS '{DAMAGED}' FROM orders WHERE {which}"))?
            .query_row([value], |row| {
                Ok(Known { seq: row.get(0)?, sha256: row.get(1)?, damaged: row.get(2)? })
            })
            .optional()
    }

    fn add(&self, column: &str) -> rusqlite::Result<()> {
        let update = format!("UPDATE salvage SET {column} = {column} + 1 WHERE file = ?1");
        self.t.prepare_cached(&update)?.execute([self.file]).map(drop)
    }

    fn remember(&self, old: &Old, seq: i64) -> rusqlite::Result<()> {
        self.t
            .prepare_cached(
                "INSERT INTO salvaged(file, old_seq, seq, conflict_with) VALUES(?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            )?
            .execute(params![self.file, old.seq, seq, old.conflict_with])
            .map(drop)
    }

    /// Puts a sound copy of an order in the place of a damaged one.
    fn heal(&mut self, seq: i64, old: &Old) -> rusqlite::Result<()> {
        let Some(from) = place(self.t, seq.cast_unsigned())? else { return Ok(()) };
        let (Some(state), Some(udl)) = (old.state, &old.udl) else { return Ok(()) };
        let origin = old.origin.clone().unwrap_or_default();
        self.t
            .prepare_cached(
                "UPDATE orders SET body = ?2, bytes = ?3, sealed = ?4, udl = ?5, state = ?6, why = ?7, detail = ?8,
                 origin = ?9, attempts = ?10, first_sent_at = ?11, sent_at = ?12, closed_at = ?13, accepted_at = ?14,
                 user = ?15, kind = ?16, depends_on = ?17 WHERE seq = ?1",
            )?
            .execute(params![
                seq,
                old.body,
                old.bytes,
                old.sealed,
                udl.as_str(),
                state as u8,
                old.why,
                old.detail,
                origin.as_ref().map(OriginId::as_str),
                old.attempts,
                old.first_sent_at,
                old.sent_at,
                self.closed_at(old, state),
                old.accepted_at,
                old.user,
                old.kind,
                old.depends_on
            ])?;
        let to = Place { state, group: Group { origin, udl: udl.clone() }, why: old.why.clone() };
        self.counted.push(Counted::Moved(Move { from, to }));
        Ok(())
    }

    /// Gives an order that is there what the old record knows beyond it.
    fn advance(&mut self, seq: i64, old: &Old) -> rusqlite::Result<()> {
        let Some(from) = place(self.t, seq.cast_unsigned())? else { return Ok(()) };
        let state = old.state.unwrap_or(State::Pending);
        let further = rank(state) > rank(from.state);
        let bound = old.origin.clone().unwrap_or_default();
        let binds = from.group.origin.is_none() && bound.is_some() && !matches!(from.state, State::Settled);
        if !further && !binds {
            return Ok(());
        }
        let origin = if binds || further && bound.is_some() { bound } else { from.group.origin.clone() };
        self.t
            .prepare_cached(
                "UPDATE orders SET origin = ?2, attempts = max(attempts, ?3), first_sent_at = coalesce(?4, first_sent_at),
                 sent_at = coalesce(sent_at, ?5) WHERE seq = ?1",
            )?
            .execute(params![
                seq,
                origin.as_ref().map(OriginId::as_str),
                old.attempts,
                old.first_sent_at,
                old.sent_at
            ])?;
        let mut to = from.clone();
        to.group.origin = origin;
        if further {
            self.t
                .prepare_cached(
                    "UPDATE orders SET state = ?2, why = ?3, detail = ?4, closed_at = ?5 WHERE seq = ?1",
                )?
                .execute(params![seq, state as u8, old.why, old.detail, self.closed_at(old, state)])?;
            (to.state, to.why) = (state, old.why.clone());
        }
        self.counted.push(Counted::Moved(Move { from, to }));
        Ok(())
    }

    /// Retention goes by this time, so it is never missing.
    fn closed_at(&self, old: &Old, state: State) -> Option<i64> {
        let closed = !matches!(state, State::Pending | State::Held);
        closed.then(|| old.closed_at.unwrap_or_else(|| self.now.millis()))
    }

    fn insert(
        &mut self,
        old: &Old,
        damage: Option<&str>,
        conflict_with: Option<i64>,
    ) -> rusqlite::Result<i64> {
        let kept = old.state.unwrap_or(State::Quarantined);
        let open = !matches!(kept, State::Settled | State::Discarded);
        let reused = conflict_with.is_some_and(|first| first != UNKNOWN) && open;
        let (state, why, detail) = match damage {
            Some(damage) if open => (State::Quarantined, Some(DAMAGED), Some(damage)),
            _ if reused => {
                let words = "its key is used by another order that came after the ledger was damaged";
                (State::Quarantined, Some(KEY_REUSED), Some(words))
            }
            _ => (kept, old.why.as_deref(), old.detail.as_deref()),
        };
        let udl = old.udl.as_ref().map_or(NOWHERE, Country::as_str);
        let origin = old.origin.clone().unwrap_or_default();
        self.t
            .prepare_cached(
                "INSERT INTO orders(id, key, conflict_with, order_no, sha256, udl, user, kind, depends_on, body, bytes,
                 accepted_at, state, why, detail, origin, attempts, first_sent_at, sent_at, closed_at, sealed)
                 VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21)",
            )?
            .execute(params![
                old.id,
                old.key,
                conflict_with,
                old.order_no,
                old.sha256,
                udl,
                old.user,
                old.kind,
                old.depends_on,
                old.body,
                old.bytes,
                old.accepted_at.unwrap_or_else(|| self.now.millis()),
                state as u8,
                why,
                detail,
                origin.as_ref().map(OriginId::as_str),
                old.attempts,
                old.first_sent_at,
                old.sent_at,
                self.closed_at(old, state),
                old.sealed
            ])?;
        let seq = self.t.last_insert_rowid();
        self.add("came")?;
        if let Ok(udl) = udl.parse() {
            let group = Group { origin, udl };
            self.counted.push(Counted::Came(Place { state, group, why: why.map(str::to_owned) }));
        }
        Ok(seq)
    }

    /// Takes over what an operator did.
    pub(super) fn audit(&mut self, row: &Found) -> rusqlite::Result<()> {
        let [
            Value::Integer(at),
            Value::Integer(old_seq),
            Value::Text(what),
            Value::Text(who),
            Value::Text(reason),
        ] = row.values.as_slice()
        else {
            return Ok(());
        };
        self.t
            .prepare_cached(
                "INSERT INTO audit(at, seq, what, who, reason)
                 SELECT ?3, seq, ?4, ?5, ?6 FROM salvaged s WHERE file = ?1 AND old_seq = ?2 AND NOT EXISTS
                   (SELECT 1 FROM audit a WHERE a.seq = s.seq AND a.at = ?3 AND a.what = ?4 AND a.who = ?5)",
            )?
            .execute(params![self.file, old_seq, at, what, who, reason])
            .map(drop)
    }

    /// Learns how far the old ledger had come.
    pub(super) fn last_place(&mut self, row: &Found) -> rusqlite::Result<()> {
        let [Value::Text(table), Value::Integer(highest)] = row.values.as_slice() else { return Ok(()) };
        // A number that is damaged itself would tell of losses that never were.
        if table != "orders" || !(0..1 << 40).contains(highest) {
            return Ok(());
        }
        self.t
            .prepare_cached("UPDATE salvage SET highest = max(highest, ?2) WHERE file = ?1")?
            .execute(params![self.file, highest])
            .map(drop)
    }
}

/// Points the orders that were kept because of a reused key to those that had it first, under their new places.
pub(super) fn link_conflicts(t: &Transaction<'_>, file: &str) -> rusqlite::Result<()> {
    t.execute(
        "UPDATE orders SET conflict_with = first.seq FROM salvaged AS kept, salvaged AS first
         WHERE kept.file = ?1 AND first.file = ?1 AND first.old_seq = kept.conflict_with
           AND orders.seq = kept.seq AND orders.conflict_with = 0",
        [file],
    )
    .map(drop)
}
