//! Texts with places for an order's own values, such as `/api/tickets/{order_no}`. Pure.
//!
//! A template is checked when the configuration is read; filling one in cannot fail. Values are percent-encoded, so
//! that no order can add a segment, a query or a second header.

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::str::FromStr;

/// A value that an order, or its sender, puts into a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The order's own UUID.
    Id,
    /// Its idempotency key.
    Key,
    /// The till's number.
    OrderNo,
    /// The country that routes it.
    Udl,
    /// The store.
    Store,
    /// The device.
    Device,
    /// Its place in the ledger.
    Seq,
    /// What kind of order it is; `sale` when it does not say.
    Kind,
}

impl Field {
    /// All of them with their names.
    pub const ALL: [(&'static str, Self); 8] = [
        ("id", Self::Id),
        ("key", Self::Key),
        ("order_no", Self::OrderNo),
        ("udl", Self::Udl),
        ("store", Self::Store),
        ("device", Self::Device),
        ("seq", Self::Seq),
        ("kind", Self::Kind),
    ];
}

/// A text that cannot be used as a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No value has this name.
    #[error(
        "{{{0}}} is not one of {{id}} {{key}} {{order_no}} {{udl}} {{store}} {{device}} {{seq}} {{kind}}"
    )]
    Unknown(String),
    /// A brace without its partner.
    #[error("a brace has no partner: placeholders are written {{name}}")]
    Brace,
    /// A path must begin at the root.
    #[error("a path begins with /")]
    NotAPath,
    /// A character that may not stand there as it is.
    #[error("`{0}` may not stand here as it is")]
    Character(char),
    /// A path must not climb.
    #[error("a path has no `.`, `..` or empty segment of its own, and begins with one / only")]
    Segment,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Place(Field),
}

fn parse(source: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find(['{', '}']) {
        let (text, tail) = rest.split_at(at);
        let inside = tail.strip_prefix('{').ok_or(TemplateError::Brace)?;
        let end = inside.find(['{', '}']).ok_or(TemplateError::Brace)?;
        let (name, tail) = inside.split_at(end);
        rest = tail.strip_prefix('}').ok_or(TemplateError::Brace)?;
        let (_, field) = Field::ALL
            .into_iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| TemplateError::Unknown(name.to_owned()))?;
        pieces.extend([Piece::Text(text.to_owned()), Piece::Place(field)]);
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Ok(pieces)
}

fn texts(pieces: &[Piece]) -> impl Iterator<Item = char> {
    let texts = pieces.iter().filter_map(|piece| match piece {
        Piece::Text(text) => Some(text.chars()),
        Piece::Place(_) => None,
    });
    texts.flatten()
}

fn fill(pieces: &[Piece], value: &dyn Fn(Field) -> String, encode: fn(&str) -> String) -> String {
    pieces.iter().fold(String::new(), |mut filled, piece| {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Place(field) => filled.push_str(&encode(&value(*field))),
        }
        filled
    })
}

/// The path of a request, with a query if need be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathTemplate {
    source: String,
    pieces: Vec<Piece>,
}

impl PathTemplate {
    /// The path for one order; always begins with `/`, and means the same after any URL parser.
    #[must_use]
    pub fn fill(&self, value: &dyn Fn(Field) -> String) -> String {
        let filled = fill(&self.pieces, value, |text| percent_encode(text, is_unreserved));
        let (path, query) = filled.split_at(filled.find('?').unwrap_or(filled.len()));
        // A segment of dots alone climbs, also when it is percent-encoded: only encoding it twice keeps it a name.
        let segments = path.split('/').map(|segment| match segment {
            "." | ".." => segment.replace('.', "%252E"),
            _ => segment.to_owned(),
        });
        segments.collect::<Vec<_>>().join("/") + query
    }
}

impl FromStr for PathTemplate {
    type Err = TemplateError;

    fn from_str(source: &str) -> Result<Self, TemplateError> {
        let pieces = parse(source)?;
        if !source.starts_with('/') {
            return Err(TemplateError::NotAPath);
        }
        if let Some(wrong) = texts(&pieces).find(|c| !is_path_char(*c)) {
            return Err(TemplateError::Character(wrong));
        }
        let path = source.split('?').next().unwrap_or_default().to_ascii_lowercase().replace("%2e", ".");
        let mut segments = path.split('/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            // The last may be empty: a path may end in a slash.
            if segment == "." || segment == ".." || (segment.is_empty() && segments.peek().is_some()) {
                return Err(TemplateError::Segment);
            }
        }
        // Next to a placeholder an encoded dot would join the value's own dots.
        if source.to_ascii_lowercase().contains("%2e") {
            return Err(TemplateError::Segment);
        }
        Ok(Self { source: source.to_owned(), pieces })
    }
}

