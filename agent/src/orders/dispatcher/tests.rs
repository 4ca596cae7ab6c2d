//! A world in virtual time: a ledger in memory, origins that answer as told, and a clock that jumps from event to
//! event. A week of outage runs in milliseconds, from a seed that is printed.

mod ahead;
mod aside;
mod recover;

use super::*;
use crate::orders::ledger::Waiting;
use crate::orders::outcome::{BatchOutcome, OrderVerdict};
use crate::orders::recovery::{Probe, Recovery, Word};
use samovar_wire::Country;
use std::collections::HashMap;
use std::time::Duration;

const MAX: Limits = Limits { orders: 100, bytes: 64 * 1024 };

#[derive(Debug, Clone, PartialEq)]
enum Row {
    Pending,
    Held(Hold),
    Settled(OriginId),
    Quarantined(String),
}

struct Order {
    row: Row,
    origin: Option<OriginId>,
    user: Option<Box<str>>,
    country: Country,
    attempts: u32,
    bytes: u32,
}

/// How an origin answers a batch it gets.
type Answer = Box<dyn FnMut(&[u64], Mono) -> BatchOutcome>;

struct World {
    dispatcher: Dispatcher,
    now: Mono,
    orders: BTreeMap<u64, Order>,
    /// What each origin has recorded.
    sites: BTreeMap<OriginId, HashSet<u64>>,
    answers: HashMap<OriginId, Answer>,
    route: Box<dyn FnMut(RouteQuery<'_>) -> Route>,
    arrivals: u64,
    disturbed: u64,
    sends: Vec<(OriginId, usize)>,
    /// When each batch went, and what was in it.
    log: Vec<(Mono, Vec<u64>)>,
    /// Batches on the wire, and when they end.
    flying: Vec<(Mono, Sending)>,
    /// Batches that were bound and wait for their turn.
    prepared: HashMap<OriginId, Sending>,
    /// How many of them were withdrawn.
    withdrawn: usize,
    /// How long a batch of so many orders takes.
    takes: fn(usize) -> Duration,
    recovery: Recovery,
    /// Batches with one of these orders are never answered: so long they are waited for.
    hangs: Option<(HashSet<u64>, Duration)>,
    /// Whether a batch under way was to be given up.
    gives_up: bool,
    /// Whether an origin takes connections and is healthy; without it nobody looks.
    is_up: Option<IsUp>,
    /// When health was asked for.
    greetings: Vec<Mono>,
    loads: usize,
    random: fastrand::Rng,
}

type IsUp = Box<dyn FnMut(&OriginId, Probe, Mono) -> bool>;

fn origin(name: &str) -> OriginId {
    name.parse().unwrap()
}

fn country(name: &str) -> Country {
    name.parse().unwrap()
}

fn settle_all(seqs: &[u64], _: Mono) -> BatchOutcome {
    BatchOutcome::Answered(vec![OrderVerdict::Settled; seqs.len()])
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            dispatcher: Dispatcher::new(MAX),
            now: Mono::default(),
            orders: BTreeMap::new(),
            sites: BTreeMap::new(),
            answers: HashMap::new(),
            route: Box::new(|query| Route::To(query.bound.cloned().unwrap_or_else(|| origin("a")))),
            arrivals: 0,
            disturbed: 0,
            sends: Vec::new(),
            log: Vec::new(),
            flying: Vec::new(),
            prepared: HashMap::new(),
            withdrawn: 0,
            takes: |_| Duration::ZERO,
            hangs: None,
            gives_up: false,
            recovery: Recovery::new(),
            is_up: None,
            greetings: Vec::new(),
            loads: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    fn answers(&mut self, name: &str, answer: impl FnMut(&[u64], Mono) -> BatchOutcome + 'static) {
        self.answers.insert(origin(name), Box::new(answer));
    }

    fn post(&mut self, count: u64, udl: &str) {
        for _ in 0..count {
            let seq = self.orders.len() as u64 + 1;
            let order = Order {
                row: Row::Pending,
                origin: None,
                user: None,
                country: country(udl),
                attempts: 0,
                bytes: 500,
            };
            self.orders.insert(seq, order);
            self.arrivals += 1;
        }
        self.publish();
    }

    fn publish(&mut self) {
        let mut backlog = Backlog {
            arrivals: self.arrivals,
            disturbed: self.disturbed,
            newest: self.orders.len() as u64,
            ..Backlog::default()
        };
        for order in self.orders.values().filter(|order| order.row == Row::Pending) {
            let group = Group { origin: order.origin.clone(), udl: order.country.clone() };
            let waiting =
                backlog.groups.entry(group).or_insert(Waiting { orders: 0, last_arrival: self.arrivals });
            waiting.orders += 1;
        }
        self.dispatcher.backlog(&backlog);
    }

    /// Runs until nothing happens any more or the time is over.
    fn run_for(&mut self, duration: Duration) {
        let end = self.now.plus(duration);
        for _ in 0..200_000 {
            self.land();
            let (actions, wake_at) = self.dispatcher.poll(self.now, &mut self.route);
            let lands_at = self.flying.iter().map(|(at, _)| *at).min();
            let next = wake_at.into_iter().chain(lands_at).min().map_or(end, |at| at.min(end));
            if actions.is_empty() && !self.look_until(next) {
                if self.now >= end && lands_at.is_none_or(|at| at > end) {
                    return;
                }
                continue;
            }
            for action in actions {
                self.perform(action);
            }
        }
        panic!("the dispatcher does not come to rest");
    }

    /// Lets the time pass until the dispatcher is to be asked again, or an origin was heard (true).
    fn look_until(&mut self, end: Mono) -> bool {
        let Some(is_up) = &mut self.is_up else {
            self.now = end;
            return false;
        };
        self.recovery.watch(self.dispatcher.silent(self.now), self.now);
        loop {
            for (origin, _, probe) in self.recovery.due(self.now) {
                if probe == Probe::Greet {
                    self.greetings.push(self.now);
                }
                let up = is_up(&origin, probe, self.now);
                let random = self.random.u32(..);
                match self.recovery.probed(&origin, probe, up, self.now, random) {
                    Some(Word::Back(back)) => self.gives_up |= self.dispatcher.heard(&back, self.now),
                    Some(Word::Well(origin)) => self.dispatcher.well(&origin, self.now),
                    None => continue,
                }
                return true;
            }
            match self.recovery.wake_at().filter(|at| *at < end) {
                Some(at) => self.now = self.now.max(at),
                None => break,
            }
        }
        self.now = end;
        false
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Load { group, page } => {
                self.loads += 1;
                let heads = self
                    .orders
                    .iter()
                    .filter(|(seq, order)| {
                        **seq > page.after
                            && **seq <= page.up_to
                            && order.row == Row::Pending
                            && order.origin == group.origin
                            && order.country == group.udl
                    })
                    .take(page.limit)
                    .map(|(seq, order)| Head {
                        seq: *seq,
                        bytes: order.bytes,
                        attempts: order.attempts,
                        user: order.user.clone(),
                    })
                    .collect();
                self.dispatcher.loaded(&group, &page, Some(heads), self.now);
            }
            Action::Send(sending) => {
                self.bind(&sending);
                self.send(sending);
            }
            Action::Prepare(sending) => {
                self.bind(&sending);
                let before = self.prepared.insert(sending.origin.clone(), sending);
                assert_eq!(before, None, "more than one batch is prepared");
            }
            Action::Go(origin) => {
                let sending = self.prepared.remove(&origin).expect("nothing was prepared");
                self.send(sending);
            }
            Action::Withdraw(origin) => {
                let sending = self.prepared.remove(&origin).expect("nothing was prepared");
                self.withdrawn += 1;
                for action in self.dispatcher.withdrawn(&sending, true, self.now) {
                    self.perform(action);
                }
            }
            Action::Record(changes) => self.record(changes),
            Action::Unhold(hold) => {
                for order in self.orders.values_mut().filter(|order| order.row == Row::Held(hold)) {
                    order.row = Row::Pending;
                    self.disturbed += 1;
                    self.arrivals += 1;
                }
                self.publish();
            }
        }
    }

