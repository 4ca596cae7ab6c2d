//! Reads the answer to one order, of an origin that has an API of its own. Pure.
//!
//! Nobody echoes a batch's id here, so an answer settles, refuses or quarantines only if its status is one that means
//! so and it is told from a portal's page: JSON, a header, or both, as the configuration asks. Everything else is read
//! as the contract reads the answer to a batch, except that there is nothing to bisect: the order stands alone.

use super::{BatchOutcome, OrderVerdict, RawAnswer, not_the_origin, of_the_origin, short, words};
use crate::config::{Meaning, SingleSection};
use serde_json::{Map, Value};

/// The answer to one order.
#[derive(Debug, Clone)]
pub struct SingleAnswer<'a> {
    /// Status, wait and body.
    pub raw: RawAnswer<'a>,
    /// The value of the header that marks the origin's answers, when one is expected and there.
    pub mark: Option<&'a str>,
}

/// Reads it.
///
/// # Errors
/// What concerns the origin as a whole, and not this order.
pub fn read_single(rules: &SingleSection, answer: &SingleAnswer<'_>) -> Result<OrderVerdict, BatchOutcome> {
    let raw = &answer.raw;
    let code = match (rules.meaning(raw.status), raw.status) {
        (Some(Meaning::Settled), _) => None,
        (Some(Meaning::Rejected), _) | (None, 400 | 422) => Some("rejected"),
        (None, 413) => Some("too-large"),
        // Known already, other content, or still being recorded: only this order can be concerned, and asking again
        // is right for all three.
        (None, 409) => return Ok(OrderVerdict::Retry(None, words(raw))),
        _ => return Err(of_the_origin(raw)),
    };
    if let Some(missing) = not_proven(rules, answer) {
        return Err(not_the_origin(raw, missing));
    }
    Ok(match code {
        None => OrderVerdict::Settled,
        Some(code) => OrderVerdict::Refused {
            code: code_of(raw.body).unwrap_or_else(|| code.into()),
            detail: words(raw),
            conflict: false,
        },
    })
}

