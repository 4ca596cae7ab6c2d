use super::*;

/// An origin that holds some keys by place and answers as much as it is made to.
struct Origin {
    held: BTreeMap<u64, String>,
    /// Understands `keys` and names what is missing and unknown.
    names: bool,
    requests: Vec<usize>,
}

fn settled(seq: u64) -> SettledOrder {
    let (key, udl) = (format!("k{seq}"), "US".parse().unwrap());
    SettledOrder { seq, sha256: samovar_wire::encoding::sha256(key.as_bytes()), key, udl }
}

fn sum_of(orders: impl Iterator<Item = SettledOrder>) -> (u64, Digest) {
    let (mut count, mut digest) = (0, Digest::default());
    for order in orders {
        digest.add(&order.key, &order.sha256);
        count += 1;
    }
    (count, digest)
}

impl Origin {
    fn with(places: impl Iterator<Item = u64>) -> Self {
        let held = places.map(|seq| (seq, format!("k{seq}"))).collect();
        Self { held, names: true, requests: Vec::new() }
    }

    fn answer(&mut self, ranges: &[RangeDigest]) -> ReconcileAnswer {
        assert!(!ranges.is_empty() && ranges.len() <= MAX_RANGES);
        self.requests.push(ranges.len());
        let ranges = ranges.iter().map(|range| self.verdict(range)).collect();
        ReconcileAnswer { ranges, server_time: None }
    }

    fn verdict(&self, range: &RangeDigest) -> RangeVerdict {
        let held: Vec<u64> = self.held.range(range.from_seq..=range.to_seq).map(|(seq, _)| *seq).collect();
        let (count, digest) = sum_of(held.iter().map(|seq| settled(*seq)));
        let matches = (count, digest) == (range.count, range.digest);
        let asked = range.keys.as_ref().filter(|_| self.names && !matches);
        let missing = asked.map(|keys| {
            keys.iter().filter(|key| !held.contains(&key.seq)).map(|key| key.key.clone()).collect()
        });
        let unknown = asked.map(|keys| {
            let ours: Vec<u64> = keys.iter().map(|key| key.seq).collect();
            held.iter().filter(|seq| !ours.contains(seq)).map(|seq| format!("k{seq}")).collect()
        });
        RangeVerdict { from_seq: range.from_seq, to_seq: range.to_seq, matches, missing, unknown }
    }
}

/// Goes through a pass of a device that holds these places.
fn pass(ours: &[u64], marks: &[u64], origin: &mut Origin) -> Vec<Finding> {
    let marks: Vec<_> =
        marks.iter().map(|bucket| Mark { bucket: *bucket, generation: 0, known: false }).collect();
    let extent = Extent { forgotten_to: 0, last: ours.iter().copied().max().unwrap_or(0) };
    let mut plan = Plan::new(&marks, extent, true);
    let mut findings = Vec::new();
    loop {
        let steps = plan.next();
        if steps.is_empty() {
            return findings;
        }
        let mut request = request(ours, steps);
        let ranges = request.take_ranges();
        let answer = if ranges.is_empty() {
            ReconcileAnswer { ranges: Vec::new(), server_time: None }
        } else {
            origin.answer(&ranges)
        };
        findings.extend(plan.answered(request, answer).unwrap());
    }
}

fn request(ours: &[u64], steps: Vec<Step>) -> Request {
    let mut request = Request::default();
    for step in steps {
        let mut sum = Sum::new(step);
        let inside = ours.iter().filter(|seq| (step.places.from..=step.places.to).contains(seq));
        inside.for_each(|seq| sum.add(settled(*seq)));
        request.push(sum);
    }
    request
}

fn missing(findings: &[Finding]) -> Vec<&str> {
    let keys = findings.iter().filter_map(|finding| match finding {
        Finding::Missing(_, keys) => Some(keys),
        _ => None,
    });
    keys.flatten().map(String::as_str).collect()
}

fn matched_buckets(findings: &[Finding]) -> BTreeSet<u64> {
    let places = findings.iter().filter_map(|finding| match finding {
        Finding::Match(places) => Some(bucket_of(places.from)..=bucket_of(places.to)),
        _ => None,
    });
    places.flatten().collect()
}

#[test]
fn a_hundred_thousand_orders_that_match_cost_one_request() {
    let ours: Vec<u64> = (1..=100_000).collect();
    let mut origin = Origin::with(1..=100_000);
    let findings = pass(&ours, &(0..=390).collect::<Vec<_>>(), &mut origin);
    assert_eq!(origin.requests, [26]);
    assert_eq!(matched_buckets(&findings), (0..=406).collect(), "and what would lie beyond");
}

#[test]
fn one_lost_order_among_a_hundred_thousand_is_found_in_three_rounds() {
    let ours: Vec<u64> = (1..=100_000).collect();
    let mut origin = Origin::with((1..=100_000).filter(|seq| *seq != 54_321));
    let findings = pass(&ours, &(0..=390).collect::<Vec<_>>(), &mut origin);
    assert_eq!(missing(&findings), ["k54321"]);
    assert_eq!(origin.requests, [26, 16, 1]);
    assert_eq!(matched_buckets(&findings), (0..=406).filter(|bucket| *bucket != 212).collect());
}

