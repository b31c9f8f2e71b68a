//! The built binary as its users meet it: processes, signals, exit codes, a real nats-server, and peers that know nothing of Dewar.
//!
//! Everything here speaks to Dewar through sockets, files and command lines only.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions around it")]

mod configuration;
mod controller;
mod harness;
mod health_manager;
mod nats;
mod outages;

mod bare_protocol;
mod descriptors;
mod dev;
mod disk;
mod faults;
mod files;
mod hardening;
mod hostile_messages;
mod leaving;
mod restarts;
mod signals;
mod slow_consumer;
mod telemetry;
mod three_processes;
