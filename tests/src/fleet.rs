//! One real fleet server: as the fleet of a story, or as one of its origins (`--broker none`).

use crate::local_api::{Answer, LocalApi};
use crate::process::{Process, announced};
use crate::{binaries, broker};
use anyhow::{Context, Result, ensure};
use http::Method;
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;

/// How long a server may take to be ready: the first start makes keys and hashes a password.
const READY: Duration = Duration::from_secs(45);

/// What a server is started with.
#[derive(Default)]
pub struct Setup {
    settings: Vec<String>,
    broker: Option<String>,
    database: Option<String>,
}

impl Setup {
    /// A `--set section.key=value`.
    #[must_use]
    pub fn set(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// `none`, `embedded` or the address of a broker; without it the embedded one on a free port.
    #[must_use]
    pub fn broker(mut self, broker: impl Into<String>) -> Self {
        self.broker = Some(broker.into());
        self
    }

    /// Another database than SQLite in the data directory.
    #[must_use]
    pub fn database(mut self, url: impl Into<String>) -> Self {
        self.database = Some(url.into());
        self
    }

    /// Shows a certificate from somewhere else, as an origin does that another fleet vouches for.
    #[must_use]
    pub fn certificate(self, files: &Path) -> Self {
        let file = |name: &str| files.join(name).display().to_string();
        self.set(format!("tls.cert={}", file("origin.pem")))
            .set(format!("tls.key={}", file("origin.key")))
            .set(format!("tls.client_ca={}", file("client-ca.pem")))
    }

    /// Starts the server and logs its first admin in.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(self) -> Result<Fleet> {
        let home = TempDir::with_prefix("samovar-fleet-").context("cannot make a directory")?;
        // The port for devices must be known before the start, because activation tells it to them.
        let mqtt = broker::free_address().await?;
        let mut fleet = Fleet { process: None, http: None, https: None, mqtt, setup: self, home };
        fleet.start().await?;
        Ok(fleet)
    }
}

/// An order as an intake holds it.
#[derive(Debug, Clone, Deserialize)]
pub struct HeldOrder {
    /// Idempotency key.
    pub key: String,
    /// Digest of the body.
    pub sha256: String,
    /// The device that sent it.
    pub device: String,
    /// When the device made it durable.
    pub accepted_at: Option<samovar_wire::Timestamp>,
    /// When the intake recorded it.
    pub received_at: samovar_wire::Timestamp,
}

/// One server.
pub struct Fleet {
    process: Option<Process>,
    http: Option<(LocalApi, String)>,
    https: Option<SocketAddr>,
    mqtt: SocketAddr,
    setup: Setup,
    home: TempDir,
}

impl Fleet {
    /// What a server is started with.
    #[must_use]
    pub fn setup() -> Setup {
        Setup::default()
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The certificate of its authority.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.data().join("ca/ca.pem")
    }

    /// Where the embedded broker listens for devices.
    #[must_use]
    pub const fn mqtt_address(&self) -> SocketAddr {
        self.mqtt
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(binaries::fleet()?);
        command.arg("serve").arg("--data").arg(self.data());
        command.args(["--listen", "127.0.0.1:0", "--https-listen", "127.0.0.1:0"]);
        let broker = self.setup.broker.as_deref().unwrap_or("embedded");
        command.args(["--broker", broker]);
        if broker == "embedded" {
            command.arg("--set").arg(format!("broker.tls_listen={}", self.mqtt));
        }
        if let Some(url) = &self.setup.database {
            command.args(["--database", url]);
        }
        for setting in &self.setup.settings {
            command.args(["--set", setting]);
        }
        Ok(command)
    }

