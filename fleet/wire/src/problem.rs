//! Errors as HTTP answers carry them (RFC 9457, `application/problem+json`).

use serde::{Deserialize, Serialize};

/// Media type of a problem document.
pub const CONTENT_TYPE: &str = "application/problem+json";

const PREFIX: &str = "urn:samovar:problem:";

/// One problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable name: `urn:samovar:problem:<slug>`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The same for every problem of this type.
    #[serde(default)]
    pub title: String,
    /// The HTTP status, repeated.
    #[serde(default)]
    pub status: u16,
    /// What was wrong this time and what to do about it.
    #[serde(default)]
    pub detail: String,
}

impl Problem {
    /// Makes a problem from its slug; the title is the slug in plain words.
    #[must_use]
    pub fn new(status: u16, slug: &str, detail: impl Into<String>) -> Self {
        Self { kind: format!("{PREFIX}{slug}"), title: slug.replace('-', " "), status, detail: detail.into() }
    }

    /// The slug at the end of the type; empty when the type is not one of ours.
    #[must_use]
    pub fn slug(&self) -> &str {
        self.kind.strip_prefix(PREFIX).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_stable_type_of_its_slug() {
        let problem = Problem::new(422, "key-reused", "the key is known");
        assert_eq!(problem.kind, "urn:samovar:problem:key-reused");
        assert_eq!(problem.slug(), "key-reused");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:samovar:problem:key-reused");
        assert_eq!(json["status"], 422);
    }
}
