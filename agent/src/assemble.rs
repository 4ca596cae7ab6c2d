//! Builds the flows and connects them. It connects, it does not choose.
//!
//! | channel | capacity | from → to | when full |
//! |---|---|---|---|
//! | ledger requests | 1,024 | tills, dispatcher, API → ledger thread | tills: 503 at once; others wait ≤ 10 s |
//! | backlog, storage | last value | ledger thread → dispatcher, conditions | overwritten |
//! | batches under way | 1 per origin, in a drain 1 more that is bound | dispatcher → origins | the dispatcher waits |
//! | probes under way | 4 per origin that does not answer | dispatcher → origins | their time-outs end them |
//! | changes of the network | last value | kernel → dispatcher, names | overwritten |
//! | look-ups under way | 64 names | clients, probes → names | those who wait are served otherwise after 1.8 s |
//! | proofs to write down | last value | clients → writer of `names.json` | overwritten |
//! | shadow copies | 256 and 1 MiB | orders → shadow | the newest is dropped and counted |
//! | routing inbox | 256 | reports, offers → routing | reports dropped, offers told to come back |
//! | demands for a pass | 16 | API → reconciliation | told to come back |
//! | changes of overrides | 16 | API, fleet → hosts | told to come back |
//! | overrides in force | last value | hosts → routing, API | overwritten |
//! | view, changed | last value | routing → everyone | overwritten |
//! | board | last value | every flow → reporter | overwritten |
//! | state | last value | reporter → API, relay | overwritten |
//! | outbox requests | 1,024 and 2 MiB | every flow → outbox thread | the event is dropped and counted |
//! | outbox | 16 MiB on disk | outbox thread → relay | the oldest goes, audit last |
//! | replies, commands | 16 | API ↔ relay | refused; dropped and counted |
//! | connections | `local_api.max_connections` | tills → listener | oldest idle one ends, else 503 |
//! | log lines | 4,096 | every flow → log thread | dropped and counted |
//!
//! A table like this is only true while nobody adds a channel elsewhere: `unbounded_channel` is banned by lint.

mod members;
mod pointing;
mod relaying;
mod reporting;
mod routes;

use crate::clock::{Mono, mono, wall};
use crate::config::{Config, ConfigError, OriginMode, RoutingSection};
use crate::data_dir::{DataDir, DataDirError, Run};
use crate::heartbeat::{self, Heartbeat, Heartbeats};
use crate::hosts;
use crate::http::{Gate, listener};
use crate::identity::{self, Identity};
use crate::logging::{self, LoggingError};
use crate::net::{ClientSettings, NamesSettings, OverrideSource, Resolver, line};
use crate::orders::dispatcher::Limits;
use crate::orders::intake::{self, Intake};
use crate::orders::ledger::{Ledger, LedgerSettings, OpenError, make_room_to_start};
use crate::orders::origin::AT_ONCE;
use crate::orders::reconcile::{self, Pace, Reconcile, Reconciler};
use crate::orders::run::{Events, Flow, InFlight, Lanes};
use crate::orders::shadow::{self, Shadow};
use crate::page::api::{self, Api};
use crate::relay::{Outbox, OutboxError, OutboxSettings, Stream};
use crate::routing::{self, Routing, RoutingSettings, Setup};
use crate::status::Board;
use crate::store::StoreError;
use relaying::Relaying;
use routes::{RoutesOfOrders, shadow_rules};
use samovar_wire::conditions::Condition;
use samovar_wire::route::Scheme;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A loop that does not go round for so long is stuck.
const STUCK: Duration = Duration::from_secs(30);
/// Longest time for everything to end after a stop was asked for.
const STOP_DEADLINE: Duration = Duration::from_millis(1_600);

/// What `samovar-agent run` was told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory.
    pub data: PathBuf,
    /// The configuration.
    pub config: Config,
}

/// Why the agent does not start. Each kind has an exit code that scripts rely on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The listening address cannot be used.
    #[error("local_api.listen: cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The outbox cannot be started.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// Logs cannot be written.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// The identity cannot be loaded.
    #[error(transparent)]
    Identity(#[from] identity::LoadError),
    /// A file of the data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StartError {
    /// The exit code of the contract: 2 configuration, 3 in use, 4 storage.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Listen { .. } | Self::Identity(identity::LoadError::Tls(_)) => 2,
            Self::DataDir(DataDirError::InUse(_)) | Self::Ledger(OpenError::InUse) => 3,
            _ => 4,
        }
    }
}

/// Runs the agent until `stopping` ends.
///
/// # Errors
/// When it cannot start.
pub async fn run(options: Options, stopping: impl Future<Output = ()>) -> Result<(), StartError> {
    prepare_process();
    let data = DataDir::take(&options.data)?;
    let _logs = logging::start(data.path(), &options.config.logs)?;
    let agent = Agent::start(data, options.config).await?;
    stopping.await;
    agent.stop().await;
    Ok(())
}

/// Files hold orders and keys, so they are the owner's alone; and a till may open more connections than the usual
/// limit on open files allows.
#[cfg(unix)]
fn prepare_process() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // The usual limit serves as well, with fewer connections.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

