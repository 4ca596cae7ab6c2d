//! Reading a request: JSON, up to a limit, decoded and parsed (IO).

use axum::body::{Body, Bytes};
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::decode::{DecodeError, decode};
use crate::problem::Failure;
use crate::server::body::{self, BodyError};

/// Refuses what does not say that it is JSON.
pub(super) fn json_only(headers: &HeaderMap) -> Result<(), Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported", "send application/json"))
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Failure> {
    body::read(headers, body, limit).await.map_err(|error| match error {
        BodyError::TooLarge(_) => Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", error.to_string()),
        BodyError::Broken => Failure::malformed(error.to_string()),
    })
}

/// Undoes the content encoding and reads the document, of at most `limit` bytes.
pub(super) async fn parse<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Bytes,
    limit: usize,
) -> Result<T, Failure> {
    let encoding =
        headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let decoded = if encoding.is_empty() {
        None
    } else {
        let encoding = encoding.to_owned();
        let body = body.clone();
        let decoding = tokio::task::spawn_blocking(move || decode(&encoding, &body, limit));
        decoding
            .await
            .map_err(|error| Failure::unavailable(&error))?
            .map_err(|error| decode_failure(&error))?
    };
    let bytes = decoded.as_deref().unwrap_or(&body);
    serde_json::from_slice(bytes).map_err(|error| Failure::malformed(error.to_string()))
}

fn decode_failure(error: &DecodeError) -> Failure {
    let (status, slug) = match error {
        DecodeError::Unknown(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported"),
        DecodeError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        DecodeError::Broken(_) => (StatusCode::BAD_REQUEST, "malformed"),
    };
    Failure::new(status, slug, error.to_string())
}
