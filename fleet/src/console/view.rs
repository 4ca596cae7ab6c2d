//! What the pages show, made from what is stored. Pure; escaping is the templates' business.

use samovar_wire::Timestamp;
use serde_json::Value;

use super::words::{Language, Words};
use crate::db::entity::{device, order};
use crate::ingest::entity::device_event;
use crate::ingest::live::{Detailed, Live};
use crate::orders::compared::Compared;

/// One device in a list.
pub(super) struct DeviceRow {
    pub(super) id: String,
    pub(super) class: String,
    pub(super) presence: Presence,
    pub(super) version: String,
    pub(super) origin: String,
    pub(super) rule: String,
    pub(super) orders: Vec<Count>,
    pub(super) conditions: Vec<Tag>,
}

/// Whether a device is there, and since when.
pub(super) struct Presence {
    /// `on`, `off` or `none`: picks the colour.
    pub(super) kind: &'static str,
    pub(super) word: &'static str,
    pub(super) since: String,
}

/// A number with its name.
pub(super) struct Count {
    pub(super) name: &'static str,
    /// Picks the colour.
    pub(super) kind: &'static str,
    pub(super) number: String,
}

/// A condition's name, coloured by how much it matters.
pub(super) struct Tag {
    pub(super) name: String,
    pub(super) severity: &'static str,
}

/// A condition with its explanation.
pub(super) struct ConditionRow {
    pub(super) tag: Tag,
    pub(super) text: &'static str,
    pub(super) detail: String,
    pub(super) since: String,
}

/// An origin as a device sees it.
pub(super) struct OriginRow {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) health: &'static str,
    pub(super) since: String,
    pub(super) last_error: String,
}

/// A name and a value in a list of facts.
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) value: String,
    /// Picks the colour; mostly empty.
    pub(super) kind: &'static str,
}

/// An order that the intake has.
pub(super) struct OrderRow {
    pub(super) number: String,
    pub(super) device: String,
    pub(super) seq: i64,
    pub(super) udl: String,
    pub(super) origin: String,
    pub(super) accepted_at: String,
    pub(super) received_at: String,
}

/// An event of a device.
pub(super) struct EventRow {
    pub(super) at: String,
    pub(super) kind: String,
    pub(super) data: String,
}

/// In which language, and how long ago things are measured from.
#[derive(Clone, Copy)]
pub(super) struct Lens {
    pub(super) language: Language,
    pub(super) now: Timestamp,
}

