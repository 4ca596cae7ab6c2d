//! What happens in a soak, step by step.

use super::oracle::{Evidence, LedgerOrder, Verdict, judge};
use super::rough::{Broken, RoughOrigin, own_address};
use super::tills::{Book, Pace, Till};
use crate::origin::journal::Entry;
use crate::{Agent, LocalApi, TableBuilder, eventually};
use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;

const NAMES: [&str; 2] = ["us-west", "apac"];

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Makes the schedule.
    pub seed: u64,
    /// SIGKILLs, agent and origins together.
    pub kills: u32,
    /// How many tills sell.
    pub tills: u64,
    /// How the origins are broken.
    pub broken: Broken,
    /// Whether outages happen that are long enough for orders to be moved by health alone (ten seconds and more).
    pub long_outages: bool,
}

/// How it went.
#[derive(Debug)]
pub struct Report {
    /// Whether the promise was kept.
    pub verdict: Verdict,
    /// What the tills complain of.
    pub complaints: Vec<String>,
    /// Orders that are neither settled nor quarantined at the end.
    pub unsettled: usize,
    /// What happened how often.
    pub figures: BTreeMap<&'static str, u64>,
}

/// Runs a soak.
///
/// # Errors
/// When the world of the soak itself breaks.
pub async fn run(plan: Plan) -> Result<Report> {
    let mut stage = Stage::open(plan).await?;
    stage.open_tills();
    let mut told = 0;
    while stage.kills() < u64::from(plan.kills) {
        stage.step().await?;
        if stage.kills() / 50 > told {
            told = stage.kills() / 50;
            stage.tell_progress().await;
        }
    }
    stage.heal().await?;
    let report = stage.report().await?;
    let kept = report.verdict.is_kept() && report.complaints.is_empty() && report.unsettled == 0;
    if !kept && plan.broken == Broken::No {
        stage.keep();
    }
    Ok(report)
}

/// Everything that takes part.
pub struct Stage {
    plan: Plan,
    rng: Rng,
    /// The agent.
    pub agent: Agent,
    /// The origins.
    pub origins: [RoughOrigin; 2],
    /// What the tills were told.
    pub book: Arc<Book>,
    api: LocalApi,
    table: Option<TableBuilder>,
    tills: JoinSet<()>,
    pace: watch::Sender<Pace>,
    /// An origin that is away, and for how many steps more.
    away: Option<(usize, u32)>,
    figures: BTreeMap<&'static str, u64>,
    began: Instant,
    directory: TempDir,
}

