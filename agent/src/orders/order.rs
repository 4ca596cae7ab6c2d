//! The order as the till hands it over: an opaque JSON object with a few envelope fields.
//!
//! Parsed once, here. The body is kept as the bytes that came, less the white space around them; nothing downstream
//! parses or re-serialises it.

use samovar_wire::encoding::sha256;
use samovar_wire::orders::{MAX_BODY_BYTES, MAX_KEY_BYTES};
use samovar_wire::{Country, Timestamp};
use serde::Deserialize;
use serde_json::Value;

/// An order that may be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Idempotency key, unique per device for 180 days.
    pub key: String,
    /// The till's own number.
    pub order_no: String,
    /// The country that routes it.
    pub udl: Country,
    /// The person it concerns.
    pub user: Option<String>,
    /// `sale` when the till does not say.
    pub kind: String,
    /// Order number of an order that must be settled first.
    pub depends_on: Option<String>,
    /// The document.
    pub body: Vec<u8>,
    /// SHA-256 of `body`.
    pub sha256: [u8; 32],
}

/// Why a body is not an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrder {
    /// Not one JSON object.
    #[error("the body is not one JSON object: {0}")]
    NotJson(String),
    /// Neither a header nor an order number.
    #[error("no key: send the header Idempotency-Key or the field order_no")]
    NoKey,
    /// The header cannot be used.
    #[error(
        "the header Idempotency-Key must stand there once, 1 to {MAX_KEY_BYTES} visible ASCII characters"
    )]
    BadKey,
    /// More than 256 KiB.
    #[error("the body has more than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    /// An envelope field is missing or wrong.
    #[error("field `{field}`: {problem}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong and what to send.
        problem: String,
    },
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    order_no: Value,
    #[serde(default)]
    placed_at: Value,
    #[serde(default)]
    udl: Value,
    #[serde(default)]
    user: Value,
    #[serde(default)]
    kind: Value,
    #[serde(default)]
    depends_on: Value,
}

impl Order {
    /// Reads an order. `key` is the header `Idempotency-Key`; `home` the store's country.
    ///
    /// # Errors
    /// When the contract refuses it; the error names the field.
    pub fn parse(body: &[u8], key: Option<&str>, home: &Country) -> Result<Self, InvalidOrder> {
        let body = body.trim_ascii();
        if body.len() > MAX_BODY_BYTES {
            return Err(InvalidOrder::TooLarge);
        }
        if body.first() != Some(&b'{') {
            return Err(InvalidOrder::NotJson("it does not begin with {".into()));
        }
        // serde_json does not look inside texts that it skips, and an origin may.
        let text_of_body = std::str::from_utf8(body)
            .map_err(|error| InvalidOrder::NotJson(format!("not UTF-8: {error}")))?;
        let envelope: Envelope = serde_json::from_str(text_of_body).map_err(|error| {
            // A field given twice is JSON, but no order: nobody can say which of the two was meant.
            match error.to_string().strip_prefix("duplicate field") {
                Some(rest) => {
                    InvalidOrder::Field { field: "envelope", problem: format!("given twice:{rest}") }
                }
                None => InvalidOrder::NotJson(error.to_string()),
            }
        })?;
        let order_no = text("order_no", envelope.order_no)?;
        let key = match (key, &order_no) {
            (Some(key), _) => checked_key(key)?,
            (None, Some(order_no)) => order_no.clone(),
            (None, None) => return Err(InvalidOrder::NoKey),
        };
        placed_at(envelope.placed_at)?;
        Ok(Self {
            order_no: order_no.unwrap_or_else(|| key.clone()),
            key,
            udl: routed_udl(envelope.udl, home)?,
            user: text("user", envelope.user)?,
            kind: text("kind", envelope.kind)?.unwrap_or_else(|| "sale".into()),
            depends_on: text("depends_on", envelope.depends_on)?,
            sha256: sha256(body),
            body: body.to_vec(),
        })
    }
}

fn checked_key(key: &str) -> Result<String, InvalidOrder> {
    let key = key.trim();
    let visible = key.bytes().all(|b| (0x21..=0x7e).contains(&b));
    if visible && (1..=MAX_KEY_BYTES).contains(&key.len()) {
        Ok(key.to_owned())
    } else {
        Err(InvalidOrder::BadKey)
    }
}

/// A text of 1 to 128 characters; `null` is as good as absent.
fn text(field: &'static str, value: Value) -> Result<Option<String>, InvalidOrder> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if (1..=MAX_KEY_BYTES).contains(&text.chars().count()) => Ok(Some(text)),
        _ => Err(InvalidOrder::Field {
            field,
            problem: format!("send a text of 1 to {MAX_KEY_BYTES} characters"),
        }),
    }
}

fn placed_at(value: Value) -> Result<(), InvalidOrder> {
    let problem = match value {
        Value::Null => "missing: send the time of the sale, such as 2026-11-20T08:15:00.000Z".to_owned(),
        Value::String(text) => match text.parse::<Timestamp>() {
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        },
        _ => "send a text such as 2026-11-20T08:15:00.000Z".to_owned(),
    };
    Err(InvalidOrder::Field { field: "placed_at", problem })
}

