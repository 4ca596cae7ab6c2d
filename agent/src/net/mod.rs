//! The one way out: HTTP clients for origins.
//!
//! ```text
//! Decision ──► Clients::client ──► reqwest::Client      URL, TLS name and Host: the decision's domain
//!                                     └─ dial ──► names ──► race   dialled: the endpoint's host, the table's addresses last
//! ```
//!
//! Promises: every client has its time-outs, follows no redirect, knows no proxy, speaks HTTP/1.1 and trusts only
//! the authorities it was given; plain HTTP reaches loopback addresses only; a dead resolver costs a bounded wait and
//! then the last address that worked, or the table's own, is used (`names`). Absent on purpose: retries (that is the
//! dispatcher's decision) and anything about orders. `line` tells when the device's network changes,
//! `link` what can be seen of one that is down.

mod body;
mod clients;
mod dial;
pub mod line;
pub mod link;
mod names;
mod overrides;
mod race;

pub use body::{BodyError, read_limited};
pub use clients::{ClientSettings, Clients, NetError, TlsSource};
pub use names::{By, Found, LookupError, NamesSettings, Resolver, Wanted, server};
pub use overrides::{OverrideSource, Overrides, Pointed};

use std::error::Error;

/// Why a request failed, in one line: each cause once, the outermost first.
#[must_use]
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}