    fn bind(&mut self, sending: &Sending) {
        for seq in sending.heads.iter().map(|head| head.seq) {
            let order = self.orders.get_mut(&seq).unwrap();
            assert_eq!(order.row, Row::Pending, "order {seq} was bound although it is {:?}", order.row);
            assert!(
                order.origin.as_ref().is_none_or(|bound| *bound == sending.origin),
                "order {seq} is bound to another origin"
            );
            order.origin = Some(sending.origin.clone());
            order.attempts += 1;
            self.arrivals += 1;
        }
        self.publish();
    }

    fn send(&mut self, sending: Sending) {
        let same = |other: &Sending| other.origin == sending.origin && other.aside == sending.aside;
        let under_way = self.flying.iter().filter(|(_, flying)| same(flying)).count();
        assert!(
            under_way <= usize::from(sending.aside) && (!sending.aside || sending.heads.len() == 1),
            "two batches are on the wire to {}",
            sending.origin
        );
        let seqs: Vec<u64> = sending.heads.iter().map(|head| head.seq).collect();
        self.sends.push((sending.origin.clone(), seqs.len()));
        let takes = self.hangs.as_ref().filter(|(bad, _)| bad.iter().any(|seq| seqs.contains(seq)));
        let takes = takes.map_or_else(|| (self.takes)(seqs.len()), |(_, time)| *time);
        self.flying.push((self.now.plus(takes), sending));
        self.log.push((self.now, seqs));
    }

