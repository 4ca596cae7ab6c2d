//! `overrides.json`: the overrides as they are kept, and the time as this device knows it (IO).

use super::overrides::{Now, Overrides};
use crate::clock::{boot_id, since_boot, trusted_wall, wall};
use crate::store::{self, Loaded, StoreError};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The file's name in the data directory.
pub const FILE: &str = "overrides.json";

/// Where the system does not tell one boot from the next, each process counts as one: that can only end an override
/// early.
static BOOT: LazyLock<String> = LazyLock::new(|| match boot_id() {
    id if id.is_empty() => uuid::Uuid::now_v7().to_string(),
    id => id,
});

/// The time, as far as it is known.
pub(super) fn now() -> Now {
    Now { wall: wall(), trusted: trusted_wall().is_some(), boot_id: BOOT.clone(), up: since_boot() }
}

/// Reads what is kept; a damaged file is set aside and named.
pub(super) fn load(data: &Path) -> Result<(Overrides, Option<PathBuf>), StoreError> {
    Ok(match store::load::<Overrides>(&data.join(FILE))? {
        Loaded::Found(overrides) => (overrides, None),
        Loaded::Missing => (Overrides::default(), None),
        Loaded::SetAside(kept, _) => (Overrides::default(), Some(kept)),
    })
}

/// Keeps them.
pub(super) fn save(data: &Path, overrides: &Overrides) -> Result<(), StoreError> {
    store::replace_even_when_full(&data.join(FILE), &serde_json::to_vec(overrides).unwrap_or_default(), 0o600)
}
