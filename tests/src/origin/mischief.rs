//! An origin that misbehaves now and then: which batch is treated how follows from a seed.

use super::behaviour::Behaviour;
use fastrand::Rng;

/// How often each behaviour comes up, in parts of the sum. About three batches in five are treated honestly, so that
/// there is progress between the blows; what commits and then breaks its answer is what doubles orders, and weighs most.
const MENU: &[(u32, Behaviour)] = &[
    (120, Behaviour::Honest),
    (14, Behaviour::CommitThenDrop),
    (8, Behaviour::CommitThenReset),
    (2, Behaviour::CommitThenStall),
    (5, Behaviour::HalfBody),
    (5, Behaviour::CutChunks),
    (5, Behaviour::WrongJson),
    (5, Behaviour::AnswerTwice),
    (4, Behaviour::ContradictItself),
    (4, Behaviour::RepeatResults),
    (4, Behaviour::StrayResults),
    (4, Behaviour::AnswerOnlyFirst),
    (3, Behaviour::WrongBatchId),
    (3, Behaviour::Drip { pause_ms: 15 }),
    (1, Behaviour::Drip { pause_ms: 150 }),
    (5, Behaviour::status(500)),
    (2, Behaviour::status(503)),
    (2, Behaviour::Status { status: 429, retry_after_s: Some(1) }),
    (2, Behaviour::RetryAll { retry_after_s: 1 }),
    (2, Behaviour::Drop),
    (2, Behaviour::CloseMidRequest),
    (1, Behaviour::Stall),
    (1, Behaviour::Deaf),
    (2, Behaviour::Portal),
    (1, Behaviour::Redirect),
    (1, Behaviour::EmptyObject),
    (1, Behaviour::status(404)),
];

/// A source of behaviours.
#[derive(Debug)]
pub struct Mischief(Rng);

impl Mischief {
    /// The same seed gives the same row of behaviours.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// How the next batch is treated.
    pub fn draw(&mut self) -> Behaviour {
        let sum = MENU.iter().map(|(weight, _)| weight).sum();
        let mut ticket = self.0.u32(0..sum);
        for (weight, behaviour) in MENU {
            match ticket.checked_sub(*weight) {
                Some(rest) => ticket = rest,
                None => return behaviour.clone(),
            }
        }
        Behaviour::Honest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_mischief_and_every_kind_of_it_comes_up() {
        let row = |seed| {
            let mut mischief = Mischief::new(seed);
            (0..5_000).map(|_| mischief.draw()).collect::<Vec<_>>()
        };
        assert_eq!(row(7), row(7));
        assert_ne!(row(7), row(8));
        for (_, behaviour) in MENU {
            assert!(row(7).contains(behaviour), "{behaviour:?}");
        }
    }
}