#[cfg(not(unix))]
fn prepare_process() {}

/// The running flows.
struct Agent {
    data: DataDir,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    relaying: tokio::task::JoinHandle<()>,
    outbox: Outbox,
}

/// What every flow is built into.
struct Frame {
    data: PathBuf,
    config: Config,
    epoch: u64,
    started: Mono,
    board: Board,
    heartbeats: Heartbeats,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    lanes: Lanes,
}

impl Frame {
    /// Starts a loop that is watched.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        stuck: Duration,
        run: impl FnOnce(Heartbeat, watch::Receiver<bool>) -> F,
    ) {
        let task = run(self.heartbeats.register(name, stuck), self.stop.subscribe());
        self.tasks.spawn(task);
    }

    fn identity(&mut self) -> Result<Identity, StartError> {
        let (identity, flow) = identity::start(&self.data, &self.config, self.board.clone())?;
        self.spawn("identity", identity::run::HEARTBEAT_LIMIT, |heartbeat, stop| flow.run(heartbeat, stop));
        Ok(identity)
    }

    fn routing(&mut self, identity: &Identity, overrides: OverrideSource) -> Result<Routing, StartError> {
        let membership = self.membership(identity);
        let resolver = self.names();
        let (routing, runner) = routing::start(Setup {
            resolver,
            data: self.data.clone(),
            table: self.config.routing.table.clone(),
            membership,
            tls: identity.tls(),
            overrides,
            clients: ClientSettings {
                scheme: self.config.origin.scheme,
                connect_timeout: Duration::from_millis(self.config.origin.connect_timeout_ms),
                request_timeout: Duration::from_millis(self.config.origin.request_timeout_ms),
                named: self.config.origin.mode == OriginMode::Batch,
            },
            board: self.board.clone(),
            settings: routing_settings(&self.config.routing),
        })?;
        self.spawn("routing", STUCK, |heartbeat, stop| runner.run(heartbeat, stop));
        Ok(routing)
    }

    fn names(&mut self) -> Resolver {
        let (resolver, damaged) = Resolver::open(NamesSettings {
            data: Some(self.data.clone()),
            servers: self.config.dns.servers(),
            plain: self.config.origin.scheme == Scheme::Http,
        });
        if let Some(what) = damaged {
            self.board.raise(Condition::FileSetAside, what);
        }
        let watched = resolver.clone();
        self.spawn("names", STUCK, |heartbeat, stop| watched.watch_network(line::changes(), heartbeat, stop));
        resolver
    }

    fn outbox(&self) -> Result<Outbox, StartError> {
        Ok(Outbox::open(OutboxSettings {
            path: self.data.join("aux.db"),
            max_bytes: self.config.relay.outbox_max_bytes,
            conditions: board_setter(&self.board),
        })?)
    }

    fn orders(
        &mut self,
        identity: &Identity,
        routing: &Routing,
        outbox: &Outbox,
    ) -> Result<(Intake, Shadow), StartError> {
        let heartbeat = self.heartbeats.register("ledger", STUCK);
        let ledger = Ledger::open(ledger_settings(&self.data, &self.config), heartbeat)?;
        let (events, in_flight) = (events(outbox), InFlight::default());
        let routes = Arc::new(RoutesOfOrders::new(routing.clone()));
        let sender = self.sender(identity, &ledger);
        let setup = shadow::Setup {
            routes: routes.clone(),
            sender: sender.clone(),
            backlog: ledger.backlog(),
            events: Arc::clone(&events),
        };
        let (shadow, runner) = shadow::start(setup, shadow_rules(routing));
        self.spawn("shadow", STUCK, |heartbeat, stop| runner.run(heartbeat, stop));
        let flow = Flow {
            ledger: ledger.clone(),
            routes,
            sender,
            board: self.board.clone(),
            events: Arc::clone(&events),
            limits: limits(&self.config),
            in_flight: in_flight.clone(),
            lanes: self.lanes.clone(),
            line: line::changes(),
            shadow: shadow.clone(),
        };
        self.spawn("orders", STUCK, |heartbeat, stop| flow.run(heartbeat, stop));
        let identity = identity.clone();
        let home = Arc::new(move || identity.current().map(|who| who.country.clone()));
        Ok((Intake { ledger, home, events, in_flight }, shadow))
    }

    fn reconciliation(&mut self, identity: &Identity, routing: &Routing, intake: &Intake) -> Reconcile {
        let reconciler = Reconciler {
            ledger: intake.ledger.clone(),
            routes: Arc::new(RoutesOfOrders::new(routing.clone())),
            sender: self.sender(identity, &intake.ledger),
            home: Arc::clone(&intake.home),
            board: self.board.clone(),
            events: Arc::clone(&intake.events),
            kept: ledger_settings(&self.data, &self.config).body_retention,
            pace: Pace::default(),
        };
        let heartbeat = self.heartbeats.register("reconciliation", STUCK);
        let (handle, run) = reconciler.start(heartbeat, self.stop.subscribe());
        self.tasks.spawn(run);
        handle
    }
}

