use super::super::salvage::testing::{Places, places};
use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A ledger as a crash leaves it: main file and journal, and what they hold.
struct Sample {
    main: Vec<u8>,
    wal: Vec<u8>,
    /// The main file after a clean end.
    closed: Vec<u8>,
    records: Vec<Record>,
    places: Places,
}

/// Orders in every state, short and long ones; the last of them only in the journal.
async fn sample() -> Sample {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ledger.key"), [5; 32]).unwrap();
    let ledger = open(dir.path(), 64 << 20).unwrap();
    let long = format!(r#","filler":"{}""#, "x".repeat(9_000));
    for n in 0..240 {
        let extra = match n {
            _ if n % 10 == 3 => long.as_str(),
            77 => r#","depends_on":"1""#,
            _ => "",
        };
        ledger.accept(vec![order(&n.to_string(), extra)]).await.unwrap();
    }
    ledger.accept(vec![order("5", r#","x":1"#)]).await.unwrap();
    ledger.bind((31..=120).collect(), apac()).await.unwrap();
    let settled = (31..=90).map(|seq| Change { seq, to: ChangeTo::Settled });
    let refused = ChangeTo::Quarantined { why: "rejected".into(), detail: "no".into() };
    ledger.change(settled.chain([Change { seq: 95, to: refused }]).collect()).await.unwrap();
    ledger.intervene("20", Intervention::Discard, "ann", "a test order").await.unwrap();
    until(async || (std::fs::metadata(dir.path().join("orders.db")).unwrap().len() > 200_000).then_some(()))
        .await;
    for n in 240..280 {
        ledger.accept(vec![order(&n.to_string(), "")]).await.unwrap();
    }
    let main = std::fs::read(dir.path().join("orders.db")).unwrap();
    let wal = std::fs::read(dir.path().join("orders.db-wal")).unwrap();
    let records = all(&ledger).await.unwrap();
    let copy = copied(&main, &wal);
    let places = places(&copy.path().join("orders.db"));
    close(ledger, dir.path()).await;
    let closed = std::fs::read(dir.path().join("orders.db")).unwrap();
    Sample { main, wal, closed, records, places }
}

/// A directory with these files, and the key.
fn copied(main: &[u8], wal: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("orders.db"), main).unwrap();
    std::fs::write(dir.path().join("orders.db-wal"), wal).unwrap();
    std::fs::write(dir.path().join("ledger.key"), [5; 32]).unwrap();
    dir
}

async fn all(ledger: &Ledger) -> Result<Vec<Record>, LedgerError> {
    let (mut records, mut after) = (Vec::new(), 0);
    loop {
        let page = ledger.page(None, after, 200).await?;
        let Some(last) = page.last() else { return Ok(records) };
        after = last.receipt.seq;
        records.extend(page);
    }
}

/// Uses a ledger until it serves and has salvaged what it was to; gives what it holds then.
async fn used(ledger: &Ledger) -> Vec<Record> {
    let mut number = 0;
    let mut good = 0;
    until(async || {
        number += 1;
        let new = ledger.accept(vec![order(&format!("new-{number}"), "")]).await.is_ok();
        if ledger.storage().borrow().set_aside.is_some() {
            return None;
        }
        let seqs: Vec<u64> = all(ledger).await.ok()?.iter().map(|record| record.receipt.seq).collect();
        let bound = ledger.bind(seqs, "us-west".parse().unwrap()).await.is_ok();
        let groups: Vec<Group> = ledger.backlog().borrow().groups.keys().cloned().collect();
        for group in groups {
            ledger.heads(group, 0, u64::MAX, 500).await.ok()?;
        }
        let salvaging = ledger.storage().borrow().set_aside.is_some();
        good = if new && bound && !salvaging { good + 1 } else { 0 };
        (good >= 2).then_some(())
    })
    .await;
    until(async || all(ledger).await.ok()).await
}

/// Orders of the sample that are gone, or are there with less than they had.
fn missing(sample: &Sample, after: &[Record]) -> BTreeSet<u64> {
    let found: BTreeMap<&str, &Record> =
        after.iter().map(|record| (record.receipt.id.as_str(), record)).collect();
    let kept = |before: &Record| {
        found.get(before.receipt.id.as_str()).is_some_and(|now| {
            let same_state = now.receipt.state == before.receipt.state;
            let bound = before.origin.is_none() || now.origin == before.origin;
            same_state && bound && now.sha256 == before.sha256 && now.key == before.key
        })
    };
    sample.records.iter().filter(|record| !kept(record)).map(|record| record.receipt.seq).collect()
}

#[tokio::test]
async fn whatever_bytes_flip_the_ledger_serves_and_every_readable_order_is_there() {
    let sample = sample().await;
    let first = std::env::var("SAMOVAR_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: u64 = std::env::var("SAMOVAR_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(24);
    let (mut on_damaged, mut lost, mut anew) = (0, 0, 0);
    let range = first.map_or(0..seeds, |seed: u64| seed..seed + 1);
    for seed in range {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut main, mut wal) = (sample.main.clone(), sample.wal.clone());
        let mut hit = BTreeSet::new();
        for _ in 0..random.usize(1..4) {
            let in_wal = random.bool();
            let file = if in_wal { &mut wal } else { &mut main };
            let at = random.usize(..file.len());
            let length = [1, 8, 512, 4096][random.usize(..4)].min(file.len() - at);
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            file[at..at + length].copy_from_slice(&bytes);
            hit.extend(sample.places.touched(in_wal, at, length));
        }
        let dir = copied(&main, &wal);
        let before = std::fs::read(dir.path().join("orders.db")).unwrap();
        let ledger = open(dir.path(), 64 << 20).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        let after = used(&ledger).await;
        let gone = missing(&sample, &after);
        let set_aside = dir.path().join("orders.db.damaged-1");
        if set_aside.exists() {
            anew += 1;
            assert_eq!(before.len(), std::fs::read(&set_aside).unwrap().len(), "seed {seed}");
        }
        let innocent: Vec<&u64> = gone.difference(&hit).collect();
        assert!(innocent.is_empty(), "seed {seed}: lost {innocent:?}, though only {hit:?} were hit");
        on_damaged += hit.len();
        lost += gone.len();
    }
    println!(
        "{seeds} seeds, {anew} ledgers begun anew; {on_damaged} orders on damaged pages, {lost} of them changed or lost"
    );
}

#[tokio::test]
async fn a_ledger_without_its_first_page_and_its_root_gives_every_order_back() {
    let sample = sample().await;
    let mut main = sample.closed.clone();
    main[..4096].fill(0x55);
    for page in main.chunks_exact_mut(4096).skip(1) {
        if page[0] == 0x05 {
            page.fill(0xaa);
        }
    }
    let dir = copied(&main, b"");
    let ledger = open(dir.path(), 64 << 20).unwrap();
    let after = used(&ledger).await;
    assert_eq!(missing(&sample, &after), BTreeSet::new());
    let told = ledger.storage().borrow().salvaged[0].clone();
    assert!(told.told.contains("orders of the damaged ledger were brought over"), "{}", told.told);
    let discarded = ledger.record("20").await.unwrap().unwrap();
    assert_eq!((discarded.receipt.state, discarded.audit.len()), (State::Discarded, 1));
    let reused = after.iter().find(|record| record.why.as_deref() == Some(KEY_REUSED)).unwrap();
    let reused = ledger.record(&reused.receipt.id).await.unwrap().unwrap();
    assert_eq!(reused.conflict_with, Some(sample.records[5].receipt.id.clone()));
}

#[tokio::test]
async fn a_journal_that_is_broken_in_the_middle_loses_no_acknowledged_order() {
    let sample = sample().await;
    let mut wal = sample.wal.clone();
    wal[32 + 24 + 100] ^= 0xff;
    let dir = copied(&sample.main, &wal);
    let ledger = open(dir.path(), 64 << 20).unwrap();
    let after = used(&ledger).await;
    assert!(dir.path().join("orders.db.damaged-1-wal").exists());
    let gone = missing(&sample, &after);
    assert!(gone.len() <= 1, "{gone:?}");
}

#[tokio::test]
async fn a_torn_end_of_the_journal_is_no_damage() {
    let sample = sample().await;
    let frames = (sample.wal.len() - 32) / 4120;
    let mut wal = sample.wal.clone();
    let at = 32 + (frames - 1) * 4120;
    // Only where the last frame belongs to this generation of the journal is it the end.
    if wal[at + 8..at + 16] == wal[16..24] {
        wal[at + 2000..].fill(0);
        let dir = copied(&sample.main, &wal);
        let ledger = open(dir.path(), 64 << 20).unwrap();
        assert_eq!(ledger.storage().borrow().set_aside, None);
        assert!(ledger.accept(vec![order("after", "")]).await.is_ok());
    }
}

#[tokio::test]
async fn salvage_goes_on_where_it_was_and_does_nothing_twice() {
    let sample = sample().await;
    let mut main = sample.closed.clone();
    main[..100].fill(0);
    let dir = copied(&main, b"");
    let mut rounds = 0;
    let ledger = loop {
        let ledger = reopened(dir.path()).await;
        rounds += 1;
        // Long enough for a step or two, and then the end.
        let _ = ledger.accept(vec![order(&format!("round-{rounds}"), "")]).await;
        if ledger.storage().borrow().set_aside.is_none() {
            break ledger;
        }
    };
    let after = all(&ledger).await.unwrap();
    let ids: BTreeSet<&str> = after.iter().map(|record| record.receipt.id.as_str()).collect();
    assert_eq!(ids.len(), after.len());
    assert_eq!(missing(&sample, &after), BTreeSet::new());
    assert_eq!(after.len(), sample.records.len() + rounds);
    let counted = ledger.read(Tables::backlog).await.unwrap();
    assert_eq!(ledger.backlog().borrow().states, counted.states);
    assert!(dir.path().join("orders.db.damaged-1.salvaged").exists());
}

/// Ends one ledger and puts its file beside another as a damaged one.
async fn beside(old: Ledger, from: &Path, to: &Path) {
    close(old, from).await;
    std::fs::copy(from.join("orders.db"), to.join("orders.db.damaged-1")).unwrap();
}

#[tokio::test]
async fn what_came_again_meanwhile_is_merged_and_other_content_is_kept_in_quarantine() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&from, &to] {
        std::fs::write(dir.path().join("ledger.key"), [5; 32]).unwrap();
    }
    let old = open(from.path(), 64 << 20).unwrap();
    let orders: Vec<NewOrder> = (1..=4).map(|n| order(&n.to_string(), "")).collect();
    let again = |n: usize| NewOrder { id: uuid::Uuid::now_v7().to_string(), ..orders[n - 1].clone() };
    old.accept(orders.clone()).await.unwrap();
    old.bind(vec![1, 2], apac()).await.unwrap();
    old.change(vec![Change { seq: 1, to: ChangeTo::Settled }]).await.unwrap();
    beside(old, from.path(), to.path()).await;

    // The till repeated three of them before the salvage came to them; the third with other content.
    std::fs::rename(to.path().join("orders.db.damaged-1"), to.path().join("later")).unwrap();
    let new = open(to.path(), 64 << 20).unwrap();
    new.accept(vec![again(1), again(2), order("3", r#","x":1"#)]).await.unwrap();
    close(new, to.path()).await;
    std::fs::rename(to.path().join("later"), to.path().join("orders.db.damaged-1")).unwrap();
    let new = reopened(to.path()).await;
    let told = until(async || new.storage().borrow().salvaged.first().cloned()).await;
    assert!(
        told.told.starts_with("2 orders of the damaged ledger were brought over, 2 were there"),
        "{told:?}"
    );

    let found = async |number: &str| new.record(number).await.unwrap().unwrap();
    assert_eq!(found("1").await.receipt.state, State::Settled);
    let second = found("2").await;
    assert_eq!((second.receipt.state, second.origin), (State::Pending, Some(apac())));
    assert_eq!(found("4").await.receipt.state, State::Pending);
    let third = new.record(&orders[2].id).await.unwrap().unwrap();
    assert_eq!((third.receipt.state, third.why.as_deref()), (State::Quarantined, Some(KEY_REUSED)));
    let counted = new.read(Tables::backlog).await.unwrap();
    let published = new.backlog().borrow().as_ref().clone();
    assert_eq!((published.states, orders_by_group(&published)), (counted.states, orders_by_group(&counted)));
}

#[tokio::test]
async fn damage_that_shows_while_serving_begins_a_new_ledger_behind_the_old_places() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), 64 << 20).unwrap();
    // More than the cache holds.
    let filler = format!(r#","filler":"{}""#, "x".repeat(3_000));
    for first in (0..1_200).step_by(200) {
        let orders = (first..first + 200).map(|n| order(&n.to_string(), &filler)).collect();
        ledger.accept(orders).await.unwrap();
    }
    let id = ledger.id();
    // Everything is in the main file when the journal owes nothing.
    let file = dir.path().join("orders.db");
    until(async || (std::fs::metadata(&file).unwrap().len() > 4 << 20).then_some(())).await;
    let mut content = std::fs::read(&file).unwrap();
    for page in content.chunks_exact_mut(4096).skip(2) {
        if page[0] == 0x0d {
            page[1..8].fill(0xff);
        }
    }
    std::fs::write(&file, &content).unwrap();
    until(async || {
        // The old places are used on, as a dispatcher would that knows nothing.
        let _ = ledger.bind((1..=1_200).collect(), apac()).await;
        let _ = ledger.page(Some(State::Pending), 0, 200).await;
        (ledger.id() != id).then_some(())
    })
    .await;
    let new = until(async || ledger.accept(vec![order("new", "")]).await.ok()).await.remove(0);
    assert!(receipt(new.clone()).seq > 1_200);
    // An answer that was on its way settles no other order.
    ledger.change((1..=1_200).map(|seq| Change { seq, to: ChangeTo::Settled }).collect()).await.unwrap();
    let after = used(&ledger).await;
    assert!(after.iter().all(|record| record.receipt.state == State::Pending));
    let old: BTreeSet<&str> = after.iter().map(|record| record.key.as_str()).collect();
    assert!((0..1_200).all(|n| old.contains(n.to_string().as_str())), "{} of 1,200", old.len());
}
