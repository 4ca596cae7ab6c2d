use super::*;
use crate::routing::world::{sign, table, trusted};
use crate::store;
use serde_json::{Value, json};
use std::path::PathBuf;

const ORIGINS: &[(&str, &str, u16)] = &[("us-west", "127.0.0.1", 1), ("apac", "127.0.0.1", 2)];

struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("configured.json")
    }

    fn put(&self, bytes: &[u8]) {
        store::replace(&self.file(), bytes, 0o600).unwrap();
    }

    fn open(&self) -> Keeper {
        self.open_at(at("2026-06-01T00:00:00.000Z"))
    }

    fn open_at(&self, now: Option<Timestamp>) -> Keeper {
        let trust = Trust { environment: "test".into(), keys: trusted() };
        Keeper::open(self.dir.path(), Some(&self.file()), trust, now).unwrap()
    }

    fn kept(&self, name: &str) -> PathBuf {
        self.dir.path().join("routes").join(name)
    }
}

fn at(text: &str) -> Option<Timestamp> {
    Some(text.parse().unwrap())
}

fn now() -> Option<Timestamp> {
    at("2026-06-01T00:00:00.000Z")
}

fn version(keeper: &Keeper) -> Option<u64> {
    keeper.in_force().map(|in_force| in_force.table.version)
}

fn detail(keeper: &Keeper, condition: Condition, now: Option<Timestamp>) -> Option<String> {
    keeper.conditions(now).into_iter().find(|(name, _)| *name == condition).and_then(|(_, detail)| detail)
}

fn signed(version: u64) -> Vec<u8> {
    sign(&table(version, ORIGINS))
}

fn with(version: u64, key: &str, value: Value) -> Vec<u8> {
    let mut table = table(version, ORIGINS);
    table[key] = value;
    sign(&table)
}

#[test]
fn a_file_comes_into_force_when_it_appears_and_again_when_it_is_replaced() {
    let desk = Desk::new();
    let mut keeper = desk.open();
    assert_eq!(version(&keeper), None);
    let missing = detail(&keeper, Condition::RouteTableMissing, now()).unwrap();
    assert!(missing.contains("configured.json does not exist"), "{missing}");
    for expected in [1, 2] {
        desk.put(&signed(expected));
        keeper.poll(now());
        assert_eq!(version(&keeper), Some(expected));
        assert_eq!(detail(&keeper, Condition::RouteTableMissing, now()), None);
    }
}

#[test]
fn every_refusal_keeps_the_old_table_and_says_why_until_a_good_one_comes() {
    let mut tampered: Value = serde_json::from_slice(&signed(9)).unwrap();
    tampered["payload"] = samovar_wire::encoding::base64(br#"{"schema":1}"#).into();
    let mut stranger: Value = serde_json::from_slice(&signed(9)).unwrap();
    stranger["signatures"][0]["keyid"] = "k2".into();
    let mut split = table(9, ORIGINS);
    split["splits"] = json!([{ "country": "US", "service": "orders", "shares": [{ "origin": "apac", "basis_points": 1 }] }]);
    let mut large = table(9, ORIGINS);
    large["padding"] = "x".repeat(1024 * 1024).into();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (tampered.to_string().into_bytes(), "signature of key `k1` does not match"),
        (stranger.to_string().into_bytes(), "not trusted"),
        (with(4, "refresh_after_s", json!(60)), "version 4"),
        (with(5, "refresh_after_s", json!(60)), "other content"),
        (with(9, "environment", json!("prod")), "environment `prod`"),
        (with(9, "schema", json!(2)), "schema 2"),
        (with(9, "not_before", json!("2026-12-01T00:00:00.000Z")), "not valid before"),
        (sign(&split), "10000"),
        (sign(&large), "too large"),
        (vec![b' '; 3 * 1024 * 1024], "larger than"),
        (b"{half".to_vec(), "not a signed envelope"),
        (Vec::new(), "not a signed envelope"),
    ];
    for (bytes, expected) in cases {
        let desk = Desk::new();
        desk.put(&signed(5));
        let mut keeper = desk.open();
        desk.put(&bytes);
        keeper.poll(now());
        assert_eq!(version(&keeper), Some(5), "{expected}");
        let told = detail(&keeper, Condition::RouteTableRefused, now()).unwrap_or_default();
        assert!(told.contains(expected), "{expected}: {told}");
        assert_eq!(detail(&keeper, Condition::RouteTableMissing, now()), None);
        // The same through the fleet.
        let refused = keeper.offer(&bytes, now()).unwrap_err().to_string();
        assert!(refused.contains(expected), "{expected}: {refused}");
        // A restart changes nothing.
        let mut keeper = desk.open();
        assert_eq!(version(&keeper), Some(5), "{expected}");
        // The table in force offered again clears the complaint about the file; a newer one clears all.
        desk.put(&signed(5));
        keeper.poll(now());
        let left = detail(&keeper, Condition::RouteTableRefused, now()).unwrap_or_default();
        assert!(!left.contains("configured.json"), "{expected}: {left}");
        desk.put(&signed(10));
        keeper.poll(now());
        assert_eq!(version(&keeper), Some(10), "{expected}");
        assert_eq!(detail(&keeper, Condition::RouteTableRefused, now()), None, "{expected}");
    }
}

