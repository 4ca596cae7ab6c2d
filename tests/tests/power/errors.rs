//! Stories of disks that fail with errors: EIO and ENOSPC at each read, write, truncation, flush and open.

use crate::cycle::{Act, Cycle, short_life, whole_life};
use crate::disk::{Disk, Fault, Kind, Op, Trouble};
use crate::image::{Fate, Playback};
use crate::oracle::{self, Finding};
use crate::sweep::{Plan, Recording, Tally, complete, record, recorded, seed, soak, sweep};
use crate::till;
use fastrand::Rng;
use samovar_agent::orders::ledger::LedgerError;
use std::collections::HashSet;
use tokio::task::JoinSet;

/// Lives that are lived at once; they mostly wait.
const AT_ONCE: usize = 12;
/// Operations after a failed flush that are all cut at.
const HEALING: usize = 15;

/// Every fault of one kind, at each of so many places.
fn faults(seen: [u64; 5], kinds: &[Kind]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for &kind in kinds {
        let troubles: &[Trouble] =
            if kind == Kind::Read { &[Trouble::Failed] } else { &[Trouble::Failed, Trouble::NoSpace] };
        for at in 0..seen[kind as usize] {
            for &trouble in troubles {
                faults.extend([false, true].map(|lasting| Fault { kind, at, trouble, lasting }));
            }
        }
    }
    faults
}

/// All of them by hand; after a change a sample, but every failed flush.
fn sample(faults: Vec<Fault>, one_in: usize, rng: &mut Rng) -> Vec<Fault> {
    let precious = |fault: &Fault| fault.kind == Kind::Sync && fault.trouble == Trouble::Failed;
    let keep =
        |fault: &Fault, rng: &mut Rng| soak().is_some() || precious(fault) || rng.usize(0..one_in) == 0;
    faults.into_iter().filter(|fault| keep(fault, rng)).collect()
}

/// How many operations of each kind a good disk sees in a short life.
async fn operations(rng: Rng) -> [u64; 5] {
    let directory = till::directory();
    let disk = Disk::watch(directory.path(), false);
    let mut cycle = Cycle::on(disk, directory.path().to_owned(), rng);
    cycle.open().await.expect("a ledger that opens");
    cycle.disk.heal();
    let before = cycle.disk.seen();
    for act in short_life() {
        cycle.act(act).await.expect("a ledger that opens again");
    }
    let after = cycle.disk.seen();
    std::array::from_fn(|kind| after[kind] - before[kind])
}

