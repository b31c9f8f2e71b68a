//! Ports for instances: each live instance has one of its own.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tracing::info;

/// Connections that wait to be accepted; the kernel cuts it to its own limit.
const BACKLOG: i32 = 1024;

/// Hands out the ports of a range on one address. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    ip: IpAddr,
    range: RangeInclusive<u16>,
    pool: Arc<Mutex<Pool>>,
}

#[derive(Debug)]
struct Pool {
    leased: HashSet<u16>,
    next: u16,
}

/// What is to become of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortUse {
    /// The agent serves there: connections are accepted from now on.
    Serve,
    /// The guest will bind it: until then it is kept from others, and connections are refused.
    Keep,
}

/// A port that nobody else has. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct PortLease {
    port: u16,
    pool: Arc<Mutex<Pool>>,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// Every port of the range is taken, by instances or by others.
    #[error("find a free port from {first} to {last} on {ip}")]
    NoneFree { ip: IpAddr, first: u16, last: u16 },
    /// The address itself cannot be bound.
    #[error("bind {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

impl Ports {
    /// `begin` is where the search begins, so that an agent which is started again does not soon use its last ports again.
    pub(crate) fn new(ip: IpAddr, range: RangeInclusive<u16>, begin: u16) -> Self {
        let next = begin.clamp(*range.start(), *range.end());
        Self { ip, range, pool: Arc::new(Mutex::new(Pool { leased: HashSet::new(), next })) }
    }

    /// A free port with a socket bound to it. Ports are tried in turn, so that one which was given back rests the longest.
    ///
    /// # Errors
    /// When none is free, or the address is not one of this host's.
    pub(crate) fn lease(&self, usage: PortUse) -> Result<(PortLease, TcpListener), PortError> {
        let (first, last) = (*self.range.start(), *self.range.end());
        for _ in self.range.clone() {
            let Some(lease) = self.advance() else { continue };
            let address = SocketAddr::new(self.ip, lease.port);
            match bind(address, usage, Before::Anybodys) {
                Ok(listener) => return Ok((lease, listener)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(source) => return Err(PortError::Bind { address, source }),
            }
        }
        Err(PortError::NoneFree { ip: self.ip, first, last })
    }

    /// Keeps a port for an instance that had it in an earlier process; `None` where it is another instance's, or out of range.
    pub(crate) fn hold(&self, port: u16) -> Option<PortLease> {
        let free = self.range.contains(&port) && lock(&self.pool).leased.insert(port);
        free.then(|| PortLease { port, pool: Arc::clone(&self.pool) })
    }

    /// The port that was held, with a socket bound to it; another one if somebody else on this host has it now.
    ///
    /// # Errors
    /// As for [`Ports::lease`].
    pub(crate) fn lease_again(&self, held: PortLease, usage: PortUse) -> Result<(PortLease, TcpListener), PortError> {
        match bind(SocketAddr::new(self.ip, held.port), usage, Before::Ours) {
            Ok(listener) => Ok((held, listener)),
            Err(error) => {
                info!(port = held.port, %error, "port cannot be had again");
                self.lease(usage)
            }
        }
    }

    /// Takes the next port, unless an instance has it.
    fn advance(&self) -> Option<PortLease> {
        let mut pool = lock(&self.pool);
        let port = pool.next;
        pool.next = if port == *self.range.end() { *self.range.start() } else { port + 1 };
        pool.leased.insert(port).then(|| PortLease { port, pool: Arc::clone(&self.pool) })
    }
}

impl PortLease {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        lock(&self.pool).leased.remove(&self.port);
    }
}

/// Whose port it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Anybodys,
    Ours,
}

/// Without `SO_REUSEADDR` a port that anybody else has bound, or on which old connections linger, is left alone. Connections of an
/// earlier process of ours linger for a minute; the kernel overlooks them when the sockets on both sides of the restart say so, so
/// those that listen do. (One that does not listen yet and says so could be joined by any process of this host.)
fn bind(address: SocketAddr, usage: PortUse, before: Before) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(before == Before::Ours)?;
    socket.bind(&address.into())?;
    if usage == PortUse::Serve {
        socket.listen(BACKLOG)?;
    }
    socket.set_reuse_address(usage == PortUse::Serve)?;
    Ok(socket.into())
}

