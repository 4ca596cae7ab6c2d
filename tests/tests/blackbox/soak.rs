//! Kills at random moments, with an oracle (`tests/README.md` says how to make it longer and how to replay a seed), and
//! broken worlds in which the oracle must find what is wrong.

use crate::shop::{SOON, sale};
use anyhow::{Context, Result, bail, ensure};
use samovar_tests::eventually;
use samovar_tests::soak::{Broken, Plan, Report, Stage, Verdict, run};
use serde_json::json;

/// A number from the environment.
fn asked_for(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{variable}={text} is not a number"))
}

fn tell(plan: &Plan, report: &Report) {
    eprintln!("SAMOVAR_SEED={}: {}", plan.seed, report.verdict);
    for (what, figure) in &report.figures {
        eprintln!("  {what:<26}{figure:>8}");
    }
}

#[tokio::test]
async fn kills_at_random_moments_lose_nothing_and_double_nothing() -> Result<()> {
    let kills = asked_for("SAMOVAR_SOAK_KILLS")?;
    let seed = asked_for("SAMOVAR_SEED")?.unwrap_or_else(|| fastrand::u64(..));
    let plan = Plan {
        seed,
        kills: u32::try_from(kills.unwrap_or(30))?,
        tills: 4,
        broken: Broken::No,
        long_outages: kills.is_some(),
    };
    eprintln!("SAMOVAR_SEED={seed}");
    let report = run(plan).await.with_context(|| format!("SAMOVAR_SEED={seed}"))?;
    tell(&plan, &report);
    ensure!(report.verdict.is_kept(), "SAMOVAR_SEED={seed}: {}", report.verdict);
    ensure!(report.complaints.is_empty(), "SAMOVAR_SEED={seed}: {:?}", report.complaints);
    ensure!(report.unsettled == 0, "SAMOVAR_SEED={seed}: {} orders still wait", report.unsettled);
    let some = |what: &str| report.figures.get(what).copied().unwrap_or_default() > 0;
    ensure!(some("acknowledged") && some("settled") && some("batches treated badly"), "nothing happened");
    Ok(())
}

/// Short soaks in a broken world, until the oracle finds what is wrong: which kill doubles an order is chance.
async fn found_out(broken: Broken, is_found: impl Fn(&Verdict) -> bool) -> Result<Verdict> {
    let mut verdicts = Vec::new();
    for _ in 0..6 {
        let plan = Plan { seed: fastrand::u64(..), kills: 15, tills: 4, broken, long_outages: false };
        let report = run(plan).await?;
        tell(&plan, &report);
        if is_found(&report.verdict) {
            return Ok(report.verdict);
        }
        verdicts.push(report.verdict.to_string());
    }
    bail!("the oracle saw nothing of an origin that is broken ({broken:?}): {verdicts:?}")
}

#[tokio::test]
async fn an_origin_that_knows_no_key_again_is_found_out() -> Result<()> {
    let verdict = found_out(Broken::Forgets, |verdict| !verdict.doubled.is_empty()).await?;
    ensure!(verdict.lost.is_empty(), "{verdict}");
    Ok(())
}

#[tokio::test]
async fn an_origin_that_settles_what_it_does_not_record_is_found_out() -> Result<()> {
    let is_found = |verdict: &Verdict| !verdict.lost.is_empty() && !verdict.unfounded.is_empty();
    let verdict = found_out(Broken::Lies, is_found).await?;
    ensure!(verdict.doubled.is_empty(), "{verdict}");
    Ok(())
}

/// The agent's side broken: it forgets what it has accepted and bound. What was waiting is lost, and what a till repeats
/// goes to the other origin a second time.
#[tokio::test]
async fn an_agent_that_lost_its_ledger_is_found_out() -> Result<()> {
    let plan = Plan { seed: 1, kills: 0, tills: 0, broken: Broken::No, long_outages: false };
    let mut stage = Stage::open(plan).await?;
    let hand_over = async |stage: &Stage, name: &str| -> Result<()> {
        for n in 0..20 {
            let (key, order) = (format!("{name}-{n}"), sale(&format!("{name}-{n}")));
            stage.book.sends(&key, &order.to_string());
            let answer = stage.agent.api().place_until_answered(&order, SOON).await?;
            ensure!(answer.status == 202, "{key}: {} {}", answer.status, answer.json());
            stage.book.was_told(&key, &order.to_string());
        }
        Ok(())
    };
    hand_over(&stage, "first").await?;
    stage.heal().await?;
    let summary = stage.agent.api().summary().await?;
    ensure!(summary.settled == 20, "{summary:?}");
    ensure!(stage.report().await?.verdict.is_kept(), "nothing was broken so far");

    stage.kill_origin(0).await?;
    stage.kill_origin(1).await?;
    hand_over(&stage, "second").await?;
    stage.agent.sigkill().await?;
    for entry in std::fs::read_dir(stage.agent.data())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("orders.") {
            std::fs::remove_file(entry.path())?;
        }
    }
    let pin = json!({ "ids": ["store:US-0001"], "services": ["*"], "origin": "apac", "reason": "soak" });
    stage.put_table(&[pin], ["active"; 2])?;
    stage.origins[0].start(None).await?;
    stage.origins[1].start(None).await?;
    stage.agent.start().await?;
    hand_over(&stage, "first").await?;
    eventually("the repeats are settled", SOON, async || {
        (stage.agent.api().summary().await.ok()?.settled == 20).then_some(())
    })
    .await?;
    let verdict = stage.report().await?.verdict;
    ensure!((verdict.doubled.len(), verdict.lost.len()) == (20, 20), "{verdict}");
    ensure!(verdict.lost.iter().all(|key| key.starts_with("second")), "{verdict}");
    Ok(())
}
