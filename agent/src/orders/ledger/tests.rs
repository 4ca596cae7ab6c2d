mod at_rest;
mod capacity;
mod damage;
mod shrink;
mod taken;

use super::*;
use crate::heartbeat::Heartbeats;
use crate::orders::order::Order;
use samovar_wire::Country;

struct Till {
    ledger: Ledger,
    _dir: tempfile::TempDir,
}

fn settings(dir: &std::path::Path, max_bytes: u64) -> LedgerSettings {
    LedgerSettings { max_bytes, ..LedgerSettings::at(dir.join("orders.db")) }
}

fn open(dir: &std::path::Path, max_bytes: u64) -> Result<Ledger, OpenError> {
    open_with(settings(dir, max_bytes))
}

fn open_with(settings: LedgerSettings) -> Result<Ledger, OpenError> {
    Ledger::open(settings, Heartbeats::default().register("ledger", DEADLINE))
}

/// Waits until something holds.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + 6 * DEADLINE;
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "it never came to hold");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Ends a ledger and waits until its thread has moved everything into the main file.
async fn close(ledger: Ledger, dir: &std::path::Path) {
    drop(ledger);
    until(async || (!dir.join("orders.db-wal").exists()).then_some(())).await;
}

impl Till {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { ledger: open(dir.path(), 64 << 20).unwrap(), _dir: dir }
    }

    async fn post(&self, number: &str, extra: &str) -> Accepted {
        self.ledger.accept(vec![order(number, extra)]).await.unwrap().remove(0)
    }

    async fn state(&self, number: &str) -> State {
        self.ledger.record(number).await.unwrap().unwrap().receipt.state
    }

    async fn settle(&self, seq: u64) {
        self.ledger.change(vec![Change { seq, to: ChangeTo::Settled }]).await.unwrap();
    }
}

