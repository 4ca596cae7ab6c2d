//! What the ledger's counts and the disk mean as conditions, and what head office is told once. Pure.

use super::ledger::{Backlog, CONFLICT, DAMAGED, Hold, KEY_REUSED, Salvaged, State, Storage, UNREADABLE};
use samovar_wire::conditions::Condition;
use serde_json::{Value, json};

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
}
