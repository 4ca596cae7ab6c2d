//! `samovar-agent hosts`: names of this device that point elsewhere for a while. `reconcile` and `clear --all` work
//! without an agent: they are what runs at boot, after a crash, and when the package goes.

use super::ask::{Agent, AskError, segment, text};
use super::{AskArgs, ConfigArgs, DATA};
use crate::config::Config;
use crate::hosts::{self, HostsFile, TTL_DEFAULT, TTL_MAX, helper, offline};
use crate::net::explain;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of `hosts`.
#[derive(Debug, Args)]
pub(super) struct HostsArgs {
    #[command(subcommand)]
    command: HostsCommand,
}

#[derive(Debug, Subcommand)]
enum HostsCommand {
    /// The overrides in force
    List(AskArgs),
    /// Point a name of the route table at another address for a while
    Set {
        /// The exact name, such as us.store.example
        name: String,
        /// Where it shall point
        address: String,
        /// Why; kept in the audit log
        #[arg(long)]
        reason: String,
        /// The ticket
        #[arg(long)]
        ticket: Option<String>,
        /// For how long, such as 90s, 30m or 4h; 72h at most
        #[arg(long, value_name = "TIME", default_value = "4h", value_parser = ttl)]
        ttl: Duration,
        /// Also when the address does not prove that it is the name, or a line of the hosts file is in the way
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// End an override
    Clear {
        /// The name
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Every one, also without a running agent; what a package does before it goes
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        ask: AskArgs,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Bring the hosts file to what is kept, less what has ended; needs no agent
    Reconcile {
        #[command(flatten)]
        ask: AskArgs,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// What a fresh process gets for a name
    #[command(hide = true)]
    Lookup {
        /// The name
        name: String,
    },
}

/// Arguments of the hidden `helper`.
#[derive(Debug, Args)]
pub(super) struct HelperArgs {
    /// The agent's data directory: its owner may ask
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    /// The hosts file
    #[arg(long, value_name = "FILE", default_value = "/etc/hosts")]
    hosts_file: PathBuf,
    /// Where lock and journal are
    #[arg(long, value_name = "DIR", default_value = offline::STATE)]
    state: PathBuf,
}

pub(super) async fn run(args: &HostsArgs) -> Result<String, AskError> {
    match &args.command {
        HostsCommand::List(ask) => {
            let answer = list(&ask.data).await?;
            Ok(shown(ask, &answer, show_list))
        }
        HostsCommand::Set { name, address, reason, ticket, ttl, force, ask } => {
            let body = json!({ "address": address, "reason": reason, "ticket": ticket, "ttl_s": ttl.as_secs(),
                "force": force, "owner": owner() });
            let answer = Agent::find(&ask.data).put(&format!("/v1/hosts/{}", segment(name)), body).await?;
            Ok(shown(ask, &answer, show_one))
        }
        HostsCommand::Clear { name: Some(name), ask, .. } => {
            let body = json!({ "owner": owner() });
            let answer = Agent::find(&ask.data).delete(&format!("/v1/hosts/{}", segment(name)), body).await?;
            Ok(shown(ask, &answer, |answer| {
                format!("{} is where its own name server says", text(answer, "/cleared/name"))
            }))
        }
        HostsCommand::Clear { name: None, ask, config, .. } => {
            let answer = clear_all(ask, config).await?;
            Ok(shown(ask, &answer, show_outcome))
        }
        HostsCommand::Reconcile { ask, config } => {
            let file = hosts_file(ask, config)?;
            let outcome = file.map(|file| offline::reconcile(&ask.data, &file)).transpose();
            let answer =
                json!({ "hosts_file": outcome.map_err(|error| AskError::Refused(explain(&error)))? });
            Ok(shown(ask, &answer, show_outcome))
        }
        HostsCommand::Lookup { name } => {
            let found = hosts::look_up(name).map_err(AskError::Refused)?;
            Ok(found.iter().map(|address| format!("{address}\n")).collect())
        }
    }
}

/// Serves one call of the agent, with the rights that the agent lacks.
pub(super) fn serve(args: &HelperArgs) -> Result<String, AskError> {
    let file = HostsFile::new(&args.hosts_file, &args.state);
    helper::serve(&file, &args.data)
        .map(|()| String::new())
        .map_err(|error| AskError::Refused(error.to_string()))
}

/// Ends every override: through the running agent if there is one, and then for certain.
async fn clear_all(ask: &AskArgs, config: &ConfigArgs) -> Result<Value, AskError> {
    let file = hosts_file(ask, config)?;
    let agent = Agent::find(&ask.data);
    let mut cleared = Vec::new();
    match agent.get("/v1/hosts").await {
        Ok(list) => {
            for known in list["overrides"].as_array().into_iter().flatten() {
                let name = text(known, "/name");
                agent.delete(&format!("/v1/hosts/{}", segment(&name)), json!({ "owner": owner() })).await?;
                cleared.push(name);
            }
            Ok(json!({ "cleared": cleared }))
        }
        Err(AskError::NotRunning(_) | AskError::Unreachable { .. }) => {
            let kept = offline::list(&ask.data).unwrap_or_default();
            cleared.extend(kept.into_iter().map(|known| known.name));
            let outcome = file.map(|file| offline::clear_all(&ask.data, &file)).transpose();
            let outcome = outcome.map_err(|error| AskError::Refused(explain(&error)))?;
            Ok(json!({ "cleared": cleared, "hosts_file": outcome }))
        }
        Err(refused) => Err(refused),
    }
}

async fn list(data: &Path) -> Result<Value, AskError> {
    match Agent::find(data).get("/v1/hosts").await {
        Err(none @ (AskError::NotRunning(_) | AskError::Unreachable { .. })) => match offline::list(data) {
            Ok(kept) if !kept.is_empty() => Ok(json!({ "overrides": kept, "running": false })),
            _ => Err(none),
        },
        answer => answer,
    }
}

/// The hosts file that the configuration names.
fn hosts_file(ask: &AskArgs, config: &ConfigArgs) -> Result<Option<HostsFile>, AskError> {
    let config = Config::load(config.config.as_deref(), &config.set)
        .map_err(|error| AskError::Refused(error.to_string()))?;
    Ok(config.hosts.file().map(|path| HostsFile::new(path, &offline::state_dir(&ask.data))))
}

/// Who sits at the terminal.
fn owner() -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    names.into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| "command line".into())
}

fn ttl(given: &str) -> Result<Duration, String> {
    let given = given.trim();
    let (number, unit) = given.split_at(given.find(|c: char| !c.is_ascii_digit()).unwrap_or(given.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err("write it like 90s, 30m or 4h".into()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
    let time = Duration::from_secs(seconds.ok_or("write it like 90s, 30m or 4h")?);
    let most = TTL_MAX.max(TTL_DEFAULT);
    if time.is_zero() || time > most { Err(format!("at most {}h", most.as_secs() / 3_600)) } else { Ok(time) }
}

fn shown(ask: &AskArgs, answer: &Value, show: impl Fn(&Value) -> String) -> String {
    if ask.json { format!("{answer:#}") } else { show(answer) }
}

// Writing to a String cannot fail, so the results are not looked at.
fn show_list(answer: &Value) -> String {
    let mut out = String::new();
    for known in answer["overrides"].as_array().into_iter().flatten() {
        out.push_str(&show_one(known));
    }
    if out.is_empty() {
        out.push_str("no name points elsewhere\n");
    }
    if answer["hosts_file"]["why"].is_string() {
        let (path, why) = (text(answer, "/hosts_file/path"), text(answer, "/hosts_file/why"));
        let _ = writeln!(out, "{path}: {why}");
    }
    out
}

fn show_one(known: &Value) -> String {
    let mut out = String::new();
    let left = known["remaining_s"].as_u64().unwrap_or(0);
    let _ = writeln!(
        out,
        "{} -> {}  {} h {:02} min left, until {}",
        text(known, "/name"),
        text(known, "/address"),
        left / 3_600,
        left / 60 % 60,
        text(known, "/until")
    );
    let _ = writeln!(
        out,
        "  by {}: {} (ticket {})",
        text(known, "/owner"),
        text(known, "/reason"),
        text(known, "/ticket")
    );
    let effective = match known["effective"].as_bool() {
        Some(true) => "takes effect",
        Some(false) => "DOES NOT TAKE EFFECT",
        None => "not tried",
    };
    let _ = writeln!(out, "  {effective}: {}", text(known, "/why"));
    let scope = if known["scope"] == "device" { "every program of the device" } else { "the agent only" };
    let why =
        known["scope_why"].as_str().map(|_| format!(", {}", text(known, "/scope_why"))).unwrap_or_default();
    let _ = writeln!(out, "  for {scope}{why}");
    out
}

fn show_outcome(answer: &Value) -> String {
    let mut out = String::new();
    for name in answer["cleared"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let _ = writeln!(out, "{name} is where its own name server says");
    }
    match answer["hosts_file"]["written"].as_bool() {
        Some(true) => out.push_str("the hosts file was written\n"),
        Some(false) => out.push_str("the hosts file is as it should be\n"),
        None => {}
    }
    if out.is_empty() { "nothing to do\n".into() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit_and_within_the_limit() {
        assert_eq!(ttl("90"), Ok(Duration::from_secs(90)));
        assert_eq!(ttl("30m"), Ok(Duration::from_secs(1_800)));
        assert_eq!(ttl("72h"), Ok(TTL_MAX));
        for wrong in ["", "h", "73h", "0", "4 hours", "-1h", "99999999999999999999h"] {
            assert!(ttl(wrong).is_err(), "{wrong}");
        }
    }
}
