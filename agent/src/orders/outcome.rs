//! Reads an origin's answer to a batch. Pure; the classes are those of the contract. `single` reads the answer to one
//! order of an origin with an API of its own.
//!
//! The rule behind all of them: only the origin itself can settle or refuse an order. A time-out is "unknown", and
//! whatever a portal, a proxy or a wrong host says settles nothing and quarantines nothing.

mod quotes;
mod single;

pub use single::{SingleAnswer, combine, read_single};

use super::backoff::MAX_RETRY_AFTER;
use samovar_wire::orders::{BatchAnswer, OrderResult, Outcome};
use samovar_wire::problem::Problem;
use std::collections::HashMap;
use std::time::Duration;

/// How the words begin when an origin said two things of one order.
pub const CONTRADICTS: &str = "the origin contradicts itself";

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchOutcome {
    /// The origin answered for each order (a missing answer counts as retry).
    Answered(Vec<OrderVerdict>),
    /// No answer, or none that can be used: the origin may or may not have the orders.
    Unreachable(String),
    /// No answer in time: the origin is gone, or one of the orders is more than it can digest.
    Stalled(String),
    /// It asks for patience.
    Busy {
        /// It failed (5xx), rather than asked for patience.
        failing: bool,
        /// What it said.
        detail: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// It does not accept who we are.
    IdentityRefused(String),
    /// The batch is too large for it.
    TooLarge(String),
    /// It refuses the batch as a whole; one of the orders is the reason.
    BatchRefused(String),
    /// Whatever answered, it was not the origin.
    NotTheOrigin(String),
    /// Single mode: some orders were answered one by one, the others met what concerns the origin as a whole.
    Partly {
        /// One per order; `None` for those others.
        verdicts: Vec<Option<OrderVerdict>>,
        /// What the others met.
        others: Box<Self>,
    },
}

/// What became of one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderVerdict {
    /// The origin has it.
    Settled,
    /// Not now; not before this time if one was given.
    Retry(Option<Duration>, String),
    /// Never.
    Refused {
        /// Stable code.
        code: String,
        /// The origin's words.
        detail: String,
        /// The key is known there with other content.
        conflict: bool,
    },
}

/// An answer as it came over the wire.
#[derive(Debug, Clone)]
pub struct RawAnswer<'a> {
    /// HTTP status.
    pub status: u16,
    /// The header `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: &'a [u8],
}

/// Reads the answer to the batch `batch_id`, which held the orders `ids`.
#[must_use]
pub fn read(answer: &RawAnswer<'_>, batch_id: &str, ids: &[String]) -> BatchOutcome {
    let status = answer.status;
    match status {
        200..=299 => match serde_json::from_slice::<BatchAnswer>(answer.body) {
            Ok(parsed) if parsed.batch == batch_id => BatchOutcome::Answered(verdicts(parsed, ids)),
            _ => not_the_origin(answer, "the answer does not name our batch"),
        },
        413 => BatchOutcome::TooLarge(words(answer)),
        400 | 422 => BatchOutcome::BatchRefused(words(answer)),
        _ => of_the_origin(answer),
    }
}

/// What every answer means that says nothing about a single order.
fn of_the_origin(answer: &RawAnswer<'_>) -> BatchOutcome {
    let status = answer.status;
    match status {
        401 | 403 => BatchOutcome::IdentityRefused(words(answer)),
        511 => not_the_origin(answer, "network authentication required"),
        408 | 425 | 429 | 500..=599 => BatchOutcome::Busy {
            failing: status >= 500,
            detail: words(answer),
            retry_after: answer.retry_after.map(|wait| wait.min(MAX_RETRY_AFTER)),
        },
        _ => not_the_origin(answer, "no origin answers an order like this"),
    }
}

fn not_the_origin(answer: &RawAnswer<'_>, why: &str) -> BatchOutcome {
    BatchOutcome::NotTheOrigin(format!("{} ({why})", words(answer)))
}

fn verdicts(answer: BatchAnswer, ids: &[String]) -> Vec<OrderVerdict> {
    // Results for an id that was not sent are ignored by never being looked up. Two that contradict each other are none.
    let mut by_id: HashMap<String, Result<OrderResult, OrderVerdict>> =
        HashMap::with_capacity(answer.results.len());
    for result in answer.results {
        by_id
            .entry(result.id.clone())
            .and_modify(|first| {
                if let Some(both) = contradiction(first, &result) {
                    *first = Err(OrderVerdict::Retry(None, both));
                }
            })
            .or_insert(Ok(result));
    }
    let answered =
        |id| by_id.remove(id).map(|result| result.map_or_else(|contradicted| contradicted, verdict));
    ids.iter().map(answered).map(|verdict| verdict.unwrap_or_else(no_result)).collect()
}

fn contradiction(first: &Result<OrderResult, OrderVerdict>, second: &OrderResult) -> Option<String> {
    let (one, other) = (first.as_ref().ok()?.status, second.status);
    (one != other).then(|| format!("{CONTRADICTS}: {one:?} and {other:?}").to_lowercase())
}

fn no_result() -> OrderVerdict {
    OrderVerdict::Retry(None, "the origin did not answer for this order".into())
}

