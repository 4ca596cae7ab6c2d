//! The time of day, read in one place.
//!
//! Everything that decides takes `now` as an argument; only edges call [`now`]. The database keeps whole milliseconds
//! since 1970, the wire writes RFC 3339; both are [`Timestamp`].

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use samovar_wire::Timestamp;

/// The time now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Time that only ever goes forward, counted from the first time it was asked for: for waits and rates.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn steady() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let start = *START;
    Instant::now().saturating_duration_since(start)
}

/// A time a while earlier; never before 1970.
#[must_use]
pub fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(at.millis().saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

/// The same moment for the libraries that speak `time`.
#[must_use]
pub fn to_offset(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.millis()) * 1_000_000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}
