//! A fleet server, an operator and devices, for the stories.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use rcgen::{CertificateParams, KeyPair};
use reqwest::tls::{Certificate, Identity};
use samovar_fleet::assemble::{self, Running};
use samovar_fleet::config::Config;
use samovar_wire::encoding::{hex, sha256};
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where a server keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

/// SQLite, and PostgreSQL when there is one.
pub(crate) fn backends() -> Vec<Backend> {
    match std::env::var("SAMOVAR_TEST_POSTGRES") {
        Ok(_) => vec![Backend::Sqlite, Backend::Postgres],
        Err(_) => vec![Backend::Sqlite],
    }
}

/// A fresh, empty PostgreSQL database.
pub(crate) async fn fresh_postgres() -> String {
    let server = std::env::var("SAMOVAR_TEST_POSTGRES").unwrap();
    let name = format!("samovar_{}", uuid::Uuid::now_v7().simple());
    let connection = sea_orm::Database::connect(&server).await.unwrap();
    connection.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
    connection.close().await.unwrap();
    let (base, _) = server.rsplit_once('/').unwrap();
    format!("{base}/{name}")
}

/// An answer: status, headers and body.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The slug of the problem.
    pub(crate) fn slug(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default().trim_start_matches("urn:samovar:problem:")
    }
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null);
    Answer { status, headers, body }
}

/// A configuration for tests: free ports, no broker.
pub(crate) fn config(settings: &[&str]) -> Config {
    let mut all = vec!["server.listen=127.0.0.1:0", "server.https_listen=127.0.0.1:0", "broker.url=none"];
    all.extend(settings);
    let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
    Config::load(None, &all).unwrap()
}

/// A running server with its first admin.
pub(crate) struct Fleet {
    pub(crate) running: Running,
    pub(crate) dir: TempDir,
    pub(crate) admin: String,
    http: reqwest::Client,
}

impl Fleet {
    pub(crate) async fn start(backend: Backend, settings: &[&str]) -> Self {
        let mut config = config(settings);
        if backend == Backend::Postgres {
            config.database.url = fresh_postgres().await;
        }
        Self::start_with(config).await
    }

    pub(crate) async fn start_with(config: Config) -> Self {
        // Done by `main` in the program; here every test may be the first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let running = assemble::start(config, dir.path()).await.unwrap();
        let http = client(None, None);
        let mut fleet = Self { running, dir, admin: String::new(), http };
        if let Some((name, password)) = fleet.running.first_admin.clone() {
            fleet.admin = fleet.token(&name, &password).await;
        }
        fleet
    }

    pub(crate) fn http(&self) -> String {
        format!("http://{}", self.running.app.addresses.http)
    }

    pub(crate) fn https(&self) -> String {
        format!("https://localhost:{}", self.running.app.addresses.https.port())
    }

    pub(crate) fn ca(&self) -> String {
        self.running.app.authority.pem().to_owned()
    }

    /// Logs in.
    pub(crate) async fn log_in(&self, name: &str, password: &str) -> Answer {
        let body = json!({"name": name, "password": password}).to_string();
        send(json_body(self.http.post(format!("{}/api/v1/login", self.http())), body)).await
    }

    pub(crate) async fn token(&self, name: &str, password: &str) -> String {
        self.log_in(name, password).await.body["token"].as_str().unwrap().to_owned()
    }