impl Agent {
    async fn start(data: DataDir, config: Config) -> Result<Self, StartError> {
        let address = config.local_api.listen;
        let socket = listener::bind(address).map_err(|source| StartError::Listen { address, source })?;
        make_room_to_start(&ledger_settings(data.path(), &config));
        let (epoch, damaged) = data.next_epoch(wall())?;
        let mut frame = Frame {
            data: data.path().to_owned(),
            config,
            epoch,
            started: mono(),
            board: Board::default(),
            heartbeats: Heartbeats::default(),
            stop: watch::Sender::new(false),
            tasks: JoinSet::new(),
            lanes: Lanes::default(),
        };
        if let Some(kept) = damaged {
            frame.board.raise(Condition::FileSetAside, format!("epoch.json: kept as {}", kept.display()));
        }

        let identity = frame.identity()?;
        let (kept, overrides) = hosts::Kept::open(&frame.data, &frame.board)?;
        let routing = frame.routing(&identity, overrides)?;
        let outbox = frame.outbox()?;
        let hosts = frame.hosts(kept, &routing, &outbox);
        let (intake, shadow) = frame.orders(&identity, &routing, &outbox)?;
        let reconcile = frame.reconciliation(&identity, &routing, &intake);
        let report = frame.report(&identity, &routing, &intake, (&reconcile, &hosts)).await;
        let relaying = Relaying::new(&frame, &identity, &routing, &report, &outbox, (&shadow, &hosts));
        let api = Api {
            state: report.snapshot,
            storage: intake.ledger.storage(),
            routing,
            started: frame.started,
            relay: relaying.numbers(),
            lanes: frame.lanes.clone(),
            shadow,
        };
        let relaying = tokio::spawn(relaying.run(frame.stop.subscribe()));

        let orders = intake::routes(intake).merge(reconcile::api::routes(reconcile));
        let router = api::with_fallbacks(orders.merge(hosts::api::routes(hosts)).merge(api::routes(api)));
        let gate = Gate::new(frame.config.local_api.names.clone(), data.local_token()?);
        let local_api = announce(&data, &socket, address)?;
        let most = frame.config.local_api.max_connections;
        frame.tasks.spawn(listener::serve(socket, router, gate, most, frame.stop.subscribe()));
        frame.tasks.spawn(heartbeat::watch(frame.heartbeats.clone(), frame.stop.subscribe()));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), local_api, data = %data.path().display(), epoch, "ready");
        Ok(Self { data, stop: frame.stop, tasks: frame.tasks, relaying, outbox })
    }

    /// Ends every flow within the deadline. What is in flight is pending again at the next start.
    async fn stop(mut self) {
        tracing::info!("stopping");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.data.remove_run();
        self.stop.send_replace(true);
        let ended = async {
            while self.tasks.join_next().await.is_some() {}
            let _ = self.relaying.await;
            self.outbox.close(Duration::from_millis(300)).await;
        };
        if tokio::time::timeout(STOP_DEADLINE, ended).await.is_err() {
            tracing::warn!("not everything ended in time");
        }
        tracing::info!("stopped");
    }
}

/// Writes `run.json` and tells the service manager.
fn announce(data: &DataDir, socket: &TcpListener, wanted: SocketAddr) -> Result<String, StartError> {
    let address = socket.local_addr().map_err(|source| StartError::Listen { address: wanted, source })?;
    // Programs on the device come over loopback, wherever else the agent listens.
    let mut reached = address;
    match reached.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => reached.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => reached.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let local_api = format!("http://{reached}");
    data.write_run(&Run {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        local_api: local_api.clone(),
        started_at: wall(),
    })?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    Ok(local_api)
}

fn board_setter(board: &Board) -> crate::relay::SetCondition {
    let board = board.clone();
    Arc::new(move |condition, detail| board.set(condition, detail))
}

fn events(outbox: &Outbox) -> Events {
    let outbox = outbox.clone();
    Arc::new(move |kind, data| outbox.record(Stream::Events, kind, &data))
}

/// How the ledger of a data directory is kept.
#[must_use]
pub fn ledger_settings(data: &std::path::Path, config: &Config) -> LedgerSettings {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    LedgerSettings {
        path: data.join("orders.db"),
        max_bytes: config.orders.max_bytes,
        body_retention: days(config.orders.body_retention_days),
        key_retention: days(config.orders.key_retention_days),
        max_orders: config.orders.max_orders,
        settled_share_percent: config.orders.settled_share_percent,
        encrypt_bodies: config.orders.encrypt_bodies,
        credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
    }
}

fn routing_settings(section: &RoutingSection) -> RoutingSettings {
    let mut settings = RoutingSettings::default();
    settings.health.failback_after = Duration::from_secs(section.failback_after_s);
    settings.health.failback_spread = Duration::from_secs(section.failback_spread_s);
    settings
}

fn limits(config: &Config) -> Limits {
    let batch = usize::try_from(config.orders.batch_max_orders).unwrap_or(1);
    let orders = match config.origin.mode {
        OriginMode::Batch => batch,
        OriginMode::Single => batch.min(AT_ONCE),
    };
    Limits { orders, bytes: config.orders.batch_max_bytes }
}
