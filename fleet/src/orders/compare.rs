//! What is answered to a comparison of one ledger: pure.
//!
//! See [`samovar_wire::reconcile`] for what both sides mean. A key is the device's, whatever ledger it came in: a key
//! that a range lists and that is recorded under another place of the same device is not missing, it has moved.

use std::collections::{HashMap, HashSet};

use samovar_wire::encoding::sha256_from_hex;
use samovar_wire::reconcile::{
    Digest, KeyDigest, LEAF_PLACES, MAX_KEYS, MAX_RANGES, MAX_SEQ, RangeDigest, RangeVerdict,
    ReconcileRequest,
};

/// Longest key and ledger that anything was recorded under.
const LONGEST: usize = 1024;
/// Rows of one range that are kept for its lists. A ledger has one order in each place; a device that says otherwise
/// gets no lists.
const LISTED: usize = 4 * 256;

/// A request that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("ledger is empty, longer than {LONGEST} bytes, or contains a NUL character")]
    Ledger,
    #[error("{0} ranges; {MAX_RANGES} are the most")]
    Ranges(usize),
    #[error("{0} keys; {MAX_KEYS} are the most in one request")]
    Keys(usize),
    #[error("the range {0} to {1} ends before it begins, or beyond 2^53")]
    Backwards(u64, u64),
    #[error("the ranges {0} to {1} and {2} to {3} overlap")]
    Overlap(u64, u64, u64, u64),
    #[error("the range {0} to {1} has keys and more than {LEAF_PLACES} places")]
    Wide(u64, u64),
    #[error("the range {0} to {1} says {2} orders and lists {3} keys")]
    Count(u64, u64, u64, usize),
    #[error(
        "the range {0} to {1} lists a place outside of it, a place or a key twice, or a key that nobody has"
    )]
    Listed(u64, u64),
}

/// Refuses what makes no sense, before anything is looked up.
pub(super) fn check(request: &ReconcileRequest) -> Result<(), Unfit> {
    let ledger = &request.ledger;
    if ledger.is_empty() || ledger.len() > LONGEST || ledger.contains('\0') {
        return Err(Unfit::Ledger);
    }
    if request.ranges.len() > MAX_RANGES {
        return Err(Unfit::Ranges(request.ranges.len()));
    }
    let keys = request.ranges.iter().flat_map(|range| &range.keys).map(Vec::len).sum();
    if keys > MAX_KEYS {
        return Err(Unfit::Keys(keys));
    }
    for range in &request.ranges {
        check_range(range)?;
    }
    let mut places: Vec<_> = request.ranges.iter().map(|range| (range.from_seq, range.to_seq)).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[1].0 <= pair[0].1) {
        Some(pair) => Err(Unfit::Overlap(pair[0].0, pair[0].1, pair[1].0, pair[1].1)),
        None => Ok(()),
    }
}

fn check_range(range: &RangeDigest) -> Result<(), Unfit> {
    let (from, to) = (range.from_seq, range.to_seq);
    if from > to || to > MAX_SEQ {
        return Err(Unfit::Backwards(from, to));
    }
    let Some(keys) = &range.keys else { return Ok(()) };
    if !is_leaf(range) {
        return Err(Unfit::Wide(from, to));
    }
    if u64::try_from(keys.len()) != Ok(range.count) {
        return Err(Unfit::Count(from, to, range.count, keys.len()));
    }
    let (mut places, mut names) = (HashSet::new(), HashSet::new());
    for KeyDigest { seq, key, .. } in keys {
        let placed = (from..=to).contains(seq) && places.insert(*seq);
        let named = !key.is_empty() && key.len() <= LONGEST && !key.contains('\0') && names.insert(key);
        if !placed || !named {
            return Err(Unfit::Listed(from, to));
        }
    }
    Ok(())
}

/// Whether a range is small enough for lists.
fn is_leaf(range: &RangeDigest) -> bool {
    range.to_seq.checked_sub(range.from_seq).is_some_and(|more| more < LEAF_PLACES)
}

/// What is recorded in one range.
#[derive(Debug, Default)]
pub(super) struct Found {
    count: u64,
    digest: Digest,
    keep: bool,
    rows: Vec<KeyDigest>,
}

impl Found {
    /// Nothing yet; the orders themselves are kept only for a leaf.
    pub(super) fn of(range: &RangeDigest) -> Self {
        Self { keep: is_leaf(range), ..Self::default() }
    }

