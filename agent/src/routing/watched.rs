//! A file that somebody else replaces: read when it changed, and never more of it than a route table may need (IO).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A signed table of 1 MiB in base64, with room for its envelope.
pub(super) const FILE_MAX: u64 = 2 * 1024 * 1024;

/// A file that exists and cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("cannot be read: {0}")]
    Read(io::Error),
    #[error("is larger than {FILE_MAX} bytes")]
    TooLarge,
    #[error("is not a regular file")]
    NotAFile,
}

/// What tells one content from the next without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// A file and what was last seen of it.
#[derive(Debug)]
pub(super) struct WatchedFile {
    pub(super) path: PathBuf,
    stamp: Option<Stamp>,
}

impl WatchedFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, stamp: None }
    }

    pub(super) fn exists(&self) -> bool {
        self.stamp.is_some()
    }

    /// The content, when it changed since the last call; `None` when it did not, or when there is no file.
    pub(super) fn changed(&mut self) -> Option<Result<Vec<u8>, ReadError>> {
        let stamp = fs::metadata(&self.path).ok().as_ref().map(stamp_of);
        if stamp == self.stamp {
            return None;
        }
        self.stamp = stamp;
        stamp?;
        match read_bounded(&self.path) {
            Ok(content) => Some(Ok(content)),
            // Gone between the look and the reading: the next look sees it.
            Err(ReadError::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
                self.stamp = None;
                None
            }
            Err(error) => Some(Err(error)),
        }
    }
}

fn stamp_of(metadata: &fs::Metadata) -> Stamp {
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(metadata);
    #[cfg(not(unix))]
    let inode = 0;
    Stamp { modified: metadata.modified().ok(), length: metadata.len(), inode }
}

/// Reads a regular file of at most [`FILE_MAX`] bytes. Anything else is not waited for, such as a pipe that nobody writes.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut content = Vec::new();
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
    );
    let file = options.open(path).map_err(ReadError::Read)?;
    if !file.metadata().map_err(ReadError::Read)?.is_file() {
        return Err(ReadError::NotAFile);
    }
    file.take(FILE_MAX + 1).read_to_end(&mut content).map_err(ReadError::Read)?;
    if content.len() as u64 > FILE_MAX { Err(ReadError::TooLarge) } else { Ok(content) }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_or_a_directory_is_refused_at_once_and_a_file_in_its_place_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.json");
        let mut watched = WatchedFile::new(path.clone());
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        assert!(matches!(watched.changed(), Some(Err(ReadError::NotAFile))));
        assert!(watched.changed().is_none());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(watched.changed(), Some(Err(ReadError::NotAFile))));
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "{}").unwrap();
        assert_eq!(watched.changed().unwrap().unwrap(), b"{}");
    }
}
