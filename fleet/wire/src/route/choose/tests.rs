use super::*;
use crate::route::check;
use serde_json::{Value, json};

fn example() -> Value {
    serde_json::from_str(include_str!("../example.json")).unwrap()
}

/// A store to ask for, and a world to ask in.
struct World {
    table: Table,
    country: &'static str,
    store: &'static str,
    device: &'static str,
    class: &'static str,
    user: Option<&'static str>,
    down: Vec<&'static str>,
    nearest: Option<&'static str>,
    now: &'static str,
}

impl World {
    fn of(table: &Value) -> Self {
        Self {
            table: check(&serde_json::to_vec(table).unwrap(), "prod").unwrap(),
            country: "JP",
            store: "JP-0001",
            device: "POS-JP-0001",
            class: "pos",
            user: None,
            down: vec![],
            nearest: None,
            now: "2026-11-25T00:00:00Z",
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&Query<'_>, &Facts<'_>) -> T) -> T {
        let health = |origin: &OriginId| {
            if self.down.contains(&origin.as_str()) { Health::Down } else { Health::Up }
        };
        let nearest = self.nearest.map(|name| name.parse().unwrap());
        let facts = Facts {
            now: Some(self.now.parse().unwrap()),
            health: &health,
            nearest: nearest.as_ref(),
            scheme: Scheme::Https,
        };
        let query = Query {
            service: &"orders".parse().unwrap(),
            class: &self.class.parse().unwrap(),
            device: &self.device.parse().unwrap(),
            store: &self.store.parse().unwrap(),
            country: &self.country.parse().unwrap(),
            user: self.user,
        };
        ask(&query, &facts)
    }

    fn choose(&self) -> Result<Decision, NoRoute> {
        self.with(|query, facts| choose(&self.table, query, facts))
    }

    fn choice(&self) -> (String, Rule) {
        let decision = self.choose().unwrap();
        (decision.origin.to_string(), decision.rule)
    }
}

#[test]
fn the_fallback_takes_the_first_listed_until_another_measures_nearer() {
    let mut world = World::of(&example());
    assert_eq!(world.choice(), ("us-west".into(), Rule::Fallback));
    world.nearest = Some("apac");
    assert_eq!(world.choice(), ("apac".into(), Rule::Fallback));
}

#[test]
fn an_emergency_beats_a_pin_and_ends_by_itself() {
    let mut world = World { store: "US-0001", nearest: Some("apac"), ..World::of(&example()) };
    world.now = "2026-11-20T12:00:00Z";
    assert_eq!(world.choice(), ("us-west".into(), Rule::Emergency));
    world.now = "2026-11-21T00:00:00Z";
    assert_eq!(world.choice(), ("apac".into(), Rule::StorePin));
    world.now = "2026-12-01T00:00:00Z";
    assert_eq!(world.choice(), ("apac".into(), Rule::Fallback));
}

#[test]
fn pins_go_by_user_then_device_then_store() {
    let mut table = example();
    table["pins"] = json!([
        { "ids": ["store:JP-0001"], "origin": "apac", "reason": "s" },
        { "ids": ["device:POS-JP-0001"], "services": ["menu"], "origin": "apac", "reason": "other service" },
        { "ids": ["user:u-1"], "services": ["orders"], "origin": "us-west", "reason": "u" }
    ]);
    let mut world = World::of(&table);
    assert_eq!(world.choice(), ("apac".into(), Rule::StorePin));
    world.user = Some("u-1");
    assert_eq!(world.choice(), ("us-west".into(), Rule::UserPin));
}

#[test]
fn a_rule_that_leaves_the_residency_is_passed_over_and_says_so() {
    let mut table = example();
    table["countries"]["JP"]["residency"] = json!(["apac"]);
    table["emergency"] = json!([]);
    table["pins"] = json!([{ "ids": ["store:JP-0001"], "origin": "us-west", "reason": "mistake" }]);
    let decision = World::of(&table).choose().unwrap();
    assert_eq!(decision.origin.as_str(), "apac");
    let pin = decision.reason.iter().find(|reason| reason.rule == Rule::StorePin).unwrap();
    assert_eq!(pin.result, RuleResult::PassedOver);
    assert!(pin.detail.contains("outside the residency"), "{}", pin.detail);
}

#[test]
fn a_country_without_an_origin_that_takes_work_has_no_route() {
    let mut table = example();
    table["emergency"] = json!([]);
    table["countries"]["JP"]["residency"] = json!(["apac"]);
    table["origins"]["apac"]["state"] = json!("draining");
    assert!(matches!(World::of(&table).choose(), Err(NoRoute::Residency { .. })));
    let unknown = World { country: "DE", ..World::of(&example()) };
    assert!(matches!(unknown.choose(), Err(NoRoute::Country { .. })));
}

