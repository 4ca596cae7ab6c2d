//! What people and programs on the device see: snapshots of every flow, over the local API.

pub mod api;
pub mod openapi;
