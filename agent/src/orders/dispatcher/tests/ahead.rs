//! The batch that is prepared while one is under way.

use super::*;

const MS: Duration = Duration::from_millis(1);
const ALL: usize = 3_000;

/// A backlog that is drained at full speed, in batches of 100 that take so long.
fn draining(seed: u64, takes: fn(usize) -> Duration) -> World {
    let mut world = World::new(seed);
    world.takes = takes;
    world.post(ALL as u64, "US");
    while world.settled() < 700 {
        world.run_for(50 * MS);
    }
    world
}

fn quick(_: usize) -> Duration {
    100 * MS
}

#[test]
fn in_a_drain_the_next_batch_is_bound_before_the_answer_and_goes_with_it() {
    let world = draining(60, quick);
    assert_eq!(world.prepared.len(), 1);
    // The loop gave the batches no pause.
    let late: Vec<Duration> = world.log[5..].windows(2).map(|two| two[1].0.after(two[0].0)).collect();
    assert!(late.len() > 4 && late.iter().all(|gap| *gap == 100 * MS), "{late:?}");
    let bound = world.orders.values().filter(|order| order.row == Row::Pending && order.origin.is_some());
    assert_eq!(bound.count(), 2 * MAX.orders, "one batch on the wire, one behind it");
    assert_eq!(world.withdrawn, 0);
}

#[test]
fn when_a_batch_fails_the_prepared_one_is_withdrawn_and_stays_bound_and_uncounted() {
    let mut world = draining(61, quick);
    let prepared: Vec<u64> = world.prepared[&origin("a")].heads.iter().map(|head| head.seq).collect();
    world.answers("a", |_, _| BatchOutcome::Unreachable("cut".into()));
    // Everything new goes elsewhere from now on.
    world.route = Box::new(|query| Route::To(query.bound.cloned().unwrap_or_else(|| origin("b"))));
    let (sends, settled_by_a) = (world.log.len(), world.sites[&origin("a")].len());
    world.run_for(300 * MS);
    assert_eq!(world.withdrawn, 1);
    assert!(
        !world.log[sends..].iter().any(|(_, seqs)| seqs.contains(&prepared[0])),
        "it was sent all the same"
    );
    for seq in &prepared {
        let order = &world.orders[seq];
        assert_eq!((&order.row, &order.origin, order.attempts), (&Row::Pending, &Some(origin("a")), 0));
    }
    let bound_to_a = world.orders.values().filter(|order| order.origin == Some(origin("a")));
    assert_eq!(
        bound_to_a.count() - settled_by_a,
        2 * MAX.orders,
        "no more than one batch beside the one that failed"
    );
    // They wait for their origin, and are the next that it gets.
    world.answers("a", settle_all);
    world.run_for(MINUTE * 10);
    assert_eq!(world.settled(), ALL);
    assert!(prepared.iter().all(|seq| world.sites[&origin("a")].contains(seq)));
    let read = world.dispatcher.groups.values().map(|queue| queue.live().chain(queue.backlog()).count());
    assert_eq!(read.sum::<usize>(), 0);
}

#[test]
fn a_refused_batch_is_halved_before_the_prepared_one_goes() {
    let mut world = draining(62, quick);
    let poison = world.prepared[&origin("a")].heads[40].seq;
    world.answers("a", move |seqs, now| {
        if seqs.contains(&poison) { BatchOutcome::BatchRefused("bad".into()) } else { settle_all(seqs, now) }
    });
    world.run_for(MINUTE * 2);
    assert_eq!((world.settled(), world.withdrawn), (ALL - 1, 1));
    assert_eq!(world.orders[&poison].row, Row::Quarantined("rejected".into()));
}

