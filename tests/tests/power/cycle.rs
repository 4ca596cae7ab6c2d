//! The life of a ledger, from a seed: everything that the agent does with it, in any order, with a note of what was
//! asked, what was answered and when.

use crate::disk::{Disk, Op};
use crate::model::{Model, Stand};
use crate::till::{self, DEADLINE};
use fastrand::Rng;
use futures_util::future::join_all;
use samovar_agent::orders::ledger::{
    Accepted, CONFLICT, Change, ChangeTo, Hold, Intervention, KEY_REUSED, Ledger, LedgerError, NewOrder,
    State,
};
use samovar_wire::OriginId;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// One thing that happens to a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// One till hands in one order.
    One,
    /// One request of so many orders.
    Batch(usize),
    /// So many tills at once.
    Crowd(usize),
    /// A known key with other content.
    Reuse,
    /// A known key with the same content.
    Repeat,
    /// An order that waits for another.
    Depends,
    Bind,
    Settle,
    Fail,
    Hold,
    Quarantine,
    Unhold,
    Retry,
    Discard,
    Release,
    /// Waits until the journal was moved into the ledger.
    Checkpoint,
    /// Closes the ledger and opens it again.
    Reopen,
}

/// Everything, and the common things often.
pub(crate) fn whole_life(rng: &mut Rng) -> Vec<Act> {
    let often = [(Act::One, 14), (Act::Bind, 8), (Act::Settle, 6), (Act::Hold, 3), (Act::Unhold, 3)];
    let mut acts = vec![
        Act::Batch(16),
        Act::Batch(16),
        Act::Batch(64),
        Act::Crowd(16),
        Act::Crowd(64),
        Act::Reuse,
        Act::Reuse,
        Act::Repeat,
        Act::Depends,
        Act::Depends,
        Act::Depends,
        Act::Fail,
        Act::Quarantine,
        Act::Quarantine,
        Act::Retry,
        Act::Retry,
        Act::Discard,
        Act::Release,
        Act::Checkpoint,
        Act::Checkpoint,
        Act::Reopen,
        Act::Reopen,
    ];
    for (act, times) in often {
        acts.extend(std::iter::repeat_n(act, times));
    }
    rng.shuffle(&mut acts);
    acts
}

/// A few of each, for when the same life is lived hundreds of times.
pub(crate) fn short_life() -> Vec<Act> {
    vec![
        Act::One,
        Act::Batch(3),
        Act::Depends,
        Act::Bind,
        Act::One,
        Act::Settle,
        Act::Reuse,
        Act::Hold,
        Act::Crowd(4),
        Act::Unhold,
        Act::Bind,
        Act::Quarantine,
        Act::Retry,
        Act::Settle,
        Act::One,
        Act::Checkpoint,
        Act::One,
        Act::Settle,
    ]
}

/// A ledger that lives.
pub(crate) struct Cycle {
    pub(crate) disk: Arc<Disk>,
    pub(crate) model: Model,
    directory: PathBuf,
    ledger: Option<Ledger>,
    rng: Rng,
    orders: usize,
    /// What was handed in and answered with an error; tills repeat that.
    unanswered: Vec<NewOrder>,
    /// Errors that were answered.
    pub(crate) errors: Vec<LedgerError>,
}

impl Cycle {
    /// Begins on a disk; the ledger is not open yet.
    pub(crate) fn on(disk: Arc<Disk>, directory: PathBuf, rng: Rng) -> Self {
        Self {
            disk,
            model: Model::default(),
            directory,
            ledger: None,
            rng,
            orders: 0,
            unanswered: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Opens the ledger.
    pub(crate) async fn open(&mut self) -> Result<(), String> {
        self.ledger = None;
        let ledger = till::reopen(&self.directory).await.map_err(|error| format!("{error:?}"))?;
        self.disk.directory_synced();
        self.model.opened_at.get_or_insert(self.disk.position());
        self.ledger = Some(ledger);
        Ok(())
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.ledger.clone().expect("the ledger was opened")
    }

    /// Does one thing. Fails only when the ledger cannot be opened again.
    pub(crate) async fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::One => self.hand_in(1, false).await,
            Act::Batch(n) => self.hand_in(n, false).await,
            Act::Crowd(n) => self.hand_in(n, true).await,
            Act::Reuse => self.reuse().await,
            Act::Repeat => self.repeat().await,
            Act::Depends => self.depends().await,
            Act::Bind => self.bind().await,
            Act::Settle => {
                self.change(&[State::Pending, State::Pending, State::Held], |_| ChangeTo::Settled).await;
            }
            Act::Fail => self.change(&[State::Pending], |_| ChangeTo::Failed("not today".into())).await,
            Act::Hold => {
                let hold = |rng: &mut Rng| if rng.bool() { Hold::Residency } else { Hold::Identity };
                self.change(&[State::Pending], |rng| ChangeTo::Held(hold(rng), "waits".into())).await;
            }
            Act::Quarantine => {
                let why = |rng: &mut Rng| if rng.bool() { CONFLICT } else { "rejected" };
                let to = |rng: &mut Rng| ChangeTo::Quarantined { why: why(rng).into(), detail: "no".into() };
                self.change(&[State::Pending], to).await;
            }
            Act::Unhold => self.unhold().await,
            Act::Retry => self.intervene(&[State::Quarantined, State::Held], Intervention::Retry).await,
            Act::Discard => {
                self.intervene(&[State::Pending, State::Quarantined], Intervention::Discard).await;
            }
            Act::Release => self.intervene(&[State::Pending], Intervention::Release).await,
            Act::Checkpoint => self.checkpoint().await,
            Act::Reopen => return self.open().await,
        }
        Ok(())
    }