    /// Starts the server on its directory; its first admin is logged in.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(&mut self) -> Result<()> {
        let mut process = Process::start(&mut self.command()?, &self.home.path().join("fleet.log"))?;
        let run = announced(&mut process, &self.data().join("run.json"), READY).await?;
        self.process = Some(process);
        let text = |field: &str| {
            let found = run.get(field).and_then(Value::as_str);
            found.map(ToOwned::to_owned).with_context(|| format!("run.json has no `{field}`"))
        };
        let https = text("https")?;
        let https = https.strip_prefix("https://").context("`https` is not an address")?;
        self.https = Some(https.parse().context("`https` is not an address")?);
        let api = LocalApi::new(&text("http")?)?;
        let token = self.log_in(&api).await?;
        self.http = Some((api, format!("Bearer {token}")));
        Ok(())
    }

    async fn log_in(&self, api: &LocalApi) -> Result<String> {
        let file = self.data().join("admin.txt");
        let text = std::fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (name, password) = (value("name:"), value("password:"));
        let answer =
            api.post("/api/v1/login", json!({ "name": name, "password": password }).to_string()).await?;
        ensure!(answer.status == 200, "the first admin cannot log in: {}", answer.status);
        Ok(answer.text("token"))
    }

    /// Where console and API are.
    ///
    /// # Errors
    /// When it does not run.
    pub fn url(&self) -> Result<&str> {
        Ok(self.http()?.0.base())
    }

    fn http(&self) -> Result<&(LocalApi, String)> {
        self.http.as_ref().context("the fleet server is not running")
    }

    /// Where devices are served over HTTPS.
    ///
    /// # Errors
    /// When it does not run.
    pub fn https(&self) -> Result<SocketAddr> {
        self.https.context("the fleet server is not running")
    }

    /// A request of the admin.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let (api, token) = self.http()?;
        let headers = [("content-type", "application/json"), ("authorization", token.as_str())];
        api.send(method, path, &headers, body.map(Value::to_string).unwrap_or_default()).await
    }

    async fn must(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.ask(method, path, body).await?;
        ensure!((200..300).contains(&answer.status), "{path}: {} {}", answer.status, answer.json());
        Ok(answer.json())
    }

    /// `GET` of the admin that must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.must(Method::GET, path, None).await
    }

    /// Adds a store.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn add_store(&self, id: &str, country: &str, name: &str) -> Result<()> {
        let store = json!({ "id": id, "country": country, "name": name });
        self.must(Method::POST, "/api/v1/stores", Some(&store)).await.map(drop)
    }

    /// Makes a claim code.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn claim(&self, store: &str, device: &str, class: &str) -> Result<String> {
        let wanted = json!({ "store": store, "device": device, "class": class });
        let made = self.must(Method::POST, "/api/v1/claims", Some(&wanted)).await?;
        made.get("claim").and_then(Value::as_str).map(ToOwned::to_owned).context("an answer without a claim")
    }

    /// Publishes a route table, which the server signs.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn publish(&self, table: &Value) -> Result<()> {
        self.must(Method::POST, "/api/v1/routes", Some(table)).await.map(drop)
    }

    /// The version of the route table in force; 0 without one.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn table_version(&self) -> Result<u64> {
        let current = self.ask(Method::GET, "/api/v1/routes/current", None).await?;
        Ok(current.json().get("version").and_then(Value::as_u64).unwrap_or(0))
    }

    /// Every order its intake holds.
    ///
    /// # Errors
    /// When a page cannot be had.
    pub async fn orders(&self) -> Result<Vec<HeldOrder>> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let page = self.get(&format!("/api/v1/orders?after={after}&limit=1000")).await?;
            let orders = page.get("orders").cloned().context("a page has no `orders`")?;
            all.extend(serde_json::from_value::<Vec<HeldOrder>>(orders).context("an order cannot be read")?);
            match page.get("next").and_then(Value::as_u64) {
                Some(next) if next > after => after = next,
                _ => return Ok(all),
            }
        }
    }

    /// How many orders its intake holds.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn order_count(&self) -> Result<u64> {
        let count = self.get("/api/v1/orders:count").await?;
        count.get("count").and_then(Value::as_u64).context("an answer without a count")
    }

    /// Issues a certificate for an origin; gives the directory it is in.
    ///
    /// # Errors
    /// When it cannot be issued.
    pub async fn origin_certificate(&self, origin: &str, names: &[&str]) -> Result<PathBuf> {
        let directory = self.home.path().join(format!("certificate-of-{origin}"));
        let mut command = Command::new(binaries::fleet()?);
        command.arg("origin-cert").arg("--data").arg(self.data()).arg("--out").arg(&directory);
        for name in names {
            command.args(["--name", name]);
        }
        let output = command.output().await.context("cannot run samovar-fleet")?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "origin-cert failed: {words}");
        Ok(directory)
    }

    /// Cuts its power.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn sigkill(&mut self) -> Result<()> {
        self.process.take().context("the fleet server is not running")?.sigkill().await
    }

    /// Asks it to stop and gives how it ended.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub async fn sigterm(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let mut process = self.process.take().context("the fleet server is not running")?;
        process.signal(Signal::TERM)?;
        process.wait(deadline).await
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.process.as_ref().context("the fleet server is not running")?.resident_bytes()
    }

    /// What it said last.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.process.as_ref().map(Process::last_words).unwrap_or_default()
    }
}
