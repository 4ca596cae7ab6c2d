//! Which of a host's addresses won the last race, and whether IPv6 works in this network. Pure.

use crate::clock::Mono;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a winner is dialled first without another race.
const CHOSEN_FOR: Duration = Duration::from_mins(10);
/// How long IPv6 comes last after it has lost where it should have won.
const V6_BROKEN_FOR: Duration = Duration::from_mins(10);
/// Ways that are remembered.
const WAYS_MAX: usize = 64;

/// One way: the name that TLS must prove, the host that is dialled, the port.
pub(in crate::net) type Way = (String, String, u16);

/// What races have shown, shared by all clients.
#[derive(Debug, Default)]
pub(super) struct Choices {
    chosen: BTreeMap<Way, (SocketAddr, Mono)>,
    v6_broken_until: Mono,
}

impl Choices {
    /// The address that is dialled first, if it is still one of the host's.
    pub(super) fn chosen(&self, way: &Way, among: &[SocketAddr], now: Mono) -> Option<SocketAddr> {
        let (address, until) = self.chosen.get(way)?;
        (now < *until && among.contains(address)).then_some(*address)
    }

    pub(super) fn choose(&mut self, way: Way, address: SocketAddr, now: Mono) {
        if !self.chosen.contains_key(&way) && self.chosen.len() >= WAYS_MAX {
            let oldest = self.chosen.iter().min_by_key(|(_, (_, until))| *until).map(|(way, _)| way.clone());
            oldest.map(|way| self.chosen.remove(&way));
        }
        self.chosen.insert(way, (address, now.plus(CHOSEN_FOR)));
    }

    /// It did not work: the next connection is raced again.
    pub(super) fn unchoose(&mut self, way: &Way) {
        self.chosen.remove(way);
    }

    pub(super) fn v6_is_broken(&self, now: Mono) -> bool {
        now < self.v6_broken_until
    }

    pub(super) fn v6_lost(&mut self, now: Mono) {
        self.v6_broken_until = now.plus(V6_BROKEN_FOR);
    }

    /// Another network, other ways.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Mono {
        Mono(Duration::from_mins(minutes))
    }

    fn way(n: usize) -> Way {
        (format!("d{n}"), "h".into(), 443)
    }

    #[test]
    fn a_winner_is_used_for_ten_minutes_until_it_fails_or_is_no_address_of_the_host_any_more() {
        let address: SocketAddr = "203.0.113.1:443".parse().unwrap();
        let mut choices = Choices::default();
        choices.choose(way(1), address, at(0));
        assert_eq!(choices.chosen(&way(1), &[address], at(9)), Some(address));
        assert_eq!(choices.chosen(&way(1), &[address], at(10)), None);
        assert_eq!(choices.chosen(&way(1), &[], at(9)), None);
        choices.unchoose(&way(1));
        assert_eq!(choices.chosen(&way(1), &[address], at(9)), None);
        for n in 0..200 {
            choices.choose(way(n), address, at(n as u64));
        }
        assert_eq!(choices.chosen.len(), WAYS_MAX);
    }

    #[test]
    fn a_broken_ipv6_is_tried_again_after_ten_minutes_or_in_another_network() {
        let mut choices = Choices::default();
        assert!(!choices.v6_is_broken(at(0)));
        choices.v6_lost(at(1));
        assert!(choices.v6_is_broken(at(10)) && !choices.v6_is_broken(at(11)));
        choices.forget();
        assert!(!choices.v6_is_broken(at(2)));
    }
}
