//! One process with everything real on loopback: embedded broker, agents, router, client, wasmtime, files; and a proxy that breaks
//! the agents' connection to the bus in the ways a network does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions around it")]

mod platform;
mod proxy;

mod life;
mod network;
