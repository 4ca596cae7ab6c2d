use super::file::OutboxFile;
use super::*;
use crate::clock::mono;
use samovar_wire::conditions::Condition;
use samovar_wire::mqtt::EventBatch;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

type Raised = Arc<Mutex<BTreeMap<Condition, String>>>;

fn settings(path: &Path, max_bytes: u64) -> (OutboxSettings, Raised) {
    let raised = Raised::default();
    let board = Arc::clone(&raised);
    let conditions: crate::relay::SetCondition = Arc::new(move |condition, detail| {
        let mut board = board.lock().unwrap();
        match detail {
            Some(detail) => board.insert(condition, detail),
            None => board.remove(&condition),
        };
    });
    (OutboxSettings { path: path.to_owned(), max_bytes, conditions }, raised)
}

fn path_in(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("aux.db")
}

fn open(path: &Path) -> Outbox {
    Outbox::open(settings(path, 1 << 20).0).unwrap()
}

fn record(outbox: &Outbox, stream: Stream, count: u64) {
    for number in 0..count {
        outbox.record(stream, "test.happened", &serde_json::json!({ "number": number }));
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = mono();
    while !holds() {
        assert!(mono().after(start) < Duration::from_secs(10), "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn read(outbox: &Outbox, stream: Stream, after: u64) -> EventBatch {
    let batch = outbox.read(stream, after, 32 * 1024).await.unwrap();
    let data: EventBatch = serde_json::from_str(batch.data.get()).unwrap();
    assert_eq!(batch.span, data.events.first().map(|first| (first.seq, data.events.last().unwrap().seq)));
    data
}

async fn read_all(outbox: &Outbox, stream: Stream) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let batch = read(outbox, stream, all.last().copied().unwrap_or(0)).await;
        if batch.events.is_empty() {
            return all;
        }
        all.extend(batch.events.iter().map(|event| event.seq));
    }
}

#[tokio::test]
async fn events_are_read_in_order_and_leave_only_by_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&path_in(&dir));
    record(&outbox, Stream::Events, 500);
    record(&outbox, Stream::Audit, 3);
    until("the events", || outbox.level().events == 503).await;
    let all = read_all(&outbox, Stream::Events).await;
    assert_eq!(all.len(), 500);
    assert_eq!(
        read(&outbox, Stream::Events, all[250]).await.kept_from,
        Some(all[0]),
        "wherever a batch begins"
    );
    assert!(all.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    assert_eq!(outbox.level().last[0], all[499]);
    outbox.acknowledge(Stream::Events, all[399]);
    until("the truncation", || outbox.level().events == 103).await;
    assert_eq!(read_all(&outbox, Stream::Events).await, all[400..]);
    assert_eq!(read_all(&outbox, Stream::Audit).await.len(), 3);
    let event = &read(&outbox, Stream::Events, all[400]).await.events[0];
    assert_eq!((event.kind.as_str(), &event.data), ("test.happened", &serde_json::json!({"number": 401})));
}

#[tokio::test]
async fn events_survive_a_restart_and_a_clean_one_leaves_no_gap_in_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&path_in(&dir));
    record(&outbox, Stream::Events, 5);
    outbox.close(Duration::from_secs(5)).await;
    let outbox = open(&path_in(&dir));
    record(&outbox, Stream::Events, 5);
    until("the events", || outbox.level().events == 10).await;
    let all = read_all(&outbox, Stream::Events).await;
    assert_eq!(all[9], all[0] + 9);
}

#[test]
fn numbers_are_not_given_twice_after_a_power_cut_that_took_the_last_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = path_in(&dir);
    let given = {
        let mut file = OutboxFile::open(Some(&path), 1).unwrap();
        file.reserve(Stream::Events, 2).unwrap();
        file.add(Stream::Events, Timestamp::from_millis(0), "a", "{}").unwrap();
        file.add(Stream::Events, Timestamp::from_millis(0), "b", "{}").unwrap();
        // What a power cut leaves when the last commits were not yet on the disk: the synced reservation.
        file.acknowledge(Stream::Events, u64::MAX).unwrap();
        file.last()[0]
    };
    let file = OutboxFile::open(Some(&path), 1).unwrap();
    assert!(file.last()[0] >= given, "{} after {given}", file.last()[0]);
}

#[tokio::test]
async fn numbers_go_on_above_those_of_a_file_that_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = path_in(&dir);
    let outbox = open(&path);
    record(&outbox, Stream::Events, 50);
    until("the events", || outbox.level().events == 50).await;
    let before = outbox.level().last[0];
    outbox.close(Duration::from_secs(5)).await;
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    let outbox = open(&path);
    record(&outbox, Stream::Events, 1);
    until("the event", || outbox.level().events == 1).await;
    assert!(read_all(&outbox, Stream::Events).await[0] > before);
}

