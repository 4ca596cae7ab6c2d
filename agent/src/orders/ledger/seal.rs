//! Order bodies at rest: sealed with ChaCha20-Poly1305, which is fast on processors without AES too.
//!
//! A sealed body is nonce (12 random bytes) ∥ ciphertext ∥ tag; the order's id is bound to it, so that bodies cannot
//! be swapped. The device's key comes from the service manager's credentials, which may be sealed by a TPM, or else
//! from `ledger.key` beside the ledger. A body says which key sealed it; any file `ledger.key*` that is there can open,
//! so a key that was lost and came back is put beside the one that took its place. No key file is ever overwritten.

use crate::store::{self, StoreError};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Length of a key.
const KEY_LEN: usize = 32;
/// Name of the key in the service manager's credentials.
const CREDENTIAL: &str = "samovar-ledger-key";

/// Why a body cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// The key that sealed it is not here.
    #[error("the key that sealed its body is not here: put that key's file back, then retry")]
    NoKey,
    /// It was changed after it was written.
    #[error("its body was damaged on the disk")]
    Damaged,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gives no randomness.
    #[error("the system gives no random bytes for the ledger's key")]
    Random,
}

/// The keys of this device.
pub(super) struct Keys {
    /// Seals; `None` when bodies are kept plain.
    current: Option<i64>,
    /// What `ledger.key` holds, and where it is.
    own: Option<(PathBuf, [u8; KEY_LEN])>,
    all: HashMap<i64, LessSafeKey>,
    random: SystemRandom,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("current", &self.current).finish_non_exhaustive()
    }
}

impl Keys {
    /// Finds the keys; makes one when bodies are to be sealed and there is none. A new key is durable before it seals.
    pub(super) fn load(ledger: &Path, credentials: Option<&Path>, seal: bool) -> Result<Self, KeyError> {
        let mut keys = Self { current: None, own: None, all: HashMap::new(), random: SystemRandom::new() };
        let own = ledger.with_file_name("ledger.key");
        for file in key_files(&own) {
            if let Some(key) = store::read(&file)?.as_deref().and_then(as_key) {
                keys.add(&key);
            }
        }
        let credential = match credentials.map(|directory| directory.join(CREDENTIAL)) {
            Some(file) => store::read(&file)?.and_then(|content| {
                let key = as_key(&content);
                if key.is_none() {
                    tracing::error!(file = %file.display(), "not {KEY_LEN} bytes: this credential is not used");
                }
                key
            }),
            None => None,
        };
        if let Some(key) = credential {
            let id = keys.add(&key);
            keys.current = Some(id).filter(|_| seal);
        } else if seal {
            let key = own_key(&own, &keys.random)?;
            keys.current = Some(keys.add(&key));
        }
        keys.own = store::read(&own)?.as_deref().and_then(as_key).map(|key| (own, key));
        Ok(keys)
    }

    /// Writes `ledger.key` again when it was taken away: without it no body could be opened after the next start.
    pub(super) fn keep_file(&self) -> Result<(), StoreError> {
        match &self.own {
            Some((file, key)) if !file.exists() => {
                if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
                    store::make_dir(directory)?;
                }
                store::replace(file, key, 0o600)
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, key: &[u8; KEY_LEN]) -> i64 {
        let id = key_id(key);
        if let Ok(unbound) = UnboundKey::new(&CHACHA20_POLY1305, key) {
            self.all.insert(id, LessSafeKey::new(unbound));
        }
        id
    }

    /// Seals a body; gives the id of the key with it. `None` means that the body stays plain.
    pub(super) fn seal(&self, order: &str, body: &[u8]) -> Result<Option<(i64, Vec<u8>)>, KeyError> {
        let Some((id, key)) = self.current.and_then(|id| Some((id, self.all.get(&id)?))) else {
            return Ok(None);
        };
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| KeyError::Random)?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + body.len() + CHACHA20_POLY1305.tag_len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(body);
        let aad = Aad::from(order.as_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, aad, &mut sealed[NONCE_LEN..]);
        sealed.extend_from_slice(tag.map_err(|_| KeyError::Random)?.as_ref());
        Ok(Some((id, sealed)))
    }

    /// Opens what [`Keys::seal`] made; a plain body is given back as it is.
    pub(super) fn open(&self, key: Option<i64>, order: &str, body: Vec<u8>) -> Result<Vec<u8>, Unreadable> {
        let Some(id) = key else { return Ok(body) };
        let key = self.all.get(&id).ok_or(Unreadable::NoKey)?;
        let mut body = body;
        let nonce = body.get(..NONCE_LEN).and_then(|nonce| Nonce::try_assume_unique_for_key(nonce).ok());
        let nonce = nonce.ok_or(Unreadable::Damaged)?;
        let plain = key
            .open_within(nonce, Aad::from(order.as_bytes()), &mut body, NONCE_LEN..)
            .map_err(|_| Unreadable::Damaged)?
            .len();
        body.truncate(plain);
        Ok(body)
    }

