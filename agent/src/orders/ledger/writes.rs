//! Every statement that changes orders. Each runs inside the group's transaction and tells, beside its answer, how the
//! counts move; nothing in here waits.

use super::model::{
    Accepted, Backlog, CONFLICT, Change, ChangeTo, DAMAGED, Group, Hold, Incoming, Intervention, KEY_REUSED,
    LEFT, Outgoing, Receipt, State, Stored, UNREADABLE, Waiting,
};
use super::tables::{RECEIPT, id, optional_id, receipt, state};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use samovar_wire::{OriginId, Timestamp};

/// Takes one order in, unless its key is known.
pub(super) fn accept(t: &Transaction<'_>, new: &Incoming) -> rusqlite::Result<Accepted> {
    let order = &new.new.order;
    let first = t
        .prepare_cached(&format!("{RECEIPT} WHERE key = ?1 AND conflict_with IS NULL"))?
        .query_row([&order.key], receipt)
        .optional()?;
    match first {
        None => {
            let held = waits_for(t, order.depends_on.as_deref())?;
            insert(t, new, held.as_deref().map(|detail| (State::Held, Hold::DependsOn.word(), detail)), None)
                .map(Accepted::New)
        }
        Some((receipt, sha256)) if sha256 == order.sha256 => Ok(Accepted::Replay(receipt)),
        Some((first, _)) => {
            let known = t
                .prepare_cached(&format!(
                    "{RECEIPT} WHERE key = ?1 AND conflict_with IS NOT NULL AND sha256 = ?2"
                ))?
                .query_row(params![order.key, order.sha256], receipt)
                .optional()?;
            if let Some((kept, _)) = known {
                return Ok(Accepted::KeyReused { kept, first: first.id, repeated: true });
            }
            let detail = format!("the key was used before, by order {} with other content", first.id);
            let why = (State::Quarantined, KEY_REUSED, detail.as_str());
            let kept = insert(t, new, Some(why), Some(first.seq))?;
            Ok(Accepted::KeyReused { kept, first: first.id, repeated: false })
        }
    }
}

/// What the order must wait for; `None` when its dependency is settled, or is not in this ledger.
fn waits_for(t: &Transaction<'_>, depends_on: Option<&str>) -> rusqlite::Result<Option<String>> {
    let Some(number) = depends_on else { return Ok(None) };
    let earlier = t
        .prepare_cached(&format!(
            "{RECEIPT} WHERE seq = (SELECT max(seq) FROM
               (SELECT seq FROM orders WHERE key = ?1 AND conflict_with IS NULL AND order_no = ?1 UNION ALL
                SELECT seq FROM orders WHERE order_no = ?1 AND order_no <> key AND conflict_with IS NULL))"
        ))?
        .query_row([number], receipt)
        .optional()?;
    Ok(earlier.and_then(|(receipt, _)| match receipt.state {
        State::Settled => None,
        State::Discarded => Some(never_settled(number)),
        _ => Some(format!("waits until order {number} is settled")),
    }))
}

/// A refund of a sale that never happened must not go by itself: a person decides.
fn never_settled(number: &str) -> String {
    format!("order {number} was discarded and will not be settled: retry or discard this one")
}

fn insert(
    t: &Transaction<'_>,
    incoming: &Incoming,
    why: Option<(State, &str, &str)>,
    conflict_with: Option<u64>,
) -> rusqlite::Result<Receipt> {
    let new = &incoming.new;
    let order = &new.order;
    let (state, why, detail) = match why {
        Some((state, why, detail)) => (state, Some(why), Some(detail)),
        None => (State::Pending, None, None),
    };
    let closed_at = (state == State::Quarantined).then_some(new.accepted_at.millis());
    t.prepare_cached(
        "INSERT INTO orders(id, key, conflict_with, order_no, sha256, udl, user, kind, depends_on, body, bytes,
         accepted_at, state, why, detail, closed_at, sealed)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)",
    )?
    .execute(params![
        new.id,
        order.key,
        conflict_with,
        order.order_no,
        order.sha256,
        order.udl.as_str(),
        order.user,
        order.kind,
        order.depends_on,
        order.body,
        incoming.bytes,
        new.accepted_at.millis(),
        state as u8,
        why,
        detail,
        closed_at,
        incoming.sealed
    ])?;
    Ok(Receipt {
        id: new.id.clone(),
        order_no: order.order_no.clone(),
        state,
        seq: u64::try_from(t.last_insert_rowid()).unwrap_or_default(),
        accepted_at: new.accepted_at,
    })
}

