//! Puts the server together and takes it apart again.
//!
//! ```text
//! lock DIR ──► database ──► authority, keys ──► listeners bound ──► MQTT ──► first admin, starter table
//!          ──► serving ──► run.json, ready ──► (SIGTERM) ──► stop = true ──► requests drained ──► database closed
//! ```
//!
//! | task | wakes on | tells | when it cannot |
//! |---|---|---|---|
//! | HTTP, HTTPS | connections (capped by a semaphore) | – | a connection waits in the system's queue |
//! | upkeep | every hour | – | logs, tries again in an hour |
//! | MQTT | the broker's messages, new route tables | devices | see [`crate::ingest`] |
//!
//! The one channel is `stop`, a `watch` that everyone reads.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::{Addresses, App, Parts};
use crate::auth::Role;
use crate::auth::lockout::{Gate, LoginGate, Rule};
use crate::auth::operators::{self, AddError};
use crate::auth::password::PasswordError;
use crate::clock;
use crate::config::{Config, ConfigError};
use crate::db::{Database, DatabaseError};
use crate::metrics::Metrics;
use crate::mqtt::{self, Mqtt, MqttError};
use crate::orders::{self, Intake};
use crate::overload::Overload;
use crate::pki::secrets::{self, SecretsError};
use crate::pki::server_cert::{self, ServerCertError, ServerCertificate};
use crate::problem::chain;
use crate::routes::published::PublishError;
use crate::routes::starter;
use crate::server::tls::{self, TlsError};
use crate::server::{self, ListenError, Listening};
use crate::store::{ReplaceError, replace, replace_secret};

