//! The program itself: exit codes, files, signals, and the command line against a running server.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{batch, client, json_body, order};

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samovar-fleet"));
    command
        .env_remove("SAMOVAR_SERVER")
        .env_remove("SAMOVAR_TOKEN")
        .env_remove("SAMOVAR_CA")
        .stdin(Stdio::null());
    command
}

fn serve(dir: &Path, more: &[&str]) -> Command {
    let mut command = program();
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--https-listen",
        "127.0.0.1:0",
        "--broker",
        "none",
        "--data",
    ]);
    command.arg(dir).args(more).stdout(Stdio::null());
    command
}

/// A server as a process; killed when the test ends, whatever happens.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn ready(dir: &Path, more: &[&str]) -> (Server, Value) {
    let server = Server(serve(dir, more).spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // The file of a server that was killed is still there: it is not this one's.
        let text = std::fs::read_to_string(dir.join("run.json")).unwrap_or_default();
        let run: Value = serde_json::from_str(&text).unwrap_or_default();
        if run["pid"] == server.0.id() {
            return (server, run);
        }
        assert!(Instant::now() < deadline, "the server did not get ready");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn bad_configuration_is_exit_code_2_with_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fleet.toml");
    std::fs::write(&file, "[intake]\norigin = \"apac\"\norigen = 1\n").unwrap();
    let output = serve(dir.path(), &["--config", file.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("fleet.toml:3") && text(&output).contains("origen"), "{}", text(&output));
    for bad in [
        &["--broker", "http://x"][..],
        &["--set", "intake.origin=a b"],
        &["--nonsense"],
        &["--listen", "nowhere"],
    ] {
        let output = program().args(["serve", "--data"]).arg(dir.path()).args(bad).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad:?} {}", text(&output));
    }
}

