//! Request bodies, read up to a limit.
//!
//! A request that is refused before its body has been read is still being written by its sender, who may then see a
//! broken pipe instead of the answer. What is left is therefore read and thrown away first, within bounds.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;
use http::{HeaderMap, header};

/// At most this much is thrown away for one request.
const THROWN_AWAY: usize = 32 * 1024 * 1024;

/// And for at most this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A body that cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More than the limit.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// The sender stopped in the middle.
    #[error("the body ended early")]
    Broken,
}

/// How much memory a body will take: what is announced, else the limit.
#[must_use]
pub fn expected(headers: &HeaderMap, limit: usize) -> usize {
    announced(headers).map_or(limit, |length| length.min(limit))
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a whole body of at most `limit` bytes.
///
/// # Errors
/// [`BodyError`].
pub async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, BodyError> {
    let announced = announced(headers);
    if announced.is_some_and(|length| length > limit) {
        throw_away(body).await;
        return Err(BodyError::TooLarge(limit));
    }
    let mut whole = Vec::with_capacity(announced.unwrap_or(0));
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| BodyError::Broken)?;
        if whole.len() + chunk.len() > limit {
            throw_away(Body::from_stream(chunks)).await;
            return Err(BodyError::TooLarge(limit));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}

/// Reads the rest of a body and forgets it.
pub async fn throw_away(body: Body) {
    let rest = async {
        let mut thrown_away = 0;
        let mut chunks = body.into_data_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            thrown_away += chunk.len();
            if thrown_away > THROWN_AWAY {
                break;
            }
        }
    };
    // Whoever takes longer has to live with a broken pipe.
    let _ = tokio::time::timeout(PATIENCE, rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_within_the_limit_is_read_and_a_larger_one_is_not_announced_or_not() {
        let read_some = |announced: Option<usize>, length: usize| async move {
            let mut headers = HeaderMap::new();
            if let Some(announced) = announced {
                headers.insert(header::CONTENT_LENGTH, announced.into());
            }
            read(&headers, Body::from(vec![b'x'; length]), 100).await.map(|body| body.len())
        };
        assert_eq!(read_some(Some(100), 100).await, Ok(100));
        assert_eq!(read_some(None, 100).await, Ok(100));
        assert_eq!(read_some(Some(101), 101).await, Err(BodyError::TooLarge(100)));
        assert_eq!(read_some(None, 101).await, Err(BodyError::TooLarge(100)));
    }
}
