//! Claim codes: `{FLEET}-XXXX-XXXX`, in letters that nobody confuses.

use std::fmt;

use crate::random::{NoRandomness, READABLE, readable};

/// A well-formed claim code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimCode {
    fleet: String,
    secret: String,
}

impl ClaimCode {
    /// Makes a code of a fleet.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate(fleet: &str) -> Result<Self, NoRandomness> {
        Ok(Self { fleet: fleet.to_owned(), secret: readable(8)? })
    }

    /// Reads what a technician typed: case, spaces and missing hyphens are forgiven. `None` when it cannot be a code.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 64 {
            return None;
        }
        let typed: String =
            text.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_uppercase()).collect();
        let (fleet, secret) = typed.split_at_checked(typed.len().checked_sub(8)?)?;
        let well_formed =
            (2..=8).contains(&fleet.len()) && secret.bytes().all(|byte| READABLE.contains(&byte));
        well_formed.then(|| Self { fleet: fleet.to_owned(), secret: secret.to_owned() })
    }

    /// The fleet that made it.
    #[must_use]
    pub fn fleet(&self) -> &str {
        &self.fleet
    }
}

impl fmt::Display for ClaimCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, other) = self.secret.split_at(4);
        write!(formatter, "{}-{one}-{other}", self.fleet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_however_it_was_typed() {
        let code = ClaimCode::parse("USW-7K2M-9QXD").unwrap();
        assert_eq!((code.fleet(), code.to_string().as_str()), ("USW", "USW-7K2M-9QXD"));
        assert_eq!(ClaimCode::parse(" usw 7k2m9qxd "), Some(code));
        let made = ClaimCode::generate("HQ").unwrap();
        assert_eq!(ClaimCode::parse(&made.to_string()), Some(made));
    }

    #[test]
    fn what_cannot_be_a_code_is_none() {
        for bad in ["", "USW", "7K2M-9QXD", "USW-0O1I-LLLL", "é", &"A".repeat(100)] {
            assert_eq!(ClaimCode::parse(bad), None, "{bad}");
        }
    }
}
