//! Host overrides: a name of one device points elsewhere for a while, and it always ends.

use crate::shop::{AFTER_RETRY, SOON, accepted, sale, settled, token};
use anyhow::{Context, Result, ensure};
use http::Method;
use samovar_tests::agent::Setup;
use samovar_tests::local_api::Answer;
use samovar_tests::origin::Store;
use samovar_tests::{Agent, Origin, TableBuilder, binaries, eventually};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Output;
use tokio::process::Command;

const NAME: &str = "us.store.example";

/// A till whose origin has moved: the table says 127.0.0.1, where nobody listens, and the origin is at 127.0.0.2.
struct Moved {
    agent: Agent,
    origin: Origin,
    table: TableBuilder,
    hosts: PathBuf,
    _dir: tempfile::TempDir,
}

const FOREIGN: &str = "127.0.0.1 localhost\r\n\u{feff}10.0.0.1 elsewhere.example # ours\n10.0.0.2 last";

async fn moved() -> Result<Moved> {
    moved_with(FOREIGN, |setup, hosts| setup.set(&format!("hosts.file={}", hosts.display()))).await
}

async fn moved_with(foreign: &str, more: impl FnOnce(Setup, &Path) -> Setup) -> Result<Moved> {
    let origin = Origin::start_with("us-west", "127.0.0.2:0".parse()?, Store::default()).await?;
    let nobody = format!("127.0.0.1:{}", origin.address().port()).parse()?;
    let table = TableBuilder::new()?.origin("us-west", nobody);
    let dir = tempfile::tempdir()?;
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, foreign)?;
    let agent = more(Agent::setup().table(&table), &hosts).start().await?;
    Ok(Moved { agent, origin, table, hosts, _dir: dir })
}

impl Moved {
    fn text(&self) -> String {
        std::fs::read_to_string(&self.hosts).unwrap_or_default()
    }

    async fn listed(&self) -> Result<Value> {
        Ok(self.agent.api().get_json("/v1/hosts").await?["overrides"].clone())
    }
}

async fn change(agent: &Agent, method: Method, name: &str, body: &Value) -> Result<Answer> {
    let token = token(agent)?;
    let headers = [("content-type", "application/json"), ("authorization", token.as_str())];
    agent.api().send(method, &format!("/v1/hosts/{name}"), &headers, body.to_string()).await
}

async fn set(agent: &Agent, name: &str, body: Value) -> Result<Answer> {
    change(agent, Method::PUT, name, &body).await
}

fn to_new(ttl_s: u64) -> Value {
    json!({ "address": "127.0.0.2", "reason": "the origin has moved", "ticket": "T-1", "ttl_s": ttl_s, "owner": "lin" })
}

async fn cli(agent: &Agent, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binaries::agent()?);
    command.arg("hosts").args(args).arg("--data").arg(agent.data()).kill_on_drop(true);
    Ok(tokio::time::timeout(SOON, command.output()).await??)
}

async fn offline(moved: &Moved, args: &[&str]) -> Result<()> {
    let file = format!("hosts.file={}", moved.hosts.display());
    let output = cli(&moved.agent, &[args, &["--set", &file]].concat()).await?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn a_name_points_elsewhere_until_it_is_cleared_and_orders_follow() -> Result<()> {
    let moved = moved().await?;
    accepted(moved.agent.api(), &sale("A-1")).await?;
    let answer = set(&moved.agent, NAME, to_new(600)).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.json());
    let shown = answer.json();
    for (field, value) in
        [("name", NAME), ("address", "127.0.0.2"), ("owner", "lin"), ("ticket", "T-1"), ("scope", "device")]
    {
        assert_eq!(shown[field], value, "{shown}");
    }
    assert_eq!(shown["effective"], true, "{shown}");
    assert!((595..=600).contains(&shown["remaining_s"].as_u64().unwrap_or(0)), "{shown}");
    settled(&moved.agent, 1, AFTER_RETRY).await?;
    assert!(moved.origin.holds("A-1"));

    let resolved = moved.agent.api().get_json("/v1/resolve?service=orders").await?;
    assert_eq!(resolved["addresses"], json!(["127.0.0.2"]));
    assert_eq!((resolved["origin"].as_str(), resolved["domain"].as_str()), (Some("us-west"), Some(NAME)));
    let reason = resolved["reason"].to_string();
    assert!(reason.contains("override") && reason.contains("lin"), "{reason}");
    let status = moved.agent.api().get_json("/v1/status").await?;
    assert_eq!(status["overrides"][0]["name"], NAME);
    assert!(moved.agent.api().conditions().await?.contains_key("override-active"));
    assert!(moved.text().contains(&format!("\n127.0.0.2 {NAME} # samovar-override id=")), "{}", moved.text());

    let cleared = change(&moved.agent, Method::DELETE, NAME, &json!({})).await?;
    assert_eq!(cleared.status, 200, "{}", cleared.json());
    assert_eq!(moved.text(), FOREIGN);
    assert_eq!(moved.listed().await?, json!([]));
    let resolved = moved.agent.api().get_json("/v1/resolve?service=orders").await?;
    assert_eq!(resolved["addresses"], json!(["127.0.0.1"]));
    let again = change(&moved.agent, Method::DELETE, NAME, &json!({})).await?;
    assert_eq!((again.status, again.problem().as_str()), (404, "no-override"));
    Ok(())
}

