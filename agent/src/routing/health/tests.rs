use super::*;
use crate::routing::world::{Seconds, World};
use std::ops::Range;

const MINUTE: Seconds = 60.0;
const DAY: Seconds = 86_400.0;
/// Longest time from an origin's return to its use: two probes of one that was left, then the hold.
const HOLD: Seconds = 2.0 * 36.0 + 4.0 + 420.0;
const NOW: Mono = Mono(Duration::ZERO);

fn two(seed: u64) -> World {
    World::new(&[("near", 0.08), ("far", 0.03)], seed)
}

fn moved_to(world: &World) -> Vec<&str> {
    world.moves.iter().map(|(_, origin)| origin.as_str()).collect()
}

#[test]
fn a_line_that_is_cut_for_a_week_moves_nothing_neither_then_nor_when_it_comes_back() {
    for seed in 0..4 {
        let mut world = two(seed);
        world.traffic_every = Some(60.0);
        world.cuts.push(600.0..600.0 + 7.0 * DAY);
        world.play(600.0 + DAY);
        assert_eq!(world.line(), Line::Down);
        world.play(600.0 + 8.0 * DAY);
        assert_eq!(world.line(), Line::Up);
        assert_eq!(world.moves, [], "seed {seed}");
    }
}

#[test]
fn a_dead_origin_is_left_within_fifteen_seconds_of_traffic_and_a_minute_and_a_half_without() {
    for seed in 0..32 {
        for (traffic, limit) in [(Some(0.5), 15.0), (None, 90.0)] {
            let mut world = two(seed);
            world.traffic_every = traffic;
            world.kill(0, 300.0..f64::MAX);
            world.play(3_600.0);
            assert_eq!(moved_to(&world), ["far"], "seed {seed}");
            assert!(world.moves[0].0 <= 300.0 + limit, "seed {seed}: {:?}", world.moves);
            assert_eq!(world.line(), Line::Up);
        }
    }
}

#[test]
fn an_origin_that_comes_back_is_returned_to_when_it_has_proved_itself_and_every_device_takes_its_own_moment()
{
    let mut waited = Vec::new();
    for seed in 0..200 {
        let mut world = two(seed);
        world.kill(0, 300.0..3_600.0);
        world.play(3_600.0 + HOLD + 20.0);
        assert_eq!(moved_to(&world), ["far", "near"], "seed {seed}");
        waited.push(world.moves[1].0 - 3_600.0);
    }
    waited.sort_by(f64::total_cmp);
    assert!(waited[0] >= 300.0 && waited[199] <= HOLD, "{waited:?}");
    // Spread over more than two minutes: none of five parts takes more than two fifths of the devices.
    let parts: Vec<_> =
        (0..5).map(|n| waited.iter().filter(|at| (**at - 300.0) as usize / 40 == n).count()).collect();
    assert!(parts.iter().all(|devices| *devices <= 80), "{parts:?}");
}

#[test]
fn an_origin_that_stumbles_while_it_proves_itself_begins_anew() {
    for seed in 0..16 {
        let mut world = two(seed);
        world.kill(0, 300.0..3_600.0);
        // Long enough for its probe, which is due every minute, to meet it.
        world.kill(0, 3_780.0..3_860.0);
        world.play(3_860.0 + HOLD + 90.0);
        assert_eq!(moved_to(&world), ["far", "near"], "seed {seed}");
        assert!(world.moves[1].0 >= 3_860.0 + 300.0, "seed {seed}: {:?}", world.moves);
    }
}

#[test]
fn one_that_is_proving_itself_serves_at_once_when_the_other_dies() {
    for seed in 0..16 {
        let mut world = two(seed);
        world.traffic_every = Some(1.0);
        world.kill(0, 300.0..3_600.0);
        world.kill(1, 3_650.0..f64::MAX);
        world.play(3_650.0 + 20.0);
        assert_eq!(moved_to(&world), ["far", "near"], "seed {seed}");
        assert!(world.moves[1].0 <= 3_650.0 + 15.0, "seed {seed}: {:?}", world.moves);
    }
}

