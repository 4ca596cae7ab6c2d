//! The tills of a soak: they sell, repeat an order with the same key until they know what became of it, and write down
//! what they were told at the moment they were told.

use crate::{Answer, LocalApi};
use anyhow::{Context, Result};
use fastrand::Rng;
use http::Method;
use samovar_wire::encoding::{hex, sha256};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// An order with this in its body is refused by the rough origins, each time.
pub const POISON: &str = "\"poison\":true";

/// How long a till waits for an answer; some guests have less patience.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the tills do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// They sell.
    Open,
    /// Nobody buys for a moment.
    Quiet,
    /// They have gone home; what has no answer by now stays unknown.
    Closed,
}

/// What the tills sent and were told: one file, a line each, written before the next thing is done.
pub struct Book {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    complaints: Vec<String>,
    refused: u64,
}

/// What stands in a book.
#[derive(Debug, Default)]
pub struct Told {
    /// Every content that was sent, by key.
    pub sent: BTreeMap<String, BTreeSet<String>>,
    /// Digest of what was acknowledged, by key.
    pub acknowledged: BTreeMap<String, String>,
}

impl Book {
    /// An empty book in this directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(directory: &Path) -> Result<Self> {
        let path = directory.join("tills.txt");
        let file = File::create(&path).context("cannot make the tills' book")?;
        Ok(Self { path, inner: Mutex::new(Inner { file, complaints: Vec::new(), refused: 0 }) })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn line(&self, what: &str, key: &str, body: &str) {
        let digest = hex(&sha256(body.as_bytes()));
        self.with(|inner| {
            if let Err(error) = writeln!(inner.file, "{what} {key} {digest}") {
                inner.complaints.push(format!("the book cannot be written: {error}"));
            }
        });
    }

    /// Before the first byte leaves the till.
    pub fn sends(&self, key: &str, body: &str) {
        self.line("sends", key, body);
    }

    /// When it has a 2xx in its hands.
    pub fn was_told(&self, key: &str, body: &str) {
        self.line("told", key, body);
    }

    /// Something that the contract does not allow.
    pub fn complain(&self, complaint: String) {
        self.with(|inner| inner.complaints.push(complaint));
    }

    /// What the contract does not allow and happened all the same.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.with(|inner| inner.complaints.clone())
    }

    /// How many orders were refused because their key was used before: each of them was made so on purpose.
    #[must_use]
    pub fn keys_refused(&self) -> u64 {
        self.with(|inner| inner.refused)
    }

    /// Reads the book.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Told> {
        let text = std::fs::read_to_string(&self.path).context("cannot read the tills' book")?;
        let mut told = Told::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(what), Some(key), Some(digest)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            match what {
                "sends" => drop(told.sent.entry(key.into()).or_default().insert(digest.into())),
                _ => drop(told.acknowledged.entry(key.into()).or_insert(digest.into())),
            }
        }
        Ok(told)
    }
}

/// What a guest buys.
struct Order {
    key: String,
    body: String,
}

/// One till.
pub(super) struct Till {
    pub(super) number: u64,
    pub(super) rng: Rng,
    pub(super) api: LocalApi,
    pub(super) book: Arc<Book>,
    pub(super) pace: watch::Receiver<Pace>,
    /// Mean time between two guests.
    pub(super) between: Duration,
}

impl Till {
    /// Sells until closing time.
    pub(super) async fn sell(mut self) {
        let mut last_sale = None;
        let mut guest = 0_u64;
        while self.is_open().await {
            guest += 1;
            if self.number % 4 == 3 {
                self.serve_many(guest).await;
            } else {
                self.serve(guest, &mut last_sale).await;
            }
            tokio::time::sleep(self.between.mul_f64(2.0 * self.rng.f64())).await;
        }
    }

    /// Waits while nobody buys.
    async fn is_open(&mut self) -> bool {
        let pace = self.pace.wait_for(|pace| *pace != Pace::Quiet).await;
        pace.is_ok_and(|pace| *pace == Pace::Open)
    }

    async fn serve(&mut self, guest: u64, last_sale: &mut Option<String>) {
        let order = self.order(guest, last_sale.as_deref());
        self.book.sends(&order.key, &order.body);
        let Some(first) = self.hand_over(&order.key, &order.body).await else { return };
        if !matches!(first.status, 200 | 202) {
            self.complain("a good order", &order.key, &first);
            return;
        }
        self.book.was_told(&order.key, &order.body);
        if self.names_are_keys() && !order.body.contains(POISON) {
            *last_sale = Some(order.key.clone());
        }
        match self.rng.u32(0..100) {
            0..3 => self.repeat(&order, &first).await,
            3 => self.reuse(&order).await,
            _ => {}
        }
    }

