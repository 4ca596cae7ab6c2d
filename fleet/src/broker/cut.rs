//! Ends the connection of a device whose certificate is no longer good.

use super::hooks::TLS;
use rmqtt::context::ServerContext;
use rmqtt::types::Id;
use std::fmt;
use tokio::runtime::Handle;

/// Cuts devices off. Cheap to clone.
#[derive(Clone)]
pub struct Cutter {
    runtime: Handle,
    context: ServerContext,
}

impl fmt::Debug for Cutter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cutter").finish_non_exhaustive()
    }
}

impl Cutter {
    pub(super) fn new(runtime: Handle, context: ServerContext) -> Self {
        Self { runtime, context }
    }

    /// Ends the session of a device that came in with this certificate, with all that waits in it. Gives whether there
    /// was one. A device that is just connecting may be missed: ask again a little later.
    pub async fn cut(&self, device: &str, serial: &str) -> bool {
        let (context, device, serial) = (self.context.clone(), device.to_owned(), serial.to_owned());
        let work = self.runtime.spawn(async move { kick(&context, &device, &serial).await });
        work.await.unwrap_or(false)
    }
}

async fn kick(context: &ServerContext, device: &str, serial: &str) -> bool {
    let id = Id::new(context.node.id(), TLS, None, None, device.into(), None);
    let entry = context.extends.shared().await.entry(id);
    let Some(session) = entry.session() else { return false };
    let Ok(connect) = session.connect_info().await else { return false };
    let shown = connect.cert().and_then(|cert| cert.serial.as_deref()).unwrap_or_default();
    if shown.trim_start_matches('0') != serial.trim_start_matches('0') {
        return false;
    }
    let Ok(mut entry) = entry.try_lock().await else { return false };
    match entry.kick(true, true, true).await {
        Ok(_) => {
            tracing::info!(client = device, serial, "MQTT client cut off: its certificate has been revoked");
            true
        }
        Err(error) => {
            tracing::warn!(client = device, %error, "an MQTT client was not cut off");
            false
        }
    }
}
