//! Listening: plain HTTP for people and proxies, HTTPS for devices, one router behind both.
//!
//! ```text
//! accept (capped) ──► TLS handshake (deadline) ──► HTTP/1.1 (head deadline) ──► router (request deadline)
//! ```
//!
//! A connection beyond the cap waits in the system's queue; nothing grows without bound in here. Handlers find a
//! [`Peer`] among the request's extensions, and on HTTPS with a client certificate a
//! [`PeerCertificate`](crate::pki::PeerCertificate).

pub mod body;
pub mod limits;
mod listen;
pub mod tls;

pub use listen::{ListenError, Listening, bind, serve};

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address at the other end of the connection.
    pub address: std::net::SocketAddr,
    /// Whether it came over this server's own TLS.
    pub secure: bool,
}
