//! Orders that the origin never answers, and what they cost the others.

use super::*;
use std::collections::BTreeSet;

const SECOND: Duration = Duration::from_secs(1);
const TIME_OUT: Duration = Duration::from_secs(15);
/// What a new order may take to the origin.
const SOON: Duration = Duration::from_secs(2);

/// An origin that is well and never answers for these orders.
fn hanging(seed: u64, bad: &[u64]) -> World {
    let mut world = World::new(seed);
    world.takes = |_| Duration::from_millis(50);
    world.hangs = Some((bad.iter().copied().collect(), TIME_OUT));
    world.is_up = Some(Box::new(|_, _, _| true));
    world
}

/// When an order was sent.
fn sent(world: &World, seq: u64) -> Vec<Mono> {
    world.log.iter().filter(|(_, seqs)| seqs.contains(&seq)).map(|(at, _)| *at).collect()
}

/// A customer every second for so long; gives how long the slowest took to be settled.
fn sell(world: &mut World, seconds: u32) -> Duration {
    let mut waiting = BTreeMap::new();
    let mut slowest = Duration::ZERO;
    for step in 0..seconds * 10 {
        if step % 10 == 0 {
            world.post(1, "US");
            waiting.insert(world.orders.len() as u64, world.now);
        }
        world.run_for(SECOND / 10);
        let now = world.now;
        waiting.retain(|seq, placed| {
            slowest = slowest.max(now.after(*placed));
            matches!(world.orders[seq].row, Row::Pending)
        });
    }
    slowest
}

#[test]
fn an_order_that_is_never_answered_holds_the_others_up_once_and_never_again() {
    for seed in 0..20 {
        let mut world = hanging(seed, &[1]);
        world.post(1, "US");
        // Nobody can know before the first time-out.
        let first = sell(&mut world, 20);
        assert!(first <= TIME_OUT + SOON, "seed {seed}: {first:?}");
        let later = sell(&mut world, 600);
        assert!(later <= SECOND / 5, "seed {seed}: a new order took {later:?}");
        assert_eq!(world.orders[&1].row, Row::Pending, "only the word of the origin ends it");
        let tries = sent(&world, 1);
        let gaps: Vec<Duration> = tries.windows(2).map(|two| two[1].after(two[0])).collect();
        assert!((8..30).contains(&gaps.len()), "seed {seed}: {gaps:?}");
        let waits: Vec<Duration> = gaps.iter().map(|gap| *gap - TIME_OUT).collect();
        assert!(waits[6..].iter().all(|wait| *wait >= SECOND * 30), "seed {seed}: {waits:?}");
        assert!(waits.iter().all(|wait| *wait <= MINUTE + SECOND), "seed {seed}: {waits:?}");
        // The origin is mended.
        world.hangs = None;
        world.run_for(MINUTE + TIME_OUT * 2);
        assert_eq!(world.settled(), world.orders.len());
    }
}

#[test]
fn its_neighbours_in_the_batch_are_told_apart_from_it_and_arrive() {
    for bad in [1, 40, 100] {
        let mut world = hanging(bad, &[bad]);
        // Large batches.
        world.hangs = None;
        world.post(1_500, "US");
        world.run_for(MINUTE);
        let bad = 1_500 + bad;
        world.hangs = Some((HashSet::from([bad]), TIME_OUT));
        world.post(100, "US");
        world.run_for(TIME_OUT + SOON);
        let slowest = sell(&mut world, 60);
        assert!(slowest <= SECOND / 5, "{slowest:?}");
        assert_eq!(world.settled(), world.orders.len() - 1, "all but one");
        assert!(sent(&world, bad).len() >= 3);
    }
}

#[test]
fn several_of_them_hold_nobody_up_either() {
    let bad: Vec<u64> = vec![3, 4, 50];
    let mut world = hanging(5, &bad);
    world.post(60, "US");
    world.run_for(MINUTE * 3);
    let slowest = sell(&mut world, 300);
    assert!(slowest <= SECOND / 5, "{slowest:?}");
    let pending: BTreeSet<u64> =
        world.orders.iter().filter(|(_, order)| order.row == Row::Pending).map(|(seq, _)| *seq).collect();
    assert_eq!(pending, bad.iter().copied().collect());
    assert!(bad.iter().all(|seq| sent(&world, *seq).len() >= 4), "none of them is left out");
}

#[test]
fn without_a_word_of_health_another_answer_tells_them_apart() {
    let mut world = hanging(6, &[1]);
    world.is_up = None;
    world.post(5, "US");
    world.run_for(MINUTE * 2);
    assert_eq!(world.settled(), 4);
    let slowest = sell(&mut world, 300);
    assert!(slowest <= SECOND / 5, "{slowest:?}");
}

