//! Activation: how a machine with a claim code becomes a known device of a store, and how its certificate is renewed.
//!
//! ```text
//!            made                     POST, key K
//! (nothing) ─────► open ─────────────────────────────► used by K ──┐ POST, key K, before the end: the same answer
//!                   │ time                                 ▲──────┘
//!                   ▼                                      │ POST, other key, or after the end: 409
//!                 expired ──► POST: 410          its certificate revoked: 409
//! ```
//!
//! Promises: a code works once; the claim is consumed, the device recorded and the certificate stored in one
//! transaction, so that no failure leaves a code used and nothing to show for it; a repeat by the same key gets the
//! same answer (a lost reply strands nobody); guessing is slowed down for each address. The key never leaves the
//! device. A code of another fleet is redirected to it.

pub mod claims;
pub mod code;
pub mod handlers;
pub mod revocation;
