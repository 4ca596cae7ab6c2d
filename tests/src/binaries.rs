//! Where the programs under test are.
//!
//! They are built by whoever starts the tests (`cargo build`, `tests/run`), next to the test programs. The variable
//! `SAMOVAR_BIN_DIR` names another place, such as a release build or an installed package.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The agent's program.
///
/// # Errors
/// When it has not been built.
pub fn agent() -> Result<PathBuf> {
    find("samovar-agent")
}

/// The fleet server's program.
///
/// # Errors
/// When it has not been built.
pub fn fleet() -> Result<PathBuf> {
    find("samovar-fleet")
}

/// The origin that can be killed: a program of the harness, which is next to the tests wherever the programs under test
/// are.
///
/// # Errors
/// When it has not been built.
pub fn rough_origin() -> Result<PathBuf> {
    built("samovar-rough-origin", &own_directory()?, "samovar-tests")
}

fn find(name: &str) -> Result<PathBuf> {
    built(name, &directory()?, name)
}

fn built(name: &str, directory: &Path, package: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    if !path.is_file() {
        bail!("{} is missing: build it first with `cargo build -p {package}`", path.display());
    }
    Ok(path)
}

/// The directory of the programs: named by `SAMOVAR_BIN_DIR`, else the profile's own (`target/debug`).
///
/// # Errors
/// When this program does not know its own path.
pub fn directory() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("SAMOVAR_BIN_DIR") {
        return Ok(named.into());
    }
    own_directory()
}

fn own_directory() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the path of this program")?;
    let directory = own.parent().context("this program has no directory")?;
    // Test programs lie one level deeper, in `deps`.
    let directory =
        if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    Ok(directory.to_owned())
}

/// A program of the system, looked for in `PATH` and where Debian keeps daemons.
#[must_use]
pub fn system(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
