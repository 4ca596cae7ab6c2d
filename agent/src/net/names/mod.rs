//! Names of the route table to addresses, also when no resolver works. Every other name is left to the system.
//!
//! ```text
//!            nobody has asked                     a good answer
//!  (unknown) ───────────────► looking ──────────────────────────────► fresh ── its life is over ──► looking
//!                              │    ▲                                   ▲
//!    1.8 s without an answer,  │    │ behind the callers' backs,        │ a good answer
//!    or nobody has one         ▼    │ after 30 s (5 s)                  │
//!                             without: proved before in this network ───┘
//!                                      → the table's addresses → unconfirmed → proved elsewhere
//! ```
//!
//! A look-up is a ladder (`ladder`): the system, 300 ms later every server directly, 1.2 s later servers over
//! HTTPS. One look-up per name at a time, however many wait.
//!
//! | task | in | out |
//! |---|---|---|
//! | look-up of a name | a caller that found no fresh answer | the answer, to all who wait; at most 64, each ended after 5 s |
//! | chain of a name | the first use in ten minutes | names and milliseconds for the report; at most 4 |
//! | [`Resolver::watch_network`] | changes of the kernel, a look at the files every 5 s | the old network's answers dropped |
//! | writer | a proof | `names.json`; at most one write in 10 s |
//!
//! Promises: nobody waits longer than the limit given, nor than 1.8 s when there is anything else to dial; what is kept for
//! a day without resolvers was proved by TLS for that very name. Absent on purpose: the choice of an origin, and trust
//! in any address: TLS decides.

mod answer;
mod cache;
mod choices;
mod direct;
mod doh;
mod figures;
mod flight;
mod known;
mod ladder;
mod message;
mod network;
mod network_files;
mod resolver;
mod servers;
mod shelf;
mod system;
mod wanted;

pub use answer::By;
pub(super) use choices::Way;
pub use resolver::Resolver;
pub use servers::server;
pub(super) use wanted::host_as_address;
pub use wanted::{Found, LookupError, NamesSettings, Wanted};

#[cfg(test)]
mod tests;
