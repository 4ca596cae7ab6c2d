//! What the ledger's counts, the disk, the lanes and the origins' words mean as conditions, and what head office is
//! told once. Pure.

use super::dispatcher::{Cause, LaneState};
use super::ledger::{
    Backlog, CONFLICT, Change, ChangeTo, DAMAGED, Hold, KEY_REUSED, Record, Salvaged, State, Storage,
    UNREADABLE,
};
use super::outcome::CONTRADICTS;
use crate::clock::Mono;
use samovar_wire::OriginId;
use samovar_wire::conditions::Condition;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The same order may be the oldest that waits for so long before somebody should look.
const LONG: Duration = Duration::from_secs(15 * 60);
/// An order about which an origin contradicted itself is sent again within a minute or so; one of which nothing was heard
/// for so long was dealt with.
const CONTRADICTION_LASTS: Duration = Duration::from_secs(10 * 60);
/// Orders that are remembered because an origin contradicted itself.
const MOST_CONTRADICTIONS: usize = 100;

/// Every condition of this flow, with its detail while it holds.
#[must_use]
pub fn conditions(backlog: &Backlog, storage: &Storage) -> Vec<(Condition, Option<String>)> {
    let held = |hold: Hold| some(backlog.count_why(State::Held, hold.word()), "held");
    let quarantined = |why: &str| backlog.count_why(State::Quarantined, why);
    let reused = quarantined(KEY_REUSED) + quarantined(CONFLICT);
    let (damaged, unreadable) = (quarantined(DAMAGED), quarantined(UNREADABLE));
    let refused = backlog.count(State::Quarantined).saturating_sub(reused + damaged + unreadable);
    let salvaged = |losses: bool| {
        let told: Vec<&str> =
            storage.salvaged.iter().filter(|one| one.losses == losses).map(|one| one.told.as_str()).collect();
        Some(told.join("; ")).filter(|told| !told.is_empty())
    };
    vec![
        (Condition::ResidencyHold, held(Hold::Residency)),
        (Condition::IdentityRefused, held(Hold::Identity)),
        (Condition::OrdersQuarantined, some(refused, "in quarantine")),
        (Condition::KeyConflict, some(reused, "in quarantine because their key was used before")),
        (Condition::StorageFailing, storage.failing.clone()),
        (Condition::LedgerFull, storage.full.clone()),
        (
            Condition::LedgerNearlyFull,
            storage.nearly_full.then(|| "over 80 % of a limit (orders.max_bytes, orders.max_orders)".into()),
        ),
        (Condition::LedgerSetAside, storage.set_aside.clone()),
        (Condition::LedgerLosses, salvaged(true)),
        (Condition::LedgerSalvaged, salvaged(false)),
        (Condition::LedgerRescued, storage.rescued.clone()),
        (Condition::LedgerDoubt, storage.doubt.clone()),
        (Condition::OrdersDamaged, some(damaged, "in quarantine because the disk damaged them")),
        (
            Condition::OrdersUnreadable,
            some(unreadable, "in quarantine because the key of their bodies is gone"),
        ),
    ]
}

/// What became news between two states of the storage.
#[must_use]
pub fn news(before: &Storage, now: &Storage) -> Vec<(&'static str, Value)> {
    let mut news = Vec::new();
    if let Some(told) = now.set_aside.as_ref().filter(|_| before.set_aside.is_none()) {
        news.push(("ledger.set-aside", json!({ "detail": told })));
    }
    for (event, before, now) in
        [("ledger.rescued", &before.rescued, &now.rescued), ("ledger.doubt", &before.doubt, &now.doubt)]
    {
        if let Some(told) = now.as_ref().filter(|_| before != now) {
            news.push((event, json!({ "detail": told })));
        }
    }
    for Salvaged { file, told, losses, .. } in
        now.salvaged.iter().filter(|one| !one.earlier && !before.salvaged.contains(one))
    {
        news.push(("ledger.salvaged", json!({ "file": file, "detail": told, "losses": losses })));
    }
    news
}

