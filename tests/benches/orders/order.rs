//! The order that everything is measured with: a receipt of ten lines, 1 KiB, another number each time.

use std::fmt::Write as _;

/// Bytes of an order.
pub(crate) const BYTES: usize = 1024;
/// Where the number begins in the body, and how long it is.
const NUMBER_AT: usize = r#"{"order_no":""#.len();
const NUMBER_LEN: usize = 24;

/// An order whose number can be changed in place.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    body: Vec<u8>,
}

impl Order {
    pub(crate) fn new() -> Self {
        let mut text = format!(
            r#"{{"order_no":"{}","placed_at":"2026-11-20T08:15:00.000Z","kind":"sale","currency":"USD","total":"46.20","#,
            "0".repeat(NUMBER_LEN)
        );
        text.push_str(r#""lines":["#);
        for line in 0..10 {
            let comma = if line == 0 { "" } else { "," };
            let _ = write!(
                text,
                r#"{comma}{{"sku":"T{line:02}","name":"茉莉绿茶","quantity":1,"price":"4.62"}}"#
            );
        }
        text.push_str(r#"],"note":""#);
        let rest = BYTES.saturating_sub(text.len() + 2);
        text.push_str(&"x".repeat(rest));
        text.push_str(r#""}"#);
        Self { body: text.into_bytes() }
    }

    /// The order under its own number, which is its key too.
    pub(crate) fn numbered(&mut self, run: u32, till: usize, number: usize) -> &[u8] {
        self.body[NUMBER_AT..NUMBER_AT + NUMBER_LEN].copy_from_slice(number_of(run, till, number).as_bytes());
        &self.body
    }
}

/// The number of an order.
pub(crate) fn number_of(run: u32, till: usize, number: usize) -> String {
    format!("{run:08x}-{till:04}-{number:010}")
}
