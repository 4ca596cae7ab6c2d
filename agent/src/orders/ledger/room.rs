//! How much room there is, and who gets it: new orders first, history last. What decides is pure; the disk is asked
//! and the ballast kept at the end.
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | bytes of the ledger | `max_bytes` | 507; told at 80 % |
//! | unsettled orders | `max_orders` | 507; told at 80 % |
//! | bodies of settled orders | their share, and never what takes the ledger over 90 % | the oldest go |
//! | the disk | what deliveries need stays free | 507 |
//! | the very last block, taken by others | the ballast | given up, so that deliveries can be recorded |

use super::LedgerSettings;
use super::tables::Kept;
use crate::store;
use samovar_wire::Timestamp;
use std::path::{Path, PathBuf};

const MIB: u64 = 1024 * 1024;
/// Most bytes kept free for deliveries.
const MOST_RESERVE: u64 = 16 * MIB;
/// Most bytes of ballast.
const MOST_BALLAST: u64 = 4 * MIB;
/// Bytes that must be free for an agent to start without the ballast.
const ROOM_TO_START: u64 = MIB;

/// What is known of the ledger when room is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    /// Bytes of the ledger in use.
    pub(super) bytes: u64,
    /// Bytes that are in the WAL alone.
    pub(super) owed: u64,
    /// Orders that are not settled.
    pub(super) open: u64,
    /// Orders that want in.
    pub(super) incoming: u64,
    /// Their bytes.
    pub(super) incoming_bytes: u64,
}

/// What follows for new orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// None is taken, for this reason.
    pub(super) full: Option<String>,
    /// Over 80 % of a limit.
    pub(super) nearly_full: bool,
}

/// Whether there is room for new orders.
pub(super) fn verdict(settings: &LedgerSettings, load: Load, disk: Option<Disk>) -> Verdict {
    let (bytes, orders) = (settings.max_bytes, settings.max_orders);
    // Incoming orders are written twice: into the WAL now, into the main file later. Pages are not packed full.
    let owed = (load.owed + 2 * load.incoming_bytes) / 4 * 5;
    let full = if load.bytes >= bytes || load.bytes + load.incoming_bytes > bytes {
        Some(format!("{bytes} bytes, orders.max_bytes"))
    } else if load.open + load.incoming > orders {
        Some(format!("{orders} orders wait, orders.max_orders"))
    } else if disk.is_some_and(|disk| is_short(disk, owed)) {
        Some("the disk has no room left but what deliveries need".to_owned())
    } else {
        None
    };
    Verdict { full, nearly_full: load.bytes >= bytes / 5 * 4 || load.open >= orders.div_ceil(5) * 4 }
}

/// Marks the bodies that may go: those past their time, then the oldest while history takes more than it may. Gives how
/// many of the candidates, which are in order of age, go for either reason.
pub(super) fn may_go(
    settings: &LedgerSettings,
    candidates: &[Kept],
    before: Timestamp,
    history: u64,
    bytes: u64,
) -> (usize, usize) {
    let old = candidates.iter().take_while(|kept| kept.closed_at < before).count();
    let mut excess = excess(settings, history, bytes);
    for kept in &candidates[..old] {
        excess = excess.saturating_sub(kept.bytes);
    }
    let mut crowded = 0;
    for kept in &candidates[old..] {
        if excess == 0 {
            break;
        }
        excess = excess.saturating_sub(kept.bytes.max(1));
        crowded += 1;
    }
    (old, crowded)
}

/// By how many bytes history is more than it may be.
pub(super) fn excess(settings: &LedgerSettings, history: u64, bytes: u64) -> u64 {
    let share = settings.max_bytes / 100 * u64::from(settings.settled_share_percent);
    let crowding = bytes.saturating_sub(settings.max_bytes / 10 * 9);
    history.saturating_sub(share).max(crowding.min(history))
}

/// A disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) free: u64,
    pub(super) total: u64,
}

/// Whether a disk has no room for new orders. Kept free are what the WAL still owes the main file, which grows only
/// when the WAL is moved into it, and room for binding and settling what was accepted: an eighth of a small disk, at
/// most 16 MiB. A ledger that took the last block for a new order could record no delivery, and stay full for ever.
fn is_short(disk: Disk, owed: u64) -> bool {
    disk.free < reserve(disk).saturating_add(owed)
}

fn reserve(disk: Disk) -> u64 {
    (disk.total / 8).min(MOST_RESERVE)
}

/// How much ballast a disk gets; none while it is short.
fn ballast_size(disk: Disk, max_bytes: u64) -> u64 {
    let size = MOST_BALLAST.min(disk.total / 32).min(max_bytes / 16);
    if disk.free > reserve(disk) + 2 * size { size } else { 0 }
}

