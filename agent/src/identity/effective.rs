//! Who the device is in effect: what the configuration says, else what the activation says.
//!
//! An agent without a fleet is configured; an activated one needs no configuration; where both speak, the file that a
//! person wrote wins. Keys that may sign route tables are those of both.

use super::files::{self, Activation, FilesError, OnDisk, SetAside};
use super::tls::{self, Credential, Roots, TlsError};
use crate::config::{Config, IdentitySection, OriginSection};
use samovar_wire::activation::CommandKey;
use samovar_wire::dsse::TrustedKeys;
use samovar_wire::ids::DeviceClass;
use samovar_wire::{Country, DeviceId, StoreId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Environment when neither configuration nor activation names one.
const DEFAULT_ENVIRONMENT: &str = "prod";

/// Who the device is, and what comes with that.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceIdentity {
    /// The device.
    pub device: DeviceId,
    /// Its store.
    pub store: StoreId,
    /// The store's country.
    pub country: Country,
    /// Its class.
    pub class: DeviceClass,
    /// Environment of route tables and topics.
    pub environment: String,
    /// Keys that may sign route tables.
    pub trusted_keys: TrustedKeys,
    /// Keys that may sign commands, with the role of each.
    pub commands_keys: BTreeMap<String, CommandKey>,
    /// Where MQTT is; `None` when it is off.
    pub mqtt_url: Option<String>,
    /// Base URL of the fleet's device API; `None` without an activation.
    pub fleet_url: Option<String>,
}

/// Identity and TLS as the data directory and the configuration give them.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Who the device is; `None` when nobody has said.
    pub identity: Option<DeviceIdentity>,
    /// The certificate that it shows.
    pub credential: Option<Arc<Credential>>,
    /// Whom it believes besides, or instead of, the system's list; `None` is the system's.
    pub roots: Option<Roots>,
    /// Damaged files that were moved out of the way.
    pub set_aside: Vec<SetAside>,
    /// The activation itself, when there is one.
    pub(super) activation: Option<Activation>,
    /// Whether the certificate is the activation's, and so the fleet's to renew.
    pub(super) renewable: bool,
}

/// Identity or TLS cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The data directory.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A file that the configuration names.
    #[error("[origin] tls cannot be used")]
    Tls(#[source] TlsError),
}

/// Reads who the device is.
///
/// # Errors
/// When a file cannot be read, or one that the configuration names is not what it should be. A damaged file of the
/// activation is no error: it is set aside and told.
pub fn load(dir: &Path, config: &Config) -> Result<Loaded, LoadError> {
    let OnDisk { activation, credential, roots, set_aside } = files::read(dir)?;
    let configured = configured_credential(&config.origin).map_err(LoadError::Tls)?;
    let configured_roots = configured_roots(&config.origin).map_err(LoadError::Tls)?;
    Ok(Loaded {
        identity: merge(config, activation.as_ref()),
        renewable: configured.is_none() && credential.is_some(),
        credential: configured.or(credential).map(Arc::new),
        roots: configured_roots.or(roots),
        set_aside,
        activation,
    })
}

impl Loaded {
    /// The TLS configuration that origins, fleet and broker are spoken to with.
    ///
    /// # Errors
    /// When nobody is trusted, or the library refuses the combination.
    pub fn client_config(&self) -> Result<rustls::ClientConfig, TlsError> {
        let roots = self.roots.clone().map_or_else(Roots::system, Ok)?;
        tls::client_config(&roots, self.credential.as_deref())
    }
}

/// The files of the configuration that identity depends on.
pub(super) fn configured_files(config: &OriginSection) -> Vec<PathBuf> {
    config.tls.iter().flat_map(|tls| [&tls.ca, &tls.cert, &tls.key]).flatten().cloned().collect()
}

fn configured_credential(config: &OriginSection) -> Result<Option<Credential>, TlsError> {
    match config.tls.as_ref().map(|tls| (&tls.cert, &tls.key)) {
        Some((Some(certificate), Some(key))) => Credential::read(certificate, key).map(Some),
        _ => Ok(None),
    }
}

fn configured_roots(config: &OriginSection) -> Result<Option<Roots>, TlsError> {
    config.tls.as_ref().and_then(|tls| tls.ca.as_deref()).map(Roots::read).transpose()
}

fn merge(config: &Config, activation: Option<&Activation>) -> Option<DeviceIdentity> {
    let (device, store, country, class) = match (&config.identity, activation) {
        (IdentitySection { device: Some(d), store: Some(s), country: Some(c), class: Some(k) }, _) => {
            (d, s, c, k)
        }
        (_, Some(a)) => (&a.device, &a.store, &a.country, &a.class),
        _ => return None,
    };
    let mut trusted_keys = activation.map(|a| a.trusted_keys.clone()).unwrap_or_default();
    trusted_keys.extend(config.routing.trusted_keys.clone());
    let granted_mqtt = || activation.map(|a| a.mqtt_url.clone());
    let given = |text: &String| !text.is_empty();
    Some(DeviceIdentity {
        device: device.clone(),
        store: store.clone(),
        country: country.clone(),
        class: class.clone(),
        environment: environment(config, activation),
        trusted_keys,
        commands_keys: activation.map(|a| a.commands_keys.clone()).unwrap_or_default(),
        mqtt_url: config.relay.url.clone().or_else(granted_mqtt).filter(given),
        fleet_url: activation.map(|a| a.fleet_url.clone()).filter(given),
    })
}

fn environment(config: &Config, activation: Option<&Activation>) -> String {
    let configured = Some(&config.routing.environment);
    let candidates = configured.into_iter().chain(activation.map(|a| &a.environment));
    candidates
        .into_iter()
        .find(|name| !name.is_empty())
        .map_or(DEFAULT_ENVIRONMENT, String::as_str)
        .to_owned()
}

#[cfg(test)]
mod tests;
