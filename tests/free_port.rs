//! Ports for servers that are stopped and started again, or never started.

use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the kernel gives to outgoing connections: such a one would take the port while its server is away, even that of
/// the very client who waits for the server.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// A port that is free, and that this process gives to nobody else for long.
pub(crate) fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin at different places.
    let first = (std::process::id() % 100) as u16 * 200;
    loop {
        let port = FIRST + (first + GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if is_free(port) {
            return port;
        }
    }
}

/// Whether nobody listens on a port, and no connection of an earlier server lingers there. It is not tried out: a listener of this
/// process lives on for a moment in each child that another thread is about to start.
pub(crate) fn is_free(port: u16) -> bool {
    let address = format!(":{port:04X}");
    let is_local = |line: &str| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&address));
    // Where there is no IPv6 there is no table of it.
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().all(|table| !std::fs::read_to_string(table).unwrap_or_default().lines().any(is_local))
}
