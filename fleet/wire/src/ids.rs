//! Identifiers. Parsed once at the edge; inside, a value of these types is always well formed.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An identifier that does not have the shape the contracts ask for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{text}` is not valid: {rule}")]
pub struct InvalidId {
    what: &'static str,
    text: String,
    rule: &'static str,
}

const ID_RULE: &str = "use 1 to 64 of the characters A-Z a-z 0-9 _ -";
const COUNTRY_RULE: &str = "use an ISO 3166-1 alpha-2 code in capitals, such as US";

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn is_country(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident, $rule:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text of the identifier.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                if $check(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidId { what: $what, text, rule: $rule })
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $rule })
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

identifier!(
    /// One machine with one agent; also its MQTT client ID and the common name of its certificate.
    DeviceId, "device", is_id, ID_RULE);
identifier!(
    /// A place with several devices.
    StoreId, "store", is_id, ID_RULE);
identifier!(
    /// One independent site that serves a set of countries.
    OriginId, "origin", is_id, ID_RULE);
identifier!(
    /// A service that devices use, such as `orders`.
    ServiceName, "service", is_id, ID_RULE);
identifier!(
    /// A device class, such as `pos` or `tea-machine`.
    DeviceClass, "class", is_id, ID_RULE);
identifier!(
    /// ISO 3166-1 alpha-2 code of a country; a UDL is one of these.
    Country, "country", is_country, COUNTRY_RULE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_accept_what_the_contract_names_and_nothing_else() {
        assert!("POS-US-0001".parse::<DeviceId>().is_ok());
        let long = "a".repeat(65);
        for bad in ["", "a/b", "a.b", "a b", "ü", "+", "#", long.as_str()] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
        assert!("US".parse::<Country>().is_ok());
        for bad in ["us", "USA", "U", ""] {
            assert!(bad.parse::<Country>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_error_says_what_was_wrong_and_what_to_do() {
        let error = "a/b".parse::<StoreId>().unwrap_err().to_string();
        assert_eq!(error, "store `a/b` is not valid: use 1 to 64 of the characters A-Z a-z 0-9 _ -");
    }
}
