//! Tokens that `login` has got, by server, in the user's configuration directory (0600).

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::store::replace_secret;

/// One login.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Login {
    pub(super) name: String,
    pub(super) token: String,
    pub(super) expires_at: String,
}

fn path() -> Result<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))
        .context("neither XDG_CONFIG_HOME nor HOME is set: use SAMOVAR_TOKEN")?;
    Ok(home.join("samovar").join("logins.json"))
}

fn all() -> Result<BTreeMap<String, Login>> {
    let path = path()?;
    match std::fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

/// The login kept for a server.
pub(super) fn find(server: &str) -> Result<Option<Login>> {
    Ok(all()?.remove(server))
}

/// Keeps a login.
pub(super) fn keep(server: &str, login: Login) -> Result<()> {
    let path = path()?;
    let mut logins = all()?;
    logins.insert(server.to_owned(), login);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    Ok(replace_secret(&path, &serde_json::to_vec_pretty(&logins)?)?)
}
