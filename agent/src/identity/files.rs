//! What an activation leaves on disk, written so that a crash at any step leaves none or a whole one.
//!
//! ```text
//! DIR/identity/activation.json            who the device is, and which credential is in force: the commit
//!              credential-7/device.key    0600, PKCS#8 PEM
//!                           device.pem    certificate chain, leaf first
//!                           ca.pem        whom to believe
//!                           route-table.json   only until it has been moved to DIR/route-table.json
//!              pending-1f….json           0600, the key of a claim that has not been answered
//!              lock                       held while a commit is made
//! ```
//!
//! A commit writes a new credential directory, then replaces `activation.json`, which names it: that one rename is
//! the whole switch, for the first activation, a replacement and a renewal alike. What a crash leaves:
//!
//! | crash after | found at the next start |
//! |---|---|
//! | directory made, key, certificate, authority or table written | what was before; the next commit removes the stray directory |
//! | `activation.json` replaced | the new activation; [`read`] moves the route table into place |
//! | route table moved | the new activation |
//! | pending keys or old credentials removed in part | the new activation; the next commit removes the rest |

use super::tls::{Credential, Roots, TlsError};
use crate::store::{self, StoreError};
use samovar_wire::activation::CommandKey;
use samovar_wire::dsse::TrustedKeys;
use samovar_wire::ids::DeviceClass;
use samovar_wire::{Country, DeviceId, StoreId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const SCHEMA: u32 = 1;

/// The route table as other parts of the agent look for it.
pub const ROUTE_TABLE: &str = "route-table.json";

/// What was granted, as `activation.json` keeps it. Fields of later versions are carried along.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Activation {
    schema: u32,
    /// Number of the credential directory in force.
    pub(super) credential: u64,
    /// When the device was activated.
    pub activated_at: Timestamp,
    /// Who the device is.
    pub device: DeviceId,
    /// Its store.
    pub store: StoreId,
    /// The store's country.
    pub country: Country,
    /// Its class.
    pub class: DeviceClass,
    /// Environment of route tables and topics.
    pub environment: String,
    /// Keys that sign route tables.
    pub trusted_keys: TrustedKeys,
    /// Keys that sign commands.
    #[serde(default)]
    pub commands_keys: BTreeMap<String, CommandKey>,
    /// Where MQTT is; empty when the fleet has none.
    #[serde(default)]
    pub mqtt_url: String,
    /// Base URL of the fleet's device API.
    #[serde(default)]
    pub fleet_url: String,
    #[serde(flatten)]
    unknown: BTreeMap<String, serde_json::Value>,
}

impl Activation {
    /// An activation as granted; its credential gets a number when it is committed.
    pub(super) fn new(
        answer: &samovar_wire::activation::ClaimAnswer,
        fleet_url: String,
        at: Timestamp,
    ) -> Self {
        Self {
            schema: SCHEMA,
            credential: 0,
            activated_at: at,
            device: answer.device.clone(),
            store: answer.store.clone(),
            country: answer.country.clone(),
            class: answer.class.clone(),
            environment: answer.environment.clone(),
            trusted_keys: answer.trusted_keys.clone(),
            commands_keys: answer.commands_keys.clone(),
            mqtt_url: answer.mqtt_url.clone(),
            fleet_url,
            unknown: BTreeMap::new(),
        }
    }
}

/// A damaged file or directory that was moved out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

impl std::fmt::Display for SetAside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

/// The identity directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A newer agent wrote it.
    #[error("{path} was written by a later version (schema {schema}): install that version again")]
    LaterVersion {
        /// Which file.
        path: PathBuf,
        /// Its form.
        schema: u32,
    },
    /// Another process commits at this moment, or none can lock.
    #[error("{path} is locked by another activation or renewal: try again")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Why, when it is not simply held.
        #[source]
        source: TryLockError,
    },
    /// The lock file cannot be opened.
    #[error("cannot open {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What root wrote cannot be given to the agent's user.
    #[error("cannot give {path} to the owner of the data directory")]
    HandOver {
        /// What was written.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The activation on disk is not the one that this commit was to replace.
    #[error("the activation was changed meanwhile")]
    Changed,
    /// No key can be made.
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    /// The activation has no text form.
    #[error("cannot write the activation as JSON")]
    Encode(#[source] serde_json::Error),
}

/// What is on disk.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    pub activation: Option<Activation>,
    pub credential: Option<Credential>,
    pub roots: Option<Roots>,
    pub set_aside: Vec<SetAside>,
}

