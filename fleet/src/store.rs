//! Files replaced safely: written aside, flushed, renamed, and the folder flushed.
//!
//! A reader sees the old file or the new one, never half of one. Secrets are created with their final mode, so that
//! there is no moment at which others can read them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be written", path = path.display())]
pub struct ReplaceError {
    path: PathBuf,
    source: io::Error,
}

/// Replaces `path` by `bytes`, readable by everyone.
///
/// # Errors
/// When any step fails; the file is then as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    replace_with_mode(path, bytes, 0o644)
}

/// Replaces `path` by `bytes`, readable by its owner alone.
///
/// # Errors
/// When any step fails; the file is then as it was.
pub fn replace_secret(path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    replace_with_mode(path, bytes, 0o600)
}

fn replace_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), ReplaceError> {
    let aside = aside(path);
    let written = write_and_rename(path, &aside, bytes, mode);
    if written.is_err() {
        // The error worth reporting is the first one.
        let _ = fs::remove_file(&aside);
    }
    written.map_err(|source| ReplaceError { path: path.to_owned(), source })
}

fn write_and_rename(path: &Path, aside: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(aside, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", uuid::Uuid::now_v7().simple()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_replaced_whole_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        replace(&path, b"old").unwrap();
        replace_secret(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    }
}
