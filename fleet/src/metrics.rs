//! A few counters in Prometheus' text form. They start at 0 with the process.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// One counter for each outcome worth a graph.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Batches answered 200.
    pub batches: AtomicU64,
    /// Orders recorded.
    pub settled: AtomicU64,
    /// Orders that were there already.
    pub duplicate: AtomicU64,
    /// Keys that came again with other content. Worth an alarm.
    pub conflict: AtomicU64,
    /// Orders refused for good.
    pub rejected: AtomicU64,
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

impl Metrics {
    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let families: [Family<'_>; 6] = [
            ("samovar_fleet_batches_total", "Batches of orders answered", &[("", &self.batches)]),
            (
                "samovar_fleet_orders_total",
                "Orders by outcome",
                &[
                    ("{status=\"settled\"}", &self.settled),
                    ("{status=\"duplicate\"}", &self.duplicate),
                    ("{status=\"conflict\"}", &self.conflict),
                    ("{status=\"rejected\"}", &self.rejected),
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