    /// One more.
    pub(super) fn add(&mut self, row: KeyDigest, body_sha256: &[u8; 32]) {
        self.count += 1;
        self.digest.add(&row.key, body_sha256);
        if self.keep && self.rows.len() < LISTED {
            self.rows.push(row);
        }
    }

    fn is_listed(&self) -> bool {
        u64::try_from(self.rows.len()) == Ok(self.count)
    }
}

impl Found {
    /// The key of the only order that the device lacks, when that is all the difference: then its part of the sum is
    /// what the device's sum lacks.
    fn one_more_than(&self, range: &RangeDigest) -> Option<String> {
        if !self.is_listed() || self.count != range.count + 1 {
            return None;
        }
        let completes = |row: &&KeyDigest| {
            let mut sum = range.digest;
            sha256_from_hex(&row.sha256).is_some_and(|sha256| {
                sum.add(&row.key, &sha256);
                sum == self.digest
            })
        };
        self.rows.iter().find(completes).map(|row| row.key.clone())
    }
}

/// The keys that a range lists and that are not recorded just there: they are missing, or they have moved.
pub(super) fn astray<'a>(range: &'a RangeDigest, found: &Found) -> Vec<&'a KeyDigest> {
    let here: HashSet<&KeyDigest> = found.rows.iter().collect();
    range.keys.iter().flatten().filter(|key| !here.contains(key)).collect()
}

/// The answer for one range. `known` are those of [`astray`] that this device's orders have under some other place
/// with the same content; `listed` are all keys of the whole request.
pub(super) fn verdict(
    range: &RangeDigest,
    found: &Found,
    known: &HashSet<&str>,
    listed: &HashSet<&str>,
) -> RangeVerdict {
    let (from_seq, to_seq) = (range.from_seq, range.to_seq);
    let answer = |matches, missing, unknown| RangeVerdict { from_seq, to_seq, matches, missing, unknown };
    let equal = range.count == found.count && range.digest == found.digest;
    let keys = || found.rows.iter().map(|row| row.key.clone());
    if range.keys.is_none() {
        return match (equal, range.count) {
            (true, _) => answer(true, None, None),
            (false, 0) if is_leaf(range) && found.is_listed() => {
                answer(false, Some(Vec::new()), Some(keys().collect()))
            }
            _ => match found.one_more_than(range) {
                Some(key) => answer(false, Some(Vec::new()), Some(vec![key])),
                None => answer(false, None, None),
            },
        };
    }
    let astray = astray(range, found).into_iter().map(|key| &key.key);
    let missing: Vec<String> = astray.filter(|key| !known.contains(key.as_str())).cloned().collect();
    let unknown: Vec<String> = keys().filter(|key| !listed.contains(key.as_str())).collect();
    if missing.is_empty() && unknown.is_empty() && found.is_listed() {
        return answer(true, None, None);
    }
    answer(false, Some(missing), found.is_listed().then_some(unknown))
}

