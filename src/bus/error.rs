//! Why the bus could not do something.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// What failed on the bus. No variant carries a credential: servers are named by scheme, host and port alone.
#[derive(Debug, Error)]
pub enum BusError {
    /// The configuration names no server.
    #[error("no NATS server configured")]
    NoServers,
    /// A server's address does not parse, or is not one that can be connected to.
    #[error("invalid NATS server `{server}`: {reason}")]
    InvalidServer { server: String, reason: String },
    /// Two server addresses carry different credentials; a connection has one set for all.
    #[error("NATS servers carry different credentials (set them apart from the addresses)")]
    ConflictingCredentials,
    /// The nkey seed is none. Says nothing of the seed itself.
    #[error("invalid NATS nkey seed: {reason}")]
    InvalidNkeySeed { reason: String },
    /// The credentials file cannot be read or understood.
    #[error("cannot use NATS credentials file {}", path.display())]
    Credentials { path: PathBuf, source: io::Error },
    /// A certificate or key cannot be read or understood.
    #[error("cannot use TLS file {}", path.display())]
    Tls { path: PathBuf, source: io::Error },
    /// A client certificate without its key, or a key without its certificate.
    #[error("a TLS client certificate needs both `cert_file` and `key_file`")]
    IncompleteClientCertificate,
    /// No server could be reached in time.
    #[error("no connection to NATS ({servers}) within {after:?}: {cause}")]
    Unreachable { servers: String, after: Duration, cause: String },
    /// There is no connection now. The message was dropped.
    #[error("bus is down, cannot send to `{subject}`")]
    Down { subject: String },
    /// More messages wait to be written than the client holds. The message was dropped.
    #[error("send queue is full, message to `{subject}` dropped")]
    QueueFull { subject: String },
    /// The subject, reply subject or queue group cannot stand in the protocol.
    #[error("invalid subject `{subject}`")]
    InvalidSubject { subject: String },
    /// The payload is larger than the server takes.
    #[error("payload of {size} bytes to `{subject}` exceeds the {max} that the server takes")]
    TooLarge { subject: String, size: usize, max: usize },
    /// The payload has no JSON form.
    #[error("cannot encode the message to `{subject}`")]
    Encode { subject: String, source: serde_json::Error },
    /// Nobody answered, or the server did not confirm, in time.
    #[error("no answer from `{subject}` within {after:?}")]
    Timeout { subject: String, after: Duration },
    /// The server says that nobody listens there.
    #[error("nobody listens on `{subject}`")]
    NoResponders { subject: String },
    /// The client has ended.
    #[error("bus client is closed, cannot send to `{subject}`")]
    Closed { subject: String },
}
