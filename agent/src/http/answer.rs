//! Answers that every handler shares: problems as RFC 9457 documents, and JSON bodies read within limits.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use samovar_wire::problem::{self, Problem};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How much of a body that is too long is read before the answer.
const DRAIN_BYTES: usize = 32 * 1024 * 1024;
/// Longest time for a request's body to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// A problem as a response, with how long to wait before a repeat if that would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    problem: Problem,
    retry_after_s: Option<u32>,
}

impl Failure {
    /// A failure with its stable slug and the words for this time.
    #[must_use]
    pub fn new(status: StatusCode, slug: &str, detail: impl Into<String>) -> Self {
        Self { problem: Problem::new(status.as_u16(), slug, detail), retry_after_s: None }
    }

    /// Says when a repeat may help.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The document.
    #[must_use]
    pub const fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Reads a whole request body. One that is too long is read on and thrown away up to a point, because a client that is
/// cut off while it sends does not get to see the answer.
///
/// # Errors
/// 413 when it is longer than `max_bytes`, 408 when it does not arrive in time, 400 when it breaks off.
pub async fn read_body(mut body: Body, max_bytes: usize) -> Result<Vec<u8>, Failure> {
    let whole = async {
        let (mut bytes, mut length) = (Vec::new(), 0_usize);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let detail = format!("the body broke off: {error}");
                Failure::new(StatusCode::BAD_REQUEST, "incomplete-body", detail)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            length += data.len();
            if length <= max_bytes {
                bytes.extend_from_slice(&data);
            } else if length > max_bytes.saturating_add(DRAIN_BYTES) {
                break;
            }
        }
        if length <= max_bytes {
            return Ok(bytes);
        }
        let detail = format!("the body has more than {max_bytes} bytes");
        Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail))
    };
    tokio::time::timeout(BODY_DEADLINE, whole).await.unwrap_or_else(|_| {
        Err(Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "slow-body",
            "the body did not arrive within 10 seconds",
        ))
    })
}

/// Reads a small JSON document; an empty body is the default.
///
/// # Errors
/// As [`read_body`], and 400 when it is not what is asked for.
pub async fn read_json<T: DeserializeOwned + Default>(body: Body) -> Result<T, Failure> {
    let bytes = read_body(body, 64 * 1024).await?;
    if bytes.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(StatusCode::BAD_REQUEST, "not-json", format!("the body cannot be read: {error}"))
    })
}
