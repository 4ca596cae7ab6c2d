//! Batches on their way: each is bound first, then waits for its turn, then is sent. At most one per origin is on the
//! wire and one more is prepared behind it; whose turn it is the dispatcher says. What goes aside has no turn to wait for.
//!
//! ```text
//! begin ─► binding ─► bound ─ go ──► sent ─► End::Answered
//!             │          └─ withdraw ──────► End::Withdrawn
//!             └─ the ledger failed ─ go ───► End::NotBound
//! ```

use super::Routes;
use crate::orders::dispatcher::{RouteQuery, Sending};
use crate::orders::ledger::{Head, Ledger, LedgerError, Outgoing};
use crate::orders::origin::{Parcel, Sender, send};
use crate::orders::outcome::BatchOutcome;
use samovar_wire::OriginId;
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError, JoinSet};

/// A batch that waits so long for its answer makes routing look whether the origin is dead: packets that vanish would
/// otherwise be noticed by the time-out of the request alone.
const LONG_WAIT: Duration = Duration::from_secs(2);

/// What a batch needs on its way.
pub(super) struct Post {
    pub(super) ledger: Ledger,
    pub(super) routes: Arc<dyn Routes>,
    pub(super) sender: Option<Arc<Sender>>,
}

/// How a batch ended.
pub(super) struct Sent {
    /// What was really bound, if it was.
    pub(super) sending: Sending,
    /// What was not to be sent any more.
    pub(super) left_out: Vec<Head>,
    pub(super) orders: Vec<Outgoing>,
    pub(super) end: End,
}

/// How far it came.
pub(super) enum End {
    /// The ledger could not bind it.
    NotBound,
    /// Its turn never came; whether it is bound.
    Withdrawn {
        bound: bool,
    },
    Answered(BatchOutcome),
}

/// Says that it is a batch's turn; with it, how it is given up later.
type Turn = oneshot::Receiver<Arc<Notify>>;

/// The batches on their way.
#[derive(Default)]
pub(super) struct Sends {
    tasks: JoinSet<Sent>,
    /// Batches whose turn has not come.
    prepared: HashMap<OriginId, oneshot::Sender<Arc<Notify>>>,
    /// By which the one under way is given up.
    give_up: HashMap<OriginId, Arc<Notify>>,
}

impl Sends {
    /// Binds a batch, and keeps it until it is told to go.
    pub(super) fn prepare(&mut self, sending: Sending, post: Post) {
        let (go, turn) = oneshot::channel();
        self.prepared.insert(sending.origin.clone(), go);
        self.tasks.spawn(post.batch(sending, turn));
    }

    /// Binds and sends beside whatever else is on its way to this origin.
    pub(super) fn aside(&mut self, sending: Sending, post: Post) {
        let (go, turn) = oneshot::channel();
        // It is given up by its own deadline alone.
        drop(go.send(Arc::default()));
        self.tasks.spawn(post.batch(sending, turn));
    }

    /// What was prepared for this origin is sent.
    pub(super) fn go(&mut self, origin: &OriginId) {
        let Some(go) = self.prepared.remove(origin) else { return };
        let give_up = Arc::new(Notify::new());
        self.give_up.insert(origin.clone(), Arc::clone(&give_up));
        // A task that died is found when it is joined.
        drop(go.send(give_up));
    }

    /// What was prepared for this origin is not sent.
    pub(super) fn withdraw(&mut self, origin: &OriginId) {
        self.prepared.remove(origin);
    }

    /// The batch under way to an origin is not waited for any longer.
    pub(super) fn give_up(&self, origin: &OriginId) {
        if let Some(give_up) = self.give_up.get(origin) {
            give_up.notify_one();
        }
    }

    /// The next batch that has ended; `None` when none is on its way.
    pub(super) async fn next(&mut self) -> Option<Result<Sent, JoinError>> {
        self.tasks.join_next().await
    }
}

impl Post {
    /// Binds, then sends: the binding is durable before the first byte leaves.
    async fn batch(self, sending: Sending, turn: Turn) -> Sent {
        let seqs = sending.heads.iter().map(|head| head.seq).collect();
        let bound = self.ledger.bind(seqs, sending.origin.clone()).await;
        let give_up = turn.await;
        let (sending, left_out, orders) = match bound {
            Ok(orders) => split(sending, orders),
            Err(error) => return not_bound(sending, &error, give_up.is_ok()),
        };
        let end = match give_up {
            Ok(give_up) => End::Answered(self.send(&sending, &orders, &give_up).await),
            Err(_) => End::Withdrawn { bound: true },
        };
        Sent { sending, left_out, orders, end }
    }

    async fn send(&self, sending: &Sending, orders: &[Outgoing], give_up: &Notify) -> BatchOutcome {
        let Sending { origin, country, .. } = sending;
        let query = RouteQuery { country, user: None, bound: Some(origin) };
        match (self.routes.way(query), &self.sender) {
            _ if orders.is_empty() => BatchOutcome::Answered(Vec::new()),
            (Ok(way), Some(sender)) => tokio::select! {
                outcome = watched(
                    LONG_WAIT,
                    send(sender, &way, Parcel { udl: country, orders, shadow_of: None }),
                    || self.routes.suspect(),
                ) => {
                    // What goes aside is doubted itself: it is no witness against the origin.
                    if !sending.aside {
                        self.routes.report(origin, &outcome);
                    }
                    outcome
                }
                () = give_up.notified() => {
                    BatchOutcome::Unreachable("given up: the line came back after it was sent".into())
                }
            },
            (Err(why), _) => BatchOutcome::Unreachable(why),
            (_, None) => BatchOutcome::Unreachable("the device is not activated".into()),
        }
    }
}

/// Waits for an answer; when it takes long, that is told once while the wait goes on.
async fn watched<T>(limit: Duration, answer: impl Future<Output = T>, long: impl FnOnce()) -> T {
    let mut answer = pin!(answer);
    if let Ok(answer) = tokio::time::timeout(limit, &mut answer).await {
        return answer;
    }
    long();
    answer.await
}

/// Tells what was bound from what was settled or discarded meanwhile.
fn split(sending: Sending, orders: Vec<Outgoing>) -> (Sending, Vec<Head>, Vec<Outgoing>) {
    let bound: HashSet<u64> = orders.iter().map(|order| order.seq).collect();
    let (heads, left_out) = sending.heads.into_iter().partition(|head| bound.contains(&head.seq));
    (Sending { heads, ..sending }, left_out, orders)
}

fn not_bound(sending: Sending, error: &LedgerError, its_turn: bool) -> Sent {
    tracing::warn!(%error, origin = %sending.origin, "a batch could not be bound");
    let end = if its_turn { End::NotBound } else { End::Withdrawn { bound: false } };
    Sent { sending, left_out: Vec::new(), orders: Vec::new(), end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_that_is_long_is_told_while_it_goes_on_and_one_that_is_not_is_not() {
        let (answer, answered) = oneshot::channel();
        // It comes only after the long wait was told.
        let waited = watched(Duration::ZERO, answered, || answer.send(7).unwrap()).await;
        assert_eq!(waited, Ok(7));
        let told = || panic!("an answer that is there was waited for");
        assert_eq!(watched(Duration::ZERO, std::future::ready(7), told).await, 7);
    }
}
