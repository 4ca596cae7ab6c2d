//! The MQTT side of the agent: says how the device is doing, hears what the fleet wants.
//!
//! ```text
//!            due              broker's answer            stop             all acknowledged, or 0.7 s
//! Waiting ───────► Connecting ──────────────► Online ───────────► Leaving ──────────► Closing ──► Done
//!    ▲                 │ error                  │ error, silence      │ error                       ▲
//!    └── full jitter ──┴────────────────────────┘                     └─────────────────────────────┤
//!        1-60 s; at once with a renewed certificate                          stop while not Online ─┘
//! ```
//!
//! | topic | promise | while there is no connection | after a reconnect |
//! |---|---|---|---|
//! | `up/online` | retained: birth at each connect, `online: false` at a stop, the will 30 s after a silent end | nothing waits | a new birth with a new nonce |
//! | `up/state` | retained: the newest, whole, at most once a second; a digest every 60 s without change | only the newest is kept | sent whole |
//! | `up/events` | every one, until the fleet acknowledges it or 16 MiB are exceeded | on disk | what is not acknowledged, in order |
//! | `up/metrics` | one batch a minute, may be lost | not made | - |
//! | `up/reply` | every one that was taken, unless the agent ends | 16 wait, then callers are refused | what the broker did not acknowledge |
//! | `dn/desired` | the newest | the broker keeps it | sent by the broker |
//! | `dn/command` | 16 wait, then the newest is dropped and counted; the fleet repeats | the broker keeps it while it lives | sent by the broker |
//! | `dn/ack` | obeyed at once | the broker keeps it | sent by the broker |
//!
//! [`session`] decides and has no clock, lock or IO; [`guard`] is the one connection; [`outbox`] keeps events;
//! [`run`] connects them. Nothing in here knows what a state, an event or a command means, and nothing in the agent
//! waits for this.

mod backoff;
mod cursor;
mod guard;
mod handle;
mod message;
mod outbox;
mod run;
mod session;
mod settings;
#[cfg(test)]
mod tests;

pub use handle::{Commands, DesiredState, Relay, RelayHandle, RelayInputs, RelayStatus, ReplyError};
pub use message::{BirthFacts, StateDocument};
pub use outbox::{Outbox, OutboxError, OutboxLevel, OutboxSettings, Stream};
pub use settings::{BrokerUrl, InvalidBrokerUrl, Login, Pace, RelaySettings, Scheme};

use samovar_wire::conditions::Condition;
use std::sync::Arc;

/// Raises a condition with its detail, or clears it with `None`; the board hands one in.
pub type SetCondition = Arc<dyn Fn(Condition, Option<String>) + Send + Sync>;
