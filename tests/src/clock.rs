//! The time, for the harness: the real one.

use samovar_wire::Timestamp;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// This moment, for measuring.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock of the harness")]
pub fn now() -> Instant {
    Instant::now()
}

/// The time of day.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock of the harness")]
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
