//! Pure: the overrides that are kept, and when each ends.
//!
//! An override ends when the wall clock says so or when the device has been up for as long as it was given, whichever
//! comes first: a clock that is wrong, stands still or jumps can only end it early. How long the device has been up is
//! counted per boot. What a boot had left when it was last written down is what the next begins with, less a minute for
//! what was not written down; while the clock is not to be believed, it begins with four hours at most.

use super::file::{Block, Line};
use super::wish::{OVERRIDES_MAX, Refused, Source, TTL_MAX, Wish};
use samovar_wire::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

/// How often what is left is written down.
pub(super) const CHECKPOINT: Duration = Duration::from_secs(60);
/// What is left at most after a restart of the device whose clock is not to be believed.
const UNDATED_MAX: Duration = Duration::from_secs(4 * 3_600);
/// Ids of the fleet's overrides that have ended and do not come back with the next desired state.
const ENDED_MAX: usize = 64;

/// The time, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Now {
    /// The wall clock, right or wrong.
    pub(super) wall: Timestamp,
    /// Whether it is to be believed.
    pub(super) trusted: bool,
    /// The boot.
    pub(super) boot_id: String,
    /// Time since then, also while asleep.
    pub(super) up: Duration,
}

/// One override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Override {
    /// Eight hex digits.
    pub(super) id: String,
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) owner: String,
    pub(super) reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ticket: Option<String>,
    pub(super) source: Source,
    pub(super) forced: bool,
    pub(super) set_at: Timestamp,
    /// When it ends by the wall clock.
    pub(super) until: Timestamp,
    /// Whether the clock was to be believed when `until` was reckoned.
    dated: bool,
    /// What was left …
    left_ms: u64,
    /// … in this boot …
    boot_id: String,
    /// … when it had been up for so long.
    up_ms: u64,
}

/// Why an override ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    Expired,
    Cleared { by: String },
    Replaced { by: String },
    Forbidden(Refused),
}

impl Override {
    fn new(wish: Wish, id: String, now: &Now) -> Self {
        Self {
            id,
            name: wish.name,
            address: wish.address,
            owner: wish.owner,
            reason: wish.reason,
            ticket: wish.ticket,
            source: wish.source,
            forced: wish.force,
            set_at: now.wall,
            until: now.wall.plus(wish.ttl),
            dated: now.trusted,
            left_ms: millis(wish.ttl),
            boot_id: now.boot_id.clone(),
            up_ms: millis(now.up),
        }
    }

    /// Counts the time that has passed.
    fn age(&mut self, now: &Now) {
        let up = millis(now.up);
        // Whatever stands in the file: nobody has more.
        self.left_ms = self.left_ms.min(millis(TTL_MAX));
        if self.boot_id == now.boot_id {
            self.left_ms = self.left_ms.saturating_sub(up.saturating_sub(self.up_ms));
        } else {
            let most =
                if now.trusted && self.dated { self.left_ms } else { self.left_ms.min(millis(UNDATED_MAX)) };
            self.left_ms = most.saturating_sub(millis(CHECKPOINT)).saturating_sub(up);
            self.boot_id.clone_from(&now.boot_id);
        }
        self.up_ms = up;
        if now.trusted && !self.dated {
            self.until = now.wall.plus(Duration::from_millis(self.left_ms));
            self.dated = true;
        }
    }

    /// What is left, by whichever clock ends it first.
    pub(super) fn remaining(&self, now: &Now) -> Duration {
        let mut counted = self.clone();
        counted.age(now);
        let left = Duration::from_millis(counted.left_ms);
        if now.trusted { left.min(counted.until.since(now.wall)) } else { left }
    }
}

/// All of them, as they are kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Overrides {
    /// Grows with each change.
    pub(super) generation: u64,
    /// By name.
    pub(super) overrides: Vec<Override>,
    /// The fleet's ids that have ended, oldest first.
    #[serde(default)]
    ended: Vec<String>,
}

impl Overrides {
    pub(super) fn get(&self, name: &str) -> Option<&Override> {
        self.overrides.iter().find(|known| known.name == name)
    }

    /// Takes a wish that was checked; gives the override it replaces.
    pub(super) fn put(&mut self, wish: Wish, id: String, now: &Now) -> Result<Option<Override>, Refused> {
        let place = self.overrides.binary_search_by(|known| known.name.cmp(&wish.name));
        if place.is_err() && self.overrides.len() >= OVERRIDES_MAX {
            return Err(Refused::TooMany);
        }
        let new = Override::new(wish, id, now);
        self.generation += 1;
        match place {
            Ok(at) => {
                let old = std::mem::replace(&mut self.overrides[at], new);
                self.note_end(&old);
                Ok(Some(old))
            }
            Err(at) => {
                self.overrides.insert(at, new);
                Ok(None)
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Override> {
        let at = self.overrides.iter().position(|known| known.name == name)?;
        let old = self.overrides.remove(at);
        self.note_end(&old);
        self.generation += 1;
        Some(old)
    }

    fn note_end(&mut self, old: &Override) {
        if let Source::Fleet(id) = &old.source {
            self.ended.push(id.clone());
            let excess = self.ended.len().saturating_sub(ENDED_MAX);
            self.ended.drain(..excess);
        }
    }

    /// Whether an override of the fleet is in force or was.
    pub(super) fn knows(&self, fleet_id: &str) -> bool {
        let is_it = |source: &Source| matches!(source, Source::Fleet(id) if id == fleet_id);
        self.overrides.iter().any(|known| is_it(&known.source)) || self.ended.iter().any(|id| id == fleet_id)
    }

    /// Counts the time that has passed; gives what ended by it.
    pub(super) fn age(&mut self, now: &Now) -> Vec<Override> {
        for known in &mut self.overrides {
            known.age(now);
        }
        self.end(|known| known.remaining(now).is_zero().then_some(()))
            .into_iter()
            .map(|(old, ())| old)
            .collect()
    }

    /// Ends those for which there is a reason; gives them with it.
    pub(super) fn end<T>(&mut self, why: impl Fn(&Override) -> Option<T>) -> Vec<(Override, T)> {
        let over: Vec<_> =
            self.overrides.iter().filter_map(|known| Some((known.clone(), why(known)?))).collect();
        for (old, _) in &over {
            self.remove(&old.name);
        }
        over
    }

    /// When the next one ends.
    pub(super) fn next_end(&self, now: &Now) -> Option<Duration> {
        self.overrides.iter().map(|known| known.remaining(now)).min()
    }

    /// What the hosts file should hold.
    pub(super) fn block(&self) -> Block {
        let line = |known: &Override| Line {
            id: known.id.clone(),
            name: known.name.clone(),
            address: known.address,
            until: known.until,
            forced: known.forced,
        };
        let lines: Vec<_> = self.overrides.iter().map(line).collect();
        Block { generation: self.generation, lines }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
