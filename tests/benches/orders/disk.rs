//! The disk that is measured, as it is and with every sync made to take as long as on an eMMC.
//!
//! Everything lies under Cargo's directory for benchmarks (`target/tmp`), so on one disk. Slow syncs are made by a few
//! lines of C, preloaded into the agent and into the references in the same way: the real sync is made, and the rest
//! of the time is slept, so that it adds up. Without a C compiler there are no figures with slow syncs.

use anyhow::{Context, Result, ensure};
use samovar_tests::binaries;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// How long a sync takes on the slow disk.
pub(crate) const SLOW_US: u32 = 4_000;

/// How the disk behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Disk {
    /// As it is.
    Native,
    /// Every sync takes 4 ms.
    Slow,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Slow => "4 ms",
        })
    }
}

/// Where everything lies.
pub(crate) struct Place {
    directory: TempDir,
    shim: Option<PathBuf>,
}

impl Place {
    /// Makes the directory and, if there is a C compiler, the library that slows syncs down.
    pub(crate) fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
        std::fs::create_dir_all(root).context("cannot make the directory of the benchmark")?;
        // Agents make their directories where temporary files go.
        let _ = tempfile::env::override_temp_dir(root);
        let directory = TempDir::with_prefix("samovar-bench-").context("cannot make a directory")?;
        let shim = compile(directory.path())?;
        Ok(Self { directory, shim })
    }

    /// The disks that can be measured here.
    pub(crate) fn disks(&self) -> Vec<Disk> {
        if self.shim.is_some() { vec![Disk::Native, Disk::Slow] } else { vec![Disk::Native] }
    }

    /// A path on the disk.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What a program is run under so that its syncs take as long as this disk's.
    pub(crate) fn prefix(&self, disk: Disk) -> Vec<String> {
        match (&self.shim, disk) {
            (Some(shim), Disk::Slow) => vec![
                "env".into(),
                format!("LD_PRELOAD={}", shim.display()),
                format!("SAMOVAR_SYNC_US={SLOW_US}"),
            ],
            _ => Vec::new(),
        }
    }
}

fn compile(directory: &Path) -> Result<Option<PathBuf>> {
    let Some(compiler) = binaries::system("cc").filter(|_| cfg!(target_os = "linux")) else {
        println!("no C compiler here: figures with slow syncs are left out");
        return Ok(None);
    };
    let (source, library) = (directory.join("sync_delay.c"), directory.join("sync_delay.so"));
    std::fs::write(&source, include_str!("sync_delay.c")).context("cannot write the library's source")?;
    let compiled = Command::new(compiler)
        .args(["-O2", "-fPIC", "-shared", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .context("cannot run the C compiler")?;
    ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Ok(Some(library))
}
