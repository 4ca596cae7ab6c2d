//! Sends one batch to an origin and reads what came back. IO only; what an answer means is in `outcome`.

use super::ledger::Outgoing;
use super::outcome::{BatchOutcome, RawAnswer, read};
use crate::net::{explain, read_limited};
use http::{HeaderMap, HeaderValue, header};
use samovar_wire::encoding::hex;
use samovar_wire::orders::{
    BatchWriter, HEADER_DEVICE, HEADER_IDEMPOTENCY_KEY, HEADER_LEDGER, HEADER_STORE, HEADER_UDL,
    OutgoingOrder,
};
use samovar_wire::{Country, DeviceId, StoreId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The largest answer to a batch that is read.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The way to an origin.
#[derive(Debug, Clone)]
pub struct Way {
    /// Speaks to this origin and no other.
    pub client: reqwest::Client,
    /// `scheme://domain[:port]`
    pub base_url: String,
}

/// Who sends.
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
}

/// Sends orders of one country; every order gets an answer or the batch as a whole does.
pub async fn send(sender: &Sender, way: &Way, udl: &Country, orders: &[Outgoing]) -> BatchOutcome {
    let batch_id = uuid::Uuid::now_v7().to_string();
    let headers = match headers(sender, udl, &batch_id) {
        Ok(headers) => headers,
        Err(error) => return BatchOutcome::Unreachable(format!("a header cannot be sent: {error}")),
    };
    let body = write(&batch_id, udl, orders);
    let request =
        way.client.post(format!("{}/v1/orders:batch", way.base_url)).headers(headers).body(body).send();
    let response = match tokio::time::timeout(sender.deadline, request).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return BatchOutcome::Unreachable(explain(&error)),
        Err(_) => {
            return BatchOutcome::Unreachable(format!("no answer within {} ms", sender.deadline.as_millis()));
        }
    };
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    match read_limited(response, MAX_ANSWER_BYTES, sender.deadline).await {
        Ok(body) => {
            let ids: Vec<String> = orders.iter().map(|order| order.id.clone()).collect();
            read(&RawAnswer { status, retry_after, body: &body }, &batch_id, &ids)
        }
        Err(error) => BatchOutcome::Unreachable(explain(&error)),
    }
}

fn write(batch_id: &str, udl: &Country, orders: &[Outgoing]) -> Vec<u8> {
    let mut writer = BatchWriter::new(batch_id);
    for order in orders {
        let sha256 = hex(&order.sha256);
        let outgoing = OutgoingOrder {
            id: &order.id,
            key: &order.key,
            sha256: &sha256,
            order_no: &order.order_no,
            seq: order.seq,
            udl: udl.as_str(),
            accepted_at: order.accepted_at,
        };
        writer.push(&outgoing, &order.body);
    }
    writer.finish()
}

pub(super) fn headers(
    sender: &Sender,
    udl: &Country,
    batch_id: &str,
) -> Result<HeaderMap, header::InvalidHeaderValue> {
    let traceparent = format!("00-{:032x}-{:016x}-01", fastrand::u128(1..), fastrand::u64(1..));
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HEADER_DEVICE, HeaderValue::from_str(sender.device.as_str())?);
    headers.insert(HEADER_STORE, HeaderValue::from_str(sender.store.as_str())?);
    headers.insert(HEADER_LEDGER, HeaderValue::from_str(&sender.ledger.borrow())?);
    headers.insert(HEADER_UDL, HeaderValue::from_str(udl.as_str())?);
    headers.insert(HEADER_IDEMPOTENCY_KEY, HeaderValue::from_str(batch_id)?);
    headers.insert("traceparent", HeaderValue::from_str(&traceparent)?);
    if let Some(token) = &sender.token {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

/// `Retry-After`, in either form. A date is read against the `Date` of the same answer, so that our clock does not
/// matter.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let wanted = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = wanted.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(wanted).ok()?;
    let now = httpdate::parse_http_date(text(header::DATE)?).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
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
    }
}
