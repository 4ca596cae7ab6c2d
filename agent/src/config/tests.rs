use super::*;

fn load(text: &str, set: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    let set: Vec<_> = set.iter().map(ToString::to_string).collect();
    Config::load(Some(&path), &set).map_err(|error| error.to_string())
}

#[test]
fn the_reference_is_exactly_the_defaults() {
    assert_eq!(toml::from_str::<Config>(REFERENCE).unwrap(), Config::default());
}

#[test]
fn the_reference_names_every_key() {
    let all = toml::Table::try_from(Config::default()).unwrap();
    for (section, keys) in all {
        // A key that is a table of names has no default to show; it stands in the reference as an example.
        for key in
            keys.as_table().unwrap().keys().filter(|key| !["trusted_keys", "keys"].contains(&key.as_str()))
        {
            assert!(line_of(REFERENCE, &format!("{section}.{key}")).is_some(), "{section}.{key}");
        }
    }
    for optional in [
        "# device =",
        "# store =",
        "# country =",
        "# class =",
        "# table =",
        "# trusted_keys =",
        "# keys =",
        "# tls =",
        "# url =",
        "# [origin.single]",
    ] {
        assert!(REFERENCE.contains(optional), "{optional}");
    }
}

#[test]
fn an_unknown_key_is_an_error_with_its_line_and_name() {
    let error = load("[relay]\nurl = \"\"\nkeepalive = 3\n", &[]).unwrap_err();
    assert!(
        error.contains("line 3") && error.contains("keepalive") && error.contains("agent.toml"),
        "{error}"
    );
}

#[test]
fn a_value_out_of_range_is_an_error_with_its_line_and_name() {
    let error = load("[logs]\nlevel = \"info\"\nmax_bytes = 5\n", &[]).unwrap_err();
    assert!(error.contains("line 3: logs.max_bytes: 5 is not within"), "{error}");
}

#[test]
fn single_keys_are_laid_over_the_file() {
    let config =
        load("[logs]\nlevel = \"warn\"\n", &["logs.level=debug", "local_api.listen=127.0.0.1:0"]).unwrap();
    assert_eq!(config.logs.level, "debug");
    assert_eq!(config.local_api.listen.port(), 0);
    assert!(load("", &["logs.colour=red"]).unwrap_err().contains("colour"));
    assert!(load("", &["nonsense"]).unwrap_err().contains("section.key=value"));
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = load("[routing]\ntable = \"rt.json\"\n", &[]).unwrap();
    assert!(config.routing.table.unwrap().is_absolute());
}

#[test]
fn half_an_identity_is_refused() {
    let error = load("[identity]\ndevice = \"POS-1\"\n", &[]).unwrap_err();
    assert!(error.contains("identity.store"), "{error}");
}

