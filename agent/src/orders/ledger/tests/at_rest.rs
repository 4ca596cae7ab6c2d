use super::*;

const SECRET: &str = r#","customer":"Ann Example""#;

fn files_with(dir: &std::path::Path, words: &[u8]) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| {
            std::fs::read(entry.path()).unwrap().windows(words.len()).any(|window| window == words)
        })
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn no_plain_body_is_on_the_disk_and_every_reader_still_gets_it() {
    let till = Till::new();
    let id = receipt(till.post("1", SECRET).await).id;
    till.post("1", r#","customer":"Ann Example","x":1"#).await;
    assert_eq!(files_with(till._dir.path(), b"Ann Example"), Vec::<String>::new());
    let sent = till.ledger.bind(vec![1], apac()).await.unwrap();
    assert_eq!(sent[0].sha256, sha256(&sent[0].body));
    assert!(till.ledger.record(&id).await.unwrap().unwrap().body.unwrap().ends_with(br#""Ann Example"}"#));
    let Till { ledger, _dir } = till;
    close(ledger, _dir.path()).await;
    assert_eq!(files_with(_dir.path(), b"Ann Example"), Vec::<String>::new());
}

#[tokio::test]
async fn sealing_can_be_turned_off_and_on_and_all_bodies_stay_readable() {
    let dir = tempfile::tempdir().unwrap();
    for (number, seal) in [("1", true), ("2", false), ("3", true)] {
        let ledger =
            reopened_with(LedgerSettings { encrypt_bodies: seal, ..settings(dir.path(), 64 << 20) }).await;
        ledger.accept(vec![order(number, SECRET)]).await.unwrap();
        // What was written plain stays so.
        assert_eq!(files_with(dir.path(), b"Ann Example").is_empty(), number == "1");
        close(ledger, dir.path()).await;
    }
    let ledger = reopened(dir.path()).await;
    assert_eq!(ledger.bind(vec![1, 2, 3], apac()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn orders_whose_key_is_lost_are_kept_and_come_back_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("ledger.key");
    let ledger = reopened(dir.path()).await;
    ledger.accept(vec![order("1", SECRET)]).await.unwrap();
    ledger.bind(vec![1], apac()).await.unwrap();
    close(ledger, dir.path()).await;
    let lost = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();

    let ledger = reopened(dir.path()).await;
    ledger.accept(vec![order("2", SECRET)]).await.unwrap();
    let sent = ledger.bind(vec![1, 2], apac()).await.unwrap();
    assert_eq!(sent.iter().map(|order| order.seq).collect::<Vec<_>>(), [2]);
    let record = ledger.record("1").await.unwrap().unwrap();
    assert_eq!((record.receipt.state, record.why.as_deref()), (State::Quarantined, Some(UNREADABLE)));
    assert_eq!(record.body, None);
    // A retry without the key ends in the same place, and its origin keeps it.
    let retried = ledger.intervene("1", Intervention::Retry, "ann", "again").await.unwrap();
    assert_eq!((retried.receipt.state, retried.origin), (State::Pending, Some(apac())));
    assert!(ledger.bind(vec![1], apac()).await.unwrap().is_empty());
    close(ledger, dir.path()).await;

    std::fs::write(dir.path().join("ledger.key.old"), lost).unwrap();
    let ledger = reopened(dir.path()).await;
    until(async || (ledger.backlog().borrow().count(State::Quarantined) == 0).then_some(())).await;
    let sent = ledger.bind(vec![1], apac()).await.unwrap();
    assert!(sent[0].body.ends_with(br#""Ann Example"}"#));
}

#[tokio::test]
async fn a_body_that_rotted_on_the_disk_is_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let plain = || LedgerSettings { encrypt_bodies: false, ..settings(dir.path(), 64 << 20) };
    let ledger = reopened_with(plain()).await;
    ledger.accept(vec![order("1", SECRET)]).await.unwrap();
    close(ledger, dir.path()).await;
    let file = dir.path().join("orders.db");
    let mut content = std::fs::read(&file).unwrap();
    let at = content.windows(3).position(|window| window == b"Ann").unwrap();
    content[at] = b'B';
    std::fs::write(&file, content).unwrap();
    let ledger = reopened_with(plain()).await;
    assert!(ledger.bind(vec![1], apac()).await.unwrap().is_empty());
    let record = ledger.record("1").await.unwrap().unwrap();
    assert_eq!((record.receipt.state, record.why.as_deref()), (State::Quarantined, Some(DAMAGED)));
}
