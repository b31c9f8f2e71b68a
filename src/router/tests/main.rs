//! The router with everything around it real: sockets, a NATS broker, clients and instances that behave and that do not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod bodies;
mod broken_instances;
mod hostile_clients;
mod lifecycle;
mod routing;
mod sessions;
mod stage;
mod tunnels;
