//! What goes into the ledger and what comes out of it.

use crate::orders::order::Order;
use samovar_wire::orders::{BoundOrders, OrdersSummary};
use samovar_wire::{Country, OriginId, Timestamp};
use std::collections::BTreeMap;

/// Where an order stands. Stored as its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Waits to be sent or answered.
    Pending = 0,
    /// Waits for something named.
    Held = 1,
    /// An origin has it.
    Settled = 2,
    /// Refused for good, or its key was reused; a person must look.
    Quarantined = 3,
    /// Given up by an operator.
    Discarded = 4,
}

impl State {
    /// All of them, by number.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Held, Self::Settled, Self::Quarantined, Self::Discarded];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Settled => "settled",
            Self::Quarantined => "quarantined",
            Self::Discarded => "discarded",
        }
    }

    /// Reads the name on the wire.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Why an order is held: the words of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// No allowed origin exists for it.
    Residency,
    /// Another order must be settled first.
    DependsOn,
    /// The origin does not accept who we are.
    Identity,
}

impl Hold {
    /// The word in `why`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Residency => "residency",
            Self::DependsOn => "depends_on",
            Self::Identity => "identity",
        }
    }
}

/// `why` of an order whose key was used before with other content.
pub const KEY_REUSED: &str = "key-reused";
/// `why` of an order whose key the origin knows with other content.
pub const CONFLICT: &str = "conflict";
/// `why` of an order whose record or body was damaged on the disk.
pub const DAMAGED: &str = "damaged";
/// `why` of an order whose body was sealed with a key that is not here.
pub const UNREADABLE: &str = "unreadable";

/// Answer to one order that was handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// New, and durable now.
    New(Receipt),
    /// The key is known and the content is the same.
    Replay(Receipt),
    /// The key is known with other content; this one was kept in quarantine.
    KeyReused {
        /// The record that was kept.
        kept: Receipt,
        /// The order that had the key first.
        first: String,
        /// Whether this very content had been kept before.
        repeated: bool,
    },
}

impl Accepted {
    /// The place of the order, or of the record that was kept of it.
    pub(super) const fn seq(&self) -> u64 {
        match self {
            Self::New(receipt) | Self::Replay(receipt) | Self::KeyReused { kept: receipt, .. } => receipt.seq,
        }
    }
}

/// What the till is told of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its id.
    pub id: String,
    /// The till's number.
    pub order_no: String,
    /// Where it stands.
    pub state: State,
    /// Its place in the ledger.
    pub seq: u64,
    /// When it became durable.
    pub accepted_at: Timestamp,
}

/// An order that is to be written.
#[derive(Debug, Clone)]
pub struct NewOrder {
    /// Its id, made by the caller.
    pub id: String,
    /// When it was handed in.
    pub accepted_at: Timestamp,
    /// The order.
    pub order: Order,
}

/// What the dispatcher needs to know of a pending order; small, because many are in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its place.
    pub seq: u64,
    /// Size of its body.
    pub bytes: u32,
    /// How often it was sent.
    pub attempts: u32,
    /// The person it concerns.
    pub user: Option<Box<str>>,
}

/// An order on its way to the ledger's thread, with its body as it is to be stored.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) new: NewOrder,
    /// Id of the key that sealed the body.
    pub(super) sealed: Option<i64>,
    /// Size of the plain body.
    pub(super) bytes: usize,
}

/// Something with a body as it is stored, and the id of the key that sealed it.
#[derive(Debug)]
pub(super) struct Stored<T> {
    pub(super) value: T,
    pub(super) sealed: Option<i64>,
}

/// An order with all that a batch needs.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its place.
    pub seq: u64,
    /// Its id.
    pub id: String,
    /// Its key.
    pub key: String,
    /// The till's number.
    pub order_no: String,
    /// Digest of the body.
    pub sha256: [u8; 32],
    /// When it became durable.
    pub accepted_at: Timestamp,
    /// The document.
    pub body: Vec<u8>,
}

/// A change of one order after an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which order.
    pub seq: u64,
    /// What became of it.
    pub to: ChangeTo,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeTo {
    /// An origin has it.
    Settled,
    /// Refused for good.
    Quarantined {
        /// Stable word.
        why: String,
        /// The origin's words.
        detail: String,
    },
    /// Still pending; the last error is kept.
    Failed(String),
    /// Still pending and bound, but not sent: that it was bound the last time does not count as an attempt.
    Withdrawn,
    /// Waits for something named.
    Held(Hold, String),
}

/// Pending orders that share an address: the origin they are bound to, if any, and the country that routes them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// Bound to this origin until it has answered.
    pub origin: Option<OriginId>,
    /// The country.
    pub udl: Country,
}

