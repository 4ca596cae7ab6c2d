//! Builds the programs of the story, with cargo's own progress on the screen.

use anyhow::{Context, Result, ensure};
use samovar_tests::binaries;
use tokio::process::Command;

/// Builds agent and fleet server into the profile this program was built in.
///
/// # Errors
/// When cargo fails.
pub(crate) async fn programs() -> Result<()> {
    if std::env::var_os("SAMOVAR_BIN_DIR").is_some() {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // All three in one go: cargo then builds what they share once.
    command.args(["build", "--package", "samovar-agent", "--package", "samovar-fleet"]);
    command.args(["--package", "samovar-tests", "--bins"]);
    if binaries::directory()?.ends_with("release") {
        command.arg("--release");
    }
    println!("building the agent and the fleet server (the first time takes some minutes)");
    let status = command.kill_on_drop(true).status().await.context("cannot run cargo")?;
    ensure!(status.success(), "the programs could not be built: {status}");
    Ok(())
}
