//! What a service manager sees: ready when it is ready, alive while every loop goes round, stopping when told.

use crate::shop::shop_with;
use anyhow::{Context, Result};
use std::time::Duration;
use tokio::net::UnixDatagram;

/// Reads what the agent tells until `wanted` is among it.
async fn heard(socket: &UnixDatagram, wanted: &str) -> Result<()> {
    let mut buffer = [0; 256];
    let all = async {
        loop {
            let length = socket.recv(&mut buffer).await?;
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted) {
                return Ok::<_, anyhow::Error>(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .with_context(|| format!("never heard {wanted}"))?
}

#[tokio::test]
async fn a_service_manager_hears_ready_alive_and_stopping() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    let mut shop = shop_with(move |setup| setup.under(&["env", &notify, "WATCHDOG_USEC=1500000"])).await?;
    heard(&socket, "READY=1").await?;
    // Twice, so that it is a pulse and not only a greeting.
    heard(&socket, "WATCHDOG=1").await?;
    heard(&socket, "WATCHDOG=1").await?;
    let ended = shop.agent.sigterm(Duration::from_secs(2)).await?;
    assert!(ended.success(), "{ended}");
    heard(&socket, "STOPPING=1").await
}
