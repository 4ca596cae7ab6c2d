//! Takes out of an origin's words what they quote of the order's body, which may hold personal data: the words are kept
//! in plain, shown to everybody and sent to head office. Pure.
//!
//! Taken out are values of the body, and whatever stands there as it stands in the body. What the record shows anyhow
//! (number, kind) stays, and so do bare lower-case words, which are a vocabulary's and nobody's.

use super::{BatchOutcome, OrderVerdict};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Stands for what was taken out.
const CUT: char = '…';
/// Bytes that are a quotation when they stand in the body too.
const RUN: usize = 12;
/// Shorter values are in any text.
const SHORT: usize = 3;
/// Shorter numbers are in any text.
const SHORT_NUMBER: usize = 5;
/// Longest word of a vocabulary.
const LONG_WORD: usize = 16;
/// Fields that every record shows.
const SHOWN: [&str; 4] = ["order_no", "kind", "udl", "depends_on"];

impl BatchOutcome {
    /// The same without quotations of the bodies, which are those of the orders in their order.
    #[must_use]
    pub fn without_quotes(mut self, bodies: &[&[u8]]) -> Self {
        self.cut(bodies);
        self
    }

    fn cut(&mut self, bodies: &[&[u8]]) {
        match self {
            Self::Answered(verdicts) => {
                verdicts.iter_mut().zip(bodies).for_each(|(verdict, body)| cut_verdict(verdict, body));
            }
            Self::Unreachable(words)
            | Self::Stalled(words)
            | Self::Busy { detail: words, .. }
            | Self::IdentityRefused(words)
            | Self::TooLarge(words)
            | Self::BatchRefused(words)
            | Self::NotTheOrigin(words) => bodies.iter().for_each(|body| cut(words, body)),
            Self::Partly { verdicts, others } => {
                for (verdict, body) in verdicts.iter_mut().zip(bodies) {
                    verdict.iter_mut().for_each(|verdict| cut_verdict(verdict, body));
                }
                others.cut(bodies);
            }
        }
    }
}

fn cut_verdict(verdict: &mut OrderVerdict, body: &[u8]) {
    match verdict {
        OrderVerdict::Settled => {}
        OrderVerdict::Retry(_, words) | OrderVerdict::Refused { detail: words, .. } => cut(words, body),
    }
}

fn cut(words: &mut String, body: &[u8]) {
    if words.len() < SHORT {
        return;
    }
    let mut out = vec![false; words.len()];
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let shown: Vec<&str> = SHOWN.iter().filter_map(|field| document.get(field)?.as_str()).collect();
    mark_runs(words.as_bytes(), body, &mut out);
    mark_values(words, &document, &shown, &mut out);
    for text in shown.iter().filter(|text| !text.is_empty()) {
        words.match_indices(text).for_each(|(at, _)| out[at..at + text.len()].fill(false));
    }
    if out.contains(&true) {
        *words = without(words, &out);
    }
}

fn mark_runs(words: &[u8], body: &[u8], out: &mut [bool]) {
    let mut places: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (at, run) in words.windows(RUN).enumerate() {
        places.entry(run).or_default().push(at);
    }
    if places.is_empty() {
        return;
    }
    let quoted: HashSet<&[u8]> = body.windows(RUN).filter(|run| places.contains_key(run)).collect();
    for at in quoted.iter().filter_map(|run| places.get(run)).flatten() {
        out[*at..*at + RUN].fill(true);
    }
}

fn mark_values(words: &str, value: &Value, shown: &[&str], out: &mut [bool]) {
    let mut mark = |text: &str| {
        words.match_indices(text).for_each(|(at, found)| out[at..at + found.len()].fill(true));
    };
    match value {
        Value::String(text)
            if text.len() >= SHORT && !is_vocabulary(text) && !shown.contains(&text.as_str()) =>
        {
            mark(text);
        }
        Value::Number(number) => {
            let text = number.to_string();
            if text.len() >= SHORT_NUMBER {
                mark(&text);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| mark_values(words, value, shown, out)),
        Value::Object(fields) => fields.values().for_each(|value| mark_values(words, value, shown, out)),
        _ => {}
    }
}

fn is_vocabulary(text: &str) -> bool {
    text.len() <= LONG_WORD && text.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'_' | b'-'))
}

fn without(words: &str, out: &[bool]) -> String {
    let mut kept = String::with_capacity(words.len());
    for (at, char) in words.char_indices() {
        if !out[at..at + char.len_utf8()].contains(&true) {
            kept.push(char);
        } else if !kept.ends_with(CUT) {
            kept.push(CUT);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"order_no":"A-2026-000017","kind":"sale","placed_at":"2026-11-20T08:00:00Z","pay":"cash",
        "guest":{"name":"李雷","phone":13800138000,"mail":"ann@example.com"},"lines":[{"note":"\u6c34 no ice"}]}"#;

    fn refused(words: &str) -> String {
        let verdict =
            OrderVerdict::Refused { code: "rejected".into(), detail: words.into(), conflict: false };
        match BatchOutcome::Answered(vec![verdict]).without_quotes(&[BODY.as_bytes()]) {
            BatchOutcome::Answered(verdicts) => match &verdicts[0] {
                OrderVerdict::Refused { detail, .. } => detail.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_numbers_and_addresses_of_guests_are_taken_out_of_the_origins_words() {
        assert_eq!(refused("guest 李雷 (13800138000) is barred"), "guest … (…) is barred");
        assert_eq!(refused("no mail to ann@example.com"), "no mail to …");
    }

    #[test]
    fn a_body_that_is_quoted_as_it_came_is_taken_out_whatever_its_escapes() {
        let words = refused(r#"HTTP 400: cannot read {"note":"\u6c34 no ice"} of this"#);
        assert!(!words.contains("6c34") && !words.contains("ice"), "{words}");
        assert!(words.starts_with("HTTP 400: cannot read") && words.ends_with(" of this"), "{words}");
    }

    #[test]
    fn what_the_record_shows_anyhow_and_the_origins_own_words_stay() {
        for words in
            ["order A-2026-000017 is a sale for shop 9, which is closed", "cash is not taken here", ""]
        {
            assert_eq!(refused(words), words);
        }
    }

    #[test]
    fn words_about_a_whole_batch_quote_none_of_its_orders() {
        let outcome = BatchOutcome::BatchRefused("HTTP 422: 李雷 and Bob Lee".into());
        let other = br#"{"guest":"Bob Lee"}"#;
        assert_eq!(
            outcome.without_quotes(&[BODY.as_bytes(), other]),
            BatchOutcome::BatchRefused("HTTP 422: … and …".into())
        );
    }
}
