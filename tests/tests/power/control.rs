//! Negative controls: where the disk or the settings are known to lose orders, the harness must see it. A harness
//! that finds nothing here proves nothing elsewhere.

use crate::cycle::{Act, whole_life};
use crate::image::Fate;
use crate::sweep::{Plan, Tally, record, seed, sweep};
use crate::vfs;
use fastrand::Rng;

fn must_lose(tally: &Tally, what: &str) {
    println!("{what}: {tally}\n{}", tally.told.join("\n"));
    assert!(tally.lost > 0, "{what}, and the harness saw no loss: {tally}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synchronous_normal_loses_acknowledged_orders() {
    vfs::never_full();
    let mut rng = Rng::with_seed(seed() ^ 3);
    let mut acts = whole_life(&mut rng);
    acts.truncate(30);
    let recording = record(&acts, false, rng.fork()).await;
    let tally = sweep(
        &recording,
        &Plan { sparing: true, one_in: 4, ..Plan::of(&[Fate::Kept, Fate::Lost, Fate::Some]) },
        &mut rng,
    )
    .await;
    must_lose(&tally, "synchronous=NORMAL");
}

/// Orders that are small and many: what one leaves of a sector, the next one begins in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_wipes_sectors_and_says_it_does_not_loses_acknowledged_orders() {
    let mut rng = Rng::with_seed(seed() ^ 4);
    let acts = [vec![Act::One; 8], vec![Act::Checkpoint], vec![Act::One; 12]].concat();
    let plan = Plan { times: 3, one_in: 3, ..Plan::of(&[Fate::Wiped]) };
    let claims = record(&acts, true, rng.fork()).await;
    must_lose(&sweep(&claims, &plan, &mut rng).await, "psow=1");
    // The same orders on the same disk, as the product asks for them.
    let honest = record(&acts, false, rng.fork()).await;
    sweep(&honest, &plan, &mut rng).await.must_be_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_about_flushing_loses_acknowledged_orders() {
    let mut rng = Rng::with_seed(seed() ^ 5);
    let acts = [vec![Act::One; 12], vec![Act::Checkpoint], vec![Act::One; 6], vec![Act::Bind]].concat();
    let recording = record(&acts, false, rng.fork()).await;
    let plan = Plan { lies: true, one_in: 4, ..Plan::of(&[Fate::Lost, Fate::Some]) };
    must_lose(&sweep(&recording, &plan, &mut rng).await, "a disk that lies");
}
