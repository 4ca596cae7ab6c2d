//! Live orders and backlog, the breaker, and what happens when an origin comes back.

use super::*;
use crate::orders::recovery::MOST_SPREAD;

const SECOND: Duration = Duration::from_secs(1);

/// A till whose only origin does not answer until `back`.
fn cut_off(seed: u64, back: Mono) -> World {
    let mut world = World::new(seed);
    world.answers("a", move |seqs, now| {
        if now < back { BatchOutcome::Unreachable("no route".into()) } else { settle_all(seqs, now) }
    });
    world.is_up = Some(Box::new(move |_, _, now| now >= back));
    world.recovery.set_device(&format!("POS-{seed}"));
    world
}

fn settled_at(world: &World, seq: u64) -> Option<Mono> {
    let last = world.log.iter().rev().find(|(_, seqs)| seqs.contains(&seq))?;
    matches!(world.orders[&seq].row, Row::Settled(_)).then_some(last.0)
}

#[test]
fn a_new_order_arrives_within_two_seconds_of_the_return_and_the_backlog_follows() {
    for seed in 0..20 {
        let back = Mono::default().plus(MINUTE * 60);
        let mut world = cut_off(seed, back);
        world.takes = |_| Duration::from_millis(50);
        world.post(3_000, "US");
        world.run_for(MINUTE * 60);
        // Some customers come while the line comes back.
        world.post(1, "US");
        world.run_for(Duration::from_millis(300));
        world.post(5, "US");
        world.run_for(Duration::from_millis(1_700));
        assert!(world.now >= back.plus(SECOND * 2));
        for seq in 3_001..=3_006 {
            let at = settled_at(&world, seq).unwrap_or_else(|| panic!("order {seq} waits, seed {seed}"));
            assert!(at <= back.plus(SECOND * 2));
        }
        world.run_for(MOST_SPREAD + MINUTE);
        assert_eq!(world.settled(), 3_006, "seed {seed}");
    }
}

#[test]
fn an_order_that_comes_at_any_time_after_the_return_waits_for_no_backlog() {
    let back = Mono::default().plus(MINUTE * 30);
    for delay_ms in [0, 400, 900, 2_500, 7_000, 20_000, 29_000] {
        let mut world = cut_off(7, back);
        world.takes = |size| Duration::from_millis(20 + size as u64);
        world.post(5_000, "US");
        world.run_for(MINUTE * 30 + Duration::from_millis(delay_ms));
        world.post(1, "US");
        let placed = world.now;
        world.run_for(SECOND * 2);
        let at = settled_at(&world, 5_001).unwrap_or_else(|| panic!("waits {delay_ms} ms after the return"));
        assert!(at <= placed.plus(SECOND * 2));
    }
}

#[test]
fn neither_live_orders_nor_the_backlog_starve() {
    for most in [1, 4, 30] {
        let mut world = World::new(21);
        world.dispatcher = Dispatcher::new(Limits { orders: most, bytes: 64 * 1024 });
        world.takes = |_| Duration::from_millis(100);
        world.post(600, "US");
        // More customers than the origin can take.
        let (mut waited, mut backlog_batches) = (0, 0);
        for _ in 0..160 {
            world.post(3 * most as u64, "US");
            let newest = world.orders.len() as u64;
            let before = world.log.len();
            world.run_for(Duration::from_millis(100));
            let sent = &world.log[before..];
            backlog_batches += usize::from(sent.iter().any(|(_, seqs)| seqs.iter().any(|seq| *seq <= 600)));
            waited += usize::from(!sent.iter().any(|(_, seqs)| seqs.iter().any(|seq| *seq > newest / 2)));
        }
        let backlog_left =
            world.orders.iter().filter(|(seq, order)| **seq <= 600 && order.row == Row::Pending);
        let backlog_sent = 600 - backlog_left.count();
        assert!(backlog_sent >= (40 * most).min(600), "{backlog_sent} of the backlog in batches of {most}");
        assert!(backlog_batches > 5 || backlog_sent == 600, "{backlog_batches}");
        let live_sent = world.settled() - backlog_sent;
        assert!(live_sent >= 80 * most, "{live_sent} live orders in batches of {most}, {waited}");
    }
}

