//! Conditions that no change of the ledger announces: looked for now and then (IO).

use super::{Flow, Work};
use crate::clock::{Mono, mono};
use crate::orders::conditions::{stranded, takes_none};
use crate::orders::ledger::{Hold, State};
use samovar_wire::conditions::Condition;
use std::time::Duration;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(20);

impl Flow {
    /// Shows which origins take no orders.
    pub(super) fn show_lanes(&self, work: &Work) {
        let (backlog, storage) = (self.ledger.backlog(), self.ledger.storage());
        let told = takes_none(work.dispatcher.lanes(), &backlog.borrow(), &storage.borrow());
        self.board.set(Condition::OriginTakesNoOrders, told);
    }

    /// Looks at what must be read or has to last; gives when to look again.
    pub(super) async fn look_around(&self, work: &mut Work) -> Mono {
        let backlog = self.ledger.backlog().borrow().clone();
        let pending = backlog.count(State::Pending) > 0;
        let reading = async {
            let oldest =
                if pending { self.ledger.page(Some(State::Pending), 0, 1).await? } else { Vec::new() };
            let dependants = backlog.count_why(State::Held, Hold::DependsOn.word());
            let stranded = if dependants > 0 { self.ledger.stranded().await? } else { 0 };
            Ok::<_, crate::orders::ledger::LedgerError>((oldest, stranded))
        };
        let read = self.taking_answers(work, reading).await;
        let now = mono();
        // A ledger that cannot be read has a condition of its own.
        if let Ok((oldest, count)) = read {
            self.board.set(Condition::OrdersWaiting, work.watch.oldest(oldest.first(), now));
            self.board.set(Condition::OrdersStranded, stranded(count));
        }
        self.board.set(Condition::OriginContradictsItself, work.watch.contradictions(now));
        self.board.set(Condition::ShadowsDiffer, self.shadow.trouble());
        now.plus(LOOK_EVERY)
    }
}
