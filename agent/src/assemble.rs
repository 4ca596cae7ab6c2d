//! Builds the flows and connects them. It connects, it does not choose.
//!
//! | channel | capacity | from → to | when full |
//! |---|---|---|---|
//! | ledger requests | 1,024 | tills, dispatcher, API → ledger thread | tills: 503 at once; others wait ≤ 10 s |
//! | backlog, storage | last value | ledger thread → dispatcher, conditions | overwritten |
//! | batches under way | 1 per origin | dispatcher → origins | the dispatcher waits |
//! | routing inbox | 256 | reports, offers → routing | reports dropped, offers told to come back |
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

mod relaying;
mod routes;

use crate::clock::{mono, wall};
use crate::config::{Config, ConfigError};
use crate::data_dir::{DataDir, DataDirError, Run};
use crate::heartbeat::{self, Heartbeats};
use crate::http::{Gate, listener};
use crate::identity::{self, DeviceIdentity, Identity};
use crate::logging::{self, LoggingError};
use crate::net::ClientSettings;
use crate::orders::dispatcher::Limits;
use crate::orders::intake::{self, Intake};
use crate::orders::ledger::{Ledger, LedgerSettings, OpenError};
use crate::orders::origin::Sender;
use crate::orders::run::{Events, Flow, InFlight};
use crate::page::api::{self, Api};
use crate::relay::{Outbox, OutboxError, OutboxSettings, Stream};
use crate::routing::{self, Membership, Routing, RoutingSettings, Setup, Trust};
use crate::status::Board;
use crate::status::report::{Collect, Reporter, with_conditions};
use crate::stop;
use crate::store::StoreError;
use relaying::Relaying;
use routes::RoutesOfOrders;
use samovar_wire::ServiceName;
use samovar_wire::conditions::Condition;
use samovar_wire::status::{DeviceState, SelectedOrigin};
use std::net::SocketAddr;
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

impl Agent {
    async fn start(data: DataDir, config: Config) -> Result<Self, StartError> {
        let started = mono();
        let address = config.local_api.listen;
        let socket =
            listener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let (board, heartbeats, stop) = (Board::default(), Heartbeats::default(), watch::Sender::new(false));
        let (epoch, damaged) = data.next_epoch(wall())?;
        if let Some(kept) = damaged {
            board.raise(Condition::FileSetAside, format!("epoch.json: kept as {}", kept.display()));
        }
        let mut tasks = JoinSet::new();

        let (identity, identity_flow) = identity::start(data.path(), &config, board.clone())?;
        let limit = identity::run::HEARTBEAT_LIMIT;
        tasks.spawn(identity_flow.run(heartbeats.register("identity", limit), stop.subscribe()));

        let setup = routing_setup(&data, &config, &identity, &board, &mut tasks, &stop);
        let (routing, runner) = routing::start(setup)?;
        tasks.spawn(runner.run(heartbeats.register("routing", STUCK), stop.subscribe()));

        let settings = OutboxSettings {
            path: data.path().join("aux.db"),
            max_bytes: config.relay.outbox_max_bytes,
            conditions: board_setter(&board),
        };
        let outbox = Outbox::open(settings)?;
        let ledger =
            Ledger::open(ledger_settings(data.path(), &config), heartbeats.register("ledger", STUCK))?;
        let in_flight = InFlight::default();
        let events = events(&outbox);
        let flow = Flow {
            ledger: ledger.clone(),
            routes: Arc::new(RoutesOfOrders::new(routing.clone())),
            sender: sender(&identity, &ledger, &config, &mut tasks, &stop),
            board: board.clone(),
            events: Arc::clone(&events),
            limits: limits(&config),
            in_flight: in_flight.clone(),
        };
        tasks.spawn(flow.run(heartbeats.register("orders", STUCK), stop.subscribe()));

        let collect = collect(epoch, &identity, &routing, &ledger);
        let ticks = ticks(&identity, &ledger, &mut tasks, &stop);
        let reporter = Reporter {
            board: board.clone(),
            collect: Arc::clone(&collect),
            changes: vec![routing.changed(), ticks],
        };
        let publish = watch::Sender::new(Arc::new(reporter.state().await));
        let state = publish.subscribe();
        tasks.spawn(reporter.run(publish, heartbeats.register("status", STUCK), stop.subscribe()));

        let relaying = Relaying {
            data: data.path().to_owned(),
            config: config.relay.clone(),
            epoch,
            identity: identity.clone(),
            routing: routing.clone(),
            state,
            board: board.clone(),
            outbox: outbox.clone(),
            heartbeats: heartbeats.clone(),
            started,
            status: watch::Sender::default(),
        };
        let numbers = relaying.numbers();
        let relaying = tokio::spawn(relaying.run(stop.subscribe()));

        let home = move || identity.current().map(|who| who.country.clone());
        let router =
            intake::routes(Intake { ledger: ledger.clone(), home: Arc::new(home), events, in_flight }).merge(
                api::routes(Api {
                    state: snapshot(&board, &collect),
                    storage: ledger.storage(),
                    routing,
                    started,
                    relay: numbers,
                }),
            );
        let gate = Gate::new(config.local_api.names.clone(), data.local_token()?);
        let local_api = announce(&data, &socket, address)?;
        tasks.spawn(listener::serve(
            socket,
            router,
            gate,
            config.local_api.max_connections,
            stop.subscribe(),
        ));
        tasks.spawn(heartbeat::watch(heartbeats, stop.subscribe()));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), local_api, data = %data.path().display(), epoch, "ready");
        Ok(Self { data, stop, tasks, relaying, outbox })
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
    let local_api = format!("http://{address}");
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
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        orders: usize::try_from(config.orders.batch_max_orders).unwrap_or(1),
        bytes: config.orders.batch_max_bytes,
    }
}

