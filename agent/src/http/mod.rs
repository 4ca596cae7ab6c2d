//! The local HTTP server: who may connect, how many, and what a request must look like before any handler sees it.
//!
//! `listener` accepts and bounds connections, `gate` (pure) decides on a request by its head, `answer` holds the
//! shapes of answers that every handler shares. Routes are handed in; this module knows none.

pub mod answer;
pub mod gate;
pub mod listener;

pub use answer::Failure;
pub use gate::{Caller, Gate};