#[test]
fn what_came_before_the_last_failure_is_backlog() {
    let mut world = World::new(22);
    world.answers("a", |_, _| BatchOutcome::Unreachable("down".into()));
    let live = |world: &World| -> Vec<u64> {
        world.dispatcher.groups.values().flat_map(|queue| queue.live().map(|(head, _)| head.seq)).collect()
    };
    for round in 1..=5_u64 {
        world.post(10, "US");
        let failures = world.sends.len();
        while world.sends.len() == failures {
            world.run_for(SECOND);
        }
        assert_eq!(live(&world), [0_u64; 0], "round {round}");
    }
    world.post(3, "US");
    world.run_for(Duration::ZERO);
    assert!(live(&world).iter().all(|seq| *seq > 50), "{:?}", live(&world));
}

#[test]
fn a_pile_that_came_without_an_outage_is_passed_by_new_orders_too() {
    let mut world = World::new(23);
    world.takes = |_| SECOND;
    world.post(1, "US");
    world.run_for(SECOND);
    world.post(5_000, "US");
    world.run_for(SECOND * 5);
    world.post(1, "US");
    let placed = world.now;
    world.run_for(SECOND * 5);
    let at = settled_at(&world, 5_002).expect("it waits behind the pile");
    assert!(at <= placed.plus(SECOND * 3), "{at:?} {placed:?}");
}

#[test]
fn orders_that_come_back_are_found_by_reading_two_pages() {
    let mut world = World::new(24);
    world.takes = |_| SECOND;
    world.post(10_000, "US");
    world.run_for(SECOND * 3);
    world.orders.get_mut(&2).unwrap().row = Row::Pending;
    world.disturbed += 1;
    let before = world.loads;
    world.publish();
    world.run_for(Duration::ZERO);
    assert!(world.loads <= before + 4, "{} reads", world.loads - before);
    world.run_for(SECOND * 3);
    assert!(matches!(world.orders[&2].row, Row::Settled(_)));
}

fn only_lane(world: &World) -> LaneState {
    world.dispatcher.lanes().map(|(_, state, _)| state).next().expect("one lane")
}

#[test]
fn the_breaker_opens_tries_one_order_and_closes() {
    let mut world = World::new(25);
    world.post(20, "US");
    world.answers("a", |_, _| BatchOutcome::Busy { failing: true, detail: "503".into(), retry_after: None });
    world.run_for(Duration::ZERO);
    assert!(matches!(only_lane(&world), LaneState::Open { cause: Cause::Failing, .. }));
    world.run_for(MINUTE);
    assert!(world.sends[1..].iter().all(|(_, size)| *size == 1), "{:?}", world.sends);
    world.answers("a", settle_all);
    world.run_for(MINUTE);
    assert_eq!(only_lane(&world), LaneState::Closed);
    assert_eq!(world.settled(), 20);
}

#[test]
fn a_wait_that_the_origin_asked_for_outlasts_every_sign_of_life() {
    let mut world = World::new(26);
    world.is_up = Some(Box::new(|_, _, _| true));
    let retry_after = Some(MINUTE * 5);
    let mut calls = 0;
    world.answers("a", move |seqs, now| {
        calls += 1;
        match calls {
            1 => BatchOutcome::Busy { failing: false, detail: "429".into(), retry_after },
            _ => settle_all(seqs, now),
        }
    });
    world.post(5, "US");
    world.run_for(MINUTE * 5 - SECOND);
    assert_eq!(world.sends.len(), 1, "a busy origin is left alone");
    assert!(world.greetings.is_empty(), "and not even looked at");
    world.run_for(MINUTE);
    assert_eq!(world.settled(), 5);
}

/// Whoever served as a probe waits for the origin, and for nothing else.
#[test]
fn the_wait_of_a_probe_ends_when_another_order_is_answered() {
    for failing in [true, false] {
        let mut world = World::new(32);
        let back = Mono::default().plus(MINUTE * 30);
        world.answers("a", move |seqs, now| match (now < back, failing) {
            (true, true) => BatchOutcome::Busy { failing, detail: "503".into(), retry_after: None },
            (true, false) => BatchOutcome::Unreachable("down".into()),
            _ => settle_all(seqs, now),
        });
        world.post(4, "US");
        world.run_for(MINUTE * 30);
        while only_lane(&world) != LaneState::Closed {
            world.run_for(SECOND / 10);
        }
        world.run_for(SECOND);
        assert_eq!(world.settled(), 4, "failing: {failing}");
    }
}