/// Flushes that fail for longer than one attempt: the journal then ends in bytes that read back and are not there.
fn drops_the_journal(fault: &Fault) -> bool {
    fault.kind == Kind::Sync && fault.lasting
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_makes_no_false_promise_and_is_used_again_when_it_is_well() {
    fail_everywhere(|fault| !drops_the_journal(fault)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_whose_flushes_fail_for_a_while_makes_no_false_promise_either() {
    fail_everywhere(drops_the_journal).await;
}

async fn fail_everywhere(wanted: impl Fn(&Fault) -> bool) {
    let mut rng = Rng::with_seed(seed() ^ 6);
    let life = rng.fork();
    let seen = operations(life.clone()).await;
    let mut faults = faults(seen, &[Kind::Read, Kind::Write, Kind::Truncate, Kind::Sync]);
    faults.retain(wanted);
    let faults = sample(faults, 48, &mut rng);
    println!(
        "{} of the faults possible in {seen:?} operations (read, write, truncate, sync, open)",
        faults.len()
    );
    let (mut total, mut struck, mut refused) = (Tally::default(), 0, 0);
    let mut lives: JoinSet<(Tally, u64, usize)> = JoinSet::new();
    let mut add = |(tally, hits, errors): (Tally, u64, usize)| {
        total.add(tally);
        struck += usize::from(hits > 0);
        refused += errors;
    };
    for fault in faults {
        if lives.len() >= AT_ONCE
            && let Some(ended) = lives.join_next().await
        {
            add(ended.expect("a life that ends"));
        }
        lives.spawn(one_fault(fault, life.clone(), rng.fork()));
    }
    while let Some(ended) = lives.join_next().await {
        add(ended.expect("a life that ends"));
    }
    println!("{struck} faults struck, {refused} requests were answered with an error");
    total.must_be_clean();
    assert!(struck > 10 && refused > struck / 4, "{struck} faults, {refused} errors: the disk did not fail");
}

/// A life with one fault in it, then a good disk; the power is cut at moments of all of that.
async fn one_fault(fault: Fault, life: Rng, mut rng: Rng) -> (Tally, u64, usize) {
    let mut tally = Tally::default();
    let directory = till::directory();
    let disk = Disk::watch(directory.path(), false);
    let mut cycle = Cycle::on(disk, directory.path().to_owned(), life);
    cycle.open().await.expect("a ledger that opens");
    cycle.disk.fail(fault);
    let mut moments = Vec::new();
    for act in short_life() {
        cycle.act(act).await.expect("no reopening in a short life");
        moments.push(cycle.disk.position());
    }
    let hits = cycle.disk.heal();
    if let Err(problem) = well_again(&mut cycle, &mut moments).await {
        tally.note(&format!("{fault:?}"), Finding { lost: 0, wrong: vec![problem] });
    }
    for error in &cycle.errors {
        let honest = matches!(error, LedgerError::Full(_) | LedgerError::Busy | LedgerError::Storage(_));
        if !honest || error.to_string().contains("thread") {
            tally.note(
                &format!("{fault:?}"),
                Finding { lost: 0, wrong: vec![format!("answered: {error:?}")] },
            );
        }
    }
    let recording = recorded(&cycle, directory.path());
    let mut finding = Finding::default();
    oracle::examine_open(&cycle.ledger(), &cycle.model, usize::MAX, &mut rng, &mut finding).await;
    tally.note(&format!("{fault:?}, without a cut"), finding);
    if hits > 0 {
        let images = sweep(&recording, &plan(&recording, &moments, &mut rng), &mut rng).await;
        let told = images.told.iter().map(|told| format!("{fault:?}: {told}")).collect();
        tally.add(Tally { told, ..images });
    }
    (tally, hits, cycle.errors.len())
}

/// Tills repeat what was refused; life goes on.
async fn well_again(cycle: &mut Cycle, moments: &mut Vec<usize>) -> Result<(), String> {
    cycle.repeat_unanswered().await?;
    moments.push(cycle.disk.position());
    let errors = cycle.errors.len();
    for act in [Act::One, Act::Bind, Act::Settle, Act::Batch(3), Act::One, Act::Checkpoint, Act::One] {
        cycle.act(act).await?;
        moments.push(cycle.disk.position());
    }
    match cycle.errors.get(errors) {
        Some(error) => Err(format!("on a good disk, after the fault: {error:?}")),
        None => Ok(()),
    }
}

/// Cuts right after the answers that came since the fault, and at a few other places.
fn plan(recording: &Recording, moments: &[usize], rng: &mut Rng) -> Plan {
    let of = Plan { sparing: true, ..Plan::of(&[Fate::Lost, Fate::Kept, Fate::Some, Fate::Torn(512)]) };
    if soak().is_some() {
        return of;
    }
    let bad = |op: &Op| matches!(op, Op::Synced { good: false, .. });
    let from = recording.log.iter().position(bad).unwrap_or(0);
    let mut only: HashSet<usize> = moments.iter().copied().filter(|moment| *moment > from).collect();
    only.extend((0..6).map(|_| rng.usize(from..=recording.log.len())));
    // Healing is the dangerous part: what a failed flush dropped must be written again before it is built upon.
    if let Some(last) = recording.log.iter().rposition(bad) {
        only.extend(last..recording.log.len().min(last + HEALING));
    }
    Plan { only: Some(only), ..of }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_while_the_ledger_is_opened_harms_nothing() {
    let mut rng = Rng::with_seed(seed() ^ 7);
    let mut acts = whole_life(&mut rng);
    acts.truncate(24);
    acts.retain(|act| !matches!(act, Act::Reopen | Act::Checkpoint));
    let first = record(&acts, false, rng.fork()).await;
    let mut tally = Tally::default();
    for from_nothing in [true, false] {
        let cut = if from_nothing { 0 } else { first.log.len() };
        let mut faults = faults(opening(&first, cut, None, &mut rng).await.1, &Kind::ALL);
        // A page that cannot be read again and again is damage, and the ledger is set aside for salvage.
        faults.retain(|fault| fault.kind != Kind::Read || !fault.lasting);
        println!("{} faults while opening", faults.len());
        for fault in sample(faults, 8, &mut rng) {
            let (finding, _) = opening(&first, cut, Some(fault), &mut rng).await;
            tally.images += 1;
            tally.note(&format!("{fault:?} while opening, from nothing: {from_nothing}"), finding);
        }
    }
    tally.must_be_clean();
}

/// Opens what a cut left, on a disk that fails so; then on a good one. Gives the operations that opening took.
async fn opening(first: &Recording, cut: usize, fault: Option<Fault>, rng: &mut Rng) -> (Finding, [u64; 5]) {
    let mut played = Playback::new(false, rng);
    first.log[..cut].iter().for_each(|op| played.apply(op, rng));
    let directory = till::directory();
    if cut > 0 {
        oracle::write(&complete(played.cut(Fate::Lost, rng), first, cut, rng), directory.path());
    }
    let disk = Disk::watch(directory.path(), false);
    if let Some(fault) = fault {
        disk.fail(fault);
    }
    let mut finding = Finding::default();
    // Whether it opens on such a disk is its own affair.
    drop(till::open(directory.path()));
    let seen = disk.seen();
    disk.heal();
    match till::reopen(directory.path()).await {
        Ok(ledger) => {
            let model = first.model.at(cut);
            oracle::examine_open(&ledger, &model, usize::MAX, rng, &mut finding).await;
        }
        Err(error) => finding.wrong.push(format!("it does not open on a good disk: {error:?}")),
    }
    (finding, seen)
}
