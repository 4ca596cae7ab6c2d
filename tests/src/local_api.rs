//! The agent's local API as a till's software uses it (contracts §1).

use anyhow::{Context, Result, bail};
use http::{HeaderMap, Method};
use samovar_wire::orders::OrdersSummary;
use samovar_wire::problem::Problem;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the agent answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body bytes.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; `Null` when it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A text field of the body; empty when absent.
    #[must_use]
    pub fn text(&self, field: &str) -> String {
        self.json().get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// A header; empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The slug of a problem document; says so when the answer is none or breaks its form.
    #[must_use]
    pub fn problem(&self) -> String {
        let media_type = self.header("content-type");
        if !media_type.starts_with(samovar_wire::problem::CONTENT_TYPE) {
            return format!("not a problem document: {} {media_type}", self.status);
        }
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(problem) if problem.status != self.status => {
                format!("status {} in a document answered with {}", problem.status, self.status)
            }
            Ok(problem) => problem.slug().to_owned(),
            Err(error) => format!("unreadable problem document: {error}"),
        }
    }
}

/// A client of one agent.
#[derive(Debug, Clone)]
pub struct LocalApi {
    client: reqwest::Client,
    base: String,
}

/// How long an answer may take: far above what the agent promises, so that a failure is the agent's.
const ANSWER: Duration = Duration::from_secs(30);

impl LocalApi {
    /// A client for `http://127.0.0.1:PORT`.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(base: &str) -> Result<Self> {
        Ok(Self { client: http_client(ANSWER)?, base: base.trim_end_matches('/').to_owned() })
    }

    /// The address of the API.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// One request with headers of the caller's choice.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.with_context(|| format!("no answer to {path}"))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.with_context(|| format!("broken answer to {path}"))?;
        Ok(Answer { status, headers, body: body.to_vec() })
    }

    /// `GET`.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, &[], "").await
    }

    /// `GET` whose answer must be 200 and JSON.
    ///
    /// # Errors
    /// When there is no such answer.
    pub async fn get_json(&self, path: &str) -> Result<Value> {
        let answer = self.get(path).await?;
        if answer.status != 200 {
            bail!("GET {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(answer.json())
    }

    /// `POST` of a JSON text.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Result<Answer> {
        self.send(Method::POST, path, &[("content-type", "application/json")], body).await
    }

    /// Hands over one order.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn place(&self, order: &Value) -> Result<Answer> {
        self.post("/v1/orders", order.to_string()).await
    }

    /// Hands over one order under a key of its own.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn place_with_key(&self, key: &str, order: &Value) -> Result<Answer> {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        self.send(Method::POST, "/v1/orders", &headers, order.to_string()).await
    }

    /// Hands over one order as a till must: again and again with the same key until the answer is not "unknown".
    ///
    /// # Errors
    /// When there is no such answer by the deadline.
    pub async fn place_until_answered(&self, order: &Value, deadline: Duration) -> Result<Answer> {
        let started = crate::clock::now();
        loop {
            match self.place(order).await {
                Ok(answer) if answer.status < 500 => return Ok(answer),
                last if started.elapsed() > deadline => {
                    bail!("no answer for {} s, last: {last:?}", deadline.as_secs());
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The record of an order, by id or number.
    ///
    /// # Errors
    /// When there is none.
    pub async fn order(&self, id: &str) -> Result<Value> {
        self.get_json(&format!("/v1/orders/{}", percent_encode(id))).await
    }

    /// All records in one state, page by page.
    ///
    /// # Errors
    /// When a page cannot be had.
    pub async fn orders_in(&self, state: &str) -> Result<Vec<Value>> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let page =
                self.get_json(&format!("/v1/orders?state={state}&after_seq={after}&limit=200")).await?;
            let page =
                page.get("orders").and_then(Value::as_array).context("a page has no `orders`")?.clone();
            let Some(last) = page.last() else { return Ok(all) };
            let seq = last.get("seq").and_then(Value::as_u64).context("a record has no `seq`")?;
            if seq <= after {
                bail!("the page after {after} ends at {seq}");
            }
            after = seq;
            all.extend(page);
        }
    }

    /// Counts by state.
    ///
    /// # Errors
    /// When they cannot be had.
    pub async fn summary(&self) -> Result<OrdersSummary> {
        let summary = self.get_json("/v1/orders:summary").await?;
        serde_json::from_value(summary).context("the summary cannot be read")
    }

    /// The conditions that hold, with their details.
    ///
    /// # Errors
    /// When the status cannot be had.
    pub async fn conditions(&self) -> Result<BTreeMap<String, String>> {
        let status = self.get_json("/v1/status").await?;
        let list = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        let text = |condition: &Value, field: &str| {
            condition.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Ok(list.iter().map(|condition| (text(condition, "name"), text(condition, "detail"))).collect())
    }
}

/// An HTTP client with a deadline that trusts no certificate; for plain HTTP on loopback.
///
/// # Errors
/// When it cannot be made.
pub fn http_client(deadline: Duration) -> Result<reqwest::Client> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot configure TLS")?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5))
        .timeout(deadline)
        .build()
        .context("cannot make an HTTP client")
}

/// Percent-encodes everything but unreserved characters.
#[must_use]
pub fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
