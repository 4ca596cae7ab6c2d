//! Which ranges to ask an origin about next, and what its verdicts mean. Pure: facts and answers come in, questions and
//! findings go out.
//!
//! ```text
//! marked buckets ─► sums of up to 16 adjacent buckets ─ match ─────────────────────────► Match
//!                        │ differs                                                 ▲
//!                        ▼                                                         │
//!                   sum of each bucket ─ differs ─► bucket with its keys ─ lists ─► Missing, Strange
//!                                                         │ differs, no lists
//!                                                         ▼
//!                                                   one question per order ─ differs ─► Missing
//! ```
//!
//! An origin may tell the keys at any step. Keys that it lacks end the questions; keys that only it has end them where
//! it has been shown ours, or we have none: else it may lack some of ours besides. Whatever it says of ranges that were
//! not asked about, or twice in different words, is no answer. What is missing is limited to the range by the ledger.
//!
//! Beyond the newest place an origin can have nothing, unless this ledger is a copy that was older than what its origin
//! had seen. A difference that consists of orders which only the origin has is remembered, and left out until somebody
//! asks, everything is due, or the bucket changes.

use crate::orders::ledger::{Extent, Mark, Places, SettledOrder, bucket_of};
use samovar_wire::encoding::hex;
use samovar_wire::reconcile::{
    Digest, KeyDigest, LEAF_PLACES, MAX_RANGES, RangeDigest, RangeVerdict, ReconcileAnswer,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Adjacent buckets whose sums are asked about as one range at first.
const WIDE_BUCKETS: u64 = 16;
/// Buckets whose keys go into one request: about 100 KiB, which a slow line can bear.
const KEYED_BUCKETS: usize = 4;

/// How a range is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Count and digest.
    Sum,
    /// Count, digest and the keys.
    Keys,
    /// Each order for itself.
    Each,
}

/// A range to be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) places: Places,
    pub(super) how: How,
    /// Not asked about before in this pass.
    pub(super) first: bool,
    /// Behind the newest place.
    pub(super) beyond: bool,
}

/// What is known now about a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// Both have the same orders.
    Match(Places),
    /// The origin lacks these keys.
    Missing(Places, Vec<String>),
    /// The origin has these keys, and the device may not. `complete` says that it lacks nothing of ours. Without keys
    /// there is something that the origin does not name.
    Strange { places: Places, keys: Vec<String>, complete: bool },
}

/// A request: its ranges, and what they stand for.
#[derive(Debug, Default)]
pub(super) struct Request {
    ranges: Vec<RangeDigest>,
    steps: Vec<Asked>,
}

/// A step, and the key behind each range when every order is asked about for itself.
#[derive(Debug)]
struct Asked {
    step: Step,
    /// Orders of ours in it.
    count: u64,
    ranges: Vec<(Places, Option<String>)>,
}

/// What is still to be asked in one pass.
#[derive(Debug)]
pub(super) struct Plan {
    queue: VecDeque<Step>,
    /// By bucket: keys that only the origin has, told when it was not yet sure that it has all of ours.
    told: BTreeMap<u64, Vec<String>>,
}

impl Plan {
    /// Begins with the marked buckets and the newest ones: an origin may have lost what it had confirmed, and then it
    /// is most likely the last that it got. `known` differences are asked about as well, or left out.
    pub(super) fn new(marks: &[Mark], extent: Extent, known: bool) -> Self {
        let newest = bucket_of(extent.last);
        let mut buckets: BTreeSet<u64> = marks.iter().map(|mark| mark.bucket).collect();
        if extent.last > 0 {
            buckets.extend(newest.saturating_sub(WIDE_BUCKETS - 1)..=newest + WIDE_BUCKETS);
        }
        for mark in marks.iter().filter(|mark| mark.known && !known) {
            buckets.remove(&mark.bucket);
        }
        let mut queue = VecDeque::new();
        let mut buckets = buckets.into_iter().peekable();
        while let Some(first) = buckets.next() {
            let mut last = first;
            let beyond = first > newest;
            while last - first + 1 < WIDE_BUCKETS
                && (beyond || last != newest)
                && buckets.next_if_eq(&(last + 1)).is_some()
            {
                last += 1;
            }
            if let Some(places) = remembered(first, last, extent) {
                queue.push_back(Step { places, how: How::Sum, first: true, beyond });
            }
        }
        Self { queue, told: BTreeMap::new() }
    }