#[test]
fn an_origin_that_comes_and_goes_is_returned_to_once_an_hour() {
    for seed in 0..8 {
        let mut world = two(seed);
        world.traffic_every = Some(1.0);
        for n in 0..36 {
            // Eight minutes of every ten it answers.
            let start = f64::from(n) * 600.0 + 300.0;
            world.kill(0, start..start + 120.0);
        }
        world.play(6.0 * 3_600.0);
        let away = world.moves.iter().filter(|(_, origin)| origin == "far").count();
        assert!((3..=4).contains(&away), "seed {seed}: {:?}", world.moves);
        let near: OriginId = "near".parse().unwrap();
        assert!(world.origins.seen(Mono(Duration::from_hours(6)))[&near].flapping);
    }
}

#[test]
fn when_no_origin_answers_a_reference_that_does_tells_that_it_is_not_the_line() {
    let mut world = two(1);
    world.traffic_every = Some(20.0);
    world.references = true;
    world.kill(0, 300.0..f64::MAX);
    world.kill(1, 300.0..f64::MAX);
    world.play(600.0);
    assert_eq!((world.line(), world.moves.len()), (Line::Up, 0));
    world.cuts.push(600.0..900.0);
    world.play(800.0);
    assert_eq!((world.line(), world.origins.line_detail()), (Line::Down, "no reference answers either"));
    world.play(1_000.0);
    assert_eq!((world.line(), world.origins.line_detail()), (Line::Up, ""));
    assert_eq!(world.moves, []);
}

#[test]
fn a_thousand_stores_that_lose_their_lines_together_move_nowhere() {
    for seed in 0..1_000 {
        let mut world = two(seed);
        world.traffic_every = Some(5.0);
        world.cuts.push(900.0..1_500.0);
        world.play(1_700.0);
        assert_eq!((world.line(), world.moves.len()), (Line::Up, 0), "seed {seed}");
    }
}

#[test]
fn a_line_that_is_cut_while_an_origin_is_dead_does_not_move_back() {
    for seed in 0..4 {
        let mut world = two(seed);
        world.traffic_every = Some(20.0);
        world.kill(0, 300.0..f64::MAX);
        world.cuts.push(3_600.0..3_600.0 + DAY);
        world.play(3_000.0 + DAY);
        assert_eq!(world.line(), Line::Down);
        world.play(2.0 * DAY);
        assert_eq!(world.line(), Line::Up);
        assert_eq!(moved_to(&world), ["far"], "seed {seed}");
    }
}

#[test]
fn when_both_are_dead_nothing_moves_any_more_and_the_first_to_return_serves() {
    for (returns, expected) in [(0, vec!["far", "near"]), (1, vec!["far"])] {
        let mut world = two(1);
        world.traffic_every = Some(20.0);
        let end = |site| if site == returns { DAY } else { f64::MAX };
        world.kill(0, 300.0..end(0));
        world.kill(1, 3_600.0..end(1));
        world.play(DAY + MINUTE);
        assert_eq!(moved_to(&world), expected, "returns: {returns}");
        assert_eq!(world.line(), Line::Up);
    }
}

#[test]
fn when_all_are_dead_and_a_reference_is_not_the_first_to_return_serves_within_two_seconds() {
    for seed in 0..64 {
        let mut world = two(seed);
        world.traffic_every = Some(1.0);
        (world.references, world.failures_take) = (true, 0.01);
        world.kill(0, 300.0..f64::MAX);
        world.kill(1, 300.0..900.0);
        world.play(920.0);
        assert_eq!(moved_to(&world), ["far"], "seed {seed}");
        assert!(world.moves[0].0 <= 902.0, "seed {seed}: {:?}", world.moves);
    }
}

