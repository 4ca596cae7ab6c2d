//! What the other flows hold of routing: questions are answered from the last published view, without waiting;
//! reports and tables go to the loop.

use super::health::{Outcome, Probed};
use super::keeper::{TableRefused, Taken};
use super::pointed;
use super::probe::{self, Tried};
use super::view::{Ask, InForce, RouteError, View};
use crate::clock::{mono, trusted_wall};
use crate::net::{By, Clients, Found, NetError};
use samovar_wire::encoding::hex;
use samovar_wire::ids::DeviceClass;
use samovar_wire::route::{Decision, Reason, Table};
use samovar_wire::status::{ChainLink, Line, NameState, OriginState, RouteTableState};
use samovar_wire::{Country, OriginId, ServiceName};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Longest wait for the loop to judge a table.
const OFFER_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for an origin to say that it is healthy.
const GREET_LIMIT: Duration = Duration::from_secs(4);
/// Longest wait for the loop to follow an override.
const FOLLOW_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for names in [`Routing::resolve`]: it answers local software that waits.
const RESOLVE_LIMIT: Duration = Duration::from_millis(800);

/// Routing, as other flows see it.
#[derive(Debug, Clone)]
pub struct Routing {
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) changed: watch::Receiver<u64>,
    pub(super) inbox: mpsc::Sender<Event>,
    pub(super) clients: Clients,
}

/// What the loop is told.
#[derive(Debug)]
pub(super) enum Event {
    Report(OriginId, Outcome),
    Suspect,
    Offer(Vec<u8>, oneshot::Sender<Result<Taken, TableRefused>>),
}

/// A pushed table did not come into force.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The table in force stays.
    #[error("the route table was refused: it {0}")]
    Refused(TableRefused),
    /// The loop has other things to do; offer it again.
    #[error("routing is busy")]
    Busy,
    /// The agent is stopping.
    #[error("routing has stopped")]
    Stopped,
}

/// What status and API show.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The table in force, in short.
    pub route_table: Option<RouteTableState>,
    /// Every origin that is watched.
    pub origins: Vec<OriginState>,
    /// The store's own line.
    pub line: Line,
    /// The table in force.
    pub table: Option<Arc<InForce>>,
}

impl Snapshot {
    /// The document in force.
    #[must_use]
    pub fn document(&self) -> Option<&Table> {
        self.table.as_deref().map(|in_force| &in_force.table)
    }
}

/// The answer to "where is my origin", as the local API gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resolution {
    /// The service asked for.
    pub service: ServiceName,
    /// Name for TLS and `Host`.
    pub domain: String,
    /// `scheme://domain[:port]`
    pub base_url: String,
    /// The origin.
    pub origin: OriginId,
    /// What to dial, best first; empty when nothing is known.
    pub addresses: Vec<IpAddr>,
    /// One entry per rule looked at.
    pub reason: Vec<Reason>,
    /// Version of the table that decided.
    pub table_version: u64,
    /// Answered from the last good table, or from addresses that worked before.
    pub stale: bool,
    /// How long the answer may be used.
    pub valid_for_s: u64,
    /// How the addresses were found; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<ResolvedBy>,
}

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResolvedBy {
    /// The host of the endpoint, which is what was looked up.
    pub host: String,
    /// Who gave the first address.
    pub answered_by: By,
    /// The names that the host stands for, each with the milliseconds it cost when last measured.
    pub chain: Vec<ChainLink>,
}

impl Routing {
    /// The origin for something that is not bound to one.
    ///
    /// # Errors
    /// When there is no identity, no table, or no way that residency allows.
    pub fn choose(&self, ask: &Ask<'_>) -> Result<Decision, RouteError> {
        self.view.borrow().choose(ask, self.clients.settings().scheme, trusted_wall())
    }

    /// The way to the origin that something is bound to.
    ///
    /// # Errors
    /// When there is no identity or table, or the origin may no longer be used for it.
    pub fn bound(&self, ask: &Ask<'_>, origin: &OriginId) -> Result<Decision, RouteError> {
        self.view.borrow().bound(ask, origin, self.clients.settings().scheme, trusted_wall())
    }

    /// The HTTP client for a decision; its URL is `decision.base_url`.
    ///
    /// # Errors
    /// See [`Clients::client`].
    pub fn client(&self, decision: &Decision) -> Result<reqwest::Client, NetError> {
        self.clients.client(decision)
    }

    /// Whether the way of a decision takes a connection now: one packet, no more.
    pub async fn knock(&self, decision: &Decision) -> bool {
        probe::knock(&self.clients, decision).await
    }

    /// Whether the origin of a decision answers its health probe now.
    pub async fn greet(&self, decision: Decision) -> bool {
        let probing = probe::probe(self.clients.clone(), decision);
        let found = tokio::time::timeout(GREET_LIMIT, probing).await;
        found.is_ok_and(|found| found.probed == Probed::Sent(Outcome::Answered))
    }

