//! `[origin.single]`: how to speak to an origin that has an API of its own. Pure.
//!
//! The rules lean to one side: a status that settles, or that quarantines, must be one that only the origin's own answer
//! to this order can have. What is about the sender or the moment (401, 403, 404, 405, 407, 408, 425, 429, 3xx, 5xx)
//! keeps the meaning of the origin contract and cannot be listed.

use super::template::{HeaderTemplate, PathTemplate};
use http::{HeaderName, HeaderValue};
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Statuses that say something about the sender or the moment, never about an order.
const NOT_ABOUT_AN_ORDER: [u16; 8] = [401, 403, 404, 405, 407, 408, 425, 429];

/// Headers that the agent sets itself.
const OWN_HEADERS: [&str; 10] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "te",
    "traceparent",
    "transfer-encoding",
    "udl",
];

/// `[origin.single]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SingleSection {
    /// How an order is handed over.
    #[serde(default)]
    pub method: SingleMethod,
    /// Where to, behind the base URL.
    pub path: PathTemplate,
    /// Headers besides the agent's own.
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderTemplate>,
    /// Statuses that mean: recorded now.
    #[serde(default = "settled")]
    pub settled: Vec<Status>,
    /// Statuses that mean: recorded before, with the same content.
    #[serde(default)]
    pub duplicate: Vec<Status>,
    /// Statuses that mean: never.
    #[serde(default = "rejected")]
    pub rejected: Vec<Status>,
    /// Whether only an answer that is a JSON object or array is the origin's.
    #[serde(default = "yes")]
    pub expect_json: bool,
    /// A header, or `name: value`, without which an answer is not the origin's.
    #[serde(default)]
    pub expect_header: String,
}

fn settled() -> Vec<Status> {
    vec![Status::Exact(200), Status::Exact(201)]
}

fn rejected() -> Vec<Status> {
    vec![Status::Exact(400), Status::Exact(422)]
}

const fn yes() -> bool {
    true
}

/// How an order is handed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SingleMethod {
    /// As a new thing.
    #[default]
    Post,
    /// Under its own name.
    Put,
}

/// A status, or a whole class of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// One.
    Exact(u16),
    /// All of a hundred, less those that are not about an order.
    Class(u16),
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StatusVisitor)
    }
}

/// Reads a number, or the name of a class.
struct StatusVisitor;

impl Visitor<'_> for StatusVisitor {
    type Value = Status;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a status from 200 to 499, \"2xx\" or \"4xx\"")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Status, E> {
        let status = u16::try_from(number).ok().filter(|status| (200..=499).contains(status));
        status.map(Status::Exact).ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Status, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Status, E> {
        match text {
            "2xx" => Ok(Status::Class(2)),
            "4xx" => Ok(Status::Class(4)),
            other => Err(E::invalid_value(Unexpected::Str(other), &self)),
        }
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Exact(status) => serializer.serialize_u16(*status),
            Self::Class(class) => serializer.collect_str(&format_args!("{class}xx")),
        }
    }
}

/// What a listed status means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The origin has the order.
    Settled,
    /// It will never take it.
    Rejected,
}

impl SingleSection {
    /// What a status means by the lists; a single status goes before its class.
    #[must_use]
    pub fn meaning(&self, status: u16) -> Option<Meaning> {
        if NOT_ABOUT_AN_ORDER.contains(&status) {
            return None;
        }
        let lists = [
            (&self.settled, Meaning::Settled),
            (&self.duplicate, Meaning::Settled),
            (&self.rejected, Meaning::Rejected),
        ];
        let find =
            |wanted| lists.iter().find(|(list, _)| list.contains(&wanted)).map(|(_, meaning)| *meaning);
        find(Status::Exact(status)).or_else(|| find(Status::Class(status / 100)))
    }

