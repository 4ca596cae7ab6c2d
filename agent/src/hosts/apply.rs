//! Brings the hosts file into the state that is wanted (IO): under a lock, whole or not at all, and not at all when
//! nothing changes.
//!
//! Promises: killed anywhere, the file is the old one or the new one, byte for byte (where it can only be written in
//! place, the next apply finishes what the journal says); mode, owner and extended attributes stay; an edit by somebody
//! else while we work is not lost, we begin anew. Absent on purpose: following symbolic links, and making a file that is
//! not there.

use super::file::{Block, Conflict, FILE_MAX, Rendered, render};
use super::in_place;
use crate::clock::mono;
use crate::store::{self, StoreError};
use samovar_wire::encoding::{hex, sha256};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for somebody else who is at the file.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// How often we begin anew because somebody else edits the file.
const ATTEMPTS: usize = 5;

/// A hosts file, and where we keep what belongs to writing it.
#[derive(Debug, Clone)]
pub struct HostsFile {
    path: PathBuf,
    /// Lock and journal; nobody else may write there.
    state: PathBuf,
}

/// What became of an apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether the file was written.
    pub written: bool,
    /// SHA-256 of the file before, hex.
    pub before: String,
    /// SHA-256 of the file now, hex.
    pub after: String,
    /// Names that were left out because a foreign line says something else.
    pub conflicts: Vec<Conflict>,
    /// Somebody had written between our markers.
    pub tampered: bool,
    /// A write that was cut short was finished from its journal.
    pub recovered: bool,
    /// The version that this apply left, not one that came after it; unknown when another program made it.
    #[serde(skip)]
    pub(super) seen: Option<Seen>,
}

/// Why the hosts file is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The file is not one that we write.
    #[error("{path} {why}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// We lack the rights.
    #[error("this program may not write {path}: {why}")]
    NotPermitted {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// Somebody else is at it.
    #[error("{0} is being written by somebody else")]
    Busy(PathBuf),
    /// A step failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What.
        operation: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What tells one version of a file from the next without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    inode: (u64, u64),
    len: u64,
    modified: (i64, i64),
}

/// A file that was read.
struct Old {
    file: File,
    seen: Seen,
    bytes: Vec<u8>,
}

/// Why a file cannot be replaced by another.
enum Beside {
    /// It changed meanwhile: begin anew.
    Changed,
    /// Here it can only be written in place.
    Impossible,
    Failed(ApplyError),
}

