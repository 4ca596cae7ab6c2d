//! What callers ask for and what they get, and how names are written here. Pure.

use super::answer::By;
use super::cache::Absent;
use samovar_wire::status::ChainLink;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Addresses that are tried in all.
const ADDRESSES_MAX: usize = 8;

/// A name that gave no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Nobody has an address of it.
    #[error("`{host}` does not resolve: {why}")]
    Failed {
        /// The name.
        host: String,
        /// The words of those who were asked.
        why: String,
    },
    /// Nobody has answered.
    #[error("`{host}` was not resolved within {} ms", .limit.as_millis())]
    TimedOut {
        /// The name.
        host: String,
        /// The deadline.
        limit: Duration,
    },
}

/// What is to be dialled.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What TLS must prove.
    pub domain: &'a str,
    /// The host of the endpoint, which is what is looked up.
    pub host: &'a str,
    /// The addresses that the table lists.
    pub listed: &'a [IpAddr],
}

/// Addresses to dial, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The addresses; never empty.
    pub addresses: Vec<IpAddr>,
    /// Who gave the first of them.
    pub by: By,
    /// How long they may be used; without end for addresses that nobody had to give.
    pub valid_for: Duration,
    /// The names that the host stands for, as far as known.
    pub chain: Vec<ChainLink>,
}

impl Found {
    /// The name did not resolve: the first address is one that worked before.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.by == By::Stale
    }
}

/// How names are looked up.
#[derive(Debug, Clone, Default)]
pub struct NamesSettings {
    /// The data directory; without one nothing outlives the process.
    pub data: Option<PathBuf>,
    /// `dns.servers`: asked instead of the system.
    pub servers: Vec<SocketAddr>,
    /// Origins are spoken to in the open, on loopback addresses.
    pub plain: bool,
}

pub(super) fn no_address(host: &str, absent: &Absent, timed_out: Option<Duration>) -> LookupError {
    let host = host.to_owned();
    match timed_out {
        Some(limit) => LookupError::TimedOut { host, limit },
        None => LookupError::Failed { host, why: absent.why() },
    }
}

/// The address that a host literally is, also in the brackets of a URL.
pub(in crate::net) fn host_as_address(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).parse().ok()
}

/// One name has one spelling here.
pub(super) fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// Names that mean this very device (RFC 6761): the system's business.
pub(super) fn is_local(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// Names that never exist (RFC 6761).
pub(super) fn is_invalid(host: &str) -> bool {
    host == "invalid" || host.ends_with(".invalid")
}

pub(super) fn put_together(
    first: impl IntoIterator<Item = IpAddr>,
    listed: &[IpAddr],
    last: Vec<IpAddr>,
) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in first.into_iter().chain(listed.iter().copied()).chain(last) {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(address);
        }
    }
    addresses
}
