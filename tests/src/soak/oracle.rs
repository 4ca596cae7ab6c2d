//! The judge: what the tills were told, what the origins recorded and what the ledger says, held against each other.
//! Pure: the evidence comes in, the verdict goes out.
//!
//! The promise it holds the agent to: every order acknowledged with a 2xx is recorded exactly once over all origins
//! together, or is still waiting (pending, held) or quarantined in the ledger. Nothing is recorded that no till sent,
//! and nothing is called settled that its origin does not have.

use crate::origin::journal::Recorded;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What the ledger says of one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerOrder {
    /// Its key.
    pub key: String,
    /// Digest of its body.
    pub sha256: String,
    /// `pending`, `sending`, `held`, `quarantined`, `settled`, `discarded`.
    pub state: String,
    /// The origin it is bound to.
    pub origin: Option<String>,
    /// It came under a key that another order had.
    pub conflict: bool,
}

/// Everything the judge looks at.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Every content that a till sent, by key.
    pub sent: BTreeMap<String, BTreeSet<String>>,
    /// Digest of the content that was acknowledged, by key.
    pub acknowledged: BTreeMap<String, String>,
    /// What each origin recorded, as often as it recorded it.
    pub origins: BTreeMap<String, Vec<Recorded>>,
    /// The whole ledger.
    pub ledger: Vec<LedgerOrder>,
}

/// What is wrong, by key; nothing is, when everything is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, recorded nowhere and not waiting in the ledger either.
    pub lost: Vec<String>,
    /// Recorded more than once, at one origin or at two.
    pub doubled: Vec<String>,
    /// Recorded with other content than was acknowledged.
    pub altered: Vec<String>,
    /// Recorded, and no till ever sent it.
    pub strangers: Vec<String>,
    /// Settled in the ledger; its origin does not have it.
    pub unfounded: Vec<String>,
    /// Acknowledged or recorded; the ledger knows nothing of it.
    pub forgotten: Vec<String>,
    /// Quarantined in the ledger, and recorded all the same.
    pub refused_yet_recorded: Vec<String>,
    /// Recorded before the order on which it depends, at the same origin.
    pub out_of_turn: Vec<String>,
}

impl Verdict {
    /// Whether the promise was kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("altered", &self.altered),
            ("strangers", &self.strangers),
            ("settled but not there", &self.unfounded),
            ("forgotten", &self.forgotten),
            ("refused yet recorded", &self.refused_yet_recorded),
            ("out of turn", &self.out_of_turn),
        ];
        for (name, keys) in lists {
            let some: Vec<_> = keys.iter().take(5).collect();
            let example = if some.is_empty() { String::new() } else { format!(" {some:?}") };
            write!(f, "{name} {}{example}; ", keys.len())?;
        }
        Ok(())
    }
}

/// Judges.
#[must_use]
pub fn judge(evidence: &Evidence) -> Verdict {
    let records = || evidence.origins.values().flatten();
    let mut by_key: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for order in records() {
        *by_key.entry((&order.device, &order.key)).or_default() += 1;
    }
    let recorded: BTreeSet<(&str, &str)> =
        records().map(|order| (order.key.as_str(), order.sha256.as_str())).collect();
    let at_origin: BTreeSet<(&str, &str)> = evidence
        .origins
        .iter()
        .flat_map(|(origin, orders)| orders.iter().map(|order| (origin.as_str(), order.key.as_str())))
        .collect();
    let firsts: BTreeMap<&str, &LedgerOrder> = evidence
        .ledger
        .iter()
        .filter(|order| !order.conflict)
        .map(|order| (order.key.as_str(), order))
        .collect();
    let waits = |key: &str, sha256: &str| {
        let waiting = |order: &&LedgerOrder| {
            order.sha256 == sha256
                && ["pending", "sending", "held", "quarantined"].contains(&order.state.as_str())
        };
        firsts.get(key).copied().filter(|order| waiting(order)).is_some()
    };
    let in_state = |state: &'static str| firsts.values().filter(move |order| order.state == state);
    let known = evidence.acknowledged.keys().map(String::as_str).chain(records().map(|o| o.key.as_str()));
    Verdict {
        lost: keys(
            evidence
                .acknowledged
                .iter()
                .filter(|(key, sha256)| {
                    !recorded.contains(&(key.as_str(), sha256.as_str())) && !waits(key, sha256)
                })
                .map(|(key, _)| key.as_str()),
        ),
        doubled: keys(by_key.iter().filter(|(_, times)| **times > 1).map(|((_, key), _)| *key)),
        altered: keys(
            records()
                .filter(|order| {
                    evidence.acknowledged.get(&order.key).is_some_and(|told| *told != order.sha256)
                })
                .map(|order| order.key.as_str()),
        ),
        strangers: keys(
            records()
                .filter(|order| {
                    !evidence.sent.get(&order.key).is_some_and(|sent| sent.contains(&order.sha256))
                })
                .map(|order| order.key.as_str()),
        ),
        unfounded: keys(
            in_state("settled")
                .filter(|order| {
                    !at_origin.contains(&(order.origin.as_deref().unwrap_or_default(), order.key.as_str()))
                })
                .map(|order| order.key.as_str()),
        ),
        forgotten: keys(known.filter(|key| !firsts.contains_key(key))),
        refused_yet_recorded: keys(
            in_state("quarantined")
                .filter(|order| recorded.contains(&(order.key.as_str(), order.sha256.as_str())))
                .map(|order| order.key.as_str()),
        ),
        out_of_turn: keys(evidence.origins.values().flat_map(|orders| out_of_turn(orders))),
    }
}

