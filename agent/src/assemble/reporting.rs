//! Puts the state of the device together from the flows' snapshots, and tells head office when its origin changes.

use super::members::as_status;
use super::{Frame, STUCK, routes};
use crate::clock::wall;
use crate::hosts::Hosts;
use crate::identity::Identity;
use crate::orders::intake::Intake;
use crate::orders::ledger::Ledger;
use crate::orders::reconcile::Reconcile;
use crate::orders::run::Events;
use crate::page::api;
use crate::routing::{Ask, Routing};
use crate::status::report::{Collect, Reporter, with_conditions};
use crate::stop;
use samovar_wire::ServiceName;
use samovar_wire::status::{DeviceState, SelectedOrigin};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::watch;

/// The state of the device, for those who show it.
pub(super) struct Report {
    /// The last that was published; settles before it changes.
    pub(super) state: watch::Receiver<Arc<DeviceState>>,
    /// The state right now.
    pub(super) snapshot: api::Snapshot,
    /// Where the revision of the desired state is told.
    pub(super) revision: watch::Sender<u64>,
}

impl Frame {
    /// Starts the reporter.
    pub(super) async fn report(
        &mut self,
        identity: &Identity,
        routing: &Routing,
        intake: &Intake,
        (reconcile, hosts): (&Reconcile, &Hosts),
    ) -> Report {
        let (ledger, events) = (&intake.ledger, &intake.events);
        let revision = watch::Sender::new(0);
        let collect =
            collect(self.epoch, identity, routing, (ledger, reconcile, hosts), revision.subscribe());
        let ticks = self.ticks(identity, (ledger, reconcile, hosts), revision.subscribe());
        let changes = vec![routing.changed(), routing.names().1, ticks];
        let reporter = Reporter { board: self.board.clone(), collect: Arc::clone(&collect), changes };
        let publish = watch::Sender::new(Arc::new(reporter.state().await));
        let state = publish.subscribe();
        self.spawn("status", STUCK, |heartbeat, stop| reporter.run(publish, heartbeat, stop));
        self.tell_of_origins(state.clone(), Arc::clone(events));
        let board = self.board.clone();
        let snapshot: api::Snapshot = Arc::new(move || {
            let (board, collect) = (board.clone(), Arc::clone(&collect));
            Box::pin(async move { with_conditions(&board, &collect).await })
        });
        Report { state, snapshot, revision }
    }

    /// Ticks when the ledger, the identity or the desired state changes.
    fn ticks(
        &mut self,
        identity: &Identity,
        (ledger, reconcile, hosts): (&Ledger, &Reconcile, &Hosts),
        mut revision: watch::Receiver<u64>,
    ) -> watch::Receiver<u64> {
        let ticks = watch::Sender::new(0_u64);
        let reader = ticks.subscribe();
        let (mut backlog, mut who, mut stopped) = (ledger.backlog(), identity.watch(), self.stop.subscribe());
        let (mut compared, mut pointed) = (reconcile.watch(), hosts.watch());
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    Ok(()) = backlog.changed() => {}
                    Ok(()) = who.changed() => {}
                    Ok(()) = revision.changed() => {}
                    Ok(()) = compared.changed() => {}
                    Ok(()) = pointed.changed() => {}
                    () = stop::asked(&mut stopped) => return,
                    else => return,
                }
                ticks.send_modify(|tick| *tick += 1);
            }
        });
        reader
    }

    /// An event for each change of the origin that orders of this store go to.
    fn tell_of_origins(&mut self, mut state: watch::Receiver<Arc<DeviceState>>, events: Events) {
        let mut stopped = self.stop.subscribe();
        self.tasks.spawn(async move {
            let mut before = state.borrow_and_update().origin.clone();
            loop {
                tokio::select! {
                    changed = state.changed() => if changed.is_err() { return },
                    () = stop::asked(&mut stopped) => return,
                }
                let now = state.borrow_and_update().origin.clone();
                let name = |selected: &Option<SelectedOrigin>| {
                    selected.as_ref().map(|selected| selected.origin.clone())
                };
                if name(&before) != name(&now) {
                    let rule = now.as_ref().map(|selected| selected.rule.clone());
                    events(
                        "origin.changed",
                        json!({ "from": name(&before), "to": name(&now), "rule": rule }),
                    );
                }
                before = now;
            }
        });
    }
}

fn collect(
    epoch: u64,
    identity: &Identity,
    routing: &Routing,
    (ledger, reconcile, hosts): (&Ledger, &Reconcile, &Hosts),
    revision: watch::Receiver<u64>,
) -> Collect {
    let started_at = wall();
    let (identity, routing, ledger) = (identity.clone(), routing.clone(), ledger.clone());
    let (reconcile, hosts) = (reconcile.clone(), hosts.clone());
    Arc::new(move || {
        let (identity, routing, ledger) = (identity.clone(), routing.clone(), ledger.clone());
        let (config_revision, reconcile, overrides) =
            (*revision.borrow(), reconcile.states(), hosts.states());
        Box::pin(async move {
            let snapshot = routing.snapshot();
            DeviceState {
                identity: identity.current().map(|who| as_status(&who)),
                version: env!("CARGO_PKG_VERSION").into(),
                epoch,
                started_at,
                route_table: snapshot.route_table,
                config_revision,
                origin: selected(&routing),
                origins: snapshot.origins,
                line: snapshot.line,
                orders: ledger.summary().await.unwrap_or_default(),
                conditions: Vec::new(),
                devices: Vec::new(),
                update: None,
                overrides,
                reconcile: reconcile.to_vec(),
                names: routing.names().0,
            }
        })
    })
}

fn selected(routing: &Routing) -> Option<SelectedOrigin> {
    let service: ServiceName = routes::ORDERS.parse().ok()?;
    let decision = routing.choose(&Ask::service(&service)).ok()?;
    let rule = serde_json::to_value(decision.rule).ok()?;
    Some(SelectedOrigin {
        domain: decision.domain,
        base_url: decision.base_url,
        origin: decision.origin,
        rule: rule.as_str().unwrap_or_default().to_owned(),
        service,
    })
}