#[test]
fn a_fail_over_goes_only_to_an_origin_that_is_proven_to_answer() {
    let mut world = World::new(&[("first", 0.05), ("second", 0.05), ("third", 0.05)], 1);
    world.kill(0, 300.0..f64::MAX);
    world.kill(1, 0.0..f64::MAX);
    world.play(3_600.0);
    assert_eq!(moved_to(&world), ["third"]);
    // The same, but both die together: never a stop-over at the second.
    let mut world = World::new(&[("first", 0.05), ("second", 0.05), ("third", 0.05)], 1);
    world.traffic_every = Some(2.0);
    world.kill(0, 300.0..f64::MAX);
    world.kill(1, 300.0..f64::MAX);
    world.play(3_600.0);
    assert_eq!(moved_to(&world), ["third"]);
}

#[test]
fn a_single_origin_is_kept_and_its_silence_is_the_line() {
    let mut world = World::new(&[("only", 0.05)], 1);
    world.traffic_every = Some(2.0);
    world.kill(0, 300.0..900.0);
    world.play(320.0);
    assert_eq!(world.line(), Line::Down);
    assert_eq!(world.origins.seen(NOW).values().next().unwrap().shown, Health::Down);
    world.play(910.0);
    assert_eq!((world.line(), world.moves.len()), (Line::Up, 0));
    assert_eq!(world.origins.seen(NOW).values().next().unwrap().shown, Health::Up);
}

#[test]
fn failures_of_traffic_alone_move_nothing_but_make_a_round_happen_at_once() {
    let mut world = two(1);
    world.play(300.0);
    let near: OriginId = "near".parse().unwrap();
    for _ in 0..1_000 {
        let now = Mono(Duration::from_secs(300));
        world.origins.traffic(&near, &Outcome::Failed("connection reset".into()), now);
    }
    assert_eq!(world.origins.seen(NOW)[&near].shown, Health::Down);
    assert_eq!(world.origins.seen(NOW)[&near].routing, Health::Up);
    world.play(301.0);
    assert!(world.rounds.iter().any(|at| (300.0..300.1).contains(at)));
    assert_eq!(world.origins.seen(NOW)[&near].shown, Health::Up);
    assert_eq!(world.moves, []);
}

#[test]
fn an_origin_that_is_well_and_takes_nothing_is_left_when_another_answers() {
    let (near, far): (OriginId, OriginId) = ("near".parse().unwrap(), "far".parse().unwrap());
    let play = |with_another: bool, taken_at: Option<u64>| {
        let mut origins = Origins::new(HealthSettings::default(), 1);
        let names: BTreeSet<_> =
            if with_another { [near.clone(), far.clone()].into() } else { [near.clone()].into() };
        origins.watch(&names, NOW);
        for second in (0..=100).step_by(10) {
            let now = Mono(Duration::from_secs(second));
            let outcome = match taken_at {
                Some(at) if at == second => Outcome::Answered,
                _ => Outcome::Failed("no answer within 15000 ms".into()),
            };
            origins.traffic(&near, &outcome, now);
            origins.hurry(now);
            let due = origins.begin_round(now);
            let all: Vec<_> = due.into_iter().map(|name| (name, Probed::Sent(Outcome::Answered))).collect();
            origins.end_round(&all, &Reference::NotAsked, now);
        }
        origins.seen(Mono(Duration::from_secs(100)))[&near].routing
    };
    assert_eq!(play(true, None), Health::Down);
    assert_eq!(play(false, None), Health::Up, "there is nobody else");
    assert_eq!(play(true, Some(60)), Health::Up, "it took one");
}