/// Why an answer may be somebody else's.
fn not_proven(rules: &SingleSection, answer: &SingleAnswer<'_>) -> Option<&'static str> {
    if let Some((_, wanted)) = rules.mark() {
        match (answer.mark, wanted) {
            (None, _) => return Some("the header of expect_header is missing"),
            (Some(found), Some(wanted)) if found != wanted => {
                return Some("the header of expect_header has another value");
            }
            _ => {}
        }
    }
    let is_json = || {
        let starts = matches!(answer.raw.body.trim_ascii_start().first(), Some(b'{' | b'['));
        starts && serde_json::from_slice::<serde::de::IgnoredAny>(answer.raw.body).is_ok()
    };
    (rules.expect_json && !is_json()).then_some("the answer is not a JSON object or array")
}

/// The field `code` of an answer, if it is a word.
fn code_of(body: &[u8]) -> Option<String> {
    let document: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let code = document.get("code")?.as_str()?;
    let is_word = !code.is_empty() && code.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    is_word.then(|| short(code))
}

/// Puts the answers to orders that were sent one by one together.
#[must_use]
pub fn combine(answers: Vec<Result<OrderVerdict, BatchOutcome>>) -> BatchOutcome {
    let mut others: Option<BatchOutcome> = None;
    let mut verdicts = Vec::with_capacity(answers.len());
    for answer in answers {
        match answer {
            Ok(verdict) => verdicts.push(Some(verdict)),
            Err(outcome) => {
                verdicts.push(None);
                others = Some(match others {
                    Some(before) => weightier(before, outcome),
                    None => outcome,
                });
            }
        }
    }
    match others {
        None => BatchOutcome::Answered(verdicts.into_iter().flatten().collect()),
        Some(others) if verdicts.iter().all(Option::is_none) => others,
        Some(others) => BatchOutcome::Partly { verdicts, others: Box::new(others) },
    }
}

/// Of two things that concern the origin, the longer wait counts, and a wait that was asked for before anything else.
fn weightier(first: BatchOutcome, second: BatchOutcome) -> BatchOutcome {
    let wait = |outcome: &BatchOutcome| match outcome {
        BatchOutcome::Busy { retry_after, .. } => Some(retry_after.unwrap_or_default()),
        _ => None,
    };
    if wait(&second) > wait(&first) { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const JSON: &str = r#"{"ticket":7}"#;
    const PORTAL: &str = "<html>Welcome to the Wi-Fi</html>";

    fn rules(toml: &str) -> SingleSection {
        toml::from_str(&format!("path = \"/t/{{order_no}}\"\n{toml}")).unwrap()
    }

    fn answer(rules: &SingleSection, status: u16, body: &str) -> Result<OrderVerdict, BatchOutcome> {
        marked(rules, status, body, None)
    }

    fn marked(
        rules: &SingleSection,
        status: u16,
        body: &str,
        mark: Option<&str>,
    ) -> Result<OrderVerdict, BatchOutcome> {
        let raw = RawAnswer { status, retry_after: Some(Duration::from_secs(7)), body: body.as_bytes() };
        read_single(rules, &SingleAnswer { raw, mark })
    }

    fn is_portal(answer: &Result<OrderVerdict, BatchOutcome>) -> bool {
        matches!(answer, Err(BatchOutcome::NotTheOrigin(_)))
    }

    #[test]
    fn listed_statuses_mean_what_the_lists_say() {
        let rules = rules("settled = [201]\nduplicate = [409]\nrejected = [410]");
        assert_eq!(answer(&rules, 201, JSON), Ok(OrderVerdict::Settled));
        assert_eq!(answer(&rules, 409, JSON), Ok(OrderVerdict::Settled));
        let gone = answer(&rules, 410, r#"{"code":"shop-closed","detail":"no shop 9"}"#);
        let Ok(OrderVerdict::Refused { code, detail, conflict: false }) = gone else { panic!("{gone:?}") };
        assert_eq!((code.as_str(), detail.as_str()), ("shop-closed", "HTTP 410: no shop 9"));
        assert!(is_portal(&answer(&rules, 200, JSON)), "200 is not listed");
    }

    #[test]
    fn what_is_not_listed_has_the_classes_of_the_contract() {
        let rules = rules("");
        for status in [401, 403] {
            assert!(matches!(answer(&rules, status, JSON), Err(BatchOutcome::IdentityRefused(_))));
        }
        for status in [408, 425, 429, 500, 502, 503, 504] {
            let busy = answer(&rules, status, JSON);
            let wait = Some(Duration::from_secs(7));
            assert!(
                matches!(busy, Err(BatchOutcome::Busy { retry_after, failing, .. })
                    if retry_after == wait && failing == (status >= 500)),
                "{status}"
            );
        }
        for status in [202, 204, 206, 301, 302, 307, 402, 404, 405, 410, 415, 418, 511] {
            assert!(is_portal(&answer(&rules, status, JSON)), "{status}");
        }
        for (status, expected) in [(400, "rejected"), (422, "rejected"), (413, "too-large")] {
            let refused = answer(&rules, status, JSON);
            assert!(
                matches!(&refused, Ok(OrderVerdict::Refused { code, .. }) if code == expected),
                "{refused:?}"
            );
        }
        assert!(matches!(answer(&rules, 409, PORTAL), Ok(OrderVerdict::Retry(None, _))));
    }

    #[test]
    fn a_portals_page_neither_settles_nor_quarantines() {
        let lists = rules("settled = [\"2xx\"]\nduplicate = [409]\nrejected = [\"4xx\"]");
        for status in [200, 201, 204, 400, 409, 410, 413, 422] {
            for body in [PORTAL, "", "OK", "{\"cut\":", "7"] {
                assert!(is_portal(&answer(&lists, status, body)), "{status} {body}");
            }
        }
        let header = rules("expect_header = \"X-Shop: tea\"");
        assert!(is_portal(&answer(&header, 200, JSON)));
        assert!(is_portal(&marked(&header, 200, JSON, Some("coffee"))));
        assert!(is_portal(&marked(&header, 200, PORTAL, Some("tea"))), "both are asked for");
        assert_eq!(marked(&header, 200, JSON, Some("tea")), Ok(OrderVerdict::Settled));
        let header_alone = rules("expect_json = false\nexpect_header = \"X-Shop\"");
        assert_eq!(marked(&header_alone, 200, "", Some("")), Ok(OrderVerdict::Settled));
    }

    #[test]
    fn a_run_settles_what_was_answered_and_keeps_the_longest_wait_for_the_rest() {
        let busy = |seconds| {
            Err(BatchOutcome::Busy {
                failing: false,
                detail: String::new(),
                retry_after: Some(Duration::from_secs(seconds)),
            })
        };
        let settled = || Ok(OrderVerdict::Settled);
        let down = || Err(BatchOutcome::Unreachable("cut".into()));
        assert_eq!(
            combine(vec![settled(), settled()]),
            BatchOutcome::Answered(vec![OrderVerdict::Settled; 2])
        );
        assert_eq!(combine(vec![down(), down()]), BatchOutcome::Unreachable("cut".into()));
        let run = combine(vec![settled(), down(), busy(3), busy(9), busy(1)]);
        let BatchOutcome::Partly { verdicts, others } = run else { panic!("{run:?}") };
        assert_eq!(verdicts, [Some(OrderVerdict::Settled), None, None, None, None]);
        assert_eq!(Err(*others), busy(9));
    }
}
