//! The desired state that the fleet signs for this device: verified, applied when it is newer, remembered.
//!
//! The broker is not believed: the envelope must be signed by a key whose role may route, and must name this device.
//! A route table inside is a signed document of its own and goes the way of every table.

use crate::store::{self, Loaded, StoreError};
use samovar_wire::DeviceId;
use samovar_wire::activation::{CommandKey, Role};
use samovar_wire::dsse::{self, Envelope, OpenError};
use samovar_wire::mqtt::Desired;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a desired state was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not an envelope, or not a desired state.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// Not signed by a key this device believes.
    #[error("it is not trusted: {0}")]
    Untrusted(OpenError),
    /// The key's role may not do this.
    #[error("key `{key_id}` has role {role:?}, which may not change a device's desired state")]
    Role {
        /// The key.
        key_id: String,
        /// Its role.
        role: Role,
    },
    /// For somebody else.
    #[error("it is for device {0}")]
    OtherDevice(DeviceId),
}

/// Verifies a desired state. `Ok(None)` when it is not newer than what was applied.
///
/// # Errors
/// When it is not for us or not to be believed.
pub fn verify(
    message: &[u8],
    device: &DeviceId,
    keys: &BTreeMap<String, CommandKey>,
    applied: u64,
) -> Result<Option<Desired>, Refused> {
    let unreadable = |error: serde_json::Error| Refused::Unreadable(error.to_string());
    let envelope: Envelope = serde_json::from_slice(message).map_err(unreadable)?;
    let trusted = keys.iter().map(|(id, key)| (id.clone(), key.key)).collect();
    let verified = envelope.open(dsse::DESIRED, &trusted).map_err(Refused::Untrusted)?;
    let desired: Desired = serde_json::from_slice(&verified.payload).map_err(unreadable)?;
    if let Some(key) = keys.get(&verified.key_id).filter(|key| key.role < Role::Netops) {
        return Err(Refused::Role { key_id: verified.key_id, role: key.role });
    }
    if desired.device != *device {
        return Err(Refused::OtherDevice(desired.device));
    }
    Ok((desired.revision > applied).then_some(desired))
}

/// What was applied last; kept on disk.
#[derive(Debug)]
pub struct Revision {
    path: PathBuf,
    kept: Kept,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Kept {
    /// Revisions count per fleet environment and device.
    device: String,
    revision: u64,
}

impl Revision {
    /// Reads it; a damaged file is set aside and everything is applied anew.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(data: &Path, device: &DeviceId) -> Result<Self, StoreError> {
        let path = data.join("desired.json");
        let kept = match store::load::<Kept>(&path)? {
            Loaded::Found(kept) if kept.device == device.as_str() => kept,
            _ => Kept { device: device.to_string(), revision: 0 },
        };
        Ok(Self { path, kept })
    }

    /// The number.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.kept.revision
    }

    /// Remembers that a revision was applied.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn applied(&mut self, revision: u64) -> Result<(), StoreError> {
        self.kept.revision = revision;
        store::replace(&self.path, &serde_json::to_vec(&self.kept).unwrap_or_default(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use samovar_wire::dsse::{SigningKey, new_seed};
    use serde_json::json;

    struct Fleet {
        key: SigningKey,
        keys: BTreeMap<String, CommandKey>,
    }

    impl Fleet {
        fn new(role: Role) -> Self {
            let key = SigningKey::from_seed("c1", &new_seed().unwrap()).unwrap();
            let keys = [("c1".to_owned(), CommandKey { key: key.public(), role })].into();
            Self { key, keys }
        }

        fn check(&self, device: &str, revision: u64, applied: u64) -> Result<Option<Desired>, Refused> {
            let payload = json!({ "device": device, "revision": revision, "later": true }).to_string();
            let envelope = Envelope::sign(dsse::DESIRED, payload.as_bytes(), &[&self.key]);
            let message = serde_json::to_vec(&envelope).unwrap();
            verify(&message, &"POS-1".parse().unwrap(), &self.keys, applied)
        }
    }

    #[test]
    fn a_newer_state_for_this_device_is_taken_and_an_older_one_is_not() {
        let fleet = Fleet::new(Role::Netops);
        assert_eq!(fleet.check("POS-1", 5, 4).unwrap().unwrap().revision, 5);
        assert_eq!(fleet.check("POS-1", 5, 5), Ok(None));
        assert!(matches!(fleet.check("POS-2", 5, 4), Err(Refused::OtherDevice(_))));
    }

    #[test]
    fn a_key_without_the_role_or_without_trust_changes_nothing() {
        assert!(matches!(Fleet::new(Role::Support).check("POS-1", 5, 4), Err(Refused::Role { .. })));
        let (fleet, stranger) = (Fleet::new(Role::Admin), Fleet::new(Role::Admin));
        let message = serde_json::to_vec(&Envelope::sign(dsse::DESIRED, b"{}", &[&stranger.key])).unwrap();
        let refused = verify(&message, &"POS-1".parse().unwrap(), &fleet.keys, 0);
        assert!(matches!(refused, Err(Refused::Untrusted(_))));
        assert!(matches!(
            verify(b"{}", &"POS-1".parse().unwrap(), &fleet.keys, 0),
            Err(Refused::Unreadable(_))
        ));
    }
}