/// The origins that answer and take no orders, while some wait.
pub fn takes_none<'a>(
    lanes: impl Iterator<Item = (&'a OriginId, LaneState, Mono)>,
    backlog: &Backlog,
    storage: &Storage,
) -> Option<String> {
    if backlog.count(State::Pending) == 0 || storage.failing.is_some() {
        return None;
    }
    let told = lanes.filter_map(|(origin, state, _)| match state {
        LaneState::Open { cause: Cause::Busy, .. } | LaneState::HalfOpen { cause: Cause::Busy } => {
            Some(format!("{origin} asks for patience (429, Retry-After, or retry for every order)"))
        }
        LaneState::Open { cause: Cause::Failing, .. } | LaneState::HalfOpen { cause: Cause::Failing } => {
            Some(format!("{origin} fails (5xx)"))
        }
        // Routing tells of an origin that is away. This one hangs on orders, or is.
        LaneState::Open { cause: Cause::NoAnswer, .. } | LaneState::HalfOpen { cause: Cause::NoAnswer } => {
            Some(format!("{origin} does not answer orders"))
        }
        _ => None,
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Orders that wait for one that was discarded.
#[must_use]
pub fn stranded(count: u64) -> Option<String> {
    some(count, "held for an order that was discarded")
}

/// What has to be watched for a while before it means something.
#[derive(Debug, Default)]
pub struct Watch {
    oldest: Option<(u64, Mono)>,
    contradictions: BTreeMap<u64, (OriginId, Mono)>,
}

impl Watch {
    /// Looks at the oldest pending order. Told is one that has been the oldest for long, by a clock that nobody sets:
    /// in a drain the oldest changes, and a backlog that moves needs nobody.
    pub fn oldest(&mut self, oldest: Option<&Record>, now: Mono) -> Option<String> {
        let Some(order) = oldest else {
            self.oldest = None;
            return None;
        };
        let seq = order.receipt.seq;
        let since = self.oldest.filter(|(known, _)| *known == seq).map_or(now, |(_, since)| since);
        self.oldest = Some((seq, since));
        (now.after(since) >= LONG).then(|| {
            let (number, at) = (&order.receipt.order_no, order.receipt.accepted_at);
            let origin = order.origin.as_ref().map_or("no origin", OriginId::as_str);
            let why = order.detail.as_deref().unwrap_or("no error");
            format!(
                "order {number} waits since {at}, sent {} times, bound to {origin}: {why}",
                order.attempts
            )
        })
    }

    /// Takes in what an origin said of orders.
    pub fn answered(&mut self, origin: &OriginId, changes: &[Change], now: Mono) {
        for change in changes {
            match &change.to {
                ChangeTo::Failed(detail) if detail.starts_with(CONTRADICTS) => {
                    if self.contradictions.len() < MOST_CONTRADICTIONS {
                        self.contradictions.insert(change.seq, (origin.clone(), now));
                    }
                }
                ChangeTo::Failed(_) | ChangeTo::Withdrawn => {}
                _ => drop(self.contradictions.remove(&change.seq)),
            }
        }
    }

    /// The origins that contradicted themselves about orders that still wait.
    pub fn contradictions(&mut self, now: Mono) -> Option<String> {
        self.contradictions.retain(|_, (_, at)| now.after(*at) < CONTRADICTION_LASTS);
        let origins: BTreeSet<&str> =
            self.contradictions.values().map(|(origin, _)| origin.as_str()).collect();
        let origins: Vec<&str> = origins.into_iter().collect();
        let orders = some(self.contradictions.len() as u64, "answered both ways")?;
        Some(format!("{}: {orders}", origins.join(", ")))
    }
}

fn some(count: u64, what: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 order {what}")),
        _ => Some(format!("{count} orders {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::ledger::Receipt;
    use samovar_wire::Timestamp;

    fn salvaged(losses: bool, earlier: bool) -> Salvaged {
        Salvaged { file: "orders.db.damaged-1".into(), told: "3 orders".into(), losses, earlier }
    }

    #[test]
    fn a_salvage_with_losses_and_one_without_are_two_conditions() {
        let storage = Storage { salvaged: vec![salvaged(true, false)], ..Storage::default() };
        let found = conditions(&Backlog::default(), &storage);
        let told = |wanted| {
            found.iter().find(|(condition, _)| *condition == wanted).and_then(|(_, told)| told.clone())
        };
        assert_eq!(told(Condition::LedgerLosses).as_deref(), Some("3 orders"));
        assert_eq!(told(Condition::LedgerSalvaged), None);
    }

    #[test]
    fn an_order_with_a_damaged_body_is_not_told_as_refused_by_head_office() {
        let mut backlog = Backlog::default();
        backlog.states[State::Quarantined as usize] = 3;
        backlog.whys.insert((State::Quarantined as u8, DAMAGED.into()), 1);
        backlog.whys.insert((State::Quarantined as u8, UNREADABLE.into()), 2);
        let held: Vec<Condition> = conditions(&backlog, &Storage::default())
            .into_iter()
            .filter_map(|(condition, told)| told.map(|_| condition))
            .collect();
        assert_eq!(held, [Condition::OrdersDamaged, Condition::OrdersUnreadable]);
    }

    #[test]
    fn news_is_told_once_and_never_of_an_earlier_run() {
        let before = Storage { set_aside: Some("1 %".into()), ..Storage::default() };
        let after = Storage { set_aside: None, salvaged: vec![salvaged(true, false)], ..Storage::default() };
        assert_eq!(news(&Storage::default(), &before)[0].0, "ledger.set-aside");
        assert_eq!(news(&before, &after)[0].0, "ledger.salvaged");
        assert!(news(&after, &after).is_empty());
        let restarted = Storage { salvaged: vec![salvaged(true, true)], ..Storage::default() };
        assert!(news(&Storage::default(), &restarted).is_empty());
    }

    fn change(seq: u64, to: ChangeTo) -> Change {
        Change { seq, to }
    }

    #[test]
    fn an_origin_that_takes_none_is_told_only_while_orders_wait_for_it() {
        let origin: OriginId = "us-west".parse().unwrap();
        let told = |state, pending, storage: &Storage| {
            let mut backlog = Backlog::default();
            backlog.states[State::Pending as usize] = pending;
            takes_none([(&origin, state, Mono::default())].into_iter(), &backlog, storage)
        };
        let well = Storage::default();
        let failing = LaneState::HalfOpen { cause: Cause::Failing };
        assert_eq!(told(failing, 1, &well).as_deref(), Some("us-west fails (5xx)"));
        assert!(told(LaneState::HalfOpen { cause: Cause::Busy }, 1, &well).is_some());
        assert_eq!(told(failing, 0, &well), None);
        assert_eq!(
            told(LaneState::HalfOpen { cause: Cause::NoAnswer }, 1, &well).as_deref(),
            Some("us-west does not answer orders"),
            "shown only while its health is well"
        );
        assert_eq!(told(LaneState::HalfOpen { cause: Cause::Identity }, 1, &well), None);
        assert_eq!(told(LaneState::Closed, 1, &well), None);
        let dead = Storage { failing: Some("EIO".into()), ..Storage::default() };
        assert_eq!(
            told(LaneState::HalfOpen { cause: Cause::Busy }, 1, &dead),
            None,
            "the disk is what fails"
        );
    }

    #[test]
    fn an_order_that_stays_the_oldest_is_told_and_a_backlog_that_moves_is_not() {
        let order = |seq| Record {
            receipt: Receipt {
                id: "i".into(),
                order_no: format!("A-{seq}"),
                state: State::Pending,
                seq,
                accepted_at: Timestamp::from_millis(0),
            },
            key: String::new(),
            sha256: [0; 32],
            conflict_with: None,
            udl: "US".parse().unwrap(),
            kind: "sale".into(),
            depends_on: None,
            why: None,
            detail: Some("no answer within 15000 ms".into()),
            origin: Some("us-west".parse().unwrap()),
            attempts: 7,
            first_sent_at: None,
            sent_at: None,
            closed_at: None,
            body: None,
            audit: Vec::new(),
        };
        let at = |minutes: u64| Mono(Duration::from_secs(60 * minutes));
        let mut watch = Watch::default();
        for minute in 0..60 {
            assert_eq!(watch.oldest(Some(&order(minute)), at(minute)), None);
        }
        assert_eq!(watch.oldest(Some(&order(59)), at(73)), None);
        let told = watch.oldest(Some(&order(59)), at(74)).unwrap();
        assert!(told.contains("A-59") && told.contains("us-west: no answer within 15000 ms"), "{told}");
        assert_eq!(watch.oldest(None, at(75)), None);
    }

    #[test]
    fn a_contradiction_is_told_until_the_order_has_ended_or_nothing_more_is_heard() {
        let origin: OriginId = "us-west".parse().unwrap();
        let both_ways = || ChangeTo::Failed(format!("{CONTRADICTS}: settled and rejected"));
        let at = |minutes: u64| Mono(Duration::from_secs(60 * minutes));
        let mut watch = Watch::default();
        watch.answered(&origin, &[change(1, both_ways()), change(2, both_ways())], at(0));
        assert_eq!(watch.contradictions(at(1)).as_deref(), Some("us-west: 2 orders answered both ways"));
        watch.answered(
            &origin,
            &[change(1, ChangeTo::Failed("503".into())), change(2, ChangeTo::Settled)],
            at(2),
        );
        assert_eq!(watch.contradictions(at(3)).as_deref(), Some("us-west: 1 order answered both ways"));
        assert_eq!(watch.contradictions(at(10)), None, "it was discarded, say");
    }
}