/// Those that were recorded before the order on which they depend. Where that one is at another origin, nothing can be
/// said.
fn out_of_turn(orders: &[Recorded]) -> impl Iterator<Item = &str> {
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, order) in orders.iter().enumerate() {
        first.entry(&order.order_no).or_insert(at);
    }
    let too_early = move |(at, order): &(usize, &Recorded)| {
        let before = order.depends_on.as_deref().and_then(|number| first.get(number));
        before.is_some_and(|before| before > at)
    };
    orders.iter().enumerate().filter(too_early).map(|(_, order)| order.key.as_str())
}

/// Each key once.
fn keys<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<String> {
    keys.map(ToOwned::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(key: &str, sha256: &str) -> Recorded {
        Recorded {
            device: "D".into(),
            key: key.into(),
            sha256: sha256.into(),
            order_no: key.into(),
            seq: 1,
            udl: "US".into(),
            depends_on: None,
        }
    }

    fn ledger(key: &str, state: &str, origin: Option<&str>) -> LedgerOrder {
        LedgerOrder {
            key: key.into(),
            sha256: format!("{key}-sha"),
            state: state.into(),
            origin: origin.map(ToOwned::to_owned),
            conflict: false,
        }
    }

    /// One settled at each of two origins, one that waits, one that was refused, one that nobody was told of.
    fn sound() -> Evidence {
        let keys = ["a", "b", "waits", "refused"];
        let sha = |key: &&str| ((*key).to_owned(), format!("{key}-sha"));
        let mut evidence = Evidence {
            sent: keys.iter().map(sha).map(|(key, sha)| (key, BTreeSet::from([sha]))).collect(),
            acknowledged: keys.iter().map(sha).collect(),
            origins: BTreeMap::from([
                ("one".into(), vec![recorded("a", "a-sha")]),
                ("two".into(), vec![recorded("b", "b-sha")]),
            ]),
            ledger: vec![
                ledger("a", "settled", Some("one")),
                ledger("b", "settled", Some("two")),
                ledger("waits", "held", None),
                ledger("refused", "quarantined", Some("one")),
            ],
        };
        evidence.sent.insert("untold".into(), BTreeSet::from(["untold-sha".into()]));
        evidence
    }

    fn only(change: impl FnOnce(&mut Evidence), expected: impl FnOnce(&mut Verdict)) {
        let (mut evidence, mut verdict) = (sound(), Verdict::default());
        change(&mut evidence);
        expected(&mut verdict);
        assert_eq!(judge(&evidence), verdict);
    }

    #[test]
    fn a_promise_that_was_kept_is_found_kept() {
        assert!(judge(&sound()).is_kept());
    }

    #[test]
    fn an_acknowledged_order_that_is_nowhere_is_lost() {
        only(
            |evidence| drop(evidence.ledger.remove(2)),
            |verdict| (verdict.lost, verdict.forgotten) = (vec!["waits".into()], vec!["waits".into()]),
        );
        only(
            |evidence| evidence.origins.get_mut("one").unwrap().clear(),
            |verdict| (verdict.lost, verdict.unfounded) = (vec!["a".into()], vec!["a".into()]),
        );
    }

    #[test]
    fn an_order_recorded_twice_is_doubled_at_one_origin_or_at_two() {
        for origin in ["one", "two"] {
            only(
                |evidence| evidence.origins.get_mut(origin).unwrap().push(recorded("a", "a-sha")),
                |verdict| verdict.doubled = vec!["a".into()],
            );
        }
    }

    #[test]
    fn content_that_changed_on_the_way_is_altered_and_strange() {
        only(
            |evidence| evidence.origins.get_mut("one").unwrap()[0].sha256 = "other".into(),
            |verdict| {
                (verdict.altered, verdict.strangers) = (vec!["a".into()], vec!["a".into()]);
                verdict.lost = vec!["a".into()];
            },
        );
    }

    #[test]
    fn what_no_till_sent_is_a_stranger() {
        only(
            |evidence| evidence.origins.get_mut("one").unwrap().push(recorded("x", "x-sha")),
            |verdict| (verdict.strangers, verdict.forgotten) = (vec!["x".into()], vec!["x".into()]),
        );
    }

    #[test]
    fn settled_at_another_origin_than_the_ledger_says_is_unfounded() {
        only(
            |evidence| evidence.ledger[0].origin = Some("two".into()),
            |verdict| verdict.unfounded = vec!["a".into()],
        );
    }

    #[test]
    fn quarantined_and_recorded_contradict_each_other() {
        only(
            |evidence| evidence.ledger[0].state = "quarantined".into(),
            |verdict| verdict.refused_yet_recorded = vec!["a".into()],
        );
    }

    #[test]
    fn a_refund_recorded_before_its_sale_is_out_of_turn() {
        let chained = |evidence: &mut Evidence, refund_first: bool| {
            evidence.origins = BTreeMap::from([(
                "one".into(),
                vec![
                    recorded("a", "a-sha"),
                    Recorded { depends_on: Some("a".into()), ..recorded("b", "b-sha") },
                ],
            )]);
            evidence.ledger[1].origin = Some("one".into());
            if refund_first {
                evidence.origins.get_mut("one").unwrap().reverse();
            }
        };
        only(|evidence| chained(evidence, false), |_| {});
        only(|evidence| chained(evidence, true), |verdict| verdict.out_of_turn = vec!["b".into()]);
    }
}