    /// One request to a name of the table at another address, with the TLS name and the identity of the way that
    /// requests to it take.
    pub async fn try_at(&self, name: &str, address: IpAddr) -> Tried {
        let way = self.view.borrow().way_to(name, self.clients.settings().scheme);
        match way {
            Some(way) => probe::try_way(&self.clients, &pointed::at(way, address)).await,
            None => Tried::NotReached(format!("nothing goes to {name} by the route table in force")),
        }
    }

    /// The same by the way that requests to the name take now, once an override to this address is followed.
    pub async fn try_through(&self, name: &str, address: IpAddr) -> Tried {
        let mut view = self.view.clone();
        let follows =
            |view: &Arc<View>| view.overrides.get(name).is_some_and(|found| found.address == address);
        if !matches!(tokio::time::timeout(FOLLOW_LIMIT, view.wait_for(follows)).await, Ok(Ok(_))) {
            return Tried::NotReached("the agent's own requests do not follow the override".into());
        }
        self.try_at(name, address).await
    }

    /// Tells how an origin behaved. Never waits: when the loop is behind, this report is dropped, and the probes and
    /// the next reports say the same.
    pub fn report(&self, origin: &OriginId, outcome: Outcome) {
        let _ = self.inbox.try_send(Event::Report(origin.clone(), outcome));
    }

    /// Tells that an origin has kept a request waiting for long. Never waits, as [`Self::report`].
    pub fn suspect(&self) {
        let _ = self.inbox.try_send(Event::Suspect);
    }

    /// Offers a signed table: the bytes of its envelope, as the fleet pushed them.
    ///
    /// # Errors
    /// When it is refused (the table in force stays), or cannot be looked at now.
    pub async fn offer(&self, envelope: Vec<u8>) -> Result<Taken, OfferError> {
        let (answer, answered) = oneshot::channel();
        self.inbox.try_send(Event::Offer(envelope, answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => OfferError::Busy,
            mpsc::error::TrySendError::Closed(_) => OfferError::Stopped,
        })?;
        match tokio::time::timeout(OFFER_LIMIT, answered).await {
            Ok(Ok(result)) => result.map_err(OfferError::Refused),
            Ok(Err(_)) => Err(OfferError::Stopped),
            Err(_) => Err(OfferError::Busy),
        }
    }

    /// Ticks with every change of table, identity, health, line or nearest origin.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// The table in force.
    #[must_use]
    pub fn table(&self) -> Option<Arc<InForce>> {
        self.view.borrow().in_force.clone()
    }

    /// What status and API show.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let view = Arc::clone(&self.view.borrow());
        let route_table = view.in_force.as_deref().map(|in_force| RouteTableState {
            version: in_force.table.version,
            environment: in_force.table.environment.clone(),
            sha256: hex(&in_force.sha256),
            expires_at: in_force.table.expires_at,
            key_id: in_force.key_id.clone(),
        });
        let origins = view.origins.iter().filter_map(|(origin, seen)| {
            Some(OriginState {
                origin: origin.clone(),
                health: seen.shown,
                since: *view.since.get(origin)?,
                last_error: seen.last_error.clone(),
                returns_in_s: seen.returns_at.map(|at| at.after(mono()).as_secs()),
            })
        });
        let origins = origins.collect();
        Snapshot { route_table, origins, line: view.line, table: view.in_force.clone() }
    }

    /// The names in use, for the report; and when they change.
    #[must_use]
    pub fn names(&self) -> (Vec<NameState>, watch::Receiver<u64>) {
        let resolver = self.clients.resolver();
        (resolver.states(), resolver.changed())
    }

    /// Where a service is now, with addresses looked up within a short deadline.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub async fn resolve(
        &self,
        service: &ServiceName,
        udl: Option<&Country>,
        class: Option<&DeviceClass>,
    ) -> Result<Resolution, RouteError> {
        let view = Arc::clone(&self.view.borrow());
        let ask = Ask { service, country: udl, user: None, class };
        let decision = view.choose(&ask, self.clients.settings().scheme, trusted_wall())?;
        let in_force =
            view.in_force.as_deref().ok_or_else(|| RouteError::NoTable { why: view.missing.clone() })?;
        let found = self.clients.resolver().find(&probe::wanted(&decision), RESOLVE_LIMIT).await.ok();
        let stale = in_force.last_good || found.as_ref().is_some_and(Found::is_stale);
        let life = found.as_ref().map_or(Duration::ZERO, |found| found.valid_for);
        let host = decision.endpoint.host.clone();
        // Without any address the answer still names the domain: the asker's own resolver may know it.
        let (addresses, dns) = match found {
            Some(Found { addresses, by, chain, .. }) => {
                (addresses, Some(ResolvedBy { host, answered_by: by, chain }))
            }
            None => (Vec::new(), None),
        };
        Ok(Resolution {
            service: service.clone(),
            domain: decision.domain,
            base_url: decision.base_url,
            origin: decision.origin,
            addresses,
            reason: decision.reason,
            table_version: in_force.table.version,
            stale,
            valid_for_s: in_force.table.refresh_after_s.min(life.as_secs().max(1)),
            dns,
        })
    }
}
