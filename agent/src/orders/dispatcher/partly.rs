//! Orders that were sent side by side, each with an answer of its own or none. Pure.

use super::{Change, Dispatcher, Sending};
use crate::clock::Mono;
use crate::orders::outcome::{BatchOutcome, OrderVerdict};

impl Dispatcher {
    /// Takes in a run of which some orders were answered. The answers come first: what the others met is what the
    /// lane waits for.
    pub(super) fn partly_taken_in(
        &mut self,
        sent: &Sending,
        verdicts: &[Option<OrderVerdict>],
        others: &BatchOutcome,
        now: Mono,
        random: u32,
    ) -> Vec<Change> {
        let part = |answered: bool| {
            let heads = sent.heads.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_some() == answered);
            let heads = heads.map(|(head, _)| head.clone()).collect();
            Sending { origin: sent.origin.clone(), country: sent.country.clone(), heads, aside: sent.aside }
        };
        let answers = BatchOutcome::Answered(verdicts.iter().flatten().cloned().collect());
        let mut changes = self.taken_in(&part(true), &answers, now, random);
        let rest = part(false);
        changes.extend(match others {
            // It answers the others, so it is there: the fault is with these.
            BatchOutcome::Stalled(detail) if self.lane(&sent.origin).is_closed() => {
                self.stalled_alone(&rest, detail, now, random)
            }
            _ => self.taken_in(&rest, others, now, random),
        });
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, ChangeTo, Limits, Route};
    use super::*;
    use crate::orders::ledger::Head;
    use std::time::Duration;

    #[test]
    fn what_was_answered_settles_and_the_rest_goes_back_behind_the_wait_that_was_asked_for() {
        let mut dispatcher = Dispatcher::new(Limits { orders: 4, bytes: 1 << 20 });
        let head = |seq| Head { seq, bytes: 9, attempts: 0, user: None };
        let (origin, country) = ("a".parse().unwrap(), "US".parse().unwrap());
        let sent = Sending { origin, country, heads: (1..=3).map(head).collect(), aside: false };

        let verdicts = vec![Some(OrderVerdict::Settled), None, Some(OrderVerdict::Settled)];
        let wait = Duration::from_secs(30);
        let busy = BatchOutcome::Busy { failing: false, detail: "HTTP 429".into(), retry_after: Some(wait) };
        let outcome = BatchOutcome::Partly { verdicts, others: Box::new(busy) };
        let actions = dispatcher.answered(&sent, &outcome, Mono::default(), 0);
        let changes: Vec<Change> = actions
            .into_iter()
            .flat_map(|action| match action {
                Action::Record(changes) => changes,
                other => panic!("{other:?}"),
            })
            .collect();
        let change = |seq, to| Change { seq, to };
        let expected = [
            change(1, ChangeTo::Settled),
            change(3, ChangeTo::Settled),
            change(2, ChangeTo::Failed("HTTP 429".into())),
        ];
        assert_eq!(changes, expected);
        dispatcher.recorded(&sent.origin, &changes, true, Mono::default(), 0);
        assert!(dispatcher.in_flight().is_empty());
        let mut to_a = |_: super::super::RouteQuery<'_>| Route::To("a".parse().unwrap());
        let just_before = Mono(wait - Duration::from_secs(1));
        let (actions, _) = dispatcher.poll(just_before, &mut to_a);
        assert!(!actions.iter().any(|action| matches!(action, Action::Send(_))), "{actions:?}");
    }
}