    /// The header that marks the origin's answers, with the value it must have if one is given.
    #[must_use]
    pub fn mark(&self) -> Option<(&str, Option<&str>)> {
        let (name, value) = match self.expect_header.split_once(':') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (self.expect_header.trim(), None),
        };
        (!name.is_empty()).then_some((name, value))
    }

    /// What is wrong, if anything. `over_tls` is whether a certificate proves who answers; `token` whether the agent
    /// sends one.
    pub(super) fn check(&self, over_tls: bool, token: bool) -> Result<(), String> {
        self.lists()?;
        for name in self.headers.keys() {
            let known = HeaderName::from_str(name).map_err(|_| format!("`{name}` is not a header's name"))?;
            let own = OWN_HEADERS.contains(&known.as_str())
                || known.as_str().starts_with("samovar-")
                || (token && known == http::header::AUTHORIZATION);
            if own {
                return Err(format!("the header `{name}` is set by the agent itself"));
            }
        }
        match self.mark() {
            Some((name, value)) => {
                let value = value.unwrap_or_default();
                if HeaderName::from_str(name).is_err() || HeaderValue::from_str(value).is_err() {
                    return Err(format!("expect_header: `{}` is not a header", self.expect_header));
                }
            }
            None if !self.expect_json && !over_tls => {
                return Err(
                    "with expect_json = false give expect_header: without TLS nothing else tells the \
                            origin's answer from a portal's page"
                        .into(),
                );
            }
            None => {}
        }
        Ok(())
    }

    fn lists(&self) -> Result<(), String> {
        let lists = [
            ("settled", &self.settled, &[2][..]),
            ("duplicate", &self.duplicate, &[2, 4][..]),
            ("rejected", &self.rejected, &[4][..]),
        ];
        let mut seen: Vec<(Status, &str)> = Vec::new();
        for (name, list, classes) in lists {
            for status in list {
                let (class, text) = match status {
                    Status::Exact(status) if NOT_ABOUT_AN_ORDER.contains(status) => {
                        return Err(format!(
                            "{name}: {status} says nothing about an order and cannot be listed"
                        ));
                    }
                    Status::Exact(status) => (status / 100, status.to_string()),
                    Status::Class(class) => (*class, format!("{class}xx")),
                };
                if !classes.contains(&class) {
                    return Err(format!("{name}: {text} cannot mean that"));
                }
                if let Some((_, other)) = seen.iter().find(|(listed, _)| listed == status) {
                    return Err(format!("{text} stands in {other} and in {name}"));
                }
                seen.push((*status, name));
            }
        }
        if self.settled.is_empty() {
            return Err("settled: at least one status must mean that an order was recorded".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(toml: &str) -> Result<SingleSection, String> {
        let section: SingleSection =
            toml::from_str(&format!("path = \"/x\"\n{toml}")).map_err(|error| error.to_string())?;
        section.check(false, false).map(|()| section)
    }

    #[test]
    fn statuses_are_read_one_by_one_and_by_class() {
        let single = section("settled = [\"2xx\"]\nduplicate = [409]\nrejected = [\"4xx\"]").unwrap();
        assert_eq!(single.meaning(204), Some(Meaning::Settled));
        assert_eq!(single.meaning(409), Some(Meaning::Settled));
        assert_eq!(single.meaning(410), Some(Meaning::Rejected));
        for status in [401, 403, 404, 405, 408, 425, 429, 302, 500, 503] {
            assert_eq!(single.meaning(status), None, "{status}");
        }
    }

    #[test]
    fn by_default_only_200_and_201_settle_and_409_means_nothing() {
        let single = section("").unwrap();
        for (status, meaning) in [
            (200, Some(Meaning::Settled)),
            (201, Some(Meaning::Settled)),
            (202, None),
            (204, None),
            (206, None),
            (409, None),
            (400, Some(Meaning::Rejected)),
            (422, Some(Meaning::Rejected)),
        ] {
            assert_eq!(single.meaning(status), meaning, "{status}");
        }
    }

    #[test]
    fn lists_that_would_settle_or_quarantine_by_mistake_are_refused() {
        for (toml, word) in [
            ("rejected = [401]", "401"),
            ("rejected = [404]", "404"),
            ("settled = [302]", "302"),
            ("settled = [500]", "500"),
            ("settled = [409]", "409"),
            ("settled = [\"5xx\"]", "5xx"),
            ("settled = []", "settled"),
            ("rejected = [200]", "200"),
            ("duplicate = [200]", "200 stands in settled and in duplicate"),
            ("duplicate = [422]", "422 stands in duplicate and in rejected"),
            ("method = \"DELETE\"", "DELETE"),
            ("answers = [200]", "answers"),
            ("settled = [2.5]", "a status from 200 to 499"),
            ("settled = [true]", "a status from 200 to 499"),
            ("settled = [-1]", "a status from 200 to 499"),
        ] {
            let error = section(toml).unwrap_err();
            assert!(error.contains(word), "{toml}: {error}");
        }
    }

    #[test]
    fn the_agents_own_headers_cannot_be_given() {
        for name in ["Content-Type", "idempotency-key", "Samovar-Device", "UDL", "Host", "not a name"] {
            assert!(section(&format!("headers = {{ \"{name}\" = \"x\" }}")).is_err(), "{name}");
        }
        let single = section("headers = { Authorization = \"Key {store}\" }").unwrap();
        assert!(single.check(false, true).unwrap_err().contains("Authorization"));
    }

    #[test]
    fn something_must_tell_the_origin_from_a_portal() {
        assert!(section("expect_json = false").unwrap_err().contains("expect_header"));
        assert!(section("expect_json = false\nexpect_header = \"X-Shop: tea\"").is_ok());
        assert!(section("expect_header = \"a b\"").is_err());
        let open: SingleSection = toml::from_str("path = \"/x\"\nexpect_json = false").unwrap();
        assert!(open.check(true, false).is_ok());
    }
}
