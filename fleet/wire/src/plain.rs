//! Text of strangers, made harmless for a terminal. Pure.
//!
//! An order number, an origin's words or a header may hold characters that a terminal obeys instead of showing: escape
//! sequences, line breaks that forge a row or a line of a log, and signs that turn the direction of writing or have no
//! width, so that a name reads as another. Stored and sent they stay as they came; only what people read passes here.

use std::borrow::Cow;

/// Stands where a character was that must not be printed.
const SIGN: char = '\u{fffd}';

/// Whether a terminal might obey this character, or show nothing for it.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control() || is_invisible(c)
}

/// Signs of direction, without width, or that break lines in some programs. Joiners stay: names and emoji need them.
const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// For a cell of a table or a value in a line: nothing of it can leave its place.
#[must_use]
pub fn cell(text: &str) -> Cow<'_, str> {
    replaced(text, is_unprintable)
}

/// For a message of several lines: line breaks and tabs stay.
#[must_use]
pub fn message(text: &str) -> Cow<'_, str> {
    replaced(text, |c| is_unprintable(c) && !matches!(c, '\n' | '\t'))
}

/// For one line of a log with its line break. Escape sequences stay: they are the formatter's own colours, which escapes
/// those of values itself.
#[must_use]
pub fn log_line(line: &str) -> Cow<'_, str> {
    let (text, end) = line.strip_suffix('\n').map_or((line, ""), |text| (text, "\n"));
    match replaced(text, |c| is_unprintable(c) && !matches!(c, '\u{1b}' | '\t')) {
        Cow::Borrowed(_) => Cow::Borrowed(line),
        Cow::Owned(text) => Cow::Owned(text + end),
    }
}

/// For a JSON document: the same document, with such characters in its texts escaped. Those of ASCII are escaped or
/// between the values in any JSON already.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    let unsafe_here = |c: char| !c.is_ascii() && is_unprintable(c);
    // DEL is the one of ASCII that JSON does not ask to escape.
    if !document.contains(|c| unsafe_here(c) || c == '\u{7f}') {
        return Cow::Borrowed(document);
    }
    let mut escaped = String::with_capacity(document.len() + 16);
    for c in document.chars() {
        if unsafe_here(c) || c == '\u{7f}' {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

fn replaced(text: &str, unsafe_here: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.contains(&unsafe_here) {
        Cow::Owned(text.chars().map(|c| if unsafe_here(c) { SIGN } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_becomes_a_sign() {
        assert_eq!(
            cell("A\u{202e}71-B\u{1b}[2J\r\n\u{9b}31m"),
            "A\u{fffd}71-B\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}31m"
        );
        assert_eq!(message("one\n\ttwo\u{2066}\u{7}"), "one\n\ttwo\u{fffd}\u{fffd}");
    }

    #[test]
    fn names_in_any_script_stay_as_they_are() {
        for text in ["珍珠奶茶 №7", "José", "قهوة", "👩‍🍳", "A-17 — ok"] {
            assert!(matches!(cell(text), Cow::Borrowed(_)), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_json_document_keeps_its_meaning_and_holds_nothing_unprintable(text: String, tail in "[\u{202e}\u{e0041}\u{7f}\u{85}a]{0,9}") {
            let value = serde_json::json!({ "text": format!("{text}{tail}") });
            let document = value.to_string();
            let shown = json(&document);
            proptest::prop_assert!(!shown.contains(is_unprintable));
            proptest::prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
