//! Route tables by the command line: against a server, and from files alone.

use std::process::Output;

use serde_json::{Value, json};

use crate::program::{program, ready, text};

fn table(version: u64, jp: &str) -> Value {
    let service = json!({"orders": {"domains": {"default": "jp.example"}}});
    json!({
        "schema": 1, "environment": "prod", "version": version, "issued_at": "2026-01-01T00:00:00.000Z",
        "not_before": "2026-01-01T00:00:00.000Z", "expires_at": "2036-01-01T00:00:00.000Z",
        "origins": {"apac": {"endpoints": [{"host": "apac.example"}]}, "usw": {"endpoints": [{"host": "usw.example"}]}},
        "countries": {"JP": {"residency": ["apac", "usw"], "services": service}},
        "fallback": {"mode": "nearest", "candidates": [jp]},
    })
}

fn parsed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_table_is_written_proposed_signed_elsewhere_published_and_brought_back() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let alone = |arguments: &[&str]| program().args(arguments).output().unwrap();
    let made = parsed(&alone(&["route", "keygen", "--out", &path("k"), "--json"]));
    let (id, key) = (made["key_id"].as_str().unwrap(), made["public_key"].as_str().unwrap());
    let trusted = format!("routes.trusted_keys={{{id}=\"{key}\"}}");
    let data = path("data");
    let (_server, _) = ready(data.as_ref(), &["--set", "routes.sign=false", "--set", &trusted]);
    let fleet = |arguments: &[&str]| {
        let mut command = program();
        command
            .args(arguments)
            .args(["--data", &data])
            .env("HOME", home.path())
            .env_remove("XDG_CONFIG_HOME");
        command.output().unwrap()
    };
    std::fs::write(path("t"), table(1, "moon").to_string()).unwrap();
    let draft =
        parsed(&fleet(&["routes", "draft", "new", "--title", "first", "--file", &path("t"), "--json"]));
    assert_eq!(draft["flaws"][0]["path"], "/fallback/candidates/0");
    let refused = fleet(&["routes", "propose", "1"]);
    assert!(!refused.status.success() && text(&refused).contains("moon"), "{}", text(&refused));
    std::fs::write(path("t"), table(1, "apac").to_string()).unwrap();
    let stale = fleet(&["routes", "draft", "save", "1", &path("t"), "--revision", "7"]);
    assert!(text(&stale).contains("stale"), "{}", text(&stale));
    assert!(fleet(&["routes", "draft", "save", "1", &path("t")]).status.success());
    assert!(fleet(&["routes", "propose", "1"]).status.success());
    let approve = fleet(&["routes", "approve", "1"]);
    assert!(text(&approve).contains("offline-signing"), "{}", text(&approve));
    assert!(fleet(&["routes", "draft", "export", "1", "--out", &path("x")]).status.success());
    assert!(alone(&["route", "sign", &path("x"), "--key", &path("k"), "--out", &path("e")]).status.success());
    let published = parsed(&fleet(&["routes", "publish", &path("e"), "--json"]));
    assert_eq!(published["version"], 1);
    let back = fleet(&["routes", "rollback", "1", "--reason", "test", "--key", &path("k"), "--json"]);
    assert_eq!(parsed(&back)["version"], 2);
    let list = parsed(&fleet(&["routes", "list", "--json"]));
    assert_eq!(list["routes"].as_array().unwrap().len(), 2);
    assert!(fleet(&["store", "add", "JP-0001", "--country", "JP"]).status.success());
    std::fs::write(path("t"), table(9, "usw").to_string()).unwrap();
    let preview = parsed(&fleet(&["routes", "preview", "--file", &path("t"), "--json"]));
    assert_eq!((&preview["stores"], &preview["moved"]), (&json!(1), &json!(1)), "{preview}");
    let told = parsed(&fleet(&["routes", "explain", "--version", "1", "--store", "JP-0001", "--json"]));
    assert_eq!(told["there"]["origin"], "apac");
    let behind = parsed(&fleet(&["routes", "stragglers", "--minutes", "0", "--json"]));
    assert_eq!((&behind["devices"], &behind["due"]), (&json!(0), &json!(true)));
    assert_eq!(
        parsed(&fleet(&["routes", "draft", "list", "--all", "--json"]))["drafts"].as_array().unwrap().len(),
        2
    );
}

#[test]
fn two_tables_and_a_list_of_stores_are_compared_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("a"), table(1, "apac").to_string()).unwrap();
    std::fs::write(path("b"), table(2, "usw").to_string()).unwrap();
    std::fs::write(path("csv"), "store,country,device,class\nJP-2,JP,POS-2,pos\nJP-1,JP,,\nDE-1,DE,,\n")
        .unwrap();
    let list = json!({"devices": [{"id": "POS-9", "store": "JP-9", "country": "JP", "class": "pos"}]});
    std::fs::write(path("json"), list.to_string()).unwrap();
    std::fs::write(path("bad"), "a,b\n1,2\n").unwrap();
    let preview = |stores: &str, more: &[&str]| {
        let (a, b, stores) = (path("a"), path("b"), path(stores));
        let arguments = [&["route", "preview", &b, "--before", &a, "--stores", &stores][..], more].concat();
        program().args(arguments).output().unwrap()
    };
    let seen = parsed(&preview("csv", &["--json"]));
    assert_eq!((&seen["stores"], &seen["moved"], &seen["held"]), (&json!(3), &json!(2), &json!(0)), "{seen}");
    assert_eq!(seen["moves"][1]["device"], "POS-2");
    assert_eq!(parsed(&preview("csv", &["--json", "--down", "usw"]))["moved"], 2, "kept and probed");
    assert_eq!(parsed(&preview("json", &["--json"]))["moves"][0]["device"], "POS-9");
    let shown = preview("csv", &[]);
    assert!(text(&shown).contains("3 stores, 3 devices: 2 change origin"), "{}", text(&shown));
    let bad = preview("bad", &[]);
    assert!(!bad.status.success() && text(&bad).contains("store,country"), "{}", text(&bad));
}
