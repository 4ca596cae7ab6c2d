//! The programs from outside: the agent standalone (contracts §6) against a scripted origin and a real mosquitto, then
//! agent and fleet server together. One story per test; everything on loopback, in temporary directories, on free
//! ports.

mod accept;
mod deliver;
mod durable;
mod flood;
mod lifecycle;
mod outage;
mod refuse;
mod relay;
mod route;
mod service;
mod shop;
mod together;
