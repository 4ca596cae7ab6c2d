//! Writes a hosts file in place, where it cannot be replaced: a journal first, so that whoever comes next can finish
//! (IO).
//!
//! The journal holds the old and the new bytes. A file that a cut left between the two consists of bytes of either, in
//! their places; such a file is finished. Anything else was written by somebody else meanwhile, and is left alone: the
//! journal goes, and the block is put in by the ordinary way.

use super::apply::{ApplyError, failed, no_follow};
use super::file::FILE_MAX;
use crate::store;
use samovar_wire::encoding::{base64, from_base64};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
struct Journal {
    path: PathBuf,
    old: String,
    new: String,
}

fn journal(state: &Path) -> PathBuf {
    state.join("journal.json")
}

/// Writes the file in place; gives what is known of it then.
pub(super) fn write(path: &Path, state: &Path, old: &[u8], new: &[u8]) -> Result<Metadata, ApplyError> {
    // Opened first: without the right to write there is nothing to keep a journal of.
    let mut file = open(path)?;
    let journal = journal(state);
    let content = Journal { path: path.to_owned(), old: base64(old), new: base64(new) };
    store::replace(&journal, &serde_json::to_vec(&content).unwrap_or_default(), 0o600)?;
    if let Err(error) = overwrite(&mut file, new) {
        // What was there fits; if even that fails, the journal stays and the next apply finishes.
        if overwrite(&mut file, old).is_ok() {
            remove(&journal)?;
        }
        return Err(failed("write", path)(error));
    }
    let metadata = file.metadata().map_err(failed("look at", path))?;
    remove(&journal)?;
    Ok(metadata)
}

fn open(path: &Path) -> Result<File, ApplyError> {
    OpenOptions::new().write(true).custom_flags(no_follow()).open(path).map_err(failed("open", path))
}

fn overwrite(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.rewind()?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

fn remove(journal: &Path) -> Result<(), ApplyError> {
    store::remove(journal)?;
    Ok(store::sync_directory_of(journal)?)
}

/// Finishes a write that was cut short. Gives whether there was one.
pub(super) fn recover(path: &Path, state: &Path) -> Result<bool, ApplyError> {
    let journal = journal(state);
    // A journal that was not yet whole: the file was not touched either.
    store::remove(&store::temporary_of(&journal))?;
    let Some(kept) = store::read(&journal)? else { return Ok(false) };
    let known = serde_json::from_slice::<Journal>(&kept)
        .ok()
        .and_then(|kept| Some((kept.path, from_base64(&kept.old)?, from_base64(&kept.new)?)));
    let Some((_, old, new)) = known.filter(|(of, ..)| of == path) else {
        store::set_aside(&journal)?;
        return Ok(false);
    };
    let torn = match read(path) {
        Ok(current) => current != old && current != new && is_between(&current, &old, &new),
        Err(_) => false,
    };
    if torn {
        overwrite(&mut open(path)?, &new).map_err(failed("write", path))?;
    }
    remove(&journal)?;
    Ok(torn)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(2 * FILE_MAX as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a file is partly the one and partly the other, byte by byte in their places. A power cut may also leave
/// zeros where the file was being made longer.
fn is_between(current: &[u8], old: &[u8], new: &[u8]) -> bool {
    let longest = old.len().max(new.len());
    let shortest = old.len().min(new.len());
    (shortest..=longest).contains(&current.len())
        && current.iter().enumerate().all(|(at, byte)| {
            old.get(at) == Some(byte) || new.get(at) == Some(byte) || (*byte == 0 && at >= old.len())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(old: &[u8], new: &[u8], written: usize) -> Vec<u8> {
        let mut file = old.to_vec();
        let written = written.min(new.len());
        let room = file.len().max(written);
        file.resize(room, 0);
        file[..written].copy_from_slice(&new[..written]);
        file
    }

    proptest! {
        #[test]
        fn a_write_cut_short_anywhere_is_finished(
            old in proptest::collection::vec(any::<u8>(), 0..200),
            new in proptest::collection::vec(any::<u8>(), 0..200),
            written in 0..200_usize,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (path, state) = (dir.path().join("hosts"), dir.path().join("state"));
            store::make_dir(&state).unwrap();
            std::fs::write(&path, &old).unwrap();
            write(&path, &state, &old, &new).unwrap();
            prop_assert!(std::fs::read(&path).unwrap() == new);
            prop_assert!(!journal(&state).exists());
            // The same again, cut short.
            let kept = Journal { path: path.clone(), old: base64(&old), new: base64(&new) };
            std::fs::write(journal(&state), serde_json::to_vec(&kept).unwrap()).unwrap();
            let torn = cut(&old, &new, written);
            std::fs::write(&path, &torn).unwrap();
            let finished = recover(&path, &state).unwrap();
            let now = std::fs::read(&path).unwrap();
            prop_assert_eq!(finished, torn != old && torn != new);
            prop_assert_eq!(now, if torn == old { old } else { new });
            prop_assert!(!journal(&state).exists());
        }
    }

    #[test]
    fn what_somebody_else_wrote_meanwhile_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let kept = Journal {
            path: path.clone(),
            old: base64(b"10.0.0.1 a\n"),
            new: base64(b"10.0.0.1 a\n10.0.0.2 b\n"),
        };
        std::fs::write(journal(dir.path()), serde_json::to_vec(&kept).unwrap()).unwrap();
        std::fs::write(&path, "10.0.0.3 c\n").unwrap();
        assert!(!recover(&path, dir.path()).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"10.0.0.3 c\n");
        assert!(!journal(dir.path()).exists());
        assert!(!recover(&path, dir.path()).unwrap());
    }

    #[test]
    fn a_damaged_journal_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "x").unwrap();
        std::fs::write(journal(dir.path()), "{half").unwrap();
        assert!(!recover(&path, dir.path()).unwrap());
        assert!(!journal(dir.path()).exists());
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
