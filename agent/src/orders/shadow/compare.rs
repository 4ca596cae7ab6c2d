//! What two origins said of one order, and whether it was the same. Pure.

use crate::orders::ledger::{CONFLICT, ChangeTo};
use crate::orders::outcome::{BatchOutcome, OrderVerdict};
use serde::Serialize;
use std::time::Duration;

/// What an origin said of an order, for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Said {
    /// It has it, now or from before.
    Settled,
    /// Never.
    Rejected {
        /// Stable code.
        code: String,
        /// Its words.
        detail: String,
    },
    /// The key is known with other content.
    Conflict {
        /// Its words.
        detail: String,
    },
}

/// Nothing that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unclear {
    /// How long the shadow origin asks to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// What came instead.
    pub(super) why: String,
}

impl Said {
    /// What the order's own origin said; `None` when it has not answered for it.
    #[must_use]
    pub fn really(to: &ChangeTo) -> Option<Self> {
        match to {
            ChangeTo::Settled => Some(Self::Settled),
            ChangeTo::Quarantined { why, detail } if why == CONFLICT => {
                Some(Self::Conflict { detail: detail.clone() })
            }
            ChangeTo::Quarantined { why, detail } => {
                Some(Self::Rejected { code: why.clone(), detail: detail.clone() })
            }
            _ => None,
        }
    }

    /// What the shadow said of the one order it was sent.
    pub(super) fn by_shadow(outcome: &BatchOutcome) -> Result<Self, Unclear> {
        let unclear = |why: &str, retry_after| Err(Unclear { retry_after, why: why.to_owned() });
        match outcome {
            BatchOutcome::Answered(verdicts) => match verdicts.first() {
                Some(OrderVerdict::Settled) => Ok(Self::Settled),
                Some(OrderVerdict::Refused { detail, conflict: true, .. }) => {
                    Ok(Self::Conflict { detail: detail.clone() })
                }
                Some(OrderVerdict::Refused { code, detail, conflict: false }) => {
                    Ok(Self::Rejected { code: code.clone(), detail: detail.clone() })
                }
                Some(OrderVerdict::Retry(wait, detail)) => unclear(detail, *wait),
                None => unclear("no answer for the order", None),
            },
            // Alone in its batch, the order is what was refused; the codes are those that the dispatcher records.
            BatchOutcome::BatchRefused(detail) => {
                Ok(Self::Rejected { code: "rejected".into(), detail: detail.clone() })
            }
            BatchOutcome::TooLarge(detail) => {
                Ok(Self::Rejected { code: "too-large".into(), detail: detail.clone() })
            }
            BatchOutcome::Busy { detail, retry_after, .. } => unclear(detail, *retry_after),
            BatchOutcome::Unreachable(why)
            | BatchOutcome::Stalled(why)
            | BatchOutcome::IdentityRefused(why)
            | BatchOutcome::NotTheOrigin(why) => unclear(why, None),
            BatchOutcome::Partly { others, .. } => Self::by_shadow(others),
        }
    }

    /// Whether two origins said the same. Words may differ, codes may not.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Settled, Self::Settled) | (Self::Conflict { .. }, Self::Conflict { .. }) => true,
            (Self::Rejected { code, .. }, Self::Rejected { code: other, .. }) => code == other,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(code: &str, detail: &str) -> Said {
        Said::Rejected { code: code.into(), detail: detail.into() }
    }

    #[test]
    fn words_may_differ_but_outcomes_and_codes_may_not() {
        let conflict = |detail: &str| Said::Conflict { detail: detail.into() };
        assert!(rejected("closed", "shop 9").is_same_as(&rejected("closed", "the shop")));
        assert!(conflict("a").is_same_as(&conflict("b")));
        let all = [Said::Settled, rejected("closed", ""), rejected("unknown", ""), conflict("")];
        for (at, one) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                assert_eq!(one.is_same_as(other), at == other_at, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn an_order_without_an_answer_of_its_origin_is_not_copied() {
        assert_eq!(Said::really(&ChangeTo::Settled), Some(Said::Settled));
        assert_eq!(Said::really(&ChangeTo::Failed("HTTP 503".into())), None);
        let quarantined =
            |why: &str| Said::really(&ChangeTo::Quarantined { why: why.into(), detail: "words".into() });
        assert_eq!(quarantined("closed"), Some(rejected("closed", "words")));
        assert_eq!(quarantined(CONFLICT), Some(Said::Conflict { detail: "words".into() }));
    }

    #[test]
    fn only_an_answer_for_the_order_is_compared() {
        let refused = OrderVerdict::Refused { code: "closed".into(), detail: "d".into(), conflict: false };
        let said = |outcome| Said::by_shadow(&outcome).ok();
        assert_eq!(said(BatchOutcome::Answered(vec![OrderVerdict::Settled])), Some(Said::Settled));
        assert_eq!(said(BatchOutcome::Answered(vec![refused])), Some(rejected("closed", "d")));
        assert_eq!(said(BatchOutcome::BatchRefused("d".into())), Some(rejected("rejected", "d")));
        let wait = Some(Duration::from_secs(9));
        for unclear in [
            BatchOutcome::Answered(vec![OrderVerdict::Retry(wait, "later".into())]),
            BatchOutcome::Answered(Vec::new()),
            BatchOutcome::Unreachable("cut".into()),
            BatchOutcome::IdentityRefused("no".into()),
            BatchOutcome::NotTheOrigin("portal".into()),
        ] {
            assert_eq!(said(unclear), None);
        }
        let busy = BatchOutcome::Busy { failing: true, detail: "HTTP 503".into(), retry_after: wait };
        let expected = Unclear { retry_after: wait, why: "HTTP 503".into() };
        assert_eq!(Said::by_shadow(&busy), Err(expected));
    }
}
