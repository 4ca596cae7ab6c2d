//! Keys of claims that have not been answered: kept before they are first sent, so that a claim whose answer was lost
//! can be repeated with the same key; forgotten when the claim is refused, removed when any claim succeeds.

use super::{FilesError, hand_over, home, make_home};
use crate::store::{self, StoreError};
use samovar_wire::encoding::{hex, sha256};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How the names of these files begin.
pub(super) const PREFIX: &str = "pending-";

/// The key of a claim without an answer.
#[derive(Serialize, Deserialize)]
struct Pending {
    key: String,
}

/// One file for each claim, so that a mistyped code does not cost the key of the right one. The code is not in it.
pub(super) fn pending_file(dir: &Path, claim: &str) -> PathBuf {
    let name = hex(&sha256(claim.as_bytes())[..8]);
    home(dir).join(format!("{PREFIX}{name}.json"))
}

/// The key for a claim, and whether it is new: the one that was sent with it before, else one that is kept before it
/// is first used.
pub(in crate::identity) fn key_for_claim(
    dir: &Path,
    claim: &str,
    make: impl FnOnce() -> Result<rcgen::KeyPair, rcgen::Error>,
) -> Result<(rcgen::KeyPair, bool), FilesError> {
    let path = pending_file(dir, claim);
    if let store::Loaded::Found(pending) = store::load::<Pending>(&path)?
        && let Ok(key) = rcgen::KeyPair::from_pem(&pending.key)
    {
        return Ok((key, false));
    }
    let key = make().map_err(FilesError::Key)?;
    let pending = serde_json::to_vec(&Pending { key: key.serialize_pem() }).map_err(FilesError::Encode)?;
    make_home(dir)?;
    store::replace(&path, &pending, 0o600)?;
    hand_over(dir, &path)?;
    Ok((key, true))
}

/// Forgets the key of a claim that was refused for good, and the directory if that was all it held.
pub(in crate::identity) fn forget_claim(dir: &Path, claim: &str) -> Result<(), StoreError> {
    store::remove(&pending_file(dir, claim))?;
    store::remove_empty_dir(&home(dir));
    Ok(())
}