    /// Takes in the answers that have come by now.
    fn land(&mut self) {
        while let Some(at) = self.flying.iter().position(|(at, _)| *at <= self.now) {
            let (_, sending) = self.flying.remove(at);
            let seqs: Vec<u64> = sending.heads.iter().map(|head| head.seq).collect();
            let hangs = self.hangs.as_ref().is_some_and(|(bad, _)| bad.iter().any(|seq| seqs.contains(seq)));
            let outcome = match self.answers.get_mut(&sending.origin) {
                _ if hangs => BatchOutcome::Stalled("no answer within 15000 ms".into()),
                Some(answer) => answer(&seqs, self.now),
                None => settle_all(&seqs, self.now),
            };
            if let BatchOutcome::Answered(verdicts) = &outcome {
                let site = self.sites.entry(sending.origin.clone()).or_default();
                let settled =
                    seqs.iter().zip(verdicts).filter(|(_, verdict)| **verdict == OrderVerdict::Settled);
                site.extend(settled.map(|(seq, _)| *seq));
            }
            let random = self.random.u32(..);
            for action in self.dispatcher.answered(&sending, &outcome, self.now, random) {
                if let Action::Record(changes) = &action {
                    let changes = changes.clone();
                    self.perform(action);
                    self.dispatcher.recorded(&sending.origin, &changes, true, self.now, random);
                } else {
                    self.perform(action);
                }
            }
        }
    }

    fn record(&mut self, changes: Vec<Change>) {
        for change in changes {
            let order = self.orders.get_mut(&change.seq).unwrap();
            order.row = match change.to {
                ChangeTo::Settled => Row::Settled(order.origin.clone().unwrap()),
                ChangeTo::Quarantined { why, .. } => Row::Quarantined(why),
                ChangeTo::Failed(_) => Row::Pending,
                ChangeTo::Withdrawn => {
                    order.attempts -= 1;
                    Row::Pending
                }
                ChangeTo::Held(hold, _) => Row::Held(hold),
            };
        }
        self.publish();
    }

    fn count(&self, wanted: impl Fn(&Row) -> bool) -> usize {
        self.orders.values().filter(|order| wanted(&order.row)).count()
    }

