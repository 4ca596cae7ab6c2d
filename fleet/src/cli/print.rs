//! Answers for people: a table of the fields that matter, columns as wide as their values. What strangers wrote into
//! a value can neither steer the terminal nor break a row.

use std::io::Write as _;

use samovar_wire::plain;
use serde_json::Value;

/// Prints a line. A reader that has gone away (`| head`) ends the program quietly.
pub(super) fn line(text: &str) {
    if writeln!(std::io::stdout(), "{}", plain::message(text)).is_err() {
        std::process::exit(0);
    }
}

/// Prints a text byte for byte, without a line end of our own: it is to be signed.
pub(super) fn exactly(text: &str) {
    let mut out = std::io::stdout();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Says what went wrong.
pub(super) fn complaint(text: &str) {
    // Nobody may be listening; the exit code says the same.
    let _ = writeln!(std::io::stderr(), "samovar-fleet: {}", plain::message(text));
}

/// Prints a list as a table; a column may be a field of a field, such as `orders.pending`.
pub(super) fn table(rows: &[Value], columns: &[&str]) {
    for line in lines(rows, columns) {
        self::line(&line);
    }
}

/// Prints one thing, a field on each line.
pub(super) fn fields(thing: &Value) {
    let Some(fields) = thing.as_object() else { return line(&thing.to_string()) };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in fields {
        line(&format!("{name:width$}  {}", text(value)));
    }
}

/// Prints an answer as it came.
pub(super) fn json(answer: &Value) {
    line(&plain::json(&format!("{answer:#}")));
}

fn lines(rows: &[Value], columns: &[&str]) -> Vec<String> {
    let cells: Vec<Vec<String>> = std::iter::once(columns.iter().map(|name| name.to_uppercase()).collect())
        .chain(rows.iter().map(|row| columns.iter().map(|name| text(at(row, name))).collect()))
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let padded = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    cells.iter().map(padded).collect()
}

/// A field, or a field of a field: `orders.pending`.
fn at<'a>(row: &'a Value, name: &str) -> &'a Value {
    name.split('.').fold(row, |value, part| &value[part])
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain::cell(text).into_owned(),
        other => plain::json(&other.to_string()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_value_and_what_is_missing_is_a_dash() {
        let rows = [serde_json::json!({"id": "US-0001", "country": "US"}), serde_json::json!({"id": "JP-1"})];
        assert_eq!(lines(&rows, &["id", "country"]), ["ID       COUNTRY", "US-0001  US", "JP-1     -"]);
    }

    #[test]
    fn a_value_cannot_break_its_row_or_turn_the_writing_round() {
        let rows = [serde_json::json!({"id": "A\u{202e}1\n\u{1b}[31m", "list": ["\u{2066}"]})];
        assert_eq!(lines(&rows, &["id", "list"])[1], "A\u{fffd}1\u{fffd}\u{fffd}[31m  [\"\\u2066\"]");
    }
}
