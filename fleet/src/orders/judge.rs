//! What is answered for each order: pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use samovar_wire::orders::{IncomingOrder, MAX_BODY_BYTES, OrderResult, Outcome};

/// Longer names are nobody's order numbers.
const LONGEST: usize = 1024;

/// What the database has for a key after the insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) sha256: String,
    /// Which request recorded it.
    pub(super) receipt: String,
    /// Where the device had it when it named its place last.
    pub(super) ledger: String,
    pub(super) seq: u64,
    pub(super) origin: String,
}

impl Stored {
    fn is_at(&self, ledger: &str, seq: u64, origin: &str) -> bool {
        self.ledger == ledger && self.seq == seq && self.origin == origin
    }
}

/// Why an order can never be taken, as code and words; `None` when it can.
pub(super) fn refusal(order: &IncomingOrder) -> Option<(&'static str, String)> {
    for (field, text) in [("id", &order.id), ("key", &order.key)] {
        if text.is_empty() {
            return Some(("invalid-order", format!("{field} is empty")));
        }
    }
    let udl = order.udl.as_ref();
    for (field, text) in [
        ("id", Some(&order.id)),
        ("key", Some(&order.key)),
        ("order_no", Some(&order.order_no)),
        ("udl", udl),
    ] {
        let Some(text) = text else { continue };
        if text.len() > LONGEST {
            return Some(("invalid-order", format!("{field} is longer than {LONGEST} bytes")));
        }
        // PostgreSQL cannot store it, and no till means it.
        if text.contains('\0') {
            return Some(("invalid-order", format!("{field} contains a NUL character")));
        }
    }
    // Place 0 is none: such an order is recorded, and in no range that is compared.
    if i64::try_from(order.seq).is_err() {
        return Some(("invalid-order", format!("seq {} is no place in a ledger", order.seq)));
    }
    let body = order.body.get();
    if body.len() > MAX_BODY_BYTES {
        let detail = format!("the body has {} bytes; {MAX_BODY_BYTES} are the most", body.len());
        return Some(("too-large", detail));
    }
    if !body.starts_with('{') {
        return Some(("invalid-order", "the body is not a JSON object".to_owned()));
    }
    if !order.digest_matches() {
        return Some(("digest-mismatch", "sha256 is not that of the body".to_owned()));
    }
    None
}

/// The user data location of a batch, which all its orders share; the two that differ when they do not. An order or a
/// header that names none does not contradict.
pub(super) fn one_udl<'a>(header: &'a str, orders: &'a [IncomingOrder]) -> Result<(), (&'a str, &'a str)> {
    let named = std::iter::once(header).chain(orders.iter().filter_map(|order| order.udl.as_deref()));
    let mut named = named.filter(|udl| !udl.is_empty());
    let Some(first) = named.next() else { return Ok(()) };
    named.find(|other| *other != first).map_or(Ok(()), |other| Err((first, other)))
}

/// The results, in the order of the batch. `stored` is what the database has for the keys of the batch now.
pub(super) fn results(
    orders: &[IncomingOrder],
    stored: &HashMap<String, Stored>,
    receipt: &str,
) -> Vec<OrderResult> {
    let mut seen = HashSet::new();
    orders
        .iter()
        .map(|order| {
            if let Some((code, detail)) = refusal(order) {
                return result(order, Outcome::Rejected, Some(code), Some(detail));
            }
            let first = seen.insert(order.key.as_str());
            match stored.get(&order.key) {
                // Pruned between insert and read: the sender asks again.
                None => result(order, Outcome::Retry, None, None),
                Some(found) if found.sha256 != order.sha256 => {
                    let detail = "the key is known with other content".to_owned();
                    result(order, Outcome::Conflict, Some("key-reused"), Some(detail))
                }
                Some(found) if first && found.receipt == receipt => {
                    result(order, Outcome::Settled, None, None)
                }
                Some(_) => result(order, Outcome::Duplicate, None, None),
            }
        })
        .collect()
}

