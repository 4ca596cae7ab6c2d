//! What is measured of each endpoint between two reports: how long its name took, and requests to it. A few numbers per
//! endpoint, for a bounded number of endpoints; recording never waits for long and never fails.

use samovar_wire::OriginId;
use samovar_wire::figures::{EDGES_MS, ENDPOINTS_MAX, EndpointFigures, Timing, bucket_of};
use samovar_wire::route::Table;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Names and endpoints of which something is measured at one time; beyond it nothing new is.
const KNOWN_MAX: usize = 2 * ENDPOINTS_MAX;

/// The measurements; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Figures(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    dns: BTreeMap<String, Counts>,
    requests: BTreeMap<(OriginId, String), Counts>,
}

#[derive(Debug, Default)]
struct Counts([u64; EDGES_MS.len()]);

impl Counts {
    fn add(&mut self, took: Duration) {
        let count = &mut self.0[bucket_of(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))];
        *count = count.saturating_add(1);
    }

    fn timing(self) -> Timing {
        Timing::of(self.0.to_vec())
    }
}

impl Figures {
    /// Looking up a host's name took so long.
    pub fn record_dns(&self, host: &str, took: Duration) {
        let mut inner = self.lock();
        if inner.dns.len() < KNOWN_MAX || inner.dns.contains_key(host) {
            inner.dns.entry(host.to_owned()).or_default().add(took);
        }
    }

    /// The head of an answer came after so long.
    pub fn record_request(&self, origin: &OriginId, host: &str, took: Duration) {
        let mut inner = self.lock();
        let key = (origin.clone(), host.to_owned());
        if inner.requests.len() < KNOWN_MAX || inner.requests.contains_key(&key) {
            inner.requests.entry(key).or_default().add(took);
        }
    }

    /// What was measured of the endpoints of a table since the last time; it begins anew.
    #[must_use]
    pub fn take(&self, table: &Table) -> Vec<EndpointFigures> {
        let Inner { mut dns, mut requests } = std::mem::take(&mut *self.lock());
        let endpoints = table
            .origins
            .iter()
            .flat_map(|(origin, entry)| entry.endpoints.iter().map(move |endpoint| (origin, &endpoint.host)));
        let measured = endpoints.filter_map(|(origin, host)| {
            let request = requests.remove(&(origin.clone(), host.clone())).map(Counts::timing);
            let dns = dns.remove(host).map(Counts::timing);
            (request.is_some() || dns.is_some()).then(|| EndpointFigures {
                origin: origin.clone(),
                host: host.clone(),
                table_version: table.version,
                dns: dns.unwrap_or_default(),
                request: request.unwrap_or_default(),
            })
        });
        measured.take(ENDPOINTS_MAX).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while the counts were held costs a count at most.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Measures requests to one endpoint.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    figures: Figures,
    origin: OriginId,
    host: String,
}

impl Stopwatch {
    /// For the endpoint of an origin.
    #[must_use]
    pub fn new(figures: Figures, origin: OriginId, host: String) -> Self {
        Self { figures, origin, host }
    }

    /// The head of an answer came after so long.
    pub fn record(&self, took: Duration) {
        self.figures.record_request(&self.origin, &self.host, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let text = include_str!("../../../fleet/wire/src/route/example.json");
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_measured_of_an_endpoint_is_told_once() {
        let figures = Figures::default();
        let (table, ms) = (table(), Duration::from_millis);
        let apac: OriginId = "apac".parse().unwrap();
        let host = table.origins[&apac].endpoints[0].host.clone();
        figures.record_dns(&host, ms(3));
        figures.record_request(&apac, &host, ms(40));
        figures.record_request(&apac, &host, ms(45));
        figures.record_request(&apac, "gone.store.example", ms(45));
        let told = figures.take(&table);
        let [told] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((told.origin.as_str(), told.table_version), ("apac", table.version));
        assert_eq!((told.dns.count, told.dns.p50_ms, told.request.count), (1, Some(3), 2));
        assert_eq!(told.request.p95_ms, Some(50));
        assert_eq!(figures.take(&table), []);
    }

    #[test]
    fn names_without_end_take_no_room_without_end() {
        let figures = Figures::default();
        let apac: OriginId = "apac".parse().unwrap();
        for n in 0..10_000 {
            figures.record_dns(&format!("host-{n}"), Duration::ZERO);
            figures.record_request(&apac, &format!("host-{n}"), Duration::ZERO);
        }
        let inner = figures.lock();
        assert_eq!((inner.dns.len(), inner.requests.len()), (KNOWN_MAX, KNOWN_MAX));
    }
}