    fn fresh(&mut self, depends_on: Option<&str>) -> NewOrder {
        self.orders += 1;
        till::order(&format!("A-{}", self.orders), "first", depends_on, &mut self.rng)
    }

    async fn hand_in(&mut self, count: usize, apart: bool) {
        let orders: Vec<_> = (0..count).map(|_| self.fresh(None)).collect();
        if apart {
            self.accept(orders.into_iter().map(|order| vec![order]).collect()).await;
        } else {
            self.accept(vec![orders]).await;
        }
    }

    /// Hands in requests, all at once.
    async fn accept(&mut self, requests: Vec<Vec<NewOrder>>) {
        let issued = self.disk.position();
        let (ledger, disk) = (self.ledger(), Arc::clone(&self.disk));
        let answers = requests.into_iter().map(|orders| {
            let (ledger, disk) = (ledger.clone(), Arc::clone(&disk));
            async move {
                let answer = ledger.accept(orders.clone()).await;
                (orders, answer, disk.position())
            }
        });
        for (orders, answer, at) in join_all(answers).await {
            let request = self.model.request();
            match answer {
                Ok(accepted) => {
                    for (order, accepted) in orders.iter().zip(accepted) {
                        self.answered(order, request, issued, at, accepted);
                    }
                }
                Err(error) => {
                    let maybe = BTreeSet::from([
                        Stand::new(State::Pending, None),
                        Stand::new(State::Held, Some(Hold::DependsOn.word())),
                        Stand::new(State::Quarantined, Some(KEY_REUSED)),
                    ]);
                    for order in &orders {
                        self.model.handed_in(order, request, issued, None, maybe.clone());
                    }
                    self.unanswered.extend(orders);
                    self.errors.push(error);
                }
            }
        }
    }

    fn answered(&mut self, order: &NewOrder, request: usize, issued: usize, at: usize, accepted: Accepted) {
        let receipt = match accepted {
            Accepted::New(receipt) | Accepted::Replay(receipt) => receipt,
            Accepted::KeyReused { kept, .. } => kept,
        };
        if receipt.id != order.id {
            // A repeat of an order that is known under its own id: nothing new happened.
            return;
        }
        let why = match receipt.state {
            State::Held => Some(Hold::DependsOn.word()),
            State::Quarantined => Some(KEY_REUSED),
            _ => None,
        };
        let first = BTreeSet::from([Stand::new(receipt.state, why)]);
        self.model.handed_in(order, request, issued, Some((at, receipt.seq)), first);
    }