#[tokio::test]
async fn an_override_ends_when_its_time_is_over() -> Result<()> {
    let moved = moved().await?;
    let answer = set(&moved.agent, NAME, to_new(2)).await?;
    ensure!(answer.status == 200, "{}", answer.json());
    eventually("nothing is left", SOON, async || {
        (moved.listed().await.ok()? == json!([]) && moved.text() == FOREIGN).then_some(())
    })
    .await
}

#[tokio::test]
async fn who_may_not_and_what_may_not_be_overridden_is_refused() -> Result<()> {
    let mut moved = moved().await?;
    let api = moved.agent.api();
    let path = format!("/v1/hosts/{NAME}");
    let json_only = [("content-type", "application/json")];
    let body = to_new(60).to_string();
    assert_eq!(api.send(Method::PUT, &path, &json_only, body.clone()).await?.status, 401);
    let bearer = token(&moved.agent)?;
    let text = [("content-type", "text/plain"), ("authorization", bearer.as_str())];
    assert_eq!(api.send(Method::PUT, &path, &text, body).await?.status, 415);
    let refused = async |name: &str, body: Value| -> Result<(u16, String)> {
        let answer = set(&moved.agent, name, body).await?;
        Ok((answer.status, answer.problem()))
    };
    let with = |field: &str, value: Value| {
        let mut body = to_new(60);
        body[field] = value;
        body
    };
    for (field, value) in [
        ("address", json!("224.0.0.1")),
        ("address", json!("not an address")),
        ("reason", json!(" ")),
        ("ttl_s", json!(0)),
        ("ttl_s", json!(72 * 3_600 + 1)),
    ] {
        let answer = refused(NAME, with(field, value.clone())).await?;
        assert_eq!(answer, (422, "invalid-override".into()), "{field} {value}");
    }
    assert_eq!(refused("localhost", to_new(60)).await?.0, 422);
    assert_eq!(refused("www.example", to_new(60)).await?, (404, "unknown-name".into()));
    assert_eq!(refused(NAME, with("address", json!("127.0.0.3"))).await?, (422, "preflight-failed".into()));
    assert_eq!(moved.text(), FOREIGN);

    let forced =
        set(&moved.agent, NAME, json!({ "address": "127.0.0.3", "reason": "to see it fail", "force": true }))
            .await?;
    assert_eq!((forced.status, &forced.json()["effective"]), (200, &json!(false)), "{}", forced.json());
    assert!(forced.text("why").contains("does not answer"), "{}", forced.text("why"));
    assert!(
        (14_390..=14_400).contains(&forced.json()["remaining_s"].as_u64().unwrap_or(0)),
        "four hours unless told"
    );

    // What a newer table protects ends at once, and does not come back.
    let newer = std::mem::replace(&mut moved.table, TableBuilder::new()?).next_version();
    let newer = newer.with("/protected", json!([NAME]))?;
    moved.agent.write_table(&newer)?;
    eventually("the protected name is free", SOON, async || {
        (moved.listed().await.ok()? == json!([]) && moved.text() == FOREIGN).then_some(())
    })
    .await?;
    let answer = set(&moved.agent, NAME, to_new(60)).await?;
    assert_eq!((answer.status, answer.problem().as_str()), (403, "protected-name"));
    let newer = newer
        .next_version()
        .with("/protected", json!([]))?
        .with("/countries/US/services/orders/overridable", json!(false))?;
    moved.agent.write_table(&newer)?;
    eventually("the table that forbids it is in force", SOON, async || {
        let answer = set(&moved.agent, NAME, to_new(60)).await.ok()?;
        (answer.problem() == "not-overridable").then_some(())
    })
    .await?;
    let newer = newer.next_version().with("/disable_overrides", json!(true))?;
    moved.agent.write_table(&newer)?;
    eventually("overrides are switched off", SOON, async || {
        let answer = set(&moved.agent, NAME, to_new(60)).await.ok()?;
        (answer.problem() == "overrides-disabled").then_some(())
    })
    .await
}