/// The value of a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HeaderTemplate {
    source: String,
    pieces: Vec<Piece>,
}

impl HeaderTemplate {
    /// The value for one order; visible ASCII and spaces only.
    #[must_use]
    pub fn fill(&self, value: &dyn Fn(Field) -> String) -> String {
        fill(&self.pieces, value, header_safe)
    }
}

impl FromStr for HeaderTemplate {
    type Err = TemplateError;

    fn from_str(source: &str) -> Result<Self, TemplateError> {
        let pieces = parse(source)?;
        let wrong = texts(&pieces).find(|c| !matches!(c, ' '..='~'));
        match wrong {
            Some(wrong) => Err(TemplateError::Character(wrong)),
            None => Ok(Self { source: source.to_owned(), pieces }),
        }
    }
}

/// A text as a header can carry it. Visible ASCII without `%` stays as it is; anything else is percent-encoded with its
/// `%`, so that two texts never become the same.
#[must_use]
pub fn header_safe(text: &str) -> String {
    percent_encode(text, |byte| matches!(byte, 0x21..=0x7e) && byte != b'%')
}

fn percent_encode(text: &str, keep: fn(u8) -> bool) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if keep(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What RFC 3986 lets stand in a path and a query, less `'`, which URL parsers encode in queries.
fn is_path_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~!$&()*+,;=:@/?%".contains(c)
}

macro_rules! as_text {
    ($($template:ty),*) => { $(
        impl TryFrom<String> for $template {
            type Error = TemplateError;
            fn try_from(source: String) -> Result<Self, TemplateError> {
                source.parse()
            }
        }
        impl From<$template> for String {
            fn from(template: $template) -> Self {
                template.source
            }
        }
    )* };
}
as_text!(PathTemplate, HeaderTemplate);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(source: &str) -> Result<PathTemplate, TemplateError> {
        source.parse()
    }

    #[test]
    fn values_stand_in_their_places_percent_encoded() {
        let template = path("/api/{store}/tickets/{order_no}?k={key}").unwrap();
        let filled = template.fill(&|field| {
            match field {
                Field::Store => "US-0001",
                Field::OrderNo => "A/1?茶",
                _ => "k&=#",
            }
            .to_owned()
        });
        assert_eq!(filled, "/api/US-0001/tickets/A%2F1%3F%E8%8C%B6?k=k%26%3D%23");
    }

    #[test]
    fn an_unknown_placeholder_is_named() {
        let error = path("/api/{order}").unwrap_err().to_string();
        assert!(error.contains("{order} is not one of") && error.contains("{order_no}"), "{error}");
        for broken in ["/a/{id", "/a/id}", "/a/{{id}}", "/a/{}"] {
            assert!(path(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_path_that_is_none_or_climbs_is_refused() {
        for wrong in [
            "",
            "api",
            "//host/x",
            "/a//b",
            "/a/../b",
            "/a/%2E%2e/b",
            "/a b",
            "/a#b",
            "/茶",
            "/a\r\nb",
            "/%2e{id}",
        ] {
            assert!(path(wrong).is_err(), "{wrong:?}");
        }
        assert!(path("/").is_ok() && path("/orders/").is_ok());
    }

    #[test]
    fn texts_that_differ_differ_in_a_header_too() {
        let all = ["茶", "%E8%8C%B6", "50%", "50%25", " a", "a", "a b", "a\r\nX: y"].map(header_safe);
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
        assert_eq!(header_safe("US-0001/7"), "US-0001/7");
    }

    proptest! {
        #[test]
        fn a_filled_path_is_what_a_url_parser_makes_of_it(
            template in "(/[a-z{}.%?_]{0,8}){1,4}|/\\PC{0,12}|/[a-z.]{0,2}\\{order_no\\}[a-z.]{0,2}(/\\{key\\})?",
            value in "\\PC{0,24}|\\.{1,3}|[./%]{0,6}",
        ) {
            if let Ok(template) = path(&template) {
                let filled = template.fill(&|_| value.clone());
                let url = reqwest::Url::parse(&format!("http://host.example{filled}")).unwrap();
                let parsed = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
                prop_assert_eq!(url.host_str(), Some("host.example"));
                prop_assert_eq!(url.fragment(), None);
                prop_assert_eq!(parsed, filled);
            }
        }

        #[test]
        fn a_filled_header_can_always_be_sent(template in "\\PC{0,24}|X \\{key\\}", value in any::<String>()) {
            if let Ok(template) = template.parse::<HeaderTemplate>() {
                prop_assert!(http::HeaderValue::from_str(&template.fill(&|_| value.clone())).is_ok());
            }
        }
    }
}
