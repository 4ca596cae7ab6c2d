//! What an origin holds: one order per device and key, with the digest that makes a repeat a duplicate.

use super::journal::{Entry, Journal, Recorded};
use samovar_wire::orders::{IncomingOrder, OrderResult, Outcome};
use std::collections::BTreeMap;

/// A fault of the origin itself, by which a judge shows that it would see one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Knows no key again: what comes a second time is recorded a second time.
    Forgets,
    /// Answers `settled` for every fourth order without recording it.
    Lies,
}

/// One order that is held.
#[derive(Debug, Clone)]
pub struct Held {
    /// Digest of the body.
    pub sha256: String,
    /// The body, byte for byte.
    pub body: String,
    /// The till's number.
    pub order_no: String,
    /// Place in the device's ledger.
    pub seq: u64,
    /// UUID of that ledger.
    pub ledger: String,
    /// User data location.
    pub udl: String,
    /// Place in the order in which this origin recorded them.
    pub recorded: usize,
}

/// All orders of one origin.
#[derive(Debug, Default)]
pub struct Store {
    orders: BTreeMap<(String, String), Held>,
    duplicates: u64,
    broken_digests: Vec<String>,
    journal: Option<Journal>,
    defect: Option<Defect>,
    refuses: Option<String>,
}

impl Store {
    /// A store that writes down what it records, with what an earlier process wrote down.
    #[must_use]
    pub fn with_journal(journal: Journal, entries: Vec<Entry>) -> Self {
        let mut store = Self { journal: Some(journal), ..Self::default() };
        for entry in entries {
            if let Entry::Recorded(order) = entry {
                let held = Held {
                    sha256: order.sha256,
                    body: String::new(),
                    order_no: order.order_no,
                    seq: order.seq,
                    ledger: order.ledger,
                    udl: order.udl,
                    recorded: store.orders.len(),
                };
                store.orders.insert((order.device, order.key), held);
            }
        }
        store
    }

    /// Breaks it.
    #[must_use]
    pub const fn with_defect(mut self, defect: Option<Defect>) -> Self {
        self.defect = defect;
        self
    }

    /// From now on orders whose body contains this text are answered `rejected`, however else the batch is treated.
    #[must_use]
    pub fn refusing(mut self, text: &str) -> Self {
        self.refuses = Some(text.to_owned());
        self
    }

    /// Has everything on disk that was recorded so far.
    pub(super) fn sync(&mut self) -> std::io::Result<()> {
        self.journal.as_mut().map_or(Ok(()), Journal::write)
    }

    /// Notes something for whoever reads the journal.
    pub(super) fn note(&mut self, entry: &Entry) {
        if let Some(journal) = &mut self.journal {
            journal.push(entry);
        }
    }

    /// How many orders are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.orders.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// The order of a key, whichever device sent it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Held> {
        self.orders.iter().find(|((_, held), _)| held == key).map(|(_, order)| order)
    }

    /// Every order by (device, key).
    #[must_use]
    pub const fn orders(&self) -> &BTreeMap<(String, String), Held> {
        &self.orders
    }

    /// How often an order came again.
    #[must_use]
    pub const fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Keys whose digest did not match their body.
    #[must_use]
    pub fn broken_digests(&self) -> &[String] {
        &self.broken_digests
    }

    /// Forgets the orders of these keys, as a restore from an old copy would.
    pub(super) fn lose(&mut self, lost: impl Fn(&str) -> bool) {
        self.orders.retain(|(_, key), _| !lost(key));
    }

    pub(super) fn occupy(&mut self, device: &str, key: &str) {
        let held = Held {
            sha256: "0".repeat(64),
            body: "{}".into(),
            order_no: key.into(),
            seq: 0,
            ledger: String::new(),
            udl: String::new(),
            recorded: self.orders.len(),
        };
        self.orders.insert((device.into(), key.into()), held);
    }

    /// Records one order and says what became of it.
    pub(super) fn record(&mut self, device: &str, ledger: &str, order: &IncomingOrder) -> OrderResult {
        if !order.digest_matches() {
            self.broken_digests.push(order.key.clone());
            self.note(&Entry::Broken { key: order.key.clone() });
            return result(order, Outcome::Rejected, Some("digest"));
        }
        if self.refuses.as_ref().is_some_and(|text| order.body.get().contains(text)) {
            return result(order, Outcome::Rejected, Some("poison"));
        }
        if self.defect == Some(Defect::Lies) && order.seq.is_multiple_of(4) {
            return result(order, Outcome::Settled, None);
        }
        let place = (device.to_owned(), order.key.clone());
        let known = self.orders.get(&place).filter(|_| self.defect != Some(Defect::Forgets));
        match known {
            Some(held) if held.sha256 == order.sha256 => {
                self.duplicates += 1;
                self.note(&Entry::Repeated { key: order.key.clone() });
                result(order, Outcome::Duplicate, None)
            }
            Some(_) => result(order, Outcome::Conflict, Some("key-reused")),
            None => {
                self.note(&Entry::Recorded(Recorded::of(device, ledger, order)));
                let held = Held {
                    sha256: order.sha256.clone(),
                    body: order.body.get().to_owned(),
                    order_no: order.order_no.clone(),
                    seq: order.seq,
                    ledger: ledger.to_owned(),
                    udl: order.udl.clone().unwrap_or_default(),
                    recorded: self.orders.len(),
                };
                self.orders.insert(place, held);
                result(order, Outcome::Settled, None)
            }
        }
    }
}

/// A result with a code.
pub(super) fn result(order: &IncomingOrder, status: Outcome, code: Option<&str>) -> OrderResult {
    OrderResult {
        id: order.id.clone(),
        status,
        code: code.map(ToOwned::to_owned),
        detail: code.map(|code| format!("the origin says {code}")),
        retry_after_s: None,
    }
}
