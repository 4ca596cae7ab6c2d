//! Sends orders to an origin and reads what came back. IO only; what an answer means is in `outcome`.
//!
//! ```text
//! send ─► batch:  one request for all, gzip if asked for and read there
//!      └► single: one request per order, to an API of the origin's own
//! ```

mod batch;
mod single;

pub use batch::Gzip;
pub use single::AT_ONCE;

use super::backoff::MAX_RETRY_AFTER;
use super::ledger::Outgoing;
use super::outcome::{BatchOutcome, RawAnswer};
use crate::clock::{mono, wall};
use crate::config::{SingleSection, header_safe};
use crate::net::figures::Stopwatch;
use crate::net::{BodyError, explain, read_limited};
use http::{HeaderMap, HeaderValue, header};
use samovar_wire::orders::{
    HEADER_DEVICE, HEADER_IDEMPOTENCY_KEY, HEADER_LEDGER, HEADER_SHADOW, HEADER_STORE, HEADER_UDL,
};
use samovar_wire::{Country, DeviceId, OriginId, StoreId};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The way to an origin.
#[derive(Debug, Clone)]
pub struct Way {
    /// Who is there.
    pub origin: OriginId,
    /// Speaks to this origin and no other.
    pub client: reqwest::Client,
    /// `scheme://domain[:port]`
    pub base_url: String,
    /// Measures how long its answers take.
    pub stopwatch: Option<Stopwatch>,
}

/// Who sends, and how.
#[derive(Debug, Clone)]
pub struct Sender {
    /// The device.
    pub device: DeviceId,
    /// Its store.
    pub store: StoreId,
    /// The ledger's UUID; another one when the ledger had to be begun anew.
    pub ledger: watch::Receiver<Arc<str>>,
    /// Bearer token, when the origin wants one.
    pub token: Option<String>,
    /// Longest time from the request to the end of the answer.
    pub deadline: Duration,
    /// In batches or one by one.
    pub protocol: Protocol,
}

/// How orders are handed over.
#[derive(Debug, Clone)]
pub enum Protocol {
    /// In batches, as the origin contract has them; compressed or not.
    Batch(Option<Gzip>),
    /// One by one.
    Single(Arc<SingleSection>),
}

/// What is sent together.
#[derive(Debug, Clone, Copy)]
pub struct Parcel<'a> {
    /// The country of all of them.
    pub udl: &'a Country,
    /// The orders.
    pub orders: &'a [Outgoing],
    /// Only to be compared, not to be recorded: the origin that the orders really belong to.
    pub shadow_of: Option<&'a OriginId>,
}

/// Sends orders of one country; every order gets an answer or the parcel as a whole does.
pub async fn send(sender: &Sender, way: &Way, parcel: Parcel<'_>) -> BatchOutcome {
    let orders = parcel.orders;
    let outcome = match &sender.protocol {
        Protocol::Batch(gzip) => batch::send(sender, way, parcel, gzip.as_ref()).await,
        Protocol::Single(rules) => single::send(sender, way, parcel, rules).await,
    };
    let bodies: Vec<&[u8]> = orders.iter().map(|order| order.body.as_slice()).collect();
    outcome.without_quotes(&bodies)
}

/// An answer that was read to its end.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn raw(&self) -> RawAnswer<'_> {
        RawAnswer { status: self.status, retry_after: retry_after(&self.headers), body: &self.body }
    }
}

/// One request and its whole answer, within the sender's deadline for each.
async fn exchange(
    sender: &Sender,
    way: &Way,
    request: reqwest::RequestBuilder,
) -> Result<Answer, BatchOutcome> {
    let began = mono();
    let response = match tokio::time::timeout(sender.deadline, request.send()).await {
        Ok(Ok(response)) => response,
        // The client has a deadline of its own; a connection that is never made is another matter.
        Ok(Err(error)) if error.is_timeout() && !error.is_connect() => {
            return Err(BatchOutcome::Stalled(explain(&error.without_url())));
        }
        // The address may hold an order's number, which belongs in no log.
        Ok(Err(error)) => return Err(BatchOutcome::Unreachable(explain(&error.without_url()))),
        Err(_) => {
            let limit = sender.deadline.as_millis();
            return Err(BatchOutcome::Stalled(format!("no answer within {limit} ms")));
        }
    };
    if let Some(stopwatch) = &way.stopwatch {
        stopwatch.record(mono().after(began));
    }
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    match read_limited(response, MAX_ANSWER_BYTES, sender.deadline).await {
        Ok(body) => Ok(Answer { status, headers, body }),
        Err(error @ BodyError::TimedOut { .. }) => Err(BatchOutcome::Stalled(explain(&error))),
        Err(BodyError::Broken(error)) if error.is_timeout() => {
            Err(BatchOutcome::Stalled(explain(&error.without_url())))
        }
        Err(error) => Err(BatchOutcome::Unreachable(explain(&error))),
    }
}