/// Asks the disk on which a ledger is.
#[cfg(unix)]
pub(super) fn disk(ledger: &Path) -> Option<Disk> {
    let directory = ledger.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let disk = rustix::fs::statvfs(directory).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Some(Disk { free: bytes(disk.f_bavail), total: bytes(disk.f_blocks) })
}

/// Asks the disk on which a ledger is.
#[cfg(not(unix))]
pub(super) fn disk(_ledger: &Path) -> Option<Disk> {
    None
}

fn ballast(ledger: &Path) -> PathBuf {
    ledger.with_file_name("orders.ballast")
}

/// Makes the ballast when it is missing and there is room for it: bytes that really take room on the disk.
pub(super) fn keep_ballast(settings: &LedgerSettings) {
    let file = ballast(&settings.path);
    let Some(size) = disk(&settings.path).map(|disk| ballast_size(disk, settings.max_bytes)) else { return };
    if size == 0 || file.exists() {
        return;
    }
    // Random, because some file systems store equal blocks once.
    let content: Vec<u8> = std::iter::repeat_with(|| fastrand::u64(..))
        .take(size as usize / 8)
        .flat_map(u64::to_ne_bytes)
        .collect();
    if let Err(error) = store::replace(&file, &content, 0o600) {
        tracing::debug!(%error, "no ballast now");
        give_up_ballast(settings);
    }
}

/// Gives the ballast up when an agent starts on a disk that others have filled: what it writes before it can deliver needs
/// some room.
pub fn make_room_to_start(settings: &LedgerSettings) {
    let short = disk(&settings.path).is_some_and(|disk| disk.free < ROOM_TO_START);
    if short && give_up_ballast(settings) {
        tracing::warn!("the disk is full: the ballast was given up, so that the agent can start and deliver");
    }
}

/// Gives the ballast's room to the ledger. True when there was one.
pub(super) fn give_up_ballast(settings: &LedgerSettings) -> bool {
    let file = ballast(&settings.path);
    let _ = store::remove(&file.with_file_name("orders.ballast.new"));
    let there = file.exists();
    if let Err(error) = store::remove(&file) {
        tracing::error!(%error, "the ballast cannot be given up");
        return false;
    }
    there
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LedgerSettings {
        LedgerSettings {
            max_bytes: 1000,
            max_orders: 10,
            settled_share_percent: 50,
            ..LedgerSettings::at("orders.db")
        }
    }

    fn kept(seq: u64, closed_at: i64, bytes: u64) -> Kept {
        Kept { seq, closed_at: Timestamp::from_millis(closed_at), bytes }
    }

    #[test]
    fn a_disk_keeps_room_for_deliveries_and_for_what_the_journal_owes() {
        let short = |free, total, owed| is_short(Disk { free, total }, owed);
        assert!(!short(2 * MIB, 4 * MIB, MIB));
        assert!(short(MIB, 4 * MIB, MIB));
        assert!(short(MIB / 4, 4 * MIB, 0));
        assert!(!short(17 * MIB, 1024 * MIB, 0));
        assert!(short(17 * MIB, 1024 * MIB, 2 * MIB));
    }

    #[test]
    fn ballast_fits_the_disk_and_is_not_made_on_a_short_one() {
        let size = |free, total| ballast_size(Disk { free, total }, 512 * MIB);
        assert_eq!(size(1024 * MIB, 2048 * MIB), 4 * MIB);
        assert_eq!(size(3 * MIB, 4 * MIB), MIB / 8);
        assert_eq!(size(MIB / 2, 4 * MIB), 0);
    }

    #[test]
    fn bytes_and_orders_are_limits_and_are_told_at_four_fifths() {
        let load =
            |bytes, open| verdict(&settings(), Load { bytes, open, incoming: 1, ..Load::default() }, None);
        assert_eq!(load(799, 7), Verdict::default());
        assert_eq!(load(800, 0), Verdict { full: None, nearly_full: true });
        assert_eq!(load(0, 8), Verdict { full: None, nearly_full: true });
        assert!(load(1000, 0).full.unwrap().contains("orders.max_bytes"));
        assert!(load(0, 9).full.is_none());
        assert!(load(0, 10).full.unwrap().contains("orders.max_orders"));
    }

    #[test]
    fn history_goes_by_age_and_by_share_and_never_crowds_out_new_orders() {
        let all = [kept(1, 10, 100), kept(2, 20, 100), kept(3, 30, 100)];
        let before = |millis| Timestamp::from_millis(millis);
        let go = |at, history, bytes| may_go(&settings(), &all, before(at), history, bytes);
        assert_eq!(go(15, 300, 300), (1, 0));
        assert_eq!(go(0, 300, 300), (0, 0));
        assert_eq!(go(0, 650, 700), (0, 2));
        assert_eq!(go(15, 650, 700), (1, 1));
        assert_eq!(go(0, 300, 1000), (0, 1));
        assert_eq!(go(0, 0, 1000), (0, 0));
    }
}