#[test]
fn a_pushed_table_survives_a_restart_and_the_same_one_again_is_no_change() {
    let desk = Desk::new();
    let mut keeper = desk.open();
    assert_eq!(keeper.offer(&signed(7), now()), Ok(Taken::InForce { version: 7 }));
    assert_eq!(keeper.offer(&signed(7), now()), Ok(Taken::Unchanged { version: 7 }));
    let keeper = desk.open();
    assert_eq!(version(&keeper), Some(7));
    assert!(!keeper.in_force().unwrap().last_good);
}

#[test]
fn a_table_for_later_waits_for_its_time_also_across_a_restart() {
    let desk = Desk::new();
    desk.put(&signed(1));
    let later = with(2, "not_before", json!("2026-12-01T00:00:00.000Z"));
    let mut keeper = desk.open();
    assert!(keeper.offer(&later, now()).is_err());
    let mut keeper = desk.open();
    keeper.poll(at("2026-11-30T23:59:59.999Z"));
    assert_eq!(version(&keeper), Some(1));
    assert!(detail(&keeper, Condition::RouteTableRefused, now()).unwrap().contains("not valid before"));
    let time = at("2026-12-01T00:00:00.000Z");
    keeper.poll(time);
    assert_eq!(version(&keeper), Some(2));
    assert_eq!(detail(&keeper, Condition::RouteTableRefused, time), None);
    assert!(!desk.kept("waiting.json").exists());
}

#[test]
fn a_newer_table_makes_one_that_waits_pointless() {
    let desk = Desk::new();
    let mut keeper = desk.open();
    assert!(keeper.offer(&with(2, "not_before", json!("2026-12-01T00:00:00.000Z")), now()).is_err());
    assert_eq!(keeper.offer(&signed(3), now()), Ok(Taken::InForce { version: 3 }));
    keeper.poll(at("2026-12-02T00:00:00.000Z"));
    assert_eq!(version(&keeper), Some(3));
    assert_eq!(detail(&keeper, Condition::RouteTableRefused, now()), None);
}

#[test]
fn an_expired_table_stays_in_force_and_says_so() {
    let desk = Desk::new();
    desk.put(&with(1, "expires_at", json!("2026-05-01T00:00:00.000Z")));
    let keeper = desk.open();
    assert_eq!(version(&keeper), Some(1));
    let told = detail(&keeper, Condition::RouteTableExpired, now()).unwrap();
    assert_eq!(told, "version 1 expired at 2026-05-01T00:00:00.000Z");
    assert_eq!(
        detail(&keeper, Condition::RouteTableExpired, None),
        None,
        "nothing expires by a clock nobody trusts"
    );
}

