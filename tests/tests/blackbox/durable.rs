//! Acknowledged means on disk: what the kernel saw, by `strace`.
//!
//! For each answer "202" that a socket got, the ledger must have been flushed after the order came in and before the
//! answer went out. Where tracing is not possible (no `strace`, no ptrace) the test says so and proves nothing.

use crate::shop::{place_many, sale, settled};
use anyhow::{Context, Result, ensure};
use samovar_tests::{Agent, Origin, TableBuilder, binaries};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

const CALLS: &str = "trace=fdatasync,fsync,read,recvfrom,readv,write,writev,sendto,sendmsg";

/// What matters of a trace, in the order in which the calls were finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    OrderCameIn,
    LedgerFlushed,
    AcceptedWentOut,
}

/// Reads a trace of `strace -f -y`. A call that was interrupted by another thread's line counts when it resumed.
fn steps(trace: &str) -> Vec<Step> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut steps = Vec::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if call.ends_with("<unfinished ...>") {
            // An answer leaves when the call is made, not when it returns.
            if is_answer(call) {
                steps.push(Step::AcceptedWentOut);
            }
            begun.insert(pid, call);
            continue;
        }
        let start = if call.starts_with("<...") { begun.remove(pid) } else { None };
        let step = step(start.unwrap_or(call), call);
        steps.extend(step.filter(|step| !(start.is_some() && *step == Step::AcceptedWentOut)));
    }
    steps
}

/// `start` names the call and its file, `end` has the result (and what was read).
fn step(start: &str, end: &str) -> Option<Step> {
    let flush = start.starts_with("fdatasync(") || start.starts_with("fsync(");
    if flush && start.contains("/data/") && end.trim_end().ends_with("= 0") {
        return Some(Step::LedgerFlushed);
    }
    let came_in = ["read(", "recvfrom(", "readv("].iter().any(|name| start.starts_with(name));
    if came_in && (start.contains("POST /v1/orders ") || end.contains("POST /v1/orders ")) {
        return Some(Step::OrderCameIn);
    }
    is_answer(start).then_some(Step::AcceptedWentOut)
}

fn is_answer(call: &str) -> bool {
    let goes_out = ["write(", "writev(", "sendto(", "sendmsg("].iter().any(|name| call.starts_with(name));
    goes_out && call.contains("HTTP/1.1 202")
}

async fn can_trace() -> bool {
    let Some(strace) = binaries::system("strace") else { return false };
    let traced =
        Command::new(strace).args(["-f", "-o", "/dev/null", "-e", "trace=fsync", "true"]).output().await;
    traced.is_ok_and(|output| output.status.success())
}

/// An agent under `strace` without anybody to send to, so that nothing but accepting flushes the ledger.
async fn traced(trace: &Path) -> Result<Agent> {
    let mut nobody = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", nobody.address());
    nobody.stop().await;
    let trace = trace.to_str().context("a path that is text")?;
    Agent::setup()
        .table(&table)
        .under(&["strace", "-f", "-y", "-s", "120", "-e", CALLS, "-o", trace])
        .start()
        .await
}

#[tokio::test]
async fn an_order_is_answered_only_after_the_ledger_was_flushed() -> Result<()> {
    if !can_trace().await {
        eprintln!("SKIPPED: strace cannot run here, so nothing was proven about flushing before answering");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let trace = directory.path().join("trace");
    let mut agent = traced(&trace).await?;
    for n in 0..10 {
        let answer = agent.api().place(&sale(&format!("A-{n}"))).await?;
        ensure!(answer.status == 202, "{}", answer.status);
    }
    agent.sigterm(Duration::from_secs(10)).await?;
    let steps = steps(&std::fs::read_to_string(&trace)?);
    let mut flushed = false;
    let mut answers = 0;
    for step in &steps {
        match step {
            Step::OrderCameIn => flushed = false,
            Step::LedgerFlushed => flushed = true,
            Step::AcceptedWentOut => {
                answers += 1;
                assert!(flushed, "answer {answers} went out before the ledger was flushed: {steps:?}");
            }
        }
    }
    assert_eq!(answers, 10, "{steps:?}");
    Ok(())
}

#[tokio::test]
async fn tills_that_sell_at_once_share_flushes() -> Result<()> {
    if !can_trace().await {
        eprintln!("SKIPPED: strace cannot run here, so nothing was proven about sharing flushes");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let trace = directory.path().join("trace");
    let mut agent = traced(&trace).await?;
    place_many(agent.api(), "G", 640).await?;
    agent.sigterm(Duration::from_secs(10)).await?;
    let steps = steps(&std::fs::read_to_string(&trace)?);
    let count = |wanted: Step| steps.iter().filter(|step| **step == wanted).count();
    let (orders, flushes) = (count(Step::AcceptedWentOut), count(Step::LedgerFlushed));
    assert_eq!(orders, 640);
    assert!(flushes * 2 <= orders, "{flushes} flushes for {orders} orders of 32 tills at once");
    Ok(())
}

#[tokio::test]
async fn a_full_day_on_one_ledger_is_settled_and_still_answers_repeats() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let agent = Agent::setup().table(&table).start().await?;
    let seed = std::env::var("SAMOVAR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_120);
    println!("seed {seed} (SAMOVAR_SEED)");
    let day = samovar_tests::generator::day(seed);
    for order in &day {
        let answer = agent.api().post("/v1/orders", order.body.clone()).await?;
        ensure!(answer.status == 202, "{}: {}", order.order_no, answer.json());
    }
    settled(&agent, day.len() as u64, Duration::from_secs(90)).await?;
    let keys: Vec<_> = day.iter().map(|order| order.order_no.clone()).collect();
    crate::shop::exactly_these(&origin, &keys)?;
    let place = |key: &str| origin.store(|store| store.get(key).map(|held| held.recorded));
    for refund in day.iter().filter(|order| order.depends_on.is_some()) {
        let sale = refund.depends_on.as_deref().unwrap_or_default();
        assert!(place(sale) < place(&refund.order_no), "{} came before {sale}", refund.order_no);
    }
    let again = agent.api().post("/v1/orders", day[0].body.clone()).await?;
    assert_eq!(again.status, 200);
    Ok(())
}
