//! Names to addresses: the system's resolver with a deadline, then what is known to have worked, the table's own
//! addresses last.
//!
//! A dead resolver must not become a dead shop: an address from which a good answer came is remembered (in memory
//! only, so that it cannot outlive a move of the store) and used when, and only when, the name does not resolve.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Look-ups under way at one time. The system's resolver cannot be interrupted: those that hang keep their place, and
/// when all places hang the next look-up goes straight to the known addresses.
const LOOKUPS_MAX: usize = 8;
/// Names whose last good address is remembered; the oldest makes room.
const KNOWN_MAX: usize = 64;
/// Addresses of one name that are tried; the table's own come on top.
const RESOLVED_MAX: usize = 4;
/// Addresses that are tried in all.
const ADDRESSES_MAX: usize = 8;

/// A name that gave no address.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The resolver says no.
    #[error("`{host}` does not resolve")]
    Failed {
        /// The name.
        host: String,
        /// The resolver's words.
        #[source]
        source: io::Error,
    },
    /// The resolver knows the name, but no address of it.
    #[error("`{host}` has no address")]
    Empty {
        /// The name.
        host: String,
    },
    /// The resolver does not answer.
    #[error("`{host}` was not resolved within {} ms", .limit.as_millis())]
    TimedOut {
        /// The name.
        host: String,
        /// The deadline.
        limit: Duration,
    },
    /// Too many look-ups hang already.
    #[error("`{host}` was not looked up: {LOOKUPS_MAX} look-ups hang in the system's resolver")]
    Busy {
        /// The name.
        host: String,
    },
}

/// Addresses to dial, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The addresses; never empty.
    pub addresses: Vec<IpAddr>,
    /// The name did not resolve: the first address is one that worked before.
    pub stale: bool,
}

/// The resolver; clones share what is known.
#[derive(Debug, Clone)]
pub struct Resolver {
    places: Arc<Semaphore>,
    known: Arc<Mutex<VecDeque<(String, IpAddr)>>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(LOOKUPS_MAX)), known: Arc::default() }
    }
}

impl Resolver {
    /// The addresses of a host, with those the table lists behind the ones found.
    ///
    /// # Errors
    /// When the name does not resolve in time and no address of it is known or listed.
    pub async fn find(&self, host: &str, listed: &[IpAddr], limit: Duration) -> Result<Found, LookupError> {
        let looked_up = match host_as_address(host) {
            Some(address) => Ok(vec![address]),
            None => self.look_up(host, limit).await,
        };
        choose(looked_up, self.known_good(host), listed)
    }

    /// The addresses of a host that are known without asking anybody.
    #[must_use]
    pub fn known(&self, host: &str, listed: &[IpAddr]) -> Vec<IpAddr> {
        let own = host_as_address(host).or_else(|| self.known_good(host));
        let mut addresses: Vec<IpAddr> = own.into_iter().collect();
        addresses.extend(listed.iter().filter(|listed| Some(**listed) != own));
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }

    /// Remembers that a good answer came from this address.
    pub fn remember(&self, host: &str, address: IpAddr) {
        let mut known = self.lock();
        known.retain(|(name, _)| name != host);
        if known.len() >= KNOWN_MAX {
            known.pop_front();
        }
        known.push_back((host.to_owned(), address));
    }

    fn known_good(&self, host: &str) -> Option<IpAddr> {
        self.lock().iter().find(|(name, _)| name == host).map(|(_, address)| *address)
    }

