//! A long outage: a store that sold for days without a line, and the minute in which the line returns.
//!
//! Days go by in the till's back-off, not on the clock: what counts is how much has piled up and that the agent has
//! given up trying often. `SAMOVAR_OUTAGE_ORDERS` says how much (100,000 for the whole story; a tenth of it in CI).

use crate::shop::sale_with;
use anyhow::{Context, Result, ensure};
use samovar_tests::{Agent, LocalApi, Origin, TableBuilder, clock, eventually};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What an agent may need, however much is pending: 40 MiB, of which a release build's own program takes less than 12.
const MEMORY_BYTES: u64 = 28 * 1024 * 1024;
/// From the return of the line, or from the till's receipt, until a new order is at the origin.
const LIVE: Duration = Duration::from_secs(2);
/// The backlog must move on at least so often while new orders come in.
const PROGRESS: Duration = Duration::from_secs(5);
/// A till sells so often while the backlog drains.
const SALE_EVERY: Duration = Duration::from_millis(200);
/// The line is away for so long at least.
const OUTAGE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Hands in the backlog, 500 orders to a request; gives their numbers.
async fn pile_up(api: &LocalApi, orders: usize) -> Result<Vec<String>> {
    let numbers: Vec<String> = (0..orders).map(|n| format!("old-{n:06}")).collect();
    let note = "x".repeat(850);
    for part in numbers.chunks(500) {
        let orders: Vec<_> = part
            .iter()
            .map(|number| json!({ "order": sale_with(number, &json!({ "note": note })) }))
            .collect();
        let answer = api.post("/v1/orders:batch", json!({ "orders": orders }).to_string()).await?;
        ensure!(answer.status == 207, "{} {}", answer.status, answer.json());
    }
    Ok(numbers)
}

/// The most memory the agent had so far, without the pages of its program, which are many in a debug build.
fn memory(agent: &Agent) -> Result<u64> {
    let peak = agent.peak_bytes()?.saturating_sub(agent.program_bytes()?);
    ensure!(peak < MEMORY_BYTES, "the agent needed {} KiB", peak / 1024);
    Ok(peak)
}

fn has(origin: &Origin, number: &str) -> bool {
    let place = ("POS-US-0001".to_owned(), number.to_owned());
    origin.store(|store| store.orders().contains_key(&place))
}

/// The till of the minute in which the line returns, and what it saw.
struct Counter<'a> {
    agent: &'a Agent,
    origin: &'a Origin,
    /// New orders that have not arrived, with the moment from which their delay counts.
    waiting: BTreeMap<String, Instant>,
    delays: Vec<Duration>,
    numbers: Vec<String>,
}

impl Counter<'_> {
    async fn sell(&mut self, since: Option<Instant>) -> Result<()> {
        let number = format!("new-{:04}", self.numbers.len());
        let answer = self.agent.api().place(&sale_with(&number, &json!({}))).await?;
        ensure!(answer.status == 202, "{} {}", answer.status, answer.json());
        self.waiting.insert(number.clone(), since.unwrap_or_else(clock::now));
        self.numbers.push(number);
        Ok(())
    }

    /// Notes what has arrived; fails when something waits too long.
    fn look(&mut self) -> Result<()> {
        let (origin, delays) = (self.origin, &mut self.delays);
        self.waiting.retain(|number, since| {
            let arrived = has(origin, number);
            if arrived {
                delays.push(since.elapsed());
            }
            !arrived
        });
        let late: Vec<_> = self.waiting.iter().filter(|(_, since)| since.elapsed() > LIVE).collect();
        ensure!(
            late.is_empty(),
            "not at the origin: {late:?}, {} orders are\n{}",
            origin.orders(),
            self.agent.last_words()
        );
        Ok(())
    }

    /// Sells until the backlog is gone.
    async fn until_drained(&mut self, backlog: usize) -> Result<()> {
        let (mut sold_at, mut drained, mut moved_at) = (clock::now(), 0, clock::now());
        while drained < backlog || !self.waiting.is_empty() {
            self.look()?;
            let here = self.origin.orders().saturating_sub(self.delays.len());
            if here > drained {
                (drained, moved_at) = (here, clock::now());
            }
            ensure!(
                drained >= backlog || moved_at.elapsed() < PROGRESS,
                "{drained} of {backlog} drained, then nothing"
            );
            if drained < backlog && sold_at.elapsed() > SALE_EVERY {
                sold_at = clock::now();
                self.sell(None).await?;
            }
            memory(self.agent)?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_long_outage_new_orders_do_not_wait_behind_the_backlog_and_the_backlog_drains() -> Result<()>
{
    let backlog = std::env::var("SAMOVAR_OUTAGE_ORDERS").ok().map_or(Ok(10_000), |text| text.parse())?;
    let mut origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let agent = Agent::setup().table(&table).start().await?;
    // Connections are refused, as by a router without a line.
    origin.stop().await;
    let began = clock::now();
    let mut keys = pile_up(agent.api(), backlog).await?;
    println!("{backlog} orders in {:.1} s, {} KiB", began.elapsed().as_secs_f64(), memory(&agent)? / 1024);
    // Long enough for the back-off to grow far beyond the delay that is allowed.
    eventually("the outage is long", 2 * OUTAGE, async || (began.elapsed() > OUTAGE).then_some(())).await?;

    let returned = clock::now();
    origin.restart().await?;
    let mut counter = Counter {
        agent: &agent,
        origin: &origin,
        waiting: BTreeMap::new(),
        delays: Vec::new(),
        numbers: Vec::new(),
    };
    counter.sell(Some(returned)).await?;
    counter.until_drained(backlog).await?;
    let (took, first) = (returned.elapsed(), counter.delays.first().copied().context("nothing was sold")?);
    counter.delays.sort_unstable();
    println!(
        "first new order after {first:.2?}; {} more: p50 {:.2?}, longest {:.2?}; backlog drained in {took:.1?}; {} KiB",
        counter.delays.len() - 1,
        counter.delays[counter.delays.len() / 2],
        counter.delays[counter.delays.len() - 1],
        memory(&agent)? / 1024
    );
    keys.extend(counter.numbers);
    let lost: Vec<_> = keys.iter().filter(|key| !has(&origin, key)).collect();
    ensure!(lost.is_empty() && origin.orders() == keys.len(), "{} here, lost: {lost:?}", origin.orders());
    Ok(())
}