#[test]
fn a_split_sends_a_store_where_its_bucket_lies() {
    let mut table = example();
    table["pins"] = json!([]);
    let mut world = World { country: "US", ..World::of(&table) };
    for (store, n) in [("US-0001", 1), ("US-0002", 2), ("US-0003", 3)] {
        world.store = store;
        let expected = if bucket("us-2026", store) < 7500 { "us-west" } else { "apac" };
        assert_eq!(world.choice(), (expected.into(), Rule::Split), "{n}");
    }
}

#[test]
fn an_origin_that_is_down_is_left_only_for_one_the_fallback_names() {
    let mut table = example();
    table["pins"] = json!([]);
    table["splits"] = json!([]);
    let mut world = World { country: "US", down: vec!["us-west"], ..World::of(&table) };
    assert_eq!(world.choice().0, "apac");
    // us-next may hold the data and is up, but no rule names it for live traffic.
    world.down = vec!["us-west", "apac"];
    let decision = world.choose().unwrap();
    assert_eq!(decision.origin.as_str(), "us-west");
    assert!(decision.reason.iter().any(|r| r.detail.contains("nothing is healthy")));
}

#[test]
fn a_protected_name_is_moved_by_no_rule() {
    let mut table = example();
    table["protected"] = json!(["JP.store.example"]);
    let world = World { now: "2026-11-20T12:00:00Z", ..World::of(&table) };
    assert_eq!(world.choice(), ("apac".into(), Rule::Protected));
}

#[test]
fn a_class_has_its_own_domain_and_the_port_shows_only_when_it_must() {
    let mut table = example();
    let mut world = World { country: "US", class: "tea-machine", ..World::of(&table) };
    assert_eq!(world.choose().unwrap().base_url, "https://us-tea.store.example");
    table["origins"]["us-west"]["endpoints"][0]["port"] = json!(8443);
    table["origins"]["apac"]["endpoints"][0]["port"] = json!(8443);
    world = World { country: "US", ..World::of(&table) };
    assert_eq!(world.choose().unwrap().base_url, "https://us.store.example:8443");
}

#[test]
fn what_is_bound_stays_where_it_is_unless_residency_or_an_off_switch_forbids() {
    let mut table = example();
    let apac: OriginId = "apac".parse().unwrap();
    let world = World { down: vec!["apac"], ..World::of(&table) };
    let decision = world.with(|query, facts| bound(&world.table, query, facts, &apac)).unwrap();
    assert_eq!(decision.origin, apac);
    for state in ["draining", "off"] {
        table["origins"]["apac"]["state"] = json!(state);
        let world = World::of(&table);
        let kept = world.with(|query, facts| bound(&world.table, query, facts, &apac)).is_ok();
        assert_eq!(kept, state == "draining");
    }
}

#[test]
fn every_rule_up_to_the_one_that_decides_is_told() {
    let decision = World::of(&example()).choose().unwrap();
    let told: Vec<_> = decision.reason.iter().map(|reason| reason.rule).collect();
    assert_eq!(
        told,
        [
            Rule::Protected,
            Rule::Emergency,
            Rule::UserPin,
            Rule::DevicePin,
            Rule::StorePin,
            Rule::Split,
            Rule::Fallback,
            Rule::Residency,
            Rule::Health
        ]
    );
}

#[test]
fn several_endpoints_share_the_devices() {
    let mut table = example();
    table["origins"]["apac"]["endpoints"] = json!([
        { "host": "a.example", "port": 443, "addresses": [], "basis_points": 2500 },
        { "host": "b.example", "port": 443, "addresses": [], "basis_points": 7500 }
    ]);
    let world = World::of(&table);
    let apac = "apac".parse().unwrap();
    let hosts = (0..4_000).filter(|n| {
        let device = format!("POS-{n}").parse().unwrap();
        endpoint_of(&world.table, &apac, &device).unwrap().host == "a.example"
    });
    let hits = hosts.count();
    assert!((900..=1_100).contains(&hits), "{hits} of 4000 at 2500 basis points");
}

/// What became of one rule.
fn told(decision: &Decision, rule: Rule) -> Vec<(RuleResult, String)> {
    let of = decision.reason.iter().filter(|reason| reason.rule == rule);
    of.map(|reason| (reason.result, reason.detail.clone())).collect()
}

