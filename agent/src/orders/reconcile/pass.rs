//! One pass: asks one origin about everything that it has yet to confirm, and records what it says.

use super::ask::{Reply, ask};
use super::plan::{Finding, How, Plan, Request, Step, Sum, forgotten, within};
use super::schedule::{Ended, Scope};
use super::view::NAMED;
use crate::clock::wall;
use crate::orders::dispatcher::RouteQuery;
use crate::orders::ledger::{Ledger, LedgerError, Mark, PassNote, Places, State};
use crate::orders::origin::Sender;
use crate::orders::run::{Events, Routes};
use samovar_wire::reconcile::{LEAF_PLACES, ReconcileAnswer};
use samovar_wire::{Country, OriginId, Timestamp};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Most orders that one pass sends again; the next goes on where this one ends.
const MOST_RESENT: usize = 5_000;
/// Most keys of one answer that are looked at, beyond what the ledger bounds itself.
const MOST_KEYS: usize = 4_096;
/// Longest wait for orders to leave before a request.
const AFTER_ORDERS: Duration = Duration::from_secs(5);
/// How often everything whose body is kept is compared anew: an origin may have been restored from an old copy.
const FULL_EVERY_MILLIS: i64 = 24 * 3_600_000;

/// What a pass needs.
#[derive(Clone)]
pub(super) struct Passer {
    pub(super) ledger: Ledger,
    pub(super) routes: Arc<dyn Routes>,
    pub(super) sender: Arc<Sender>,
    pub(super) home: Option<Country>,
    pub(super) events: Events,
    /// For how long bodies are kept.
    pub(super) kept: Duration,
}

/// What a pass came to.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) origin: OriginId,
    pub(super) ended: Ended,
    /// Keys that the origin has and this ledger lacks.
    pub(super) strangers: Vec<String>,
    /// Differences that are known were not asked about: there may be more strangers than these.
    pub(super) left_out: bool,
    /// Keys that the origin lacks and that cannot be sent again.
    pub(super) lost: Vec<String>,
}

/// Numbers and findings on the way.
struct Tally {
    origin: OriginId,
    /// Places belong to one ledger; a damaged one may be replaced while a pass is under way.
    ledger: Arc<str>,
    marks: Vec<Mark>,
    udl: Option<Country>,
    ranges: u64,
    orders: u64,
    resent: usize,
    differs: bool,
    strangers: BTreeSet<String>,
    lost: Vec<String>,
    left_out: bool,
}

/// Why a pass did not come to its end.
enum Stopped {
    Ledger(LedgerError),
    Unsupported(String),
    OneByOne,
    Later { why: String, retry_after: Option<Duration> },
}

impl Stopped {
    const fn later(why: String) -> Self {
        Self::Later { why, retry_after: None }
    }
}

impl From<LedgerError> for Stopped {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

impl Passer {
    pub(super) async fn pass(self, origin: OriginId, scope: Scope) -> Passed {
        let mut tally = Tally {
            origin,
            ledger: self.ledger.id(),
            marks: Vec::new(),
            udl: self.home.clone(),
            ranges: 0,
            orders: 0,
            resent: 0,
            differs: false,
            strangers: BTreeSet::new(),
            lost: Vec::new(),
            left_out: false,
        };
        let ended = match self.go_through(&mut tally, scope).await {
            Ok(()) => Ended::Through { again: tally.resent > 0 },
            Err(Stopped::Unsupported(why)) => self.unsupported(&tally, Ended::Unsupported(why)).await,
            Err(Stopped::OneByOne) => self.unsupported(&tally, Ended::OneByOne).await,
            Err(Stopped::Later { why, retry_after }) => Ended::Failed { why, retry_after },
            Err(Stopped::Ledger(error)) => Ended::Failed { why: error.to_string(), retry_after: None },
        };
        let (origin, ranges, orders) = (&tally.origin, tally.ranges, tally.orders);
        tracing::info!(%origin, ranges, orders, resent = tally.resent, ?ended, "orders compared with their origin");
        Passed {
            origin: tally.origin,
            // A pass that did not come to its end says nothing of the rest either.
            left_out: tally.left_out || !matches!(ended, Ended::Through { .. }),
            ended,
            strangers: tally.strangers.into_iter().collect(),
            lost: tally.lost,
        }
    }