/// The headers of a request that carries orders; `key` makes its repeat safe.
fn headers_of(
    sender: &Sender,
    parcel: &Parcel<'_>,
    key: &str,
) -> Result<HeaderMap, header::InvalidHeaderValue> {
    let mut headers = headers(sender, parcel.udl, key)?;
    if let Some(real) = parcel.shadow_of {
        headers.insert(HEADER_SHADOW, HeaderValue::from_str(real.as_str())?);
    }
    Ok(headers)
}

/// The headers of every request to an origin.
pub(super) fn headers(
    sender: &Sender,
    udl: &Country,
    key: &str,
) -> Result<HeaderMap, header::InvalidHeaderValue> {
    let traceparent = format!("00-{:032x}-{:016x}-01", fastrand::u128(1..), fastrand::u64(1..));
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HEADER_DEVICE, HeaderValue::from_str(sender.device.as_str())?);
    headers.insert(HEADER_STORE, HeaderValue::from_str(sender.store.as_str())?);
    headers.insert(HEADER_LEDGER, HeaderValue::from_str(&sender.ledger.borrow())?);
    headers.insert(HEADER_UDL, HeaderValue::from_str(udl.as_str())?);
    headers.insert(HEADER_IDEMPOTENCY_KEY, HeaderValue::from_str(&header_safe(key))?);
    headers.insert("traceparent", HeaderValue::from_str(&traceparent)?);
    if let Some(token) = &sender.token {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

fn unsendable(error: &header::InvalidHeaderValue) -> BatchOutcome {
    BatchOutcome::Unreachable(format!("a header cannot be sent: {error}"))
}

/// `Retry-After`, in either form, at most [`MAX_RETRY_AFTER`]. A date is read against the `Date` of the same answer, so
/// that our clock does not matter; without one our clock has to do.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let wanted = text(header::RETRY_AFTER)?;
    let wait = if !wanted.is_empty() && wanted.bytes().all(|b| b.is_ascii_digit()) {
        // A number too large to be read is a long wait all the same.
        wanted.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        let until = httpdate::parse_http_date(wanted).ok()?;
        let theirs = text(header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        let now = theirs.unwrap_or_else(|| SystemTime::UNIX_EPOCH + since_1970());
        until.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

fn since_1970() -> Duration {
    Duration::from_millis(wall().millis().try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_as_seconds_and_as_a_date_by_the_clock_of_the_origin() {
        let wait = |retry: &'static str, date: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(retry));
            headers.insert(header::DATE, HeaderValue::from_static(date));
            retry_after(&headers)
        };
        let date = "Fri, 20 Nov 1970 09:00:00 GMT";
        assert_eq!(wait(" 7 ", date), Some(Duration::from_secs(7)));
        assert_eq!(wait("Fri, 20 Nov 1970 09:00:06 GMT", date), Some(Duration::from_secs(6)));
        assert_eq!(wait("Fri, 20 Nov 1970 08:00:00 GMT", date), Some(Duration::ZERO));
        assert_eq!(wait("soon", date), None);
        assert_eq!(wait("", date), None);
    }

    #[test]
    fn no_wait_is_longer_than_a_quarter_of_an_hour_whatever_the_clocks_say() {
        for (retry, date) in [
            ("86400", Some("Fri, 20 Nov 1970 09:00:00 GMT")),
            ("99999999999999999999999999", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some("Fri, 20 Nov 1970 09:00:00 GMT")),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some("today")),
            ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(retry));
            if let Some(date) = date {
                headers.insert(header::DATE, HeaderValue::from_static(date));
            }
            assert_eq!(retry_after(&headers), Some(MAX_RETRY_AFTER), "{retry}");
        }
        let mut past = HeaderMap::new();
        past.insert(header::RETRY_AFTER, HeaderValue::from_static("Fri, 20 Nov 1970 09:00:00 GMT"));
        assert_eq!(retry_after(&past), Some(Duration::ZERO));
    }
}