impl Lens {
    fn words(self) -> &'static Words {
        self.language.words()
    }

    /// A point in time as a distance; nothing for what is not a time.
    pub(super) fn ago(self, text: Option<&str>) -> String {
        let Some(at) = text.and_then(|text| text.parse::<Timestamp>().ok()) else { return String::new() };
        let words = self.words();
        let (number, form) = match self.now.since(at).as_secs() {
            seconds @ 0..=4 => (seconds, words.just_now),
            seconds @ 5..=59 => (seconds, words.seconds_ago),
            seconds @ 60..=3599 => (seconds / 60, words.minutes_ago),
            seconds @ 3600..=86_399 => (seconds / 3600, words.hours_ago),
            seconds => (seconds / 86_400, words.days_ago),
        };
        form.replacen("{}", &number.to_string(), 1)
    }

    pub(super) fn device(self, row: &device::Model, found: Option<&Detailed>) -> DeviceRow {
        let empty = Live::default();
        let live = found.map_or(&empty, |found| &found.live);
        DeviceRow {
            id: row.id.clone(),
            class: row.class.clone(),
            presence: self.presence(live),
            version: or_dash(live.version.as_deref()),
            origin: or_dash(live.origin_name()),
            rule: text(&live.origin, "rule"),
            orders: self.orders(live, &["pending", "held", "quarantined", "settled"]),
            conditions: live.condition_names().map(|(name, severity)| tag(name, severity)).collect(),
        }
    }

    pub(super) fn presence(self, live: &Live) -> Presence {
        let words = self.words();
        if live.revoked {
            return Presence { kind: "off", word: words.revoked, since: String::new() };
        }
        let (kind, word) = match (&live.last_seen, live.online) {
            (None, _) => ("none", words.never_seen),
            (Some(_), true) => ("on", words.online),
            (Some(_), false) => ("off", words.offline),
        };
        Presence { kind, word, since: self.ago(live.since.as_deref()) }
    }

    /// Counts of orders by state, as the device reports them.
    pub(super) fn orders(self, live: &Live, states: &[&str]) -> Vec<Count> {
        let words = self.words();
        let named = |state: &str| match state {
            "accepted" => (words.accepted, ""),
            "pending" => (words.pending, "warning"),
            "held" => (words.held, "warning"),
            "quarantined" => (words.quarantined, "critical"),
            "settled" => (words.settled, "good"),
            _ => (words.discarded, ""),
        };
        let count = |state: &&str| {
            let (name, kind) = named(state);
            let number = live.orders_in(state);
            let kind = if number.unwrap_or(0) == 0 { "" } else { kind };
            Count { name, kind, number: number.map_or_else(|| "–".to_owned(), |number| number.to_string()) }
        };
        states.iter().map(count).collect()
    }

    pub(super) fn conditions(self, live: &Live) -> Vec<ConditionRow> {
        let list = live.conditions.as_array().into_iter().flatten();
        list.filter_map(|condition| {
            let name = condition.get("name")?.as_str()?;
            Some(ConditionRow {
                tag: tag(name, &text(condition, "severity")),
                text: self.language.condition(name).unwrap_or_default(),
                detail: text(condition, "detail"),
                since: self.ago(condition.get("since").and_then(Value::as_str)),
            })
        })
        .collect()
    }

    pub(super) fn origins(self, state: &Value) -> Vec<OriginRow> {
        let words = self.words();
        let list = state.get("origins").and_then(Value::as_array).into_iter().flatten();
        list.map(|origin| {
            let (kind, health) = match text(origin, "health").as_str() {
                "up" => ("on", words.health_up),
                "down" => ("off", words.health_down),
                _ => ("none", words.unknown),
            };
            OriginRow {
                name: text(origin, "origin"),
                kind,
                health,
                since: self.ago(origin.get("since").and_then(Value::as_str)),
                last_error: text(origin, "last_error"),
            }
        })
        .collect()
    }

    /// What is known of a device in single facts. `in_force` is the route table that it should have.
    pub(super) fn facts(
        self,
        found: &Detailed,
        in_force: Option<i64>,
        certificate: Option<i64>,
        compared: Option<&Compared>,
    ) -> Vec<Fact> {
        let (words, live) = (self.words(), &found.live);
        let line = match live.line.as_str() {
            // What it said before it fell silent says nothing of now.
            _ if !live.online => (words.unknown, ""),
            "up" => (words.line_up, "good"),
            "down" => (words.line_down, "critical"),
            _ => (words.unknown, ""),
        };
        let certificate = certificate.map(|end| Timestamp::from_millis(end).to_string());
        let domain = text(&live.origin, "domain");
        [
            (words.origin, or_dash(live.origin_name()), ""),
            (words.rule, or_dash(live.origin.get("rule").and_then(Value::as_str)), ""),
            (words.domain, or_dash(Some(&domain)), ""),
            (words.line, line.0.to_owned(), line.1),
            table(words, live.route_table, in_force),
            revision(words, live.config_revision, live.desired_revision),
            (words.version, or_dash(live.version.as_deref()), ""),
            (words.run, live.epoch.map_or_else(|| "–".to_owned(), |epoch| epoch.to_string()), ""),
            (
                words.started,
                or_dash(Some(&self.ago(found.state.get("started_at").and_then(Value::as_str)))),
                "",
            ),
            (words.last_seen, or_dash(Some(&self.ago(live.last_seen.as_deref()))), ""),
            self.last_match(compared),
            (words.certificate_ends, or_dash(certificate.as_deref().map(minute).as_deref()), ""),
        ]
        .map(|(name, value, kind)| Fact { name, value, kind })
        .into()
    }
}

impl Lens {
    /// When ledger and intake last agreed, and by how much they differ now.
    fn last_match(self, compared: Option<&Compared>) -> Shown {
        let words = self.words();
        let Some(compared) = compared else { return (words.last_match, words.never_compared.to_owned(), "") };
        let matched = or_dash(Some(&self.ago(compared.last_match_at.as_deref())));
        if compared.differing == 0 {
            return (words.last_match, matched, "good");
        }
        let found = words.differs.replacen("{}", &compared.missing.to_string(), 1).replacen(
            "{}",
            &compared.unknown.to_string(),
            1,
        );
        (words.last_match, format!("{matched} · {}: {found}", self.ago(Some(&compared.last_at))), "warning")
    }
}

type Shown = (&'static str, String, &'static str);

fn table(words: &'static Words, has: Option<i64>, in_force: Option<i64>) -> Shown {
    let has_text = has.map_or_else(|| "–".to_owned(), |version| version.to_string());
    match in_force {
        Some(in_force) if has != Some(in_force) => {
            (words.route_table, format!("{has_text} ({}: {in_force})", words.in_force), "warning")
        }
        _ => (words.route_table, has_text, ""),
    }
}

