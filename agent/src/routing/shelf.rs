//! The route tables kept on disk, in `DIR/routes` (IO): the one in force, the one before it, and one that was pushed
//! for later. Damaged files are set aside, never overwritten unseen.

use super::watched::{ReadError, read_bounded};
use crate::net::explain;
use crate::store::{self, StoreError};
use std::io;
use std::path::{Path, PathBuf};

/// One place on the shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    InForce,
    Previous,
    Waiting,
}

/// The shelf.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
    set_aside: Vec<String>,
}

impl Shelf {
    pub(super) fn open(data: &Path) -> Result<Self, StoreError> {
        let directory = data.join("routes");
        store::make_dir(&directory)?;
        Ok(Self { directory, set_aside: Vec::new() })
    }

    pub(super) fn path(&self, place: Place) -> PathBuf {
        self.directory.join(match place {
            Place::InForce => "in-force.json",
            Place::Previous => "previous.json",
            Place::Waiting => "waiting.json",
        })
    }

    /// What stands there, if it is of a size that can be read.
    pub(super) fn read(&mut self, place: Place) -> Option<Vec<u8>> {
        match read_bounded(&self.path(place)) {
            Ok(bytes) => Some(bytes),
            Err(ReadError::Read(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.move_aside(place, &error);
                None
            }
        }
    }

    /// Keeps the table in force; what stood there becomes the one before it.
    pub(super) fn keep(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let kept = self.path(Place::InForce);
        if let Some(before) = store::read(&kept)?.filter(|before| before != bytes) {
            store::replace(&self.path(Place::Previous), &before, 0o600)?;
        }
        store::replace(&kept, bytes, 0o600)
    }

    /// Keeps a table for later, or forgets the one kept.
    pub(super) fn keep_waiting(&self, bytes: Option<&[u8]>) {
        let path = self.path(Place::Waiting);
        let done = match bytes {
            Some(bytes) => store::replace(&path, bytes, 0o600),
            None => store::remove(&path),
        };
        if let Err(error) = done {
            tracing::error!(error = explain(&error), "the route table for later cannot be kept or removed");
        }
    }

    /// Moves a damaged file out of the way.
    pub(super) fn move_aside(&mut self, place: Place, why: &impl ToString) {
        let path = self.path(place);
        let outcome = match store::set_aside(&path) {
            Ok(target) => format!("is now {}", target.display()),
            Err(error) => explain(&error),
        };
        self.set_aside.push(format!("{} ({}) {outcome}", path.display(), why.to_string()));
    }

    /// What was moved since the last call, in words.
    pub(super) fn take_set_aside(&mut self) -> Vec<String> {
        std::mem::take(&mut self.set_aside)
    }
}
