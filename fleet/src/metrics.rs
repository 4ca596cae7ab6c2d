//! A few counters in Prometheus' text form. They start at 0 with the process.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use samovar_wire::orders::{OrderResult, Outcome};

use crate::orders::pace::Work;

/// Batches and what became of their orders.
#[derive(Debug, Default)]
pub struct Batches {
    /// Batches answered 200.
    pub batches: AtomicU64,
    /// Orders recorded (of a shadow: that would be).
    pub settled: AtomicU64,
    /// Orders that were there already.
    pub duplicate: AtomicU64,
    /// Keys that came again with other content. Worth an alarm.
    pub conflict: AtomicU64,
    /// Orders refused for good.
    pub rejected: AtomicU64,
}

/// One counter for each outcome worth a graph.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Batches of orders.
    pub orders: Batches,
    /// Batches that were judged only.
    pub shadows: Batches,
    /// Comparisons in which every range matched.
    pub reconciles_matched: AtomicU64,
    /// Comparisons in which one did not.
    pub reconciles_differed: AtomicU64,
    /// Batches of devices that were too fast, refused with 429.
    pub throttled_orders: AtomicU64,
    /// The same of shadows.
    pub throttled_shadows: AtomicU64,
    /// The same of comparisons.
    pub throttled_reconciles: AtomicU64,
    /// Devices activated.
    pub activations: AtomicU64,
    /// Claims refused.
    pub claims_refused: AtomicU64,
    /// Certificates renewed.
    pub renewals: AtomicU64,
    /// Logins refused.
    pub logins_refused: AtomicU64,
}

/// Counts one more.
pub fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Counts some more.
pub fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Name, help, and one counter for each set of labels.
type Family<'a> = (&'a str, &'a str, &'a [(&'a str, &'a AtomicU64)]);

impl Batches {
    fn by_outcome(&self) -> [(&str, &AtomicU64); 4] {
        [
            ("{status=\"settled\"}", &self.settled),
            ("{status=\"duplicate\"}", &self.duplicate),
            ("{status=\"conflict\"}", &self.conflict),
            ("{status=\"rejected\"}", &self.rejected),
        ]
    }
}

impl Metrics {
    /// Counts a batch and what became of its orders.
    pub fn answered(&self, work: Work, results: &[OrderResult]) {
        let batches = if work == Work::Shadow { &self.shadows } else { &self.orders };
        count(&batches.batches);
        for (counter, outcome) in [
            (&batches.settled, Outcome::Settled),
            (&batches.duplicate, Outcome::Duplicate),
            (&batches.conflict, Outcome::Conflict),
            (&batches.rejected, Outcome::Rejected),
        ] {
            add(counter, results.iter().filter(|result| result.status == outcome).count() as u64);
        }
    }

    /// The counter of refusals because a device was too fast.
    #[must_use]
    pub fn throttled(&self, work: Work) -> &AtomicU64 {
        match work {
            Work::Orders => &self.throttled_orders,
            Work::Shadow => &self.throttled_shadows,
            Work::Reconcile => &self.throttled_reconciles,
        }
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let families: [Family<'_>; 10] = [
            ("samovar_fleet_batches_total", "Batches of orders answered", &[("", &self.orders.batches)]),
            ("samovar_fleet_orders_total", "Orders by outcome", &self.orders.by_outcome()),
            ("samovar_fleet_shadow_batches_total", "Shadow batches judged", &[("", &self.shadows.batches)]),
            (
                "samovar_fleet_shadow_orders_total",
                "Orders of shadow batches by verdict",
                &self.shadows.by_outcome(),
            ),
            (
                "samovar_fleet_reconciles_total",
                "Comparisons of ledgers",
                &[
                    ("{outcome=\"match\"}", &self.reconciles_matched),
                    ("{outcome=\"differ\"}", &self.reconciles_differed),
                ],
            ),
            (
                "samovar_fleet_throttled_total",
                "Requests of devices that were too fast, refused with 429",
                &[
                    ("{class=\"orders\"}", &self.throttled_orders),
                    ("{class=\"shadow\"}", &self.throttled_shadows),
                    ("{class=\"reconcile\"}", &self.throttled_reconciles),
                ],
            ),
            ("samovar_fleet_activations_total", "Devices activated", &[("", &self.activations)]),
            ("samovar_fleet_claims_refused_total", "Claims refused", &[("", &self.claims_refused)]),
            ("samovar_fleet_renewals_total", "Device certificates renewed", &[("", &self.renewals)]),
            ("samovar_fleet_logins_refused_total", "Logins refused", &[("", &self.logins_refused)]),
        ];
        for (name, help, samples) in families {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for (labels, counter) in samples {
                let _ = writeln!(text, "{name}{labels} {}", counter.load(Ordering::Relaxed));
            }
        }
        let _ = writeln!(
            text,
            "# HELP samovar_fleet_info The version running\n# TYPE samovar_fleet_info gauge\nsamovar_fleet_info{{version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        text
    }
}
