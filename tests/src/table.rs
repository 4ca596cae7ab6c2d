//! Route tables of a story: built as plain JSON, the way somebody else's tool would, and signed.

use anyhow::{Context, Result};
use samovar_wire::dsse::{self, Envelope, SigningKey};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// Environment of every story.
pub const ENVIRONMENT: &str = "prod";
/// Key id of every story.
pub const KEY_ID: &str = "k1";

/// Builds and signs route tables; keeps one key, so that a later table is trusted like the first.
pub struct TableBuilder {
    key: SigningKey,
    table: Value,
}

impl TableBuilder {
    /// A table without origins for the countries US and JP.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self> {
        let seed = dsse::new_seed().context("no randomness for a key")?;
        let key = SigningKey::from_seed(KEY_ID, &seed).context("cannot make a signing key")?;
        let country = |domain: &str| {
            json!({ "residency": [], "services": { "orders": {
                "domains": { "default": domain }, "overridable": true, "cache": "off" } } })
        };
        let table = json!({
            "schema": 1, "environment": ENVIRONMENT, "version": 1, "refresh_after_s": 900,
            "issued_at": "2026-01-01T00:00:00.000Z", "not_before": "2026-01-01T00:00:00.000Z",
            "expires_at": "2099-01-01T00:00:00.000Z",
            "origins": {},
            "countries": { "US": country("us.store.example"), "JP": country("jp.store.example") },
            "pins": [], "splits": [], "shadow": [], "emergency": [], "protected": [], "probes": [],
            "fallback": { "mode": "nearest", "candidates": [], "shares": [] },
            "disable_overrides": false, "dns": { "servers": [], "doh": [], "stale_max_s": 604_800 },
        });
        Ok(Self { key, table })
    }

    /// Adds an origin at an address, last in the fallback and allowed for every country.
    #[must_use]
    pub fn origin(mut self, name: &str, address: SocketAddr) -> Self {
        let endpoint = json!({ "host": address.ip().to_string(), "port": address.port(),
            "addresses": [address.ip()], "basis_points": 10_000 });
        self.table["origins"][name] = json!({ "endpoints": [endpoint], "regions": [], "state": "active" });
        push(&mut self.table["fallback"]["candidates"], name);
        for country in ["US", "JP"] {
            push(&mut self.table["countries"][country]["residency"], name);
        }
        self
    }

    /// Says which origins may hold a country's data; the first is preferred.
    #[must_use]
    pub fn residency(mut self, country: &str, origins: &[&str]) -> Self {
        self.table["countries"][country]["residency"] = json!(origins);
        self
    }

    /// Anything else: `with("/pins", json!([…]))`.
    ///
    /// # Errors
    /// When the table has no such place.
    pub fn with(mut self, pointer: &str, value: Value) -> Result<Self> {
        self.set(pointer, value)?;
        Ok(self)
    }

    /// The same in place.
    ///
    /// # Errors
    /// When the table has no such place.
    pub fn set(&mut self, pointer: &str, value: Value) -> Result<()> {
        let place = self.table.pointer_mut(pointer);
        *place.with_context(|| format!("a route table has no {pointer}"))? = value;
        Ok(())
    }

    /// The next version of the same table.
    #[must_use]
    pub fn next_version(mut self) -> Self {
        let version = self.table["version"].as_u64().unwrap_or(0);
        self.table["version"] = json!(version + 1);
        self
    }

    /// The unsigned document.
    #[must_use]
    pub fn document(&self) -> &Value {
        &self.table
    }

    /// The signed document.
    #[must_use]
    pub fn sign(&self) -> Envelope {
        Envelope::sign(dsse::ROUTE_TABLE, self.table.to_string().as_bytes(), &[&self.key])
    }

    /// The public key as the agent's configuration names it.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.key.public().into()
    }
}

fn push(list: &mut Value, name: &str) {
    if let Some(list) = list.as_array_mut() {
        list.push(json!(name));
    }
}
