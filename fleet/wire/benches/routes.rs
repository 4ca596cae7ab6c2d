//! What a choice costs at 10,000 pins, and a preview of 10,000 stores. `cargo bench -p samovar-wire --bench routes`
//!
//! Beside each figure stands a reference measured in the same run, so that a slow or busy machine shows: the SHA-256 that
//! a split cannot do without, a look-up in a hash map, and the search through all pins that the index replaces. The aims
//! are absolute: a choice in less than 5 microseconds, a preview in less than a second.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measurement reads the clock, and stops when its table is wrong"
)]

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use samovar_wire::encoding::sha256;
use samovar_wire::route::{Facts, Page, Query, Scheme, Table, Till, check, choose, preview};
use samovar_wire::status::Health;
use samovar_wire::{DeviceId, Timestamp};
use serde_json::{Value, json};

const PINS: usize = 10_000;
const STORES: usize = 10_000;
const TILLS: usize = 3;
const AIM_CHOICE: Duration = Duration::from_micros(5);
const AIM_PREVIEW: Duration = Duration::from_secs(1);

fn device(number: usize) -> String {
    format!("POS-US-{number:06}")
}

/// A table with a pin for each of the first devices, a split and a fallback.
fn table(version: u64, apac: u32) -> Value {
    let pins: Vec<Value> = (0..PINS)
        .map(|n| json!({ "ids": [format!("device:{}", device(n * 3))], "origin": "apac" }))
        .collect();
    json!({
        "schema": 1, "environment": "prod", "version": version, "issued_at": "2026-11-20T00:00:00.000Z",
        "not_before": "2026-11-20T00:00:00.000Z", "expires_at": "2026-12-20T00:00:00.000Z",
        "origins": { "us-west": { "endpoints": [{ "host": "usw.store.example" }] },
                     "apac": { "endpoints": [{ "host": "apac.store.example" }] } },
        "countries": { "US": { "residency": ["us-west", "apac"],
            "services": { "orders": { "domains": { "default": "us.store.example" } } } } },
        "pins": pins,
        "splits": [{ "country": "US", "service": "orders", "salt": "us-2026", "by": "store",
            "shares": [{ "origin": "us-west", "basis_points": 10_000 - apac }, { "origin": "apac", "basis_points": apac }] }],
        "fallback": { "candidates": ["us-west", "apac"] },
    })
}

fn read(value: &Value) -> Table {
    check(&serde_json::to_vec(value).unwrap(), "prod").unwrap()
}

/// The median over rounds of what one step takes.
fn each(steps: usize, mut step: impl FnMut(usize)) -> Duration {
    let mut rounds: Vec<Duration> = (0..15)
        .map(|round| {
            let begun = Instant::now();
            for number in 0..steps {
                step(round * steps + number);
            }
            begun.elapsed() / u32::try_from(steps).unwrap()
        })
        .collect();
    rounds.sort_unstable();
    rounds[rounds.len() / 2]
}

fn line(what: &str, took: Duration, aim: Option<Duration>) {
    let verdict = aim.map_or_else(String::new, |aim| {
        format!("   aim < {aim:?}: {}", if took < aim { "met" } else { "missed" })
    });
    println!("{what:48} {took:>12.2?}{verdict}");
}

fn main() {
    let table = read(&table(2, 2500));
    let now = Some(Timestamp::from_millis(1_795_000_000_000));
    let facts = Facts { now, health: &|_| Health::Up, nearest: None, scheme: Scheme::Https };
    choices(&table, &facts);
    references(&table);
    previews(&facts);
}

fn choices(table: &Table, facts: &Facts<'_>) {
    let (service, class) = ("orders".parse().unwrap(), "pos".parse().unwrap());
    let (store, country) = ("US-000777".parse().unwrap(), "US".parse().unwrap());
    let pinned: Vec<DeviceId> = (0..1000).map(|n| device(n * 30).parse().unwrap()).collect();
    let free: Vec<DeviceId> = (0..1000).map(|n| device(n * 30 + 1).parse().unwrap()).collect();
    for (what, devices) in
        [("choice at 10,000 pins, pinned", &pinned), ("choice at 10,000 pins, by split", &free)]
    {
        let took = each(20_000, |number| {
            let device = &devices[number % devices.len()];
            let query = Query {
                service: &service,
                class: &class,
                device,
                store: &store,
                country: &country,
                user: Some("u-77"),
            };
            black_box(choose(black_box(table), &query, facts).unwrap());
        });
        line(what, took, Some(AIM_CHOICE));
    }
}

fn references(table: &Table) {
    let ids: Vec<String> = (0..1000).map(|n| format!("device:{}", device(n * 30 + 1))).collect();
    let took = each(20_000, |number| {
        black_box(sha256(black_box(ids[number % ids.len()].as_bytes())));
    });
    line("reference: SHA-256 of an ID", took, None);
    let map: HashMap<&str, usize> = table
        .pins
        .iter()
        .enumerate()
        .flat_map(|(number, pin)| pin.ids.iter().map(move |id| (id.as_str(), number)))
        .collect();
    let took = each(20_000, |number| {
        black_box(map.get(black_box(ids[number % ids.len()].as_str())));
    });
    line("reference: look-up in a hash map of the pins", took, None);
    let took = each(50, |number| {
        let id = &ids[number % ids.len()];
        black_box(table.pins.iter().find(|pin| pin.ids.contains(black_box(id))));
    });
    line("reference: search through all pins", took, None);
}

fn previews(facts: &Facts<'_>) {
    let (before, after) = (read(&table(1, 2500)), read(&table(2, 4000)));
    let tills: Vec<Till> = (0..STORES)
        .flat_map(|store| {
            (0..TILLS).map(move |till| Till {
                store: format!("US-{store:06}").parse().unwrap(),
                country: "US".parse().unwrap(),
                device: Some(device(store * TILLS + till).parse().unwrap()),
                class: "pos".parse().unwrap(),
            })
        })
        .collect();
    let service = "orders".parse().unwrap();
    let page = Page { offset: 0, limit: 100, country: None };
    let took = each(1, |_| {
        let seen = preview((Some(&before), &after), &tills, &service, facts, page);
        assert_eq!(seen.devices, (STORES * TILLS) as u64);
        black_box(seen);
    });
    line("preview of 10,000 stores with 30,000 tills", took, Some(AIM_PREVIEW));
}
