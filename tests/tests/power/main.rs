//! The disk fails: power cuts and I/O errors at every write and sync of the ledger, a disk that is really full, a
//! clock that jumps.
//!
//! ```text
//! cycle ──► the product's ledger ──► SQLite ──► shim (vfs) ──► files
//!   │ asked, answered                             │ every operation
//!   ▼                                             ▼
//! model: where each order may stand      disk: log, faults ──► image: what a cut leaves
//!   └──────────────► oracle: the product opens the image; is everything there that was promised? ◄──┘
//! ```
//!
//! The product's code runs unchanged, in this process. `tests/README.md` says what is covered, how to run more of it
//! and how to replay a seed.

mod clock_jumps;
mod control;
mod cuts;
mod cycle;
mod disk;
mod errors;
mod flow;
mod full_disk;
mod image;
mod model;
mod oracle;
mod sweep;
mod till;
mod vfs;