fn lock(pool: &Mutex<Pool>) -> MutexGuard<'_, Pool> {
    // The pool is whole after every operation on it, so a panic elsewhere cannot have left it half-changed.
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;
    use crate::free_port::{free_port, is_free};

    const IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Three neighbouring ports of which the middle one is held by somebody else.
    fn range_with_taken_middle() -> (RangeInclusive<u16>, TcpListener) {
        loop {
            let (first, middle, last) = (free_port(), free_port(), free_port());
            if (middle, last) == (first + 1, first + 2) {
                return (first..=last, TcpListener::bind((IP, middle)).unwrap());
            }
        }
    }

    #[test]
    fn each_lease_is_unique_and_skips_what_others_hold() {
        let (range, _taken) = range_with_taken_middle();
        let ports = Ports::new(IP, range.clone(), 0);
        let (first, _one) = ports.lease(PortUse::Serve).unwrap();
        let (second, _two) = ports.lease(PortUse::Serve).unwrap();
        assert_eq!([first.port(), second.port()], [*range.start(), *range.end()]);
        let error = ports.lease(PortUse::Serve).unwrap_err();
        assert_eq!(error.to_string(), format!("find a free port from {} to {} on {IP}", range.start(), range.end()));
        drop((first, _one));
        // Until no child that another test starts has it from this process any more.
        while !is_free(*range.start()) {
            std::thread::yield_now();
        }
        assert_eq!(ports.lease(PortUse::Serve).unwrap().0.port(), *range.start());
    }

    #[test]
    fn a_kept_port_refuses_connections_and_a_served_one_takes_them() {
        let (range, _taken) = range_with_taken_middle();
        let ports = Ports::new(IP, range, 0);
        let (kept, _one) = ports.lease(PortUse::Keep).unwrap();
        let (served, _two) = ports.lease(PortUse::Serve).unwrap();
        assert!(TcpStream::connect((IP, kept.port())).is_err());
        assert!(TcpListener::bind((IP, kept.port())).is_err());
        assert!(TcpStream::connect((IP, served.port())).is_ok());
    }

    /// Whoever closes a connection first keeps its address for a minute.
    fn served(listener: &TcpListener) {
        listener.set_nonblocking(false).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        drop(client);
    }

    #[test]
    fn a_port_is_had_again_though_its_connections_linger() {
        let (range, taken) = range_with_taken_middle();
        let ports = Ports::new(IP, range.clone(), 0);
        let (lease, listener) = ports.lease(PortUse::Serve).unwrap();
        let port = lease.port();
        served(&listener);
        drop((lease, listener));
        let later = Ports::new(IP, range.clone(), 0);
        let strict = later.lease(PortUse::Serve).unwrap().0.port();
        assert_ne!(strict, port, "a port with lingering connections is no free port");
        for usage in [PortUse::Serve, PortUse::Keep] {
            let held = later.hold(port).unwrap();
            assert!(later.hold(port).is_none(), "it is kept for one");
            let (again, listener) = later.lease_again(held, usage).unwrap();
            assert_eq!((again.port(), listener.local_addr().unwrap().port()), (port, port));
            assert!(TcpListener::bind((IP, port)).is_err());
        }
        let held = later.hold(taken.local_addr().unwrap().port()).unwrap();
        let (other, _listener) = later.lease_again(held, PortUse::Serve).unwrap();
        assert_eq!(other.port(), strict, "what somebody else has is left to them");
        assert!(later.hold(range.end() + 1).is_none());
    }

    #[test]
    fn a_foreign_address_is_an_error_that_names_it() {
        let ports = Ports::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 61001..=61002, 0);
        assert_eq!(ports.lease(PortUse::Serve).unwrap_err().to_string(), "bind 192.0.2.1:61001");
    }
}