    /// A request to the API with a token.
    pub(crate) async fn api(&self, token: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.http()));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = json_body(request, body.to_string());
        }
        send(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.api(&self.admin, Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.api(&self.admin, Method::POST, path, Some(body)).await
    }

    /// Adds a store of the US.
    pub(crate) async fn store(&self, id: &str) {
        let answer = self.post("/api/v1/stores", json!({"id": id, "country": "US", "name": "x"})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    }

    /// Makes a claim code.
    pub(crate) async fn claim(&self, store: &str, device: &str, expires_s: u64) -> String {
        let body = json!({"store": store, "device": device, "class": "pos", "expires_s": expires_s});
        let answer = self.post("/api/v1/claims", body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        answer.body["claim"].as_str().unwrap().to_owned()
    }

    /// Uses a claim code over HTTPS without a certificate.
    pub(crate) async fn activate(&self, claim: &str, key: &KeyPair) -> Answer {
        let body = json!({"claim": claim, "csr": csr(key), "hardware": {"model": "till"}}).to_string();
        let http = client(Some(&self.ca()), None);
        send(json_body(http.post(format!("{}/activate/v1/claims", self.https())), body)).await
    }

    /// A device of a store (which it adds if need be), activated.
    pub(crate) async fn device(&self, store: &str, device: &str) -> Device {
        if self.get(&format!("/api/v1/stores/{store}")).await.status == StatusCode::NOT_FOUND {
            self.store(store).await;
        }
        let key = KeyPair::generate().unwrap();
        let answer = self.activate(&self.claim(store, device, 600).await, &key).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        Device::new(&answer.body, &key)
    }

    pub(crate) async fn count(&self, query: &str) -> u64 {
        self.get(&format!("/api/v1/orders:count{query}")).await.body["count"].as_u64().unwrap()
    }
}

/// The ledger of every device, unless it says otherwise.
pub(crate) const LEDGER: &str = "0199-ledger";

/// An activated device.
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) http: reqwest::Client,
}

impl Device {
    pub(crate) fn new(answer: &Value, key: &KeyPair) -> Self {
        let text = |field: &str| answer[field].as_str().unwrap();
        Self {
            id: text("device").to_owned(),
            http: client(Some(text("ca")), Some((text("certificate"), key))),
        }
    }

    /// Sends a batch.
    pub(crate) async fn send(&self, origin: &str, batch: &Value) -> Answer {
        send(self.request(origin, &self.id).body(batch.to_string())).await
    }

    /// Sends a batch to be judged only.
    pub(crate) async fn shadow(&self, origin: &str, batch: &Value) -> Answer {
        send(self.request(origin, &self.id).header("samovar-shadow", "us-west").body(batch.to_string())).await
    }

    /// Compares ranges of a ledger.
    pub(crate) async fn reconcile(&self, origin: &str, ledger: &str, ranges: Value) -> Answer {
        let body = json!({"device": self.id, "ledger": ledger, "ranges": ranges}).to_string();
        send(json_body(self.http.post(format!("{origin}/v1/orders:reconcile")), body)).await
    }

    /// A batch request without its body.
    pub(crate) fn request(&self, origin: &str, named: &str) -> reqwest::RequestBuilder {
        self.http
            .post(format!("{origin}/v1/orders:batch"))
            .header("content-type", "application/json")
            .header("samovar-device", named)
            .header("samovar-ledger", LEDGER)
            .header("udl", "US")
    }
}

/// One order of a batch.
pub(crate) fn order(key: &str, seq: u64, body: &str) -> Value {
    json!({
        "id": uuid::Uuid::now_v7().to_string(), "key": key, "sha256": hex(&sha256(body.as_bytes())), "order_no": key,
        "seq": seq, "udl": "US", "accepted_at": "2026-11-20T00:00:00.000Z",
        "body": serde_json::from_str::<Value>(body).unwrap(),
    })
}

/// A batch.
pub(crate) fn batch(orders: &[Value]) -> Value {
    json!({"batch": uuid::Uuid::now_v7().to_string(), "orders": orders})
}

/// The statuses of a batch's answer.
pub(crate) fn statuses(answer: &Answer) -> Vec<String> {
    let results =
        answer.body["results"].as_array().unwrap_or_else(|| panic!("{} {}", answer.status, answer.body));
    results.iter().map(|result| result["status"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn csr(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

pub(crate) fn json_body(
    request: reqwest::RequestBuilder,
    body: impl Into<reqwest::Body>,
) -> reqwest::RequestBuilder {
    request.header("content-type", "application/json").body(body)
}

/// An HTTP client that trusts one authority and shows one certificate.
pub(crate) fn client(ca: Option<&str>, identity: Option<(&str, &KeyPair)>) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let roots = ca.map(|ca| Certificate::from_pem_bundle(ca.as_bytes()).unwrap()).unwrap_or_default();
    let mut builder = reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only(roots);
    if let Some((certificate, key)) = identity {
        let pem = format!("{certificate}{}", key.serialize_pem());
        builder = builder.identity(Identity::from_pem(pem.as_bytes()).unwrap());
    }
    builder.build().unwrap()
}

/// A file of a data directory.
pub(crate) fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}
