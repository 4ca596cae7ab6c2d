//! The soak: tills sell while the agent and the origins are killed at random moments, the origins misbehave, come and go,
//! and the route table changes. At the end everything is healed, and the judge compares what the tills were told with
//! what the origins recorded and what the ledger says.
//!
//! ```text
//! tills ──► agent (killed) ──► origin us-west (killed, misbehaves, goes away)
//!   │          ▲   └─────────► origin apac    (killed, misbehaves, goes away)
//!   │        tables (pins, states)     │ records, synced before each answer
//!   └── book ──────────► judge ◄───────┴── ledger, page by page
//! ```
//!
//! One seed makes the whole schedule: what is killed when, which table comes, what the tills sell, how the origins
//! misbehave. Which statement a kill hits depends on the machine all the same; a seed replays the schedule, not the
//! instruction.

mod oracle;
mod rough;
mod stage;
mod tills;

pub use oracle::{Evidence, LedgerOrder, Verdict, judge};
pub use rough::{Broken, RoughOrigin};
pub use stage::{Plan, Report, Stage, run};
pub use tills::{Book, POISON, Pace, Told};
