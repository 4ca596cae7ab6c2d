//! Names that somebody points elsewhere for a while: a snapshot that costs nothing to hold.

use samovar_wire::Timestamp;
use samovar_wire::route::Decision;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Where a name points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointed {
    /// The address.
    pub address: IpAddr,
    /// Who wanted it.
    pub owner: String,
    /// When it ends.
    pub until: Timestamp,
}

/// The overrides in force, by name in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides(Arc<BTreeMap<String, Pointed>>);

/// The overrides in force, as whoever keeps them publishes them.
pub type OverrideSource = watch::Receiver<Overrides>;

impl Overrides {
    /// A snapshot.
    #[must_use]
    pub fn new(pointed: BTreeMap<String, Pointed>) -> Self {
        Self(Arc::new(pointed))
    }

    /// Where a name points, if somebody points it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Pointed> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(name).or_else(|| self.0.get(name.to_ascii_lowercase().as_str()))
    }

    /// The override that a decision comes under: of its domain, else of the host it would dial.
    #[must_use]
    pub fn of(&self, decision: &Decision) -> Option<(String, &Pointed)> {
        [&decision.domain, &decision.endpoint.host]
            .into_iter()
            .find_map(|name| Some((name.clone(), self.get(name)?)))
    }
}
