//! The tables as types, one file each.

pub mod audit;
pub mod certificate;
pub mod claim;
pub mod device;
pub mod host_override;
pub mod operator;
pub mod order;
pub mod reconciliation;
pub mod route_draft;
pub mod route_table;
pub mod secret;
pub mod session;
pub mod store;
