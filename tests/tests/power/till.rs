//! The product's ledger as the harness uses it: one directory, orders from a seed.

use samovar_agent::heartbeat::Heartbeats;
use samovar_agent::orders::ledger::{Ledger, LedgerSettings, NewOrder, OpenError};
use samovar_agent::orders::order::Order;
use samovar_wire::Timestamp;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Longest wait for anything in this harness.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A directory in memory where there is one: thousands of images are written.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir())
    } else {
        tempfile::tempdir()
    };
    made.expect("a temporary directory")
}

/// Opens the ledger of a directory.
pub(crate) fn open(directory: &Path) -> Result<Ledger, OpenError> {
    let settings = LedgerSettings { max_bytes: 1 << 30, ..LedgerSettings::at(directory.join("orders.db")) };
    Ledger::open(settings, Heartbeats::default().register("ledger", DEADLINE))
}

/// Opens the ledger of a directory as soon as the one before has closed it.
pub(crate) async fn reopen(directory: &Path) -> Result<Ledger, OpenError> {
    let started = samovar_tests::clock::now();
    loop {
        match open(directory) {
            Err(OpenError::InUse) if started.elapsed() < DEADLINE => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            other => return other,
        }
    }
}

/// An order with a body of some size.
pub(crate) fn order(key: &str, content: &str, depends_on: Option<&str>, rng: &mut fastrand::Rng) -> NewOrder {
    let after = depends_on.map(|number| format!(r#","depends_on":"{number}""#)).unwrap_or_default();
    let length = match rng.u8(0..20) {
        0 => rng.usize(8_000..20_000),
        1..5 => rng.usize(1_000..4_000),
        _ => rng.usize(0..800),
    };
    let filler: String = (0..length).map(|_| rng.alphanumeric()).collect();
    let body = format!(
        r#"{{"order_no":"{key}","placed_at":"2026-11-20T08:00:00Z"{after},"content":"{content}","filler":"{filler}"}}"#
    );
    NewOrder {
        id: format!("{:032x}", rng.u128(..)),
        accepted_at: Timestamp::from_millis(1_795_000_000_000),
        order: Order::parse(body.as_bytes(), None, &"US".parse().expect("a country")).expect("an order"),
    }
}