#[tokio::test]
async fn a_foreign_line_in_the_way_is_refused_unless_forced_and_comes_back() -> Result<()> {
    let foreign = format!("127.0.0.1 localhost\n10.9.9.9 {NAME} alias\r\n");
    let moved =
        moved_with(&foreign, |setup, hosts| setup.set(&format!("hosts.file={}", hosts.display()))).await?;
    let answer = set(&moved.agent, NAME, to_new(600)).await?;
    assert_eq!((answer.status, answer.problem().as_str()), (409, "conflict-foreign-entry"));
    assert!(answer.text("detail").contains("10.9.9.9"), "{}", answer.text("detail"));
    assert_eq!((moved.text(), moved.listed().await?), (foreign.clone(), json!([])));
    let mut body = to_new(600);
    body["force"] = json!(true);
    let answer = set(&moved.agent, NAME, body).await?;
    ensure!(answer.status == 200, "{}", answer.json());
    assert!(moved.text().lines().any(|line| line.starts_with("#samovar-off:") && line.contains("10.9.9.9")));
    change(&moved.agent, Method::DELETE, NAME, &json!({})).await?;
    assert_eq!(moved.text(), foreign);
    Ok(())
}

#[tokio::test]
async fn after_a_crash_a_reboot_and_when_the_package_goes_nothing_is_left() -> Result<()> {
    let mut moved = moved().await?;
    ensure!(set(&moved.agent, NAME, to_new(10)).await?.status == 200);
    moved.agent.sigkill().await?;
    assert!(moved.text().contains("samovar-override"));
    eventually("the boot unit takes it out when it has ended", SOON, async || {
        offline(&moved, &["reconcile"]).await.ok()?;
        (moved.text() == FOREIGN).then_some(())
    })
    .await?;
    moved.agent.start().await?;
    assert_eq!(moved.listed().await?, json!([]), "and the agent does not bring it back");

    // A crash between: the agent goes on with what was kept.
    ensure!(set(&moved.agent, NAME, to_new(600)).await?.status == 200);
    moved.agent.sigkill().await?;
    moved.agent.start().await?;
    assert_eq!(moved.listed().await?[0]["name"], NAME);
    accepted(moved.agent.api(), &sale("A-1")).await?;
    settled(&moved.agent, 1, AFTER_RETRY).await?;

    // Another boot with nothing left of the time: the device was off, and its clock did not count.
    moved.agent.sigkill().await?;
    let kept = moved.agent.data().join("overrides.json");
    let mut list: Value = serde_json::from_slice(&std::fs::read(&kept)?)?;
    list["overrides"][0]["boot_id"] = json!("another boot");
    list["overrides"][0]["left_ms"] = json!(50_000);
    std::fs::write(&kept, list.to_string())?;
    offline(&moved, &["reconcile"]).await?;
    assert_eq!(moved.text(), FOREIGN);
    moved.agent.start().await?;
    assert_eq!(moved.listed().await?, json!([]));

    // The package goes.
    ensure!(set(&moved.agent, NAME, to_new(600)).await?.status == 200);
    moved.agent.sigkill().await?;
    offline(&moved, &["clear", "--all"]).await?;
    assert_eq!(moved.text(), FOREIGN);
    assert!(!kept.exists());
    moved.agent.start().await?;
    assert_eq!(moved.listed().await?, json!([]));
    Ok(())
}

#[tokio::test]
async fn a_damaged_list_ends_every_override_and_is_told() -> Result<()> {
    let mut moved = moved().await?;
    ensure!(set(&moved.agent, NAME, to_new(600)).await?.status == 200);
    moved.agent.sigkill().await?;
    std::fs::write(moved.agent.data().join("overrides.json"), "{half")?;
    moved.agent.start().await?;
    assert!(moved.agent.api().conditions().await?.contains_key("file-set-aside"));
    eventually("nothing is left", SOON, async || (moved.text() == FOREIGN).then_some(())).await
}

