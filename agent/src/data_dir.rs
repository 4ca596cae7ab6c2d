//! The data directory: whose it is, what stands in it, and how programs on the device find the running agent.
//!
//! | file | what |
//! |---|---|
//! | `agent.lock` | held by the one agent that uses the directory |
//! | `run.json` | where the running agent is |
//! | `local.token` | the bearer of the CLI, readable by the group `samovar-tech` |
//! | `epoch.json` | grows at each start |
//! | `orders.db` | the ledger |
//! | `aux.db` | events that wait for the fleet |
//! | `overrides.json`, `hosts/` | host overrides; lock and journal of the hosts file |
//! | `identity/`, `routes/`, `logs/` | see the modules of these names |

use crate::store::{self, Loaded, StoreError};
use ring::rand::{SecureRandom, SystemRandom};
use samovar_wire::Timestamp;
use samovar_wire::encoding::hex;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another agent has it.
    #[error("{0} is in use by another agent")]
    InUse(PathBuf),
    /// The lock cannot be taken.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system has no randomness to give.
    #[error("the system gives no random numbers")]
    Random,
}

/// A directory that is ours for as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// `run.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The agent's process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its API.
    pub local_api: String,
    /// When it was ready.
    pub started_at: Timestamp,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Epoch {
    epoch: u64,
}

impl DataDir {
    /// Takes the directory, making it if need be.
    ///
    /// # Errors
    /// When another agent has it or it cannot be used.
    pub fn take(path: &Path) -> Result<Self, DataDirError> {
        store::make_dir(path)?;
        let lock = path.join("agent.lock");
        let failed = |source| DataDirError::Lock { path: lock.clone(), source };
        let file = File::options().create(true).truncate(false).write(true).open(&lock).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(DataDirError::InUse(path.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next epoch, durable before it is used. A damaged file is set aside and told; then, or when the file of a
    /// directory in use is gone, the clock stands in, so that the number still grows.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub fn next_epoch(&self, now: Timestamp) -> Result<(u64, Option<PathBuf>), DataDirError> {
        let path = self.path.join("epoch.json");
        let by_clock = u64::try_from(now.millis() / 1_000).unwrap_or(0);
        let (last, set_aside) = match store::load::<Epoch>(&path)? {
            Loaded::Found(epoch) => (epoch.epoch, None),
            Loaded::Missing if !self.path.join("orders.db").exists() => (0, None),
            Loaded::Missing => (by_clock, None),
            Loaded::SetAside(kept, _) => (by_clock, Some(kept)),
        };
        let next = Epoch { epoch: last + 1 };
        store::replace_even_when_full(&path, &json(&next), 0o600)?;
        Ok((next.epoch, set_aside))
    }

    /// The bearer token of this device; made once.
    ///
    /// # Errors
    /// When it cannot be read or kept.
    pub fn local_token(&self) -> Result<String, DataDirError> {
        let path = self.path.join("local.token");
        let known = store::read(&path)?.and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some(token) = known.map(|text| text.trim().to_owned()).filter(|token| token.len() >= 32) {
            return Ok(token);
        }
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| DataDirError::Random)?;
        let token = hex(&bytes);
        store::replace(&path, format!("{token}\n").as_bytes(), 0o640)?;
        give_to_technicians(&path);
        Ok(token)
    }

    /// Tells programs on the device where the agent is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_run(&self, run: &Run) -> Result<(), DataDirError> {
        Ok(store::replace_even_when_full(&self.path.join("run.json"), &json(run), 0o644)?)
    }

    /// The agent is no longer there.
    pub fn remove_run(&self) {
        if let Err(error) = store::remove(&self.path.join("run.json")) {
            tracing::warn!(%error, "run.json stays behind");
        }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of numbers and texts always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Reads where the running agent is; `None` when there is none.
///
/// # Errors
/// When the file cannot be read.
pub fn read_run(data: &Path) -> Result<Option<Run>, StoreError> {
    let bytes = store::read(&data.join("run.json"))?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// The group is made by the package; where it does not exist, the owner alone reads the token.
#[cfg(unix)]
fn give_to_technicians(path: &Path) {
    let groups = store::read(Path::new("/etc/group")).ok().flatten().unwrap_or_default();
    let id = String::from_utf8_lossy(&groups).lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some("samovar-tech")).then(|| fields.nth(1)?.parse::<u32>().ok()).flatten()
    });
    if let Some(id) = id
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(id))
    {
        tracing::warn!(%error, "local.token could not be given to the group samovar-tech");
    }
}

#[cfg(not(unix))]
fn give_to_technicians(_path: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_belongs_to_one_agent_and_its_epoch_grows() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_millis(0);
        let first = DataDir::take(dir.path()).unwrap();
        assert!(matches!(DataDir::take(dir.path()), Err(DataDirError::InUse(_))));
        assert_eq!(first.next_epoch(now).unwrap().0, 1);
        let token = first.local_token().unwrap();
        drop(first);
        let second = DataDir::take(dir.path()).unwrap();
        assert_eq!(second.next_epoch(now).unwrap().0, 2);
        assert_eq!(second.local_token().unwrap(), token);
    }

    #[test]
    fn a_damaged_epoch_still_grows() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::take(dir.path()).unwrap();
        store::replace(&dir.path().join("epoch.json"), b"{", 0o600).unwrap();
        let (epoch, kept) = data.next_epoch(Timestamp::from_millis(5_000_000)).unwrap();
        assert_eq!(epoch, 5_001);
        assert!(kept.unwrap().exists());
    }
}
