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