#[test]
fn an_origin_that_asks_for_patience_gets_nothing_more() {
    let mut world = draining(63, quick);
    let asked = Some(Duration::from_secs(60));
    let busy = BatchOutcome::Busy { failing: false, detail: "429".into(), retry_after: asked };
    world.answers("a", move |_, _| busy.clone());
    world.run_for(200 * MS);
    let sends = world.log.len();
    world.run_for(Duration::from_secs(59));
    assert_eq!((world.log.len(), world.withdrawn), (sends, 1));
}

#[test]
fn a_live_order_waits_for_two_batches_at_most() {
    let mut world = draining(64, |_| 450 * MS);
    for _ in 0..4 {
        world.run_for(170 * MS);
        let (batches, prepared) = (world.log.len(), world.prepared.len());
        world.post(1, "US");
        let newest = world.orders.len() as u64;
        let placed = world.now;
        world.run_for(Duration::from_secs(2));
        let at = world
            .log
            .iter()
            .position(|(_, seqs)| seqs.contains(&newest))
            .expect("it waits behind the backlog");
        assert!(at <= batches + prepared, "{} batches went before it", at - batches);
        assert!(world.log[at].0 <= placed.plus(2 * 450 * MS));
        assert!(matches!(world.orders[&newest].row, Row::Settled(_)), "two seconds later");
    }
}

#[test]
fn nothing_is_prepared_behind_slow_batches_or_without_a_drain() {
    let slow = draining(65, |_| 500 * MS);
    assert_eq!(slow.prepared.len(), 0);
    // A lane at full speed that single orders come to.
    let mut world = draining(66, quick);
    world.run_for(MINUTE);
    assert_eq!(world.settled(), ALL);
    world.post(1, "US");
    world.run_for(10 * MS);
    world.post(5, "US");
    world.run_for(10 * MS);
    assert_eq!((world.flying.len(), world.prepared.len()), (1, 0));
    world.run_for(MINUTE);
    assert_eq!(world.settled(), ALL + 6);
}

#[test]
fn what_is_over_is_not_read_again_before_it_is_on_disk() {
    let mut dispatcher = Dispatcher::new(MAX);
    let heads = vec![Head { seq: 1, bytes: 9, attempts: 0, user: None }];
    let sent = Sending { origin: origin("a"), country: country("US"), heads, aside: false };
    let actions = dispatcher.answered(&sent, &settle_all(&[1], Mono::default()), Mono::default(), 0);
    let [Action::Record(changes)] = &actions[..] else { panic!("{actions:?}") };
    assert!(dispatcher.in_flight().contains(&1));
    dispatcher.recorded(&sent.origin, changes, true, Mono::default(), 0);
    assert!(dispatcher.in_flight().is_empty());
}

#[test]
fn a_batch_that_could_not_be_bound_does_not_count_as_the_one_under_way() {
    let mut world = draining(67, quick);
    let sending = world.prepared.remove(&origin("a")).unwrap();
    let on_the_wire = world.flying[0].1.clone();
    let cut = BatchOutcome::Unreachable("cut".into());
    let actions = world.dispatcher.answered(&on_the_wire, &cut, world.now, 0);
    assert_eq!(actions[0], Action::Withdraw(origin("a")));
    assert_eq!(world.dispatcher.withdrawn(&sending, false, world.now), []);
    assert!(world.dispatcher.in_flight().is_empty());
    // When it was its turn, the lane waits for the ledger.
    let mut world = draining(68, quick);
    let (prepared, on_the_wire) = (world.prepared[&origin("a")].clone(), world.flying[0].1.clone());
    let seqs: Vec<u64> = on_the_wire.heads.iter().map(|head| head.seq).collect();
    let actions = world.dispatcher.answered(&on_the_wire, &settle_all(&seqs, world.now), world.now, 0);
    assert_eq!(actions[0], Action::Go(origin("a")));
    assert_eq!(world.dispatcher.not_bound(&prepared, world.now, 0), None);
    let (_, state, _) = world.dispatcher.lanes().next().unwrap();
    assert!(matches!(state, LaneState::Open { cause: Cause::Busy, .. }), "{state:?}");
}