impl Stage {
    /// Starts the origins and the agent.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn open(plan: Plan) -> Result<Self> {
        let mut rng = Rng::with_seed(plan.seed);
        let directory = TempDir::with_prefix("samovar-soak-").context("cannot make a directory")?;
        let mut origins = [
            RoughOrigin::new(NAMES[0], directory.path(), plan.broken)?,
            RoughOrigin::new(NAMES[1], directory.path(), plan.broken)?,
        ];
        let mut table = TableBuilder::new()?;
        for origin in &mut origins {
            origin.start(Some(rng.u64(..))).await?;
            table = table.origin(origin.name(), origin.address());
        }
        // As at a real till, the agent is where it always is.
        let address = own_address()?;
        let agent = Agent::setup()
            .table(&table)
            .set(&format!("local_api.listen={address}"))
            .set("origin.request_timeout_ms=1500")
            .start()
            .await?;
        Ok(Self {
            plan,
            agent,
            book: Arc::new(Book::new(directory.path())?),
            api: LocalApi::new(&format!("http://{address}"))?,
            table: Some(table),
            tills: JoinSet::new(),
            pace: watch::channel(Pace::Open).0,
            away: None,
            figures: BTreeMap::new(),
            began: crate::clock::now(),
            rng,
            origins,
            directory,
        })
    }

    /// Lets the tills sell.
    pub fn open_tills(&mut self) {
        for number in 0..self.plan.tills {
            let till = Till {
                number,
                rng: Rng::with_seed(self.rng.u64(..)),
                api: self.api.clone(),
                book: Arc::clone(&self.book),
                pace: self.pace.subscribe(),
                between: Duration::from_millis(150),
            };
            self.tills.spawn(till.sell());
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.figures.entry(what).or_default() += 1;
    }

    /// SIGKILLs so far.
    #[must_use]
    pub fn kills(&self) -> u64 {
        let of = |what| self.figures.get(what).copied().unwrap_or_default();
        of("agent killed") + of("origin killed")
    }

    /// The next thing that happens.
    ///
    /// # Errors
    /// When the agent or an origin does not come back.
    pub async fn step(&mut self) -> Result<()> {
        match self.rng.u32(0..100) {
            0..42 => self.agent_dies_somewhere().await?,
            42..54 => self.agent_dies_while_it_starts().await?,
            54..62 => self.agent_dies_in_a_quiet_moment().await?,
            62..77 => self.an_origin_dies().await?,
            77..84 => self.both_die().await?,
            84..90 => self.a_table_comes()?,
            90..94 => self.an_origin_goes_away().await?,
            // Nobody dies for a while, so that batches grow and what waits gets through.
            94..99 => tokio::time::sleep(Duration::from_millis(self.rng.u64(800..3_000))).await,
            _ => self.a_long_outage().await?,
        }
        self.somebody_returns().await
    }

    async fn agent_dies_somewhere(&mut self) -> Result<()> {
        // Short lives more often than long ones.
        let life = self.rng.f64() * self.rng.f64() * 1_600.0;
        tokio::time::sleep(Duration::from_secs_f64(life / 1_000.0)).await;
        self.kill_agent().await?;
        self.agent.start().await
    }

    async fn agent_dies_while_it_starts(&mut self) -> Result<()> {
        self.kill_agent().await?;
        for _ in 0..self.rng.u32(1..5) {
            self.agent.sigkill_while_starting(Duration::from_millis(self.rng.u64(0..120))).await?;
            self.count("agent killed");
        }
        self.agent.start().await
    }

    /// Without traffic the ledger moves its journal into the database; that is where this kill aims.
    async fn agent_dies_in_a_quiet_moment(&mut self) -> Result<()> {
        self.pace.send_replace(Pace::Quiet);
        tokio::time::sleep(Duration::from_millis(self.rng.u64(180..320))).await;
        self.kill_agent().await?;
        self.pace.send_replace(Pace::Open);
        self.agent.start().await
    }

    async fn kill_agent(&mut self) -> Result<()> {
        self.agent.sigkill().await?;
        self.count("agent killed");
        Ok(())
    }

    /// One that runs, if any does.
    fn some_origin(&mut self) -> Option<usize> {
        let first = self.rng.usize(0..2);
        [first, 1 - first].into_iter().find(|origin| self.origins[*origin].is_running())
    }

    async fn an_origin_dies(&mut self) -> Result<()> {
        let Some(origin) = self.some_origin() else { return Ok(()) };
        tokio::time::sleep(Duration::from_millis(self.rng.u64(0..300))).await;
        self.kill_origin(origin).await?;
        tokio::time::sleep(Duration::from_millis(self.rng.u64(0..500))).await;
        self.start_origin(origin).await
    }

    async fn both_die(&mut self) -> Result<()> {
        let Some(origin) = self.some_origin() else { return Ok(()) };
        self.kill_origin(origin).await?;
        self.kill_agent().await?;
        self.agent.start().await?;
        tokio::time::sleep(Duration::from_millis(self.rng.u64(0..400))).await;
        self.start_origin(origin).await
    }

    /// Kills one of the origins.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill_origin(&mut self, origin: usize) -> Result<()> {
        self.count("origin killed");
        self.origins[origin].sigkill().await
    }

    async fn start_origin(&mut self, origin: usize) -> Result<()> {
        let seed = self.rng.u64(..);
        self.origins[origin].start(Some(seed)).await
    }

    /// For some steps; the other one serves what is not bound to it, if the table lets it.
    async fn an_origin_goes_away(&mut self) -> Result<()> {
        if self.away.is_none() {
            let origin = self.rng.usize(0..2);
            self.kill_origin(origin).await?;
            self.away = Some((origin, self.rng.u32(2..8)));
        }
        Ok(())
    }

    async fn somebody_returns(&mut self) -> Result<()> {
        match self.away.take() {
            Some((origin, 0)) => self.start_origin(origin).await,
            Some((origin, steps)) => {
                self.away = Some((origin, steps - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The origin that is chosen goes away for so long that its health alone moves orders to the other; then it returns.
    async fn a_long_outage(&mut self) -> Result<()> {
        if !self.plan.long_outages || self.away.is_some() {
            return Ok(());
        }
        let chosen = self.api.get_json("/v1/resolve?service=orders").await?;
        let origin = usize::from(chosen["origin"] == NAMES[1]);
        self.kill_origin(origin).await?;
        tokio::time::sleep(Duration::from_millis(self.rng.u64(8_000..14_000))).await;
        self.start_origin(origin).await?;
        self.count("long outages");
        Ok(())
    }

    /// The store, a guest or neither is pinned; an origin is drained, switched off or neither. One always serves.
    fn a_table_comes(&mut self) -> Result<()> {
        let pin = |ids: Value, origin: usize| json!({ "ids": ids, "services": ["*"], "origin": NAMES[origin], "reason": "soak" });
        let mut pins = vec![pin(json!([format!("user:u-{}", self.rng.u32(0..5))]), self.rng.usize(0..2))];
        if self.rng.bool() {
            pins.push(pin(json!(["store:US-0001"]), self.rng.usize(0..2)));
        }
        let mut states = ["active"; 2];
        states[self.rng.usize(0..2)] = ["active", "active", "draining", "off"][self.rng.usize(0..4)];
        self.count("tables");
        self.put_table(&pins, states)
    }

    /// Puts the next version of the route table into force.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_table(&mut self, pins: &[Value], states: [&str; 2]) -> Result<()> {
        let table = self.table.take().context("the table is being changed")?.next_version();
        let table = table
            .with("/pins", json!(pins))?
            .with(&format!("/origins/{}/state", NAMES[0]), json!(states[0]))?
            .with(&format!("/origins/{}/state", NAMES[1]), json!(states[1]))?;
        self.agent.write_table(&table)?;
        self.table = Some(table);
        Ok(())
    }

    async fn tell_progress(&self) {
        let (kills, of) = (self.kills(), self.plan.kills);
        let summary = self.api.summary().await;
        let seconds = self.began.elapsed().as_secs();
        let told = match summary {
            Ok(s) => {
                format!(
                    "{} accepted, {} settled, {} pending, {} held",
                    s.accepted, s.settled, s.pending, s.held
                )
            }
            Err(error) => format!("{error:#}"),
        };
        eprintln!("{kills} of {of} kills after {seconds} s: {told}");
    }

    /// Closing time: everything works again and behaves, and nothing is to be sent any more but what waits.
    ///
    /// # Errors
    /// When something does not come back.
    pub async fn heal(&mut self) -> Result<()> {
        self.pace.send_replace(Pace::Closed);
        let all_gone = async { while self.tills.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(60), all_gone).await.context("a till does not close")?;
        for origin in 0..2 {
            if self.origins[origin].is_running() {
                self.kill_origin(origin).await?;
            }
            self.origins[origin].start(None).await?;
        }
        self.put_table(&[], ["active"; 2])?;
        // A fresh start knows of no wait.
        self.kill_agent().await?;
        self.agent.start().await?;
        let accepted = self.api.summary().await?.accepted;
        let patience = Duration::from_secs(90 + accepted / 20);
        let api = &self.api;
        let drained = eventually("everything is settled or refused", patience, async || {
            let summary = api.summary().await.ok()?;
            (summary.pending + summary.held == 0).then_some(())
        });
        if let Err(error) = drained.await {
            eprintln!("{error:#}: {:?} {:?}", self.api.summary().await, self.api.conditions().await);
        }
        Ok(())
    }

    /// Judges what is there now.
    ///
    /// # Errors
    /// When the evidence cannot be had.
    pub async fn report(&mut self) -> Result<Report> {
        let told = self.book.read()?;
        let mut evidence =
            Evidence { sent: told.sent, acknowledged: told.acknowledged, ..Evidence::default() };
        for origin in &self.origins {
            let name = origin.name().to_owned();
            let orders = evidence.origins.entry(name).or_default();
            for entry in origin.journal()? {
                let what = match entry {
                    Entry::Recorded(order) => {
                        orders.push(order);
                        "recorded"
                    }
                    Entry::Repeated { .. } => "answered as duplicates",
                    Entry::Broken { key } => {
                        self.book.complain(format!("the digest of {key} does not match its body"));
                        "broken digests"
                    }
                    Entry::Did { behaviour } if behaviour == "Honest" => "batches treated honestly",
                    Entry::Did { .. } => "batches treated badly",
                };
                *self.figures.entry(what).or_default() += 1;
            }
        }
        for state in ["pending", "held", "quarantined", "settled", "discarded"] {
            let orders = self.api.orders_in(state).await?;
            evidence.ledger.extend(orders.iter().map(ledger_order));
        }
        let waiting = |order: &&LedgerOrder| ["pending", "sending", "held"].contains(&order.state.as_str());
        let unsettled = evidence.ledger.iter().filter(waiting).count();
        self.sum_up(&evidence);
        Ok(Report {
            verdict: judge(&evidence),
            complaints: self.book.complaints(),
            unsettled,
            figures: self.figures.clone(),
        })
    }

    fn sum_up(&mut self, evidence: &Evidence) {
        let in_state = |state: &str| evidence.ledger.iter().filter(|order| order.state == state).count();
        let figures = [
            ("orders sent", evidence.sent.len()),
            ("acknowledged", evidence.acknowledged.len()),
            ("settled", in_state("settled")),
            ("quarantined", in_state("quarantined")),
        ];
        for (name, figure) in figures {
            self.figures.insert(name, u64::try_from(figure).unwrap_or(u64::MAX));
        }
        self.figures.insert("keys reused on purpose", self.book.keys_refused());
        self.figures.insert("seconds", self.began.elapsed().as_secs());
    }

    /// Leaves all files where they are and says where that is.
    pub fn keep(&mut self) {
        self.agent.keep_home();
        self.directory.disable_cleanup(true);
        eprintln!("kept: {} and {}", self.directory.path().display(), self.agent.home().display());
    }
}

fn ledger_order(record: &Value) -> LedgerOrder {
    let text = |field: &str| record.get(field).and_then(Value::as_str).map(ToOwned::to_owned);
    LedgerOrder {
        key: text("key").unwrap_or_default(),
        sha256: text("sha256").unwrap_or_default(),
        state: text("state").unwrap_or_default(),
        origin: text("origin"),
        conflict: record.get("conflict_with").is_some(),
    }
}