#[test]
fn an_origin_that_is_there_and_unhealthy_is_noticed_soon_when_it_is_well_again() {
    for (seed, status) in (0..40).zip([true, false].into_iter().cycle()) {
        let back = Mono::default().plus(MINUTE * 20);
        let mut world = World::new(seed);
        world.answers("a", move |seqs, now| match (now < back, status) {
            (true, true) => BatchOutcome::Busy { failing: true, detail: "503".into(), retry_after: None },
            (true, false) => BatchOutcome::NotTheOrigin("502 as a page".into()),
            _ => settle_all(seqs, now),
        });
        world.is_up = Some(Box::new(move |_, probe, now| probe == Probe::Knock || now >= back));
        world.post(30, "US");
        world.run_for(MINUTE * 20 - SECOND);
        world.post(1, "US");
        let greetings = world.greetings.len();
        assert!((300..1_000).contains(&greetings), "{greetings} looks in twenty minutes");
        world.run_for(SECOND * 6);
        let at = settled_at(&world, 31).unwrap_or_else(|| panic!("it waits, seed {seed}"));
        assert!(at <= back.plus(SECOND * 4), "seed {seed}: {:?} after the return", at.after(back));
    }
}

/// Its health is fine, and still it fails for every order.
#[test]
fn an_origin_that_says_it_is_well_and_fails_is_tried_now_and_then() {
    let mut world = World::new(33);
    let back = Mono::default().plus(MINUTE * 20);
    world.answers("a", move |seqs, now| {
        if now < back {
            BatchOutcome::Busy { failing: true, detail: "503".into(), retry_after: None }
        } else {
            settle_all(seqs, now)
        }
    });
    world.is_up = Some(Box::new(|_, _, _| true));
    world.post(30, "US");
    world.run_for(MINUTE * 20);
    let tries = world.log.len();
    assert!((60..200).contains(&tries), "{tries} tries in twenty minutes");
    // The pace of the knocks and of the looks behind them.
    world.run_for(SECOND * 32);
    assert_eq!(world.settled(), 30);
}

/// Balancers like to ask for a second or two.
#[test]
fn a_short_wait_that_was_asked_for_is_followed_by_looking_for_health() {
    let back = Mono::default().plus(MINUTE * 20);
    let mut world = World::new(34);
    world.answers("a", move |seqs, now| {
        if now < back {
            let retry_after = Some(SECOND * 2);
            BatchOutcome::Busy { failing: true, detail: "503".into(), retry_after }
        } else {
            settle_all(seqs, now)
        }
    });
    world.is_up = Some(Box::new(move |_, probe, now| probe == Probe::Knock || now >= back));
    world.post(30, "US");
    world.run_for(MINUTE * 20 - SECOND);
    world.post(1, "US");
    world.run_for(SECOND * 6);
    assert!(settled_at(&world, 31).is_some_and(|at| at <= back.plus(SECOND * 4)), "it waits");
}

#[test]
fn an_order_that_breaks_a_healthy_origin_is_not_sent_again_at_each_look() {
    let mut world = World::new(27);
    world.is_up = Some(Box::new(|_, _, _| true));
    world.answers("a", |seqs, now| {
        if seqs.contains(&3) { BatchOutcome::Unreachable("reset".into()) } else { settle_all(seqs, now) }
    });
    world.post(300, "US");
    world.run_for(MINUTE * 6);
    assert_eq!(world.settled(), 299);
    assert!(world.orders[&3].attempts < 40, "{} attempts in six minutes", world.orders[&3].attempts);
}

#[test]
fn batches_stay_short_enough_for_a_live_order_and_a_slow_line_is_used_all_the_same() {
    let mut world = World::new(28);
    // The origin takes a tenth of a second for each order.
    world.takes = |size| Duration::from_millis(100) * size as u32;
    world.post(500, "US");
    world.run_for(MINUTE);
    let late = &world.sends[10..];
    assert!(late.iter().all(|(_, size)| (4..=40).contains(size)), "{late:?}");
    // The line takes three seconds whatever is sent.
    let mut world = World::new(29);
    world.takes = |_| SECOND * 3;
    world.post(1_000, "US");
    world.run_for(MINUTE * 2);
    assert!(world.sends.iter().any(|(_, size)| *size == MAX.orders), "{:?}", world.sends);
}

