//! Overrides without a running agent: at boot, on a timer, after a crash, and when the package goes (IO).
//!
//! The hosts file is brought to what `overrides.json` says, less what has ended. `overrides.json` itself is the agent's
//! and is only read here, or removed: whoever runs this may have rights that the owner of that directory has not.

use super::apply::{ApplyError, HostsFile, Outcome};
use super::book;
use super::file::Block;
use super::helper::check;
use super::overrides::{Now, Overrides};
use super::state::{Scope, Shown};
use crate::store::{self, StoreError};
use std::path::{Path, PathBuf};

/// Where lock and journal are when the data directory belongs to somebody else: root writes nothing into it.
pub const STATE: &str = "/var/lib/samovar-hosts";

/// It could not be done.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The kept overrides cannot be read or removed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kept overrides are damaged.
    #[error("{0} is damaged: the agent sets it aside when it starts")]
    Damaged(PathBuf),
    /// The hosts file cannot be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Where lock and journal are.
#[must_use]
pub fn state_dir(data: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::symlink_metadata(data).map(|metadata| metadata.uid());
    if own.is_ok_and(|owner| owner != rustix::process::geteuid().as_raw()) {
        return STATE.into();
    }
    data.join("hosts")
}

/// What is kept and has not ended.
///
/// # Errors
/// When it cannot be read.
pub fn list(data: &Path) -> Result<Vec<Shown>, OfflineError> {
    let now = book::now();
    let mut kept = read(data)?;
    kept.age(&now);
    let scope = || (Scope::Agent, Some("no agent is running".to_owned()));
    Ok(kept.overrides.iter().map(|known| Shown::new(known, &now, scope(), None).counted()).collect())
}

/// Brings the hosts file to what is kept, less what has ended. A damaged list counts as empty: it ends every override.
///
/// # Errors
/// When the file cannot be written.
pub fn reconcile(data: &Path, file: &HostsFile) -> Result<Outcome, OfflineError> {
    let kept = match read(data) {
        Err(OfflineError::Damaged(_)) => Overrides::default(),
        other => other?,
    };
    Ok(file.apply(&block_of(kept, &book::now()))?)
}

/// Ends every override: for good, also for an agent that starts later.
///
/// # Errors
/// When the list cannot be removed or the file cannot be written.
pub fn clear_all(data: &Path, file: &HostsFile) -> Result<Outcome, OfflineError> {
    store::remove(&data.join(book::FILE))?;
    Ok(file.apply(&Block::default())?)
}

fn block_of(mut kept: Overrides, now: &Now) -> Block {
    let generation = kept.generation;
    kept.age(now);
    // Nothing was changed that the agent should know of, so the number stays the agent's.
    Block { generation, ..kept.block() }
}

fn read(data: &Path) -> Result<Overrides, OfflineError> {
    let path = data.join(book::FILE);
    let Some(bytes) = store::read(&path)? else { return Ok(Overrides::default()) };
    let kept = serde_json::from_slice::<Overrides>(&bytes).ok();
    // Whoever owns the list need not have the rights of whoever reads it here.
    kept.filter(|kept| check(&kept.block()).is_ok()).ok_or(OfflineError::Damaged(path))
}