    /// One till in two repeats its numbers, as many do each day, and sends keys of its own.
    const fn names_are_keys(&self) -> bool {
        self.number.is_multiple_of(2)
    }

    fn order(&mut self, guest: u64, last_sale: Option<&str>) -> Order {
        let key = format!("t{}-{guest}", self.number);
        let name =
            if self.names_are_keys() { key.clone() } else { format!("t{}-no{}", self.number, guest % 50) };
        let mut order = json!({ "order_no": name, "placed_at": "2026-11-20T08:15:00.000Z",
            "total": format!("{}.40", self.rng.u32(1..90)), "lines": [ { "name": "茉莉绿茶", "quantity": 1 } ] });
        match self.rng.u32(0..100) {
            0 => order["poison"] = json!(true),
            1..8 => order["udl"] = json!("JP"),
            8..20 => order["user"] = json!(format!("u-{}", self.rng.u32(0..5))),
            20..25 => {
                if let Some(sale) = last_sale {
                    order["kind"] = json!("refund");
                    order["depends_on"] = json!(sale);
                }
            }
            _ => {}
        }
        Order { key, body: order.to_string() }
    }

    /// Several orders in one call; those whose answer is "unknown" are handed over again, one by one.
    async fn serve_many(&mut self, guest: u64) {
        let orders: Vec<_> = (0..4).map(|n| self.order(guest * 10 + n, None)).collect();
        let entries: Vec<_> = orders
            .iter()
            .map(|Order { key, body }| format!("{{\"idempotency_key\":\"{key}\",\"order\":{body}}}"))
            .collect();
        for order in &orders {
            self.book.sends(&order.key, &order.body);
        }
        let all = format!("{{\"orders\":[{}]}}", entries.join(","));
        let results = match self.api.post("/v1/orders:batch", all).await {
            Ok(answer) if answer.status == 207 => answer.json()["results"].as_array().cloned(),
            Ok(answer) if answer.status < 500 => {
                self.complain("a batch", &orders[0].key, &answer);
                return;
            }
            _ => None,
        };
        let results = results.unwrap_or_default();
        for (at, order) in orders.iter().enumerate() {
            let told = results.get(at).and_then(|result| result["status"].as_u64());
            let told = match told.filter(|status| *status < 500) {
                Some(status) => Some(status),
                None => self.hand_over(&order.key, &order.body).await.map(|answer| answer.status.into()),
            };
            match told {
                Some(200 | 202) => self.book.was_told(&order.key, &order.body),
                Some(status) => self.book.complain(format!("{} in a batch was answered {status}", order.key)),
                None => {}
            }
        }
    }

    /// The same order again: the same answer.
    async fn repeat(&mut self, Order { key, body }: &Order, first: &Answer) {
        if let Some(again) = self.hand_over(key, body).await
            && (again.status != 200 || again.text("id") != first.text("id"))
        {
            self.complain("a repeat", key, &again);
        }
    }

    /// Another order under the same key: refused, and kept.
    async fn reuse(&mut self, Order { key, body }: &Order) {
        let other = body.replacen(".40", ".41", 1);
        self.book.sends(key, &other);
        if let Some(answer) = self.hand_over(key, &other).await {
            if answer.status == 422 && answer.problem() == "key-reused" {
                self.book.with(|inner| inner.refused += 1);
            } else {
                self.complain("a reused key", key, &answer);
            }
        }
    }

    fn complain(&self, what: &str, key: &str, answer: &Answer) {
        self.book.complain(format!("{what}, {key}, was answered {} {}", answer.status, answer.json()));
    }

    /// Hands an order over as a till must: again and again with the same key while the answer is "unknown". `None` when
    /// the guest has gone before there was an answer.
    async fn hand_over(&mut self, key: &str, body: &str) -> Option<Answer> {
        loop {
            let patience = match self.rng.u32(0..20) {
                0 => Duration::from_millis(self.rng.u64(0..40)),
                _ => PATIENCE,
            };
            let mut headers = vec![("content-type", "application/json")];
            if !self.names_are_keys() {
                headers.push(("idempotency-key", key));
            }
            let asked = self.api.send(Method::POST, "/v1/orders", &headers, body.to_owned());
            match tokio::time::timeout(patience, asked).await {
                Ok(Ok(answer)) if answer.status < 500 => return Some(answer),
                _ => {}
            }
            let gone = self.rng.u32(0..200) == 0 || *self.pace.borrow() == Pace::Closed;
            if gone {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(self.rng.u64(10..60))).await;
        }
    }
}
