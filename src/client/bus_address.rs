//! The bus as users name it: an address, and the folder name that follows from it.

use std::net::SocketAddr;

/// Where a NATS server is looked for when nobody says otherwise: where `dewar dev` and `dewar broker` listen.
pub const DEFAULT_BUS: &str = "nats://127.0.0.1:4222";

/// The name under which the apps of a bus are remembered: its first server's host and port without scheme or credentials, every
/// character that is not plain replaced. The same server under two names counts as two, except for `localhost`.
#[must_use]
pub fn bus_key(servers: &[String]) -> String {
    let first = servers.first().map_or(DEFAULT_BUS, String::as_str);
    let address = first.split_once("://").map_or(first, |(_, rest)| rest);
    let address = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let address = address.split(['/', '?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let has_port =
        address.rsplit_once(':').is_some_and(|(host, port)| port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')));
    let address = if has_port { address } else { format!("{address}:4222") };
    let address = match address.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address,
    };
    address.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' }).collect()
}

/// As an address for a server that listens here.
#[must_use]
pub fn nats_url(address: SocketAddr) -> String {
    format!("nats://{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for (address, key) in [
            ("nats://127.0.0.1:4222", "127.0.0.1_4222"),
            ("localhost", "127.0.0.1_4222"),
            ("nats://user:p%40ss@10.0.0.1:4333", "10.0.0.1_4333"),
            ("tls://Bus.Example.NET", "bus.example.net_4222"),
            ("nats://[::1]:4222", "___1__4222"),
            ("nats://[::1]", "___1__4222"),
            ("nats://../../etc", ".._4222"),
        ] {
            let found = bus_key(&[address.to_owned()]);
            assert!(!found.contains('/') && !found.contains("p%40ss"), "{found}");
            assert_eq!(found, key, "{address}");
        }
        assert_eq!(bus_key(&[]), "127.0.0.1_4222");
    }
}