#[test]
fn the_example_of_the_contract_is_accepted() {
    let text = r#"
[identity]
device = "POS-US-0001"
store = "US-0001"
country = "US"
class = "pos"
[routing]
table = "route-table.json"
trusted_keys = { "k1" = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" }
environment = "prod"
[origin]
tls = { ca = "ca.pem", cert = "device.pem", key = "device.key" }
[relay]
url = "mqtt://127.0.0.1:1883"
[commands]
keys = { "kid" = { key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", role = "support" } }
[local_api]
listen = "127.0.0.1:7780"
"#;
    let config = load(text, &[]).unwrap();
    assert_eq!(config.commands.keys["kid"].role, samovar_wire::activation::Role::Support);
    assert_eq!(config.identity.device.unwrap().as_str(), "POS-US-0001");
    assert_eq!(config.routing.trusted_keys.len(), 1);
}

#[test]
fn the_reference_of_single_mode_is_its_defaults_too() {
    let block = REFERENCE.split("# [origin.single]").nth(1).unwrap().split("[relay]").next().unwrap();
    let lines =
        block.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| !line.starts_with(' '));
    let mut shown: SingleSection = toml::from_str(&lines.collect::<Vec<_>>().join("\n")).unwrap();
    assert_eq!(shown.headers.len(), 1);
    shown.headers.clear();
    assert_eq!(shown, toml::from_str("path = \"/api/tickets/{order_no}\"").unwrap());
}

#[test]
fn single_mode_without_its_api_or_with_a_wrong_one_is_refused_by_name() {
    assert!(load("[origin]\nmode = \"single\"\n", &[]).unwrap_err().contains("line 2: origin.mode"));
    let with = |more: &str| load(&format!("[origin]\nmode = \"single\"\n[origin.single]\n{more}\n"), &[]);
    assert!(with("method = \"PUT\"").unwrap_err().contains("path"));
    let error = with("path = \"/api/{ticket}\"").unwrap_err();
    assert!(error.contains("line 4") && error.contains("{ticket} is not one of"), "{error}");
    assert!(with("path = \"/api/{order_no}\"\nrejected = [404]").unwrap_err().contains("origin.single"));
    let config = with("path = \"/api/{order_no}\"").unwrap();
    assert_eq!(config.origin.mode, OriginMode::Single);
}

#[test]
fn a_wrong_argument_is_named_itself_and_not_the_file() {
    let of = |text: &str, set: &[&str]| load(text, set).unwrap_err();
    for (set, words) in [
        (&["logs.max_bytes=5"][..], "--set logs.max_bytes=5: logs.max_bytes: 5 is not within"),
        (&["logs.level=debug", "orders.max_orders=many"], "--set orders.max_orders=many: invalid type"),
        (&["logs.colour=red", "logs.level=info"], "--set logs.colour=red: unknown field `colour`"),
        (&["identity.device=POS-1"], "--set identity.device=POS-1: identity.store: missing"),
        (&["relay=off"], "--set relay=off: write it as section.key=value"),
        (&["logs.level.deep=1", "logs.level=info"], "--set logs.level.deep=1: that is a single value"),
    ] {
        let error = of("[logs]\nlevel = \"info\"\n", set);
        assert!(error.starts_with(words), "{error}");
        assert!(!error.contains("agent.toml"), "{error}");
    }
    // What is wrong in the file stays the file's.
    let error = of("[logs]\nmax_bytes = 5\n", &["relay.keep_alive_s=60"]);
    assert!(error.contains("agent.toml: line 2: logs.max_bytes"), "{error}");
}

#[test]
fn arguments_reach_into_sections_of_sections_and_complete_each_other() {
    let single = ["origin.mode=single", "origin.single.method=PUT", "origin.single.path=/api/{order_no}"];
    assert_eq!(load("", &single).unwrap().origin.mode, OriginMode::Single);
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let config = load("", &[&format!("commands.keys.k1={{ key = \"{key}\", role = \"admin\" }}")]).unwrap();
    assert_eq!(config.commands.keys.len(), 1);
}

#[test]
fn keys_for_commands_are_checked() {
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let of = |keys: &str| load(&format!("[commands]\nkeys = {{ {keys} }}\n"), &[]).unwrap_err();
    for (keys, word) in [
        (
            format!("k = {{ key = \"{key}\", role = \"root\" }}"),
            "unknown variant `root`, expected one of `viewer`",
        ),
        ("k = { key = \"short\", role = \"admin\" }".into(), "expected the base64 of 32 bytes"),
        (format!("k = {{ key = \"{key}\" }}"), "missing field `role`"),
        (format!("k = {{ key = \"{key}\", role = \"admin\", until = 1 }}"), "unknown field `until`"),
        (format!("\"a b\" = {{ key = \"{key}\", role = \"admin\" }}"), "commands.keys: the key id `a b`"),
        (
            format!(
                "a = {{ key = \"{key}\", role = \"admin\" }}, b = {{ key = \"{key}\", role = \"viewer\" }}"
            ),
            "`a` and `b` are the same key",
        ),
    ] {
        let error = of(&keys);
        assert!(error.contains("line 2") && error.contains(word), "{error}");
    }
}
