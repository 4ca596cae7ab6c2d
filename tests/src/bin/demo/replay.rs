//! Replays a day: each order at its moment at its device, as a till would: again and again with the same key until the
//! device has answered; meanwhile the line is cut and the POS loses power.

use crate::day::{DEVICES, Day, Trouble};
use crate::screen::Screen;
use crate::stage::Stage;
use anyhow::{Result, bail};
use samovar_tests::{Agent, LocalApi};
use samovar_wire::encoding::{hex, sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Tills that sell at once at one device.
const AT_ONCE: usize = 32;
/// How long a till repeats an order.
const PATIENCE: Duration = Duration::from_secs(60);

/// An order that a device has acknowledged.
pub(crate) struct Placed {
    /// The device.
    pub(crate) device: &'static str,
    /// The key.
    pub(crate) key: String,
    /// Digest of the body.
    pub(crate) sha256: String,
}

/// What became of the orders of a day.
pub(crate) struct Outcome {
    /// Acknowledged by a device.
    pub(crate) accepted: Vec<Placed>,
    /// Refused by a device, with its words.
    pub(crate) refused: Vec<String>,
}

/// Where each device listens; changes when the POS comes back on another port.
type Addresses = Arc<Vec<watch::Sender<LocalApi>>>;

/// Replays a day with its trouble.
pub(crate) async fn run(day: &Day, stage: &mut Stage, screen: &Screen) -> Result<Outcome> {
    let apis: Addresses =
        Arc::new(stage.agents.iter().map(|agent| watch::Sender::new(agent.api().clone())).collect());
    let count = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    // The trouble has the till to itself; everybody else only talks to it.
    let mut pos = stage.agents.remove(0);
    let told = {
        let stage: &Stage = stage;
        let orders = sell(day, started, &apis, &count);
        let trouble = play_trouble(day, started, stage, &mut pos, &apis[0], screen);
        tokio::select! {
            told = async { tokio::try_join!(orders, trouble) } => told,
            never = show_progress(day, started, stage, &count, screen) => match never {},
        }
    };
    stage.agents.insert(0, pos);
    Ok(told?.0)
}

/// Each order at its moment, at most [`AT_ONCE`] at a time for each device.
async fn sell(day: &Day, started: Instant, apis: &Addresses, count: &Arc<AtomicU64>) -> Result<Outcome> {
    let lanes: Vec<_> = DEVICES.iter().map(|_| Arc::new(Semaphore::new(AT_ONCE))).collect();
    let mut tills = JoinSet::new();
    let mut outcome = Outcome { accepted: Vec::new(), refused: Vec::new() };
    for planned in &day.orders {
        sleep_until(started + planned.at).await;
        let lane = lanes[planned.device].clone().acquire_owned().await?;
        let (apis, count) = (apis.clone(), count.clone());
        let (device, order) = (planned.device, planned.order.clone());
        tills.spawn(async move {
            let placed = place(&apis[device], device, order.order_no, order.body).await;
            count.fetch_add(1, Ordering::Relaxed);
            drop(lane);
            placed
        });
        while let Some(done) = tills.try_join_next() {
            outcome.note(done?);
        }
    }
    while let Some(done) = tills.join_next().await {
        outcome.note(done?);
    }
    Ok(outcome)
}

async fn play_trouble(
    day: &Day,
    started: Instant,
    stage: &Stage,
    pos: &mut Agent,
    address: &watch::Sender<LocalApi>,
    screen: &Screen,
) -> Result<()> {
    let Trouble { cut, kill, revive, restore } = day.trouble();
    let at = async |moment: Duration, what: &str| {
        sleep_until(started + moment).await;
        screen.event(&format!("{}  {what}", day.clock(moment)));
    };
    at(cut, "the line is cut").await;
    stage.cut_line();
    at(kill, "the POS loses power (SIGKILL)").await;
    pos.sigkill().await?;
    at(revive, "the POS gets power again").await;
    pos.start().await?;
    address.send_replace(pos.api().clone());
    let kept = pos.api().summary().await?.pending;
    screen.event(&format!("the POS is back with {kept} orders to send"));
    at(restore, "the line is back").await;
    stage.restore_line();
    Ok(())
}

async fn show_progress(
    day: &Day,
    started: Instant,
    stage: &Stage,
    count: &AtomicU64,
    screen: &Screen,
) -> std::convert::Infallible {
    loop {
        let clock = day.clock(started.elapsed().min(day.replay()));
        screen.progress(&clock, count.load(Ordering::Relaxed), stage.settled().await);
        sleep(Duration::from_millis(250)).await;
    }
}

impl Outcome {
    fn note(&mut self, done: Result<Placed>) {
        match done {
            Ok(placed) => self.accepted.push(placed),
            Err(error) => self.refused.push(format!("{error:#}")),
        }
    }
}

async fn place(api: &watch::Sender<LocalApi>, device: usize, key: String, body: String) -> Result<Placed> {
    let sha256 = hex(&sha256(body.as_bytes()));
    let started = Instant::now();
    loop {
        let now = api.borrow().clone();
        match now.post("/v1/orders", body.clone()).await {
            Ok(answer) if matches!(answer.status, 200 | 202) => {
                return Ok(Placed { device: DEVICES[device].0, key, sha256 });
            }
            Ok(answer) if answer.status < 500 => bail!("{key}: {} {}", answer.status, answer.json()),
            last if started.elapsed() > PATIENCE => bail!("{key}: no answer, last {last:?}"),
            _ => sleep(Duration::from_millis(100)).await,
        }
    }
}