/// Where the device has the orders that have moved: key and place.
pub(super) fn moved<'a>(ranges: &'a [RangeDigest], known: &HashSet<&str>) -> HashMap<&'a str, u64> {
    let keys = ranges.iter().flat_map(|range| &range.keys).flatten();
    keys.filter(|key| known.contains(key.key.as_str())).map(|key| (key.key.as_str(), key.seq)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use samovar_wire::encoding::{hex, sha256};

    fn key(seq: u64, key: &str, body: &str) -> KeyDigest {
        KeyDigest { seq, key: key.into(), sha256: hex(&sha256(body.as_bytes())) }
    }

    fn range(from_seq: u64, to_seq: u64, orders: &[KeyDigest]) -> RangeDigest {
        let found = found(from_seq, to_seq, orders);
        RangeDigest { from_seq, to_seq, count: found.count, digest: found.digest, keys: None }
    }

    fn with_keys(range: &RangeDigest, orders: &[KeyDigest]) -> RangeDigest {
        RangeDigest { keys: Some(orders.to_vec()), ..range.clone() }
    }

    fn found(from_seq: u64, to_seq: u64, orders: &[KeyDigest]) -> Found {
        let bare = RangeDigest { from_seq, to_seq, count: 0, digest: Digest::default(), keys: None };
        let mut found = Found::of(&bare);
        for order in orders {
            found.add(order.clone(), &sha256_from_hex(&order.sha256).unwrap());
        }
        found
    }

    fn answer(range: &RangeDigest, found: &Found, elsewhere: &[&str]) -> RangeVerdict {
        let listed = range.keys.iter().flatten().map(|key| key.key.as_str()).collect();
        verdict(range, found, &elsewhere.iter().copied().collect(), &listed)
    }

    type Lists<'a> = Option<&'a [String]>;

    fn lists(verdict: &RangeVerdict) -> (bool, Lists<'_>, Lists<'_>) {
        (verdict.matches, verdict.missing.as_deref(), verdict.unknown.as_deref())
    }

    #[test]
    fn a_sum_alone_says_only_whether_both_have_the_same() {
        let orders = [key(1, "a", "{}"), key(2, "b", "{}")];
        let asked = range(1, 9, &orders);
        assert_eq!(lists(&answer(&asked, &found(1, 9, &orders), &[])), (true, None, None));
        assert_eq!(lists(&answer(&asked, &found(1, 9, &orders[..1]), &[])), (false, None, None));
        let other = [key(1, "a", "{}"), key(2, "b", "[]")];
        assert_eq!(lists(&answer(&asked, &found(1, 9, &other), &[])), (false, None, None));
    }

    #[test]
    fn one_order_that_only_the_origin_has_is_named_by_the_difference_of_the_sums() {
        let here = [key(1, "a", "{}"), key(2, "b", "{}"), key(3, "c", "{}")];
        let found = found(1, 9, &here);
        let without_b = [here[0].clone(), here[2].clone()];
        let named = answer(&range(1, 9, &without_b), &found, &[]);
        assert_eq!(lists(&named), (false, Some(&[][..]), Some(&["b".to_owned()][..])));
        let another_too = [here[0].clone(), key(5, "d", "{}")];
        assert_eq!(lists(&answer(&range(1, 9, &another_too), &found, &[])), (false, None, None));
        assert_eq!(lists(&answer(&range(1, 9, &here[..1]), &found, &[])), (false, None, None));
    }

    #[test]
    fn a_leaf_in_which_the_device_has_nothing_is_listed_and_a_wide_range_is_not() {
        let here = [key(3, "a", "{}"), key(4, "b", "{}")];
        let leaf = answer(&range(1, 256, &[]), &found(1, 256, &here), &[]);
        assert_eq!(lists(&leaf), (false, Some(&[][..]), Some(&["a".to_owned(), "b".to_owned()][..])));
        assert_eq!(lists(&answer(&range(1, 257, &[]), &found(1, 257, &here), &[])), (false, None, None));
        assert_eq!(lists(&answer(&range(1, 9, &[]), &found(1, 9, &[]), &[])), (true, None, None));
    }

    #[test]
    fn other_content_is_missing_and_a_key_that_has_moved_is_not() {
        let theirs =
            [key(1, "same", "{}"), key(2, "other", "{}"), key(3, "moved", "{}"), key(4, "lost", "{}")];
        let here = [key(1, "same", "{}"), key(2, "other", "[]"), key(5, "more", "{}")];
        let asked = with_keys(&range(1, 9, &theirs), &theirs);
        let found = found(1, 9, &here);
        let astray: Vec<_> = astray(&asked, &found).into_iter().map(|key| key.key.as_str()).collect();
        assert_eq!(astray, ["other", "moved", "lost"]);
        let verdict = answer(&asked, &found, &["moved"]);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            lists(&verdict),
            (false, Some(&names(&["other", "lost"])[..]), Some(&names(&["more"])[..]))
        );
        let ranges = [asked];
        assert_eq!(moved(&ranges, &HashSet::from(["moved"])), HashMap::from([("moved", 3)]));
    }

    #[test]
    fn a_leaf_whose_orders_have_all_moved_matches_from_now_on() {
        let theirs = [key(1, "a", "{}"), key(2, "b", "{}")];
        let asked = with_keys(&range(1, 2, &theirs), &theirs);
        assert!(answer(&asked, &found(1, 2, &[]), &["a", "b"]).matches);
        let swapped = [key(2, "a", "{}"), key(1, "b", "{}")];
        assert!(answer(&asked, &found(1, 2, &swapped), &["a", "b"]).matches);
    }

    #[test]
    fn more_orders_than_places_give_no_list_of_what_is_unknown() {
        let here: Vec<_> = (0..=LISTED).map(|number| key(1, &format!("k{number}"), "{}")).collect();
        let asked = with_keys(&range(1, 1, &here[..1]), &here[..1]);
        assert_eq!(lists(&answer(&asked, &found(1, 1, &here), &[])), (false, Some(&[][..]), None));
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused_with_words() {
        let one = [key(1, "a", "{}")];
        let request = |ranges: Vec<RangeDigest>| ReconcileRequest {
            device: "POS-1".parse().unwrap(),
            ledger: "l".into(),
            ranges,
        };
        let check = |ranges| check(&request(ranges));
        assert_eq!(check(vec![range(5, 9, &[]), range(1, 4, &[]), range(10, MAX_SEQ, &[])]), Ok(()));
        assert_eq!(check(vec![]), Ok(()));
        assert_eq!(check(vec![range(2, 1, &[])]), Err(Unfit::Backwards(2, 1)));
        assert_eq!(check(vec![range(1, MAX_SEQ + 1, &[])]), Err(Unfit::Backwards(1, MAX_SEQ + 1)));
        assert_eq!(check(vec![range(4, 9, &[]), range(1, 4, &[])]), Err(Unfit::Overlap(1, 4, 4, 9)));
        let many = (0..300).map(|seq| range(seq, seq, &[])).collect();
        assert_eq!(check(many), Err(Unfit::Ranges(300)));
        assert_eq!(check(vec![with_keys(&range(1, 257, &one), &one)]), Err(Unfit::Wide(1, 257)));
        assert_eq!(check(vec![with_keys(&range(1, 2, &one), &[])]), Err(Unfit::Count(1, 2, 1, 0)));
        for bad in [
            [key(9, "a", "{}")],
            [key(1, "", "{}")],
            [key(1, "a\0", "{}")],
            [key(1, &"k".repeat(1025), "{}")],
        ] {
            assert_eq!(check(vec![with_keys(&range(1, 2, &one), &bad)]), Err(Unfit::Listed(1, 2)));
        }
        let twice = [key(1, "a", "{}"), key(2, "a", "{}")];
        assert_eq!(check(vec![with_keys(&range(1, 2, &twice), &twice)]), Err(Unfit::Listed(1, 2)));
        for ledger in [String::new(), "a\0b".into(), "l".repeat(1025)] {
            assert_eq!(super::check(&ReconcileRequest { ledger, ..request(vec![]) }), Err(Unfit::Ledger));
        }
        let leaf = |from: u64| {
            let keys: Vec<_> = (from..from + 256).map(|seq| key(seq, &seq.to_string(), "{}")).collect();
            with_keys(&range(from, from + 255, &keys), &keys)
        };
        assert_eq!(check((0..16).map(|number| leaf(number * 256)).collect()), Ok(()));
        assert_eq!(check((0..17).map(|number| leaf(number * 256)).collect()), Err(Unfit::Keys(17 * 256)));
    }

    proptest::proptest! {
        #[test]
        fn a_leaf_with_keys_is_answered_exactly(
            theirs in proptest::collection::btree_map(0..40_u64, 0..2_u8, 0..40),
            here in proptest::collection::btree_map(0..40_u64, 0..2_u8, 0..40),
        ) {
            let orders = |of: &std::collections::BTreeMap<u64, u8>| -> Vec<KeyDigest> {
                of.iter().map(|(seq, body)| key(*seq, &format!("k{seq}"), &body.to_string())).collect()
            };
            let (device, origin) = (orders(&theirs), orders(&here));
            let asked = with_keys(&range(0, 39, &device), &device);
            let verdict = answer(&asked, &found(0, 39, &origin), &[]);
            let missing: Vec<_> =
                device.iter().filter(|order| !origin.contains(order)).map(|order| order.key.clone()).collect();
            let unknown: Vec<_> = origin
                .iter()
                .filter(|order| device.iter().all(|other| other.key != order.key))
                .map(|order| order.key.clone())
                .collect();
            proptest::prop_assert_eq!(verdict.matches, missing.is_empty() && unknown.is_empty());
            proptest::prop_assert_eq!(verdict.matches, range(0, 39, &origin).digest == asked.digest && here.len() == theirs.len());
            if !verdict.matches {
                proptest::prop_assert_eq!((verdict.missing, verdict.unknown), (Some(missing), Some(unknown)));
            }
        }
    }
}