    async fn go_through(&self, tally: &mut Tally, scope: Scope) -> Result<(), Stopped> {
        let ledger = &self.ledger;
        let mut full_at = self.mark_all_if_due(&tally.origin, scope == Scope::Full).await?;
        let known = scope != Scope::Changed || full_at.is_some();
        self.compare(tally, &[], known).await?;
        if tally.resent > 0 && full_at.is_none() {
            // An origin that lost some of the newest may have lost any: it was restored from an old copy, say. What is
            // known to differ waits for the next pass: its orders are on their way.
            let (first, open) = (ledger.extent().await?.forgotten_to + 1, ledger.marks(&tally.origin).await?);
            ledger.mark_from(&tally.origin, first).await?;
            self.compare(tally, &open, true).await?;
            full_at = Some(wall());
        }
        let still = ledger.marks(&tally.origin).await?;
        let is_open = |left: &Mark| left.known || tally.marks.iter().any(|mark| mark.is_as(left));
        let matched = !tally.differs && !still.iter().any(is_open);
        self.note(tally, true, matched.then(wall), full_at).await?;
        Ok(())
    }

    /// Asks about everything that is marked, but for some buckets, and about what is newest; about `known` differences
    /// too, or not.
    async fn compare(&self, tally: &mut Tally, but: &[Mark], known: bool) -> Result<(), Stopped> {
        let ledger = &self.ledger;
        tally.marks = ledger.marks(&tally.origin).await?;
        tally.marks.retain(|mark| !but.iter().any(|other| other.bucket == mark.bucket));
        let extent = ledger.extent().await?;
        let gone = forgotten(&tally.marks, extent);
        if !gone.is_empty() {
            ledger.matched(&tally.origin, gone).await?;
        }
        tally.left_out |= !known && tally.marks.iter().any(|mark| mark.known);
        let mut plan = Plan::new(&tally.marks, extent, known);
        loop {
            let steps = plan.next();
            // What is left keeps its marks; the next pass comes soon.
            if steps.is_empty() || tally.resent >= MOST_RESENT {
                return Ok(());
            }
            let request = self.sum_up(tally, steps).await?;
            if request.is_empty() {
                continue;
            }
            let findings = self.ask(tally, &mut plan, request).await?;
            for finding in findings {
                self.record(tally, finding).await?;
            }
        }
    }

    /// Marks everything when somebody wants it, and once a day everything that could be sent again.
    async fn mark_all_if_due(&self, origin: &OriginId, full: bool) -> Result<Option<Timestamp>, Stopped> {
        let now = wall();
        if full {
            self.ledger.mark_from(origin, self.ledger.extent().await?.forgotten_to + 1).await?;
            return Ok(Some(now));
        }
        let compared = self.ledger.compared().await?;
        let note = compared.into_iter().find(|(open, _)| open.origin == *origin).and_then(|(_, note)| note);
        let last = note.and_then(|note| note.full_at);
        // A last time that lies in the future was written by a wrong clock.
        if last.is_some_and(|last| (0..FULL_EVERY_MILLIS).contains(&(now.millis() - last.millis()))) {
            return Ok(None);
        }
        let kept = i64::try_from(self.kept.as_millis()).unwrap_or(i64::MAX / 2);
        let since = Timestamp::from_millis(now.millis() - kept);
        if let Some(from) = self.ledger.first_settled_since(since).await? {
            self.ledger.mark_from(origin, from).await?;
        }
        Ok(Some(now))
    }

    /// Reads what the steps need, one bucket at a time.
    async fn sum_up(&self, tally: &mut Tally, steps: Vec<Step>) -> Result<Request, Stopped> {
        let mut request = Request::default();
        for step in steps {
            let Places { from, to } = step.places;
            let mut sum = Sum::new(step);
            let mut at = from;
            while at <= to {
                let end = (at / LEAF_PLACES * LEAF_PLACES + LEAF_PLACES - 1).min(to);
                for order in self.ledger.settled(&tally.origin, Places { from: at, to: end }).await? {
                    tally.udl = Some(order.udl.clone());
                    sum.add(order);
                }
                at = end + 1;
            }
            // Where this origin has settled nothing and nothing is marked there is nothing to confirm. What lies behind
            // the newest place is asked about by the way.
            let by_the_way = if step.beyond { !request.is_empty() } else { !step.first };
            let marked = || !within(&tally.marks, step.places).is_empty();
            if by_the_way || step.how != How::Sum || !sum.is_empty() || marked() {
                let orders = request.push(sum);
                tally.ranges += 1;
                tally.orders += if step.first { orders } else { 0 };
            }
        }
        Ok(request)
    }