#[test]
fn a_pin_that_does_not_hold_is_told_with_why() {
    let mut table = example();
    table["emergency"] = json!([]);
    table["pins"] = json!([
        { "ids": ["device:POS-JP-0001"], "origin": "apac", "until": "2026-11-24T00:00:00Z" },
        { "ids": ["store:JP-0001"], "services": ["menu"], "origin": "apac" }
    ]);
    let decision = World::of(&table).choose().unwrap();
    assert_eq!(decision.rule, Rule::Fallback);
    let (device, store) = (told(&decision, Rule::DevicePin), told(&decision, Rule::StorePin));
    assert!(device[0].0 == RuleResult::NoMatch && device[0].1.contains("ended at 2026-11-24"), "{device:?}");
    assert!(store[0].0 == RuleResult::NoMatch && store[0].1.contains("for menu only"), "{store:?}");
}

#[test]
fn a_pin_that_may_not_be_followed_gives_way_to_the_next_for_the_same_id() {
    let mut table = example();
    table["emergency"] = json!([]);
    table["origins"]["us-next"]["state"] = json!("draining");
    table["pins"] = json!([
        { "ids": ["store:JP-0001"], "origin": "us-next" },
        { "ids": ["store:JP-0001"], "origin": "apac" }
    ]);
    let decision = World::of(&table).choose().unwrap();
    assert_eq!((decision.origin.as_str(), decision.rule), ("apac", Rule::StorePin));
    let results: Vec<_> = told(&decision, Rule::StorePin).into_iter().map(|(result, _)| result).collect();
    assert_eq!(results, [RuleResult::PassedOver, RuleResult::Applied]);
}

#[test]
fn a_split_by_user_serves_who_names_one_and_the_next_split_the_others() {
    let mut table = example();
    table["emergency"] = json!([]);
    let all = |origin: &str| json!([{ "origin": origin, "basis_points": 10000 }]);
    table["splits"] = json!([
        { "country": "JP", "service": "orders", "by": "user", "shares": all("apac") },
        { "country": "JP", "service": "*", "by": "store", "shares": all("us-west") }
    ]);
    let mut world = World { user: Some("u-1"), ..World::of(&table) };
    assert_eq!(world.choice(), ("apac".into(), Rule::Split));
    world.user = None;
    assert_eq!(world.choice(), ("us-west".into(), Rule::Split));
}

#[test]
fn a_service_with_a_residency_of_its_own_does_not_leave_it() {
    let mut table = example();
    table["countries"]["JP"]["services"]["orders"]["residency"] = json!(["apac"]);
    table["emergency"] = json!([]);
    let mut world = World { down: vec!["apac"], ..World::of(&table) };
    assert_eq!(world.choice(), ("apac".into(), Rule::Fallback), "kept and probed");
    table["origins"]["apac"]["state"] = json!("off");
    world = World::of(&table);
    let none = world.choose().unwrap_err();
    let last = none.reason().pop().unwrap();
    assert!(last.rule == Rule::Residency && last.result == RuleResult::PassedOver, "{last:?}");
}

#[test]
fn what_has_no_route_says_so_as_a_reason() {
    let unknown = World { country: "DE", ..World::of(&example()) };
    let reason = unknown.choose().unwrap_err().reason();
    assert!(reason.len() == 1 && reason[0].detail.contains("DE is not in the route table"));
}

#[test]
fn a_domain_that_names_its_port_keeps_it() {
    let mut table = example();
    table["countries"]["US"]["services"]["orders"]["domains"]["default"] = json!("us.store.example:9443");
    table["origins"]["us-west"]["endpoints"][0]["port"] = json!(8443);
    let world = World { country: "US", ..World::of(&table) };
    assert_eq!(world.choose().unwrap().base_url, "https://us.store.example:9443");
}

#[test]
fn the_name_of_activation_goes_to_the_origins_of_activation() {
    let mut table = example();
    table["protected"] = json!(["activate.store.example"]);
    table["countries"]["JP"]["services"]["orders"]["domains"]["default"] = json!("activate.store.example");
    let world = World { nearest: Some("apac"), ..World::of(&table) };
    assert_eq!(world.choice(), ("us-west".into(), Rule::Protected), "listed first for activation");
}

/// Twenty thousand stores under a split, as sets of those that go to the second share.
fn second_share(basis_points: u32) -> std::collections::BTreeSet<String> {
    let mut table = example();
    table["pins"] = json!([]);
    table["splits"][0]["shares"] = json!([
        { "origin": "us-west", "basis_points": 10_000 - basis_points },
        { "origin": "apac", "basis_points": basis_points }
    ]);
    let world = World { country: "US", ..World::of(&table) };
    let stores = (0..20_000).map(|number| format!("US-{number:05}"));
    let goes = |store: &String| {
        let id: StoreId = store.parse().unwrap();
        world.with(|query, facts| {
            choose(&world.table, &Query { store: &id, ..*query }, facts).unwrap().origin.as_str() == "apac"
        })
    };
    stores.filter(goes).collect()
}