fn order(number: &str, extra: &str) -> NewOrder {
    let body = format!(r#"{{"order_no":"{number}","placed_at":"2026-11-20T08:00:00Z"{extra}}}"#);
    NewOrder {
        id: uuid::Uuid::now_v7().to_string(),
        accepted_at: wall(),
        order: Order::parse(body.as_bytes(), None, &"US".parse::<Country>().unwrap()).unwrap(),
    }
}

fn receipt(accepted: Accepted) -> Receipt {
    match accepted {
        Accepted::New(receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

fn apac() -> OriginId {
    "apac".parse().unwrap()
}

fn unbound() -> Group {
    Group { origin: None, udl: "US".parse().unwrap() }
}

fn orders_by_group(backlog: &Backlog) -> Vec<(Group, u64)> {
    backlog.groups.iter().map(|(group, waiting)| (group.clone(), waiting.orders)).collect()
}

#[tokio::test]
async fn a_key_is_taken_once_and_a_repeat_gets_the_same_answer() {
    let till = Till::new();
    let first = receipt(till.post("1", "").await);
    assert_eq!(till.post("1", "").await, Accepted::Replay(first.clone()));
    assert_eq!(till.ledger.summary().await.unwrap().pending, 1);
    assert_eq!(first.seq, 1);
}

#[tokio::test]
async fn a_reused_key_keeps_the_new_body_in_quarantine_once() {
    let till = Till::new();
    let first = receipt(till.post("1", "").await);
    for repeated in [false, true] {
        match till.post("1", r#","total":"2.50""#).await {
            Accepted::KeyReused { kept, first: id, repeated: again } => {
                assert_eq!((kept.state, id, again), (State::Quarantined, first.id.clone(), repeated));
                let record = till.ledger.record(&kept.id).await.unwrap().unwrap();
                assert_eq!(record.conflict_with.as_deref(), Some(first.id.as_str()));
                assert!(record.body.unwrap().ends_with(br#""total":"2.50"}"#));
            }
            other => panic!("{other:?}"),
        }
    }
    let summary = till.ledger.summary().await.unwrap();
    assert_eq!((summary.pending, summary.quarantined), (1, 1));
}

#[tokio::test]
async fn many_tills_with_one_key_make_one_order() {
    let till = Till::new();
    let posts = (0..100).map(|_| till.post("same", ""));
    let answers = futures_util::future::join_all(posts).await;
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Accepted::New(_))).count(), 1);
    assert_eq!(till.ledger.summary().await.unwrap().pending, 1);
}

#[tokio::test]
async fn everything_is_there_after_the_ledger_is_opened_again() {
    let till = Till::new();
    receipt(till.post("1", "").await);
    receipt(till.post("2", "").await);
    till.ledger.bind(vec![1], apac()).await.unwrap();
    let id = till.ledger.id();
    let Till { ledger, _dir } = till;
    let before = ledger.backlog().borrow().clone();
    drop(ledger);
    let again = reopened(_dir.path()).await;
    assert_eq!(again.id(), id);
    assert_eq!(orders_by_group(&again.backlog().borrow()), orders_by_group(&before));
    assert_eq!(again.summary().await.unwrap().bound[0].orders, 1);
}

/// The thread lets go of the file shortly after the last handle is gone.
async fn reopened(dir: &std::path::Path) -> Ledger {
    reopened_with(settings(dir, 64 << 20)).await
}

async fn reopened_with(settings: LedgerSettings) -> Ledger {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        match open_with(settings.clone()) {
            Ok(ledger) => return ledger,
            Err(OpenError::InUse) if tokio::time::Instant::now() < deadline => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_second_agent_is_told_that_the_ledger_is_in_use() {
    let till = Till::new();
    assert!(matches!(open(till._dir.path(), 64 << 20), Err(OpenError::InUse)));
}

#[tokio::test]
async fn an_order_once_bound_is_given_to_no_other_origin() {
    let till = Till::new();
    receipt(till.post("1", "").await);
    let sent = till.ledger.bind(vec![1], apac()).await.unwrap();
    assert_eq!(sent[0].order_no, "1");
    assert!(till.ledger.bind(vec![1], "us-west".parse().unwrap()).await.unwrap().is_empty());
    assert_eq!(till.ledger.bind(vec![1], apac()).await.unwrap().len(), 1);
    assert!(till.ledger.heads(unbound(), 0, u64::MAX, 10).await.unwrap().is_empty());
    let bound = Group { origin: Some(apac()), ..unbound() };
    assert_eq!(till.ledger.heads(bound, 0, u64::MAX, 10).await.unwrap()[0].attempts, 2);
}

#[tokio::test]
async fn a_refund_waits_until_its_sale_is_settled() {
    let till = Till::new();
    receipt(till.post("sale", "").await);
    let refund = receipt(till.post("refund", r#","depends_on":"sale""#).await);
    assert_eq!(refund.state, State::Held);
    assert_eq!(till.ledger.backlog().borrow().count_why(State::Held, "depends_on"), 1);
    till.settle(1).await;
    assert_eq!(till.state("refund").await, State::Pending);
    assert_eq!(till.ledger.backlog().borrow().disturbed, 1);
    // A copy of the sale that was kept because its key was reused is not the sale.
    till.post("sale", r#","x":1"#).await;
    assert_eq!(receipt(till.post("r1", r#","depends_on":"sale""#).await).state, State::Pending);
    // A sale that is settled already, or is not in this ledger, holds nothing up.
    assert_eq!(receipt(till.post("r2", r#","depends_on":"sale""#).await).state, State::Pending);
    assert_eq!(receipt(till.post("r3", r#","depends_on":"elsewhere""#).await).state, State::Pending);
}

#[tokio::test]
async fn a_refund_whose_sale_was_discarded_says_so_and_waits_for_an_operator() {
    let till = Till::new();
    receipt(till.post("sale", "").await);
    let refund = receipt(till.post("refund", r#","depends_on":"sale""#).await);
    let intervene = async |order: &str, what| till.ledger.intervene(order, what, "ann", "x").await;
    // Nobody gets a refund past its sale without being asked who he is.
    assert!(matches!(intervene("refund", Intervention::Retry).await, Err(LedgerError::NotAllowed(_))));
    intervene("sale", Intervention::Discard).await.unwrap();
    let late = receipt(till.post("late", r#","depends_on":"sale""#).await);
    for held in [&refund.id, &late.id] {
        let record = till.ledger.record(held).await.unwrap().unwrap();
        assert_eq!(record.receipt.state, State::Held);
        assert!(record.detail.as_ref().unwrap().contains("was discarded"), "{:?}", record.detail);
    }
    assert!(matches!(intervene("refund", Intervention::Retry).await, Err(LedgerError::NotAllowed(_))));
    let record = intervene("refund", Intervention::Force).await.unwrap();
    assert_eq!((record.receipt.state, record.audit[0].what.as_str()), (State::Pending, "retry"));
}

#[tokio::test]
async fn heads_are_read_between_two_places_and_the_newest_place_is_published() {
    let till = Till::new();
    for number in ["1", "2", "3", "4"] {
        receipt(till.post(number, "").await);
    }
    let between = till.ledger.heads(unbound(), 1, 3, 10).await.unwrap();
    assert_eq!(between.iter().map(|head| head.seq).collect::<Vec<_>>(), [2, 3]);
    till.settle(4).await;
    assert_eq!(till.ledger.backlog().borrow().newest, 4);
    let Till { ledger, _dir } = till;
    drop(ledger);
    assert_eq!(reopened(_dir.path()).await.backlog().borrow().newest, 4);
}

#[tokio::test]
async fn the_word_of_the_origin_counts_even_after_a_discard() {
    let till = Till::new();
    receipt(till.post("1", "").await);
    till.ledger.bind(vec![1], apac()).await.unwrap();
    let record = till.ledger.intervene("1", Intervention::Discard, "ann", "test order").await.unwrap();
    assert_eq!(record.receipt.state, State::Discarded);
    assert_eq!((record.audit[0].who.as_str(), record.audit[0].reason.as_str()), ("ann", "test order"));
    till.ledger.change(vec![Change { seq: 1, to: ChangeTo::Failed("late".into()) }]).await.unwrap();
    assert_eq!(till.state("1").await, State::Discarded);
    till.settle(1).await;
    assert_eq!(till.state("1").await, State::Settled);
}

#[tokio::test]
async fn what_was_bound_and_not_sent_stays_bound_and_counts_as_never_sent() {
    let till = Till::new();
    receipt(till.post("1", "").await);
    let withdrawn = || vec![Change { seq: 1, to: ChangeTo::Withdrawn }];
    till.ledger.bind(vec![1], apac()).await.unwrap();
    till.ledger.change(withdrawn()).await.unwrap();
    let record = till.ledger.record("1").await.unwrap().unwrap();
    assert_eq!((record.receipt.state, record.origin), (State::Pending, Some(apac())));
    assert_eq!((record.attempts, record.first_sent_at, record.sent_at), (0, None, None));
    // Nor does it take back what was sent before.
    till.ledger.bind(vec![1], apac()).await.unwrap();
    till.ledger.bind(vec![1], apac()).await.unwrap();
    till.ledger.change(withdrawn()).await.unwrap();
    let record = till.ledger.record("1").await.unwrap().unwrap();
    assert!((record.attempts, record.first_sent_at.is_some()) == (1, true), "{record:?}");
}

#[tokio::test]
async fn an_operator_can_retry_what_the_origin_refused_but_not_a_reused_key() {
    let till = Till::new();
    receipt(till.post("1", "").await);
    till.ledger.bind(vec![1], apac()).await.unwrap();
    let refused = ChangeTo::Quarantined { why: "rejected".into(), detail: "shop closed".into() };
    till.ledger.change(vec![Change { seq: 1, to: refused }]).await.unwrap();
    let record = till.ledger.intervene("1", Intervention::Retry, "ann", "shop opened").await.unwrap();
    assert_eq!((record.receipt.state, record.origin), (State::Pending, None));
    let Accepted::KeyReused { kept, .. } = till.post("1", r#","x":1"#).await else { panic!() };
    let refused = till.ledger.intervene(&kept.id, Intervention::Retry, "ann", "why not").await;
    assert!(matches!(refused, Err(LedgerError::NotAllowed(_))));
    assert_eq!(
        till.ledger.intervene("none", Intervention::Retry, "ann", "x").await.unwrap_err(),
        LedgerError::Unknown
    );
}

#[tokio::test]
async fn a_release_frees_an_order_for_another_origin() {
    let till = Till::new();
    receipt(till.post("1", "").await);
    till.ledger.bind(vec![1], apac()).await.unwrap();
    till.ledger.intervene("1", Intervention::Release, "ann", "apac is gone").await.unwrap();
    assert_eq!(till.ledger.backlog().borrow().groups.get(&unbound()).unwrap().orders, 1);
    assert_eq!(till.ledger.bind(vec![1], "us-west".parse().unwrap()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn held_orders_come_back_when_their_reason_is_gone() {
    let till = Till::new();
    receipt(till.post("1", "").await);
    let held = ChangeTo::Held(Hold::Residency, "no origin".into());
    till.ledger.change(vec![Change { seq: 1, to: held }]).await.unwrap();
    assert_eq!(till.state("1").await, State::Held);
    till.ledger.unhold(Hold::Identity).await.unwrap();
    assert_eq!(till.state("1").await, State::Held);
    till.ledger.unhold(Hold::Residency).await.unwrap();
    assert_eq!(till.state("1").await, State::Pending);
}

#[tokio::test]
async fn the_published_counts_are_those_of_the_tables() {
    let till = Till::new();
    for n in 0..40 {
        till.post(&n.to_string(), if n % 4 == 0 { r#","udl":"JP""# } else { "" }).await;
    }
    till.ledger.bind((1..=20).collect(), apac()).await.unwrap();
    for seq in 1..=10 {
        let to = match seq % 4 {
            0 => ChangeTo::Settled,
            1 => ChangeTo::Held(Hold::Identity, "401".into()),
            2 => ChangeTo::Quarantined { why: "rejected".into(), detail: String::new() },
            _ => ChangeTo::Failed("500".into()),
        };
        till.ledger.change(vec![Change { seq, to }]).await.unwrap();
    }
    till.ledger.unhold(Hold::Identity).await.unwrap();
    till.ledger.intervene("5", Intervention::Discard, "ann", "x").await.unwrap();
    let published = till.ledger.backlog().borrow().as_ref().clone();
    let counted = till.ledger.read(Tables::backlog).await.unwrap();
    assert_eq!(orders_by_group(&published), orders_by_group(&counted));
    assert_eq!(published.states, counted.states);
    assert_eq!(published.whys, counted.whys);
}

#[tokio::test]
async fn a_ledger_at_its_limit_refuses_new_orders_and_still_records_deliveries() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), 1 << 20).unwrap();
    let filler = format!(r#","filler":"{}""#, "x".repeat(60_000));
    let mut accepted = 0;
    let refused = loop {
        match ledger.accept(vec![order(&accepted.to_string(), &filler)]).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 100);
    };
    assert!(matches!(refused, LedgerError::Full(_)));
    assert!(ledger.storage().borrow().full.is_some());
    let changes = (1..=accepted).map(|seq| Change { seq, to: ChangeTo::Settled }).collect();
    ledger.change(changes).await.unwrap();
    assert_eq!(ledger.summary().await.unwrap().settled, accepted);
}

#[tokio::test]
async fn a_damaged_ledger_is_set_aside_and_a_new_one_serves() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("orders.db"), vec![7; 8192]).unwrap();
    let ledger = open(dir.path(), 64 << 20).unwrap();
    let told = until(async || ledger.storage().borrow().salvaged.first().cloned()).await;
    assert!(told.losses && told.told.contains("orders.db.damaged-1"), "{told:?}");
    assert_eq!(std::fs::read(dir.path().join("orders.db.damaged-1")).unwrap(), vec![7; 8192]);
    assert!(ledger.accept(vec![order("1", "")]).await.is_ok());
}

#[tokio::test]
async fn a_ledger_that_vanished_is_told_and_its_journal_is_kept() {
    let till = Till::new();
    till.post("1", "").await;
    let journal = std::fs::read(till._dir.path().join("orders.db-wal")).unwrap();
    for empty in [true, false] {
        // What a directory looks like whose main file was lost.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("orders.db-wal"), &journal).unwrap();
        std::fs::copy(till._dir.path().join("orders.id"), dir.path().join("orders.id")).unwrap();
        if empty {
            std::fs::write(dir.path().join("orders.db"), b"").unwrap();
        }
        let ledger = open(dir.path(), 64 << 20).unwrap();
        let told = ledger.storage().borrow().set_aside.clone().unwrap();
        assert!(told.contains("orders.db-wal.damaged-1"), "{told}");
        assert_eq!(std::fs::read(dir.path().join("orders.db-wal.damaged-1")).unwrap(), journal);
        assert_eq!(receipt(ledger.accept(vec![order("2", "")]).await.unwrap().remove(0)).seq, 1);
    }
}

#[tokio::test]
async fn a_new_directory_begins_a_ledger_without_alarm() {
    let till = Till::new();
    assert_eq!(till.ledger.storage().borrow().set_aside, None);
}

#[tokio::test]
async fn pages_go_by_place_and_state() {
    let till = Till::new();
    for n in 0..5 {
        till.post(&n.to_string(), "").await;
    }
    till.settle(2).await;
    let seqs = |page: Vec<Record>| page.into_iter().map(|record| record.receipt.seq).collect::<Vec<_>>();
    assert_eq!(seqs(till.ledger.page(None, 3, 200).await.unwrap()), [4, 5]);
    assert_eq!(seqs(till.ledger.page(Some(State::Pending), 0, 2).await.unwrap()), [1, 3]);
    assert_eq!(seqs(till.ledger.page(Some(State::Settled), 0, 2).await.unwrap()), [2]);
}