    /// Sends one request, after orders that wait have had their turn.
    async fn ask(
        &self,
        tally: &Tally,
        plan: &mut Plan,
        mut request: Request,
    ) -> Result<Vec<Finding>, Stopped> {
        let ranges = request.take_ranges();
        let answer = if ranges.is_empty() {
            ReconcileAnswer { ranges: Vec::new(), server_time: None }
        } else {
            let Some(country) = &tally.udl else {
                return Err(Stopped::later("the device is not activated".into()));
            };
            self.let_orders_pass().await;
            let query = RouteQuery { country, user: None, bound: Some(&tally.origin) };
            let way = self.routes.way(query).map_err(Stopped::later)?;
            if self.ledger.id() != tally.ledger {
                return Err(Stopped::later("a new ledger was begun".into()));
            }
            match ask(&self.sender, &way, country, &tally.ledger, ranges).await {
                Reply::Answer(answer) => answer,
                Reply::Unsupported(why) => return Err(Stopped::Unsupported(why)),
                Reply::OneByOne => return Err(Stopped::OneByOne),
                Reply::Later { why, retry_after } => return Err(Stopped::Later { why, retry_after }),
            }
        };
        plan.answered(request, answer)
            .ok_or_else(|| Stopped::later("the answer names none of our ranges".into()))
    }

    async fn let_orders_pass(&self) {
        let mut backlog = self.ledger.backlog();
        let quiet = backlog.wait_for(|backlog| backlog.count(State::Pending) == 0);
        // Orders that cannot leave must not keep others from being compared.
        let _ = tokio::time::timeout(AFTER_ORDERS, quiet).await;
    }

    async fn record(&self, tally: &mut Tally, finding: Finding) -> Result<(), Stopped> {
        match finding {
            Finding::Match(places) => {
                self.ledger.matched(&tally.origin, within(&tally.marks, places)).await?;
            }
            Finding::Missing(places, keys) => self.missing(tally, places, keys).await?,
            Finding::Strange { places, keys, complete } => {
                self.strange(tally, places, keys, complete).await?;
            }
        }
        Ok(())
    }

    async fn missing(&self, tally: &mut Tally, places: Places, mut keys: Vec<String>) -> Result<(), Stopped> {
        tally.differs = true;
        keys.truncate(MOST_KEYS);
        let most = MOST_RESENT.saturating_sub(tally.resent);
        let resent = self.ledger.resend(&tally.origin, places, keys, most).await?;
        if !resent.orders.is_empty() {
            tally.resent += resent.orders.len();
            let named: Vec<_> = resent
                .orders
                .iter()
                .take(NAMED)
                .map(|order| json!({ "id": order.id, "order_no": order.order_no, "seq": order.seq }))
                .collect();
            let count = resent.orders.len();
            (self.events)("order.resent", json!({ "origin": tally.origin, "count": count, "orders": named }));
        }
        tally.lost.extend(resent.lost);
        tally.lost.truncate(MOST_KEYS);
        Ok(())
    }

    async fn strange(
        &self,
        tally: &mut Tally,
        places: Places,
        mut keys: Vec<String>,
        complete: bool,
    ) -> Result<(), Stopped> {
        keys.truncate(MOST_KEYS);
        let unnamed = keys.is_empty();
        let mut strangers = Vec::new();
        for part in keys.chunks(256) {
            strangers.extend(self.ledger.strangers(part.to_vec()).await?);
        }
        if unnamed && self.ledger.in_motion(&tally.origin, places).await? {
            // Most likely an order whose answer is on its way. The next pass sees.
            tally.differs = true;
            return Ok(());
        }
        let marks = within(&tally.marks, places);
        if strangers.is_empty() && !unnamed {
            // What the origin has besides is known here: on its way, refused, or given up.
            if complete {
                self.ledger.matched(&tally.origin, marks).await?;
            }
            return Ok(());
        }
        tally.differs = true;
        if complete {
            let count = u64::try_from(strangers.len()).unwrap_or(u64::MAX).max(1);
            self.ledger.strange(&tally.origin, places, marks, count).await?;
        }
        let room = MOST_KEYS.saturating_sub(tally.strangers.len());
        tally.strangers.extend(strangers.into_iter().take(room));
        Ok(())
    }

    async fn unsupported(&self, tally: &Tally, ended: Ended) -> Ended {
        match self.note(tally, false, None, None).await {
            Ok(()) => ended,
            Err(error) => Ended::Failed { why: error.to_string(), retry_after: None },
        }
    }

    async fn note(
        &self,
        tally: &Tally,
        supported: bool,
        matched_at: Option<Timestamp>,
        full_at: Option<Timestamp>,
    ) -> Result<(), LedgerError> {
        let note = PassNote {
            origin: tally.origin.clone(),
            supported,
            at: wall(),
            matched_at,
            full_at,
            ranges: tally.ranges,
            orders: tally.orders,
            resent: u64::try_from(tally.resent).unwrap_or(u64::MAX),
        };
        self.ledger.note_pass(note).await
    }
}