#[test]
fn unusable_storage_is_exit_code_4() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("fleet.db"),
        "this is not a database, and it is long enough to be looked at".repeat(50),
    )
    .unwrap();
    let output = serve(dir.path(), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    let asked = Instant::now();
    let output = serve(dir.path(), &["--database", "postgres://127.0.0.1:1/none"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains("127.0.0.1:1") && text(&output).contains("refused"), "{}", text(&output));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let output = serve(dir.path(), &["--database", "mysql://127.0.0.1/none"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn a_server_says_where_it_is_keeps_its_secrets_and_stops_within_two_seconds() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (mut server, run) = ready(dir.path(), &[]);
    assert_eq!(run["pid"], server.0.id());
    assert!(run["http"].as_str().unwrap().starts_with("http://127.0.0.1:"));
    assert!(run["https"].as_str().unwrap().starts_with("https://127.0.0.1:"));
    assert!(run["mqtt"].is_null());
    for secret in ["admin.txt", "fleet.db", "ca/ca.key", "keys/routes.seed", "tls/server.key"] {
        let mode = std::fs::metadata(dir.path().join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let second = serve(dir.path(), &[]).output().unwrap();
    assert_eq!(second.status.code(), Some(3), "{}", text(&second));
    let asked = Instant::now();
    assert!(Command::new("kill").arg(server.0.id().to_string()).status().unwrap().success());
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[test]
fn a_token_kept_in_the_data_directory_gives_way_to_a_new_login_and_to_the_first_admins_password() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, _run) = ready(dir.path(), &[]);
    let data = dir.path().to_str().unwrap();
    let run = |arguments: &[&str], input: &str| {
        use std::io::Write as _;
        let mut command = program();
        let mut child = command
            .args(arguments)
            .args(["--data", data])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that asks for no password may have ended.
        let _ = writeln!(child.stdin.take().unwrap(), "{input}");
        child.wait_with_output().unwrap()
    };
    let kept = dir.path().join("admin-login.json");
    let stale =
        serde_json::json!({ "name": "x", "token": "stale", "expires_at": "2999-01-01T00:00:00.000Z" });
    std::fs::write(&kept, stale.to_string()).unwrap();
    let listed = run(&["store", "list"], "");
    assert!(listed.status.success(), "falls back to admin.txt: {}", text(&listed));
    let added = run(&["operator", "add", "sue", "--role", "viewer"], "a long password");
    assert!(added.status.success(), "{}", text(&added));
    let login = run(&["login", "--name", "sue"], "a long password");
    assert!(login.status.success(), "{}", text(&login));
    let refused = run(&["store", "add", "US-0001", "--country", "US"], "");
    assert!(
        !refused.status.success() && text(&refused).contains("viewer"),
        "sue's login counts: {}",
        text(&refused)
    );
    std::fs::remove_file(dir.path().join("admin.txt")).unwrap();
    std::fs::write(&kept, stale.to_string()).unwrap();
    let stranded = run(&["store", "list"], "");
    assert!(text(&stranded).contains("samovar-fleet login --name"), "{}", text(&stranded));
}

#[test]
fn a_server_of_an_unknown_authority_is_answered_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, run) = ready(dir.path(), &[]);
    let https = run["https"].as_str().unwrap().replace("127.0.0.1", "localhost");
    let output =
        program().args(["store", "list", "--server", &https]).env("SAMOVAR_TOKEN", "x").output().unwrap();
    assert!(!output.status.success() && text(&output).contains("--ca FILE"), "{}", text(&output));
}

#[test]
fn the_command_line_does_what_the_contract_says() {
    let dir = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let (_server, run) = ready(dir.path(), &[]);
    let data = dir.path().to_str().unwrap();
    let fleet = |arguments: &[&str]| {
        let output = program()
            .args(arguments)
            .env("HOME", home.path())
            .env_remove("XDG_CONFIG_HOME")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    fleet(&["store", "add", "US-0001", "--country", "US", "--name", "Main street", "--data", data]);
    let stores: Value = serde_json::from_str(&fleet(&["store", "list", "--json", "--data", data])).unwrap();
    assert_eq!(stores["stores"][0]["id"], "US-0001");
    let claim = fleet(&[
        "claim",
        "US-0001",
        "--device",
        "POS-US-0001",
        "--class",
        "pos",
        "--expires",
        "24h",
        "--data",
        data,
    ]);
    assert!(claim.starts_with("HQ-") && claim.trim().len() == "HQ-XXXX-XXXX".len(), "{claim}");
    assert_eq!(fleet(&["orders", "--count", "--data", data]).trim(), "0");
    for list in [
        &["devices"][..],
        &["orders"],
        &["routes", "list"],
        &["operator", "list"],
        &["audit"],
        &["routes", "show"],
    ] {
        serde_json::from_str::<Value>(&fleet(&[list, &["--json", "--data", data]].concat())).unwrap();
    }
    let denied = program()
        .args(["store", "list", "--server", run["http"].as_str().unwrap()])
        .env("HOME", home.path())
        .output()
        .unwrap();
    assert_eq!(denied.status.code(), Some(1));
    assert!(text(&denied).contains("samovar-fleet login"), "{}", text(&denied));
    let wrong = program()
        .args(["store", "list", "--server", run["http"].as_str().unwrap()])
        .env("SAMOVAR_TOKEN", "x")
        .output()
        .unwrap();
    assert!(text(&wrong).contains("unauthenticated"), "{}", text(&wrong));
}

#[test]
fn tables_are_signed_verified_and_previewed_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let route = |arguments: &[&str]| program().arg("route").args(arguments).output().unwrap();
    let made: Value =
        serde_json::from_slice(&route(&["keygen", "--out", &path("k"), "--json"]).stdout).unwrap();
    assert_eq!(route(&["keygen", "--out", &path("k")]).status.code(), Some(1), "a key is never overwritten");
    let table = serde_json::json!({
        "schema": 1, "environment": "prod", "version": 7, "issued_at": "2026-01-01T00:00:00.000Z",
        "not_before": "2026-01-01T00:00:00.000Z", "expires_at": "2027-12-31T00:00:00.000Z",
        "origins": {"apac": {"endpoints": [{"host": "apac.example", "port": 443, "addresses": []}]}},
        "countries": {"JP": {"residency": ["apac"], "services": {"orders": {"domains": {"default": "jp.example"}}}}},
        "fallback": {"mode": "nearest", "candidates": ["apac"], "shares": []},
    });
    std::fs::write(path("t"), table.to_string()).unwrap();
    assert!(route(&["sign", &path("t"), "--key", &path("k"), "--out", &path("e")]).status.success());
    let trust = format!("{}={}", made["key_id"].as_str().unwrap(), made["public_key"].as_str().unwrap());
    let verified: Value =
        serde_json::from_slice(&route(&["verify", &path("e"), "--trust", &trust, "--json"]).stdout).unwrap();
    assert_eq!((&verified["version"], &verified["accepted"]), (&7.into(), &true.into()));
    assert_eq!(
        route(&["verify", &path("e"), "--trust", &trust, "--environment", "test"]).status.code(),
        Some(1)
    );
    let ask = ["preview", &path("e"), "--device", "POS-1", "--store", "JP-1", "--country", "JP", "--json"];
    let preview: Value = serde_json::from_slice(&route(&ask).stdout).unwrap();
    assert_eq!((&preview["origin"], &preview["rule"]), (&"apac".into(), &"fallback".into()));
    let held = ["preview", &path("e"), "--device", "POS-1", "--store", "US-1", "--country", "US", "--json"];
    let held: Value = serde_json::from_slice(&route(&held).stdout).unwrap();
    assert_eq!(held["held"], "residency");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_answered_before_a_sigkill_is_there_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = ["--set", "intake.tokens=[\"0123456789abcdef\"]"];
    let (mut server, run) = ready(dir.path(), &tokens);
    let http = client(None, None);
    let post = async |run: &Value, number: u64| {
        let orders: Vec<Value> =
            (0..20).map(|n| order(&format!("{number}-{n}"), number * 20 + n, "{}")).collect();
        let url = format!("{}/v1/orders:batch", run["http"].as_str().unwrap());
        let request = json_body(http.post(url), batch(&orders).to_string()).bearer_auth("0123456789abcdef");
        let answer = request.header("samovar-device", "POS-1").send().await.ok()?;
        serde_json::from_slice::<Value>(&answer.bytes().await.ok()?).ok()
    };
    let mut answered = 0;
    let killer = server.0.id().to_string();
    for number in 0.. {
        let Some(answer) = post(&run, number).await else { break };
        assert!(answer["results"].as_array().unwrap().iter().all(|result| result["status"] == "settled"));
        answered = number + 1;
        if answered == 10 {
            // In the middle of whatever comes next.
            assert!(Command::new("kill").args(["-9", &killer]).status().unwrap().success());
        }
    }
    assert!(answered >= 10);
    server.0.wait().unwrap();
    let (_server, run) = ready(dir.path(), &tokens);
    for number in 0..answered {
        let again = post(&run, number).await.unwrap();
        let results = again["results"].as_array().unwrap();
        assert!(results.iter().all(|result| result["status"] == "duplicate"), "batch {number}: {again}");
    }
}
