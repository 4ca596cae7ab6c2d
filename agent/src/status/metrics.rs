//! The agent's metrics: one list for Prometheus on the device and for the relay.

use samovar_wire::status::{DeviceState, Health, Line};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Values by metric name. Names follow the conventions of Prometheus: base units, `_total` for counters.
#[must_use]
pub fn values(state: &DeviceState, uptime_s: u64, relay: &Relay) -> BTreeMap<String, f64> {
    let orders = &state.orders;
    let count = |value: u64| value as f64;
    let mut values: BTreeMap<String, f64> = [
        ("samovar_uptime_seconds", count(uptime_s)),
        ("samovar_orders_accepted_total", count(orders.accepted)),
        ("samovar_orders_pending", count(orders.pending)),
        ("samovar_orders_held", count(orders.held)),
        ("samovar_orders_quarantined", count(orders.quarantined)),
        ("samovar_orders_settled", count(orders.settled)),
        ("samovar_ledger_bytes", count(orders.ledger_bytes)),
        ("samovar_origins_down", count(down(state))),
        ("samovar_line_up", f64::from(u8::from(state.line != Line::Down))),
        ("samovar_conditions", count(state.conditions.len() as u64)),
        ("samovar_relay_connected", f64::from(u8::from(relay.connected))),
        ("samovar_relay_published_total", count(relay.published)),
        ("samovar_relay_dropped_total", count(relay.dropped)),
        ("samovar_outbox_events", count(relay.outbox_events)),
        ("samovar_outbox_bytes", count(relay.outbox_bytes)),
        ("samovar_outbox_dropped_total", count(relay.outbox_dropped)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    if let Some(bytes) = resident_bytes() {
        values.insert("samovar_resident_memory_bytes".into(), count(bytes));
    }
    values
}

fn down(state: &DeviceState) -> u64 {
    state.origins.iter().filter(|origin| origin.health == Health::Down).count() as u64
}

/// What the relay and its outbox add.
#[derive(Debug, Clone, Copy, Default)]
pub struct Relay {
    /// Whether the broker has us.
    pub connected: bool,
    /// Messages handed to a connection.
    pub published: u64,
    /// Messages given up.
    pub dropped: u64,
    /// Events waiting.
    pub outbox_events: u64,
    /// Their bytes.
    pub outbox_bytes: u64,
    /// Events dropped.
    pub outbox_dropped: u64,
}

/// The text format of Prometheus.
#[must_use]
pub fn exposition(values: &BTreeMap<String, f64>) -> String {
    values.iter().fold(String::new(), |mut text, (name, value)| {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
        text
    })
}

/// Memory that the process holds, where the system tells.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size())
}

#[cfg(unix)]
fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(not(unix))]
fn page_size() -> u64 {
    4_096
}