    /// The ids of the keys that are here.
    pub(super) fn ids(&self) -> impl Iterator<Item = i64> {
        self.all.keys().copied()
    }
}

/// The key of `ledger.key`; a file that holds none is set aside and a new key made.
fn own_key(file: &Path, random: &SystemRandom) -> Result<[u8; KEY_LEN], KeyError> {
    match store::read(file)?.map(|content| as_key(&content)) {
        Some(Some(key)) => return Ok(key),
        Some(None) => {
            let kept = store::set_aside(file)?;
            tracing::error!(kept = %kept.display(), "the ledger's key was damaged; a new one is made");
        }
        None => {}
    }
    let mut key = [0; KEY_LEN];
    random.fill(&mut key).map_err(|_| KeyError::Random)?;
    store::replace(file, &key, 0o600)?;
    Ok(key)
}

fn key_files(own: &Path) -> Vec<PathBuf> {
    let Some((directory, name)) = own.parent().zip(own.file_name()) else { return Vec::new() };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_key = |path: &PathBuf| {
        path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(name.as_encoded_bytes()))
            && std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == KEY_LEN as u64)
    };
    entries.filter(is_key).collect()
}

fn as_key(content: &[u8]) -> Option<[u8; KEY_LEN]> {
    content.try_into().ok()
}

fn key_id(key: &[u8; KEY_LEN]) -> i64 {
    let mut labelled = b"samovar ledger key\0".to_vec();
    labelled.extend_from_slice(key);
    let digest = samovar_wire::encoding::sha256(&labelled);
    i64::from_be_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(dir: &Path, credentials: Option<&Path>) -> Keys {
        Keys::load(&dir.join("orders.db"), credentials, true).unwrap()
    }

    #[test]
    fn a_body_opens_under_its_own_order_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(dir.path(), None);
        let (id, sealed) = keys.seal("order-1", b"{\"name\":\"Ann\"}").unwrap().unwrap();
        assert!(!sealed.windows(3).any(|window| window == b"Ann"));
        assert_eq!(keys.open(Some(id), "order-1", sealed.clone()).unwrap(), b"{\"name\":\"Ann\"}");
        assert_eq!(keys.open(Some(id), "order-2", sealed.clone()), Err(Unreadable::Damaged));
        let mut bent = sealed;
        bent[20] ^= 1;
        assert_eq!(keys.open(Some(id), "order-1", bent), Err(Unreadable::Damaged));
        assert_eq!(keys.open(Some(id), "order-1", vec![1, 2]), Err(Unreadable::Damaged));
    }

    #[test]
    fn a_key_that_was_lost_opens_again_once_its_file_is_back_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let (id, sealed) = keys(dir.path(), None).seal("o", b"body").unwrap().unwrap();
        let own = dir.path().join("ledger.key");
        let kept = std::fs::read(&own).unwrap();
        std::fs::remove_file(&own).unwrap();
        let other = keys(dir.path(), None);
        assert_eq!(other.open(Some(id), "o", sealed.clone()), Err(Unreadable::NoKey));
        std::fs::write(dir.path().join("ledger.key.old"), kept).unwrap();
        assert_eq!(keys(dir.path(), None).open(Some(id), "o", sealed).unwrap(), b"body");
    }

    #[test]
    fn a_damaged_key_file_is_set_aside_and_a_credential_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger.key"), b"short").unwrap();
        let own = keys(dir.path(), None);
        assert_eq!(std::fs::read(dir.path().join("ledger.key.damaged-1")).unwrap(), b"short");
        let credentials = tempfile::tempdir().unwrap();
        std::fs::write(credentials.path().join(CREDENTIAL), [9; KEY_LEN]).unwrap();
        let both = keys(dir.path(), Some(credentials.path()));
        assert_eq!(both.current, Some(key_id(&[9; KEY_LEN])));
        let (id, sealed) = own.seal("o", b"body").unwrap().unwrap();
        assert_eq!(both.open(Some(id), "o", sealed).unwrap(), b"body");
    }

    #[test]
    fn plain_bodies_stay_readable_and_without_sealing_no_key_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::load(&dir.path().join("orders.db"), None, false).unwrap();
        assert!(keys.seal("o", b"body").unwrap().is_none());
        assert_eq!(keys.open(None, "o", b"body".to_vec()).unwrap(), b"body");
        assert!(!dir.path().join("ledger.key").exists());
    }
}
