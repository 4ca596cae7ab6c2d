//! Stories of power cuts.

use crate::cycle::whole_life;
use crate::disk::Disk;
use crate::image::{Fate, LARGE, Playback, SMALL};
use crate::sweep::{Plan, Recording, Tally, complete, record, seed, soak, sweep};
use crate::{oracle, till};
use fastrand::Rng;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_write_or_sync_loses_nothing_that_was_acknowledged() {
    let mut rng = Rng::with_seed(seed());
    let (mut total, images) = (Tally::default(), soak().unwrap_or(700));
    let mut lives = 0;
    while total.images < images {
        let acts = whole_life(&mut rng);
        let recording = record(&acts, false, rng.fork()).await;
        total.add(sweep(&recording, &Plan::everything(), &mut rng).await);
        lives += 1;
        if total.wrong > 0 {
            break;
        }
    }
    println!("{lives} lives");
    total.must_be_clean();
    assert!(total.distinct > 300, "{total}");
}

/// Power that comes back often goes again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_cut_while_the_ledger_recovers_from_the_first_loses_nothing_either() {
    cut_twice(&[Fate::Kept, Fate::Lost, Fate::Some, Fate::Torn(SMALL), Fate::Torn(LARGE)]).await;
}

/// After a recovery the journal may end inside a sector that holds acknowledged orders: what is written next there
/// puts them at risk, unless the journal begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_cut_that_wipes_a_sector_loses_nothing_either() {
    cut_twice(&[Fate::Wiped]).await;
}

async fn cut_twice(fates: &[Fate]) {
    let mut rng = Rng::with_seed(seed() ^ 2);
    let (mut total, images) = (Tally::default(), soak().map_or(300, |images| images / 5));
    while total.images < images && total.wrong == 0 {
        let acts = whole_life(&mut rng);
        let first = record(&acts, false, rng.fork()).await;
        let mut disk = Playback::new(false, &mut rng);
        for (index, op) in first.log.iter().enumerate() {
            disk.apply(op, &mut rng);
            if rng.u8(0..60) > 0 || total.images > images {
                continue;
            }
            let fate = *rng.choice(&Fate::ALL).unwrap_or(&Fate::Some);
            total.add(again(&first, &disk, index + 1, fate, fates, &mut rng).await);
        }
    }
    total.must_be_clean();
    assert!(total.distinct > 50, "{total}");
}

/// Opens what the first cut left and cuts again at each operation of that.
async fn again(
    first: &Recording,
    disk: &Playback,
    cut: usize,
    fate: Fate,
    second: &[Fate],
    rng: &mut Rng,
) -> Tally {
    let image = complete(disk.cut(fate, rng), first, cut, rng);
    let directory = till::directory();
    oracle::write(&image, directory.path());
    let disk = Disk::watch(directory.path(), false);
    let found = disk.position();
    let ledger = till::open(directory.path()).expect("a ledger that opens");
    disk.directory_synced();
    drop(ledger);
    // What is known when this one can be opened, is known when it has been closed.
    drop(till::reopen(directory.path()).await.expect("a ledger that opens again"));
    let recording = Recording {
        log: disk.log(),
        model: Arc::new(first.model.at(cut)),
        beside: crate::sweep::beside(directory.path()),
    };
    sweep(&recording, &Plan { from: found, times: 3, ..Plan::of(second) }, rng).await
}
