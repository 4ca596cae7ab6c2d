//! How many orders a second an agent accepts, from one till and from sixty-four: they should share commits.
//!
//! By hand: `cargo build --release -p samovar-agent && SAMOVAR_BIN_DIR=target/release cargo bench -p samovar-tests --bench accept`.

use anyhow::{Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use samovar_tests::clock;
use samovar_tests::{Agent, LocalApi, Origin, TableBuilder};
use serde_json::json;
use std::time::Duration;

/// How long each load lasts.
const LOAD: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Nobody takes the orders: only accepting is measured.
    let mut nobody = Origin::start("us-west").await?;
    let table = TableBuilder::new()?.origin("us-west", nobody.address());
    nobody.stop().await;
    let agent = Agent::setup().table(&table).start().await?;
    load(agent.api(), "warm", 8, Duration::from_secs(1)).await?;
    let one = load(agent.api(), "one", 1, LOAD).await?;
    let many = load(agent.api(), "many", 64, LOAD).await?;
    println!("orders/s   1 till {one:.0}   64 tills {many:.0}   ratio {:.1} (aim: 5 or more)", many / one);
    Ok(())
}

async fn load(api: &LocalApi, prefix: &str, tills: usize, time: Duration) -> Result<f64> {
    let started = clock::now();
    let placed: Vec<usize> = stream::iter(0..tills)
        .map(|till| async move {
            let mut placed = 0;
            while started.elapsed() < time {
                let order = json!({ "order_no": format!("{prefix}-{till}-{placed}"),
                    "placed_at": "2026-11-20T08:15:00.000Z", "note": "x".repeat(600) });
                let answer = api.place(&order).await?;
                ensure!(answer.status == 202, "{} {}", answer.status, answer.json());
                placed += 1;
            }
            Ok(placed)
        })
        .buffer_unordered(tills)
        .try_collect()
        .await?;
    let orders: usize = placed.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
    let rate = orders as f64 / started.elapsed().as_secs_f64();
    Ok(rate)
}
