//! What the device says of itself, put together from the snapshots of every flow.

use super::Board;
use crate::clock::{Mono, instant, mono};
use crate::heartbeat::Heartbeat;
use crate::stop;
use samovar_wire::status::DeviceState;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Least time between two reports: a burst of orders is one change.
const SETTLE: Duration = Duration::from_millis(300);

/// Collects the state of every flow but the conditions; handed in by `assemble`.
pub type Collect = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = DeviceState> + Send>> + Send + Sync>;

/// Everything a reporter listens to.
pub struct Reporter {
    /// Conditions.
    pub board: Board,
    /// Everything else.
    pub collect: Collect,
    /// Tick when `collect` may give something else.
    pub changes: Vec<watch::Receiver<u64>>,
}

impl Reporter {
    /// The state as it is now.
    pub async fn state(&self) -> DeviceState {
        with_conditions(&self.board, &self.collect).await
    }

    /// Publishes a new state after each change, until told to stop.
    pub async fn run(
        mut self,
        publish: watch::Sender<Arc<DeviceState>>,
        heartbeat: Heartbeat,
        mut stop: watch::Receiver<bool>,
    ) {
        self.changes.push(self.board.subscribe());
        loop {
            heartbeat.beat();
            let state = self.state().await;
            publish.send_if_modified(|published| {
                let changed = **published != state;
                *published = Arc::new(state);
                changed
            });
            let look_again =
                self.board.visible(mono()).1.unwrap_or_else(|| mono().plus(heartbeat.interval()));
            tokio::select! {
                () = any_change(&mut self.changes) => {}
                () = tokio::time::sleep_until(instant(look_again.min(mono().plus(heartbeat.interval())))) => {}
                () = stop::asked(&mut stop) => return,
            }
            tokio::select! {
                () = tokio::time::sleep(SETTLE) => {}
                () = stop::asked(&mut stop) => return,
            }
        }
    }
}

/// The state as it is now, conditions included.
pub async fn with_conditions(board: &Board, collect: &Collect) -> DeviceState {
    let mut state = collect().await;
    state.conditions = board.visible(mono()).0;
    state
}

/// Waits until one of the sources ticks; a source that has ended ticks no more.
async fn any_change(sources: &mut [watch::Receiver<u64>]) {
    let waits = sources.iter_mut().map(|source| {
        Box::pin(async move {
            if source.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    futures_util::future::select_all(waits).await;
}

/// How long the agent has been up.
#[must_use]
pub fn uptime_s(started: Mono) -> u64 {
    mono().0.saturating_sub(started.0).as_secs()
}
