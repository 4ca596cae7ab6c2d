//! Asks the origin, and hands on what it answers (IO).

use super::policy::{self, Key};
use super::shelf::{BODY_MAX, Kept};
use super::{Gateway, Rules, Seen, Way};
use crate::clock::{mono, wall};
use crate::http::Failure;
use crate::net::explain;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use samovar_wire::Timestamp;
use samovar_wire::orders::{HEADER_DEVICE, HEADER_STORE, HEADER_UDL};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// The largest body of a request.
const REQUEST_MAX: usize = 8 * 1024 * 1024;
/// The largest answer that is handed on.
const ANSWER_MAX: usize = 256 * 1024 * 1024;
/// Longest time from a request to the end of its answer.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// Pieces of an answer that wait for the till.
const PIECES: usize = 4;

/// What is asked of an origin.
pub(super) struct Asked {
    pub(super) method: Method,
    /// Path and query.
    pub(super) target: String,
    /// Those of the till that go on.
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// The head of an answer, as the origin's own or not.
pub(super) struct Head {
    pub(super) response: reqwest::Response,
    pub(super) seen: Seen,
}

/// Sends a request once.
pub(super) async fn send(gateway: &Gateway, way: &Way, rules: &Rules, asked: Asked) -> Result<Head, Failure> {
    let began = mono();
    let progress = Arc::new(AtomicU8::new(SENDING));
    let mut request = way.client.request(asked.method.clone(), format!("{}{}", way.base_url, asked.target));
    request = request.headers(with_identity(gateway, rules, asked.headers)).timeout(WHOLE_LIMIT);
    if matches!(asked.method, Method::GET | Method::HEAD) {
        progress.store(SENT, Ordering::Relaxed);
    } else {
        request = request.body(upload(asked.body, Arc::clone(&progress)));
    }
    let limit = gateway.0.settings.answer_timeout;
    let (status, slug, why) = match tokio::time::timeout(limit, request.send()).await {
        Ok(Ok(response)) => {
            let (origin, domain) = (way.origin.as_str(), way.domain.as_str());
            let seen = policy::judge(response.status(), response.headers(), origin, domain);
            // A redirect may be this path's own affair, and moves no store.
            if !response.status().is_redirection() {
                gateway.0.ways.report(way, seen.clone(), mono().after(began));
            }
            return Ok(Head { response, seen });
        }
        // The address may hold what a till asks for, which belongs in no log.
        Ok(Err(error)) => (StatusCode::BAD_GATEWAY, "origin-unreachable", explain(&error.without_url())),
        Err(_) => {
            let why = format!("no answer within {} ms", limit.as_millis());
            (StatusCode::GATEWAY_TIMEOUT, "origin-timeout", why)
        }
    };
    match progress.load(Ordering::Relaxed) {
        TOO_LARGE => {
            let detail = format!("the body has more than {REQUEST_MAX} bytes");
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
        }
        // The till's doing, not the origin's.
        BROKEN => {
            return Err(Failure::new(StatusCode::BAD_REQUEST, "incomplete-body", "the body broke off"));
        }
        SENDING if slug == "origin-timeout" => {
            return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "slow-body", "the body took too long"));
        }
        _ => {}
    }
    gateway.0.ways.report(way, Seen::Failed(why.clone()), mono().after(began));
    let again = if asked.method.is_safe() { "" } else { "; whether the request arrived is unknown" };
    Err(Failure::new(status, slug, format!("{}: {why}{again}", way.origin)))
}

/// How far a till's body is: these, in one byte that the body's own task writes.
const SENDING: u8 = 0;
const SENT: u8 = 1;
const TOO_LARGE: u8 = 2;
const BROKEN: u8 = 3;

fn upload(body: Body, progress: Arc<AtomicU8>) -> reqwest::Body {
    let (ended, trouble) = (Arc::clone(&progress), progress);
    // Who knows the length asks for nothing behind the last byte.
    let (whole, sent) = (axum::body::HttpBody::size_hint(&body).exact(), Arc::clone(&ended));
    let mut read = 0;
    let pieces = Limited::new(body, REQUEST_MAX).into_data_stream().map_err(move |error| {
        let why = if error.is::<LengthLimitError>() { TOO_LARGE } else { BROKEN };
        trouble.store(why, Ordering::Relaxed);
        error
    });
    let pieces = pieces.inspect_ok(move |piece| {
        read += piece.len() as u64;
        if whole == Some(read) {
            sent.store(SENT, Ordering::Relaxed);
        }
    });
    let end = stream::poll_fn(move |_| {
        let _ = ended.compare_exchange(SENDING, SENT, Ordering::Relaxed, Ordering::Relaxed);
        std::task::Poll::Ready(None)
    });
    reqwest::Body::wrap_stream(pieces.chain(end))
}

