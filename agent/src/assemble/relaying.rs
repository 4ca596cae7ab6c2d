//! Runs the relay for as long as there is somebody to relay for: starts it with the identity, starts it anew when
//! the broker or the device changes, and applies what the fleet wants.

use super::Frame;
use super::reporting::Report;
use crate::clock::{Mono, boot_id};
use crate::config::RelaySection;
use crate::desired::{self, Revision};
use crate::heartbeat::Heartbeats;
use crate::hosts::Hosts;
use crate::identity::{DeviceIdentity, Identity};
use crate::orders::shadow::Shadow;
use crate::relay::{
    BirthFacts, BrokerUrl, Commands, DesiredState, Login, Outbox, Relay, RelayHandle, RelayInputs,
    RelaySettings, RelayStatus, StateDocument,
};
use crate::routing::{OfferError, Routing};
use crate::status::Board;
use crate::status::metrics;
use crate::status::report::uptime_s;
use crate::stop;
use samovar_wire::mqtt::{Desired, DesiredDocument};
use samovar_wire::status::DeviceState;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Before a route table that could not be taken is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What the relay flow is built from.
pub(super) struct Relaying {
    data: PathBuf,
    config: RelaySection,
    epoch: u64,
    identity: Identity,
    routing: Routing,
    state: watch::Receiver<Arc<DeviceState>>,
    board: Board,
    outbox: Outbox,
    heartbeats: Heartbeats,
    started: Mono,
    status: watch::Sender<RelayStatus>,
    revision: watch::Sender<u64>,
    shadow: Shadow,
    hosts: Hosts,
}

impl Relaying {
    pub(super) fn new(
        frame: &Frame,
        identity: &Identity,
        routing: &Routing,
        report: &Report,
        outbox: &Outbox,
        (shadow, hosts): (&Shadow, &Hosts),
    ) -> Self {
        Self {
            data: frame.data.clone(),
            config: frame.config.relay.clone(),
            epoch: frame.epoch,
            identity: identity.clone(),
            routing: routing.clone(),
            state: report.state.clone(),
            board: frame.board.clone(),
            outbox: outbox.clone(),
            heartbeats: frame.heartbeats.clone(),
            started: frame.started,
            status: watch::Sender::default(),
            revision: report.revision.clone(),
            shadow: shadow.clone(),
            hosts: hosts.clone(),
        }
    }

    /// The relay's numbers, for whoever shows them.
    pub(super) fn numbers(&self) -> Arc<dyn Fn() -> metrics::Relay + Send + Sync> {
        let (status, outbox) = (self.status.subscribe(), self.outbox.clone());
        Arc::new(move || numbers(&status.borrow(), &outbox))
    }

