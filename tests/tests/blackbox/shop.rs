//! What most stories start from: one origin, one till.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use samovar_tests::agent::Setup;
use samovar_tests::{Agent, LocalApi, Origin, TableBuilder, clock, eventually};
use serde_json::{Value, json};
use std::time::Duration;

/// For what should take a second or two on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// For what waits for a retry of the agent (60 s at most) and then some.
pub(crate) const AFTER_RETRY: Duration = Duration::from_secs(100);

/// A till and its origin.
pub(crate) struct Shop {
    pub(crate) agent: Agent,
    pub(crate) origin: Origin,
}

/// One origin, one till, no broker.
pub(crate) async fn shop() -> Result<Shop> {
    shop_with(|setup| setup).await
}

/// The same with more in the till's setup.
pub(crate) async fn shop_with(more: impl FnOnce(Setup) -> Setup) -> Result<Shop> {
    let origin = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", origin.address());
    let agent = more(Agent::setup().table(&table)).start().await?;
    Ok(Shop { agent, origin })
}

/// A till that may use two origins, the first preferred.
pub(crate) async fn shop_with_two_origins() -> Result<(Agent, Origin, Origin, TableBuilder)> {
    let (a, b) = (Origin::start("us-west").await?, Origin::start("apac").await?);
    let table = TableBuilder::new()?.origin("us-west", a.address()).origin("apac", b.address());
    let setup = Agent::setup().table(&table).set("origin.request_timeout_ms=1500");
    // An origin that comes back is used again soon; how long it must prove itself is told in the routing's own tests.
    let quick = setup.set("routing.failback_after_s=1").set("routing.failback_spread_s=0");
    Ok((quick.start().await?, a, b, table))
}

/// A sale.
pub(crate) fn sale(order_no: &str) -> Value {
    json!({ "order_no": order_no, "placed_at": "2026-11-20T08:15:00.000Z", "total": "4.20",
        "lines": [ { "name": "茉莉绿茶", "quantity": 1 } ] })
}

/// A sale with more fields.
pub(crate) fn sale_with(order_no: &str, more: &Value) -> Value {
    let mut order = sale(order_no);
    if let (Some(order), Some(more)) = (order.as_object_mut(), more.as_object()) {
        order.extend(more.clone());
    }
    order
}

/// Hands over sales `PREFIX-0001` … and fails unless each is answered 202; gives their numbers.
pub(crate) async fn place_many(api: &LocalApi, prefix: &str, count: usize) -> Result<Vec<String>> {
    let numbers: Vec<_> = (1..=count).map(|n| format!("{prefix}-{n:04}")).collect();
    stream::iter(&numbers)
        .map(|number| async move {
            let answer = api.place(&sale(number)).await?;
            ensure!(answer.status == 202, "{number}: {} {}", answer.status, answer.json());
            Ok(())
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await?;
    Ok(numbers)
}

/// Hands over one order that must be answered 202; gives its id.
pub(crate) async fn accepted(api: &LocalApi, order: &Value) -> Result<String> {
    let answer = api.place(order).await?;
    ensure!(answer.status == 202, "{} {}", answer.status, answer.json());
    Ok(answer.text("id"))
}

/// Waits until so many orders are settled in all.
pub(crate) async fn settled(agent: &Agent, count: u64, deadline: Duration) -> Result<()> {
    let waited = eventually(&format!("{count} settled orders"), deadline, async || {
        let summary = agent.api().summary().await.ok()?;
        (summary.settled == count).then_some(())
    })
    .await;
    match waited {
        Ok(()) => Ok(()),
        Err(error) => {
            let (summary, conditions) = (agent.api().summary().await, agent.api().conditions().await);
            Err(error.context(format!("{summary:?} {conditions:?}\n{}", agent.last_words())))
        }
    }
}

/// New orders are at the origin within two seconds while the one whose key this is gets no answer and is sent again, ever
/// more seldom.
pub(crate) async fn others_pass(shop: &Shop, hanging: &str, time_out: Duration) -> Result<()> {
    let tries = || -> Vec<_> {
        let requests = shop.origin.requests();
        let with = requests.iter().filter(|seen| seen.keys.iter().any(|key| key == hanging));
        with.map(|seen| seen.at).collect()
    };
    eventually("it is sent again", 4 * time_out, async || (tries().len() > 1).then_some(())).await?;
    let (mut sold, mut slowest) = (0, Duration::ZERO);
    while tries().len() < 5 {
        sold += 1;
        let (key, placed) = (format!("new-{sold}"), clock::now());
        accepted(shop.agent.api(), &sale(&key)).await?;
        eventually(&key, SOON, async || shop.origin.holds(&key).then_some(())).await?;
        slowest = slowest.max(placed.elapsed());
        ensure!(slowest < Duration::from_secs(2), "{key} took {slowest:?}\n{}", shop.agent.last_words());
        ensure!(sold < 600, "it is not sent again: {:?}", tries());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let gaps: Vec<Duration> = tries().windows(2).map(|two| two[1] - two[0]).skip(1).collect();
    eprintln!("{sold} new orders, the slowest took {slowest:?}; the other was sent again after {gaps:?}");
    ensure!(gaps.is_sorted() && gaps[0] >= time_out, "{gaps:?}");
    let (record, summary) = (shop.agent.api().order(hanging).await?, shop.agent.api().summary().await?);
    ensure!(["pending", "sending"].contains(&record["state"].as_str().unwrap_or_default()), "{record}");
    ensure!(summary.quarantined == 0 && summary.pending <= 2, "{summary:?}");
    Ok(())
}

/// Waits until an order is in a state; gives its record.
pub(crate) async fn in_state(agent: &Agent, order: &str, state: &str, deadline: Duration) -> Result<Value> {
    let waited = eventually(&format!("{order} is {state}"), deadline, async || {
        let record = agent.api().order(order).await.ok()?;
        (record["state"] == state).then_some(record)
    })
    .await;
    match waited {
        Ok(record) => Ok(record),
        Err(error) => {
            Err(error.context(format!("{:?}\n{}", agent.api().order(order).await, agent.last_words())))
        }
    }
}

/// Waits until a condition holds or no longer holds.
pub(crate) async fn condition(agent: &Agent, name: &str, holds: bool, deadline: Duration) -> Result<String> {
    let verb = if holds { "holds" } else { "is gone" };
    eventually(&format!("condition {name} {verb}"), deadline, async || {
        let conditions = agent.api().conditions().await.ok()?;
        (conditions.contains_key(name) == holds).then(|| conditions.get(name).cloned().unwrap_or_default())
    })
    .await
}

/// The oracle of every delivery story: each of these keys is at the origin once with the digest of its body, and
/// nothing else is there.
pub(crate) fn exactly_these(origin: &Origin, keys: &[String]) -> Result<()> {
    let broken = origin.store(|store| store.broken_digests().to_vec());
    ensure!(broken.is_empty(), "digests do not match their bodies: {broken:?}");
    let lost: Vec<_> = keys.iter().filter(|key| !origin.holds(key)).collect();
    ensure!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), keys.len());
    ensure!(origin.orders() == keys.len(), "{} orders at the origin, {} keys", origin.orders(), keys.len());
    Ok(())
}

/// The bearer of the command line, from the data directory.
pub(crate) fn token(agent: &Agent) -> Result<String> {
    let token = std::fs::read_to_string(agent.data().join("local.token")).context("no local.token")?;
    Ok(format!("Bearer {}", token.trim()))
}
