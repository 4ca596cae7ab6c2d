//! What is counted of shadow traffic, and when head office is told. Pure.

use super::compare::Said;
use crate::clock::Mono;
use samovar_wire::{OriginId, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

/// Differences that are remembered.
const EXAMPLES: usize = 10;
/// Differences among the last [`COMPARED`] copies that are more than chance or a single odd order.
const MANY: u32 = 10;
/// Copies of which it is remembered whether they differed: the bits of a number.
const COMPARED: u32 = u128::BITS;
/// Least time between two events.
const EVENT_GAP: Duration = Duration::from_secs(60);

/// What became of copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Sent to a shadow origin.
    pub sent: u64,
    /// It said the same.
    pub same: u64,
    /// It said something else.
    pub different: u64,
    /// It said nothing that can be compared.
    pub not_compared: u64,
    /// Never sent: the queue was full, the shadow origin was resting after a failure, or the rule was gone.
    pub dropped: u64,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    /// When it was seen.
    pub at: Timestamp,
    /// The till's number.
    pub order_no: String,
    /// Its key.
    pub key: String,
    /// Its own origin.
    pub origin: OriginId,
    /// What that said.
    pub answer: Said,
    /// The shadow origin.
    pub shadow: OriginId,
    /// What that said.
    pub shadow_answer: Said,
}

/// The memory of the comparison.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    /// Newest first.
    examples: VecDeque<Example>,
    /// Differences that head office has not been told of.
    untold: u64,
    told_at: Option<Mono>,
    /// The newest comparisons, the last one in the lowest bit; set when they differed.
    recent: u128,
}

impl Tally {
    /// Counts a copy of which both said the same.
    pub(super) const fn same(&mut self) {
        self.counts.same += 1;
        self.recent <<= 1;
    }

    /// What a person should know: many of the last copies differed.
    pub(super) fn trouble(&self) -> Option<String> {
        let (different, shadow) = (self.recent.count_ones(), &self.examples.front()?.shadow);
        (different >= MANY)
            .then(|| format!("{shadow} judged {different} of the last {COMPARED} compared orders otherwise"))
    }

    /// Counts a difference.
    pub(super) fn different(&mut self, example: Example) {
        self.recent = (self.recent << 1) | 1;
        self.counts.different += 1;
        self.untold += 1;
        self.examples.push_front(example);
        self.examples.truncate(EXAMPLES);
    }

    /// The newest differences, newest first.
    pub(super) fn examples(&self) -> Vec<Example> {
        self.examples.iter().cloned().collect()
    }

    /// When there is something to tell.
    pub(super) fn event_at(&self) -> Option<Mono> {
        (self.untold > 0).then(|| self.told_at.map(|at| at.plus(EVENT_GAP)).unwrap_or_default())
    }

    /// The event, if it is time for one.
    pub(super) fn event(&mut self, now: Mono) -> Option<Value> {
        self.event_at().filter(|at| *at <= now)?;
        let newest = usize::try_from(self.untold).unwrap_or(EXAMPLES);
        let examples: Vec<_> = self.examples.iter().take(newest).collect();
        let event = json!({ "different": self.untold, "totals": self.counts, "examples": examples });
        self.untold = 0;
        self.told_at = Some(now);
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(n: u64) -> Example {
        Example {
            at: Timestamp::from_millis(0),
            order_no: format!("A-{n}"),
            key: format!("A-{n}"),
            origin: "us-west".parse().unwrap(),
            answer: Said::Settled,
            shadow: "us-next".parse().unwrap(),
            shadow_answer: Said::Rejected { code: "closed".into(), detail: "shop 9 is closed".into() },
        }
    }

    #[test]
    fn head_office_is_told_at_once_and_then_once_a_minute_with_what_is_new() {
        let mut tally = Tally::default();
        let at = |seconds| Mono(Duration::from_secs(seconds));
        assert_eq!((tally.event_at(), tally.event(at(5))), (None, None));
        tally.different(example(1));
        let event = tally.event(at(5)).unwrap();
        assert_eq!((&event["different"], &event["examples"][0]["order_no"]), (&json!(1), &json!("A-1")));
        assert_eq!(event["examples"][0]["shadow_answer"]["status"], "rejected");
        (2..=4).for_each(|n| tally.different(example(n)));
        assert_eq!((tally.event(at(64)), tally.event_at()), (None, Some(at(65))));
        let event = tally.event(at(65)).unwrap();
        assert_eq!((&event["different"], &event["totals"]["different"]), (&json!(3), &json!(4)));
        assert_eq!(event["examples"].as_array().unwrap().len(), 3);
        assert_eq!((tally.event(at(200)), tally.event_at()), (None, None));
    }

    #[test]
    fn many_differences_among_the_last_comparisons_are_trouble_until_they_have_passed() {
        let mut tally = Tally::default();
        (1..10).for_each(|n| tally.different(example(n)));
        assert_eq!(tally.trouble(), None);
        tally.different(example(10));
        assert!(tally.trouble().is_some_and(|told| told.starts_with("us-next judged 10 of")));
        (0..118).for_each(|_| tally.same());
        assert!(tally.trouble().is_some());
        tally.same();
        assert_eq!(tally.trouble(), None);
    }

    #[test]
    fn only_the_newest_differences_are_remembered() {
        let mut tally = Tally::default();
        (1..=25).for_each(|n| tally.different(example(n)));
        let numbers: Vec<_> = tally.examples().into_iter().map(|example| example.order_no).collect();
        assert_eq!((numbers.len(), numbers[0].as_str(), numbers[9].as_str()), (10, "A-25", "A-16"));
        assert_eq!(tally.event(Mono::default()).unwrap()["different"], 25);
    }
}
