//! Waiting for a condition, never for a time.

use anyhow::{Result, bail};
use std::time::Duration;

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(20);

/// Asks again and again until there is an answer; fails with what was waited for when the deadline has passed.
///
/// # Errors
/// When the deadline passes first.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let started = crate::clock::now();
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if started.elapsed() > deadline {
            bail!("waited {} s in vain for: {what}", deadline.as_secs());
        }
        tokio::time::sleep(EVERY).await;
    }
}
