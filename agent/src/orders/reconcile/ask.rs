//! Asks an origin one question and reads what came back. IO only; what verdicts mean is in `plan`.

use crate::net::{explain, read_limited};
use crate::orders::backoff::MAX_RETRY_AFTER;
use crate::orders::origin::{Protocol, Sender, Way, headers, retry_after};
use crate::orders::outcome::{RawAnswer, words};
use samovar_wire::Country;
use samovar_wire::reconcile::{RangeDigest, ReconcileAnswer, ReconcileRequest};
use std::time::Duration;

/// The largest answer that is read: every range with all its keys, and as many again.
const MAX_ANSWER_BYTES: usize = 2 * 1024 * 1024;

/// What came back.
#[derive(Debug)]
pub(super) enum Reply {
    /// Verdicts.
    Answer(ReconcileAnswer),
    /// This origin does not reconcile.
    Unsupported(String),
    /// It takes orders one by one and need not reconcile.
    OneByOne,
    /// Nothing that can be used; not before this time if one was given.
    Later { why: String, retry_after: Option<Duration> },
}

impl Reply {
    pub(super) const fn later(why: String) -> Self {
        Self::Later { why, retry_after: None }
    }
}

/// Sends one request; always answers within the sender's deadline.
pub(super) async fn ask(
    sender: &Sender,
    way: &Way,
    udl: &Country,
    ledger: &str,
    ranges: Vec<RangeDigest>,
) -> Reply {
    if let Protocol::Single(_) = sender.protocol {
        return Reply::OneByOne;
    }
    let request = ReconcileRequest { device: sender.device.clone(), ledger: ledger.to_owned(), ranges };
    let headers = match headers(sender, udl, &uuid::Uuid::now_v7().to_string()) {
        Ok(headers) => headers,
        Err(error) => return Reply::later(format!("a header cannot be sent: {error}")),
    };
    let body = match serde_json::to_vec(&request) {
        Ok(body) => body,
        Err(error) => return Reply::later(format!("the request cannot be written: {error}")),
    };
    let url = format!("{}/v1/orders:reconcile", way.base_url);
    let sent = way.client.post(url).headers(headers).body(body).send();
    let response = match tokio::time::timeout(sender.deadline, sent).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Reply::later(explain(&error)),
        Err(_) => return Reply::later(format!("no answer within {} ms", sender.deadline.as_millis())),
    };
    let status = response.status().as_u16();
    let wait = retry_after(response.headers()).map(|wait| wait.min(MAX_RETRY_AFTER));
    match read_limited(response, MAX_ANSWER_BYTES, sender.deadline).await {
        Ok(body) => read(&RawAnswer { status, retry_after: wait, body: &body }),
        Err(error) => Reply::later(explain(&error)),
    }
}

fn read(answer: &RawAnswer<'_>) -> Reply {
    match answer.status {
        200..=299 => match serde_json::from_slice(answer.body) {
            Ok(parsed) => Reply::Answer(parsed),
            Err(_) => Reply::later(format!("{} (no verdicts on our ranges)", words(answer))),
        },
        // An origin without this call; some routers say it with 405 or 501.
        404 | 405 | 501 => Reply::Unsupported(words(answer)),
        _ => Reply::Later { why: words(answer), retry_after: answer.retry_after },
    }
}
