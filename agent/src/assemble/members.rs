//! What other flows take from the identity: whom routing believes, and who sends orders.

use super::Frame;
use crate::config::{Compression, OriginMode, OriginSection};
use crate::identity::{DeviceIdentity, Identity};
use crate::orders::ledger::Ledger;
use crate::orders::origin::{Gzip, Protocol, Sender};
use crate::routing::{Membership, Trust};
use crate::stop;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Environment of a device that nobody has told another.
const DEFAULT_ENVIRONMENT: &str = "prod";

impl Frame {
    /// Who the device is and whom it believes, for routing.
    pub(super) fn membership(&mut self, identity: &Identity) -> watch::Receiver<Membership> {
        let configured = &self.config.routing;
        let environment = configured.environment.as_str();
        let before_activation = Trust {
            environment: if environment.is_empty() { DEFAULT_ENVIRONMENT } else { environment }.to_owned(),
            keys: configured.trusted_keys.clone(),
        };
        self.derived(identity, move |who| match who {
            Some(who) => Membership {
                trust: Trust { environment: who.environment.clone(), keys: who.trusted_keys.clone() },
                identity: Some(as_status(&who)),
            },
            None => Membership { identity: None, trust: before_activation.clone() },
        })
    }

    /// Who sends orders. Ticks also when only the certificate is another.
    pub(super) fn sender(
        &mut self,
        identity: &Identity,
        ledger: &Ledger,
    ) -> watch::Receiver<Option<Arc<Sender>>> {
        let ledger = ledger.watch_id();
        let token = Some(self.config.origin.token.clone()).filter(|token| !token.is_empty());
        let deadline = Duration::from_millis(self.config.origin.request_timeout_ms);
        let protocol = protocol(&self.config.origin);
        self.derived(identity, move |who| {
            who.map(|who| {
                Arc::new(Sender {
                    device: who.device.clone(),
                    store: who.store.clone(),
                    ledger: ledger.clone(),
                    token: token.clone(),
                    deadline,
                    protocol: protocol.clone(),
                })
            })
        })
    }

    /// Publishes what a function makes of the identity, now and after each change of identity or certificate.
    fn derived<T: Send + Sync + 'static>(
        &mut self,
        identity: &Identity,
        derive: impl Fn(Option<Arc<DeviceIdentity>>) -> T + Send + 'static,
    ) -> watch::Receiver<T> {
        let publish = watch::Sender::new(derive(identity.current()));
        let reader = publish.subscribe();
        let (mut who, mut tls, mut stop) = (identity.watch(), identity.tls(), self.stop.subscribe());
        self.tasks.spawn(async move {
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
}

fn protocol(origin: &OriginSection) -> Protocol {
    match (origin.mode, &origin.single) {
        (OriginMode::Single, Some(single)) => Protocol::Single(Arc::new(single.clone())),
        _ => Protocol::Batch((origin.compression == Compression::Gzip).then(Gzip::default)),
    }
}

/// The identity as the status names it.
pub(super) fn as_status(who: &DeviceIdentity) -> samovar_wire::status::Identity {
    samovar_wire::status::Identity {
        device: who.device.clone(),
        store: who.store.clone(),
        country: who.country.clone(),
        class: who.class.clone(),
    }
}