#[test]
fn a_portal_in_place_of_every_origin_is_a_line_that_is_down() {
    let now = Mono(Duration::from_secs(10));
    let names: BTreeSet<OriginId> = ["near", "far"].iter().map(|name| name.parse().unwrap()).collect();
    let mut origins = Origins::new(HealthSettings::default(), 1);
    origins.watch(&names, now);
    for n in 1..=5 {
        let now = now.plus(Duration::from_secs(n * 10));
        assert_eq!(origins.begin_round(now).len(), 2);
        let portal = Probed::Sent(Outcome::NotTheOrigin("200 without a name".into()));
        let results: Vec<_> = names.iter().map(|name| (name.clone(), portal.clone())).collect();
        origins.end_round(&results, &Reference::NotAsked, now);
    }
    assert_eq!(origins.line(), Line::Down);
    let seen = origins.seen(NOW);
    assert!(seen.values().all(|seen| seen.routing == Health::Unknown && seen.impostor.is_some()), "{seen:?}");
}

#[test]
fn rounds_that_count_against_an_origin_are_forgotten_when_nobody_answers() {
    let (near, far): (OriginId, OriginId) = ("near".parse().unwrap(), "far".parse().unwrap());
    let mut origins = Origins::new(HealthSettings::default(), 1);
    origins.watch(&[near.clone(), far.clone()].into(), Mono::default());
    let failed = || Probed::Sent(Outcome::Failed("time-out".into()));
    let mut round = |n: u64, others: Probed| {
        let now = Mono(Duration::from_secs(n * 10));
        origins.hurry(now);
        assert_eq!(origins.begin_round(now).len(), 2);
        origins.end_round(&[(near.clone(), failed()), (far.clone(), others)], &Reference::NotAsked, now);
        origins.seen(NOW)[&near].routing
    };
    let answered = || Probed::Sent(Outcome::Answered);
    assert_eq!(round(1, answered()), Health::Unknown);
    for n in 2..5 {
        assert_eq!(round(n, failed()), Health::Unknown);
    }
    assert_eq!(round(5, answered()), Health::Unknown, "the first that counts again");
    assert_eq!(round(6, answered()), Health::Down);
    assert_eq!(round(7, failed()), Health::Down, "what was left stays left");
}

#[test]
fn an_origin_that_takes_orders_but_has_no_health_probe_is_no_line_that_is_down() {
    let only: OriginId = "only".parse().unwrap();
    let mut origins = Origins::new(HealthSettings::default(), 1);
    origins.watch(&[only.clone()].into(), Mono::default());
    for n in 1..=20 {
        let now = Mono(Duration::from_secs(n * 10));
        origins.traffic(&only, &Outcome::Answered, now);
        assert_eq!(origins.begin_round(now).len(), 1);
        origins.end_round(
            &[(only.clone(), Probed::Sent(Outcome::NotTheOrigin("404".into())))],
            &Reference::NotAsked,
            now,
        );
        let seen = origins.seen(NOW)[&only].clone();
        assert_eq!((origins.line(), seen.shown), (Line::Up, Health::Up));
        assert_eq!(seen.impostor.as_deref(), Some("404"));
    }
}

#[test]
fn what_answers_instead_of_the_origin_is_told_until_the_origin_answers_again() {
    let near: OriginId = "near".parse().unwrap();
    let mut world = two(1);
    world.play(MINUTE);
    let portal = Outcome::NotTheOrigin("404".into());
    world.origins.traffic(&near, &portal, Mono(Duration::from_secs(60)));
    world.play(5.0 * MINUTE);
    // The health probe is answered, the service is still somebody else.
    assert_eq!(world.origins.seen(NOW)[&near].impostor.as_deref(), Some("404"));
    assert_eq!(world.moves, []);
    world.origins.traffic(&near, &Outcome::Answered, Mono(Duration::from_secs(300)));
    assert_eq!(world.origins.seen(NOW)[&near].impostor, None);
}