#[test]
fn a_poison_order_is_looked_for_while_live_orders_pass() {
    let mut world = World::new(30);
    world.dispatcher = Dispatcher::new(Limits { orders: 500, bytes: 1024 * 1024 });
    world.takes = |_| Duration::from_millis(200);
    world.post(1_500, "US");
    world.answers("a", |seqs, now| {
        if seqs.contains(&1_400) { BatchOutcome::BatchRefused("bad".into()) } else { settle_all(seqs, now) }
    });
    let bisected = |world: &World| world.dispatcher.in_flight.contains(&1_400);
    for _ in 0..100 {
        if !bisected(&world) {
            world.run_for(Duration::from_millis(100));
        }
    }
    assert!(bisected(&world));
    // One country's order is poison; another's, and new ones of the same, go on.
    world.post(1, "JP");
    world.post(1, "US");
    let placed = world.now;
    world.run_for(SECOND * 2);
    for seq in [1_501, 1_502] {
        let at = settled_at(&world, seq).unwrap_or_else(|| panic!("{seq} waits behind the poison"));
        assert!(at <= placed.plus(SECOND * 2));
    }
    world.run_for(MINUTE);
    assert_eq!(world.settled(), 1_501, "all but one, in the same minute");
}

#[test]
fn a_batch_that_hangs_since_before_the_return_is_given_up_and_costs_no_wait() {
    let mut world = World::new(31);
    world.answers("a", |_, _| BatchOutcome::Unreachable("down".into()));
    world.post(50, "US");
    world.run_for(MINUTE * 10);
    // The next probe goes and does not come back.
    let sending = loop {
        let (actions, wake_at) = world.dispatcher.poll(world.now, &mut world.route);
        let mut sent = None;
        for action in actions {
            match action {
                Action::Send(sending) => sent = Some(sending),
                other => world.perform(other),
            }
        }
        if let Some(sent) = sent {
            break sent;
        }
        world.now = wake_at.unwrap_or(world.now).max(world.now);
    };
    let line_up = world.now.plus(SECOND * 3);
    world.now = line_up.plus(SECOND);
    let back =
        Return { origin: origin("a"), line_up, live_at: world.now, backlog_from: world.now.plus(MINUTE) };
    assert!(world.dispatcher.heard(&back, world.now), "it is to be given up");
    world.answers("a", settle_all);
    world.post(1, "US");
    let given_up = BatchOutcome::Unreachable("given up".into());
    for action in world.dispatcher.answered(&sending, &given_up, world.now, u32::MAX) {
        world.perform(action);
    }
    world.run_for(Duration::ZERO);
    assert!(settled_at(&world, 51).is_some(), "the live order goes at once");
    assert_eq!(world.settled(), 1, "the backlog waits for its turn");
    world.run_for(MINUTE * 3);
    assert_eq!(world.settled(), 51);
}

/// What an origin sees when it comes back after a minute and every device of a country has something to send.
#[test]
fn ten_thousand_devices_do_not_come_back_in_step() {
    let outage = MINUTE;
    let back = Mono::default().plus(outage);
    let mut per_second = vec![0_usize; 60];
    let mut live_late = 0;
    for device in 0..10_000 {
        let mut world = cut_off(device, back);
        world.post(5, "US");
        world.run_for(outage);
        let waits = device % 100 == 0;
        if waits {
            world.post(1, "US");
        }
        world.run_for(MINUTE);
        assert_eq!(world.settled(), world.orders.len(), "device {device}");
        if waits && settled_at(&world, 6).is_none_or(|at| at > back.plus(SECOND * 2)) {
            live_late += 1;
        }
        let requests = world.log.iter().map(|(at, _)| *at).chain(world.greetings.iter().copied());
        for at in requests.filter(|at| *at >= back) {
            per_second[(at.after(back).as_secs() as usize).min(59)] += 1;
        }
    }
    let (all, peak) = (per_second.iter().sum::<usize>(), per_second.iter().max().unwrap());
    assert_eq!(live_late, 0, "live orders wait for nobody");
    assert!(all > 20_000, "{all} requests");
    assert!(*peak < all / 4, "{peak} of {all} requests in one second: {per_second:?}");
}
