//! The conditions that hold now. Any flow raises and clears its own; readers get a snapshot.
//!
//! What is shown is decided here too: a symptom hides behind its cause, and a condition that often heals by itself
//! appears only after it has held for a while.

use crate::clock::{Mono, mono, wall};
use samovar_wire::Timestamp;
use samovar_wire::conditions::Condition;
use samovar_wire::status::ActiveCondition;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The board that all flows share.
#[derive(Debug, Clone)]
pub struct Board {
    held: Arc<Mutex<BTreeMap<Condition, Held>>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    since: Timestamp,
    since_mono: Mono,
    detail: String,
}

impl Default for Board {
    fn default() -> Self {
        Self { held: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl Board {
    /// Says that a condition holds; a repeat updates the detail and keeps the beginning.
    pub fn raise(&self, condition: Condition, detail: impl Into<String>) {
        let detail = detail.into();
        let changed = {
            let mut held = self.lock();
            let known = held.get(&condition);
            if known.is_some_and(|known| known.detail == detail) {
                return;
            }
            let (since, since_mono) = known.map_or_else(|| (wall(), mono()), |k| (k.since, k.since_mono));
            held.insert(condition, Held { since, since_mono, detail: detail.clone() }).is_none()
        };
        if changed {
            tracing::warn!(condition = condition.name(), detail, "condition raised");
        }
        self.changed.send_modify(|version| *version += 1);
    }

    /// Says that a condition does not hold (any more).
    pub fn clear(&self, condition: Condition) {
        if self.lock().remove(&condition).is_some() {
            tracing::info!(condition = condition.name(), "condition cleared");
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// Raises or clears.
    pub fn set(&self, condition: Condition, detail: Option<String>) {
        match detail {
            Some(detail) => self.raise(condition, detail),
            None => self.clear(condition),
        }
    }

    /// Tells of every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What readers are shown now, worst first, and when to look again because something waits to become visible.
    #[must_use]
    pub fn visible(&self, now: Mono) -> (Vec<ActiveCondition>, Option<Mono>) {
        visible(&self.lock(), now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Condition, Held>> {
        // A panic while the map was held cannot leave it half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn visible(held: &BTreeMap<Condition, Held>, now: Mono) -> (Vec<ActiveCondition>, Option<Mono>) {
    let shows_at = |condition: Condition, entry: &Held| {
        entry.since_mono.plus(Duration::from_secs(u64::from(condition.describe().visible_after_s)))
    };
    let mut shown = Vec::new();
    let mut look_again = None;
    for (condition, entry) in held {
        let description = condition.describe();
        // A cause that holds hides its symptom at once, also while it waits to become visible itself.
        if description.depends_on.is_some_and(|cause| held.contains_key(&cause)) {
            continue;
        }
        let at = shows_at(*condition, entry);
        if at > now {
            look_again = Some(look_again.map_or(at, |earlier: Mono| earlier.min(at)));
            continue;
        }
        shown.push(ActiveCondition {
            name: *condition,
            severity: description.severity,
            since: entry.since,
            detail: entry.detail.clone(),
        });
    }
    shown.sort_by_key(|condition| (std::cmp::Reverse(condition.severity), condition.since));
    (shown, look_again)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(board: &Board, after: Duration) -> Vec<Condition> {
        board.visible(mono().plus(after)).0.into_iter().map(|condition| condition.name).collect()
    }

    #[test]
    fn a_condition_shows_after_its_time_and_goes_at_once() {
        let board = Board::default();
        board.raise(Condition::LineDown, "no origin answers");
        let (shown, again) = board.visible(mono());
        assert!(shown.is_empty());
        assert!(again.is_some());
        assert_eq!(names(&board, Duration::from_secs(6)), [Condition::LineDown]);
        board.clear(Condition::LineDown);
        assert!(names(&board, Duration::from_secs(6)).is_empty());
    }

    #[test]
    fn a_symptom_hides_behind_its_cause() {
        let board = Board::default();
        board.raise(Condition::OriginUnreachable, "time-out");
        board.raise(Condition::LineDown, "no origin answers");
        assert_eq!(names(&board, Duration::from_secs(60)), [Condition::LineDown]);
        board.clear(Condition::LineDown);
        assert_eq!(names(&board, Duration::from_secs(60)), [Condition::OriginUnreachable]);
    }

    #[test]
    fn the_worst_comes_first_and_a_repeat_keeps_the_beginning() {
        let board = Board::default();
        board.raise(Condition::RouteTableRefused, "older");
        board.raise(Condition::StorageFailing, "EIO");
        let before = board.visible(mono()).0[0].since;
        board.raise(Condition::StorageFailing, "EIO again");
        let shown = board.visible(mono()).0;
        assert_eq!(shown[0].name, Condition::StorageFailing);
        assert_eq!(shown[0].detail, "EIO again");
        assert_eq!(shown[0].since, before);
    }
}
