//! The text of a route table, as people edit it. Pure.
//!
//! What nobody changed stays as it was written: the order of the keys, and words that this version does not know. Only a
//! text in one line, as programs write it, is laid out anew, and the stamp replaces four values at the top.

use samovar_wire::Timestamp;
use samovar_wire::encoding::{hex, sha256};
use samovar_wire::route::{Flaw, MAX_TABLE_BYTES, Problem, Table, flaws};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::fmt::Write as _;

use super::sensible;

/// Columns of a laid-out text: what fits stays in one line.
const WIDTH: usize = 110;

/// Levels that are laid out; a table has eight.
const DEEPEST: usize = 32;

/// What the server sets when a table is put forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its version.
    pub version: u64,
    /// From now on.
    pub now: Timestamp,
    /// Until then; `None` leaves what is written.
    pub expires_at: Option<Timestamp>,
}

/// The digest of a text, lower-case hex.
#[must_use]
pub fn digest(text: &str) -> String {
    hex(&sha256(text.as_bytes()))
}

/// Reads a draft and finds everything that is wrong with it: what devices would refuse, and what this server does not
/// publish. `None` when it cannot be read at all.
#[must_use]
pub fn examine(text: &str, environment: &str, highest: u64, now: Timestamp) -> (Option<Table>, Vec<Flaw>) {
    let alone = |path: String, problem| (None, vec![Flaw::new(path, "", problem)]);
    if text.len() > MAX_TABLE_BYTES {
        return alone(String::new(), Problem::TooLarge(text.len()));
    }
    let read = &mut serde_json::Deserializer::from_str(text);
    let table: Table = match serde_path_to_error::deserialize(&mut *read) {
        Ok(table) => table,
        Err(error) => return alone(pointer(error.path()), Problem::Unreadable(error.inner().to_string())),
    };
    if let Err(error) = read.end() {
        return alone(String::new(), Problem::Unreadable(error.to_string()));
    }
    let mut found = Vec::new();
    if table.schema != 1 {
        found.push(Flaw::new("/schema", "the table", Problem::Schema(u64::from(table.schema))));
    }
    if table.environment != environment {
        let (wrong, expected) = (table.environment.clone(), environment.to_owned());
        let problem = Problem::Environment { found: wrong, expected };
        found.push(Flaw::new("/environment", "the table", problem));
    }
    found.extend(flaws(&table));
    found.extend(sensible::flaws(&table, highest, now));
    (Some(table), found)
}

/// A path of the reader as a JSON pointer.
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold(String::new(), |mut pointer, segment| {
        // Writing to a String cannot fail.
        let _ = match segment {
            Segment::Seq { index } => write!(pointer, "/{index}"),
            Segment::Map { key } => write!(pointer, "/{}", key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { .. } | Segment::Unknown => Ok(()),
        };
        pointer
    })
}

/// Sets version and dates; everything else stays as it is written. `None` when the text is not a JSON object.
#[must_use]
pub fn stamped(text: &str, stamp: Stamp) -> Option<String> {
    let Node::Object(mut members) = Node::read(text)? else { return None };
    let time = |at: Timestamp| format!("\"{at}\"");
    let values = [
        ("version", Some(stamp.version.to_string())),
        ("issued_at", Some(time(stamp.now))),
        ("not_before", Some(time(stamp.now))),
        ("expires_at", stamp.expires_at.map(time)),
    ];
    for (name, value) in values.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        let raw = Node::Leaf(value);
        match members.iter_mut().find(|(found, _)| found == name) {
            Some((_, there)) => *there = raw,
            None => members.push((name.to_owned(), raw)),
        }
    }
    Some(Node::Object(members).laid_out())
}

/// A text for editing: laid out when it is written in one line.
#[must_use]
pub fn readable(text: &str) -> String {
    if text.trim().contains('\n') {
        return text.to_owned();
    }
    Node::read(text).map_or_else(|| text.to_owned(), |node| node.laid_out())
}

/// JSON that keeps the order of its keys and the writing of its values.
enum Node {
    Object(Vec<(String, Self)>),
    List(Vec<Self>),
    Leaf(String),
}

impl Node {
    fn read(text: &str) -> Option<Self> {
        let whole: &RawValue = serde_json::from_str(text).ok()?;
        Self::inside(whole.get(), 0)
    }

    /// What is nested deeper than any table stays as it is written.
    fn inside(text: &str, depth: usize) -> Option<Self> {
        match text.as_bytes().first() {
            Some(b'{') if depth < DEEPEST => {
                let members: Members<'_> = serde_json::from_str(text).ok()?;
                let read =
                    |(name, value): (String, &RawValue)| Some((name, Self::inside(value.get(), depth + 1)?));
                Some(Self::Object(members.0.into_iter().map(read).collect::<Option<_>>()?))
            }
            Some(b'[') if depth < DEEPEST => {
                let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                let items = items.into_iter().map(|item| Self::inside(item.get(), depth + 1));
                Some(Self::List(items.collect::<Option<_>>()?))
            }
            _ => Some(Self::Leaf(text.to_owned())),
        }
    }

