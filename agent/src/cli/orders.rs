//! `samovar-agent orders`: the ledger as a technician sees it.

use super::AskArgs;
use super::ask::{self, Agent, AskError, segment, text};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fmt::Write;

/// Arguments of `orders`.
#[derive(Debug, Args)]
pub(super) struct OrdersArgs {
    #[command(subcommand)]
    command: OrdersCommand,
}

#[derive(Debug, Subcommand)]
enum OrdersCommand {
    /// Counts and ages by state
    Summary(AskArgs),
    /// A page of orders
    List {
        /// Only this state: pending, held, settled, quarantined or discarded
        #[arg(long)]
        state: Option<String>,
        /// Behind this place in the ledger
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
        /// At most so many, up to 200
        #[arg(long, default_value_t = 50)]
        limit: u64,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// One order with its history
    Show {
        /// Id or order number
        order: String,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Send a held or quarantined order again
    Retry {
        /// Id or order number
        order: String,
        /// Why; kept in the audit log
        #[arg(long, value_parser = ask::reason)]
        reason: Option<String>,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Give an order up
    Discard {
        /// Id or order number
        order: String,
        /// Why; kept in the audit log
        #[arg(long, value_parser = ask::reason)]
        reason: String,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Free an order from the origin that may have it already: it may arrive twice
    Release {
        /// Id or order number
        order: String,
        /// Why; kept in the audit log
        #[arg(long, value_parser = ask::reason)]
        reason: String,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Compare orders with each origin now, and send again what it lacks
    Reconcile {
        /// Everything that is remembered, not only what changed since the last match
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        ask: AskArgs,
    },
}

pub(super) async fn run(args: &OrdersArgs) -> Result<String, AskError> {
    let (answer, ask, show): (Value, &AskArgs, fn(&Value) -> String) = match &args.command {
        OrdersCommand::Summary(ask) => {
            (Agent::find(&ask.data).get("/v1/orders:summary").await?, ask, show_summary)
        }
        OrdersCommand::List { state, after, limit, ask } => {
            let state = segment(state.as_deref().unwrap_or_default());
            let path = format!("/v1/orders?state={state}&after_seq={after}&limit={limit}");
            (Agent::find(&ask.data).get(&path).await?, ask, show_list)
        }
        OrdersCommand::Show { order, ask } => {
            (Agent::find(&ask.data).get(&format!("/v1/orders/{}", segment(order))).await?, ask, show_record)
        }
        OrdersCommand::Retry { order, reason, ask } => {
            (intervene(ask, order, "retry", reason.as_deref().unwrap_or_default()).await?, ask, show_record)
        }
        OrdersCommand::Discard { order, reason, ask } => {
            (intervene(ask, order, "discard", reason).await?, ask, show_record)
        }
        OrdersCommand::Release { order, reason, ask } => {
            (intervene(ask, order, "release", reason).await?, ask, show_record)
        }
        OrdersCommand::Reconcile { full, ask } => {
            let body = json!({ "full": full });
            (Agent::find(&ask.data).post("/v1/orders:reconcile", body).await?, ask, show_compared)
        }
    };
    let shown = if ask.json { ask::json(&answer) } else { show(&answer) };
    match &args.command {
        OrdersCommand::Reconcile { .. } => match not_compared(&answer) {
            Some(why) => Err(AskError::Failed { shown, why }),
            None => Ok(shown),
        },
        _ => Ok(shown),
    }
}

/// Why the wish to compare was not met; `None` when every origin that can be compared was.
fn not_compared(outcome: &Value) -> Option<String> {
    let failed = outcome["origins"].as_array().into_iter().flatten();
    let failed = failed.filter(|origin| origin["supported"] != false && origin["last_error"].is_string());
    let mut why: Vec<String> = failed
        .map(|origin| format!("{}: {}", text(origin, "/origin"), text(origin, "/last_error")))
        .collect();
    if outcome["done"] == false {
        why.push("the comparison has not come to its end; it goes on: see `samovar-agent status`".into());
    }
    (!why.is_empty()).then(|| format!("not compared: {}", why.join("; ")))
}

async fn intervene(ask: &AskArgs, order: &str, what: &str, reason: &str) -> Result<Value, AskError> {
    let body = json!({ "reason": reason, "by": "command line" });
    Agent::find(&ask.data).post(&format!("/v1/orders/{}/{what}", segment(order)), body).await
}

// Writing to a String cannot fail, so the results are not looked at.
fn show_summary(summary: &Value) -> String {
    let mut out = String::new();
    for state in ["pending", "held", "quarantined", "settled", "discarded", "accepted"] {
        let _ = writeln!(out, "{state:<12} {}", summary[state]);
    }
    for (name, field) in [("oldest", "/oldest_pending_at"), ("last settled", "/last_settled_at")] {
        let _ = writeln!(out, "{name:<12} {}", text(summary, field));
    }
    let _ = writeln!(out, "{:<12} {} bytes", "ledger", summary["ledger_bytes"]);
    out
}

fn show_list(page: &Value) -> String {
    let mut out = String::new();
    for order in page["orders"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "{:>8}  {:<12} {}  {:<24} {}",
            order["seq"].as_u64().unwrap_or(0),
            text(order, "/state"),
            text(order, "/accepted_at"),
            text(order, "/order_no"),
            text(order, "/detail")
        );
    }
    if let Some(next) = page["next_after_seq"].as_u64() {
        let _ = writeln!(out, "more: --after {next}");
    }
    if out.is_empty() { "no orders".into() } else { out }
}

fn show_compared(outcome: &Value) -> String {
    let mut out = String::new();
    for origin in outcome["origins"].as_array().into_iter().flatten() {
        let number = |field: &str| origin[field].as_u64().unwrap_or(0);
        let name = text(origin, "/origin");
        if origin["not_compared"].is_string() {
            let _ = writeln!(out, "{name:<16} {}", text(origin, "/not_compared"));
            continue;
        }
        if origin["supported"] == false {
            let _ = writeln!(out, "{name:<16} does not reconcile: {}", text(origin, "/last_error"));
            continue;
        }
        if origin["last_error"].is_string() {
            let _ = writeln!(out, "{name:<16} not compared; last match {}", text(origin, "/matched_at"));
            continue;
        }
        let _ = writeln!(
            out,
            "{name:<16} {} orders compared, {} sent again, {} missing, {} unknown; last match {}",
            number("orders"),
            number("resent"),
            number("missing"),
            number("unknown"),
            text(origin, "/matched_at")
        );
    }
    if out.is_empty() {
        out.push_str("no origin has settled anything yet\n");
    }
    out
}

fn show_record(record: &Value) -> String {
    let mut out = String::new();
    for field in
        ["order_no", "id", "state", "why", "detail", "origin", "udl", "key", "conflict_with", "depends_on"]
    {
        if record[field].is_string() {
            let _ = writeln!(out, "{field:<14} {}", text(record, &format!("/{field}")));
        }
    }
    let _ = writeln!(out, "{:<14} {}", "attempts", record["attempts"]);
    for entry in record["history"].as_array().into_iter().flatten() {
        let place = if entry["origin"].is_string() {
            format!(" at {}", text(entry, "/origin"))
        } else {
            String::new()
        };
        let _ = writeln!(out, "{}  {}{place}", text(entry, "/at"), text(entry, "/what"));
    }
    out
}
