//! A network of several machines in one: a store, its router, and what is behind it, each in a network namespace.
//!
//! ```text
//!            cable                  ┌── us-west    10.77.1.2
//! store ──────────────── router ────┼── apac       10.77.2.2
//! 10.77.0.2    10.77.0.1            └── reference  10.77.3.2
//! ```
//!
//! A test that wants one runs itself again inside a sandbox ([`sandboxed`]): namespaces of its own for network, mounts
//! and processes, and for users when it is not root. The sandbox itself is the store. Nothing is ever left behind: with
//! the last process of the sandbox, which dies with the test, the kernel takes all of it away, also after a SIGKILL.
//!
//! Where kernel or rights allow no sandbox the test says so and proves nothing, unless [`MODE`] says that it must run.

use crate::binaries::system;
use anyhow::{Context, Result, bail, ensure};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

/// `must`: a test that cannot run fails. `long`: the same, with real durations (ten-minute cuts, default hold times).
pub const MODE: &str = "SAMOVAR_NETNS";
/// Set inside the sandbox.
const INSIDE: &str = "SAMOVAR_NETNS_INSIDE";
/// What stands before the test inside the sandbox. Namespaces are kept under `/run`, and `/sys` shows the links of
/// the namespace it was mounted in.
const ENTER: &str = "mount -t tmpfs none /run && mount -t sysfs none /sys && exec \"$@\"";
/// Where the router is, seen from the store.
const GATEWAY: &str = "10.77.0.1";
const ROUTER: &str = "router";

/// A machine behind the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The preferred origin.
    UsWest,
    /// The other origin.
    Apac,
    /// Neither: what tells a dead line from dead origins.
    Reference,
}

impl Place {
    const ALL: [Self; 3] = [Self::UsWest, Self::Apac, Self::Reference];

    /// Its namespace.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UsWest => "us-west",
            Self::Apac => "apac",
            Self::Reference => "reference",
        }
    }

    const fn net(self) -> u8 {
        match self {
            Self::UsWest => 1,
            Self::Apac => 2,
            Self::Reference => 3,
        }
    }

    /// Its address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 77, self.net(), 2))
    }
}

/// How the store loses its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// No link.
    Cable,
    /// The link is up and nobody answers on it.
    Router,
    /// The router answers and forwards nothing.
    Upstream,
}

/// Whether durations are the real ones.
#[must_use]
pub fn is_long() -> bool {
    std::env::var(MODE).is_ok_and(|mode| mode == "long")
}

/// Runs the test of this name in a sandbox. True inside of it, where the story is to be told; false outside, when it
/// was told well, or could not be.
///
/// # Errors
/// When the story failed, or cannot be told although it must.
pub fn sandboxed(test: &str) -> Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    if let Err(why) = sandbox(&["true"]) {
        let must = std::env::var_os(MODE).is_some_and(|mode| !mode.is_empty());
        ensure!(!must, "no sandbox with a network of its own: {why:#}");
        eprintln!("SKIPPED: no sandbox with a network of its own ({why:#}), so nothing was proven about it");
        return Ok(false);
    }
    let own = std::env::current_exe().context("cannot find the path of this program")?;
    let own = own.to_str().context("a path that is no text")?;
    sandbox(&[own, test, "--exact", "--nocapture", "--test-threads=1"]).map(|()| false)
}

fn sandbox(command: &[&str]) -> Result<()> {
    system("ip").context("`ip` is missing (Debian: iproute2)")?;
    let mut unshare = Command::new(system("unshare").context("`unshare` is missing (Debian: util-linux)")?);
    unshare.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["sh", "-c", ENTER, "sh"]).args(command).env(INSIDE, "1");
    let status = unshare.status().context("cannot run unshare")?;
    ensure!(status.success(), "`{}` in a sandbox: {status}", command.join(" "));
    Ok(())
}

/// The network around the store in which this process is.
pub struct Net;

impl Net {
    /// Lays all cables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lay() -> Result<Self> {
        let net = Self;
        ip("link set lo up")?;
        ip(&format!("netns add {ROUTER}"))?;
        net.router("link set lo up")?;
        ip(&format!("link add eth0 type veth peer name store netns {ROUTER}"))?;
        ip("addr add 10.77.0.2/24 dev eth0")?;
        ip("link set eth0 up")?;
        net.router(&format!("addr add {GATEWAY}/24 dev store"))?;
        net.router("link set store up")?;
        ip(&format!("route add default via {GATEWAY}"))?;
        // A router that is gone is noticed within seconds instead of half a minute.
        sysctl(None, "net/ipv4/neigh/eth0/base_reachable_time_ms", "2000")?;
        sysctl(None, "net/ipv4/neigh/eth0/delay_first_probe_time", "1")?;
        for place in Place::ALL {
            let (name, n) = (place.name(), place.net());
            ip(&format!("netns add {name}"))?;
            net.router(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
            net.router(&format!("addr add 10.77.{n}.1/24 dev {name}"))?;
            net.router(&format!("link set {name} up"))?;
            for command in [
                "link set lo up".to_owned(),
                format!("addr add 10.77.{n}.2/24 dev eth0"),
                "link set eth0 up".to_owned(),
                format!("route add default via 10.77.{n}.1"),
            ] {
                ip(&format!("-n {name} {command}"))?;
            }
        }
        net.forward(true)?;
        Ok(net)
    }

    /// Packets to a machine vanish at the router, and nobody is told.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn black_hole(&self, place: Place, on: bool) -> Result<()> {
        let verb = if on { "add" } else { "del" };
        self.router(&format!("route {verb} blackhole {}/32", place.address()))
    }

    /// Takes the store's line away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, cut: Cut) -> Result<()> {
        match cut {
            Cut::Cable => self.router("link set store down"),
            // Frames to the address that the store knows are for nobody now, and nobody answers for another one.
            Cut::Router => self.router("link set store address 02:00:00:00:00:99 arp off"),
            Cut::Upstream => self.forward(false),
        }
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mend(&self, cut: Cut) -> Result<()> {
        match cut {
            Cut::Cable => self.router("link set store up"),
            Cut::Router => self.router("link set store arp on"),
            Cut::Upstream => self.forward(true),
        }
    }

    /// The router takes every connection itself, whomever it was for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn redirect(&self, on: bool) -> Result<()> {
        let verb = if on { "add" } else { "del" };
        Place::ALL
            .iter()
            .try_for_each(|place| self.router(&format!("addr {verb} {}/32 dev lo", place.address())))
    }

    /// The router's namespace.
    #[must_use]
    pub const fn router_name(&self) -> &'static str {
        ROUTER
    }

    #[expect(clippy::unused_self, reason = "only who laid the network may use it")]
    fn router(&self, command: &str) -> Result<()> {
        ip(&format!("-n {ROUTER} {command}"))
    }

    #[expect(clippy::unused_self, reason = "only who laid the network may use it")]
    fn forward(&self, on: bool) -> Result<()> {
        sysctl(Some(ROUTER), "net/ipv4/ip_forward", if on { "1" } else { "0" })
    }
}

fn ip(command: &str) -> Result<()> {
    run("ip", &command.split(' ').collect::<Vec<_>>())
}

fn sysctl(namespace: Option<&str>, key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{key}");
    match namespace {
        None => std::fs::write(&path, value).with_context(|| format!("cannot write {path}")),
        Some(namespace) => {
            run("ip", &["netns", "exec", namespace, "sh", "-c", &format!("echo {value} > {path}")])
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let path = system(program).with_context(|| format!("`{program}` is missing"))?;
    let output = Command::new(path).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