/// Publishes what a function makes of the identity, now and after each change.
fn derived<T: Send + Sync + 'static>(
    identity: &Identity,
    tasks: &mut JoinSet<()>,
    stop: &watch::Sender<bool>,
    derive: impl Fn(Option<Arc<DeviceIdentity>>) -> T + Send + 'static,
) -> watch::Receiver<T> {
    let publish = watch::Sender::new(derive(identity.current()));
    let reader = publish.subscribe();
    let (mut who, mut tls, mut stop) = (identity.watch(), identity.tls(), stop.subscribe());
    tasks.spawn(async move {
        loop {
            tokio::select! {
                Ok(()) = who.changed() => {}
                Ok(()) = tls.changed() => {}
                () = stop::asked(&mut stop) => return,
                else => return,
            }
            let value = derive(who.borrow_and_update().clone());
            publish.send_replace(value);
        }
    });
    reader
}

fn routing_setup(
    data: &DataDir,
    config: &Config,
    identity: &Identity,
    board: &Board,
    tasks: &mut JoinSet<()>,
    stop: &watch::Sender<bool>,
) -> Setup {
    let defaults = Trust {
        environment: Some(config.routing.environment.clone())
            .filter(|e| !e.is_empty())
            .unwrap_or("prod".into()),
        keys: config.routing.trusted_keys.clone(),
    };
    let membership = derived(identity, tasks, stop, move |who| match who {
        Some(who) => Membership {
            trust: Trust { environment: who.environment.clone(), keys: who.trusted_keys.clone() },
            identity: Some(as_status(&who)),
        },
        None => Membership { identity: None, trust: defaults.clone() },
    });
    Setup {
        data: data.path().to_owned(),
        table: config.routing.table.clone(),
        membership,
        tls: identity.tls(),
        clients: ClientSettings {
            scheme: config.origin.scheme,
            connect_timeout: Duration::from_millis(config.origin.connect_timeout_ms),
            request_timeout: Duration::from_millis(config.origin.request_timeout_ms),
        },
        board: board.clone(),
        settings: RoutingSettings::default(),
    }
}

fn as_status(who: &DeviceIdentity) -> samovar_wire::status::Identity {
    samovar_wire::status::Identity {
        device: who.device.clone(),
        store: who.store.clone(),
        country: who.country.clone(),
        class: who.class.clone(),
    }
}

fn sender(
    identity: &Identity,
    ledger: &Ledger,
    config: &Config,
    tasks: &mut JoinSet<()>,
    stop: &watch::Sender<bool>,
) -> watch::Receiver<Option<Arc<Sender>>> {
    let ledger = ledger.id().to_owned();
    let token = Some(config.origin.token.clone()).filter(|token| !token.is_empty());
    let deadline = Duration::from_millis(config.origin.request_timeout_ms);
    derived(identity, tasks, stop, move |who| {
        who.map(|who| {
            Arc::new(Sender {
                device: who.device.clone(),
                store: who.store.clone(),
                ledger: ledger.clone(),
                token: token.clone(),
                deadline,
            })
        })
    })
}

/// Ticks when the ledger or the identity changes.
fn ticks(
    identity: &Identity,
    ledger: &Ledger,
    tasks: &mut JoinSet<()>,
    stop: &watch::Sender<bool>,
) -> watch::Receiver<u64> {
    let ticks = watch::Sender::new(0_u64);
    let reader = ticks.subscribe();
    let (mut backlog, mut who, mut stopped) = (ledger.backlog(), identity.watch(), stop.subscribe());
    tasks.spawn(async move {
        loop {
            tokio::select! {
                Ok(()) = backlog.changed() => {}
                Ok(()) = who.changed() => {}
                () = stop::asked(&mut stopped) => return,
                else => return,
            }
            ticks.send_modify(|tick| *tick += 1);
        }
    });
    reader
}

fn collect(epoch: u64, identity: &Identity, routing: &Routing, ledger: &Ledger) -> Collect {
    let started_at = wall();
    let (identity, routing, ledger) = (identity.clone(), routing.clone(), ledger.clone());
    Arc::new(move || {
        let (identity, routing, ledger) = (identity.clone(), routing.clone(), ledger.clone());
        Box::pin(async move {
            let snapshot = routing.snapshot();
            DeviceState {
                identity: identity.current().map(|who| as_status(&who)),
                version: env!("CARGO_PKG_VERSION").into(),
                epoch,
                started_at,
                route_table: snapshot.route_table,
                config_revision: 0,
                origin: selected(&routing),
                origins: snapshot.origins,
                line: snapshot.line,
                orders: ledger.summary().await.unwrap_or_default(),
                conditions: Vec::new(),
                devices: Vec::new(),
                update: None,
                overrides: Vec::new(),
            }
        })
    })
}

/// What the API shows: always fresh, where reports settle first.
fn snapshot(board: &Board, collect: &Collect) -> api::Snapshot {
    let (board, collect) = (board.clone(), Arc::clone(collect));
    Arc::new(move || {
        let (board, collect) = (board.clone(), Arc::clone(&collect));
        Box::pin(async move { with_conditions(&board, &collect).await })
    })
}

fn selected(routing: &Routing) -> Option<SelectedOrigin> {
    let service: ServiceName = routes::ORDERS.parse().ok()?;
    let decision = routing.choose(&routing::Ask::service(&service)).ok()?;
    let rule = serde_json::to_value(decision.rule).ok()?;
    Some(SelectedOrigin {
        domain: decision.domain,
        base_url: decision.base_url,
        origin: decision.origin,
        rule: rule.as_str().unwrap_or_default().to_owned(),
        service,
    })
}