    /// Runs until told to stop; then says goodbye to the broker.
    pub(super) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut who = self.identity.watch();
        loop {
            let current = who.borrow_and_update().clone();
            let relay = current.as_deref().and_then(|who| self.start(who));
            let ended = match (relay, current) {
                (Some(running), Some(current)) => self.keep(running, &current, &mut who, &mut stop).await,
                _ => tokio::select! {
                    changed = who.changed() => changed.is_err(),
                    () = stop::asked(&mut stop) => true,
                },
            };
            if ended {
                return;
            }
        }
    }

    /// Starts a relay for a device, if it has a broker.
    fn start(&self, who: &DeviceIdentity) -> Option<Running> {
        let url: BrokerUrl = match who.mqtt_url.as_deref().filter(|url| !url.is_empty())?.parse() {
            Ok(url) => url,
            Err(error) => {
                self.board.raise(samovar_wire::conditions::Condition::RelayDisconnected, error.to_string());
                return None;
            }
        };
        let mut settings = RelaySettings::new(url, who.environment.clone(), who.device.clone(), self.epoch);
        settings.keep_alive = Duration::from_secs(self.config.keep_alive_s);
        settings.login = (!self.config.username.is_empty()).then(|| Login {
            username: self.config.username.clone(),
            password: self.config.password.clone(),
        });
        let document = StateDocument::of(&**self.state.borrow()).ok()?;
        let state = watch::Sender::new(Arc::new(document));
        let revision = match Revision::load(&self.data, &who.device) {
            Ok(revision) => revision,
            Err(error) => {
                tracing::error!(%error, "the last desired state is unknown; the relay does not start");
                return None;
            }
        };
        self.revision.send_replace(revision.number());
        let birth = watch::Sender::new(Arc::new(self.birth(&revision)));
        let inputs = RelayInputs {
            state: state.subscribe(),
            birth: birth.subscribe(),
            tls: self.identity.tls(),
            metrics: self.metrics(),
            outbox: self.outbox.clone(),
            conditions: super::board_setter(&self.board),
            heartbeat: Some(self.heartbeats.register("relay", settings.keep_alive * 2 + super::STUCK)),
        };
        let (handle, desired, commands) = Relay::start(settings, inputs);
        Some(Running { handle, desired, commands, state, birth, revision })
    }

    fn birth(&self, revision: &Revision) -> BirthFacts {
        BirthFacts {
            boot_id: boot_id(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: vec!["orders".into(), "route-table".into()],
            route_table: self.routing.snapshot().route_table.map(|table| table.version),
            config_revision: revision.number(),
        }
    }

    fn metrics(&self) -> Box<dyn Fn() -> std::collections::BTreeMap<String, f64> + Send + Sync> {
        let (state, numbers, started) = (self.state.clone(), self.numbers(), self.started);
        let shadow = self.shadow.clone();
        Box::new(move || {
            let mut values = metrics::values(&state.borrow(), uptime_s(started), &numbers());
            values.extend(shadow.metrics());
            values
        })
    }

    /// Feeds a running relay until the device or its broker changes (false) or the agent stops (true).
    async fn keep(
        &self,
        mut running: Running,
        current: &DeviceIdentity,
        who: &mut watch::Receiver<Option<Arc<DeviceIdentity>>>,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        let (mut state, mut status, mut routes) =
            (self.state.clone(), running.handle.watch(), self.routing.changed());
        // What the fleet wants, on its way into force; a later state replaces an earlier one.
        let mut applying: Applying<'_> = None;
        let ended = loop {
            tokio::select! {
                () = stop::asked(stop) => break true,
                changed = who.changed() => match changed {
                    Ok(()) if same_relay(current, who.borrow_and_update().as_deref()) => {}
                    result => break result.is_err(),
                },
                Ok(()) = state.changed() => {
                    if let Ok(document) = StateDocument::of(&**state.borrow_and_update()) {
                        running.state.send_replace(Arc::new(document));
                    }
                }
                Ok(()) = status.changed() => {
                    self.status.send_replace(status.borrow_and_update().clone());
                }
                Ok(()) = routes.changed() => {
                    routes.mark_unchanged();
                    running.tell(self.birth(&running.revision));
                }
                Some(message) = running.desired.next() => {
                    if let Some(desired) = wanted(&message, current, running.revision.number()) {
                        applying = Some(Box::pin(self.apply(desired)));
                    }
                }
                Some(_) = running.commands.next() => tracing::warn!("a command came; this version takes none"),
                revision = done(&mut applying) => {
                    applying = None;
                    if let Err(error) = running.revision.applied(revision) {
                        tracing::error!(%error, "the applied revision could not be kept");
                    }
                    self.revision.send_replace(running.revision.number());
                    running.tell(self.birth(&running.revision));
                }
            }
        };
        running.handle.stop().await;
        self.status.send_replace(RelayStatus::default());
        ended
    }

    /// Brings a desired state into force, however often that must be tried; gives its revision.
    async fn apply(&self, desired: Desired) -> u64 {
        let revision = self.apply_table(&desired).await;
        // After the table: it says which names may be pointed elsewhere.
        if let Some(overrides) = &desired.overrides {
            self.hosts.desire(overrides).await;
        }
        revision
    }

    async fn apply_table(&self, desired: &Desired) -> u64 {
        loop {
            let envelope = match &desired.route_table {
                None => return desired.revision,
                Some(DesiredDocument::Inline(envelope)) => {
                    serde_json::to_vec(envelope).map_err(|e| e.to_string())
                }
                Some(DesiredDocument::Reference { sha256, url }) => self.fetch(sha256, url).await,
            };
            match envelope {
                Ok(envelope) => match self.routing.offer(envelope).await {
                    // A refusal is final for this document: the condition says why, the fleet sends another.
                    Ok(_) | Err(OfferError::Refused(_)) => return desired.revision,
                    Err(OfferError::Busy | OfferError::Stopped) => {}
                },
                Err(why) => tracing::warn!(why, "the route table could not be fetched; tried again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Fetches a document of the fleet over mutual TLS and holds it against its digest.
    async fn fetch(&self, sha256: &str, url: &str) -> Result<Vec<u8>, String> {
        const LIMIT: usize = 2 * 1024 * 1024;
        const DEADLINE: Duration = Duration::from_secs(20);
        let fleet = self.identity.current().and_then(|who| who.fleet_url.clone()).unwrap_or_default();
        // A signed desired state may still not send the device's certificate to a stranger.
        if fleet.is_empty() || !url.starts_with(fleet.trim_end_matches('/')) {
            return Err("it is not at the fleet of this device".into());
        }
        let tls = self.identity.tls().borrow().clone().ok_or("there is no identity to fetch it with")?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(DEADLINE)
            .build()
            .map_err(|error| crate::net::explain(&error))?;
        let response = client.get(url).send().await.map_err(|error| crate::net::explain(&error))?;
        if !response.status().is_success() {
            return Err(format!("HTTP {}", response.status().as_u16()));
        }
        let bytes = crate::net::read_limited(response, LIMIT, DEADLINE)
            .await
            .map_err(|error| crate::net::explain(&error))?;
        let envelope: samovar_wire::dsse::Envelope =
            serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        let digest = envelope.payload_sha256().map(|digest| samovar_wire::encoding::hex(&digest));
        if digest.as_deref() == Some(sha256) { Ok(bytes) } else { Err("its digest is another one".into()) }
    }
}

/// A desired state on its way into force.
type Applying<'a> = Option<Pin<Box<dyn Future<Output = u64> + Send + 'a>>>;

/// Waits for what is under way; for ever when nothing is.
async fn done(applying: &mut Applying<'_>) -> u64 {
    match applying {
        Some(applying) => applying.await,
        None => std::future::pending().await,
    }
}

/// Looks at a message of the fleet; gives the desired state in it if it is ours, believed and newer.
fn wanted(message: &[u8], who: &DeviceIdentity, applied: u64) -> Option<Desired> {
    match desired::verify(message, &who.device, &who.commands_keys, applied) {
        Ok(desired) => desired,
        Err(refused) => {
            tracing::warn!(%refused, "a desired state was refused");
            None
        }
    }
}

/// A relay with its ends.
struct Running {
    handle: RelayHandle,
    desired: DesiredState,
    commands: Commands,
    state: watch::Sender<Arc<StateDocument>>,
    birth: watch::Sender<Arc<BirthFacts>>,
    revision: Revision,
}

impl Running {
    fn tell(&self, facts: BirthFacts) {
        self.birth.send_if_modified(|told| {
            let changed = **told != facts;
            *told = Arc::new(facts);
            changed
        });
    }
}

fn same_relay(before: &DeviceIdentity, after: Option<&DeviceIdentity>) -> bool {
    after.is_some_and(|after| {
        (&before.device, &before.environment, &before.mqtt_url, &before.commands_keys)
            == (&after.device, &after.environment, &after.mqtt_url, &after.commands_keys)
    })
}

fn numbers(status: &RelayStatus, outbox: &Outbox) -> metrics::Relay {
    let level = outbox.level();
    metrics::Relay {
        connected: status.connected,
        published: status.published,
        dropped: status.dropped,
        outbox_events: level.events,
        outbox_bytes: level.bytes,
        outbox_dropped: level.dropped,
    }
}