/// What a change did to the counts: the order left one place and came to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: Place,
    pub(super) to: Place,
}

/// Where an order is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) state: State,
    pub(super) group: Group,
    pub(super) why: Option<String>,
}

pub(super) fn place(t: &Transaction<'_>, seq: u64) -> rusqlite::Result<Option<Place>> {
    t.prepare_cached("SELECT state, origin, udl, why FROM orders WHERE seq = ?1")?
        .query_row([seq], |row| {
            let group = Group { origin: optional_id(row, 1)?, udl: id(row, 2)? };
            Ok(Place { state: state(row, 0)?, group, why: row.get(3)? })
        })
        .optional()
}

/// Binds pending orders to an origin and counts the attempt; gives them with their bodies, to be sent once this is
/// durable. Orders that are no longer pending, or are bound elsewhere, are left alone: the caller gets only what it may
/// send.
pub(super) fn bind(
    t: &Transaction<'_>,
    seqs: &[u64],
    origin: &OriginId,
    now: Timestamp,
) -> rusqlite::Result<(Vec<Stored<Outgoing>>, Vec<Move>)> {
    let (mut bound, mut moves) = (Vec::with_capacity(seqs.len()), Vec::with_capacity(seqs.len()));
    // Read before it is written, so that each order is looked up twice and not three times.
    let mut select = t.prepare_cached(
        "SELECT seq, id, key, order_no, sha256, accepted_at, body, sealed, origin, udl FROM orders
         WHERE seq = ?1 AND state = 0 AND body IS NOT NULL AND (origin IS NULL OR origin = ?2)",
    )?;
    let mut update = t.prepare_cached(
        "UPDATE orders SET origin = ?2, attempts = attempts + 1, sent_at = ?3,
         first_sent_at = coalesce(first_sent_at, ?3) WHERE seq = ?1",
    )?;
    for &seq in seqs {
        let found = select.query_row(params![seq, origin.as_str()], |row| {
            let from = Group { origin: optional_id(row, 8)?, udl: id(row, 9)? };
            Ok((outgoing(row)?, from))
        });
        let Some((order, from)) = found.optional()? else { continue };
        update.execute(params![seq, origin.as_str(), now.millis()])?;
        let to = Group { origin: Some(origin.clone()), udl: from.udl.clone() };
        moves.push(Move { from: Place::pending(from), to: Place::pending(to) });
        bound.push(order);
    }
    Ok((bound, moves))
}

fn outgoing(row: &Row<'_>) -> rusqlite::Result<Stored<Outgoing>> {
    let value = Outgoing {
        seq: row.get(0)?,
        id: row.get(1)?,
        key: row.get(2)?,
        order_no: row.get(3)?,
        sha256: row.get(4)?,
        accepted_at: Timestamp::from_millis(row.get(5)?),
        body: row.get(6)?,
    };
    Ok(Stored { value, sealed: row.get(7)? })
}

/// Writes what became of orders, and frees those that waited for a settled one.
pub(super) fn change(t: &Transaction<'_>, changes: &[Change], now: Timestamp) -> rusqlite::Result<Vec<Move>> {
    let mut moves = Vec::with_capacity(changes.len());
    let mut settled = Vec::with_capacity(changes.len());
    for change in changes {
        let step = match &change.to {
            ChangeTo::Settled => {
                let step = settle(t, change.seq, now)?;
                settled.extend(step.is_some().then_some(change.seq));
                step
            }
            ChangeTo::Withdrawn => {
                withdraw(t, change.seq)?;
                None
            }
            ChangeTo::Quarantined { why, detail } => {
                close(t, change.seq, State::Quarantined, Some(why), detail, Some(now))?
            }
            ChangeTo::Held(hold, detail) => {
                close(t, change.seq, State::Held, Some(hold.word()), detail, None)?
            }
            ChangeTo::Failed(detail) => close(t, change.seq, State::Pending, None, detail, None)?,
        };
        moves.extend(step);
    }
    moves.extend(free_dependents(t, &settled)?);
    Ok(moves)
}

