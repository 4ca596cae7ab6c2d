//! Who is asking, and what they may do.
//!
//! ```text
//! name + password ──► lockout (wait?) ──► password (argon2) ──► session ──► bearer token | cookie + CSRF token
//! request ──► guard (Host, Origin) ──► Operator (token or cookie, role) ──► handler
//! ```
//!
//! Promises: passwords and tokens are stored as digests only; a wrong name costs the same time as a wrong password;
//! guessing is slowed down per name and per address; a cookie alone changes nothing (the CSRF token is asked for
//! too). Absent: password recovery by mail; an admin sets a new password.

pub mod extract;
pub mod guard;
pub mod lockout;
pub mod operators;
pub mod password;
pub mod session;

pub use extract::{Operator, Via};
pub use samovar_wire::activation::Role;

/// A role as its lower-case word.
#[must_use]
pub const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Support => "support",
        Role::Field => "field",
        Role::Netops => "netops",
        Role::Admin => "admin",
    }
}

/// Reads a role's lower-case word.
#[must_use]
pub fn role_of(name: &str) -> Option<Role> {
    [Role::Viewer, Role::Support, Role::Field, Role::Netops, Role::Admin]
        .into_iter()
        .find(|role| role_name(*role) == name)
}