    /// Tills repeat what was not answered, one by one, until it is.
    pub(crate) async fn repeat_unanswered(&mut self) -> Result<(), String> {
        let started = samovar_tests::clock::now();
        for order in std::mem::take(&mut self.unanswered) {
            loop {
                self.accept(vec![vec![order.clone()]]).await;
                if self.unanswered.is_empty() {
                    break;
                }
                self.unanswered.clear();
                if started.elapsed() > DEADLINE {
                    return Err(format!("still refused after the disk was healed: {:?}", self.errors.last()));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    fn some_order(&mut self) -> Option<NewOrder> {
        let known: Vec<_> = self.model.orders.iter().map(|known| &known.new).collect();
        self.rng.choice(known).cloned()
    }

    async fn reuse(&mut self) {
        let Some(first) = self.some_order() else { return };
        let other = till::order(&first.order.key, "second", None, &mut self.rng);
        self.accept(vec![vec![other]]).await;
    }

    async fn repeat(&mut self) {
        let Some(mut again) = self.some_order() else { return };
        again.id = format!("{:032x}", self.rng.u128(..));
        let issued = self.disk.position();
        match self.ledger().accept(vec![again.clone()]).await {
            Ok(mut accepted) => match accepted.remove(0) {
                // The first time it had not come in.
                new @ Accepted::New(_) => {
                    let (request, at) = (self.model.request(), self.disk.position());
                    self.answered(&again, request, issued, at, new);
                }
                Accepted::Replay(_) | Accepted::KeyReused { .. } => {}
            },
            Err(error) => self.errors.push(error),
        }
    }

    async fn depends(&mut self) {
        let first = self.some_order().map(|order| order.order.order_no);
        let order = self.fresh(first.as_deref());
        self.accept(vec![vec![order]]).await;
    }

    fn some_places(&mut self, states: &[State]) -> Vec<u64> {
        let mut places = self.model.in_state(states);
        self.rng.shuffle(&mut places);
        places.truncate(self.rng.usize(1..=12));
        places
    }

    async fn bind(&mut self) {
        let places = self.some_places(&[State::Pending]);
        let origin: OriginId = if self.rng.bool() { "east" } else { "west" }.parse().expect("an origin");
        let issued = self.disk.position();
        let answer = self.ledger().bind(places.clone(), origin.clone()).await;
        let at = self.disk.position();
        match answer {
            Ok(outgoing) => {
                for order in outgoing {
                    self.model.did(order.seq, issued, Some(at), |stand| stand.bound(&origin));
                }
            }
            Err(error) => {
                let maybe = |stand: &Stand| {
                    let free = stand.state == State::Pending && stand.origin.is_none();
                    if free { stand.bound(&origin) } else { stand.clone() }
                };
                places.into_iter().for_each(|seq| self.model.did(seq, issued, None, maybe));
                self.errors.push(error);
            }
        }
    }

    async fn change(&mut self, states: &[State], mut to: impl FnMut(&mut Rng) -> ChangeTo) {
        let places = self.some_places(states);
        let changes: Vec<_> = places.iter().map(|&seq| Change { seq, to: to(&mut self.rng) }).collect();
        let issued = self.disk.position();
        let answer = self.ledger().change(changes.clone()).await;
        let at = answer.as_ref().ok().map(|()| self.disk.position());
        self.errors.extend(answer.err());
        for Change { seq, to } in changes {
            let Some(known) = self.model.orders.iter().find(|known| known.seq == Some(seq)) else { continue };
            let number = known.new.order.order_no.clone();
            let certain =
                at.is_some() && known.allowed(usize::MAX).iter().all(|stand| stand.state != State::Settled);
            self.model.did(seq, issued, at, |stand| stand.changed(&to));
            if to == ChangeTo::Settled {
                let waits = |order: &NewOrder| order.order.depends_on.as_ref() == Some(&number);
                self.model.did_to_all(issued, at, certain, waits, |stand| stand.freed(Hold::DependsOn));
            }
        }
    }

    async fn unhold(&mut self) {
        let hold = *self.rng.choice(&[Hold::Residency, Hold::Identity]).unwrap_or(&Hold::Identity);
        let issued = self.disk.position();
        let answer = self.ledger().unhold(hold).await;
        let at = answer.as_ref().ok().map(|()| self.disk.position());
        self.errors.extend(answer.err());
        self.model.did_to_all(issued, at, at.is_some(), |_| true, |stand| stand.freed(hold));
    }

    async fn intervene(&mut self, states: &[State], what: Intervention) {
        let Some(seq) = self.some_places(states).first().copied() else { return };
        let Some(id) = self.model.orders.iter().find(|o| o.seq == Some(seq)).map(|o| o.new.id.clone()) else {
            return;
        };
        let issued = self.disk.position();
        let answer = self.ledger().intervene(&id, what.clone(), "tester", "a reason").await;
        let refused = matches!(answer, Err(LedgerError::NotAllowed(_)));
        let at = match answer {
            Ok(_) | Err(LedgerError::NotAllowed(_)) => Some(self.disk.position()),
            Err(error) => {
                self.errors.push(error);
                None
            }
        };
        self.model.did(seq, issued, at, |stand| {
            // An order that waits for another goes on waiting, if that one is not settled.
            let waits = refused && what == Intervention::Retry && stand.waits_for_another();
            if waits { stand.clone() } else { stand.intervened(&what) }
        });
    }

    /// Waits for the checkpoint that an idle ledger makes; on a disk that fails there may be none.
    async fn checkpoint(&mut self) {
        let before = self.disk.position();
        let main = |op: &Op| matches!(op, Op::Synced { inode: 0, .. });
        let started = samovar_tests::clock::now();
        while started.elapsed() < Duration::from_secs(1) {
            if self.disk.log()[before..].iter().any(main) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