    fn laid_out(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0, 0);
        out.push('\n');
        out
    }

    /// In one line, as it would be inside another.
    fn short(&self) -> String {
        match self {
            Self::Leaf(text) => text.clone(),
            Self::List(items) if items.is_empty() => "[]".to_owned(),
            Self::Object(members) if members.is_empty() => "{}".to_owned(),
            Self::List(items) => {
                format!("[{}]", items.iter().map(Self::short).collect::<Vec<_>>().join(", "))
            }
            Self::Object(members) => {
                let member = |(name, value): &(String, Self)| format!("{}: {}", quoted(name), value.short());
                format!("{{ {} }}", members.iter().map(member).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// `used` columns of the line are taken. The document itself is always broken into lines.
    fn write(&self, out: &mut String, depth: usize, used: usize) {
        let short = self.short();
        let fits = used + short.chars().count() < WIDTH && depth > 0;
        let (open, close) = match self {
            Self::Leaf(_) => return out.push_str(&short),
            _ if fits => return out.push_str(&short),
            Self::List(_) => ('[', ']'),
            Self::Object(_) => ('{', '}'),
        };
        let inner = (depth + 1) * 2;
        out.push(open);
        match self {
            Self::Object(members) => {
                for (number, (name, value)) in members.iter().enumerate() {
                    let name = quoted(name);
                    begin(out, number, inner);
                    let _ = write!(out, "{name}: ");
                    value.write(out, depth + 1, inner + name.chars().count() + 2);
                }
            }
            Self::List(items) => {
                for (number, item) in items.iter().enumerate() {
                    begin(out, number, inner);
                    item.write(out, depth + 1, inner);
                }
            }
            Self::Leaf(_) => {}
        }
        let _ = write!(out, "\n{:width$}{close}", "", width = depth * 2);
    }
}

fn begin(out: &mut String, number: usize, indent: usize) {
    let comma = if number == 0 { "" } else { "," };
    // Writing to a String cannot fail.
    let _ = write!(out, "{comma}\n{:indent$}", "");
}

fn quoted(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}

/// The members of an object in the order in which they are written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inside;
        impl<'de> Visitor<'de> for Inside {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starter() -> String {
        serde_json::json!({
            "schema": 1, "environment": "prod", "version": 7, "issued_at": "2026-01-01T00:00:00.000Z",
            "not_before": "2026-01-01T00:00:00.000Z", "expires_at": "2027-12-31T00:00:00.000Z",
            "origins": {"apac": {"endpoints": [{"host": "apac.example", "port": 443, "addresses": []}]}},
            "countries": {"JP": {"residency": ["apac"],
                "services": {"orders": {"domains": {"default": "jp.example"}}}}},
            "fallback": {"mode": "nearest", "candidates": ["apac"], "shares": []},
        })
        .to_string()
    }

    const NOW: i64 = 1_770_000_000_000;

    #[test]
    fn a_stamp_changes_four_values_and_keeps_order_numbers_and_unknown_words() {
        let text = "{ \"z\": 1.50, \"version\": 3,\n \"later\": {\"b\":1,\"a\":[ ]}, \"issued_at\": \"x\" }";
        let now = Timestamp::from_millis(NOW);
        let stamp = Stamp { version: 9, now, expires_at: Some(now) };
        let made = stamped(text, stamp).unwrap();
        let places: Vec<_> = [
            "\"z\": 1.50",
            "\"version\": 9",
            "{ \"b\": 1, \"a\": [] }",
            "\"issued_at\"",
            "\"not_before\"",
            "\"expires_at\"",
        ]
        .iter()
        .map(|part| made.find(part).unwrap_or_else(|| panic!("{part} in {made}")))
        .collect();
        assert!(places.is_sorted(), "{made}");
        assert!(stamped("[1]", stamp).is_none() && stamped("{", stamp).is_none());
    }

    #[test]
    fn a_text_in_one_line_is_laid_out_and_says_the_same() {
        let text = readable(&starter());
        assert!(text.lines().count() > 5 && text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let same = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(same(&text), same(&starter()));
        assert_eq!(readable(&text), text, "what is laid out stays as it is");
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert!(readable(&deep).len() >= deep.len());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let now = Timestamp::from_millis(NOW);
        let at = |text: &str| {
            let (table, flaws) = examine(text, "prod", 6, now);
            (
                table.is_some(),
                flaws.iter().map(|flaw| (flaw.path.clone(), flaw.problem.code())).collect::<Vec<_>>(),
            )
        };
        assert_eq!(at(&starter()), (true, vec![]));
        let bad = starter().replace("\"default\":\"jp.example\"", "\"default\":7");
        let place = "/countries/JP/services/orders/domains/default".to_owned();
        assert_eq!(at(&bad), (false, vec![(place, "unreadable")]));
        let bad = starter().replace("[\"apac\"]", "[\"apac\",\"moon\"]").replace("prod", "lab");
        let (_, found) = at(&bad);
        assert_eq!(found[0], ("/environment".to_owned(), "environment"));
        assert!(found.contains(&("/countries/JP/residency/1".to_owned(), "unknown-origin")));
        assert!(!at("{} x").0);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}", cut in 0..600_usize, with in "[\\[\\]{}\",:0-9a-z]{0,4}") {
            let now = Timestamp::from_millis(NOW);
            let _ = examine(&text, "prod", 1, now);
            let _ = readable(&text);
            let mut table = starter();
            let cut = cut.min(table.len());
            table.replace_range(cut..(cut + 1).min(table.len()), &with);
            let _ = examine(&table, "prod", 1, now);
            let _ = readable(&table);
            let _ = stamped(&table, Stamp { version: 1, now, expires_at: None });
        }
    }
}