#[tokio::test]
async fn lines_that_another_program_takes_out_come_back_until_that_is_no_use() -> Result<()> {
    let moved = moved().await?;
    ensure!(set(&moved.agent, NAME, to_new(600)).await?.status == 200);
    for _ in 0..2 {
        std::fs::write(&moved.hosts, FOREIGN)?;
        eventually("the line is back", SOON, async || moved.text().contains(NAME).then_some(())).await?;
    }
    std::fs::write(&moved.hosts, FOREIGN)?;
    let why = crate::shop::condition(&moved.agent, "hosts-file-conflict", true, SOON).await?;
    assert!(why.contains("again and again"), "{why}");
    // What an editor adds is kept.
    std::fs::write(&moved.hosts, format!("{}\n10.0.0.3 added\n", moved.text()))?;
    change(&moved.agent, Method::DELETE, NAME, &json!({})).await?;
    assert!(moved.text().contains("10.0.0.3 added") && !moved.text().contains("samovar"), "{}", moved.text());
    Ok(())
}

#[tokio::test]
async fn a_technician_sets_lists_and_clears_on_the_command_line() -> Result<()> {
    let moved = moved().await?;
    let run = async |args: &[&str]| -> Result<String> {
        let output = cli(&moved.agent, args).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let told = run(&["set", NAME, "127.0.0.2", "--reason", "moved", "--ttl", "30m"]).await?;
    assert!(told.contains("takes effect") && told.contains("0 h 30 min left"), "{told}");
    let list: Value = serde_json::from_str(&run(&["list", "--json"]).await?)?;
    assert_eq!(list["overrides"][0]["reason"], "moved");
    run(&["clear", NAME]).await?;
    assert_eq!(moved.text(), FOREIGN);
    let refused = cli(&moved.agent, &["clear", NAME]).await?;
    assert_eq!(refused.status.code(), Some(1));
    run(&["set", NAME, "127.0.0.2", "--reason", "moved"]).await?;
    offline(&moved, &["clear", "--all"]).await?;
    assert_eq!((moved.text(), moved.listed().await?), (FOREIGN.to_owned(), json!([])));
    Ok(())
}

#[tokio::test]
async fn without_the_right_to_write_the_file_the_override_holds_for_the_agent_and_says_so() -> Result<()> {
    let moved = moved_with(FOREIGN, |setup, _| setup).await?;
    let answer = set(&moved.agent, NAME, to_new(600)).await?;
    assert_eq!(
        (&answer.json()["scope"], &answer.json()["effective"]),
        (&json!("agent"), &json!(true)),
        "{}",
        answer.json()
    );
    assert!(answer.text("scope_why").contains("hosts.file"), "{}", answer.json());
    accepted(moved.agent.api(), &sale("A-1")).await?;
    settled(&moved.agent, 1, AFTER_RETRY).await?;
    assert_eq!(moved.text(), FOREIGN);
    Ok(())
}

/// A mount namespace in which this file is the system's hosts file.
async fn can_mount() -> bool {
    let tried = Command::new("unshare").args(["-m", "true"]).output().await;
    tried.is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn other_programs_of_the_device_see_the_override_in_a_bind_mounted_hosts_file() -> Result<()> {
    if !can_mount().await {
        eprintln!(
            "SKIPPED: no mount namespaces here, so nothing was proven about other programs and bind mounts"
        );
        return Ok(());
    }
    let moved = moved_with(FOREIGN, |setup, hosts| {
        let mount = format!("mount --bind '{}' /etc/hosts && exec \"$@\"", hosts.display());
        setup.set("hosts.file=/etc/hosts").under(&["unshare", "-m", "sh", "-c", &mount, "sh"])
    })
    .await?;
    let answer = set(&moved.agent, NAME, to_new(600)).await?;
    ensure!(answer.status == 200, "{}", answer.json());
    assert_eq!(
        (&answer.json()["scope"], &answer.json()["effective"]),
        (&json!("device"), &json!(true)),
        "{}",
        answer.json()
    );
    assert!(answer.text("why").contains("other programs look the name up there"), "{}", answer.text("why"));
    assert!(moved.text().contains("127.0.0.2 us.store.example"), "{}", moved.text());
    let run = std::fs::read(moved.agent.data().join("run.json"))?;
    let pid = serde_json::from_slice::<Value>(&run)?["pid"].to_string();
    let looked = Command::new("nsenter").args(["-t", &pid, "-m", "getent", "ahosts", NAME]).output().await?;
    let looked = String::from_utf8(looked.stdout)?;
    let first = looked.split_whitespace().next().context("nobody looks it up")?;
    assert_eq!(first, "127.0.0.2", "{looked}");
    change(&moved.agent, Method::DELETE, NAME, &json!({})).await?;
    assert_eq!(moved.text(), FOREIGN);
    assert!(!moved.agent.data().join("hosts/journal.json").exists());
    Ok(())
}

/// What the service manager does for the helper: accepts, and starts the program with the connection as its input.
fn listen_for(socket: &Path, arguments: Vec<String>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;
    let program = binaries::agent()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let input = std::process::Stdio::from(std::os::fd::OwnedFd::from(stream));
            let _ = std::process::Command::new(&program).args(&arguments).stdin(input).status();
        }
    });
    Ok(())
}

