//! What the ledger's counts and the disk mean as conditions. Pure.

use super::ledger::{Backlog, CONFLICT, Hold, KEY_REUSED, State, Storage};
use samovar_wire::conditions::Condition;

/// Every condition of this flow, with its detail while it holds.
#[must_use]
pub fn conditions(backlog: &Backlog, storage: &Storage) -> Vec<(Condition, Option<String>)> {
    let held = |hold: Hold| some(backlog.count_why(State::Held, hold.word()), "held");
    let reused =
        backlog.count_why(State::Quarantined, KEY_REUSED) + backlog.count_why(State::Quarantined, CONFLICT);
    let refused = backlog.count(State::Quarantined).saturating_sub(reused);
    vec![
        (Condition::ResidencyHold, held(Hold::Residency)),
        (Condition::IdentityRefused, held(Hold::Identity)),
        (Condition::OrdersQuarantined, some(refused, "in quarantine")),
        (Condition::KeyConflict, some(reused, "in quarantine because their key was used before")),
        (Condition::StorageFailing, storage.failing.clone()),
        (Condition::LedgerFull, storage.full.clone()),
        (
            Condition::LedgerNearlyFull,
            storage.nearly_full.then(|| "over 80 % of its limit (orders.max_bytes)".into()),
        ),
        (Condition::LedgerSetAside, storage.set_aside.clone()),
    ]
}

fn some(count: u64, what: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 order {what}")),
        _ => Some(format!("{count} orders {what}")),
    }
}