    fn settled(&self) -> usize {
        self.count(|row| matches!(row, Row::Settled(_)))
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_day_of_orders_is_settled_in_growing_batches() {
    let mut world = World::new(1);
    world.post(2_000, "US");
    world.run_for(MINUTE);
    assert_eq!(world.settled(), 2_000);
    assert_eq!(world.sends[0].1, 8);
    assert!(world.sends.iter().any(|(_, size)| *size == 100));
    assert!(world.dispatcher.in_flight().is_empty());
}

#[test]
fn a_week_without_a_line_loses_nothing_and_ends_with_one_probe() {
    let mut world = World::new(2);
    let back = Mono::default().plus(MINUTE * 60 * 24 * 7);
    world.answers("a", move |seqs, now| {
        if now < back { BatchOutcome::Unreachable("no route".into()) } else { settle_all(seqs, now) }
    });
    world.post(300, "US");
    world.run_for(MINUTE * 60 * 24 * 7);
    assert_eq!(world.settled(), 0);
    let tries = world.sends.len();
    assert!((7 * 24 * 60..7 * 24 * 60 * 4).contains(&tries), "{tries} tries in a week");
    assert!(world.sends[1..].iter().all(|(_, size)| *size == 1));
    world.run_for(MINUTE * 2);
    assert_eq!(world.settled(), 300);
}

#[test]
fn one_poison_order_is_found_and_the_rest_settles() {
    for poison in [1_u64, 250, 500] {
        let mut world = World::new(3);
        world.answers("a", move |seqs, now| {
            if seqs.contains(&poison) {
                BatchOutcome::BatchRefused("bad total".into())
            } else {
                settle_all(seqs, now)
            }
        });
        world.post(500, "US");
        world.run_for(MINUTE);
        assert_eq!(world.settled(), 499, "poison at {poison}");
        assert_eq!(world.orders[&poison].row, Row::Quarantined("rejected".into()));
    }
}

#[test]
fn a_batch_that_is_too_large_is_split_and_later_ones_are_smaller() {
    let mut world = World::new(4);
    world.answers("a", |seqs, now| {
        if seqs.len() > 10 { BatchOutcome::TooLarge("413".into()) } else { settle_all(seqs, now) }
    });
    world.post(400, "US");
    world.run_for(MINUTE);
    assert_eq!(world.settled(), 400);
}

#[test]
fn an_order_stays_with_the_origin_that_may_have_it() {
    let mut world = World::new(5);
    // a commits and loses the answer, then is down for an hour; routing moves to b at once.
    let back = Mono::default().plus(MINUTE * 60);
    world.answers("a", move |seqs, now| {
        if now < back { BatchOutcome::Unreachable("time-out".into()) } else { settle_all(seqs, now) }
    });
    let mut asked = 0;
    world.route = Box::new(move |query| {
        asked += 1;
        let new = if asked == 1 { "a" } else { "b" };
        Route::To(query.bound.cloned().unwrap_or_else(|| origin(new)))
    });
    world.post(20, "US");
    world.run_for(MINUTE * 30);
    assert_eq!(world.settled(), 12, "what was never sent to a goes to b");
    world.run_for(MINUTE * 40);
    assert_eq!(world.settled(), 20);
    assert_eq!(world.sites[&origin("a")].len(), 8);
    assert!(world.sites[&origin("a")].is_disjoint(&world.sites[&origin("b")]));
}

#[test]
fn an_origin_that_is_down_does_not_hold_up_the_orders_of_another() {
    let mut world = World::new(6);
    world.answers("a", |_, _| BatchOutcome::Unreachable("down".into()));
    world.route = Box::new(|query| {
        let home = if query.country.as_str() == "JP" { "b" } else { "a" };
        Route::To(query.bound.cloned().unwrap_or_else(|| origin(home)))
    });
    world.post(2_000, "US");
    world.post(2_000, "JP");
    world.run_for(MINUTE);
    assert_eq!(world.settled(), 2_000);
}

#[test]
fn orders_without_an_allowed_origin_are_held_until_a_new_table_comes() {
    let mut world = World::new(7);
    world.route = Box::new(|_| Route::Hold("no origin may hold JP".into()));
    world.post(700, "JP");
    world.run_for(MINUTE);
    assert_eq!(world.count(|row| *row == Row::Held(Hold::Residency)), 700);
    assert!(world.sends.is_empty());
    world.route = Box::new(|query| Route::To(query.bound.cloned().unwrap_or_else(|| origin("a"))));
    let action = world.dispatcher.routes_changed(Some(2)).unwrap();
    world.perform(action);
    assert_eq!(world.dispatcher.routes_changed(Some(2)), None, "the same table changes nothing");
    world.run_for(MINUTE);
    assert_eq!(world.settled(), 700);
}

#[test]
fn a_refused_identity_holds_orders_and_tries_again_within_a_minute() {
    let mut world = World::new(8);
    let renewed = Mono::default().plus(MINUTE * 60 * 24 * 3);
    world.answers("a", move |seqs, now| {
        if now < renewed { BatchOutcome::IdentityRefused("403".into()) } else { settle_all(seqs, now) }
    });
    world.post(50, "US");
    world.run_for(MINUTE * 60 * 24 * 3);
    assert_eq!(world.count(|row| matches!(row, Row::Quarantined(_))), 0);
    assert!(world.sends.len() <= 3 * 24 * 60 * 2 + 1, "{}", world.sends.len());
    world.run_for(MINUTE * 2);
    assert_eq!(world.settled(), 50);
}

#[test]
fn a_new_identity_is_tried_at_once() {
    let mut world = World::new(9);
    world.answers("a", |_, _| BatchOutcome::IdentityRefused("401".into()));
    world.post(5, "US");
    world.run_for(Duration::from_secs(5));
    world.answers("a", settle_all);
    let action = world.dispatcher.identity_changed(world.now);
    world.perform(action);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.settled(), 5);
}

#[test]
fn a_wait_the_origin_asks_for_is_obeyed() {
    let mut world = World::new(10);
    let mut calls = 0;
    world.answers("a", move |seqs, now| {
        calls += 1;
        if calls == 1 {
            let retry_after = Some(Duration::from_secs(120));
            BatchOutcome::Busy { failing: true, detail: "503".into(), retry_after }
        } else {
            settle_all(seqs, now)
        }
    });
    world.post(5, "US");
    world.run_for(Duration::from_secs(119));
    assert_eq!(world.sends.len(), 1);
    world.run_for(Duration::from_secs(10));
    assert_eq!(world.settled(), 5);
}

#[test]
fn one_order_that_must_wait_does_not_hold_up_the_others() {
    let mut world = World::new(11);
    world.answers("a", |seqs, now| {
        let verdict = |seq: &u64| {
            if *seq == 3 && now < Mono::default().plus(MINUTE * 10) {
                OrderVerdict::Retry(Some(MINUTE * 5), "later".into())
            } else {
                OrderVerdict::Settled
            }
        };
        BatchOutcome::Answered(seqs.iter().map(verdict).collect())
    });
    world.post(300, "US");
    world.run_for(MINUTE);
    assert_eq!(world.settled(), 299);
    world.run_for(MINUTE * 15);
    assert_eq!(world.settled(), 300);
    assert!(world.orders[&3].attempts <= 4, "{}", world.orders[&3].attempts);
}

#[test]
fn an_order_that_breaks_the_origin_starves_none_of_its_neighbours() {
    let mut world = World::new(14);
    world.answers("a", |seqs, now| {
        if seqs.contains(&3) { BatchOutcome::Unreachable("reset".into()) } else { settle_all(seqs, now) }
    });
    world.post(300, "US");
    world.run_for(MINUTE * 3);
    assert_eq!(world.settled(), 299);
    assert_eq!(world.orders[&3].row, Row::Pending, "a failure is no refusal");
    world.post(300, "US");
    world.run_for(MINUTE * 3);
    assert_eq!(world.settled(), 599);
    assert!(world.orders[&3].attempts < 40, "{} attempts in six minutes", world.orders[&3].attempts);
}

#[test]
fn a_pinned_person_goes_another_way_in_the_same_group() {
    let mut world = World::new(12);
    world.route = Box::new(|query| {
        let home = if query.user == Some("u-77") { "b" } else { "a" };
        Route::To(query.bound.cloned().unwrap_or_else(|| origin(home)))
    });
    world.post(100, "US");
    for seq in [10, 20, 30] {
        world.orders.get_mut(&seq).unwrap().user = Some("u-77".into());
    }
    world.run_for(MINUTE);
    assert_eq!(world.sites[&origin("b")], HashSet::from([10, 20, 30]));
    assert_eq!(world.settled(), 100);
}

#[test]
fn memory_is_bounded_by_the_window_and_not_by_the_backlog() {
    let mut world = World::new(13);
    world.answers("a", |_, _| BatchOutcome::Unreachable("down".into()));
    world.post(20_000, "US");
    world.run_for(MINUTE);
    let heads = |queue: &Queue| queue.live().count() + queue.backlog().count();
    let heads: usize = world.dispatcher.groups.values().map(heads).sum();
    assert!(heads <= 2 * WINDOW, "{heads} heads in memory");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// Whatever two origins do, an order ends in at most one of them, and when both behave again every order ends.
    #[test]
    fn chaos_neither_loses_nor_doubles_an_order(seed in 0_u64..) {
        let mut world = World::new(seed);
        // Small batches that are quick, so that the next one is often prepared.
        world.dispatcher = Dispatcher::new(Limits { orders: 9, bytes: 64 * 1024 });
        world.takes = |size| Duration::from_millis(20 + 3 * size as u64);
        for name in ["a", "b"] {
            let mut random = fastrand::Rng::with_seed(seed ^ name.len() as u64 ^ u64::from(name.as_bytes()[0]));
            let calm = Mono::default().plus(MINUTE * 60);
            world.answers(name, move |seqs, now| {
                if now >= calm {
                    return settle_all(seqs, now);
                }
                match random.u8(0..9) {
                    0 => BatchOutcome::Unreachable("cut".into()),
                    1 => BatchOutcome::Busy { failing: true, detail: "503".into(), retry_after: Some(Duration::from_secs(random.u64(0..90))) },
                    2 => BatchOutcome::IdentityRefused("401".into()),
                    3 => BatchOutcome::NotTheOrigin("portal".into()),
                    4 if seqs.len() > 1 => BatchOutcome::TooLarge("413".into()),
                    5 if seqs.len() > 1 => BatchOutcome::BatchRefused("400".into()),
                    _ => BatchOutcome::Answered(seqs.iter().map(|_| match random.u8(0..4) {
                        0 => OrderVerdict::Retry(None, "later".into()),
                        _ => OrderVerdict::Settled,
                    }).collect()),
                }
            });
        }
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(1));
        world.route = Box::new(move |query| match query.bound {
            Some(bound) => Route::To(bound.clone()),
            None => Route::To(origin(if random.bool() { "a" } else { "b" })),
        });
        for _ in 0..40 {
            world.post(25, if world.arrivals.is_multiple_of(2) { "US" } else { "JP" });
            world.run_for(MINUTE);
        }
        world.run_for(MINUTE * 60);
        proptest::prop_assert_eq!(world.settled(), 1_000);
        let empty = HashSet::new();
        let a = world.sites.get(&origin("a")).unwrap_or(&empty);
        let b = world.sites.get(&origin("b")).unwrap_or(&empty);
        proptest::prop_assert!(a.is_disjoint(b));
        for (seq, order) in &world.orders {
            let sent = world.log.iter().filter(|(_, seqs)| seqs.contains(seq)).count();
            proptest::prop_assert_eq!(order.attempts as usize, sent, "attempts of order {}", seq);
        }
    }
}
