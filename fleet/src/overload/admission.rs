//! Who is let in when the intake is loaded: the least important work is refused first, orders last. Pure.
//!
//! ```text
//! load  0 ─────── 1 ──────── 1.5 ──────── 2 ──────── 3 ─────────────── 8 ──────►
//!        everyone │ no status │ no shadow │ no config │ no reconciliation │ not even orders
//! ```
//!
//! The load is how the orders are doing and nothing else: 1 means that every turn of the intake is taken, or that the
//! oldest order in hand has been waiting for a second. Other work has few turns of its own and cannot raise it.

use std::time::Duration;

/// Work by importance, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Batches of orders: money.
    Orders,
    /// Finding orders that one side lacks; can be made up for later.
    Reconcile,
    /// Route tables, certificates, activation: devices go on with what they have.
    Config,
    /// Orders sent to be compared only.
    Shadow,
    /// What devices say of themselves (metrics, state), and logs.
    Status,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Orders, Self::Reconcile, Self::Config, Self::Shadow, Self::Status];

    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Reconcile => "reconcile",
            Self::Config => "config",
            Self::Shadow => "shadow",
            Self::Status => "status",
        }
    }

    /// The load, in hundredths, from which it is refused.
    const fn refused_from(self) -> u64 {
        match self {
            Self::Orders => 800,
            Self::Reconcile => 300,
            Self::Config => 200,
            Self::Shadow => 150,
            Self::Status => 100,
        }
    }

    /// How long whoever is refused is asked to wait at least; the more important, the sooner.
    #[must_use]
    pub const fn wait_s(self) -> u64 {
        match self {
            Self::Orders => 2,
            Self::Reconcile => 30,
            Self::Config => 15,
            Self::Shadow | Self::Status => 60,
        }
    }
}

/// How the orders are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Batches that wait or are worked on.
    pub in_hand: usize,
    /// Batches that can be worked on at once.
    pub turns: usize,
    /// How long the oldest of them has been in hand.
    pub oldest: Duration,
}

impl Load {
    /// 100 = every turn is taken, or the oldest has waited a second.
    #[must_use]
    pub fn hundredths(&self) -> u64 {
        let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let fullness = number(self.in_hand).saturating_mul(100) / number(self.turns.max(1));
        let age = u64::try_from(self.oldest.as_millis()).unwrap_or(u64::MAX) / 10;
        fullness.max(age)
    }

    /// Whether work of this class is done now.
    #[must_use]
    pub fn admits(&self, class: Class) -> bool {
        self.hundredths() < class.refused_from()
    }
}

/// The class of a request of a device; `None` for what is always answered, such as the health check and whatever
/// people ask for.
#[must_use]
pub fn class(path: &str, shadow: bool) -> Option<Class> {
    match path {
        "/v1/orders:batch" if shadow => Some(Class::Shadow),
        "/v1/orders:batch" => Some(Class::Orders),
        "/v1/orders:reconcile" => Some(Class::Reconcile),
        _ if path.starts_with("/activate/v1/") || path.starts_with("/device/v1/") => Some(Class::Config),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(load: Load) -> Vec<&'static str> {
        Class::ALL.into_iter().filter(|class| !load.admits(*class)).map(Class::name).collect()
    }

    #[test]
    fn the_least_important_work_is_refused_first_and_orders_last() {
        let mut before = 0;
        for (in_hand, expected) in [
            (0, &[][..]),
            (63, &[]),
            (64, &["status"]),
            (96, &["shadow", "status"]),
            (128, &["config", "shadow", "status"]),
            (192, &["reconcile", "config", "shadow", "status"]),
            (511, &["reconcile", "config", "shadow", "status"]),
            (512, &["orders", "reconcile", "config", "shadow", "status"]),
        ] {
            let found = refused(Load { in_hand, turns: 64, oldest: Duration::ZERO });
            assert_eq!(found, expected, "{in_hand} in hand");
            assert!(found.len() >= before);
            before = found.len();
        }
    }

    #[test]
    fn a_few_batches_that_wait_long_are_as_much_of_a_load_as_many() {
        let aged = |millis| refused(Load { in_hand: 1, turns: 64, oldest: Duration::from_millis(millis) });
        assert_eq!(aged(999), [""; 0]);
        assert_eq!(aged(1000), ["status"]);
        assert_eq!(aged(3000).len(), 4);
        assert_eq!(aged(8000).len(), 5);
    }

    #[test]
    fn requests_are_told_apart_by_path_and_header() {
        for (path, shadow, expected) in [
            ("/v1/orders:batch", false, Some(Class::Orders)),
            ("/v1/orders:batch", true, Some(Class::Shadow)),
            ("/v1/orders:reconcile", true, Some(Class::Reconcile)),
            ("/activate/v1/renewals", false, Some(Class::Config)),
            ("/device/v1/route-table", false, Some(Class::Config)),
            ("/.samovar/health", false, None),
            ("/api/v1/orders", false, None),
        ] {
            assert_eq!(class(path, shadow), expected, "{path}");
        }
    }
}