    async fn look_up(&self, host: &str, limit: Duration) -> Result<Vec<IpAddr>, LookupError> {
        let owned = host.to_owned();
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(LookupError::Busy { host: owned });
        };
        // Its own task, because the place is free again when the system returns, not when the caller stops waiting.
        let name = owned.clone();
        let asked = tokio::spawn(async move {
            let answer = tokio::net::lookup_host((name.as_str(), 0)).await;
            drop(place);
            answer.map(|found| found.map(|socket| socket.ip()).collect::<Vec<_>>())
        });
        match tokio::time::timeout(limit, asked).await {
            Err(_) => Err(LookupError::TimedOut { host: owned, limit }),
            Ok(Ok(Ok(found))) if found.is_empty() => Err(LookupError::Empty { host: owned }),
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(Ok(Err(source))) => Err(LookupError::Failed { host: owned, source }),
            Ok(Err(ended)) => Err(LookupError::Failed { host: owned, source: io::Error::other(ended) }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(String, IpAddr)>> {
        // A panic while the list was held cannot leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address that a host literally is, also in the brackets of a URL.
pub(super) fn host_as_address(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).parse().ok()
}

fn choose(
    looked_up: Result<Vec<IpAddr>, LookupError>,
    known: Option<IpAddr>,
    listed: &[IpAddr],
) -> Result<Found, LookupError> {
    let (first, stale, problem) = match looked_up {
        Ok(found) => (found, false, None),
        Err(problem) => (known.into_iter().collect(), known.is_some(), Some(problem)),
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in first.into_iter().take(RESOLVED_MAX).chain(listed.iter().copied()) {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(address);
        }
    }
    match problem {
        Some(problem) if addresses.is_empty() => Err(problem),
        _ => Ok(Found { addresses, stale }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn failed() -> Result<Vec<IpAddr>, LookupError> {
        Err(LookupError::Empty { host: "origin.example".into() })
    }

    #[test]
    fn what_resolves_comes_first_and_the_listed_addresses_last() {
        let found = choose(
            Ok(vec![ip("10.0.0.2"), ip("10.0.0.1")]),
            Some(ip("10.0.0.9")),
            &[ip("10.0.0.1"), ip("10.0.0.3")],
        );
        let found = found.unwrap();
        assert_eq!(found.addresses, [ip("10.0.0.2"), ip("10.0.0.1"), ip("10.0.0.3")]);
        assert!(!found.stale, "an address that worked before is not used while the name resolves");
    }

    #[test]
    fn a_name_that_does_not_resolve_gives_the_address_that_worked_and_then_the_listed_ones() {
        let found = choose(failed(), Some(ip("10.0.0.9")), &[ip("10.0.0.1")]).unwrap();
        assert_eq!(found, Found { addresses: vec![ip("10.0.0.9"), ip("10.0.0.1")], stale: true });
        let found = choose(failed(), None, &[ip("10.0.0.1")]).unwrap();
        assert_eq!(found, Found { addresses: vec![ip("10.0.0.1")], stale: false });
        assert!(matches!(choose(failed(), None, &[]), Err(LookupError::Empty { .. })));
    }

    #[test]
    fn a_name_with_many_addresses_leaves_room_for_the_listed_ones() {
        let many = (1..=200).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let found = choose(Ok(many), None, &[ip("192.0.2.1")]).unwrap();
        assert_eq!(found.addresses.len(), RESOLVED_MAX + 1);
        assert_eq!(found.addresses.last(), Some(&ip("192.0.2.1")));
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver() {
        let resolver = Resolver::default();
        for (host, address) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("::1", "::1")] {
            let found = resolver.find(host, &[], Duration::ZERO).await.unwrap();
            assert_eq!(found.addresses, [ip(address)]);
        }
    }

    #[tokio::test]
    async fn look_ups_that_hang_do_not_pile_up() {
        let resolver = Resolver::default();
        let hanging = Arc::clone(&resolver.places).acquire_many_owned(8).await.unwrap();
        let listed = [ip("10.0.0.1")];
        let result = resolver.find("origin.invalid", &[], Duration::from_secs(5)).await;
        assert!(matches!(result, Err(LookupError::Busy { .. })));
        assert_eq!(
            resolver.find("origin.invalid", &listed, Duration::from_secs(5)).await.unwrap().addresses,
            listed
        );
        drop(hanging);
    }

    #[test]
    fn only_so_many_addresses_are_remembered_and_the_newest_of_each_name_counts() {
        let resolver = Resolver::default();
        for n in 0..100 {
            resolver.remember(&format!("host-{n}"), ip("10.0.0.1"));
        }
        resolver.remember("host-99", ip("10.0.0.2"));
        assert_eq!(resolver.lock().len(), KNOWN_MAX);
        assert_eq!(resolver.known_good("host-99"), Some(ip("10.0.0.2")));
        assert_eq!(resolver.known_good("host-0"), None);
    }
}
