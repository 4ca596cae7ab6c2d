//! Who is who: the fleet's certificate authority and the certificates it issues.
//!
//! ```text
//! first start ──► authority (ECDSA P-256, 10 years) ──► server certificate (90 days, re-issued by itself)
//!                        └──► device certificate (CN = device, OU = store, client auth) from a CSR
//! ```
//!
//! **Where the keys live.** The database is the one place of truth for what all servers of one fleet must share (the
//! authority and the signing keys, see [`secrets`]); `DIR/ca` and `DIR/keys` hold copies (keys 0600) for people, for
//! backups, and for moving to another database: an empty database takes over what the directory has. With `[pki]
//! ca_cert` and `ca_key` the authority comes from files and is not stored. Server certificates belong to one process
//! and are made anew at each start.

pub mod authority;
pub mod csr;
pub mod peer;
pub mod secrets;
pub mod server_cert;

pub use authority::{Authority, Issued, PkiError};
pub use peer::PeerCertificate;
