//! A profile that is run by hand: what a long outage left behind is given back while the till goes on selling.

use super::*;
use crate::clock::mono;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a till may wait for its receipt meanwhile: far below what it takes for a fault.
const RECEIPT: Duration = Duration::from_secs(1);

/// Sells until it is told to stop, and gives how long each receipt took.
async fn sell(ledger: &Ledger, till: usize, stop: &AtomicBool) -> Vec<Duration> {
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = mono();
        ledger.accept(vec![order(&format!("{till}-{}", took.len()), "")]).await.unwrap();
        took.push(mono().0.saturating_sub(began.0));
        // A busy shop, not a benchmark.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_outage_left_is_given_back_while_tills_go_on_selling() {
    let orders = std::env::var("SAMOVAR_SHRINK_ORDERS").map_or(6_000, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { body_retention: Duration::ZERO, ..settings(dir.path(), 512 << 20) };
    let ledger = open_with(settings.clone()).unwrap();
    let filler = format!(r#","filler":"{}""#, "x".repeat(1_500));
    for first in (0..orders).step_by(500) {
        let batch = (first..orders.min(first + 500)).map(|n| order(&format!("old-{n}"), &filler)).collect();
        ledger.accept(batch).await.unwrap();
    }
    let seqs: Vec<u64> = (1..=orders as u64).collect();
    for seqs in seqs.chunks(500) {
        let changes = seqs.iter().map(|&seq| Change { seq, to: ChangeTo::Settled }).collect();
        ledger.change(changes).await.unwrap();
    }
    let marks = ledger.marks(&apac()).await.unwrap();
    ledger.matched(&apac(), marks).await.unwrap();
    close(ledger, dir.path()).await;
    let file = || std::fs::metadata(dir.path().join("orders.db")).unwrap().len();
    let before = file();

    // A round of retention begins with the start; the tills are there at once.
    let (ledger, began, stop) = (reopened_with(settings).await, mono(), AtomicBool::new(false));
    let tills = futures_util::future::join_all((0..8).map(|till| sell(&ledger, till, &stop)));
    let watch = async {
        until(async || (file() < before / 2).then_some(())).await;
        stop.store(true, Ordering::Relaxed);
        mono().0.saturating_sub(began.0)
    };
    let (took, receipts) = tokio::join!(watch, tills);
    let mut receipts = receipts.concat();
    receipts.sort_unstable();
    let (p50, p99) = (receipts[receipts.len() / 2], receipts[receipts.len() * 99 / 100]);
    let longest = *receipts.last().unwrap();
    println!(
        "{orders} orders let go: {before} bytes before, {} after {took:.1?}; {} receipts meanwhile: p50 {p50:.1?}, p99 \
         {p99:.1?}, longest {longest:.1?}",
        file(),
        receipts.len(),
    );
    assert!(longest < RECEIPT, "a till waited {longest:?}");
    let summary = ledger.summary().await.unwrap();
    assert_eq!(summary.settled, orders as u64);
    assert_eq!(summary.pending, receipts.len() as u64);
}
