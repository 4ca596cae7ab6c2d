//! `[commands]`: who may ask this device for something from afar. Pure.
//!
//! Activation brings these keys; a device that runs standalone names them here. A key has one name and one role: the
//! sequence of commands is counted by name, and a second name would begin it anew.

use samovar_wire::activation::Role;
use samovar_wire::dsse::PublicKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest name of a key.
const MAX_KEY_ID: usize = 128;

/// `[commands]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommandsSection {
    /// Keys that may sign commands and desired states, by key id, besides those of the activation.
    pub keys: BTreeMap<String, CommandKey>,
}

/// A key that may sign commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandKey {
    /// The Ed25519 public key.
    pub key: PublicKey,
    /// What it may ask for.
    pub role: Role,
}

impl CommandsSection {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let mut seen: Vec<(PublicKey, &str)> = Vec::new();
        for (id, CommandKey { key, .. }) in &self.keys {
            let visible = id.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
            if !visible || !(1..=MAX_KEY_ID).contains(&id.len()) {
                let problem = format!("the key id `{id}` must be 1 to {MAX_KEY_ID} visible ASCII characters");
                return Err(("commands.keys", problem));
            }
            if let Some((_, other)) = seen.iter().find(|(known, _)| known == key) {
                return Err(("commands.keys", format!("`{other}` and `{id}` are the same key")));
            }
            seen.push((*key, id));
        }
        Ok(())
    }
}
