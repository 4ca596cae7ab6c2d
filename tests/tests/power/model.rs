//! What the ledger must say after a power cut. Pure: it is told what was asked and what was answered, and when in the
//! disk's log; it knows where each order may stand after a cut at any place of the log.
//!
//! A request that was answered "done" holds from then on. One that was not answered, or with an error, may have
//! happened or not.

use samovar_agent::orders::ledger::{
    CONFLICT, ChangeTo, Hold, Intervention, KEY_REUSED, NewOrder, Record, State,
};
use samovar_wire::OriginId;
use std::collections::BTreeSet;

/// Where an order stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stand {
    pub(crate) state: State,
    pub(crate) why: Option<String>,
    pub(crate) origin: Option<OriginId>,
}

impl Stand {
    pub(crate) fn of(record: &Record) -> Self {
        Self { state: record.receipt.state, why: record.why.clone(), origin: record.origin.clone() }
    }

    pub(crate) fn new(state: State, why: Option<&str>) -> Self {
        Self { state, why: why.map(str::to_owned), origin: None }
    }

    fn now(&self, state: State, why: Option<&str>) -> Self {
        Self { state, why: why.map(str::to_owned), origin: self.origin.clone() }
    }

    pub(crate) fn bound(&self, origin: &OriginId) -> Self {
        Self { origin: Some(origin.clone()), ..self.clone() }
    }

    pub(crate) fn changed(&self, to: &ChangeTo) -> Self {
        let settles = *to == ChangeTo::Settled && self.state != State::Settled;
        if self.state != State::Pending && !settles {
            return self.clone();
        }
        match to {
            ChangeTo::Settled => self.now(State::Settled, None),
            ChangeTo::Quarantined { why, .. } => self.now(State::Quarantined, Some(why)),
            ChangeTo::Failed(_) | ChangeTo::Withdrawn => self.clone(),
            ChangeTo::Held(hold, _) => self.now(State::Held, Some(hold.word())),
        }
    }

    pub(crate) fn freed(&self, hold: Hold) -> Self {
        let waits = self.state == State::Held && self.why.as_deref() == Some(hold.word());
        if waits { self.now(State::Pending, None) } else { self.clone() }
    }

    pub(crate) fn waits_for_another(&self) -> bool {
        self.state == State::Held && self.why.as_deref() == Some(Hold::DependsOn.word())
    }

    pub(crate) fn intervened(&self, what: &Intervention) -> Self {
        let reused = self.state == State::Quarantined && self.why.as_deref() == Some(KEY_REUSED);
        match what {
            _ if matches!(self.state, State::Settled | State::Discarded) => self.clone(),
            Intervention::Discard => self.now(State::Discarded, None),
            Intervention::Retry | Intervention::Force if reused => self.clone(),
            Intervention::Release if self.origin.is_none() => self.clone(),
            Intervention::Retry | Intervention::Force | Intervention::Release => {
                let conflict = self.why.as_deref() == Some(CONFLICT);
                let free = *what == Intervention::Release || self.state == State::Quarantined && !conflict;
                let origin = if free { None } else { self.origin.clone() };
                Self { state: State::Pending, why: None, origin }
            }
        }
    }
}

/// One request that concerned an order.
#[derive(Debug, Clone)]
struct Step {
    issued: usize,
    answered: Option<usize>,
    /// Where the order may stand after it.
    stands: BTreeSet<Stand>,
}

/// One order that was handed in.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) new: NewOrder,
    /// Orders of one request come together or not at all.
    pub(crate) request: usize,
    pub(crate) seq: Option<u64>,
    steps: Vec<Step>,
}

impl Known {
    /// Whether the till was told that the order is safe.
    pub(crate) fn acknowledged(&self, cut: usize) -> bool {
        self.steps.iter().any(|step| step.answered.is_some_and(|at| at <= cut))
    }

    /// Whether the request had been made.
    pub(crate) fn issued(&self, cut: usize) -> bool {
        self.steps.first().is_some_and(|step| step.issued <= cut)
    }