#[test]
fn probes_that_cannot_be_sent_count_for_nothing() {
    let now = Mono(Duration::from_secs(10));
    let near: OriginId = "near".parse().unwrap();
    let mut origins = Origins::new(HealthSettings::default(), 1);
    origins.watch(&[near.clone()].into(), now);
    for n in 0..10 {
        let now = now.plus(Duration::from_secs(n * 100));
        assert_eq!(origins.begin_round(now), std::slice::from_ref(&near));
        origins.end_round(
            &[(near.clone(), Probed::NotSent("no authority".into()))],
            &Reference::NotAsked,
            now,
        );
    }
    let seen = origins.seen(NOW)[&near].clone();
    assert_eq!((seen.shown, seen.routing, origins.line()), (Health::Unknown, Health::Unknown, Line::Unknown));
    assert_eq!(seen.last_error.as_deref(), Some("no authority"));
}

#[test]
fn probes_are_rare_when_all_is_well_and_a_dead_origin_is_not_run_over() {
    let mut world = two(3);
    world.play(3_600.0);
    let idle: Vec<_> = world.rounds.iter().filter(|at| **at > MINUTE).collect();
    assert!((50..=75).contains(&idle.len()), "{}", idle.len());
    world.kill(0, 3_600.0..f64::MAX);
    world.play(2.0 * 3_600.0);
    let failing = world.rounds.iter().filter(|at| **at > 3_800.0).count();
    // The one that was left every half minute, the other every minute.
    assert!((130..=220).contains(&failing), "{failing}");
}

#[test]
fn origins_that_leave_the_table_are_forgotten_and_new_ones_are_probed_at_once() {
    let mut world = two(1);
    world.play(MINUTE);
    let (near, new): (OriginId, OriginId) = ("near".parse().unwrap(), "new".parse().unwrap());
    let now = Mono(Duration::from_secs(60));
    world.origins.watch(&[near.clone(), new.clone()].into(), now);
    assert_eq!(world.origins.seen(NOW).keys().collect::<Vec<_>>(), [&near, &new]);
    assert_eq!(world.origins.seen(NOW)[&near].routing, Health::Up, "what is known is kept");
    assert!(world.origins.begin_round(now).contains(&new));
}

/// Cuts of any length, at least 12 s apart: longer than a failing interval and a time-out together, so that no
/// origin can be hit by the beginning of two cuts in two rounds.
fn cuts() -> impl proptest::strategy::Strategy<Value = Vec<Range<Seconds>>> {
    use proptest::prelude::*;
    proptest::collection::vec((12.0..900.0_f64, 0.05..600.0_f64), 1..60).prop_map(|pairs| {
        let mut at = 0.0;
        let cut = |(gap, length): (Seconds, Seconds)| {
            let start = at + gap;
            at = start + length;
            start..at
        };
        pairs.into_iter().map(cut).collect()
    })
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]

    #[test]
    fn a_store_whose_own_line_comes_and_goes_never_fails_over(
        cuts in cuts(), traffic in proptest::option::of(0.2..60.0_f64), seed: u64
    ) {
        let mut world = two(seed);
        world.traffic_every = traffic;
        let end = cuts.last().map_or(0.0, |cut| cut.end) + 600.0;
        world.cuts = cuts;
        world.play(end);
        proptest::prop_assert_eq!(&world.moves, &[]);
        proptest::prop_assert_eq!(world.line(), Line::Up);
    }

    #[test]
    fn whatever_happened_before_a_dead_origin_is_left_and_a_living_one_used_again(
        cuts in cuts(), seed: u64, dead_for in 60.0..5_000.0_f64
    ) {
        let mut world = two(seed);
        world.traffic_every = Some(3.0);
        let calm = cuts.last().map_or(0.0, |cut| cut.end) + 60.0;
        world.cuts = cuts;
        world.kill(0, calm..calm + dead_for);
        world.play(calm + 40.0);
        proptest::prop_assert_eq!(world.chosen(), "far");
        world.play(calm + dead_for + HOLD + 40.0);
        proptest::prop_assert_eq!(moved_to(&world), ["far", "near"]);
    }
}