#[test]
fn a_damaged_kept_table_gives_way_to_the_one_before_it_as_last_good() {
    let desk = Desk::new();
    let mut keeper = desk.open();
    keeper.offer(&signed(1), now()).unwrap();
    keeper.offer(&signed(2), now()).unwrap();
    store::replace(&desk.kept("in-force.json"), b"{half", 0o600).unwrap();
    let mut keeper = desk.open();
    assert_eq!(version(&keeper), Some(1));
    assert!(keeper.in_force().unwrap().last_good);
    assert!(keeper.take_set_aside()[0].contains("damaged-1"));
    // Its content from another source is simply in force; a newer one too.
    assert_eq!(keeper.offer(&signed(1), now()), Ok(Taken::Unchanged { version: 1 }));
    assert!(!keeper.in_force().unwrap().last_good);
    assert_eq!(keeper.offer(&signed(2), now()), Ok(Taken::InForce { version: 2 }));
    assert_eq!(version(&desk.open()), Some(2));
}

#[test]
fn kept_files_that_are_all_damaged_leave_the_configured_one() {
    let desk = Desk::new();
    desk.put(&signed(3));
    desk.open();
    for name in ["in-force.json", "previous.json", "waiting.json"] {
        store::replace(&desk.kept(name), &vec![0; 3 * 1024 * 1024], 0o600).unwrap();
    }
    let mut keeper = desk.open();
    assert_eq!(version(&keeper), Some(3));
    assert!(!keeper.in_force().unwrap().last_good);
    assert_eq!(keeper.take_set_aside().len(), 3);
}

#[test]
fn a_kept_table_of_another_key_does_not_route_and_is_not_taken_for_damage() {
    let desk = Desk::new();
    let mut keeper = desk.open();
    keeper.offer(&signed(1), now()).unwrap();
    let open = |keys| {
        let trust = Trust { environment: "test".into(), keys };
        Keeper::open(desk.dir.path(), None, trust, now()).unwrap()
    };
    let other = trusted().into_values().map(|key| ("k9".to_owned(), key)).collect();
    let mut keeper = open(other);
    assert_eq!(version(&keeper), None);
    assert!(keeper.take_set_aside().is_empty());
    let told = detail(&keeper, Condition::RouteTableMissing, now()).unwrap();
    assert!(told.contains("signed by k1") || told.contains("k9"), "{told}");
    let keyless = open(TrustedKeys::new());
    let told = detail(&keyless, Condition::RouteTableMissing, now()).unwrap();
    assert!(told.contains("routing.trusted_keys"), "{told}");
    assert_eq!(version(&open(trusted())), Some(1), "back with the key");
}

#[test]
fn a_clock_that_went_back_does_not_take_a_kept_table_out_of_force() {
    let desk = Desk::new();
    desk.put(&signed(1));
    desk.open();
    std::fs::remove_file(desk.file()).unwrap();
    assert_eq!(version(&desk.open_at(at("2026-01-01T12:00:00.000Z"))), Some(1));
}

#[test]
fn the_newest_of_all_sources_comes_into_force_and_an_old_table_of_the_activation_is_no_fault() {
    let desk = Desk::new();
    store::replace(&desk.dir.path().join("route-table.json"), &signed(4), 0o600).unwrap();
    desk.put(&signed(3));
    let mut keeper = desk.open();
    assert_eq!(version(&keeper), Some(4));
    keeper.offer(&signed(9), now()).unwrap();
    std::fs::remove_file(desk.file()).unwrap();
    let keeper = desk.open();
    assert_eq!(version(&keeper), Some(9));
    assert_eq!(detail(&keeper, Condition::RouteTableRefused, now()), None);
}

#[test]
fn a_table_that_cannot_be_kept_routes_all_the_same_and_is_kept_later() {
    let desk = Desk::new();
    let mut keeper = desk.open();
    // A directory where the file should be: no write can succeed.
    std::fs::create_dir(desk.kept("in-force.json.new")).unwrap();
    assert_eq!(keeper.offer(&signed(1), now()), Ok(Taken::InForce { version: 1 }));
    assert!(!desk.kept("in-force.json").exists());
    std::fs::remove_dir(desk.kept("in-force.json.new")).unwrap();
    keeper.poll(now());
    assert_eq!(version(&desk.open()), Some(1));
}
