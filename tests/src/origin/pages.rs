//! What an origin serves besides its contract: menus, images, calls of a till's own.

use super::answers::{json, read, refusal};
use super::{Body, Origin, World};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use std::collections::BTreeMap;
use std::io;
use std::sync::PoisonError;

/// One page.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The status; 0 is 200.
    pub status: u16,
    /// Headers besides `Content-Type: application/json`.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// It is never answered.
    pub stalls: bool,
}

impl Page {
    /// A page that is found.
    #[must_use]
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// With another status.
    #[must_use]
    pub const fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Not answered at all.
    #[must_use]
    pub const fn stalls(mut self) -> Self {
        self.stalls = true;
        self
    }
}

/// A request for a page, whatever became of it.
#[derive(Debug, Clone)]
pub struct Visit {
    /// Method, path and query.
    pub line: String,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Bytes,
}

impl Visit {
    /// A header; empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Default)]
pub(super) struct Pages {
    pages: BTreeMap<String, Page>,
    visits: Vec<Visit>,
}

impl Origin {
    /// From now on this page is served at a path, to every method.
    pub fn serve(&self, path: &str, page: Page) {
        self.world.pages.lock().unwrap_or_else(PoisonError::into_inner).pages.insert(path.into(), page);
    }

    /// The requests for pages so far.
    #[must_use]
    pub fn visits(&self) -> Vec<Visit> {
        self.world.pages.lock().unwrap_or_else(PoisonError::into_inner).visits.clone()
    }
}

pub(super) async fn answer(world: &World, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = read(body).await?;
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let visit = Visit {
        line: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body,
    };
    let known = visit.header("if-none-match").to_owned();
    let page = {
        let mut pages = world.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.visits.push(visit);
        pages.pages.get(parts.uri.path()).cloned()
    };
    let Some(page) = page else { return Ok(refusal(404, None)) };
    if page.stalls {
        std::future::pending::<()>().await;
    }
    let same = page.headers.iter().any(|(name, value)| *name == "etag" && *value == known);
    let status = if page.status == 0 { 200 } else { page.status };
    let mut answer = json(status, "application/json", if same { Vec::new() } else { page.body });
    if same {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer.headers_mut().remove(header::CONTENT_TYPE);
    }
    for (name, value) in &page.headers {
        let value = HeaderValue::from_str(value).map_err(io::Error::other)?;
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
    Ok(answer)
}
