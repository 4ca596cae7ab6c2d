//! Pure: what is wanted of a device beside what it reports.
//!
//! The report is read field by field: a device may be newer or older than this server.

use samovar_wire::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::db::entity::host_override::Model;

/// One override of one device: wanted by the fleet, reported by the device, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Entry {
    /// The device.
    pub device: String,
    /// Its store.
    pub store: String,
    /// Its country.
    pub country: String,
    /// The name that points elsewhere.
    pub name: String,
    /// Where it points.
    pub address: String,
    /// Who wants it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// The ticket.
    pub ticket: Option<String>,
    /// The fleet's id of it; null for one that was set at the device.
    pub id: Option<String>,
    /// `fleet`, or `local` for one that was set at the device.
    pub source: String,
    /// Whether it was forced.
    pub forced: bool,
    /// Since when.
    pub set_at: Option<String>,
    /// When it ends by the wall clock; it may end earlier.
    pub until: Option<String>,
    /// Seconds that are left.
    pub remaining_s: u64,
    /// The fleet wants it; false for `local` ones and for those that a device has not been told to end yet.
    pub wanted: bool,
    /// The device reports it.
    pub in_force: bool,
    /// `device` (every program) or `agent` (the agent's own requests); null until it is in force.
    pub scope: Option<String>,
    /// Why not for every program.
    pub scope_why: Option<String>,
    /// Whether it takes effect, as the device found by trying; null until it has.
    pub effective: Option<bool>,
    /// How that was found, or why it is not in force.
    pub why: String,
}

/// A device, as its entries name it.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// The device.
    pub device: &'a str,
    /// Its store.
    pub store: &'a str,
    /// Its country.
    pub country: &'a str,
    /// Whether it is there.
    pub online: bool,
}

/// A device said that it does not obey.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The device.
    pub device: String,
    /// The name.
    pub name: String,
    /// In the device's words.
    pub why: String,
    /// When the fleet heard it.
    pub heard_at: i64,
}

/// The entries of one device, by name; what is wanted stands before what is reported only.
#[must_use]
pub fn merge(
    of: Of<'_>,
    wanted: &[Model],
    state: &Value,
    refusals: &[Refusal],
    now: Timestamp,
) -> Vec<Entry> {
    let reported: Vec<Entry> =
        state["overrides"].as_array().into_iter().flatten().filter_map(|one| report(of, one, now)).collect();
    let is_it = |row: &Model, entry: &Entry| entry.id.as_deref() == Some(row.id.as_str());
    let mut entries: Vec<Entry> = wanted
        .iter()
        .map(|row| match reported.iter().find(|entry| is_it(row, entry)) {
            Some(entry) => Entry { wanted: true, ..entry.clone() },
            None => waiting(of, row, refusals, now),
        })
        .collect();
    // One whose time is over is not shown as if it held: the device ends it by itself, and may be away.
    let others = reported.into_iter().filter(|entry| !wanted.iter().any(|row| is_it(row, entry)));
    entries.extend(others.filter(|entry| entry.remaining_s > 0));
    entries.sort_by(|one, other| (&one.name, !one.wanted).cmp(&(&other.name, !other.wanted)));
    entries
}

fn report(of: Of<'_>, one: &Value, now: Timestamp) -> Option<Entry> {
    let text = |field: &str| one[field].as_str().map(str::to_owned);
    let until = text("until");
    Some(Entry {
        device: of.device.to_owned(),
        store: of.store.to_owned(),
        country: of.country.to_owned(),
        name: text("name")?,
        address: text("address").unwrap_or_default(),
        owner: text("owner").unwrap_or_default(),
        reason: text("reason").unwrap_or_default(),
        ticket: text("ticket"),
        id: text("fleet_id"),
        source: text("source").unwrap_or_else(|| "local".into()),
        forced: one["forced"] == true,
        set_at: text("set_at"),
        remaining_s: until.as_deref().map_or(0, |until| left(until, now)),
        until,
        wanted: false,
        in_force: true,
        scope: text("scope"),
        scope_why: text("scope_why"),
        effective: one["effective"].as_bool(),
        why: text("why").unwrap_or_default(),
    })
}