/// The pending orders of one group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many.
    pub orders: u64,
    /// Tells a reader whether any came since it last looked, also when as many have left.
    pub last_arrival: u64,
}

/// What waits, published after each commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Pending orders by group; groups without any are absent.
    pub groups: BTreeMap<Group, Waiting>,
    /// Grows whenever an order comes into a group.
    pub arrivals: u64,
    /// The highest place that was ever given to an order.
    pub newest: u64,
    /// Grows when orders became pending again out of sequence (retry, release, a hold that ended).
    pub disturbed: u64,
    /// Orders by state.
    pub states: [u64; 5],
    /// Held and quarantined orders by why.
    pub whys: BTreeMap<(u8, String), u64>,
}

impl Backlog {
    /// Orders in one state.
    #[must_use]
    pub fn count(&self, state: State) -> u64 {
        self.states[state as usize]
    }

    /// Orders in one state for one reason.
    #[must_use]
    pub fn count_why(&self, state: State, why: &str) -> u64 {
        self.whys.get(&(state as u8, why.to_owned())).copied().unwrap_or(0)
    }

    /// Pending orders by the origin they are bound to.
    #[must_use]
    pub fn bound(&self) -> Vec<BoundOrders> {
        let mut by_origin: BTreeMap<&OriginId, u64> = BTreeMap::new();
        for (group, waiting) in &self.groups {
            if let Some(origin) = &group.origin {
                *by_origin.entry(origin).or_default() += waiting.orders;
            }
        }
        by_origin.into_iter().map(|(origin, orders)| BoundOrders { origin: origin.clone(), orders }).collect()
    }
}

/// A whole record, as the API shows it.
#[derive(Debug, Clone)]
pub struct Record {
    /// What the till was told, with today's state.
    pub receipt: Receipt,
    /// Its key.
    pub key: String,
    /// Digest of the body.
    pub sha256: [u8; 32],
    /// Id of the order that had the key first.
    pub conflict_with: Option<String>,
    /// The country that routes it.
    pub udl: Country,
    /// What kind of order.
    pub kind: String,
    /// The order that must be settled first.
    pub depends_on: Option<String>,
    /// Why held or quarantined.
    pub why: Option<String>,
    /// The words that go with it, or the last error.
    pub detail: Option<String>,
    /// The origin it is bound to.
    pub origin: Option<OriginId>,
    /// How often it was sent.
    pub attempts: u32,
    /// When it was first sent.
    pub first_sent_at: Option<Timestamp>,
    /// When it was last sent.
    pub sent_at: Option<Timestamp>,
    /// When it was settled, quarantined or discarded.
    pub closed_at: Option<Timestamp>,
    /// The document; `None` once retention has let it go, and in lists.
    pub body: Option<Vec<u8>>,
    /// What operators did to it.
    pub audit: Vec<AuditEntry>,
}

/// What stands in the history of an order that was freed from an origin which it had been sent to; `who` is the origin.
pub const LEFT: &str = "left";

/// One thing an operator did to an order.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// What: `retry`, `discard`, `release`, `resent` or [`LEFT`].
    pub what: String,
    /// Who.
    pub who: String,
    /// Why.
    pub reason: String,
}

/// What an operator may do to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intervention {
    /// Send it again, unless it waits for an order that is not settled.
    Retry,
    /// Send it again whatever it waits for: for an operator who has looked at both orders.
    Force,
    /// Give it up.
    Discard,
    /// Free it from its origin, accepting that it may arrive twice.
    Release,
}

impl Intervention {
    /// The word in the audit log.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Retry | Self::Force => "retry",
            Self::Discard => "discard",
            Self::Release => "release",
        }
    }
}

/// Facts for the summary that are not in [`Backlog`].
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// When the oldest pending order was accepted.
    pub oldest_pending_at: Option<Timestamp>,
    /// When an order was last settled.
    pub last_settled_at: Option<Timestamp>,
    /// Orders accepted since the ledger was made.
    pub accepted: u64,
    /// Bytes of the ledger.
    pub bytes: u64,
}

/// Puts the summary together.
#[must_use]
pub fn summary(backlog: &Backlog, facts: &Facts) -> OrdersSummary {
    OrdersSummary {
        pending: backlog.count(State::Pending),
        held: backlog.count(State::Held),
        quarantined: backlog.count(State::Quarantined),
        settled: backlog.count(State::Settled),
        discarded: backlog.count(State::Discarded),
        accepted: facts.accepted,
        oldest_pending_at: facts.oldest_pending_at,
        last_settled_at: facts.last_settled_at,
        ledger_bytes: facts.bytes,
        bound: backlog.bound(),
    }
}
