use super::*;
use crate::Timestamp;
use crate::route::{Facts, Rule, Scheme, check, explain};
use crate::status::Health;
use serde_json::{Value, json};

fn example() -> Value {
    let mut table: Value = serde_json::from_str(include_str!("../example.json")).unwrap();
    for rules in ["pins", "emergency", "splits", "shadow"] {
        table[rules] = json!([]);
    }
    table
}

fn table(value: &Value) -> Table {
    check(&serde_json::to_vec(value).unwrap(), "prod").unwrap()
}

fn tills(country: &str, stores: usize, each: usize) -> Vec<Till> {
    let till = |store: usize, device: Option<usize>| Till {
        store: format!("{country}-{store:04}").parse().unwrap(),
        country: country.parse().unwrap(),
        device: device.map(|device| format!("POS-{country}-{store:04}-{device}").parse().unwrap()),
        class: "pos".parse().unwrap(),
    };
    (0..stores)
        .flat_map(|store| {
            let devices: Vec<_> = if each == 0 { vec![None] } else { (0..each).map(Some).collect() };
            devices.into_iter().map(move |device| till(store, device)).collect::<Vec<_>>()
        })
        .collect()
}

fn look(before: Option<&Value>, after: &Value, tills: &[Till], page: Page<'_>) -> Preview {
    let facts = Facts {
        now: Some(Timestamp::from_millis(1_795_000_000_000)),
        health: &|_| Health::Up,
        nearest: None,
        scheme: Scheme::Https,
    };
    let before = before.map(table);
    preview((before.as_ref(), &table(after)), tills, &"orders".parse().unwrap(), &facts, page)
}

const ALL: Page<'static> = Page { offset: 0, limit: usize::MAX, country: None };

#[test]
fn what_moves_is_counted_by_origin_and_country_and_told_with_its_reason() {
    let mut after = example();
    after["pins"] =
        json!([{ "ids": ["store:US-0003", "device:POS-JP-0001-0"], "origin": "apac", "reason": "trial" }]);
    let mut all = tills("JP", 3, 2);
    all.extend(tills("US", 5, 2));
    let seen = look(Some(&example()), &after, &all, ALL);
    assert_eq!((seen.stores, seen.devices, seen.moved, seen.changed_stores), (8, 16, 3, 2));
    assert_eq!(seen.divided_stores, 1, "the till of JP-0001 leaves its store");
    let counts: Vec<_> = seen
        .origins
        .iter()
        .map(|o| (o.origin.as_ref().unwrap().as_str(), o.devices_before, o.devices_after))
        .collect();
    assert_eq!(counts, [("apac", 0, 3), ("us-west", 16, 13)]);
    let us = seen.countries.iter().find(|one| one.country.as_str() == "US").unwrap();
    assert_eq!((us.stores, us.devices, us.changed), (5, 10, 2));
    let first = &seen.moves[0];
    assert_eq!(first.device.as_ref().unwrap().as_str(), "POS-JP-0001-0");
    assert_eq!((first.rule_before, first.rule_after), (Some(Rule::Fallback), Some(Rule::DevicePin)));
    assert!(first.reason.contains("trial"), "{}", first.reason);
}

#[test]
fn a_country_that_is_dropped_is_held_and_one_that_comes_is_freed() {
    let mut after = example();
    after["countries"].as_object_mut().unwrap().remove("JP");
    let stores = tills("JP", 4, 0);
    let seen = look(Some(&example()), &after, &stores, ALL);
    assert_eq!((seen.held, seen.moves[0].change, seen.moves[0].to.as_ref()), (4, Change::Held, None));
    assert!(seen.moves[0].reason.contains("JP is not in the route table"));
    let back = look(Some(&after), &example(), &stores, ALL);
    assert_eq!((back.freed, back.moves[0].change), (4, Change::Freed));
    assert_eq!(look(None, &example(), &stores, ALL).freed, 4, "no table in force serves nobody");
}

#[test]
fn another_name_or_endpoint_is_told_although_nothing_moves() {
    let mut after = example();
    after["origins"]["us-west"]["endpoints"][0]["port"] = json!(8443);
    let seen = look(Some(&example()), &after, &tills("US", 2, 1), ALL);
    assert_eq!((seen.moved, seen.readdressed), (0, 2));
    assert!(seen.moves[0].address_after.as_ref().unwrap().contains("8443"));
}

#[test]
fn a_page_lists_a_part_and_counts_everything() {
    let mut after = example();
    after["fallback"]["candidates"] = json!(["apac", "us-west"]);
    let mut all = tills("JP", 30, 1);
    all.extend(tills("US", 20, 1));
    let us = "US".parse().unwrap();
    let seen = look(Some(&example()), &after, &all, Page { offset: 5, limit: 3, country: Some(&us) });
    assert_eq!((seen.moved, seen.moves_total, seen.moves.len()), (50, 20, 3));
    assert_eq!(seen.moves[0].store.as_str(), "US-0005");
}

#[test]
fn a_preview_agrees_with_asking_for_each_till_alone() {
    let mut after = example();
    after["splits"] = json!([{ "country": "US", "service": "orders", "salt": "s", "by": "device",
        "shares": [{ "origin": "us-west", "basis_points": 5000 }, { "origin": "apac", "basis_points": 5000 }] }]);
    let all = tills("US", 100, 2);
    let seen = look(Some(&example()), &after, &all, ALL);
    let facts = Facts { now: None, health: &|_| Health::Up, nearest: None, scheme: Scheme::Https };
    let (table, service, class) = (table(&after), "orders".parse().unwrap(), "pos".parse().unwrap());
    let alone = all.iter().filter(|till| {
        let query = Query {
            service: &service,
            class: &class,
            device: till.device.as_ref().unwrap(),
            store: &till.store,
            country: &till.country,
            user: None,
        };
        explain(&table, &query, &facts).origin.unwrap().as_str() == "apac"
    });
    assert_eq!(seen.moved, alone.count() as u64);
    assert!((60..=140).contains(&seen.moved), "{}", seen.moved);
}
