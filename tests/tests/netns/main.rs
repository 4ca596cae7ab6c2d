//! Machines and cables: the real agent in a store behind a router, real origins beyond it that speak TLS, each in a
//! network namespace. Origins die, packets vanish, the store's line goes and returns, a sign-in page gets in between.
//!
//! `tests/README.md` says what runs by itself, what is run by hand, and what it measured.

mod away;
mod line;
mod shop;
