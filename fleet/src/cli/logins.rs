//! Tokens that `login` has got, by server, in the user's configuration directory (0600); and the one for the first
//! admin beside their password, in the server's data directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

impl Login {
    /// Whether it can still be used.
    pub(super) fn is_alive(&self) -> bool {
        !self.expires_at.parse::<samovar_wire::Timestamp>().is_ok_and(|end| end <= crate::clock::now())
    }
}

/// Where the token for `--data DIR` is kept, so that each command of a script does not pay for a password check.
fn beside_password(data: &Path) -> PathBuf {
    data.join("admin-login.json")
}

/// The login kept in a data directory, if it has not ended.
pub(super) fn of_data(data: &Path) -> Option<Login> {
    let kept: Login = serde_json::from_slice(&std::fs::read(beside_password(data)).ok()?).ok()?;
    kept.is_alive().then_some(kept)
}

/// Keeps a login in a data directory, in place of the one before.
pub(super) fn keep_in_data(data: &Path, login: &Login) -> Result<()> {
    Ok(replace_secret(&beside_password(data), &serde_json::to_vec_pretty(login)?)?)
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