/// Rounded up: a second that has begun is still there.
fn left(until: &str, now: Timestamp) -> u64 {
    let Ok(until) = until.parse::<Timestamp>() else { return 0 };
    let left = until.since(now);
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

/// Wanted, and not reported.
fn waiting(of: Of<'_>, row: &Model, refusals: &[Refusal], now: Timestamp) -> Entry {
    let is_it = |refusal: &&Refusal| {
        refusal.device == row.device && refusal.name == row.name && refusal.heard_at >= row.set_at
    };
    let refused = refusals.iter().filter(is_it).max_by_key(|refusal| refusal.heard_at);
    let until = Timestamp::from_millis(row.until).to_string();
    Entry {
        device: of.device.to_owned(),
        store: of.store.to_owned(),
        country: of.country.to_owned(),
        name: row.name.clone(),
        address: row.address.clone(),
        owner: row.owner.clone(),
        reason: row.reason.clone(),
        ticket: row.ticket.clone(),
        id: Some(row.id.clone()),
        source: "fleet".into(),
        forced: row.forced,
        set_at: Some(Timestamp::from_millis(row.set_at).to_string()),
        remaining_s: left(&until, now),
        until: Some(until),
        wanted: true,
        in_force: false,
        scope: None,
        scope_why: None,
        effective: refused.map(|_| false),
        why: match refused {
            Some(refused) => format!("the device refuses it: {}", refused.why),
            None if of.online => "the device has not confirmed it yet".into(),
            None => "the device is offline; it is told when it comes".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OF: Of<'static> = Of { device: "POS-1", store: "S", country: "US", online: true };

    fn wanted(id: &str, name: &str) -> Model {
        Model {
            id: id.into(),
            device: "POS-1".into(),
            name: name.into(),
            address: "192.0.2.1".into(),
            owner: "lin".into(),
            reason: "test".into(),
            ticket: None,
            forced: false,
            set_at: 1_000,
            until: 61_000,
            cleared_at: None,
        }
    }

    fn reported(id: Option<&str>, name: &str, until: i64) -> Value {
        json!({ "name": name, "address": "192.0.2.1", "owner": "lin", "reason": "test", "fleet_id": id,
                "source": if id.is_some() { "fleet" } else { "local" }, "until": Timestamp::from_millis(until),
                "scope": "device", "effective": true, "why": "it answers there" })
    }

    #[test]
    fn each_override_is_shown_once_with_what_is_wanted_and_what_holds() {
        let state = json!({ "overrides": [reported(Some("1"), "b.example", 61_000),
            reported(Some("old"), "a.example", 61_000), reported(None, "c.example", 61_000), "nonsense"] });
        let rows = [wanted("1", "b.example"), wanted("2", "a.example")];
        let entries = merge(OF, &rows, &state, &[], Timestamp::from_millis(11_500));
        let seen: Vec<_> = entries
            .iter()
            .map(|one| (one.name.as_str(), one.source.as_str(), one.wanted, one.in_force, one.effective))
            .collect();
        assert_eq!(
            seen,
            [
                ("a.example", "fleet", true, false, None),
                ("a.example", "fleet", false, true, Some(true)),
                ("b.example", "fleet", true, true, Some(true)),
                ("c.example", "local", false, true, Some(true)),
            ]
        );
        assert!(entries.iter().all(|one| one.remaining_s == 50), "{entries:?}");
        assert!(entries[0].why.contains("not confirmed"));
    }

    #[test]
    fn what_is_over_is_not_shown_as_if_it_held() {
        let state = json!({ "overrides": [reported(Some("1"), "b.example", 61_000)] });
        assert_eq!(merge(OF, &[], &state, &[], Timestamp::from_millis(61_000)), []);
        assert_eq!(merge(OF, &[], &json!({ "overrides": "none" }), &[], Timestamp::from_millis(0)), []);
    }

    #[test]
    fn why_it_is_not_in_force_is_said() {
        let refusal = |heard_at, why: &str| Refusal {
            device: "POS-1".into(),
            name: "b.example".into(),
            why: why.into(),
            heard_at,
        };
        let refusals = [refusal(900, "of an earlier one"), refusal(2_000, "no proof")];
        let why = |of, refusals: &[Refusal]| {
            merge(of, &[wanted("1", "b.example")], &Value::Null, refusals, Timestamp::from_millis(5_000))
                .remove(0)
                .why
        };
        assert!(why(OF, &refusals).ends_with("refuses it: no proof"));
        assert!(why(OF, &refusals[..1]).contains("not confirmed"));
        assert!(why(Of { online: false, ..OF }, &[]).contains("offline"));
    }
}
