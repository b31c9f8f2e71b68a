//! The client and the broker over real sockets, with a real nats-server beside them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions around it")]

mod authentication;
mod client;
mod fan_out;
mod fixtures;
#[path = "../../../tests/free_port.rs"]
mod free_port;
mod hostile;
mod hostile_server;
mod lifecycle;
mod oracle;
mod random_oracle;
