//! Small files that must never be half written: replaced whole (temporary file, fsync, rename, fsync of the
//! directory), and set aside, not overwritten, when they turn out to be damaged.

use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}")]
pub struct StoreError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl StoreError {
    fn new(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { operation, path, source }
    }

    /// Whether there was no room on the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// What was found where a JSON file should be.
#[derive(Debug)]
pub enum Loaded<T> {
    /// The file does not exist.
    Missing,
    /// Its content.
    Found(T),
    /// It was damaged and now stands under this name; the caller raises the condition.
    SetAside(PathBuf, String),
}

/// Makes a directory (and those above it) that only the owner may enter.
///
/// # Errors
/// When it cannot be made.
pub fn make_dir(path: &Path) -> Result<(), StoreError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(StoreError::new("create directory", path))
}

/// Replaces a file whole. A power cut leaves the old content or the new, never a part.
///
/// # Errors
/// When any step fails; the old file is then still in place.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), StoreError> {
    let temporary = temporary_of(path);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let mut file = options.open(&temporary).map_err(StoreError::new("create", &temporary))?;
    set_mode(&file, mode).map_err(StoreError::new("set the mode of", &temporary))?;
    file.write_all(content).map_err(StoreError::new("write", &temporary))?;
    file.sync_all().map_err(StoreError::new("sync", &temporary))?;
    drop(file);
    fs::rename(&temporary, path).map_err(StoreError::new("rename into place", path))?;
    sync_directory_of(path)
}

/// Replaces a file whole, or writes over what is there when the disk has no room for another. For content of less than a
/// sector that can be made again when a power cut leaves a part of it.
///
/// # Errors
/// When neither can be done.
pub fn replace_even_when_full(path: &Path, content: &[u8], mode: u32) -> Result<(), StoreError> {
    let full = match replace(path, content, mode) {
        Err(error) if error.is_full() => error,
        other => return other,
    };
    remove(&temporary_of(path))?;
    // Where there is nothing to write over, the first error says what is wrong.
    let Ok(mut file) = OpenOptions::new().write(true).open(path) else { return Err(full) };
    file.write_all(content).map_err(StoreError::new("write", path))?;
    file.set_len(content.len() as u64).map_err(StoreError::new("shorten", path))?;
    file.sync_all().map_err(StoreError::new("sync", path))
}

/// Where the new content of a file is written before it takes the old one's place.
#[must_use]
pub fn temporary_of(path: &Path) -> PathBuf {
    with_suffix(path, "new")
}

#[cfg(unix)]
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // The mode given at creation passes through the umask and does not apply to a left-over temporary file.
    file.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn set_mode(_file: &File, _mode: u32) -> io::Result<()> {
    Ok(())
}

/// Makes the content of a file durable that somebody else wrote.
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(StoreError::new("sync", path))
}

/// Makes a rename or a creation in a file's directory durable.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_directory_of(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) {
        File::open(directory)
            .and_then(|d| d.sync_all())
            .map_err(StoreError::new("sync directory", directory))?;
    }
    Ok(())
}

/// Reads a whole file; `None` when it does not exist.
///
/// # Errors
/// When it exists and cannot be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::new("read", path)(error)),
    }
}

/// Reads a JSON file; sets it aside when it is damaged.
///
/// # Errors
/// When it cannot be read or set aside.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Loaded<T>, StoreError> {
    let Some(content) = read(path)? else { return Ok(Loaded::Missing) };
    match serde_json::from_slice(&content) {
        Ok(value) => Ok(Loaded::Found(value)),
        Err(error) => Ok(Loaded::SetAside(set_aside(path)?, error.to_string())),
    }
}

/// Moves a damaged file out of the way, under a free name beside it, and gives that name.
///
/// # Errors
/// When it cannot be renamed.
pub fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let free = (1..1_000).map(|n| with_suffix(path, &format!("damaged-{n}"))).find(|name| !name.exists());
    let target = free.unwrap_or_else(|| with_suffix(path, "damaged"));
    fs::rename(path, &target).map_err(StoreError::new("set aside", path))?;
    sync_directory_of(path)?;
    Ok(target)
}

/// Removes a file; it is no error when there is none.
///
/// # Errors
/// When it exists and cannot be removed.
pub fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::new("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Moves a file to another name, durably; it is no error when it is not there (any more).
///
/// # Errors
/// When it exists and cannot be moved.
pub fn rename_if_there(from: &Path, to: &Path) -> Result<(), StoreError> {
    match fs::rename(from, to) {
        Ok(()) => sync_directory_of(to).and_then(|()| sync_directory_of(from)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::new("move into place", from)(error)),
    }
}

/// Removes a directory and all in it; it is no error when there is none.
///
/// # Errors
/// When it exists and cannot be removed.
pub fn remove_dir(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::new("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory if nothing is in it.
pub fn remove_empty_dir(path: &Path) {
    // A directory that is not empty cannot be removed this way, and that is what is wanted.
    let _ = fs::remove_dir(path);
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_content_and_mode_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        replace(&path, b"old", 0o644).unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_damaged_file_is_kept_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for n in 1..=2 {
            replace(&path, b"{half", 0o600).unwrap();
            match load::<serde_json::Value>(&path).unwrap() {
                Loaded::SetAside(kept, _) => {
                    assert!(kept.to_string_lossy().ends_with(&format!("damaged-{n}")));
                    assert_eq!(read(&kept).unwrap().unwrap(), b"{half");
                }
                other => panic!("{other:?}"),
            }
            assert!(matches!(load::<serde_json::Value>(&path).unwrap(), Loaded::Missing));
        }
    }
}
