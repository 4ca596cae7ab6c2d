//! The ledger's files are taken away: while it is open, and between two starts.

use super::*;
use std::path::Path;

/// A directory with everything in it as a crash leaves it.
fn as_after_a_crash(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Opens it as soon as its last user has let go of it.
async fn open_again(dir: &Path) -> Ledger {
    until(async || match open(dir, 64 << 20) {
        Err(OpenError::InUse) => None,
        opened => Some(opened.unwrap()),
    })
    .await
}

async fn numbers(ledger: &Ledger) -> Vec<String> {
    let mut numbers: Vec<String> =
        ledger.page(None, 0, 200).await.unwrap().into_iter().map(|record| record.receipt.order_no).collect();
    numbers.sort();
    numbers
}

fn expected(orders: usize) -> Vec<String> {
    (0..orders).map(|n| format!("{n:03}")).collect()
}

async fn place(ledger: &Ledger, orders: std::ops::Range<usize>) {
    for n in orders {
        // A till repeats an order until it is told.
        until(async || ledger.accept(vec![order(&format!("{n:03}"), "")]).await.ok()).await;
    }
}

/// Does something to the directory of a ledger that is open and holds orders in both files; whatever was acknowledged
/// before and after must be there after a crash.
async fn open_while(what: impl Fn(&Path)) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    let ledger = open_again(&dir).await;
    place(&ledger, 0..5).await;
    let id = ledger.id();
    // An older state of the main file, for those who put one in its place.
    std::fs::copy(dir.join("orders.db"), home.path().join("older")).unwrap();
    place(&ledger, 5..20).await;
    what(&dir);
    // Nobody is told of an order in files that are gone; a moment counts as nothing.
    until(async || {
        let refused = matches!(ledger.accept(vec![order("020", "")]).await, Err(LedgerError::Storage(_)));
        (refused || ledger.storage().borrow().rescued.is_some()).then_some(())
    })
    .await;
    place(&ledger, 20..40).await;
    assert!(ledger.storage().borrow().rescued.is_some());
    until(async || ledger.storage().borrow().set_aside.is_none().then_some(())).await;
    assert_eq!(ledger.storage().borrow().failing, None);
    assert_eq!(ledger.id(), id);
    let crashed = as_after_a_crash(&dir);
    let again = open_again(crashed.path()).await;
    assert_eq!(numbers(&again).await, expected(40));
    assert_eq!((again.id(), again.storage().borrow().doubt.clone()), (id, None));
    assert!(again.record("007").await.unwrap().unwrap().body.is_some());
    close(ledger, &dir).await;
    assert_eq!(numbers(&open_again(&dir).await).await, expected(40));
}

fn remove(dir: &Path, names: &[&str]) {
    names.iter().for_each(|name| std::fs::remove_file(dir.join(name)).unwrap());
}

#[tokio::test]
async fn a_ledger_that_is_removed_while_it_is_open_is_brought_back_whole() {
    open_while(|dir| remove(dir, &["orders.db"])).await;
    open_while(|dir| remove(dir, &["orders.db", "orders.db-wal", "orders.id", "ledger.key"])).await;
}

#[tokio::test]
async fn a_ledger_that_is_moved_away_alone_or_with_its_directory_is_brought_back() {
    open_while(|dir| std::fs::rename(dir.join("orders.db"), dir.join("moved")).unwrap()).await;
    open_while(|dir| std::fs::rename(dir, dir.with_file_name("moved")).unwrap()).await;
    open_while(|dir| std::fs::remove_dir_all(dir).unwrap()).await;
}

