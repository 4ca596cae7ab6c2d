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
use samovar_wire::plain;
use samovar_wire::problem::Problem;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
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
    /// Whether one runs cannot be told.
    #[error("cannot tell whether an agent runs on {data}: {why}")]
    Hidden { data: PathBuf, why: String },
    /// None runs, and the ledger it left does not open.
    #[error("no agent is running on {data}, and its ledger cannot be opened here: {why}")]
    LedgerClosed { data: PathBuf, why: String },
    /// It cannot be reached.
    #[error("the agent at {url} cannot be reached (start it if it does not run): {why}")]
    Unreachable { url: String, why: String },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It tried, and what came of it is worth showing all the same.
    #[error("{why}")]
    Failed { shown: String, why: String },
}

impl AskError {
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Failed { .. } => 1,
            Self::LedgerClosed { .. } => 4,
            Self::NotRunning(_) | Self::Hidden { .. } | Self::Unreachable { .. } => 5,
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
        let answer = match data_dir::read_run(&self.data) {
            Ok(Some(run)) => self.ask_running(&run, method.clone(), path, body.as_ref()).await,
            Ok(None) => Err(AskError::NotRunning(self.data.clone())),
            Err(error) => Err(AskError::Hidden { data: self.data.clone(), why: explain(&error) }),
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
        let ledger = match Ledger::open(settings, heartbeat) {
            Ok(ledger) => ledger,
            Err(error) => {
                let (data, why) = (self.data.clone(), explain(&error));
                return Some(Err(AskError::LedgerClosed { data, why }));
            }
        };
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
        let token = store::read(&self.data.join("local.token"));
        if let Some(token) = token.as_ref().ok().and_then(|bytes| String::from_utf8(bytes.clone()?).ok()) {
            request = request.bearer_auth(token.trim());
        }
        if let Some(body) = body {
            request = request.header(http::header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let response = request.send().await.map_err(|error| unreachable(explain(&error.without_url())))?;
        let status = response.status();
        let bytes = crate::net::read_limited(response, 64 * 1024 * 1024, DEADLINE)
            .await
            .map_err(|error| unreachable(explain(&error)))?;
        match (token, status) {
            (Err(error), StatusCode::UNAUTHORIZED) => Err(AskError::Refused(format!(
                "{}: do this as root or as a member of the group samovar-tech",
                explain(&error)
            ))),
            _ => answered(status, &bytes),
        }
    }
}

fn answered(status: StatusCode, bytes: &[u8]) -> Result<Value, AskError> {
    if status.is_success() {
        return document(bytes)
            .map_err(|error| AskError::Refused(format!("the answer cannot be read: {error}")));
    }
    let problem = serde_json::from_slice::<Problem>(bytes).ok().filter(|problem| !problem.detail.is_empty());
    Err(AskError::Refused(
        problem
            .map_or_else(|| format!("the agent answered HTTP {}", status.as_u16()), |problem| problem.detail),
    ))
}

/// Reads an answer. An order's body stands in it as it came and may hold what is JSON and yet cannot be held as values (half
/// a character, nesting without end): such a field is shown as its text.
fn document(bytes: &[u8]) -> serde_json::Result<Value> {
    let whole = serde_json::from_slice(bytes);
    if whole.is_ok() {
        return whole;
    }
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(bytes)?;
    let value = |raw: &RawValue| -> Value {
        serde_json::from_str(raw.get()).unwrap_or_else(|_| Value::from(raw.get()))
    };
    Ok(fields.iter().map(|(name, raw)| (name.clone(), value(raw))).collect())
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
    plain::cell(value.pointer(pointer).and_then(Value::as_str).unwrap_or("-")).into_owned()
}

/// An answer as `--json` prints it.
pub(super) fn json(answer: &Value) -> String {
    plain::json(&format!("{answer:#}")).into_owned()
}

/// Why something is done: kept in the audit log, so it must say something.
pub(super) fn reason(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if text.is_empty() { Err("say why: it is kept in the audit log") } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_something() {
        assert_eq!(reason(" the guest left "), Ok("the guest left".into()));
        assert!(reason("").is_err() && reason(" \t").is_err());
    }

    #[test]
    fn words_of_strangers_stay_in_their_cell() {
        let record = serde_json::json!({ "order_no": "A\u{202e}1\n\u{1b}[2J", "n": 1 });
        assert_eq!(text(&record, "/order_no"), "A\u{fffd}1\u{fffd}\u{fffd}[2J");
        assert_eq!((text(&record, "/n"), text(&record, "/none")), ("-".into(), "-".into()));
        assert!(json(&record).contains(r"A\u202e1\n\u001b[2J"), "{}", json(&record));
    }

    #[test]
    fn an_order_whose_body_cannot_be_held_is_shown_all_the_same() {
        let deep = format!("{}{}", "[".repeat(90_000), "]".repeat(90_000));
        for body in [r#"{"x":"\ud800"}"#, &deep] {
            let answer = document(format!(r#"{{"state":"pending","body":{body}}}"#).as_bytes()).unwrap();
            assert_eq!((answer["state"].as_str(), answer["body"].as_str()), (Some("pending"), Some(body)));
        }
        assert!(document(b"<html>").is_err());
    }

    #[tokio::test]
    async fn without_an_agent_each_case_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::find(dir.path());
        let error = agent.get("/v1/status").await.unwrap_err();
        assert!(matches!(error, AskError::NotRunning(_)), "{error}");
        // A directory in the file's place is what a wrong mount leaves.
        std::fs::create_dir(dir.path().join("run.json")).unwrap();
        let error = agent.get("/v1/status").await.unwrap_err();
        assert!(error.to_string().starts_with("cannot tell whether an agent runs on"), "{error}");
        std::fs::remove_dir(dir.path().join("run.json")).unwrap();
        std::fs::create_dir(dir.path().join("orders.db")).unwrap();
        let error = agent.get("/v1/orders:summary").await.unwrap_err();
        assert!(matches!(error, AskError::LedgerClosed { .. }), "{error}");
        assert_eq!(error.exit_code(), 4);
    }
}
