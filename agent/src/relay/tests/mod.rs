//! The guard against peers made for the purpose, and the whole relay against a real broker.

mod fake;
mod guard;
mod mosquitto;
mod relay;
