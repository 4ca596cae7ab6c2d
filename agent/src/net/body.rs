//! Reading an answer of unknown size: bounded in bytes and in time, because the other side may be anybody.

use std::time::Duration;

/// An answer that was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is longer than the caller wants.
    #[error("the answer is longer than {limit} bytes")]
    TooLarge {
        /// The caller's limit.
        limit: usize,
    },
    /// It did not end in time.
    #[error("the answer did not end within {} ms", .limit.as_millis())]
    TimedOut {
        /// The caller's limit.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the answer broke off")]
    Broken(#[source] reqwest::Error),
}

/// Reads a whole answer of at most `max_bytes` within `limit`.
///
/// # Errors
/// When the answer is longer, slower, or breaks off. Nothing of it is given then.
pub async fn read_limited(
    mut response: reqwest::Response,
    max_bytes: usize,
    limit: Duration,
) -> Result<Vec<u8>, BodyError> {
    let too_large = || BodyError::TooLarge { limit: max_bytes };
    if response.content_length().is_some_and(|length| length > max_bytes as u64) {
        return Err(too_large());
    }
    let whole = async {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(BodyError::Broken)? {
            if body.len() + chunk.len() > max_bytes {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(limit, whole).await.unwrap_or(Err(BodyError::TimedOut { limit }))
}
