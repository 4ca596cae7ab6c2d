//! The programs from outside: the agent standalone (contracts §6) against a scripted origin and a real mosquitto, then
//! agent and fleet server together. One story per test; everything on loopback, in temporary directories, on free
//! ports.

mod accept;
mod deliver;
mod durable;
mod failover;
mod flood;
mod gateway;
mod hosts;
mod hosts_fleet;
mod hosts_kill;
mod lifecycle;
mod names;
mod outage;
mod poison;
mod reconcile;
mod recover;
mod refuse;
mod relay;
mod residency;
mod route;
mod service;
mod shadow;
mod shop;
mod single;
mod soak;
mod storage;
mod together;