const NOBODY: u32 = 65_534;

/// An agent that runs as nobody: it may not write this hosts file, and asks at this socket.
async fn without_rights(table: &TableBuilder, hosts: &Path, socket: &Path) -> Result<Agent> {
    let id = NOBODY.to_string();
    let mut agent = Agent::setup()
        .table(table)
        .set(&format!("hosts.file={}", hosts.display()))
        .set(&format!("hosts.helper={}", socket.display()))
        .under(&["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"])
        .prepare()?;
    for path in ["", "agent.toml", "route-table.json"] {
        std::os::unix::fs::chown(agent.home().join(path), Some(NOBODY), Some(NOBODY))?;
    }
    agent.start().await?;
    Ok(agent)
}

/// How the helper is started for the data of one agent.
fn helper(data: &Path, root: &Path) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let (hosts, state) = (root.join("hosts"), root.join("state"));
    ["helper", "--data", &text(data), "--hosts-file", &text(&hosts), "--state", &text(&state)]
        .map(str::to_owned)
        .into()
}

#[tokio::test]
async fn an_agent_without_rights_has_the_helper_write_the_file_and_a_stranger_does_not() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() || binaries::system("setpriv").is_none() {
        eprintln!(
            "SKIPPED: only root can start an agent as somebody else, so nothing was proven about the helper"
        );
        return Ok(());
    }
    let origin = Origin::start_with("us-west", "127.0.0.2:0".parse()?, Store::default()).await?;
    let nobody = format!("127.0.0.1:{}", origin.address().port()).parse()?;
    let table = TableBuilder::new()?.origin("us-west", nobody);
    let root = tempfile::tempdir()?;
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755))?;
    let (hosts, socket) = (root.path().join("hosts"), root.path().join("helper.sock"));
    std::fs::write(&hosts, FOREIGN)?;
    let mut agent = without_rights(&table, &hosts, &socket).await?;
    let answer = set(&agent, NAME, to_new(600)).await?;
    assert_eq!((answer.status, &answer.json()["scope"]), (200, &json!("agent")), "{}", answer.json());
    assert!(answer.text("scope_why").contains("helper"), "{}", answer.json());
    change(&agent, Method::DELETE, NAME, &json!({})).await?;

    listen_for(&socket, helper(&agent.data(), root.path()))?;
    let answer = set(&agent, NAME, to_new(600)).await?;
    assert_eq!((answer.status, &answer.json()["scope"]), (200, &json!("device")), "{}", answer.json());
    let file = agent.api().get_json("/v1/hosts").await?["hosts_file"].clone();
    assert_eq!((&file["by"], &file["state"]), (&json!("helper"), &json!("applied")));
    let before = std::fs::read_to_string(&hosts)?;
    assert!(before.contains(&format!("127.0.0.2 {NAME}")));

    // A helper for the data of somebody else says no to this one.
    let strange = root.path().join("strange.sock");
    listen_for(&strange, helper(root.path(), root.path()))?;
    agent.sigkill().await?;
    let other = without_rights(&table, &hosts, &strange).await?;
    let answer = set(&other, NAME, to_new(600)).await?;
    assert!(answer.text("scope_why").contains("may not ask"), "{}", answer.json());
    assert_eq!(std::fs::read_to_string(&hosts)?, before);

    agent.start().await?;
    change(&agent, Method::DELETE, NAME, &json!({})).await?;
    assert_eq!(std::fs::read_to_string(&hosts)?, FOREIGN);
    Ok(())
}