fn with_identity(gateway: &Gateway, rules: &Rules, mut headers: HeaderMap) -> HeaderMap {
    let own = [
        (HEADER_DEVICE, rules.device.as_str()),
        (HEADER_STORE, rules.store.as_str()),
        (HEADER_UDL, rules.country.as_str()),
    ];
    for (name, value) in own {
        // Identifiers are ASCII, so both always are what a header may be.
        if let (Ok(name), Ok(value)) =
            (header::HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
        {
            headers.insert(name, value);
        }
    }
    if !headers.contains_key("traceparent") {
        let trace = format!("00-{:032x}-{:016x}-01", fastrand::u128(1..), fastrand::u64(1..));
        headers.extend(
            HeaderValue::try_from(trace)
                .ok()
                .map(|trace| (header::HeaderName::from_static("traceparent"), trace)),
        );
    }
    if let Some(token) = &gateway.0.settings.token
        && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}"))
    {
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    headers
}

/// What came of asking for an answer that may be kept.
pub(super) enum Fetched {
    /// The whole answer, new or confirmed; it is kept.
    Whole(Arc<Kept>),
    /// An answer that is handed on as it comes.
    Live(Live),
    /// The origin cannot be reached; with what it said of itself, if it did.
    Unreachable(Failure, Option<Live>),
}

/// An answer under way to the till.
pub(super) struct Live {
    response: reqwest::Response,
    /// What was read of it already.
    begun: Vec<Bytes>,
    _place: OwnedSemaphorePermit,
}

/// Asks for an answer, and keeps it if it may be kept.
pub(super) async fn refresh(
    gateway: &Gateway,
    (way, rules): (&Way, &Rules),
    key: &Key,
    mut asked: Asked,
    (kept, place): (Option<Arc<Kept>>, OwnedSemaphorePermit),
) -> Fetched {
    if let Some(etag) = kept.as_deref().and_then(Kept::etag).and_then(|etag| etag.parse().ok()) {
        asked.headers.insert(header::IF_NONE_MATCH, etag);
    }
    let Head { response, seen } = match send(gateway, way, rules, asked).await {
        Ok(head) => head,
        Err(failure) => return Fetched::Unreachable(failure, None),
    };
    match (seen, kept) {
        (Seen::Failed(why), _) => {
            let failure = unreachable(way, &why);
            Fetched::Unreachable(failure, Some(Live { response, begun: Vec::new(), _place: place }))
        }
        (Seen::NotTheOrigin(why), _) => Fetched::Unreachable(not_the_origin(way, &why), None),
        (Seen::Answered, Some(kept)) if response.status() == StatusCode::NOT_MODIFIED => {
            Fetched::Whole(confirmed(gateway, key, &kept).await)
        }
        (Seen::Answered, _) => read(gateway, way, key, response, place).await,
    }
}

pub(super) fn unreachable(way: &Way, why: &str) -> Failure {
    Failure::new(StatusCode::BAD_GATEWAY, "origin-unreachable", format!("{}: {why}", way.origin))
}

pub(super) fn not_the_origin(way: &Way, why: &str) -> Failure {
    Failure::new(StatusCode::BAD_GATEWAY, "not-the-origin", format!("{}: {why}", way.origin))
}

/// The kept answer still holds.
async fn confirmed(gateway: &Gateway, key: &Key, kept: &Arc<Kept>) -> Arc<Kept> {
    let again = Arc::new(Kept { good_at: wall(), ..(**kept).clone() });
    if let Some(vary) = policy::may_keep(StatusCode::OK, &again.headers) {
        let (key, again) = (key.clone(), Arc::clone(&again));
        gateway.on_shelf(move |shelf| shelf.keep(&key, vary, &again)).await;
    }
    again
}

/// Reads an answer that may be kept to its end; any other is handed on as it comes.
async fn read(
    gateway: &Gateway,
    way: &Way,
    key: &Key,
    mut response: reqwest::Response,
    place: OwnedSemaphorePermit,
) -> Fetched {
    let vary = policy::may_keep(response.status(), response.headers());
    let withdrawn = response.status() == StatusCode::GONE || response.status() == StatusCode::OK;
    if vary.is_none() && withdrawn {
        let key = key.clone();
        gateway.on_shelf(move |shelf| shelf.forget(&key)).await;
    }
    let short = response.content_length().is_none_or(|length| length <= BODY_MAX as u64);
    let Some(vary) = vary.filter(|_| short) else {
        return Fetched::Live(Live { response, begun: Vec::new(), _place: place });
    };
    let (mut begun, mut length) = (Vec::new(), 0);
    let whole = async {
        while let Some(piece) = response.chunk().await.map_err(|error| explain(&error.without_url()))? {
            length += piece.len();
            begun.push(piece);
            if length > BODY_MAX {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let limit = gateway.0.settings.answer_timeout;
    let late = || Err(format!("the answer did not end within {} ms", limit.as_millis()));
    match tokio::time::timeout(limit, whole).await.unwrap_or_else(|_| late()) {
        Ok(true) => {}
        Ok(false) => return Fetched::Live(Live { response, begun, _place: place }),
        Err(why) => return Fetched::Unreachable(unreachable(way, &why), None),
    }
    let kept = Arc::new(Kept {
        headers: kept_headers(response.headers()),
        body: begun.concat().into(),
        good_at: good_at(response.headers()),
    });
    let (key, keep) = (key.clone(), Arc::clone(&kept));
    gateway.on_shelf(move |shelf| shelf.keep(&key, vary, &keep)).await;
    Fetched::Whole(kept)
}

fn kept_headers(origin: &HeaderMap) -> HeaderMap {
    let mut headers = policy::to_till(origin);
    for of_this_time in [header::AGE, header::WARNING, header::CONTENT_LENGTH] {
        headers.remove(of_this_time);
    }
    headers
}

/// An answer out of somebody else's cache was good when that one had it.
fn good_at(origin: &HeaderMap) -> Timestamp {
    let age =
        origin.get(header::AGE).and_then(|age| age.to_str().ok()).and_then(|age| age.parse::<i64>().ok());
    let millis = age.filter(|age| *age > 0).unwrap_or(0).saturating_mul(1_000);
    Timestamp::from_millis(wall().millis().saturating_sub(millis))
}

/// Hands an answer on as it comes.
pub(super) fn hand_on(response: reqwest::Response, place: OwnedSemaphorePermit) -> Response {
    Live { response, begun: Vec::new(), _place: place }.into_response()
}

impl Live {
    /// The answer's copy goes on in a task of its own, so that a till that does not read holds its place for a bounded
    /// time only. One that is cut short is an error to the till, never a shorter answer.
    pub(super) fn into_response(self) -> Response {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = self.response.status();
        *answer.headers_mut() = policy::to_till(self.response.headers());
        let (pieces, waiting) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            if !matches!(tokio::time::timeout(WHOLE_LIMIT, self.copy(pieces)).await, Ok(Ok(()))) {
                tracing::debug!("an answer was not handed on to its end");
            }
        });
        let taken = stream::unfold(Some(waiting), |waiting| async {
            let mut waiting = waiting?;
            match waiting.recv().await {
                Some(Piece::Data(data)) => Some((Ok(data), Some(waiting))),
                Some(Piece::End) => None,
                None => Some((Err(std::io::Error::other("the answer broke off")), None)),
            }
        });
        *answer.body_mut() = Body::from_stream(taken);
        answer
    }

    async fn copy(self, pieces: mpsc::Sender<Piece>) -> Result<(), &'static str> {
        let Self { mut response, begun, _place } = self;
        let mut length = 0_usize;
        for piece in begun {
            length += piece.len();
            pieces.send(Piece::Data(piece)).await.map_err(|_| "the till has gone")?;
        }
        while let Some(piece) = response.chunk().await.map_err(|_| "the answer broke off")? {
            length += piece.len();
            if length > ANSWER_MAX {
                return Err("the answer is too long");
            }
            pieces.send(Piece::Data(piece)).await.map_err(|_| "the till has gone")?;
        }
        pieces.send(Piece::End).await.map_err(|_| "the till has gone")
    }
}

/// A piece of an answer; one that ends without `End` was cut short.
enum Piece {
    Data(Bytes),
    End,
}
