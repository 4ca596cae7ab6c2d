//! The only place that reads a clock. Policy gets the time as an argument; IO asks here.
#![expect(clippy::disallowed_methods, reason = "this is the module that the ban points to")]

use samovar_wire::Timestamp;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since the process began, on the monotonic clock: what back-off, leases and deadlines are measured in, so
/// that a jump of the wall clock strands nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Mono(pub Duration);

impl Mono {
    /// Later by a duration.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// How long until this moment, seen from `now`; zero when it has passed.
    #[must_use]
    pub const fn after(self, now: Self) -> Duration {
        self.0.saturating_sub(now.0)
    }
}

/// Now, on the monotonic clock.
#[must_use]
pub fn mono() -> Mono {
    Mono(START.elapsed())
}

/// The moment of the monotonic clock that a timer of the runtime can wait for.
#[must_use]
pub fn instant(at: Mono) -> tokio::time::Instant {
    tokio::time::Instant::from_std(*START + at.0)
}

/// Now, on the wall clock, which may be wrong.
#[must_use]
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The wall clock when it can be believed. A board without a battery wakes up in 1970, and no agent is older than
/// its own release.
#[must_use]
pub fn trusted_wall() -> Option<Timestamp> {
    /// 2026-01-01, before the first release.
    const EARLIEST_MILLIS: i64 = 1_767_225_600_000;
    Some(wall()).filter(|now| now.millis() >= EARLIEST_MILLIS)
}

/// Time since the device was started, also while it slept. Where the system does not say, since the process began.
#[must_use]
pub fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(up.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(up.tv_nsec).unwrap_or(0))
    }
    #[cfg(not(target_os = "linux"))]
    mono().0
}

/// Tells one boot of the operating system from the next; empty where the system does not say.
#[must_use]
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}