#[test]
fn an_origin_that_names_nothing_is_asked_order_by_order() {
    let ours: Vec<u64> = (1..=1_000).collect();
    let mut origin = Origin::with((1..=1_000).filter(|seq| ![7, 300, 301].contains(seq)));
    origin.names = false;
    let findings = pass(&ours, &[0, 1, 2, 3], &mut origin);
    assert_eq!(missing(&findings), ["k7", "k300", "k301"]);
}

#[test]
fn what_only_the_origin_has_is_named_or_at_least_noticed() {
    let ours: Vec<u64> = (1..=100).filter(|seq| *seq != 9).collect();
    let mut origin = Origin::with(1..=100);
    let (places, beyond) = (Places { from: 1, to: 255 }, Finding::Match(Places { from: 256, to: 4_351 }));
    let strange = |keys| Finding::Strange { places, keys, complete: true };
    let findings = pass(&ours, &[0], &mut origin);
    assert_eq!(findings, [beyond.clone(), strange(vec!["k9".into()])]);
    origin.names = false;
    let findings = pass(&ours, &[0], &mut origin);
    assert_eq!(findings, [beyond, strange(Vec::new())]);
}

#[test]
fn days_of_gaps_are_asked_about_and_the_newest_always() {
    let mut origin = Origin::with(0..0);
    origin.names = false;
    let marks: Vec<_> = [3, 4, 900].map(|bucket| Mark { bucket, generation: 1, known: false }).into();
    let mut plan = Plan::new(&marks, Extent { forgotten_to: 800, last: 1_000_000 }, true);
    let asked: Vec<_> = plan.next().into_iter().map(|step| (step.places.from, step.places.to)).collect();
    assert_eq!(asked, [(801, 1_279), (230_400, 230_655), (996_096, 1_000_191), (1_000_192, 1_004_287)]);
}

#[test]
fn what_is_forgotten_is_not_asked_about() {
    let marks: Vec<_> = (0..3).map(|bucket| Mark { bucket, generation: 1, known: false }).collect();
    let extent = Extent { forgotten_to: 300, last: 0 };
    assert_eq!(forgotten(&marks, extent), marks[..1]);
    let asked: Vec<_> = Plan::new(&marks, extent, true).next().iter().map(|step| step.places).collect();
    assert_eq!(asked, [Places { from: 301, to: 767 }]);
    let mut nothing = Plan::new(&[], Extent::default(), true);
    assert!(nothing.next().is_empty());
}

fn verdict(from_seq: u64, to_seq: u64, matches: bool, missing: Option<&str>) -> RangeVerdict {
    let missing = missing.map(|key| vec![key.to_owned()]);
    RangeVerdict { from_seq, to_seq, matches, missing, unknown: None }
}

/// What one answer to the first request of a device with 600 orders is taken for.
fn taken(verdicts: Vec<RangeVerdict>) -> Option<Vec<Finding>> {
    let marks = [Mark { bucket: 0, generation: 0, known: false }];
    let ours: Vec<u64> = (1..=600).collect();
    let mut plan = Plan::new(&marks, Extent { forgotten_to: 0, last: 600 }, true);
    let request = request(&ours, plan.next());
    plan.answered(request, ReconcileAnswer { ranges: verdicts, server_time: None })
}

#[test]
fn what_was_not_asked_is_not_heard() {
    assert_eq!(taken(Vec::new()), None);
    assert_eq!(taken(vec![verdict(1, 255, true, None), verdict(1, u64::MAX, true, None)]), None);
}

#[test]
fn a_range_answered_twice_in_different_words_is_not_answered() {
    assert_eq!(taken(vec![verdict(1, 767, true, None), verdict(1, 767, false, None)]), None);
    let places = Places { from: 1, to: 767 };
    let same = vec![verdict(1, 767, true, None), verdict(1, 767, true, None)];
    assert_eq!(taken(same), Some(vec![Finding::Match(places)]));
}

#[test]
fn a_match_that_names_missing_keys_is_no_match() {
    let places = Places { from: 1, to: 767 };
    let found = taken(vec![verdict(1, 767, true, Some("k3"))]);
    assert_eq!(found, Some(vec![Finding::Missing(places, vec!["k3".into()])]));
}

#[test]
fn keys_named_at_the_first_question_are_heard_at_once() {
    let places = Places { from: 1, to: 767 };
    let found = taken(vec![verdict(1, 767, false, Some("k3"))]);
    assert_eq!(found, Some(vec![Finding::Missing(places, vec!["k3".into()])]));
}

