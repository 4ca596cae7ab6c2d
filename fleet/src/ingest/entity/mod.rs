//! The tables of this flow, one file each.

pub mod device_desired;
pub mod device_event;
pub mod device_metric;
pub mod device_status;
pub mod device_stream;
pub mod endpoint_figure;