fn revision(words: &'static Words, applied: Option<i64>, desired: Option<i64>) -> Shown {
    let shown = |number: Option<i64>| number.map_or_else(|| "–".to_owned(), |number| number.to_string());
    if desired.is_some() && applied < desired {
        let value = format!("{} {} ({}: {})", words.revision, shown(desired), words.applied, shown(applied));
        return (words.desired, value, "warning");
    }
    (words.desired, format!("{} {}", words.revision, shown(applied)), "")
}

fn tag(name: &str, severity: &str) -> Tag {
    let severity = match severity {
        "critical" => "critical",
        "info" => "info",
        _ => "warning",
    };
    Tag { name: name.to_owned(), severity }
}

fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("–").to_owned()
}

/// A point in time to the second, for people: `2026-11-20 08:15:00`.
pub(super) fn second(text: &str) -> String {
    text.get(..19).map_or_else(|| text.to_owned(), |text| text.replacen('T', " ", 1))
}

/// A point in time to the minute.
pub(super) fn minute(text: &str) -> String {
    text.get(..16).map_or_else(|| text.to_owned(), |text| text.replacen('T', " ", 1))
}

/// An order for a table.
pub(super) fn order(row: order::Model) -> OrderRow {
    OrderRow {
        number: row.order_no.unwrap_or(row.key),
        device: row.device,
        seq: row.seq,
        udl: row.udl,
        origin: row.origin,
        accepted_at: second(&row.accepted_at),
        received_at: second(&Timestamp::from_millis(row.received_at).to_string()),
    }
}

/// An event for a table.
pub(super) fn event(row: device_event::Model) -> EventRow {
    let data = if row.data == "null" { String::new() } else { row.data.chars().take(400).collect() };
    EventRow { at: second(&Timestamp::from_millis(row.at).to_string()), kind: row.kind, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lens(language: Language) -> Lens {
        Lens { language, now: Timestamp::from_millis(1_000_000_000) }
    }

    #[test]
    fn a_time_is_shown_as_a_distance_in_the_readers_language() {
        let at = |seconds: i64| Timestamp::from_millis(1_000_000_000 - seconds * 1000).to_string();
        let (en, zh) = (lens(Language::English), lens(Language::Chinese));
        assert_eq!(en.ago(Some(&at(1))), "just now");
        assert_eq!(en.ago(Some(&at(75))), "1 min ago");
        assert_eq!(zh.ago(Some(&at(7200))), "2 小时前");
        assert_eq!(en.ago(Some(&at(200_000))), "2 d ago");
        assert_eq!(en.ago(Some("nonsense")), "");
        assert_eq!(en.ago(None), "");
    }

    #[test]
    fn a_device_that_says_strange_things_is_shown_as_far_as_it_can_be() {
        let live = Live {
            conditions: json!([{ "name": "from-the-future", "severity": "apocalyptic" }, 7, { "severity": "info" }]),
            orders: json!({ "pending": "many", "settled": 3 }),
            ..Live::default()
        };
        let lens = lens(Language::English);
        let conditions = lens.conditions(&live);
        assert_eq!((conditions.len(), conditions[0].tag.severity), (1, "warning"));
        let numbers: Vec<_> =
            lens.orders(&live, &["pending", "settled"]).into_iter().map(|c| c.number).collect();
        assert_eq!(numbers, ["–", "3"]);
        assert!(lens.origins(&json!({ "origins": "none" })).is_empty());
    }

    #[test]
    fn a_ledger_that_differs_stands_out_and_says_by_how_much() {
        let mut compared = Compared {
            ledger: "l".into(),
            last_at: Timestamp::from_millis(999_940_000).to_string(),
            last_match_at: Some(Timestamp::from_millis(996_400_000).to_string()),
            ranges: 3,
            differing: 0,
            missing: 0,
            unknown: 0,
        };
        let (en, zh) = (lens(Language::English), lens(Language::Chinese));
        assert_eq!(en.last_match(None), ("Last match of orders", "never compared".to_owned(), ""));
        assert_eq!(en.last_match(Some(&compared)).1, "1 h ago");
        (compared.differing, compared.missing, compared.unknown) = (1, 2, 3);
        assert_eq!(
            en.last_match(Some(&compared)).1,
            "1 h ago · 1 min ago: 2 missing here, 3 unknown to the device"
        );
        assert_eq!(zh.last_match(Some(&compared)).1, "1 小时前 · 1 分钟前: 本站缺 2 单，设备缺 3 单");
        assert_eq!(en.last_match(Some(&compared)).2, "warning");
    }

    #[test]
    fn a_table_or_revision_that_is_behind_stands_out() {
        let words = Language::English.words();
        assert_eq!(table(words, Some(3), Some(4)).2, "warning");
        assert_eq!(table(words, Some(4), Some(4)).2, "");
        assert_eq!(revision(words, Some(1), Some(2)).2, "warning");
        assert_eq!(revision(words, Some(2), Some(2)).2, "");
    }
}
