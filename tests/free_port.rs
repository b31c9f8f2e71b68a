//! Ports for servers that are stopped and started again, or never started.

use std::net::{Ipv4Addr, TcpListener};
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
        if !lingers(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Whether there are connections of an earlier process that ended a moment ago: not everybody may bind the port then.
fn lingers(port: u16) -> bool {
    let address = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().filter_map(|line| line.split_whitespace().nth(1)).any(|local| local.ends_with(&address))
}