fn verdict(result: OrderResult) -> OrderVerdict {
    let detail = result.detail.map(|text| short(&text)).unwrap_or_default();
    let refused = |default: &str, conflict| OrderVerdict::Refused {
        code: result.code.clone().unwrap_or_else(|| default.into()),
        detail: detail.clone(),
        conflict,
    };
    match result.status {
        Outcome::Settled | Outcome::Duplicate => OrderVerdict::Settled,
        Outcome::Conflict => refused("conflict", true),
        Outcome::Rejected => refused("rejected", false),
        Outcome::Retry => {
            let wait = result.retry_after_s.map(|s| Duration::from_secs(s).min(MAX_RETRY_AFTER));
            OrderVerdict::Retry(
                wait,
                if detail.is_empty() { "the origin asked to retry".into() } else { detail },
            )
        }
    }
}

/// The other side's words: the problem document's detail, or the beginning of whatever it sent.
pub(super) fn words(answer: &RawAnswer<'_>) -> String {
    let status = answer.status;
    if let Ok(problem) = serde_json::from_slice::<Problem>(answer.body)
        && !(problem.detail.is_empty() && problem.title.is_empty())
    {
        let text = if problem.detail.is_empty() { problem.title } else { problem.detail };
        return short(&format!("HTTP {status}: {text}"));
    }
    let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(400)]);
    short(&format!("HTTP {status} {}", text.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// Keeps foreign words at a size that fits a record.
fn short(text: &str) -> String {
    const MOST: usize = 300;
    let cleaned = text.trim_end();
    match cleaned.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &cleaned[..end]),
        None => cleaned.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> BatchOutcome {
        let raw = RawAnswer { status, retry_after: Some(Duration::from_secs(7)), body: body.as_bytes() };
        read(&raw, "b1", &["i1".into(), "i2".into()])
    }

    #[test]
    fn each_order_gets_its_own_verdict_and_a_missing_one_is_retried() {
        let outcome = answer(
            200,
            r#"{"batch":"b1","results":[{"id":"i2","status":"duplicate"},{"id":"stranger","status":"settled"}]}"#,
        );
        let BatchOutcome::Answered(verdicts) = outcome else { panic!("{outcome:?}") };
        assert!(matches!(verdicts[0], OrderVerdict::Retry(None, _)));
        assert_eq!(verdicts[1], OrderVerdict::Settled);
    }

    #[test]
    fn two_results_that_contradict_each_other_settle_nothing_and_are_told() {
        let outcome = answer(
            200,
            r#"{"batch":"b1","results":[{"id":"i1","status":"settled"},{"id":"i1","status":"rejected"},
                {"id":"i2","status":"settled"},{"id":"i2","status":"settled"}]}"#,
        );
        let BatchOutcome::Answered(verdicts) = outcome else { panic!("{outcome:?}") };
        let told = format!("{CONTRADICTS}: settled and rejected");
        assert_eq!(verdicts, [OrderVerdict::Retry(None, told), OrderVerdict::Settled]);
    }

    #[test]
    fn a_refusal_keeps_the_words_of_the_origin() {
        let outcome = answer(
            200,
            r#"{"batch":"b1","results":[{"id":"i1","status":"rejected","code":"no-such-shop","detail":"shop 9 is closed"},
                {"id":"i2","status":"conflict"}]}"#,
        );
        let BatchOutcome::Answered(verdicts) = outcome else { panic!("{outcome:?}") };
        let refused = |code: &str, detail: &str, conflict| OrderVerdict::Refused {
            code: code.into(),
            detail: detail.into(),
            conflict,
        };
        assert_eq!(
            verdicts,
            [refused("no-such-shop", "shop 9 is closed", false), refused("conflict", "", true)]
        );
    }

    #[test]
    fn what_is_not_the_origin_settles_nothing() {
        let html = "<html>Welcome to Hotel WiFi</html>";
        for (status, body) in [
            (200, html),
            (200, r#"{"batch":"other","results":[{"id":"i1","status":"settled"}]}"#),
            (200, "{}"),
            (204, ""),
            (302, ""),
            (404, html),
            (405, ""),
            (511, html),
            (418, ""),
        ] {
            assert!(matches!(answer(status, body), BatchOutcome::NotTheOrigin(_)), "{status} {body}");
        }
    }

    #[test]
    fn the_other_classes_are_those_of_the_contract() {
        for status in [401, 403] {
            assert!(matches!(answer(status, ""), BatchOutcome::IdentityRefused(_)));
        }
        for status in [408, 425, 429, 500, 502, 503, 504] {
            let wait = Some(Duration::from_secs(7));
            assert!(
                matches!(answer(status, ""), BatchOutcome::Busy { retry_after, .. } if retry_after == wait)
            );
        }
        assert!(matches!(answer(413, ""), BatchOutcome::TooLarge(_)));
        for status in [400, 422] {
            assert!(matches!(answer(status, ""), BatchOutcome::BatchRefused(_)));
        }
    }

    #[test]
    fn foreign_words_are_kept_short() {
        let BatchOutcome::BatchRefused(text) = answer(400, &"é".repeat(5_000)) else { panic!() };
        assert!(text.chars().count() <= 301);
    }
}