/// The country that routes the order: its UDL, the majority of a list, the store's on a tie or without one.
fn routed_udl(value: Value, home: &Country) -> Result<Country, InvalidOrder> {
    let bad = || InvalidOrder::Field {
        field: "udl",
        problem: "send a country code such as \"JP\", or a list of them".into(),
    };
    let country = |value: Value| match value {
        Value::String(text) => text.parse::<Country>().map_err(|_| bad()),
        _ => Err(bad()),
    };
    match value {
        Value::Null => Ok(home.clone()),
        Value::Array(list) if list.is_empty() => Ok(home.clone()),
        Value::Array(list) => {
            Ok(majority(list.into_iter().map(country).collect::<Result<Vec<_>, _>>()?, home))
        }
        single => country(single),
    }
}

fn majority(mut countries: Vec<Country>, home: &Country) -> Country {
    countries.sort_unstable();
    let mut best: Option<(usize, &Country)> = None;
    let mut tie = false;
    for run in countries.chunk_by(|a, b| a == b) {
        match best {
            Some((count, _)) if run.len() < count => {}
            Some((count, _)) if run.len() == count => tie = true,
            _ => (best, tie) = (Some((run.len(), &run[0])), false),
        }
    }
    match best {
        Some((_, country)) if !tie => country.clone(),
        _ => home.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str, key: Option<&str>) -> Result<Order, InvalidOrder> {
        Order::parse(body.as_bytes(), key, &"US".parse().unwrap())
    }

    fn field_of(body: &str) -> &'static str {
        match parse(body, None) {
            Err(InvalidOrder::Field { field, .. }) => field,
            other => panic!("{body}: {other:?}"),
        }
    }

    const SALE: &str = r#"{"order_no":"A-1","placed_at":"2026-11-20T08:00:00Z"}"#;

    #[test]
    fn the_body_is_kept_byte_for_byte_less_the_white_space_around_it() {
        let order = parse(&format!(" \r\n{SALE}\t\n"), None).unwrap();
        assert_eq!(order.body, SALE.as_bytes());
        assert_eq!(order.sha256, sha256(SALE.as_bytes()));
        assert_eq!((order.key.as_str(), order.kind.as_str(), order.udl.as_str()), ("A-1", "sale", "US"));
    }

    #[test]
    fn the_header_is_the_key_and_stands_in_for_a_missing_number() {
        assert_eq!(parse(SALE, Some("k-9")).unwrap().key, "k-9");
        let order = parse(r#"{"placed_at":"2026-11-20T08:00:00Z"}"#, Some("k-9")).unwrap();
        assert_eq!((order.key.as_str(), order.order_no.as_str()), ("k-9", "k-9"));
        assert_eq!(parse(r#"{"placed_at":"2026-11-20T08:00:00Z"}"#, None), Err(InvalidOrder::NoKey));
        assert_eq!(parse(SALE, Some("")), Err(InvalidOrder::BadKey));
        assert_eq!(parse(SALE, Some("a b")), Err(InvalidOrder::BadKey));
    }

    #[test]
    fn what_is_not_one_json_object_is_refused() {
        for bad in ["", "[]", "tea", "\"tea\"", "{", "{} {}", "\u{feff}{}", "{\"a\":}"] {
            assert!(matches!(parse(bad, Some("k")), Err(InvalidOrder::NotJson(_))), "{bad:?}");
        }
        let invalid_utf8 = Order::parse(b"{\"a\":\"\xff\"}", Some("k"), &"US".parse().unwrap());
        assert!(matches!(invalid_utf8, Err(InvalidOrder::NotJson(_))));
    }

    #[test]
    fn a_wrong_field_is_named() {
        assert_eq!(field_of(r#"{"order_no":1,"placed_at":"2026-11-20T08:00:00Z"}"#), "order_no");
        assert_eq!(field_of(r#"{"order_no":"","placed_at":"2026-11-20T08:00:00Z"}"#), "order_no");
        assert_eq!(field_of(r#"{"order_no":"1"}"#), "placed_at");
        assert_eq!(field_of(r#"{"order_no":"1","placed_at":"today"}"#), "placed_at");
        assert_eq!(field_of(r#"{"order_no":"1","placed_at":"2026-11-20T08:00:00Z","udl":"jp"}"#), "udl");
        assert_eq!(
            field_of(r#"{"order_no":"1","placed_at":"2026-11-20T08:00:00Z","depends_on":[]}"#),
            "depends_on"
        );
        assert_eq!(field_of(r#"{"order_no":"1","order_no":"2"}"#), "envelope");
    }

    #[test]
    fn an_order_of_several_countries_goes_with_the_majority_and_a_tie_stays_home() {
        let udl = |list: &str| {
            parse(&format!(r#"{{"order_no":"1","placed_at":"2026-11-20T08:00:00Z","udl":{list}}}"#), None)
                .unwrap()
                .udl
                .to_string()
        };
        assert_eq!(udl(r#""JP""#), "JP");
        assert_eq!(udl(r#"["JP","SG","JP"]"#), "JP");
        assert_eq!(udl(r#"["JP","SG"]"#), "US");
        assert_eq!(udl("[]"), "US");
        assert_eq!(udl(r#"["SG","SG","JP","JP","MY"]"#), "US");
    }

    #[test]
    fn a_body_over_the_limit_is_refused_by_its_size() {
        let body = format!(r#"{{"order_no":"1","x":"{}"}}"#, "a".repeat(MAX_BODY_BYTES));
        assert_eq!(parse(&body, None), Err(InvalidOrder::TooLarge));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Order::parse(&bytes, None, &"US".parse().unwrap());
        }
    }
}
