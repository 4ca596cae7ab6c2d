//! How loops learn that the agent stops.

use tokio::sync::watch;

/// Ends when the agent stops, or when nobody is left who could stop it.
pub async fn asked(stop: &mut watch::Receiver<bool>) {
    // The guard that this gives must not live across the caller's next await.
    let _ = stop.wait_for(|stopping| *stopping).await;
}
