use super::*;

fn filler(bytes: usize) -> String {
    format!(r#","filler":"{}""#, "x".repeat(bytes))
}

async fn place(ledger: &Ledger, from: usize, to: usize, extra: &str) {
    for first in (from..to).step_by(500) {
        let orders = (first..to.min(first + 500)).map(|n| order(&format!("n-{n}"), extra)).collect();
        ledger.accept(orders).await.unwrap();
    }
}

async fn settle_all(ledger: &Ledger, last: u64) {
    let seqs: Vec<u64> = (1..=last).collect();
    for seqs in seqs.chunks(500) {
        let changes = seqs.iter().map(|&seq| Change { seq, to: ChangeTo::Settled }).collect();
        ledger.change(changes).await.unwrap();
    }
}

fn file_bytes(dir: &std::path::Path) -> u64 {
    std::fs::metadata(dir.join("orders.db")).unwrap().len()
}

#[tokio::test]
async fn orders_are_limited_by_count_too_and_settling_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_with(LedgerSettings { max_orders: 10, ..settings(dir.path(), 64 << 20) }).unwrap();
    place(&ledger, 0, 8, "").await;
    place(&ledger, 8, 9, "").await;
    assert!(ledger.storage().borrow().nearly_full);
    place(&ledger, 9, 10, "").await;
    let refused = ledger.accept(vec![order("one more", "")]).await.unwrap_err();
    assert!(refused.to_string().contains("orders.max_orders"), "{refused}");
    settle_all(&ledger, 5).await;
    place(&ledger, 10, 11, "").await;
    assert_eq!(ledger.storage().borrow().full, None);
}

#[tokio::test]
async fn history_gives_way_to_new_orders_before_its_time() {
    let dir = tempfile::tempdir().unwrap();
    // Four times what the ledger may hold passes through it, in large orders and in small ones.
    let ledger = open(dir.path(), 4 << 20).unwrap();
    for round in 0..16 {
        let first = round * 16;
        place(&ledger, first, first + 16, &filler(60_000)).await;
        settle_all(&ledger, first as u64 + 16).await;
    }
    for round in 0..16 {
        let first = 256 + round * 250;
        place(&ledger, first, first + 250, &filler(1_000)).await;
        settle_all(&ledger, first as u64 + 250).await;
    }
    let summary = ledger.summary().await.unwrap();
    assert_eq!(summary.settled, 4_256);
    assert!(summary.ledger_bytes < 4_400_000, "{}", summary.ledger_bytes);
    let record = ledger.record("n-0").await.unwrap().unwrap();
    assert_eq!((record.body, record.receipt.state), (None, State::Settled));
    assert!(ledger.record("n-4255").await.unwrap().unwrap().body.is_some());
}

#[tokio::test]
async fn the_file_shrinks_after_a_drain() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { body_retention: Duration::ZERO, ..settings(dir.path(), 512 << 20) };
    let ledger = open_with(settings).unwrap();
    let orders = 4_000;
    place(&ledger, 0, orders, &filler(1_500)).await;
    until(async || (file_bytes(dir.path()) > 6 << 20).then_some(())).await;
    let before = file_bytes(dir.path());
    settle_all(&ledger, orders as u64).await;
    // A body is kept until its origin has confirmed that it has the order.
    let marks = ledger.marks(&apac()).await.unwrap();
    ledger.matched(&apac(), marks).await.unwrap();
    close(ledger, dir.path()).await;
    // The round of retention runs at once after a start.
    let settings =
        LedgerSettings { body_retention: Duration::ZERO, ..super::settings(dir.path(), 512 << 20) };
    let ledger = reopened_with(settings).await;
    until(async || (file_bytes(dir.path()) < before / 2).then_some(())).await;
    println!("{before} bytes before the drain, {} after it", file_bytes(dir.path()));
    assert_eq!(ledger.summary().await.unwrap().settled, orders as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_stays_bounded_and_history_goes_while_tills_never_pause() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { body_retention: Duration::ZERO, ..settings(dir.path(), 512 << 20) };
    let ledger = open_with(settings.clone()).unwrap();
    place(&ledger, 0, 2_000, &filler(200)).await;
    settle_all(&ledger, 2_000).await;
    close(ledger, dir.path()).await;
    // A round of retention begins with the start.
    let ledger = reopened_with(settings).await;
    let (file, stop) = (dir.path().join("orders.db-wal"), std::sync::atomic::AtomicBool::new(false));
    let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
    let tills = (0..16).map(|till| {
        let (ledger, filler) = (&ledger, filler(4_000));
        async move {
            for n in 0.. {
                if stopped() {
                    break;
                }
                ledger.accept(vec![order(&format!("{till}-{n}"), &filler)]).await.unwrap();
            }
        }
    });
    let watch = async {
        let (mut longest, mut written) = (0, 0);
        until(async || {
            longest = longest.max(std::fs::metadata(&file).map_or(0, |file| file.len()));
            written = ledger.summary().await.unwrap().ledger_bytes;
            let kept = ledger.record("n-1999").await.unwrap().unwrap().body;
            (kept.is_none() && written > 12 << 20).then_some(())
        })
        .await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (longest, written)
    };
    let ((longest, written), _) = tokio::join!(watch, futures_util::future::join_all(tills));
    println!("{written} bytes written, the journal was never longer than {longest}");
    assert!(longest <= 9 << 20, "{longest}");
}

