//! x
pub mod client;
pub mod fold;
pub mod message;
pub mod url;
