//! Addresses that have worked, by network and name: what a dead resolver is survived with. Pure; `shelf` keeps it.
//!
//! An address gets here only after TLS has proved, behind it, the very name it is kept for (where origins are spoken to in
//! the open: after the right origin has answered). What was proved in one network is used in another only when
//! nothing else is left, because an address may mean something else there.

use super::network::Network;
use samovar_wire::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Networks that are remembered; the one not used for longest makes room.
const NETWORKS_MAX: usize = 8;
/// Names of one network.
const NAMES_MAX: usize = 64;
/// Addresses of one name, newest proof first.
const ADDRESSES_MAX: usize = 4;
/// A proof is dated anew no more often than that, so that an address in use does not wear out the disk.
const DATED_ANEW: Duration = Duration::from_hours(1);

/// Everything that has worked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    networks: Vec<OfNetwork>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OfNetwork {
    network: Network,
    names: BTreeMap<String, Vec<Proven>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Proven {
    address: IpAddr,
    at: Timestamp,
}

/// What is known of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KnownGood {
    /// Proved in this network, newest first.
    pub(super) here: Vec<IpAddr>,
    /// Proved in others.
    pub(super) elsewhere: Vec<IpAddr>,
}

impl Known {
    /// Keeps a proof; `true` when that is worth writing down.
    pub(super) fn remember(
        &mut self,
        network: &Network,
        host: &str,
        address: IpAddr,
        now: Timestamp,
    ) -> bool {
        let at = self.networks.iter().position(|of| of.network.is_same(network));
        let index = at.unwrap_or_else(|| {
            self.networks.truncate(NETWORKS_MAX - 1);
            self.networks.push(OfNetwork { network: network.clone(), names: BTreeMap::new() });
            self.networks.len() - 1
        });
        self.networks[..=index].rotate_right(1);
        let of = &mut self.networks[0];
        if of.network.gateway_mac.is_none() {
            of.network.gateway_mac.clone_from(&network.gateway_mac);
        }
        if !of.names.contains_key(host) && of.names.len() >= NAMES_MAX {
            let newest = |proven: &[Proven]| proven.first().map(|proven| proven.at);
            let oldest =
                of.names.iter().min_by_key(|(_, proven)| newest(proven)).map(|(name, _)| name.clone());
            oldest.map(|name| of.names.remove(&name));
        }
        let proven = of.names.entry(host.to_owned()).or_default();
        match proven.iter().position(|proven| proven.address == address) {
            Some(at) => {
                proven[..=at].rotate_right(1);
                // A clock that was set back must not keep a proof young, so any other date counts.
                let old = now.since(proven[0].at) >= DATED_ANEW || now < proven[0].at;
                if old {
                    proven[0].at = now;
                }
                old
            }
            None => {
                // A name whose addresses take turns would otherwise be written down at every turn.
                let full = proven.len() >= ADDRESSES_MAX;
                let worth = !full || proven.iter().any(|proven| now.since(proven.at) >= DATED_ANEW);
                proven.truncate(ADDRESSES_MAX - 1);
                proven.insert(0, Proven { address, at: now });
                worth
            }
        }
    }

    /// What was proved for a name, and not longer ago than `max_age`.
    pub(super) fn of(&self, network: &Network, host: &str, now: Timestamp, max_age: Duration) -> KnownGood {
        let mut good = KnownGood::default();
        for of in &self.networks {
            let list = if of.network.is_same(network) { &mut good.here } else { &mut good.elsewhere };
            let young = |proven: &&Proven| now.since(proven.at) <= max_age;
            let proven = of.names.get(host).into_iter().flatten().filter(young);
            list.extend(proven.map(|proven| proven.address));
        }
        good
    }

    /// Cuts what a file may say to what may be kept.
    pub(super) fn bounded(mut self) -> Self {
        self.networks.truncate(NETWORKS_MAX);
        for of in &mut self.networks {
            while of.names.len() > NAMES_MAX {
                of.names.pop_last();
            }
            of.names.values_mut().for_each(|proven| proven.truncate(ADDRESSES_MAX));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn network(gateway: &str) -> Network {
        Network { gateway: Some(gateway.parse().unwrap()), ..Network::default() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1_000)
    }

    fn ip(last: u8) -> IpAddr {
        [203, 0, 113, last].into()
    }

    #[test]
    fn what_worked_here_is_told_from_what_worked_elsewhere_and_too_old_is_forgotten() {
        let (shop, phone) = (network("10.0.0.1"), network("172.20.0.1"));
        let mut known = Known::default();
        assert!(known.remember(&shop, "a", ip(1), at(0)));
        assert!(known.remember(&shop, "a", ip(2), at(10)));
        assert!(known.remember(&phone, "a", ip(3), at(20)));
        let here = known.of(&shop, "a", at(30), DAY);
        assert_eq!((here.here, here.elsewhere), (vec![ip(2), ip(1)], vec![ip(3)]));
        let late = known.of(&shop, "a", at(86_405), DAY);
        assert_eq!((late.here, late.elsewhere), (vec![ip(2)], vec![ip(3)]));
        assert_eq!(known.of(&shop, "b", at(30), DAY), KnownGood::default());
    }

    #[test]
    fn the_same_proof_again_is_written_down_once_an_hour_at_most() {
        let (shop, mut known) = (network("10.0.0.1"), Known::default());
        assert!(known.remember(&shop, "a", ip(1), at(0)));
        assert!(!known.remember(&shop, "a", ip(1), at(3_599)));
        assert!(known.remember(&shop, "a", ip(1), at(3_600)));
        assert!(known.remember(&shop, "a", ip(1), at(100)), "the clock was set back");
        assert_eq!(known.of(&shop, "a", at(100), DAY).here, [ip(1)]);
    }

    #[test]
    fn it_stays_small_whatever_happens() {
        let mut known = Known::default();
        for gateway in 0..20 {
            for name in 0..80 {
                for last in 0..6 {
                    let seconds = i64::from(gateway) * 1_000 + i64::from(name);
                    known.remember(
                        &network(&format!("10.0.{gateway}.1")),
                        &format!("n{name}"),
                        ip(last),
                        at(seconds),
                    );
                }
            }
        }
        assert_eq!(known.networks.len(), NETWORKS_MAX);
        assert!(known.networks.iter().all(|of| of.names.len() == NAMES_MAX));
        assert_eq!(known.of(&network("10.0.19.1"), "n79", at(20_000), DAY).here, [5, 4, 3, 2].map(ip));
        assert_eq!(known.of(&network("10.0.19.1"), "n0", at(20_000), DAY), KnownGood::default());
        assert_eq!(known.clone().bounded(), known);
        assert!(serde_json::to_vec(&known).unwrap().len() < 300_000);
    }

    #[test]
    fn a_router_whose_hardware_address_is_learned_later_is_the_same_router() {
        let mut known = Known::default();
        known.remember(&network("10.0.0.1"), "a", ip(1), at(0));
        let learned = Network { gateway_mac: Some("02:00:00:00:00:01".into()), ..network("10.0.0.1") };
        assert_eq!(known.of(&learned, "a", at(1), DAY).here, [ip(1)]);
        known.remember(&learned, "a", ip(1), at(1));
        let other = Network { gateway_mac: Some("02:00:00:00:00:02".into()), ..network("10.0.0.1") };
        assert_eq!(known.of(&other, "a", at(2), DAY).elsewhere, [ip(1)]);
    }
}