    /// Where it may stand after a cut, if it is there.
    pub(crate) fn allowed(&self, cut: usize) -> BTreeSet<Stand> {
        let last = self.steps.iter().rposition(|step| step.answered.is_some_and(|at| at <= cut));
        let from = last.unwrap_or(0);
        let open = self.steps[from..].iter().filter(|step| step.issued <= cut);
        open.flat_map(|step| step.stands.iter().cloned()).collect()
    }

    fn step(&mut self, issued: usize, answered: Option<usize>, stands: BTreeSet<Stand>) {
        // A request that was never answered leaves the door open to both.
        self.steps.push(Step { issued, answered, stands });
    }
}

/// All orders that were handed in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) orders: Vec<Known>,
    requests: usize,
    /// Until here the ledger had not been opened even once.
    pub(crate) opened_at: Option<usize>,
}

impl Model {
    /// A number for a request that hands orders in.
    pub(crate) fn request(&mut self) -> usize {
        self.requests += 1;
        self.requests
    }

    /// An order was handed in; `first` says where it began, as far as is known.
    pub(crate) fn handed_in(
        &mut self,
        new: &NewOrder,
        request: usize,
        issued: usize,
        answered: Option<(usize, u64)>,
        first: BTreeSet<Stand>,
    ) {
        let at = answered.map(|(at, _)| at);
        match self.orders.iter_mut().find(|known| known.new.id == new.id) {
            // Handed in once more after an error. If it had come in then, that request stands; now it is known.
            Some(known) => {
                let stands = &known.allowed(usize::MAX) | &first;
                known.step(issued, at, stands);
                known.request = request;
                known.seq = answered.map(|(_, seq)| seq).or(known.seq);
            }
            None => {
                let mut known =
                    Known { new: new.clone(), request, seq: answered.map(|(_, seq)| seq), steps: Vec::new() };
                known.step(issued, at, first);
                self.orders.push(known);
            }
        }
    }

    /// Something was done to the order of a place.
    pub(crate) fn did(
        &mut self,
        seq: u64,
        issued: usize,
        answered: Option<usize>,
        what: impl Fn(&Stand) -> Stand,
    ) {
        let Some(known) = self.orders.iter_mut().find(|known| known.seq == Some(seq)) else { return };
        let stands = known.allowed(usize::MAX).iter().map(what).collect();
        known.step(issued, answered, stands);
    }

    /// Something was done to all orders that a filter lets through, where it applies.
    pub(crate) fn did_to_all(
        &mut self,
        issued: usize,
        answered: Option<usize>,
        certain: bool,
        filter: impl Fn(&NewOrder) -> bool,
        what: impl Fn(&Stand) -> Stand,
    ) {
        for known in self.orders.iter_mut().filter(|known| filter(&known.new)) {
            let before = known.allowed(usize::MAX);
            let mut stands: BTreeSet<Stand> = before.iter().map(&what).collect();
            if stands != before {
                if !certain {
                    stands.extend(before);
                }
                // What is certain of an order stays certain: an answer to this request is one for this order too,
                // unless nobody knows yet whether the order is there at all.
                let answered = answered.filter(|_| known.acknowledged(usize::MAX));
                known.step(issued, answered, stands);
            }
        }
    }

    /// Orders that may be in one of some states now.
    pub(crate) fn in_state(&self, wanted: &[State]) -> Vec<u64> {
        let fits = |known: &&Known| {
            known.acknowledged(usize::MAX)
                && known.allowed(usize::MAX).iter().any(|stand| wanted.contains(&stand.state))
        };
        self.orders.iter().filter(fits).filter_map(|known| known.seq).collect()
    }
}

impl Model {
    /// The promises as they were at a cut, as those of a disk whose log begins there.
    pub(crate) fn at(&self, cut: usize) -> Self {
        let mut model =
            Self { opened_at: self.opened_at.filter(|at| *at <= cut).map(|_| 0), ..Self::default() };
        for known in self.orders.iter().filter(|known| known.issued(cut)) {
            let answered = known.acknowledged(cut).then_some(0);
            let mut then = Known { steps: Vec::new(), ..known.clone() };
            then.step(0, answered, known.allowed(cut));
            model.orders.push(then);
        }
        model
    }
}