    /// The steps of the next request; none when the pass is over. Their facts go into a [`Request`].
    pub(super) fn next(&mut self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        while let Some(step) = self.queue.front().copied() {
            let most = match step.how {
                How::Sum => MAX_RANGES,
                How::Keys => KEYED_BUCKETS,
                How::Each => 1,
            };
            if steps.len() >= most || steps.first().is_some_and(|first| first.how != step.how) {
                break;
            }
            self.queue.pop_front();
            steps.push(step);
        }
        steps
    }

    /// Reads an answer. `None` when it says nothing about anything that was asked.
    pub(super) fn answered(&mut self, request: Request, answer: ReconcileAnswer) -> Option<Vec<Finding>> {
        let mut verdicts = verdicts(answer);
        let (mut findings, mut heard) = (Vec::new(), false);
        for asked in request.steps {
            let said: Vec<_> = asked
                .ranges
                .into_iter()
                .map(|(places, key)| (key, verdicts.remove(&places).flatten()))
                .collect();
            // A bucket in which we have nothing gives no question when each order is asked about for itself.
            heard |= said.is_empty() || said.iter().any(|(_, verdict)| verdict.is_some());
            match asked.step.how {
                How::Each => {
                    let told = self.told.remove(&bucket_of(asked.step.places.from));
                    findings.extend(each(asked.step.places, said, told.unwrap_or_default()));
                }
                _ => {
                    for verdict in said.into_iter().filter_map(|(_, verdict)| verdict) {
                        self.judged((asked.step, asked.count), verdict, &mut findings);
                    }
                }
            }
        }
        heard.then_some(findings)
    }

    fn judged(&mut self, (step, count): (Step, u64), verdict: RangeVerdict, findings: &mut Vec<Finding>) {
        let places = step.places;
        // Whether it can know that it lacks nothing of ours.
        let sure = verdict.matches || count == 0 || (step.how == How::Keys && verdict.missing.is_some());
        let missing = verdict.missing.unwrap_or_default();
        let keys = verdict.unknown.unwrap_or_default();
        match (missing.is_empty(), keys.is_empty()) {
            (false, strange_empty) => {
                findings.push(Finding::Missing(places, missing));
                if !strange_empty {
                    findings.push(Finding::Strange { places, keys, complete: false });
                }
            }
            (true, true) if verdict.matches => findings.push(Finding::Match(places)),
            (true, false) if sure => findings.push(Finding::Strange { places, keys, complete: true }),
            // Also with two empty lists: an origin that does not know what our keys are for may always send them.
            (true, _) => {
                if step.how == How::Keys {
                    self.told.insert(bucket_of(places.from), keys);
                }
                self.narrow(step);
            }
        }
    }

    /// Asks more closely, before anything else of this pass.
    fn narrow(&mut self, step: Step) {
        let Places { from, to } = step.places;
        let (first, last) = (bucket_of(from), bucket_of(to));
        let how = match step.how {
            How::Sum if first == last => How::Keys,
            How::Sum => How::Sum,
            How::Keys | How::Each => How::Each,
        };
        for bucket in (first..=last).rev() {
            let whole = bucket_places(bucket);
            let places = Places { from: whole.from.max(from), to: whole.to.min(to) };
            self.queue.push_front(Step { places, how, first: false, beyond: false });
        }
    }
}

const fn bucket_places(bucket: u64) -> Places {
    Places { from: bucket * LEAF_PLACES, to: bucket * LEAF_PLACES + (LEAF_PLACES - 1) }
}

/// The places of these buckets that can still be compared.
fn remembered(first: u64, last: u64, extent: Extent) -> Option<Places> {
    let from = bucket_places(first).from.max(extent.forgotten_to + 1);
    let to = bucket_places(last).to;
    (from <= to).then_some(Places { from, to })
}

/// The marks of whose places nothing is remembered: there is nothing left to ask.
pub(super) fn forgotten(marks: &[Mark], extent: Extent) -> Vec<Mark> {
    marks.iter().filter(|mark| remembered(mark.bucket, mark.bucket, extent).is_none()).copied().collect()
}