impl HostsFile {
    /// The file, and the directory for lock and journal.
    #[must_use]
    pub fn new(path: &Path, state: &Path) -> Self {
        Self { path: path.to_owned(), state: state.to_owned() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file hold this block and its foreign bytes. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Why it does not; it is then as it was, or the journal says what is missing.
    pub fn apply(&self, block: &Block) -> Result<Outcome, ApplyError> {
        store::make_dir(&self.state)?;
        let _lock = self.lock()?;
        let recovered = in_place::recover(&self.path, &self.state)?;
        self.remove_leftovers();
        for _ in 0..ATTEMPTS {
            let old = self.read()?;
            let Rendered { bytes, conflicts, tampered } = self.render(&old.bytes, block)?;
            let digests = (hex(&sha256(&old.bytes)), hex(&sha256(&bytes)));
            let written = bytes != old.bytes;
            let mut left = old.seen;
            if written {
                left = match self.replace(&old, &bytes) {
                    Ok(seen) => seen,
                    Err(Beside::Changed) => continue,
                    Err(Beside::Impossible) => {
                        seen(&in_place::write(&self.path, &self.state, &old.bytes, &bytes)?)
                    }
                    Err(Beside::Failed(error)) => return Err(error),
                };
            }
            let (before, after) = digests;
            let seen = Some(left);
            return Ok(Outcome { written, before, after, conflicts, tampered, recovered, seen });
        }
        Err(ApplyError::Busy(self.path.clone()))
    }

    /// What would be in the way of a block, without writing anything.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn preview(&self, block: &Block) -> Result<Vec<Conflict>, ApplyError> {
        let old = self.read()?;
        Ok(self.render(&old.bytes, block)?.conflicts)
    }

    /// The version that is there now.
    pub(super) fn seen(&self) -> Option<Seen> {
        fs::symlink_metadata(&self.path).ok().map(|metadata| seen(&metadata))
    }

    /// Whether anything of ours is in the file; a file that cannot be read holds nothing that we could take out.
    pub(super) fn holds_ours(&self) -> bool {
        let Ok(old) = self.read() else { return false };
        self.render(&old.bytes, &Block::default()).is_ok_and(|clean| clean.bytes != old.bytes)
    }

    fn render(&self, old: &[u8], block: &Block) -> Result<Rendered, ApplyError> {
        render(old, block).map_err(|error| self.unsupported(format!("is too long: {error}")))
    }

    fn unsupported(&self, why: impl Into<String>) -> ApplyError {
        ApplyError::Unsupported { path: self.path.clone(), why: why.into() }
    }

    fn lock(&self) -> Result<File, ApplyError> {
        let path = self.state.join("lock");
        let failed = |source| ApplyError::Io { operation: "lock", path: path.clone(), source };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let since = mono();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if mono().after(since) > LOCK_LIMIT => {
                    return Err(ApplyError::Busy(self.path.clone()));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn read(&self) -> Result<Old, ApplyError> {
        let metadata = fs::symlink_metadata(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.unsupported("does not exist"),
            _ => failed("look at", &self.path)(error),
        })?;
        if metadata.is_symlink() {
            let target = fs::read_link(&self.path).unwrap_or_default();
            let why = format!("is a symbolic link to {}: the system makes it anew", target.display());
            return Err(self.unsupported(why));
        }
        if !metadata.is_file() {
            return Err(self.unsupported("is not a file"));
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(no_follow())
            .open(&self.path)
            .map_err(failed("open", &self.path))?;
        let metadata = file.metadata().map_err(failed("look at", &self.path))?;
        let mut bytes = Vec::new();
        (&file).take(FILE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed("read", &self.path))?;
        if bytes.len() > FILE_MAX {
            return Err(self.unsupported(format!("has more than {FILE_MAX} bytes")));
        }
        Ok(Old { file, seen: seen(&metadata), bytes })
    }

    fn temporary(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.samovar-new"))
    }

    /// What a killed apply left beside the file. Where we may not remove it, we could not have made it either.
    fn remove_leftovers(&self) {
        let _ = fs::remove_file(self.temporary());
    }

    fn replace(&self, old: &Old, bytes: &[u8]) -> Result<Seen, Beside> {
        let temporary = self.temporary();
        let result = self.replace_by(&temporary, old, bytes);
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    fn replace_by(&self, temporary: &Path, old: &Old, bytes: &[u8]) -> Result<Seen, Beside> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(temporary)
            .map_err(|error| beside(error, "create", temporary))?;
        take_after(&old.file, &file).map_err(|_| Beside::Impossible)?;
        let fail = |operation| move |error| Beside::Failed(failed(operation, temporary)(error));
        file.write_all(bytes).map_err(fail("write"))?;
        file.sync_all().map_err(fail("sync"))?;
        let new = seen(&file.metadata().map_err(fail("look at"))?);
        if self.seen() != Some(old.seen) {
            return Err(Beside::Changed);
        }
        fs::rename(temporary, &self.path).map_err(|error| beside(error, "rename", temporary))?;
        store::sync_directory_of(&self.path).map_err(|error| Beside::Failed(error.into()))?;
        Ok(new)
    }
}

/// Where no file can be made beside the old one, or it is mounted on its own, it can still be written in place.
fn beside(error: io::Error, operation: &'static str, path: &Path) -> Beside {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    match error.kind() {
        CrossesDevices | PermissionDenied | ReadOnlyFilesystem | ResourceBusy => Beside::Impossible,
        _ => Beside::Failed(failed(operation, path)(error)),
    }
}

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied if rustix::process::geteuid().is_root() => {
            let why =
                format!("cannot be written with all rights there are (immutable, see lsattr?): {source}");
            ApplyError::Unsupported { path, why }
        }
        io::ErrorKind::PermissionDenied => ApplyError::NotPermitted { path, why: source.to_string() },
        io::ErrorKind::ReadOnlyFilesystem => {
            ApplyError::Unsupported { path, why: "is on a file system that cannot be written".into() }
        }
        _ => ApplyError::Io { operation, path, source },
    }
}

pub(super) fn no_follow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn seen(metadata: &fs::Metadata) -> Seen {
    Seen {
        inode: (metadata.dev(), metadata.ino()),
        len: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    }
}

/// Gives a new file the owner, the mode and the extended attributes (labels of SELinux among them) of an old one.
fn take_after(old: &File, new: &File) -> io::Result<()> {
    let (was, is) = (old.metadata()?, new.metadata()?);
    if (was.uid(), was.gid()) != (is.uid(), is.gid()) {
        std::os::unix::fs::fchown(new, Some(was.uid()), Some(was.gid()))?;
    }
    new.set_permissions(fs::Permissions::from_mode(was.mode() & 0o7777))?;
    copy_attributes(old, new)
}

fn copy_attributes(old: &File, new: &File) -> io::Result<()> {
    use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
    const MOST: usize = 64 * 1024;
    let mut names = vec![0_u8; MOST];
    let length = match flistxattr(old, names.as_mut_slice()) {
        Ok(length) => length,
        // No such thing here, or none.
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; MOST];
        let length = fgetxattr(old, name, value.as_mut_slice())?;
        let mut same = vec![0_u8; MOST];
        let has = fgetxattr(new, name, same.as_mut_slice()).ok();
        if has.is_none_or(|has| same[..has] != value[..length]) {
            fsetxattr(new, name, &value[..length], XattrFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
