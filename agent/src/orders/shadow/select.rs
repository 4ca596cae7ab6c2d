//! Which orders are copied. Pure.
//!
//! The share is stable: an order is in it or not by the bucket of its key, salted with `shadow:<country>:<origin>`, so
//! that a repeat is copied like the first and two shadows of one country take different orders.

use samovar_wire::route::{Table, bucket};
use samovar_wire::{Country, OriginId};
use serde::Serialize;

/// One entry of the route table's `shadow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Orders of this country.
    pub country: Country,
    /// Where the copies go.
    pub origin: OriginId,
    /// How many of 10,000.
    pub basis_points: u32,
}

impl Rule {
    /// Whether an order is in the share.
    #[must_use]
    pub fn takes(&self, key: &str) -> bool {
        bucket(&format!("shadow:{}:{}", self.country, self.origin), key) < self.basis_points
    }
}

/// The rules of a table for one service.
#[must_use]
pub fn rules(table: &Table, service: &str) -> Vec<Rule> {
    let entries = table.shadow.iter().filter(|entry| entry.service == service && entry.basis_points > 0);
    let rule = |entry: &samovar_wire::route::Shadow| Rule {
        country: entry.country.clone(),
        origin: entry.origin.clone(),
        basis_points: entry.basis_points,
    };
    entries.map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(basis_points: u32, origin: &str) -> Vec<usize> {
        let rule = Rule { country: "US".parse().unwrap(), origin: origin.parse().unwrap(), basis_points };
        (0..10_000).filter(|n| rule.takes(&format!("A-{n:06}"))).collect()
    }

    #[test]
    fn a_share_gets_its_part_of_the_keys_and_none_and_all_are_exact() {
        for (basis_points, least, most) in [(100, 60, 140), (2_500, 2_350, 2_650), (9_900, 9_860, 9_940)] {
            let taken = share(basis_points, "us-next").len();
            assert!((least..=most).contains(&taken), "{taken} of 10,000 at {basis_points}");
        }
        assert_eq!((share(0, "us-next").len(), share(10_000, "us-next").len()), (0, 10_000));
    }

    #[test]
    fn two_shadows_take_different_orders_and_a_larger_share_keeps_the_smaller_one() {
        let (small, large) = (share(500, "us-next"), share(1_000, "us-next"));
        assert!(small.iter().all(|n| large.contains(n)));
        let both = share(500, "apac").iter().filter(|n| small.contains(n)).count();
        assert!(both < 60, "{both} orders in both shares of 5 %");
    }
}