/// The marks that lie within these places.
pub(super) fn within(marks: &[Mark], places: Places) -> Vec<Mark> {
    let (first, last) = (bucket_of(places.from), bucket_of(places.to));
    marks.iter().filter(|mark| (first..=last).contains(&mark.bucket)).copied().collect()
}

/// One verdict per range; two that contradict each other are none.
fn verdicts(answer: ReconcileAnswer) -> BTreeMap<Places, Option<RangeVerdict>> {
    let mut verdicts = BTreeMap::new();
    for verdict in answer.ranges {
        let places = Places { from: verdict.from_seq, to: verdict.to_seq };
        let same = verdicts.entry(places).or_insert_with(|| Some(verdict.clone()));
        if *same != Some(verdict) {
            *same = None;
        }
    }
    verdicts
}

/// Reads the verdicts on the orders of one bucket, each asked about for itself. `told` are keys that only the origin
/// has, by what it said of the whole bucket.
fn each(
    places: Places,
    said: Vec<(Option<String>, Option<RangeVerdict>)>,
    told: Vec<String>,
) -> Vec<Finding> {
    let unanswered = said.iter().any(|(_, verdict)| verdict.is_none());
    let (mut missing, mut strange): (Vec<String>, BTreeSet<String>) =
        (Vec::new(), told.into_iter().collect());
    for (key, verdict) in said {
        let (Some(key), Some(verdict)) = (key, verdict) else { continue };
        let unknown = verdict.unknown.unwrap_or_default();
        // In doubt it is sent again: the origin knows a key that it has.
        let has_ours = !unknown.is_empty() && verdict.missing.is_some_and(|missing| !missing.contains(&key));
        if !verdict.matches && !has_ours {
            missing.push(key);
        }
        strange.extend(unknown);
    }
    let keys: Vec<String> = strange.into_iter().collect();
    let complete = missing.is_empty() && !unanswered;
    let lacks = (!missing.is_empty()).then_some(Finding::Missing(places, missing));
    // With all of ours there, the bucket differs by something that need not have a name.
    let more = (complete || !keys.is_empty()).then_some(Finding::Strange { places, keys, complete });
    lacks.into_iter().chain(more).collect()
}

/// Builds a request order by order, so that a range of many buckets is never in memory as a whole.
#[derive(Debug)]
pub(super) struct Sum {
    step: Step,
    count: u64,
    digest: Digest,
    keys: Vec<KeyDigest>,
    each: Vec<(Places, Option<String>, Digest)>,
}

impl Sum {
    pub(super) fn new(step: Step) -> Self {
        Self { step, count: 0, digest: Digest::default(), keys: Vec::new(), each: Vec::new() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn add(&mut self, order: SettledOrder) {
        self.count += 1;
        self.digest.add(&order.key, &order.sha256);
        match self.step.how {
            How::Sum => {}
            How::Keys => {
                self.keys.push(KeyDigest { seq: order.seq, key: order.key, sha256: hex(&order.sha256) });
            }
            How::Each => {
                let mut digest = Digest::default();
                digest.add(&order.key, &order.sha256);
                self.each.push((Places { from: order.seq, to: order.seq }, Some(order.key), digest));
            }
        }
    }
}

impl Request {
    /// Nothing was found worth asking about.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What goes over the wire.
    pub(super) fn take_ranges(&mut self) -> Vec<RangeDigest> {
        std::mem::take(&mut self.ranges)
    }

    /// Adds a range; gives how many orders it holds.
    pub(super) fn push(&mut self, sum: Sum) -> u64 {
        let Sum { step, count, digest, keys, each } = sum;
        let digest_of = |Places { from, to }, count, digest, keys| RangeDigest {
            from_seq: from,
            to_seq: to,
            count,
            digest,
            keys,
        };
        let mut ranges = Vec::new();
        if step.how == How::Each {
            for (places, key, digest) in each {
                self.ranges.push(digest_of(places, 1, digest, None));
                ranges.push((places, key));
            }
        } else {
            let keys = (step.how == How::Keys).then_some(keys);
            self.ranges.push(digest_of(step.places, count, digest, keys));
            ranges.push((step.places, None));
        }
        self.steps.push(Asked { step, count, ranges });
        count
    }
}

#[cfg(test)]
mod tests;
