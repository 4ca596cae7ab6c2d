//! `samovar-agent resolve`: where a service is now, and every rule that was looked at.

use super::AskArgs;
use super::ask::{self, Agent, AskError, segment, text};
use clap::Args;
use serde_json::Value;
use std::fmt::Write;

/// Arguments of `resolve`.
#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    /// The service
    #[arg(default_value = "orders")]
    service: String,
    /// Country of the person the request concerns
    #[arg(long, value_name = "COUNTRY")]
    udl: Option<String>,
    /// Device class whose domain is wanted
    #[arg(long)]
    class: Option<String>,
    /// Say why: every rule that was looked at
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    ask: AskArgs,
}

pub(super) async fn run(args: &ResolveArgs) -> Result<String, AskError> {
    let mut path = format!("/v1/resolve?service={}", segment(&args.service));
    for (name, value) in [("udl", &args.udl), ("class", &args.class)] {
        if let Some(value) = value {
            // Writing to a String cannot fail.
            let _ = write!(path, "&{name}={}", segment(value));
        }
    }
    let answer = Agent::find(&args.ask.data).get(&path).await?;
    Ok(if args.ask.json { ask::json(&answer) } else { show(&answer, args.explain) })
}

fn show(answer: &Value, explain: bool) -> String {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let addresses = list(&answer["addresses"]);
    let mut out = format!(
        "{} is at {} ({})\naddresses  {}\ntable      version {}{}\n",
        text(answer, "/service"),
        text(answer, "/base_url"),
        text(answer, "/origin"),
        if addresses.is_empty() { "none found".into() } else { addresses.join(", ") },
        answer["table_version"],
        if answer["stale"] == true { ", stale" } else { "" }
    );
    if let Some(dns) = answer.get("dns") {
        let _ = write!(out, "found by   {} ({})", text(dns, "/answered_by"), text(dns, "/host"));
        for link in dns["chain"].as_array().into_iter().flatten() {
            let ms = link["ms"].as_u64().map(|ms| format!(" {ms} ms")).unwrap_or_default();
            let _ = write!(out, " → {}{ms}", text(link, "/name"));
        }
        out.push('\n');
    }
    if explain {
        for reason in answer["reason"].as_array().into_iter().flatten() {
            let (rule, result, detail) =
                (text(reason, "/rule"), text(reason, "/result"), text(reason, "/detail"));
            let _ = writeln!(out, "{rule:<12} {result:<12} {detail}");
        }
    }
    out
}
