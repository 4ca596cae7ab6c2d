//! Who this device is, and how it proves it.
//!
//! ```text
//!               claim code                 201, answer valid          one rename
//!   none ───────────────► key made ───────────────────────► claimed ───────────► active ◄───────┐
//!    ▲                    │      ▲                                                 │            │
//!    │ 404 409 410: key   │      │ no answer: the key is kept,          2/3 of its │ refused,   │ new one has
//!    └──── forgotten ─────┘      └ the same claim sends it again      life is over │ dropped    │ connected:
//!                                                                                  ▼            │ one rename
//!                                                      expired ◄── no time left ── renewing ────┘
//!                                                         └── tried as before: the server's clock decides ──┘
//! ```
//!
//! * [`mod@activate`] sends the claim and writes nothing before the whole answer has been checked ([`answer`]).
//! * [`files`] keeps what was granted, so that a crash at any step leaves no activation or a whole one.
//! * [`effective`] says who the device is: the configuration first, then the activation.
//! * [`tls`] turns keys and roots into what origins and brokers are spoken to with.
//! * [`renewal`] decides when to renew (pure), [`renew`] does it: a new certificate is kept after it has connected.
//! * [`run`] is the loop: notices a new activation, renews, publishes identity and TLS, raises conditions.
//!
//! Deliberately absent: revocation lists (the fleet refuses a revoked device itself), keys in hardware, and any secret
//! in a log: private keys have no text form here other than their file.

pub mod activate;
mod answer;
mod certificate;
pub mod effective;
pub mod files;
mod http;
pub mod renew;
pub mod renewal;
pub mod run;
pub mod tls;

pub use activate::{ActivateError, Activated, activate};
pub use answer::AnswerError;
pub use certificate::{CertificateError, Validity};
pub use effective::{DeviceIdentity, LoadError, Loaded, load};
pub use files::{Activation, SetAside};
pub use run::{Flow, Identity, start};
pub use tls::{Credential, Roots, TlsError};

#[cfg(test)]
mod testing;
