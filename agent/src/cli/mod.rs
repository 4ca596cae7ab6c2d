//! The commands of `samovar-agent` besides `run`.

pub mod activate;