fn home(dir: &Path) -> PathBuf {
    dir.join("identity")
}

/// The file whose replacement is the commit; its change is what a running agent looks for.
pub(super) fn commit_file(dir: &Path) -> PathBuf {
    home(dir).join("activation.json")
}

fn credential_dir(dir: &Path, number: u64) -> PathBuf {
    home(dir).join(format!("credential-{number}"))
}

/// Tells one state of some files from another, as far as a look at the directory can.
pub(super) fn stamp(paths: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    let look = |path: &PathBuf| fs::metadata(path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
    paths.iter().map(look).collect()
}

/// Reads the activation; finishes a commit that was cut short; sets damaged parts aside.
pub(super) fn read(dir: &Path) -> Result<OnDisk, FilesError> {
    let path = commit_file(dir);
    let mut found = OnDisk::default();
    let activation = match store::load::<Activation>(&path)? {
        store::Loaded::Missing => return Ok(found),
        store::Loaded::SetAside(path, reason) => {
            found.set_aside.push(SetAside { path, reason });
            return Ok(found);
        }
        store::Loaded::Found(activation) => activation,
    };
    if activation.schema > SCHEMA {
        return Err(FilesError::LaterVersion { path, schema: activation.schema });
    }
    let credential = credential_dir(dir, activation.credential);
    move_table(&credential, dir)?;
    match read_credential(&credential) {
        Ok((own, roots)) => {
            found.credential = Some(own);
            found.roots = Some(roots);
        }
        // Between the two reads a commit may have removed what the first one named.
        Err(_) if in_force(dir)? != Some(activation.credential) => return read(dir),
        Err(TlsError::Read(error)) => return Err(FilesError::Store(error)),
        // Nothing is left to move, but the loss is told all the same.
        Err(problem) if !credential.exists() => {
            found.set_aside.push(SetAside { path: credential, reason: problem.to_string() });
        }
        Err(problem) => {
            let reason = problem.to_string();
            found.set_aside.push(SetAside { path: store::set_aside(&credential)?, reason });
        }
    }
    found.activation = Some(activation);
    Ok(found)
}

fn read_credential(directory: &Path) -> Result<(Credential, Roots), TlsError> {
    let credential = Credential::read(&directory.join("device.pem"), &directory.join("device.key"))?;
    Ok((credential, Roots::read(&directory.join("ca.pem"))?))
}

fn move_table(credential: &Path, dir: &Path) -> Result<(), StoreError> {
    perform(&Step::Move { from: credential.join(ROUTE_TABLE), to: dir.join(ROUTE_TABLE) })
}

/// The texts of one credential.
pub(super) struct Texts<'a> {
    pub key: &'a str,
    pub certificate: &'a str,
    pub ca: &'a str,
    /// The route table that came with it, if any.
    pub route_table: Option<&'a str>,
}

/// What must be on disk for a commit to go ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaces {
    /// No activation.
    Nothing,
    /// Whatever there is.
    Anything,
    /// The activation with this credential.
    Credential(u64),
}

/// Brings an activation into force.
pub(super) fn commit(
    dir: &Path,
    activation: &Activation,
    texts: &Texts<'_>,
    replaces: Replaces,
) -> Result<Activation, FilesError> {
    make_home(dir)?;
    let _lock = lock(dir)?;
    let present = in_force(dir)?;
    match (replaces, present) {
        (Replaces::Anything, _) | (Replaces::Nothing, None) => {}
        (Replaces::Credential(expected), Some(found)) if expected == found => {}
        _ => return Err(FilesError::Changed),
    }
    let number = entries(dir).iter().filter_map(|name| credential_number(name)).chain(present).max();
    let committed = Activation { credential: number.unwrap_or(0) + 1, ..activation.clone() };
    for step in steps(dir, &committed, texts)? {
        perform(&step)?;
        if let Step::MakeDir(path) | Step::Write { path, .. } = &step {
            hand_over(dir, path)?;
        }
    }
    for step in cleaning(dir, committed.credential) {
        // The new activation is in force; what cannot be removed now is removed by the next commit.
        if let Err(error) = perform(&step) {
            tracing::warn!(%error, "a left-over of an earlier activation stays");
        }
    }
    Ok(committed)
}

