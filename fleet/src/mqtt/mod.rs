//! Starts MQTT as it is configured: the broker inside or none or somebody else's, and the flow behind it (IO).

#[cfg(feature = "embedded-broker")]
mod inside;

#[cfg(feature = "embedded-broker")]
use inside::start as inside;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::config::{self, BrokerChoice, Config, ConfigError, broker_choice};
use crate::db::Database;
use crate::ingest::client::LinkError;
use crate::ingest::desired::DesiredConfig;
use crate::ingest::url::{BrokerUrl, InvalidBrokerUrl};
use crate::ingest::{Ingest, IngestConfig, IngestTasks};
use crate::overload::Overload;
use crate::pki::Authority;
use crate::pki::authority::PkiError;
use crate::pki::secrets::SigningKeys;
use crate::store::{ReplaceError, replace};

/// How long each part may take to stop.
const STOP: Duration = Duration::from_millis(900);

/// MQTT cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    /// The choice of a broker makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Asked for a broker inside a program that has none.
    #[error("this samovar-fleet was built without a broker inside: name one with --broker mqtt(s)://…")]
    NotInside,
    /// An address of the configuration is none.
    #[error("{key} is not an address: `{text}`")]
    Address {
        /// Which key.
        key: &'static str,
        /// What it says.
        text: String,
    },
    /// The broker inside did not start.
    #[cfg(feature = "embedded-broker")]
    #[error(transparent)]
    Broker(#[from] crate::broker::BrokerError),
    /// The broker inside has no certificate.
    #[error(transparent)]
    Certificate(#[from] PkiError),
    /// The URL is none.
    #[error("broker.url")]
    Url(#[from] InvalidBrokerUrl),
    /// The flow cannot be started.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The authority of an external broker cannot be read.
    #[error("broker.ca: {path} cannot be read", path = path.display())]
    Ca {
        /// Which file.
        path: PathBuf,
        /// What was wrong with it.
        source: rustls_pki_types::pem::Error,
    },
    /// TLS towards the broker cannot be set up.
    #[error("TLS towards the broker cannot be set up")]
    Tls(#[source] rustls::Error),
    /// A file of the data directory cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the data directory cannot be written.
    #[error(transparent)]
    Write(#[from] ReplaceError),
    /// No randomness for a name.
    #[error(transparent)]
    Random(#[from] crate::random::NoRandomness),
}

/// What MQTT needs of the server.
pub struct Needs<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Storage.
    pub database: &'a Database,
    /// Signs desired states.
    pub keys: &'a Arc<SigningKeys>,
    /// The data directory.
    pub dir: &'a Path,
    /// The authority of devices (PEM).
    pub client_ca: &'a str,
    /// Issues the broker's certificate.
    pub authority: &'a Authority,
    /// The server's HTTPS as devices see it, such as `https://fleet.example:7743`.
    pub https: String,
    /// How the orders are doing: what devices say of themselves comes after them.
    pub overload: &'a Overload,
}

/// MQTT at work.
#[derive(Debug)]
pub struct Mqtt {
    /// The flow, for the rest of the server.
    pub ingest: Ingest,
    /// The broker as programs on this machine reach it (`run.json`).
    pub here: Option<String>,
    /// The broker as devices are told; empty without one.
    pub for_devices: String,
    /// What is to be stopped.
    pub tasks: Tasks,
}

/// The parts that are to be stopped.
#[derive(Debug, Default)]
pub struct Tasks {
    ingest: Option<IngestTasks>,
    #[cfg(feature = "embedded-broker")]
    broker: Option<crate::broker::Running>,
    #[cfg(feature = "embedded-broker")]
    cutting: Option<tokio::task::AbortHandle>,
}

impl Tasks {
    /// The flow first, so that what it acknowledges still reaches the broker.
    pub async fn stop(self) {
        if let Some(ingest) = self.ingest {
            ingest.stop(STOP).await;
        }
        #[cfg(feature = "embedded-broker")]
        if let Some(cutting) = self.cutting {
            cutting.abort();
        }
        #[cfg(feature = "embedded-broker")]
        if let Some(broker) = self.broker
            && let Err(error) = broker.stop(STOP).await
        {
            tracing::warn!(%error, "the broker was cut off");
        }
    }
}

/// Starts what the configuration asks for.
///
/// # Errors
/// [`MqttError`].
pub async fn start(needs: Needs<'_>) -> Result<Mqtt, MqttError> {
    let broker = &needs.config.broker;
    match broker_choice(&broker.url)? {
        BrokerChoice::None => Ok(Mqtt {
            ingest: Ingest::without_broker(),
            here: None,
            for_devices: broker.device_url.clone(),
            tasks: Tasks::default(),
        }),
        BrokerChoice::External(text) => {
            let url = text.parse::<BrokerUrl>()?.or_login(&broker.username, &broker.password);
            let public = url.to_string();
            let tls = if url.tls { Some(Arc::new(client_tls(&broker.ca)?)) } else { None };
            let (ingest, tasks) = Ingest::start(needs.database, ingest_config(&needs, url, tls)?)?;
            let for_devices = told(broker, public.clone());
            let tasks = Tasks { ingest: Some(tasks), ..Tasks::default() };
            Ok(Mqtt { ingest, here: Some(public), for_devices, tasks })
        }
        BrokerChoice::Embedded => inside(needs).await,
    }
}

#[cfg(not(feature = "embedded-broker"))]
async fn inside(_needs: Needs<'_>) -> Result<Mqtt, MqttError> {
    Err(MqttError::NotInside)
}

fn ingest_config(
    needs: &Needs<'_>,
    url: BrokerUrl,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<IngestConfig, MqttError> {
    Ok(IngestConfig {
        url,
        client_id: client_id(needs.dir)?,
        tls,
        overload: needs.overload.clone(),
        desired: DesiredConfig {
            environment: needs.config.server.environment.clone(),
            keys: Arc::clone(needs.keys),
            route_table_url: format!("{}{}", needs.https, crate::ingest::http::ROUTE_TABLE),
        },
    })
}

/// What devices are told, unless the configuration says something else.
fn told(broker: &config::Broker, derived: String) -> String {
    if broker.device_url.is_empty() { derived } else { broker.device_url.clone() }
}

/// This server's name at the broker: one for each data directory, the same after each restart. The dot keeps it apart
/// from every name that a device can have.
fn client_id(dir: &Path) -> Result<String, MqttError> {
    let path = dir.join("mqtt-client-id");
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().starts_with("fleet.") && text.trim().len() <= 64 => {
            Ok(text.trim().to_owned())
        }
        Ok(_) => new_client_id(&path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => new_client_id(&path),
        Err(source) => Err(MqttError::Read { path, source }),
    }
}

fn new_client_id(path: &Path) -> Result<String, MqttError> {
    let name = format!("fleet.{}", samovar_wire::encoding::hex(&crate::random::bytes::<8>()?));
    replace(path, name.as_bytes())?;
    Ok(name)
}

/// Trusts the configured authority, or those of the system.
pub(crate) fn client_tls(ca: &Path) -> Result<rustls::ClientConfig, MqttError> {
    let mut roots = rustls::RootCertStore::empty();
    if ca.as_os_str().is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        let unreadable = |source| MqttError::Ca { path: ca.to_owned(), source };
        for root in CertificateDer::pem_file_iter(ca).map_err(unreadable)? {
            roots.add(root.map_err(unreadable)?).map_err(MqttError::Tls)?;
        }
    }
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(MqttError::Tls)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_name_at_the_broker_survives_a_restart_and_cannot_be_a_devices() {
        let dir = tempfile::tempdir().unwrap();
        let name = client_id(dir.path()).unwrap();
        assert_eq!(client_id(dir.path()).unwrap(), name);
        assert!(name.parse::<samovar_wire::DeviceId>().is_err());
        std::fs::write(dir.path().join("mqtt-client-id"), "POS-1").unwrap();
        assert!(client_id(dir.path()).unwrap().starts_with("fleet."));
    }
}