#[test]
fn a_quarter_of_twenty_thousand_stores_goes_to_a_share_of_a_quarter_and_growing_it_only_adds() {
    let quarter = second_share(2500);
    assert!((4_800..=5_200).contains(&quarter.len()), "{} of 20000", quarter.len());
    let more = second_share(4000);
    assert!(quarter.is_subset(&more) && more.len() > quarter.len());
}

/// A rule of the order of precedence with the origin that it names.
type Named = Option<usize>;

/// Which origin the contract's precedence gives, worked out rule by rule.
fn expected(rules: &[(Rule, Named)], allowed: &[bool; 3], active: &[bool; 3]) -> Option<(usize, Rule)> {
    let usable = |origin: usize| allowed[origin] && active[origin];
    let named = rules.iter().find_map(|(rule, origin)| Some((origin.filter(|o| usable(*o))?, *rule)));
    named.or_else(|| (0..3).find(|origin| usable(*origin)).map(|origin| (origin, Rule::Fallback)))
}

proptest::proptest! {
    #[test]
    fn the_first_rule_that_may_be_followed_decides(
        named in proptest::collection::vec(proptest::option::of(0..3_usize), 5),
        ended in proptest::collection::vec(proptest::bool::ANY, 4),
        allowed in proptest::array::uniform3(proptest::bool::ANY),
        active in proptest::array::uniform3(proptest::bool::ANY),
    ) {
        let names = ["o-0", "o-1", "o-2"];
        let until = |ended: bool| if ended { "2026-11-24T00:00:00Z" } else { "2026-12-24T00:00:00Z" };
        let pin = |id: &str, at: usize| {
            named[at].map(|origin| json!({ "ids": [id], "origin": names[origin], "until": until(ended[at]) }))
        };
        // A table may not switch or split a country out of its residency: those name origins that are allowed.
        let within = |at: usize| named[at].filter(|origin| allowed[*origin]);
        let residency: Vec<&str> = (0..3).filter(|o| allowed[*o]).map(|o| names[o]).collect();
        let origins: serde_json::Map<String, Value> = (0..3)
            .map(|o| {
                let state = if active[o] { "active" } else { "draining" };
                (names[o].to_owned(), json!({ "endpoints": [{ "host": "h.example" }], "state": state }))
            })
            .collect();
        let emergency = within(0).map(|o| json!({ "country": "JP", "origin": names[o], "until": until(ended[0]) }));
        let pins = [pin("user:u", 1), pin("device:POS-JP-0001", 2), pin("store:JP-0001", 3)];
        let split = within(4).map(|o| json!({ "country": "JP", "service": "orders",
            "shares": [{ "origin": names[o], "basis_points": 10000 }] }));
        let mut table = example();
        table["origins"] = origins.into();
        table["activation"] = Value::Null;
        table["countries"] = json!({ "JP": { "residency": residency,
            "services": { "orders": { "domains": { "default": "jp.example" } } } } });
        table["emergency"] = json!(emergency.into_iter().collect::<Vec<_>>());
        table["pins"] = json!(pins.into_iter().flatten().collect::<Vec<_>>());
        table["splits"] = json!(split.into_iter().collect::<Vec<_>>());
        table["shadow"] = json!([]);
        table["fallback"] = json!({ "candidates": names });
        let rule = |at: usize, rule: Rule, origin: Named| (rule, origin.filter(|_| at == 4 || !ended[at]));
        let rules = [
            rule(0, Rule::Emergency, within(0)),
            rule(1, Rule::UserPin, named[1]),
            rule(2, Rule::DevicePin, named[2]),
            rule(3, Rule::StorePin, named[3]),
            rule(4, Rule::Split, within(4)),
        ];
        let world = World { user: Some("u"), ..World::of(&table) };
        let found = world.choose().ok().map(|decision| (decision.origin.to_string(), decision.rule));
        let wanted = expected(&rules, &allowed, &active).map(|(o, rule)| (names[o].to_owned(), rule));
        proptest::prop_assert_eq!(found, wanted);
    }

    #[test]
    fn no_table_makes_reading_or_choosing_panic(cuts in proptest::collection::vec((0..3_000_usize, 0..12_usize, "[\\[\\]{}\",:0-9a-z-]{0,6}"), 1..4)) {
        let mut text = include_str!("../example.json").to_owned();
        for (at, length, with) in cuts {
            let at = at.min(text.len());
            text.replace_range(at..(at + length).min(text.len()), &with);
        }
        if let Ok(table) = check(text.as_bytes(), "prod") {
            let world = World { table, ..World::of(&example()) };
            let _ = world.choose();
        }
    }
}
