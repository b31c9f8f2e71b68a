//! The router with everything around it real: sockets, a NATS broker, clients and instances that behave and that do not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod bodies;
mod broken_instances;
#[path = "../../../tests/http/faults.rs"]
mod faults;
#[path = "../../../tests/free_port.rs"]
mod free_port;
mod hostile_clients;
mod lifecycle;
mod mutations;
mod routing;
mod sessions;
mod stage;
#[path = "../../../tests/http/strict.rs"]
mod strict;
mod tunnels;
