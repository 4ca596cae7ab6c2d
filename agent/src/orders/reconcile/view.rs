//! What is shown of reconciliation: the facts of each origin, and the conditions they mean. Pure.

use super::schedule::{Schedule, When};
use crate::clock::Mono;
use crate::orders::ledger::{Outstanding, PassNote};
use samovar_wire::conditions::Condition;
use samovar_wire::status::ReconcileState;
use samovar_wire::{OriginId, Timestamp};
use std::collections::BTreeMap;

/// Keys that are named; the others are counted.
pub(super) const NAMED: usize = 10;

/// Why nothing is compared where nothing need be.
const ONE_BY_ONE: &str = "takes orders one by one (single mode): it has no comparison, and needs none";

/// The facts of every origin that has settled anything.
pub(super) fn states(
    compared: &[(Outstanding, Option<PassNote>)],
    schedule: &Schedule,
    (now, wall): (Mono, Timestamp),
) -> Vec<ReconcileState> {
    let state = |(open, note): &(Outstanding, Option<PassNote>)| {
        let note = note.as_ref();
        let when = schedule.when(&open.origin);
        let next = when.map(|when| i64::try_from(when.next.after(now).as_millis()).unwrap_or(i64::MAX / 2));
        ReconcileState {
            origin: open.origin.clone(),
            supported: note.is_none_or(|note| note.supported),
            at: note.map(|note| note.at),
            matched_at: note.and_then(|note| note.matched_at),
            ranges: note.map_or(0, |note| note.ranges),
            orders: note.map_or(0, |note| note.orders),
            resent: note.map_or(0, |note| note.resent),
            missing: open.resent + open.lost,
            unknown: open.strange,
            next_at: next.map(|wait| Timestamp::from_millis(wall.millis().saturating_add(wait))),
            last_error: when.and_then(|when| when.trouble.clone()),
            not_compared: when.filter(|when| when.one_by_one).map(|_| ONE_BY_ONE.to_owned()),
        }
    };
    compared.iter().map(state).collect()
}

/// Every condition of this flow, with its detail while it holds. `strangers` are the keys that the last pass found.
pub(super) fn conditions(
    compared: &[(Outstanding, Option<PassNote>)],
    schedule: &Schedule,
    strangers: &BTreeMap<OriginId, Vec<String>>,
) -> Vec<(Condition, Option<String>)> {
    let open = || compared.iter().map(|(open, _)| open);
    let missing = open().filter(|open| open.resent + open.lost > 0).map(|open| {
        let lost = if open.lost == 0 {
            String::new()
        } else {
            format!("; {} cannot be sent again, their bodies have been let go", open.lost)
        };
        format!("{}: {} sent again, or about to be{lost}", open.origin, open.resent)
    });
    let unknown = open().filter(|open| open.strange > 0).map(|open| {
        let keys = strangers.get(&open.origin).map(Vec::as_slice).unwrap_or_default();
        let copied = if open.beyond == 0 {
            ""
        } else {
            "; some lie behind the newest place of this ledger, so it was restored from an older copy"
        };
        format!("{}: {}{}{copied}", open.origin, open.strange, named(keys))
    });
    let trouble = open().filter_map(|open| {
        let lasting = schedule.when(&open.origin).filter(|when| when.is_lasting())?;
        Some(format!("{}: {}", open.origin, words(lasting)))
    });
    vec![
        (Condition::OrdersMissingAtOrigin, joined(missing)),
        (Condition::OrdersUnknownToDevice, joined(unknown)),
        (Condition::OriginDoesNotReconcile, joined(trouble)),
    ]
}

fn words(when: &When) -> &str {
    when.trouble.as_deref().unwrap_or("no answer")
}

fn named(keys: &[String]) -> String {
    if keys.is_empty() {
        return String::new();
    }
    let more = if keys.len() > NAMED { ", …" } else { "" };
    format!(" ({}{more})", keys[..keys.len().min(NAMED)].join(", "))
}

fn joined(parts: impl Iterator<Item = String>) -> Option<String> {
    let parts: Vec<_> = parts.collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}