/// How often the server looks after itself.
const UPKEEP: Duration = Duration::from_hours(1);

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be made or locked.
    #[error("the data directory {path} cannot be used", path = path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another server works in this data directory.
    #[error("the data directory {path} is in use by another samovar-fleet", path = path.display())]
    InUse {
        /// Which one.
        path: PathBuf,
    },
    /// Storage is not usable.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The authority or the signing keys cannot be had.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// No certificate to serve with.
    #[error(transparent)]
    Certificate(#[from] ServerCertError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// MQTT cannot be started.
    #[error(transparent)]
    Mqtt(#[from] MqttError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The first admin cannot be made.
    #[error("the first admin cannot be made")]
    Admin(#[source] AddError),
    /// The starter route table cannot be made.
    #[error(transparent)]
    Starter(#[from] PublishError),
    /// A file of the data directory cannot be written.
    #[error(transparent)]
    Write(#[from] ReplaceError),
}

impl StartError {
    /// The exit code of the contract: 2 configuration, 3 directory in use, 4 storage unusable.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Mqtt(_) | Self::Tls(_) | Self::Listen(_) | Self::Certificate(_) => 2,
            Self::Secrets(
                SecretsError::Differs { .. } | SecretsError::Pki(_) | SecretsError::Read { .. },
            ) => 2,
            Self::Database(DatabaseError::UnknownKind) => 2,
            Self::InUse { .. } => 3,
            Self::Directory { .. }
            | Self::Database(_)
            | Self::Secrets(_)
            | Self::Admin(_)
            | Self::Starter(_)
            | Self::Write(_) => 4,
        }
    }
}

/// `DIR/run.json`: how others find this server.
#[derive(Debug, Serialize)]
struct RunFile<'a> {
    pid: u32,
    version: &'static str,
    http: String,
    https: String,
    mqtt: Option<&'a str>,
    started_at: samovar_wire::Timestamp,
}

/// A server at work.
#[derive(Debug)]
pub struct Running {
    /// What its handlers reach; also for tests.
    pub app: App,
    /// The first admin's name and password, when this was the first start.
    pub first_admin: Option<(String, String)>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    mqtt: mqtt::Tasks,
    // Dropped last: the next server may start when everything else is gone.
    _lock: File,
}

/// Starts a server in a data directory; it is ready when this returns.
///
/// # Errors
/// [`StartError`], with the exit code of the contract.
pub async fn start(config: Config, dir: &Path) -> Result<Running, StartError> {
    let lock = lock(dir)?;
    let now = clock::now();
    let url = if config.database.url.is_empty() {
        format!("sqlite://{}", dir.join("fleet.db").display())
    } else {
        config.database.url.clone()
    };
    let database = Database::open(&url).await?;
    let authority = secrets::authority(&database, dir, (&config.pki, &config.server.fleet), now).await?;
    let keys = Arc::new(secrets::signing_keys(&database, dir, config.routes.sign, now).await?);
    let certificate =
        Arc::new(ServerCertificate::at_start(&authority, (&config.tls, &config.server), dir, now)?);
    let client_ca = tls::client_ca(&config.tls.client_ca, authority.pem())?;
    let tls = Arc::new(tls::config(&client_ca, Arc::clone(&certificate) as _)?);
    let http = server::bind(&config.server.listen).await?;
    let https = server::bind(&config.server.https_listen).await?;
    let (http_at, https_at) = (local(&http)?, local(&https)?);
    let server = &config.server;
    let port = if server.public_port == 0 { https_at.port() } else { server.public_port };
    let overload = Overload::new(config.intake.in_flight);
    let mqtt = mqtt::start(mqtt::Needs {
        config: &config,
        database: &database,
        keys: &keys,
        dir,
        client_ca: &client_ca,
        authority: &authority,
        https: format!("https://{}:{port}", server.public_host),
        overload: &overload,
    })
    .await?;
    let Mqtt { ingest, here, for_devices, tasks: mqtt_tasks } = mqtt;
    let addresses = Addresses { http: http_at, https: https_at, mqtt: here, mqtt_for_devices: for_devices };
    let first_admin = first_admin(&database, dir).await?;
    let app = App::new(Parts {
        intake: Intake::new(&config.intake),
        overload,
        logins: LoginGate::default(),
        guesses: Gate::new(Rule::claims(config.activation.guesses)),
        metrics: Metrics::default(),
        config,
        database,
        authority,
        keys,
        ingest,
        addresses,
    });
    starter::refresh(&app, now).await?;

    let (stop, stopped) = watch::channel(false);
    let router = crate::router::assemble(&app, crate::console::router());
    let mut tasks = JoinSet::new();
    for listening in [Listening { listener: http, tls: None }, Listening { listener: https, tls: Some(tls) }]
    {
        tasks.spawn(server::serve(listening, router.clone(), app.config.server.clone(), stopped.clone()));
    }
    tasks.spawn(upkeep(app.clone(), certificate, stopped));
    announce(&app, dir, now)?;
    Ok(Running { app, first_admin, stop, tasks, mqtt: mqtt_tasks, _lock: lock })
}

impl Running {
    /// Stops: no new requests, those in hand finish within about a second, then the database is closed.
    pub async fn stop(mut self) {
        // Without a reader there is nobody left to stop.
        let _ = self.stop.send(true);
        let drained = async {
            while self.tasks.join_next().await.is_some() {}
            tracing::debug!("requests drained");
        };
        tokio::join!(drained, self.mqtt.stop());
        self.app.database.clone().close().await;
        tracing::debug!("database closed");
    }
}

fn lock(dir: &Path) -> Result<File, StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let unusable = |source| StartError::Directory { path: dir.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(unusable)?;
    let file =
        File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

fn local(listener: &tokio::net::TcpListener) -> Result<SocketAddr, StartError> {
    let unusable = |source| StartError::Directory { path: PathBuf::from("(listener)"), source };
    listener.local_addr().map_err(unusable)
}

async fn first_admin(database: &Database, dir: &Path) -> Result<Option<(String, String)>, StartError> {
    if !operators::is_empty(database).await? {
        return Ok(None);
    }
    let (name, file) = ("admin", dir.join("admin.txt"));
    let password = crate::random::readable(20)
        .map_err(|error| StartError::Admin(PasswordError::Random(error).into()))?;
    // The file first: a password that only the database knows would open nothing.
    replace_secret(&file, format!("name: {name}\npassword: {password}\n").as_bytes())?;
    let who = (name, password.clone());
    match operators::add(database, who, Role::Admin, "samovar-fleet", clock::now()).await {
        Ok(()) => Ok(Some((name.to_owned(), password))),
        // Another server of the same database was first: its directory has the password that counts.
        Err(AddError::Exists) => {
            let _ = std::fs::remove_file(&file);
            Ok(None)
        }
        Err(error) => Err(StartError::Admin(error)),
    }
}

fn announce(app: &App, dir: &Path, now: samovar_wire::Timestamp) -> Result<(), StartError> {
    let file = RunFile {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION"),
        http: format!("http://{}", reachable(app.addresses.http)),
        https: format!("https://{}", reachable(app.addresses.https)),
        mqtt: app.addresses.mqtt.as_deref(),
        started_at: now,
    };
    let text = serde_json::to_vec_pretty(&file).unwrap_or_default();
    Ok(replace(&dir.join("run.json"), &text)?)
}

/// An address that a program on this machine can use: "any" becomes loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

/// Every hour: the starter table, the server's certificate, and what the intake may forget.
async fn upkeep(app: App, certificate: Arc<ServerCertificate>, mut stop: watch::Receiver<bool>) {
    let mut renewed = clock::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let now = clock::now();
        if let Err(error) = starter::refresh(&app, now).await {
            tracing::error!(error = %chain(&error), "the starter route table was not re-issued");
        }
        if now.since(renewed) >= server_cert::RENEW_EVERY {
            match certificate.renew(&app.authority, (&app.config.tls, &app.config.server), now) {
                Ok(()) => renewed = now,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "the server's certificate was not renewed");
                }
            }
        }
        match orders::retention::forget(&app.database, orders::retention::cutoffs(&app.config.intake, now))
            .await
        {
            Ok((0, 0)) => {}
            Ok((deleted, emptied)) => tracing::info!(deleted, emptied, "old orders forgotten"),
            Err(error) => tracing::error!(error = %chain(&error), "old orders were not forgotten"),
        }
    }
}