/// A disk of its own; `None` where this process may not make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            println!("SKIPPED: a file system cannot be mounted here, so nothing was shown about a full disk");
        }
        mounted.then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

/// Takes every block that is left.
fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [65_536, 4_096, 512] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[tokio::test]
async fn others_fill_the_disk_to_the_last_block_and_settling_goes_on() {
    let Some(disk) = SmallDisk::new("32m") else { return };
    let dir = disk.0.path();
    let ledger = open(dir, 512 << 20).unwrap();
    place(&ledger, 0, 500, &filler(1_000)).await;
    until(async || dir.join("orders.ballast").exists().then_some(())).await;
    fill(&dir.join("others"));
    let refused = ledger.accept(vec![order("late", "")]).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Full(_)), "{refused}");
    settle_all(&ledger, 500).await;
    assert_eq!(ledger.summary().await.unwrap().settled, 500);
    // It opens again on the full disk, too.
    drop(ledger);
    let ledger = reopened(dir).await;
    assert_eq!(ledger.summary().await.unwrap().settled, 500);
    // Room makes it well again without help.
    std::fs::remove_file(dir.join("others")).unwrap();
    ledger.accept(vec![order("late", "")]).await.unwrap();
    let storage = ledger.storage().borrow().clone();
    assert_eq!((storage.full, storage.failing), (None, None));
}

#[tokio::test]
async fn a_full_disk_is_told_and_healed_without_an_order_coming() {
    let Some(disk) = SmallDisk::new("16m") else { return };
    let dir = disk.0.path();
    let ledger = open(dir, 512 << 20).unwrap();
    place(&ledger, 0, 50, "").await;
    fill(&dir.join("others"));
    assert!(ledger.accept(vec![order("late", "")]).await.is_err());
    assert!(ledger.storage().borrow().full.is_some());
    std::fs::remove_file(dir.join("others")).unwrap();
    ledger.accept(vec![order("later", "")]).await.unwrap();
    until(async || (ledger.storage().borrow().full.is_none()).then_some(())).await;
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_is_told_and_healed() {
    let Some(disk) = SmallDisk::new("16m") else { return };
    let dir = disk.0.path();
    let ledger = open(dir, 512 << 20).unwrap();
    place(&ledger, 0, 5, "").await;
    let remount = |how: &str| {
        let options = format!("remount,{how}");
        let output = std::process::Command::new("mount").args(["-o", &options]).arg(dir).output().unwrap();
        output.status.success()
    };
    // An open file that may be written keeps a disk from becoming read-only: a failing one is what does it.
    if !remount("ro") {
        println!("SKIPPED: the file system cannot be made read-only while it is in use");
        return;
    }
    let refused = ledger.accept(vec![order("late", "")]).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Storage(_)), "{refused}");
    assert!(remount("rw"));
    until(async || ledger.accept(vec![order("late", "")]).await.ok()).await;
    assert_eq!(ledger.storage().borrow().failing, None);
}

#[test]
fn a_read_only_directory_is_refused_in_words() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let dir = disk.0.path();
    let remounted = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(dir).output().unwrap();
    assert!(remounted.status.success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(async { open(dir, 64 << 20) }).unwrap_err();
    let words = format!("{refused}: {:?}", std::error::Error::source(&refused).map(ToString::to_string));
    assert!(words.contains("ledger"), "{words}");
}
