use super::*;
use crate::dsse::{SigningKey, new_seed};
use serde_json::{Value, json};

/// The example of the contract.
pub(crate) fn example() -> Value {
    serde_json::from_str(include_str!("../example.json")).unwrap()
}

struct Signer {
    key: SigningKey,
    trusted: TrustedKeys,
}

impl Signer {
    fn new() -> Self {
        let key = SigningKey::from_seed("k1", &new_seed().unwrap()).unwrap();
        let trusted = [("k1".to_owned(), key.public())].into();
        Self { key, trusted }
    }

    fn offer(
        &self,
        table: &Value,
        in_force: Option<Stored>,
        now: Option<Timestamp>,
    ) -> Result<Accepted, Refusal> {
        let payload = serde_json::to_vec(table).unwrap();
        let envelope = Envelope::sign(dsse::ROUTE_TABLE, &payload, &[&self.key]);
        accept(&envelope, &self.trusted, "prod", in_force, now)
    }
}

fn changed(pointer: &str, value: Value) -> Value {
    let mut table = example();
    *table.pointer_mut(pointer).unwrap() = value;
    table
}

fn noon() -> Option<Timestamp> {
    Some("2026-11-20T12:00:00Z".parse().unwrap())
}

#[test]
fn the_example_of_the_contract_is_accepted() {
    let accepted = Signer::new().offer(&example(), None, noon()).unwrap();
    assert_eq!(accepted.table.version, 1042);
    assert_eq!(accepted.key_id, "k1");
    assert!(!accepted.unchanged);
}

#[test]
fn a_version_may_only_grow_or_stay_with_the_same_bytes() {
    let signer = Signer::new();
    let first = signer.offer(&example(), None, noon()).unwrap();
    let stored = Some(Stored { version: 1042, sha256: first.sha256 });
    assert!(signer.offer(&example(), stored, noon()).unwrap().unchanged);
    let same_version = changed("/refresh_after_s", json!(60));
    assert_eq!(signer.offer(&same_version, stored, noon()), Err(Refusal::SameVersionOtherContent(1042)));
    let older = changed("/version", json!(1041));
    assert_eq!(
        signer.offer(&older, stored, noon()),
        Err(Refusal::OlderVersion { offered: 1041, in_force: 1042 })
    );
    assert!(signer.offer(&changed("/version", json!(1043)), stored, noon()).is_ok());
}

#[test]
fn time_counts_only_while_the_clock_is_trusted() {
    let signer = Signer::new();
    let future = changed("/not_before", json!("2027-01-01T00:00:00.000Z"));
    assert!(matches!(signer.offer(&future, None, noon()), Err(Refusal::NotYet(_))));
    assert!(signer.offer(&future, None, None).is_ok());
}

#[test]
fn another_environment_schema_or_signer_is_refused() {
    let signer = Signer::new();
    let staging = changed("/environment", json!("staging"));
    assert!(matches!(signer.offer(&staging, None, noon()), Err(Refusal::Environment { .. })));
    let next = json!({"schema": 2, "anything": "else"});
    assert_eq!(signer.offer(&next, None, noon()), Err(Refusal::Schema(2)));
    let payload = serde_json::to_vec(&example()).unwrap();
    let envelope = Envelope::sign(dsse::ROUTE_TABLE, &payload, &[&Signer::new().key]);
    let refused = accept(&envelope, &signer.trusted, "prod", None, noon());
    assert!(matches!(refused, Err(Refusal::Untrusted(_))));
}

#[test]
fn a_table_over_one_mebibyte_is_refused_by_its_size_and_not_read() {
    let payload = vec![b' '; MAX_TABLE_BYTES + 1];
    assert_eq!(check(&payload, "prod"), Err(Refusal::TooLarge { bytes: MAX_TABLE_BYTES + 1 }));
}

#[test]
fn a_table_that_contradicts_itself_is_refused_with_the_place() {
    let signer = Signer::new();
    let cases = [
        ("/splits/0/shares/0/basis_points", json!(7400), "add up to 9900"),
        ("/splits/0/shares/0/origin", json!("moon"), "moon, which is not in the table"),
        ("/splits/0/country", json!("DE"), "country DE"),
        ("/pins/0/origin", json!("moon"), "moon"),
        ("/pins/0/ids/0", json!("US-0001"), "must begin with"),
        ("/fallback/candidates/0", json!("moon"), "moon"),
        ("/activation/origins/0", json!("moon"), "moon"),
        ("/countries/JP/residency", json!(["apac"]), "outside its residency"),
        ("/countries/US/residency", json!(["us-west", "apac"]), "the shadow of US/orders"),
        ("/countries/US/services/orders/domains", json!({"pos": "x"}), "no default domain"),
        (
            "/countries/JP/services/orders",
            json!({"domains": {"default": "jp"}, "residency": ["us-next"]}),
            "widens",
        ),
        ("/origins/apac/endpoints", json!([]), "no endpoint"),
        ("/origins/us-west/endpoints/0/basis_points", json!(5000), "share 5000"),
        ("/shadow/0/basis_points", json!(10_001), "more than"),
    ];
    for (pointer, value, expected) in cases {
        match signer.offer(&changed(pointer, value), None, noon()) {
            Err(Refusal::Inconsistent(text)) => assert!(text.contains(expected), "{pointer}: {text}"),
            other => panic!("{pointer}: {other:?}"),
        }
    }
}

#[test]
fn an_origin_state_from_the_future_is_refused_rather_than_guessed() {
    let refused = Signer::new().offer(&changed("/origins/apac/state", json!("maybe")), None, noon());
    assert!(matches!(refused, Err(Refusal::Unreadable(_))));
}