#[tokio::test]
async fn a_ledger_that_is_replaced_by_an_older_copy_stays_the_newer_one() {
    open_while(|dir| std::fs::rename(dir.with_file_name("older"), dir.join("orders.db")).unwrap()).await;
    open_while(|dir| {
        remove(dir, &["orders.db-wal"]);
        std::fs::rename(dir.with_file_name("older"), dir.join("orders.db")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_journal_that_is_removed_or_replaced_while_it_is_open_loses_nothing() {
    open_while(|dir| remove(dir, &["orders.db-wal"])).await;
    open_while(|dir| {
        std::fs::write(dir.join("other"), [7; 5000]).unwrap();
        std::fs::rename(dir.join("other"), dir.join("orders.db-wal")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_ledger_removed_while_nothing_happens_is_back_before_anybody_asks() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_again(dir.path()).await;
    place(&ledger, 0..3).await;
    remove(dir.path(), &["orders.db"]);
    until(async || ledger.storage().borrow().rescued.clone()).await;
    until(async || dir.path().join("orders.db").exists().then_some(())).await;
    assert_eq!(numbers(&ledger).await, expected(3));
}

#[tokio::test]
async fn a_rescue_that_was_cut_short_is_finished_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_again(dir.path()).await;
    place(&ledger, 0..9).await;
    close(ledger, dir.path()).await;
    let whole = dir.path().join("orders.db.rescued");
    std::fs::rename(dir.path().join("orders.db"), &whole).unwrap();
    let ledger = open_again(dir.path()).await;
    assert_eq!(numbers(&ledger).await, expected(9));
    assert_eq!(ledger.storage().borrow().set_aside, None);
    close(ledger, dir.path()).await;
    // Another ledger was begun in its place meanwhile: both come together.
    std::fs::rename(dir.path().join("orders.db"), &whole).unwrap();
    std::fs::remove_file(dir.path().join("orders.id")).unwrap();
    std::fs::rename(&whole, dir.path().join("elsewhere")).unwrap();
    let other = open_again(dir.path()).await;
    place(&other, 9..12).await;
    close(other, dir.path()).await;
    std::fs::rename(dir.path().join("elsewhere"), &whole).unwrap();
    let ledger = open_again(dir.path()).await;
    until(async || (numbers(&ledger).await == expected(12)).then_some(())).await;
}

/// A ledger that crashed with orders in its journal, and its id.
async fn crashed() -> (tempfile::TempDir, Arc<str>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_again(dir.path()).await;
    place(&ledger, 0..10).await;
    let copy = as_after_a_crash(dir.path());
    let id = ledger.id();
    (copy, id)
}

#[tokio::test]
async fn neither_a_clean_end_nor_crash_after_crash_raises_a_doubt() {
    let (mut dir, id) = crashed().await;
    for round in 1..5 {
        let ledger = open_again(dir.path()).await;
        place(&ledger, 10 * round..10 * (round + 1)).await;
        assert_eq!((ledger.id(), ledger.storage().borrow().doubt.clone()), (id.clone(), None), "{round}");
        let copy = as_after_a_crash(dir.path());
        if round == 3 {
            close(ledger, dir.path()).await;
        } else {
            dir = copy;
        }
    }
    let ledger = open_again(dir.path()).await;
    assert_eq!((ledger.id(), ledger.storage().borrow().doubt.clone()), (id, None));
    assert_eq!(numbers(&ledger).await, expected(50));
}

#[tokio::test]
async fn a_journal_that_is_gone_at_a_start_is_told_and_no_place_is_given_again() {
    for cut in [None, Some(0), Some(20)] {
        let (dir, id) = crashed().await;
        let journal = dir.path().join("orders.db-wal");
        match cut {
            None => std::fs::remove_file(&journal).unwrap(),
            Some(length) => {
                std::fs::OpenOptions::new().write(true).open(&journal).unwrap().set_len(length).unwrap();
            }
        }
        let ledger = open_again(dir.path()).await;
        let told = ledger.storage().borrow().doubt.clone().unwrap();
        assert!(told.contains("journal is missing"), "{told}");
        assert_ne!(ledger.id(), id);
        let new = receipt(ledger.accept(vec![order("new", "")]).await.unwrap().remove(0));
        assert!(new.seq > 10, "{}", new.seq);
        let new_id = ledger.id();
        close(ledger, dir.path()).await;
        // It stands until somebody has looked into it, and is not found again.
        let ledger = open_again(dir.path()).await;
        assert_eq!((ledger.id(), ledger.storage().borrow().doubt.clone()), (new_id, Some(told)));
        close(ledger, dir.path()).await;
        std::fs::remove_file(dir.path().join("orders.doubt")).unwrap();
        assert_eq!(open_again(dir.path()).await.storage().borrow().doubt, None);
    }
}

#[tokio::test]
async fn the_journal_of_another_ledger_is_set_aside_and_told() {
    let (dir, id) = crashed().await;
    let (other, _) = crashed().await;
    let main = as_after_a_crash(dir.path());
    std::fs::remove_file(main.path().join("orders.db-wal")).unwrap();
    std::fs::copy(other.path().join("orders.db-wal"), dir.path().join("orders.db-wal")).unwrap();
    let ledger = open_again(dir.path()).await;
    let told = ledger.storage().borrow().doubt.clone().unwrap();
    assert!(told.contains("orders.db-wal.damaged-1"), "{told}");
    assert!(dir.path().join("orders.db-wal.damaged-1").exists());
    assert_ne!(ledger.id(), id);
    assert_eq!(ledger.storage().borrow().set_aside, None);
    let alone = open_again(main.path()).await;
    assert_eq!(numbers(&ledger).await, numbers(&alone).await);
}

#[tokio::test]
async fn a_ledger_that_is_an_older_copy_goes_on_under_another_id_with_every_order() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_again(dir.path()).await;
    place(&ledger, 0..6).await;
    ledger.bind(vec![1, 2], apac()).await.unwrap();
    let settled = [1, 2].map(|seq| Change { seq, to: ChangeTo::Settled });
    ledger.change(settled.to_vec()).await.unwrap();
    let marks = ledger.marks(&apac()).await.unwrap();
    ledger.matched(&apac(), marks).await.unwrap();
    assert!(ledger.marks(&apac()).await.unwrap().is_empty());
    let (before, id) = (numbers(&ledger).await, ledger.id());
    let renewed = ledger.renew(5_000_000, "the origin knows of later places").await.unwrap();
    assert!(*renewed == *ledger.id() && renewed != *id);
    assert_eq!(numbers(&ledger).await, before);
    assert_eq!(ledger.marks(&apac()).await.unwrap().len(), 1, "all is to be compared anew");
    let new = receipt(ledger.accept(vec![order("new", "")]).await.unwrap().remove(0));
    assert!(new.seq > 5_000_000);
    close(ledger, dir.path()).await;
    let ledger = open_again(dir.path()).await;
    assert_eq!(*ledger.id(), *renewed);
    assert_eq!(ledger.storage().borrow().doubt.as_deref(), Some("the origin knows of later places"));
}