/// Duplicates that their device now has in another place than before, such as in a new ledger after a damaged one was
/// salvaged: keys with their new sequence numbers.
pub(super) fn moved<'a>(
    orders: &'a [IncomingOrder],
    results: &[OrderResult],
    stored: &HashMap<String, Stored>,
    (ledger, origin): (&str, &str),
    receipt: &str,
) -> BTreeMap<&'a str, u64> {
    let mut moved = BTreeMap::new();
    // Who names no ledger names no place.
    let results = results.iter().filter(|_| !ledger.is_empty());
    for (order, result) in orders.iter().zip(results) {
        let Some(found) = stored.get(&order.key) else { continue };
        let repeated = result.status == Outcome::Duplicate && found.receipt != receipt;
        if repeated && !found.is_at(ledger, order.seq, origin) {
            moved.entry(order.key.as_str()).or_insert(order.seq);
        }
    }
    moved
}

fn result(order: &IncomingOrder, status: Outcome, code: Option<&str>, detail: Option<String>) -> OrderResult {
    OrderResult { id: order.id.clone(), status, code: code.map(str::to_owned), detail, retry_after_s: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use samovar_wire::encoding::{hex, sha256};
    use serde_json::value::RawValue;

    fn order(id: &str, key: &str, body: &str) -> IncomingOrder {
        IncomingOrder {
            id: id.into(),
            key: key.into(),
            sha256: hex(&sha256(body.as_bytes())),
            order_no: key.into(),
            seq: 1,
            udl: None,
            accepted_at: samovar_wire::Timestamp::from_millis(1),
            body: RawValue::from_string(body.into()).unwrap(),
        }
    }

    fn stored(order: &IncomingOrder, receipt: &str) -> (String, Stored) {
        (order.key.clone(), row(order, receipt))
    }

    fn row(order: &IncomingOrder, receipt: &str) -> Stored {
        Stored {
            sha256: order.sha256.clone(),
            receipt: receipt.into(),
            ledger: "one".into(),
            seq: order.seq,
            origin: "here".into(),
        }
    }

    fn statuses(orders: &[IncomingOrder], known: &HashMap<String, Stored>) -> Vec<Outcome> {
        results(orders, known, "mine").into_iter().map(|result| result.status).collect()
    }

    #[test]
    fn each_order_stands_alone() {
        let orders =
            [order("1", "a", "{}"), order("2", "b", "{}"), order("3", "c", "{}"), order("4", "d", "{}")];
        let other = order("x", "c", "{\"other\": 1}");
        let known = HashMap::from([
            stored(&orders[0], "mine"),
            stored(&orders[1], "theirs"),
            stored(&other, "theirs"),
        ]);
        assert_eq!(
            statuses(&orders, &known),
            [Outcome::Settled, Outcome::Duplicate, Outcome::Conflict, Outcome::Retry]
        );
    }

    #[test]
    fn a_key_twice_in_one_batch_settles_once() {
        let orders = [order("1", "a", "{}"), order("2", "a", "{}"), order("3", "a", "{\"other\": 1}")];
        let known = HashMap::from([stored(&orders[0], "mine")]);
        assert_eq!(statuses(&orders, &known), [Outcome::Settled, Outcome::Duplicate, Outcome::Conflict]);
    }

    #[test]
    fn a_duplicate_from_another_place_has_moved_and_nothing_else_has() {
        let mut orders =
            [order("1", "a", "{}"), order("2", "b", "{}"), order("3", "c", "{}"), order("4", "d", "{}")];
        let known = HashMap::from([
            stored(&orders[0], "theirs"),
            stored(&orders[1], "theirs"),
            stored(&order("x", "c", "{\"other\": 1}"), "theirs"),
            stored(&orders[3], "mine"),
        ]);
        let results = results(&orders, &known, "mine");
        let moved_to = |orders: &[IncomingOrder], ledger| -> Vec<(String, u64)> {
            let moved = moved(orders, &results, &known, (ledger, "here"), "mine");
            moved.into_iter().map(|(key, seq)| (key.to_owned(), seq)).collect()
        };
        assert_eq!(moved_to(&orders, "one"), []);
        assert_eq!(moved_to(&orders, "two"), [("a".to_owned(), 1), ("b".to_owned(), 1)]);
        assert_eq!(moved_to(&orders, ""), []);
        orders[1].seq = 9;
        assert_eq!(moved_to(&orders, "one"), [("b".to_owned(), 9)]);
    }

    #[test]
    fn what_can_never_be_stored_is_rejected_with_a_code() {
        let mut wrong = order("1", "a", "{}");
        wrong.sha256 = "0".repeat(64);
        assert_eq!(refusal(&wrong).unwrap().0, "digest-mismatch");
        assert_eq!(refusal(&order("1", "", "{}")).unwrap().0, "invalid-order");
        assert_eq!(refusal(&order("1", "a\0b", "{}")).unwrap().0, "invalid-order");
        assert_eq!(refusal(&order("1", &"k".repeat(2000), "{}")).unwrap().0, "invalid-order");
        for body in ["[]", "1", "null", "\"{}\"", "true"] {
            assert_eq!(refusal(&order("1", "a", body)).unwrap().0, "invalid-order", "{body}");
        }
        let nowhere = IncomingOrder { seq: u64::MAX, ..order("1", "a", "{}") };
        assert_eq!(refusal(&nowhere).unwrap().0, "invalid-order");
        assert_eq!(refusal(&IncomingOrder { seq: 0, ..order("1", "a", "{}") }), None);
        let body = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert_eq!(refusal(&order("1", "a", &body(MAX_BODY_BYTES + 1))).unwrap().0, "too-large");
        assert_eq!(refusal(&order("1", "a", &body(MAX_BODY_BYTES))), None);
        assert_eq!(refusal(&order("1", "a", " {\"a\" : 1.00}".trim())), None);
    }

    #[test]
    fn all_orders_of_a_batch_and_its_header_name_one_location() {
        let order =
            |udl: Option<&str>| IncomingOrder { udl: udl.map(str::to_owned), ..order("1", "a", "{}") };
        let (us, jp, none) = (|| order(Some("US")), || order(Some("JP")), || order(None));
        assert_eq!(one_udl("US", &[us(), none(), us()]), Ok(()));
        assert_eq!(one_udl("", &[us(), none()]), Ok(()));
        assert_eq!(one_udl("", &[]), Ok(()));
        assert_eq!(one_udl("US", &[us(), jp()]), Err(("US", "JP")));
        assert_eq!(one_udl("", &[none(), jp(), us()]), Err(("JP", "US")));
        assert_eq!(one_udl("US", &[jp()]), Err(("US", "JP")));
    }

    /// What the database does: each key is recorded by the first who brings it.
    fn insert_if_absent(database: &mut HashMap<String, Stored>, orders: &[IncomingOrder], receipt: &str) {
        for order in orders.iter().filter(|order| refusal(order).is_none()) {
            database.entry(order.key.clone()).or_insert(row(order, receipt));
        }
    }

    proptest::proptest! {
        #[test]
        fn however_batches_repeat_and_overlap_each_key_settles_once_and_with_its_first_content(
            batches in proptest::collection::vec(proptest::collection::vec((0..6_u8, 0..3_u8), 1..8), 1..12),
        ) {
            let mut database = HashMap::new();
            let mut settled: HashMap<String, String> = HashMap::new();
            for (number, batch) in batches.iter().enumerate() {
                let receipt = format!("request {number}");
                let orders: Vec<IncomingOrder> = batch
                    .iter()
                    .enumerate()
                    .map(|(id, (key, body))| order(&format!("{number}-{id}"), &format!("key {key}"), &format!("{{\"total\":{body}}}")))
                    .collect();
                insert_if_absent(&mut database, &orders, &receipt);
                let answers = results(&orders, &database, &receipt);
                proptest::prop_assert_eq!(answers.len(), orders.len());
                for (order, answer) in orders.iter().zip(&answers) {
                    proptest::prop_assert_eq!(&answer.id, &order.id);
                    match answer.status {
                        Outcome::Settled => {
                            let before = settled.insert(order.key.clone(), order.sha256.clone());
                            proptest::prop_assert_eq!(before, None, "{} settled twice", order.key);
                        }
                        Outcome::Duplicate => proptest::prop_assert_eq!(settled.get(&order.key), Some(&order.sha256)),
                        Outcome::Conflict => proptest::prop_assert!(settled.get(&order.key) != Some(&order.sha256)),
                        other => proptest::prop_assert!(false, "{:?}", other),
                    }
                }
            }
            proptest::prop_assert_eq!(settled.len(), database.len(), "what is recorded has been answered settled");
        }
    }
}
