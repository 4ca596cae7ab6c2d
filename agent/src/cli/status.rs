//! `samovar-agent status`: what a technician wants to know first.

use super::ask::{self, Agent, AskError, text};
use serde_json::Value;
use std::fmt::Write;

pub(super) async fn run(agent: &Agent, json: bool) -> Result<String, AskError> {
    let status = agent.get("/v1/status").await?;
    Ok(if json { ask::json(&status) } else { show(&status) })
}

// Writing to a String cannot fail, so the results are not looked at.
fn show(status: &Value) -> String {
    let mut out = String::new();
    let count = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    if status["identity"].is_null() {
        let _ = writeln!(out, "device     not activated");
    } else {
        let of = |field: &str| text(status, &format!("/identity/{field}"));
        let _ = writeln!(
            out,
            "device     {} ({}) of store {}, {}",
            of("device"),
            of("class"),
            of("store"),
            of("country")
        );
    }
    let _ = writeln!(out, "agent      {}, up {} s", text(status, "/version"), count("/uptime_s"));
    let _ = match status["origin"].is_null() {
        true => writeln!(out, "origin     none"),
        false => writeln!(
            out,
            "origin     {} at {} (by {})",
            text(status, "/origin/origin"),
            text(status, "/origin/base_url"),
            text(status, "/origin/rule")
        ),
    };
    let _ = match status["route_table"].is_null() {
        true => writeln!(out, "routes     none"),
        false => writeln!(
            out,
            "routes     version {} of {}, until {}",
            count("/route_table/version"),
            text(status, "/route_table/environment"),
            text(status, "/route_table/expires_at")
        ),
    };
    let relay = if status["relay"]["connected"] == true { "connected" } else { "not connected" };
    let _ = writeln!(out, "line       {}, head office {relay}", text(status, "/line"));
    let _ = writeln!(
        out,
        "orders     {} pending, {} held, {} quarantined, {} settled",
        count("/orders/pending"),
        count("/orders/held"),
        count("/orders/quarantined"),
        count("/orders/settled")
    );
    if status["orders"]["oldest_pending_at"].is_string() {
        let _ =
            writeln!(out, "           oldest pending since {}", text(status, "/orders/oldest_pending_at"));
    }
    for compared in status["reconcile"].as_array().into_iter().flatten() {
        let (origin, matched) = (text(compared, "/origin"), text(compared, "/matched_at"));
        let _ = match (compared["not_compared"].as_str(), compared["matched_at"].as_str()) {
            (Some(_), _) => writeln!(out, "compared   {origin} {}", text(compared, "/not_compared")),
            (None, Some(_)) => writeln!(out, "compared   {origin} had every order at {matched}"),
            (None, None) => writeln!(out, "compared   {origin} has not matched yet"),
        };
    }
    match status["conditions"].as_array().map(Vec::as_slice) {
        None | Some([]) => out.push_str("all is well\n"),
        Some(conditions) => conditions.iter().for_each(|condition| show_condition(&mut out, condition)),
    }
    out
}

fn show_condition(out: &mut String, condition: &Value) {
    let _ = writeln!(
        out,
        "{:<10} {} since {}: {}\n           {}",
        text(condition, "/severity"),
        text(condition, "/name"),
        text(condition, "/since"),
        text(condition, "/detail"),
        text(condition, "/technician/en")
    );
}