#[test]
fn a_word_of_health_is_not_believed_for_ever() {
    let mut world = hanging(7, &[]);
    world.answers("a", |_, _| BatchOutcome::Stalled("no answer within 15000 ms".into()));
    world.takes = |_| TIME_OUT;
    let _ = sell(&mut world, 600);
    let bound = world.orders.values().filter(|order| order.origin.is_some()).count();
    assert!(bound <= 12, "{bound} orders were bound to an origin that answers none");
    assert!(world.log.len() <= 60, "{} requests in ten minutes", world.log.len());
}

#[test]
fn in_single_mode_those_that_were_sent_beside_it_do_not_wait_for_a_probe() {
    let mut world = hanging(8, &[]);
    world.dispatcher = Dispatcher::new(Limits { orders: 4, bytes: 1 << 20 });
    world.takes = |size| if size > 1 { TIME_OUT } else { Duration::from_millis(50) };
    world.answers("a", |seqs, now| {
        if !seqs.contains(&2) {
            return settle_all(seqs, now);
        }
        let stalled = BatchOutcome::Stalled("no answer within 15000 ms".into());
        let verdicts: Vec<_> = seqs.iter().map(|seq| (*seq != 2).then_some(OrderVerdict::Settled)).collect();
        if seqs.len() == 1 { stalled } else { BatchOutcome::Partly { verdicts, others: Box::new(stalled) } }
    });
    world.post(4, "US");
    world.run_for(TIME_OUT + SECOND / 10);
    let lane = world.dispatcher.lanes().next().map(|(_, state, _)| state);
    assert_eq!(lane, Some(LaneState::Closed), "it answered three");
    let slowest = sell(&mut world, 300);
    assert!(slowest <= SECOND / 5, "{slowest:?}");
    assert!((4..20).contains(&sent(&world, 2).len()));
}

#[test]
fn an_outage_explains_what_was_not_answered() {
    let back = Mono::default().plus(MINUTE * 10);
    let mut world = World::new(9);
    world.takes = |_| Duration::from_millis(50);
    world.post(500, "US");
    world.run_for(SECOND / 5);
    world.answers("a", move |seqs, now| {
        if now < back { BatchOutcome::Stalled("no answer".into()) } else { settle_all(seqs, now) }
    });
    world.is_up = Some(Box::new(move |_, _, now| now >= back));
    world.run_for(MINUTE * 11);
    assert_eq!(world.settled(), 500);
    let late = world.sends.iter().rev().take(20);
    assert!(late.map(|(_, size)| *size).max() > Some(30), "they went in batches: {:?}", world.sends);
}

#[test]
fn what_an_order_meets_aside_is_heard_when_it_concerns_the_origin() {
    for (outcome, open) in [
        (BatchOutcome::Busy { failing: false, detail: "429".into(), retry_after: Some(MINUTE) }, true),
        (BatchOutcome::Busy { failing: true, detail: "503".into(), retry_after: Some(MINUTE) }, true),
        (BatchOutcome::Busy { failing: true, detail: "500".into(), retry_after: None }, false),
        (BatchOutcome::IdentityRefused("401".into()), true),
        (BatchOutcome::Unreachable("refused".into()), true),
        (BatchOutcome::Stalled("no answer".into()), false),
    ] {
        let mut world = hanging(10, &[1]);
        world.is_up = None;
        world.post(3, "US");
        world.run_for(MINUTE * 2);
        assert_eq!(world.settled(), 2);
        world.hangs = None;
        let told = outcome.clone();
        world.answers("a", move |_, _| told.clone());
        let tries = world.log.len();
        while world.log.len() == tries {
            world.run_for(SECOND);
        }
        world.run_for(SECOND / 10);
        let lane = world.dispatcher.lanes().next().map(|(_, state, _)| state);
        assert_eq!(matches!(lane, Some(LaneState::Open { .. })), open, "{outcome:?} {lane:?}");
        assert!(!matches!(world.orders[&1].row, Row::Quarantined(_)));
    }
}

#[test]
fn a_refusal_of_an_order_that_stands_alone_is_its_end() {
    let mut world = hanging(11, &[1]);
    world.post(3, "US");
    world.run_for(MINUTE * 2);
    world.hangs = None;
    world.answers("a", |_, _| BatchOutcome::BatchRefused("bad total".into()));
    world.run_for(MINUTE * 2);
    assert_eq!(world.orders[&1].row, Row::Quarantined("rejected".into()));
    assert!(world.dispatcher.in_flight().is_empty());
}
