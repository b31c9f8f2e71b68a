//! Which addresses are this host's own.

use std::net::{IpAddr, UdpSocket};

/// Whether this host has the address now: only then a socket can be bound to it. It takes a few microseconds and knows addresses
/// that came after the start. Where the host lets sockets bind to foreign addresses (`net.ipv4.ip_nonlocal_bind`), every address
/// passes for its own, so that rules must name each.
pub(super) fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}