fn make_home(dir: &Path) -> Result<(), FilesError> {
    store::make_dir(&home(dir))?;
    hand_over(dir, &home(dir))
}

/// A technician activates as root, the agent runs as somebody else: what root writes belongs to whoever owns the
/// data directory.
#[cfg(unix)]
fn hand_over(dir: &Path, path: &Path) -> Result<(), FilesError> {
    use std::os::unix::fs::{MetadataExt, chown};
    let owner = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid()));
    let give = || match (owner(dir)?, owner(path)?) {
        (wanted, found) if wanted != found && found.0 == 0 => chown(path, Some(wanted.0), Some(wanted.1)),
        _ => Ok(()),
    };
    give().map_err(|source| FilesError::HandOver { path: path.to_owned(), source })
}

#[cfg(not(unix))]
fn hand_over(_dir: &Path, _path: &Path) -> Result<(), FilesError> {
    Ok(())
}

/// Number of the credential in force; `None` without a readable activation.
fn in_force(dir: &Path) -> Result<Option<u64>, FilesError> {
    let content = store::read(&commit_file(dir))?;
    Ok(content.and_then(|c| serde_json::from_slice::<Activation>(&c).ok()).map(|found| found.credential))
}

fn lock(dir: &Path) -> Result<File, FilesError> {
    let path = home(dir).join("lock");
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|source| FilesError::Lock { path: path.clone(), source })?;
    hand_over(dir, &path)?;
    file.try_lock().map_err(|source| FilesError::Locked { path, source })?;
    Ok(file)
}

/// One step of a commit; each can be interrupted by a power cut only before or after.
#[derive(Debug)]
enum Step {
    MakeDir(PathBuf),
    Write { path: PathBuf, content: Vec<u8>, mode: u32 },
    Move { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
}

/// What brings `activation` into force, in order. The one that matters is the replacement of `activation.json`.
fn steps(dir: &Path, activation: &Activation, texts: &Texts<'_>) -> Result<Vec<Step>, FilesError> {
    let target = credential_dir(dir, activation.credential);
    let write = |path: PathBuf, text: &str, mode| Step::Write { path, content: text.into(), mode };
    let document = serde_json::to_string_pretty(activation).map_err(FilesError::Encode)?;
    let mut steps = vec![
        Step::MakeDir(target.clone()),
        write(target.join("device.key"), texts.key, 0o600),
        write(target.join("device.pem"), texts.certificate, 0o644),
        write(target.join("ca.pem"), texts.ca, 0o644),
    ];
    if let Some(table) = texts.route_table {
        steps.push(write(target.join(ROUTE_TABLE), table, 0o600));
    }
    steps.push(write(commit_file(dir), &document, 0o600));
    if texts.route_table.is_some() {
        steps.push(Step::Move { from: target.join(ROUTE_TABLE), to: dir.join(ROUTE_TABLE) });
    }
    Ok(steps)
}

/// What the credential in force makes superfluous: older ones and the keys of unanswered claims.
fn cleaning(dir: &Path, in_force: u64) -> Vec<Step> {
    let superfluous = |name: &&String| {
        credential_number(name).is_some_and(|number| number != in_force) || name.starts_with(pending::PREFIX)
    };
    entries(dir).iter().filter(superfluous).map(|name| Step::Remove(home(dir).join(name))).collect()
}

fn credential_number(name: &str) -> Option<u64> {
    name.strip_prefix("credential-")?.parse().ok()
}

fn entries(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(home(dir)).into_iter().flatten().flatten();
    listed.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn perform(step: &Step) -> Result<(), StoreError> {
    match step {
        Step::MakeDir(path) => store::make_dir(path).and_then(|()| store::sync_directory_of(path)),
        Step::Write { path, content, mode } => store::replace(path, content, *mode),
        Step::Move { from, to } => store::rename_if_there(from, to),
        Step::Remove(path) if path.is_dir() => store::remove_dir(path),
        Step::Remove(path) => store::remove(path),
    }
}

mod pending;

pub(super) use pending::{forget_claim, key_for_claim};

#[cfg(test)]
mod tests;
