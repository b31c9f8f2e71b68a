//! Who this router is on the bus, and the random texts it makes.

use std::cell::RefCell;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use dewar_protocol::{ComponentAnnounce, RouterStart, Secret};
use rand::rngs::StdRng;
use rand::{Rng, make_rng};

use crate::RouterConfig;

thread_local! {
    // A generator for each worker: a request id costs no lock and no system call.
    static RANDOM: RefCell<StdRng> = RefCell::new(make_rng());
}

fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    RANDOM.with_borrow_mut(|random| random.fill_bytes(&mut bytes));
    bytes
}

/// 32 hex digits.
pub(crate) fn random_hex() -> String {
    format!("{:032x}", u128::from_be_bytes(random_bytes()))
}

/// A random UUID (version 4), the form of `X-Vcap-Request-Id`.
pub(crate) fn random_uuid() -> String {
    let mut bytes = random_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text
}

/// What a router says about itself.
#[derive(Debug)]
pub(crate) struct Identity {
    id: String,
    index: u32,
    ip: IpAddr,
    status: SocketAddr,
    credentials: Secret<(String, String)>,
    started: Instant,
    start_text: String,
    register_interval: Duration,
    stale_after: Duration,
}

impl Identity {
    pub(crate) fn new(config: &RouterConfig, status: SocketAddr) -> Self {
        let ip = reachable_ip(config.listen.ip());
        Self {
            id: format!("{}-{}", config.index, random_hex()),
            index: config.index,
            ip,
            status: SocketAddr::new(reachable_ip(status.ip()), status.port()),
            credentials: Secret((config.status.user.clone(), config.status.password.expose().clone())),
            started: Instant::now(),
            start_text: jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S %z").to_string(),
            register_interval: config.register_interval,
            stale_after: config.routes.stale_after,
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// `router.start`, and the answer to `router.greet`.
    pub(crate) fn start_message(&self) -> RouterStart {
        let seconds = |span: Duration| Some(u32::try_from(span.as_secs().max(1)).unwrap_or(u32::MAX));
        RouterStart {
            id: Some(self.id.clone()),
            hosts: vec![self.ip.to_string()],
            minimum_register_interval_seconds: seconds(self.register_interval),
            prune_threshold_seconds: seconds(self.stale_after),
        }
    }

    /// `vcap.component.announce`, and the answer to `vcap.component.discover`.
    pub(crate) fn announcement(&self, uptime: Uptime) -> ComponentAnnounce {
        ComponentAnnounce {
            kind: "Router".to_owned(),
            index: self.index,
            uuid: self.id.clone(),
            host: self.status.to_string(),
            credentials: self.credentials.clone(),
            start: self.start_text.clone(),
            uptime: match uptime {
                Uptime::Omitted => None,
                Uptime::Current => Some(self.uptime()),
            },
        }
    }

    fn uptime(&self) -> String {
        let seconds = self.started.elapsed().as_secs();
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(text, "{}d:{}h:{}m:{}s", seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        text
    }

    /// Whether `user` and `password` open the status pages; takes the same time whichever of them is wrong.
    pub(crate) fn admits(&self, user: &[u8], password: &[u8]) -> bool {
        use subtle::ConstantTimeEq;
        let (own_user, own_password) = self.credentials.expose();
        (user.ct_eq(own_user.as_bytes()) & password.ct_eq(own_password.as_bytes())).into()
    }
}

/// Whether an announcement says how long the router has been up: only the answer to a discovery does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uptime {
    Omitted,
    Current,
}

/// The address under which others reach a listener: its own, or for one that listens everywhere, that of the default route.
/// Connecting a UDP socket sends nothing; it only makes the kernel choose.
fn reachable_ip(listen: IpAddr) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    let (bind, towards) = if listen.is_ipv4() { ("0.0.0.0:0", "198.51.100.1:1") } else { ("[::]:0", "[2001:db8::1]:1") };
    let chosen = UdpSocket::bind(bind).and_then(|socket| {
        socket.connect(towards)?;
        socket.local_addr()
    });
    // A machine without any route has only itself.
    chosen
        .map_or(if listen.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { std::net::Ipv6Addr::LOCALHOST.into() }, |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_version_4_uuid() {
        let (one, other) = (random_uuid(), random_uuid());
        assert_ne!(one, other);
        for id in [one, other] {
            let groups: Vec<_> = id.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12]);
            assert_eq!(id.as_bytes()[14], b'4');
            assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{id}");
        }
    }

    #[test]
    fn a_listener_everywhere_is_announced_with_a_real_address() {
        assert!(!reachable_ip(IpAddr::from([0, 0, 0, 0])).is_unspecified());
        assert_eq!(reachable_ip(IpAddr::from([127, 0, 0, 9])), IpAddr::from([127, 0, 0, 9]));
    }
}