#[test]
fn keys_that_only_the_origin_has_do_not_hide_what_it_lacks() {
    // It says of every range what it has besides, and cannot know what it lacks.
    let ours: Vec<u64> = (1..=600).collect();
    let mut held: BTreeMap<u64, String> =
        ours.iter().filter(|seq| **seq != 7).map(|seq| (*seq, format!("k{seq}"))).collect();
    held.insert(9, "foreign".into());
    let marks = [0, 1, 2].map(|bucket| Mark { bucket, generation: 0, known: false });
    let mut plan = Plan::new(&marks, Extent { forgotten_to: 0, last: 600 }, true);
    let mut findings = Vec::new();
    loop {
        let steps = plan.next();
        if steps.is_empty() {
            break;
        }
        let mut request = request(&ours, steps);
        let ranges = request.take_ranges().into_iter().map(|range| {
            let here = held.range(range.from_seq..=range.to_seq);
            let (count, digest) =
                sum_of(here.clone().map(|(seq, key)| SettledOrder { key: key.clone(), ..settled(*seq) }));
            let matches = (count, digest) == (range.count, range.digest);
            let foreign =
                || here.clone().any(|(_, key)| key == "foreign").then(|| vec!["foreign".to_owned()]);
            let unknown = (!matches).then(foreign).flatten();
            RangeVerdict { matches, unknown, ..verdict(range.from_seq, range.to_seq, matches, None) }
        });
        let answer = ReconcileAnswer { ranges: ranges.collect(), server_time: None };
        findings.extend(plan.answered(request, answer).unwrap());
    }
    assert_eq!(missing(&findings), ["k7", "k9"], "its order of place 9 is another's");
    let strange = findings.iter().find_map(|finding| match finding {
        Finding::Strange { keys, complete, .. } => Some((keys.clone(), *complete)),
        _ => None,
    });
    assert_eq!(strange, Some((vec!["foreign".to_owned()], false)));
}

#[test]
fn a_single_place_with_ours_and_another_is_not_sent_again() {
    let said = |missing: &[&str], unknown: &[&str]| {
        let keys = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect());
        let verdict =
            RangeVerdict { missing: keys(missing), unknown: keys(unknown), ..verdict(9, 9, false, None) };
        each(Places { from: 1, to: 255 }, vec![(Some("k9".into()), Some(verdict))], Vec::new())
    };
    let places = Places { from: 1, to: 255 };
    let strange = Finding::Strange { places, keys: vec!["foreign".into()], complete: true };
    assert_eq!(said(&[], &["foreign"]), [strange]);
    assert_eq!(said(&[], &[]), [Finding::Missing(places, vec!["k9".into()])], "two empty lists say nothing");
    assert!(said(&["k9"], &["foreign"]).contains(&Finding::Missing(places, vec!["k9".into()])));
}

#[test]
fn a_difference_that_is_known_is_left_out_until_it_is_wanted() {
    let mark = |bucket, known| Mark { bucket, generation: 1, known };
    let marks = [mark(1, true), mark(2, false), mark(4, true)];
    let extent = Extent { forgotten_to: 0, last: 600 };
    let asked = |known| -> Vec<(u64, u64, bool)> {
        let steps = Plan::new(&marks, extent, known).next();
        steps.iter().map(|step| (step.places.from, step.places.to, step.beyond)).collect()
    };
    assert_eq!(asked(false), [(1, 255, false), (512, 767, false), (768, 1_023, true), (1_280, 4_863, true)]);
    assert_eq!(asked(true), [(1, 767, false), (768, 4_863, true)]);
}

proptest::proptest! {
    /// Whatever differs, everything that the origin lacks is found, and nothing else; and the pass ends.
    #[test]
    fn everything_that_is_missing_is_found_and_nothing_else(
        ours in proptest::collection::btree_set(1_u64..6_000, 0..400),
        held in proptest::collection::btree_set(1_u64..6_000, 0..400),
        names in proptest::bool::ANY,
    ) {
        let ours: Vec<u64> = ours.into_iter().collect();
        // Most of ours are there.
        let mut origin = Origin::with(
            ours.iter().copied().filter(|seq| seq % 7 != 0).chain(held.iter().copied()),
        );
        origin.names = names;
        let marks: Vec<u64> = (0..=23).collect();
        let findings = pass(&ours, &marks, &mut origin);
        let found: BTreeSet<String> = missing(&findings).into_iter().map(str::to_owned).collect();
        let expected = ours.iter().filter(|seq| !origin.held.contains_key(seq)).map(|seq| format!("k{seq}"));
        proptest::prop_assert_eq!(found, expected.collect());
        let same = |bucket: &u64| {
            let inside = bucket * LEAF_PLACES..(bucket + 1) * LEAF_PLACES;
            let of = |seqs: &mut dyn Iterator<Item = u64>| -> Vec<u64> {
                seqs.filter(|seq| inside.contains(seq)).collect()
            };
            of(&mut ours.iter().copied()) == of(&mut origin.held.keys().copied())
        };
        let matched = matched_buckets(&findings);
        for bucket in marks {
            proptest::prop_assert_eq!(matched.contains(&bucket), same(&bucket));
        }
    }
}
