//! The verdict: every acknowledged order against what the origins hold. Nobody's word counts but the origins'.

use crate::day::DEVICES;
use crate::replay::Outcome;
use crate::stage::{ORIGINS, Stage};
use anyhow::Result;
use std::collections::HashMap;
use std::time::Duration;

/// How the day went.
pub(crate) struct Verdict {
    accepted: usize,
    refused: Vec<String>,
    by_origin: Vec<usize>,
    lost: Vec<String>,
    altered: usize,
    duplicated: Vec<String>,
    unasked: usize,
    longest_wait: Duration,
    memory: Vec<(u64, u64)>,
    seen_online: usize,
}

/// Compares what devices acknowledged with what origins hold.
pub(crate) async fn judge(outcome: &Outcome, stage: &Stage) -> Result<Verdict> {
    let mut held: HashMap<(String, String), Vec<String>> = HashMap::new();
    let mut by_origin = Vec::new();
    let mut longest_wait = Duration::ZERO;
    for origin in &stage.origins {
        let orders = origin.orders().await?;
        by_origin.push(orders.len());
        for order in orders {
            if let Some(accepted_at) = order.accepted_at {
                longest_wait = longest_wait.max(order.received_at.since(accepted_at));
            }
            held.entry((order.device, order.key)).or_default().push(order.sha256);
        }
    }
    let mut verdict = Verdict {
        accepted: outcome.accepted.len(),
        refused: outcome.refused.clone(),
        by_origin,
        lost: Vec::new(),
        altered: 0,
        duplicated: Vec::new(),
        unasked: 0,
        longest_wait,
        memory: memory(stage)?,
        seen_online: stage.seen_online().await,
    };
    for placed in &outcome.accepted {
        match held.remove(&(placed.device.to_owned(), placed.key.clone())).as_deref() {
            None | Some([]) => verdict.lost.push(placed.key.clone()),
            Some([digest]) => verdict.altered += usize::from(*digest != placed.sha256),
            Some(_) => verdict.duplicated.push(placed.key.clone()),
        }
    }
    verdict.unasked = held.len();
    Ok(verdict)
}

fn memory(stage: &Stage) -> Result<Vec<(u64, u64)>> {
    stage.agents.iter().map(|agent| Ok((agent.resident_bytes()?, agent.peak_bytes()?))).collect()
}

impl Verdict {
    /// Nothing lost, nothing twice, nothing altered, nothing refused, nothing that nobody sold.
    pub(crate) const fn clean(&self) -> bool {
        self.lost.is_empty()
            && self.duplicated.is_empty()
            && self.refused.is_empty()
            && self.altered == 0
            && self.unasked == 0
            && self.accepted > 0
    }

    /// The table.
    pub(crate) fn print(&self, took: Duration) {
        let settled = self.accepted - self.lost.len();
        let at: Vec<_> =
            ORIGINS.iter().zip(&self.by_origin).map(|(name, n)| format!("{n} at {name}")).collect();
        println!();
        println!("  accepted      {:>7}", self.accepted);
        println!("  settled       {settled:>7}   {}", at.join(", "));
        println!("  lost          {:>7}", self.lost.len());
        println!("  duplicated    {:>7}", self.duplicated.len());
        println!("  longest wait  {:>7.1} s", self.longest_wait.as_secs_f64());
        for ((device, _), (now, peak)) in DEVICES.iter().zip(&self.memory) {
            let mib = |bytes: u64| (bytes + 512 * 1024) / (1024 * 1024);
            println!("  memory        {:>7} MiB {device} (peak {} MiB)", mib(*now), mib(*peak));
        }
        println!("  seen online   {:>7}   of {} devices, by the fleet", self.seen_online, DEVICES.len());
        println!("  told in       {:>7.1} s", took.as_secs_f64());
        for (what, keys) in
            [("lost", &self.lost), ("duplicated", &self.duplicated), ("refused", &self.refused)]
        {
            for key in keys.iter().take(10) {
                println!("  {what}: {key}");
            }
        }
        if self.altered + self.unasked > 0 {
            println!("  altered {}, never sold {}", self.altered, self.unasked);
        }
        println!();
        println!("{}", if self.clean() { "nothing lost, nothing twice" } else { "NOT CLEAN" });
    }
}
