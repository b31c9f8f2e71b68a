//! An embedded broker for core NATS: enough of a NATS server for a machine that has none.
//!
//! Wire-compatible with nats-server for what core clients use: INFO, CONNECT, PING/PONG, PUB/HPUB, SUB with wildcards and queue groups,
//! UNSUB with a count, MSG/HMSG, `+OK` in verbose mode, `-ERR` with the server's wording, `echo: false`, headers (taken off for clients
//! that do not know them), and 503 answers to requests that nobody listens for. No JetStream, clusters, accounts, permissions or TLS.
//!
//! # Limits
//! Everything a client can make grow has a bound in [`BrokerConfig`]. A client that breaks a rule is told why by an `-ERR` line and cut
//! off; its neighbours do not notice. A publisher whose receiver lags is slowed down for moments before the receiver is given up.

mod auth;
mod connection;
mod interest;
mod outbox;
mod parser;
mod peer;
mod server;
mod session;
mod subject;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use dewar_protocol::Secret;

pub use server::Broker;

/// What a broker listens on and puts up with. The defaults are those of nats-server unless said otherwise.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where to listen; port 0 takes a free one. Default 127.0.0.1:4222, loopback because there is no TLS.
    pub listen: SocketAddr,
    /// What clients must show. Default nothing.
    pub auth: BrokerAuth,
    /// Largest payload with headers, in bytes. A larger one closes the connection. Default 8 MiB: nats-server's 1 MiB
    /// has no room for a heartbeat that tells of more than some 4000 instances.
    pub max_payload: usize,
    /// Longest protocol line in bytes. A longer one closes the connection. Default 4096.
    pub max_control_line: usize,
    /// How many clients at once; the next is told so and closed. Default 8192, an eighth of nats-server's.
    pub max_connections: usize,
    /// How many subscriptions a client may hold; a further one is refused. Default 65,536; nats-server has no such bound.
    pub max_subscriptions: usize,
    /// How many bytes may wait for a client that does not read; one more and it is closed as a slow consumer. Default 64 MiB.
    pub max_pending: usize,
    /// How long a single write may take before the client is closed as a slow consumer. Default 10 s.
    pub write_deadline: Duration,
    /// How long a client may be silent before it is pinged. Default 2 min.
    pub ping_interval: Duration,
    /// How many pings may stay unanswered; one more and the connection is closed as stale. Default 2.
    pub max_pings_out: u32,
    /// How long a client has to show its credentials. Default 2 s.
    pub auth_timeout: Duration,
    /// How long clients have, after they are told that the broker stops, to leave by themselves. Default 500 ms.
    pub lame_duck: Duration,
}

/// What a client must show in its CONNECT. Compared in constant time.
#[derive(Debug, Clone, Default)]
pub enum BrokerAuth {
    /// Nothing.
    #[default]
    None,
    /// This token.
    Token(Secret<String>),
    /// This user and password.
    UserPassword {
        /// User name.
        user: String,
        /// Password.
        password: Secret<String>,
    },
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4222)),
            auth: BrokerAuth::None,
            max_payload: 8 << 20,
            max_control_line: 4096,
            max_connections: 8192,
            max_subscriptions: 65_536,
            max_pending: 64 << 20,
            write_deadline: Duration::from_secs(10),
            ping_interval: Duration::from_secs(120),
            max_pings_out: 2,
            auth_timeout: Duration::from_secs(2),
            lame_duck: Duration::from_millis(500),
        }
    }
}
