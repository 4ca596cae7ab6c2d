//! The watchdog: each loop reports its own progress, and the service manager hears "alive" only while all do.
//!
//! A process that lives but whose dispatcher hangs is a dead agent; tying the watchdog to the process would hide it.

use crate::clock::{Mono, mono};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The loops that must make progress.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Vec<Entry>>>);

#[derive(Debug)]
struct Entry {
    name: &'static str,
    limit: Duration,
    last: Mono,
    ended: bool,
}

/// One loop's own pulse. A loop beats at least every [`Heartbeat::interval`], also when it has nothing to do.
#[derive(Debug)]
pub struct Heartbeat {
    all: Heartbeats,
    index: usize,
    limit: Duration,
}

impl Heartbeats {
    /// Adds a loop that counts as stuck after `limit` without a beat.
    #[must_use]
    pub fn register(&self, name: &'static str, limit: Duration) -> Heartbeat {
        let mut entries = self.entries();
        entries.push(Entry { name, limit, last: mono(), ended: false });
        Heartbeat { all: self.clone(), index: entries.len() - 1, limit }
    }

    /// The loops that have not beaten within their limit.
    #[must_use]
    pub fn stuck(&self) -> Vec<&'static str> {
        let now = mono();
        self.entries()
            .iter()
            .filter(|entry| !entry.ended && now.0.saturating_sub(entry.last.0) > entry.limit)
            .map(|entry| entry.name)
            .collect()
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        // A panic while the list was held cannot leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heartbeat {
    /// Tells that the loop goes round.
    pub fn beat(&self) {
        if let Some(entry) = self.all.entries().get_mut(self.index) {
            entry.last = mono();
        }
    }

    /// Beats from within a call that takes long and tells of its progress.
    pub fn pulse(&self) -> impl Fn() + Send + 'static + use<> {
        let (all, index) = (self.all.clone(), self.index);
        move || {
            if let Some(entry) = all.entries().get_mut(index) {
                entry.last = mono();
            }
        }
    }

    /// How often to beat when idle.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.limit / 3
    }
}

impl Drop for Heartbeat {
    /// A loop that has ended on purpose is not stuck.
    fn drop(&mut self) {
        if let Some(entry) = self.all.entries().get_mut(self.index) {
            entry.ended = true;
        }
    }
}

/// Tells the service manager that the agent is alive for as long as every loop beats. Ends when `stop` does.
pub async fn watch(heartbeats: Heartbeats, mut stop: tokio::sync::watch::Receiver<bool>) {
    let Some(period) = sd_notify::watchdog_enabled().map(|limit| limit / 3) else { return };
    let mut tick = tokio::time::interval(period.max(Duration::from_millis(100)));
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = crate::stop::asked(&mut stop) => return,
        }
        let stuck = heartbeats.stuck();
        if stuck.is_empty() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        } else {
            tracing::error!(loops = ?stuck, "no progress: the watchdog is not fed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_without_a_beat_is_named_and_one_that_ended_is_not() {
        let all = Heartbeats::default();
        let stuck = all.register("dispatcher", Duration::ZERO);
        let healthy = all.register("relay", Duration::from_secs(60));
        let ended = all.register("renewal", Duration::ZERO);
        drop(ended);
        let started = mono();
        while mono() == started {
            std::hint::spin_loop();
        }
        assert_eq!(all.stuck(), ["dispatcher"]);
        stuck.beat();
        healthy.beat();
    }
}
