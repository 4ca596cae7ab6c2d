//! Keeps what has worked on the disk, in `names.json` of the data directory: written after something new was proved, at
//! most once in ten seconds, and never waited for (IO).

use super::known::Known;
use crate::net::explain;
use crate::store::{self, Loaded, StoreError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Least time between two writes.
const GAP: Duration = Duration::from_secs(10);

/// The file of a data directory.
pub(super) fn file(data: &Path) -> PathBuf {
    data.join("names.json")
}

/// What is kept; and where a damaged file was moved to, with what was wrong with it.
pub(super) fn load(path: &Path) -> Result<(Known, Option<String>), StoreError> {
    Ok(match store::load::<Known>(path)? {
        Loaded::Found(known) => (known.bounded(), None),
        Loaded::Missing => (Known::default(), None),
        Loaded::SetAside(kept, why) => (Known::default(), Some(format!("{}: {why}", kept.display()))),
    })
}

/// Whoever writes; one at a time.
#[derive(Debug, Default)]
pub(super) struct Writer(Mutex<Writing>);

#[derive(Debug, Default)]
struct Writing {
    running: bool,
    wanted: bool,
}

impl Writer {
    /// Writes what `known` gives then, soon. Does nothing outside the runtime: the next proof will.
    pub(super) fn write(self: &Arc<Self>, path: PathBuf, known: impl Fn() -> Known + Send + Sync + 'static) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        {
            let mut writing = self.lock();
            writing.wanted = true;
            if std::mem::replace(&mut writing.running, true) {
                return;
            }
        }
        let writer = Arc::clone(self);
        let known = Arc::new(known);
        runtime.spawn(async move {
            while writer.take() {
                let (path, known) = (path.clone(), Arc::clone(&known));
                let written = tokio::task::spawn_blocking(move || save(&path, &known())).await;
                if let Ok(Err(error)) = written {
                    tracing::warn!(error = explain(&error), "addresses that worked cannot be kept");
                }
                tokio::time::sleep(GAP).await;
            }
        });
    }

    /// Whether there is something to write; if not, the task that asked is the last.
    fn take(&self) -> bool {
        let mut writing = self.lock();
        let wanted = std::mem::take(&mut writing.wanted);
        writing.running = wanted;
        wanted
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Writing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn save(path: &Path, known: &Known) -> Result<(), StoreError> {
    let content = serde_json::to_vec(known).unwrap_or_default();
    store::replace(path, &content, 0o600)
}
