//! Speaks to the running agent: finds it through `run.json`, shows it the token if it may be read. Without an agent the
//! ledger is opened here and asked through the same handlers; it has one owner, so this works only while none runs.

use crate::assemble;
use crate::config::Config;
use crate::data_dir::{self, Run};
use crate::heartbeat::Heartbeats;
use crate::http::Caller;
use crate::net::explain;
use crate::orders::intake::{self, Intake};
use crate::orders::ledger::{Ledger, LedgerSettings};
use crate::orders::run::InFlight;
use crate::store;
use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use samovar_wire::problem::Problem;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

const DEADLINE: Duration = Duration::from_secs(30);

/// The agent of a data directory.
pub(super) struct Agent {
    data: PathBuf,
}

/// The agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// None runs there.
    #[error("no agent is running on {0}: start it, or name its directory with --data")]
    NotRunning(PathBuf),
    /// It cannot be reached.
    #[error("the agent at {url} cannot be reached, start it if it does not run: {why}")]
    Unreachable { url: String, why: String },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

impl AskError {
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::NotRunning(_) | Self::Unreachable { .. } => 5,
        }
    }
}

impl Agent {
    pub(super) fn find(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, AskError> {
        self.ask(Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Result<Value, AskError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    pub(super) async fn put(&self, path: &str, body: Value) -> Result<Value, AskError> {
        self.ask(Method::PUT, path, Some(body)).await
    }

    pub(super) async fn delete(&self, path: &str, body: Value) -> Result<Value, AskError> {
        self.ask(Method::DELETE, path, Some(body)).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, AskError> {
        let run = data_dir::read_run(&self.data).ok().flatten();
        let answer = match run {
            Some(run) => self.ask_running(&run, method.clone(), path, body.as_ref()).await,
            None => Err(AskError::NotRunning(self.data.clone())),
        };
        match answer {
            // A run.json may have been left behind by an agent that was killed.
            Err(error @ (AskError::NotRunning(_) | AskError::Unreachable { .. })) => {
                self.ask_ledger(method, path, body).await.unwrap_or(Err(error))
            }
            other => other,
        }
    }

    /// `None` when the question is not one for the ledger, or the ledger is not to be had.
    async fn ask_ledger(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Option<Result<Value, AskError>> {
        let file = self.data.join("orders.db");
        // Comparing with an origin needs a running agent.
        let for_ledger = path.starts_with("/v1/orders") && !path.starts_with("/v1/orders:reconcile");
        if !for_ledger || !file.exists() {
            return None;
        }
        let config = Config::default();
        let heartbeat = Heartbeats::default().register("ledger", DEADLINE);
        // Nothing is accepted here, so no key is made; the keys that are there open bodies.
        let settings =
            LedgerSettings { encrypt_bodies: false, ..assemble::ledger_settings(&self.data, &config) };
        let ledger = Ledger::open(settings, heartbeat).ok()?;
        let router = intake::routes(Intake {
            ledger,
            home: Arc::new(|| None),
            events: Arc::new(|_, _| {}),
            in_flight: InFlight::default(),
        });
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .extension(Caller { trusted: true })
            .body(body)
            .ok()?;
        let response = match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status();
        let bytes = response.into_body().collect().await.ok()?.to_bytes();
        Some(answered(status, &bytes))
    }

    async fn ask_running(
        &self,
        run: &Run,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, AskError> {
        let url = format!("{}{path}", run.local_api);
        let unreachable = |why: String| AskError::Unreachable { url: run.local_api.clone(), why };
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build();
        let mut request = client.map_err(|error| unreachable(explain(&error)))?.request(method, url);
        let token = store::read(&self.data.join("local.token")).ok().flatten();
        if let Some(token) = token.and_then(|bytes| String::from_utf8(bytes).ok()) {
            request = request.bearer_auth(token.trim());
        }
        if let Some(body) = body {
            request = request.header(http::header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let response = request.send().await.map_err(|error| unreachable(explain(&error)))?;
        let status = response.status();
        let bytes = crate::net::read_limited(response, 64 * 1024 * 1024, DEADLINE)
            .await
            .map_err(|error| unreachable(explain(&error)))?;
        answered(status, &bytes)
    }
}

fn answered(status: StatusCode, bytes: &[u8]) -> Result<Value, AskError> {
    if status.is_success() {
        let unreadable =
            |error: serde_json::Error| AskError::Refused(format!("the answer cannot be read: {error}"));
        return serde_json::from_slice(bytes).map_err(unreadable);
    }
    let problem = serde_json::from_slice::<Problem>(bytes).ok().filter(|problem| !problem.detail.is_empty());
    Err(AskError::Refused(
        problem.map_or_else(|| format!("HTTP {}", status.as_u16()), |problem| problem.detail),
    ))
}

/// A text as one segment of a path.
pub(super) fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
        escaped
    })
}

/// A text field, or a dash. What came from outside must not steer the terminal or break the row.
pub(super) fn text(value: &Value, pointer: &str) -> String {
    let text = value.pointer(pointer).and_then(Value::as_str).unwrap_or("-");
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