/// The origin's word that it has an order is the truth whatever happened here meanwhile.
fn settle(t: &Transaction<'_>, seq: u64, now: Timestamp) -> rusqlite::Result<Option<Move>> {
    let to = |group| Place { state: State::Settled, group, why: None };
    // Nearly all come from here, and are looked up once.
    let pending = t
        .prepare_cached(
            "UPDATE orders SET state = 2, why = NULL, closed_at = ?2 WHERE seq = ?1 AND state = 0
             RETURNING origin, udl",
        )?
        .query_row(params![seq, now.millis()], |row| {
            Ok(Group { origin: optional_id(row, 0)?, udl: id(row, 1)? })
        })
        .optional()?;
    if let Some(group) = pending {
        return Ok(Some(Move { from: Place::pending(group.clone()), to: to(group) }));
    }
    let Some(from) = place(t, seq)?.filter(|from| from.state != State::Settled) else { return Ok(None) };
    t.prepare_cached("UPDATE orders SET state = 2, why = NULL, closed_at = ?2 WHERE seq = ?1")?
        .execute(params![seq, now.millis()])?;
    let to = to(from.group.clone());
    Ok(Some(Move { from, to }))
}

/// Any other change is for pending orders only. One that stays pending keeps the words and moves nowhere.
fn close(
    t: &Transaction<'_>,
    seq: u64,
    to: State,
    why: Option<&str>,
    detail: &str,
    closed_at: Option<Timestamp>,
) -> rusqlite::Result<Option<Move>> {
    let Some(from) = place(t, seq)?.filter(|from| from.state == State::Pending) else { return Ok(None) };
    t.prepare_cached("UPDATE orders SET state = ?2, why = ?3, detail = ?4, closed_at = ?5 WHERE seq = ?1")?
        .execute(params![seq, to as u8, why, detail, closed_at.map(Timestamp::millis)])?;
    let to = Place { state: to, group: from.group.clone(), why: why.map(str::to_owned) };
    Ok((to.state != State::Pending).then_some(Move { from, to }))
}

/// Frees the orders that waited for these. There hardly ever are any, so that is asked first, once for all.
fn free_dependents(t: &Transaction<'_>, settled: &[u64]) -> rusqlite::Result<Vec<Move>> {
    let mut moves = Vec::new();
    let any = "SELECT EXISTS(SELECT 1 FROM orders INDEXED BY orders_waiting
        WHERE state = 1 AND depends_on IS NOT NULL)";
    if settled.is_empty() || !t.prepare_cached(any)?.query_row([], |row| row.get(0))? {
        return Ok(moves);
    }
    let waiting = "SELECT w.seq FROM orders w JOIN orders s ON w.depends_on = s.order_no
        WHERE s.seq = ?1 AND w.state = 1 AND w.why = 'depends_on'";
    for seq in settled {
        moves.extend(free(t, waiting, seq)?);
    }
    Ok(moves)
}

/// Takes back that an order was counted as sent when it was bound.
fn withdraw(t: &Transaction<'_>, seq: u64) -> rusqlite::Result<()> {
    t.prepare_cached(
        "UPDATE orders SET attempts = max(attempts - 1, 0), sent_at = iif(attempts > 1, sent_at, NULL),
         first_sent_at = iif(attempts > 1, first_sent_at, NULL) WHERE seq = ?1 AND state = 0",
    )?
    .execute([seq])?;
    Ok(())
}

/// Makes held orders pending again.
pub(super) fn unhold(t: &Transaction<'_>, hold: Hold) -> rusqlite::Result<Vec<Move>> {
    free(
        t,
        "SELECT seq FROM orders WHERE state = 1 AND state NOT IN (0, 2) AND why = ?1 ORDER BY seq",
        &hold.word(),
    )
}

