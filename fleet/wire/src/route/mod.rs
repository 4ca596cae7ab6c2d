//! The route table: the signed document that says which domain and origin serve which country, class and ID.
//!
//! ```text
//! envelope ──► accept (signature, environment, version, time, consistency) ──► Table ──► choose ──► Decision
//! ```
//!
//! Everything in here is pure. Agent and fleet run the same chooser, so an operator's preview is what devices do.

mod accept;
mod bucket;
mod choose;
mod consistent;
mod explain;
mod flaw;
mod pins;
mod preview;
mod table;

pub use accept::{Accepted, MAX_TABLE_BYTES, Refusal, Stored, accept, check};
pub use bucket::{BASIS_POINTS, bucket, pick_share};
pub use choose::{
    Candidate, Decision, Facts, NoRoute, Query, Reason, Rule, RuleResult, Scheme, bound, choose, endpoint_of,
};
pub use consistent::flaws;
pub use explain::{Explained, explain};
pub use flaw::{Both, Flaw, Problem};
pub use pins::Pins;
pub use preview::{Change, CountryTally, Move, OriginTally, Page, Preview, Till, preview};
pub use table::{
    Activation, By, CacheMode, CountryRoutes, Dns, Emergency, Endpoint, Fallback, FallbackMode, OriginEntry,
    OriginState, Pin, Service, Shadow, Share, Split, Table,
};