#[tokio::test]
async fn a_full_outbox_drops_the_oldest_events_and_audit_last() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, raised) = settings(&path_in(&dir), 20_000);
    let outbox = Outbox::open(settings).unwrap();
    record(&outbox, Stream::Audit, 20);
    record(&outbox, Stream::Events, 900);
    until("the events", || {
        outbox.level().dropped > 0 && outbox.level().events + outbox.level().dropped == 920
    })
    .await;
    assert!(outbox.level().bytes <= 20_000);
    assert_eq!(read_all(&outbox, Stream::Audit).await.len(), 20);
    let left = read_all(&outbox, Stream::Events).await;
    assert_eq!(left.last(), Some(&outbox.level().last[0]), "the newest stay");
    assert!(raised.lock().unwrap().contains_key(&Condition::OutboxOverflow));
    outbox.acknowledge(Stream::Events, outbox.level().last[0]);
    until("the condition to go", || raised.lock().unwrap().is_empty()).await;
}

#[tokio::test]
async fn audit_is_dropped_when_there_is_nothing_else_to_drop() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(settings(&path_in(&dir), 5_000).0).unwrap();
    record(&outbox, Stream::Audit, 500);
    until("the drop", || outbox.level().events + outbox.level().dropped == 500 && outbox.level().dropped > 0)
        .await;
    assert!(outbox.level().bytes <= 5_000);
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_events_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = path_in(&dir);
    std::fs::write(
        &path,
        b"this is no database, and it is longer than a header of one hundred bytes, which matters \
        because a shorter file counts as empty",
    )
    .unwrap();
    let (settings, raised) = settings(&path, 1 << 20);
    let outbox = Outbox::open(settings).unwrap();
    record(&outbox, Stream::Events, 3);
    until("the events", || outbox.level().events == 3).await;
    assert!(raised.lock().unwrap()[&Condition::FileSetAside].contains("damaged"));
    assert!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .flatten()
            .any(|f| f.file_name().to_string_lossy().contains("damaged"))
    );
    outbox.close(Duration::from_secs(5)).await;
    assert_eq!(open_level(&path).await, 3, "the new file is a good one");
}

#[tokio::test]
async fn a_file_damaged_in_the_middle_is_set_aside_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = path_in(&dir);
    let outbox = open(&path);
    record(&outbox, Stream::Events, 900);
    until("the events", || outbox.level().events == 900).await;
    outbox.close(Duration::from_secs(5)).await;
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let (settings, raised) = settings(&path, 1 << 20);
    let outbox = Outbox::open(settings).unwrap();
    record(&outbox, Stream::Events, 1);
    until("an event", || outbox.level().events == 1).await;
    assert!(raised.lock().unwrap().contains_key(&Condition::FileSetAside));
}

async fn open_level(path: &Path) -> u64 {
    let outbox = open(path);
    until("the file", || outbox.level().events > 0).await;
    outbox.level().events
}

#[tokio::test]
async fn without_a_file_events_are_kept_in_memory_and_the_condition_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, raised) = settings(&dir.path().join("no/such/directory/aux.db"), 1 << 20);
    let outbox = Outbox::open(settings).unwrap();
    record(&outbox, Stream::Events, 3);
    until("the events", || outbox.level().events == 3).await;
    assert!(raised.lock().unwrap()[&Condition::FileSetAside].contains("in memory"));
}

#[tokio::test]
async fn a_caller_is_never_held_up_and_what_does_not_fit_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, raised) = settings(&path_in(&dir), 1 << 30);
    let outbox = Outbox::open(settings).unwrap();
    let large = serde_json::json!("x".repeat(30_000));
    let start = mono();
    for _ in 0..2_000 {
        outbox.record(Stream::Events, "large", &large);
    }
    let asked = mono().after(start);
    until("the rest", || outbox.level().events + outbox.level().dropped == 2_000).await;
    assert!(outbox.level().dropped > 0, "60 MB in {asked:?} should be more than the queue holds");
    assert!(raised.lock().unwrap().contains_key(&Condition::OutboxOverflow));
    record(&outbox, Stream::Events, 1);
    until("one more", || outbox.level().events + outbox.level().dropped == 2_001).await;
}

#[tokio::test]
async fn an_event_with_too_much_data_is_recorded_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&path_in(&dir));
    outbox.record(Stream::Events, "huge", &serde_json::json!("x".repeat(100_000)));
    until("the event", || outbox.level().events == 1).await;
    let event = read(&outbox, Stream::Events, 0).await.events.remove(0);
    assert_eq!(
        (event.kind.as_str(), &event.data),
        ("huge", &serde_json::json!({"truncated": true, "bytes": 100_002}))
    );
}

#[tokio::test]
async fn an_empty_stream_is_an_empty_batch() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&path_in(&dir));
    assert_eq!(outbox.read(Stream::Audit, 0, 1_000).await.unwrap().span, None);
}