fn free(t: &Transaction<'_>, select: &str, argument: &dyn rusqlite::ToSql) -> rusqlite::Result<Vec<Move>> {
    let seqs: Vec<u64> = t
        .prepare_cached(select)?
        .query_map([argument], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    seqs.into_iter().filter_map(|seq| make_pending(t, seq, false).transpose()).collect()
}

pub(super) fn make_pending(t: &Transaction<'_>, seq: u64, unbind: bool) -> rusqlite::Result<Option<Move>> {
    let Some(from) = place(t, seq)? else { return Ok(None) };
    let sql = if unbind {
        "UPDATE orders SET state = 0, why = NULL, closed_at = NULL, origin = NULL WHERE seq = ?1"
    } else {
        "UPDATE orders SET state = 0, why = NULL, closed_at = NULL WHERE seq = ?1"
    };
    t.prepare_cached(sql)?.execute([seq])?;
    let origin = if unbind { None } else { from.group.origin.clone() };
    let group = Group { origin, udl: from.group.udl.clone() };
    Ok(Some(Move { from, to: Place { state: State::Pending, group, why: None } }))
}

/// Gives orders back whose body can be opened again now that their key is here.
pub(super) fn reopen(t: &Transaction<'_>, key: i64, limit: usize) -> rusqlite::Result<Vec<Move>> {
    let seqs: Vec<u64> = t
        .prepare_cached(
            "SELECT seq FROM orders WHERE state = 3 AND state NOT IN (0, 2) AND why = 'unreadable' AND sealed = ?1
             ORDER BY seq LIMIT ?2",
        )?
        .query_map(params![key, limit], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    seqs.into_iter().filter_map(|seq| make_pending(t, seq, false).transpose()).collect()
}

/// What came of an intervention.
pub(super) enum Intervened {
    /// Done; the order moved so.
    Done(Move),
    /// No such order.
    Unknown,
    /// The order's state does not allow it; the words say why and what to do.
    Refused(&'static str),
}

/// Does what an operator asks, and writes it down.
pub(super) fn intervene(
    t: &Transaction<'_>,
    seq: u64,
    what: &Intervention,
    who: &str,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<Intervened> {
    let Some(from) = place(t, seq)? else { return Ok(Intervened::Unknown) };
    if let Some(refused) = refusal(&from, what) {
        return Ok(Intervened::Refused(refused));
    }
    if *what == Intervention::Retry && from.why.as_deref() == Some(Hold::DependsOn.word()) && waits(t, seq)? {
        return Ok(Intervened::Refused(
            "the order that it depends on is not settled: retry or discard that one first (the device's token \
             allows this retry all the same)",
        ));
    }
    t.prepare_cached("INSERT INTO audit(at, seq, what, who, reason) VALUES(?1, ?2, ?3, ?4, ?5)")?
        .execute(params![now.millis(), seq, what.word(), who, reason])?;
    if *what == Intervention::Discard {
        t.prepare_cached(
            "UPDATE orders SET state = 4, why = NULL, detail = ?2, closed_at = ?3 WHERE seq = ?1",
        )?
        .execute(params![seq, reason, now.millis()])?;
        tell_dependents(t, seq)?;
        let to = Place { state: State::Discarded, group: from.group.clone(), why: None };
        return Ok(Intervened::Done(Move { from, to }));
    }
    // An order that the origin refused by its own word is not there, so a retry may go wherever routing says now.
    // One that was quarantined for its body's sake may have been sent before.
    let own_reasons = [CONFLICT, DAMAGED, UNREADABLE].map(Some);
    let refused_by_origin = from.state == State::Quarantined && !own_reasons.contains(&from.why.as_deref());
    let unbind = *what == Intervention::Release || refused_by_origin;
    if let Some(origin) = from.group.origin.as_ref().filter(|_| unbind) {
        note_left(t, seq, origin, now)?;
    }
    Ok(make_pending(t, seq, unbind)?.map_or(Intervened::Unknown, Intervened::Done))
}

/// Writes down which origin an order was sent to before it was freed, so that its history stays true wherever it goes.
fn note_left(t: &Transaction<'_>, seq: u64, origin: &OriginId, now: Timestamp) -> rusqlite::Result<()> {
    t.prepare_cached(
        "INSERT INTO audit(at, seq, what, who, reason)
         SELECT ?1, seq, ?3, ?4, attempts || ' sends so far' FROM orders WHERE seq = ?2 AND sent_at IS NOT NULL",
    )?
    .execute(params![now.millis(), seq, LEFT, origin.as_str()])
    .map(drop)
}

/// Whether an order still has to wait for the one that it depends on.
fn waits(t: &Transaction<'_>, seq: u64) -> rusqlite::Result<bool> {
    let number: Option<String> = t
        .prepare_cached("SELECT depends_on FROM orders WHERE seq = ?1")?
        .query_row([seq], |row| row.get(0))?;
    Ok(waits_for(t, number.as_deref())?.is_some())
}

/// Says to the orders that wait for a discarded one that they would wait for ever.
fn tell_dependents(t: &Transaction<'_>, seq: u64) -> rusqlite::Result<()> {
    let number: String =
        t.prepare_cached("SELECT order_no FROM orders WHERE seq = ?1")?.query_row([seq], |row| row.get(0))?;
    t.prepare_cached(
        "UPDATE orders SET detail = ?2 WHERE state = 1 AND why = 'depends_on' AND depends_on = ?1",
    )?
    .execute(params![number, never_settled(&number)])?;
    Ok(())
}

fn refusal(from: &Place, what: &Intervention) -> Option<&'static str> {
    match (what, from.state) {
        (_, State::Settled) => Some("the order is settled: nothing to do"),
        (_, State::Discarded) => Some("the order was discarded: hand it in again under a new key"),
        (Intervention::Retry | Intervention::Force, State::Quarantined)
            if from.why.as_deref() == Some(KEY_REUSED) =>
        {
            Some(
                "its key belongs to another order: hand it in again under a key of its own, then discard this record",
            )
        }
        (Intervention::Release, _) if from.group.origin.is_none() => {
            Some("the order is not bound to an origin")
        }
        _ => None,
    }
}

/// Counts an order that was taken in.
pub(super) fn count_new(backlog: &mut Backlog, new: &Incoming, accepted: &Accepted) {
    let (receipt, why) = match accepted {
        Accepted::New(receipt) if receipt.state == State::Held => (receipt, Some(Hold::DependsOn.word())),
        Accepted::New(receipt) => (receipt, None),
        Accepted::KeyReused { kept, repeated: false, .. } => (kept, Some(KEY_REUSED)),
        Accepted::KeyReused { .. } | Accepted::Replay(_) => return,
    };
    backlog.newest = backlog.newest.max(receipt.seq);
    let group = Group { origin: None, udl: new.new.order.udl.clone() };
    Place { state: receipt.state, group, why: why.map(str::to_owned) }.add(backlog);
}

impl Place {
    const fn pending(group: Group) -> Self {
        Self { state: State::Pending, group, why: None }
    }

    pub(super) fn add(&self, backlog: &mut Backlog) {
        backlog.states[self.state as usize] += 1;
        if self.state == State::Pending {
            backlog.arrivals += 1;
            let waiting = backlog.groups.entry(self.group.clone()).or_default();
            *waiting = Waiting { orders: waiting.orders + 1, last_arrival: backlog.arrivals };
        } else if let Some(why) = &self.why {
            *backlog.whys.entry((self.state as u8, why.clone())).or_default() += 1;
        }
    }

    fn remove(&self, backlog: &mut Backlog) {
        let slot = &mut backlog.states[self.state as usize];
        *slot = slot.saturating_sub(1);
        if self.state == State::Pending {
            if let Some(waiting) = backlog.groups.get_mut(&self.group) {
                waiting.orders = waiting.orders.saturating_sub(1);
                if waiting.orders == 0 {
                    backlog.groups.remove(&self.group);
                }
            }
        } else if let Some(why) = &self.why {
            let key = (self.state as u8, why.clone());
            if let Some(count) = backlog.whys.get_mut(&key) {
                *count = count.saturating_sub(1);
            }
            backlog.whys.retain(|_, count| *count > 0);
        }
    }
}

impl Move {
    pub(super) fn apply(&self, backlog: &mut Backlog) {
        self.from.remove(backlog);
        self.to.add(backlog);
        // Anything that becomes pending again lies behind the place up to which the dispatcher has read.
        if self.to.state == State::Pending && self.from.state != State::Pending
            || self.to.group.origin.is_none() && self.from.group.origin.is_some()
        {
            backlog.disturbed += 1;
        }
    }
}
