//! Emission to loggregator: lines of apps and metrics as dropsonde envelopes, one a datagram.
//!
//! The original wrote unsigned envelopes from October 2015 on, and so does this. With a shared secret each is preceded by its
//! HMAC-SHA256, the signed form of dropsonde, which Doppler takes from anybody who knows the secret; `LogEnvelope`, the message from
//! before dropsonde, is not spoken. Lines of apps come from here, too, since there are no sockets for a log agent to read.
//!
//! The socket never blocks: what the system does not take at once is dropped and counted.

pub(crate) mod envelope;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use dewar_core::Sample;
use dewar_protocol::{AppId, LogLine, LogSource, LogStream, Secret};
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message as _;
use sha2::Sha256;
use tracing::{info, warn};

use self::envelope::{ContainerMetric, CounterEvent, Envelope, EventType, LogMessage, MessageType, ValueMetric};
use crate::config::LoggregatorConfig;

/// Who all of this is from.
const ORIGIN: &str = "DEA";

/// Bytes of one message: with the rest of the envelope it has to fit what loggregator reads at a time.
const MESSAGE_BYTES: usize = 9 * 1024 - 512;

/// What ends a message that was cut.
const TRUNCATED: &str = "TRUNCATED";

/// Where events are emitted. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Loggregator(Arc<Emitter>);

#[derive(Debug)]
struct Emitter {
    socket: UdpSocket,
    router: SocketAddr,
    shared_secret: Option<Secret<String>>,
    /// The job index, which is the source instance of what the agent says itself.
    index: String,
    sent: AtomicU64,
    failed: AtomicU64,
    /// Whether the last datagram could not be sent: only the first of a row is logged.
    is_failing: AtomicBool,
}

/// Numbers of datagrams so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Datagrams {
    pub(crate) sent: u64,
    /// Not sent, because the network or the system did not take them.
    pub(crate) failed: u64,
}

/// Why nothing can be emitted.
#[derive(Debug, thiserror::Error)]
pub enum LoggregatorError {
    /// Its name says nothing.
    #[error("find the host of `loggregator.router`, {router}")]
    Host {
        /// As configured.
        router: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No socket.
    #[error("make a socket for loggregator")]
    Socket(#[source] io::Error),
}

impl Loggregator {
    /// Looks up the router's host, once.
    ///
    /// # Errors
    /// When it has no address, or the system no socket.
    pub(crate) async fn new(config: &LoggregatorConfig, index: u32) -> Result<Self, LoggregatorError> {
        let unknown = |source| LoggregatorError::Host { router: config.router.clone(), source };
        let router = tokio::net::lookup_host(&config.router).await.map_err(unknown)?.next();
        let router = router.ok_or_else(|| unknown(io::ErrorKind::NotFound.into()))?;
        let from = match router {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(from).map_err(LoggregatorError::Socket)?;
        socket.set_nonblocking(true).map_err(LoggregatorError::Socket)?;
        Ok(Self(Arc::new(Emitter {
            socket,
            router,
            shared_secret: config.shared_secret.clone(),
            index: index.to_string(),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
        })))
    }

    /// A line, in as many messages as it has lines of its own.
    pub(crate) fn line(&self, line: &LogLine) {
        if line.text.trim().is_empty() {
            return;
        }
        let (source_type, source_instance) = match (line.source, line.index) {
            (LogSource::App, Some(index)) => ("App", index.to_string()),
            (LogSource::App, None) => ("App", String::new()),
            (LogSource::Dea, _) => ("DEA", self.0.index.clone()),
            (LogSource::Stg, _) => ("STG", self.0.index.clone()),
        };
        let message_type = match line.stream {
            LogStream::Out => MessageType::Out,
            LogStream::Err => MessageType::Err,
        };
        for piece in line.text.split(['\n', '\r']).filter(|piece| !piece.is_empty()) {
            let log_message = LogMessage {
                message: cut(piece),
                message_type: message_type.into(),
                timestamp: nanoseconds(line.timestamp.0),
                app_id: Some(line.app_id.to_string()),
                source_type: Some(source_type.to_owned()),
                source_instance: Some(source_instance.clone()),
            };
            self.emit(Envelope { log_message: Some(log_message), ..envelope(EventType::LogMessage) });
        }
    }

    /// A number as it is now.
    pub(crate) fn value(&self, name: &str, value: f64, unit: &str) {
        let value_metric = ValueMetric { name: name.to_owned(), value, unit: unit.to_owned() };
        self.emit(Envelope { value_metric: Some(value_metric), ..envelope(EventType::ValueMetric) });
    }

    /// A count has grown.
    pub(crate) fn counter(&self, name: &str, delta: u64) {
        let counter_event = CounterEvent { name: name.to_owned(), delta };
        self.emit(Envelope { counter_event: Some(counter_event), ..envelope(EventType::CounterEvent) });
    }

    /// What an instance uses; `cpu` as a fraction of one core.
    pub(crate) fn container(&self, app_id: &AppId, index: u32, cpu: f64, sample: Sample) {
        let container_metric = ContainerMetric {
            application_id: app_id.to_string(),
            instance_index: i32::try_from(index).unwrap_or(i32::MAX),
            cpu_percentage: 100.0 * cpu,
            memory_bytes: sample.memory.0,
            disk_bytes: sample.disk.0,
        };
        self.emit(Envelope { container_metric: Some(container_metric), ..envelope(EventType::ContainerMetric) });
    }

    pub(crate) fn datagrams(&self) -> Datagrams {
        Datagrams { sent: self.0.sent.load(Ordering::Relaxed), failed: self.0.failed.load(Ordering::Relaxed) }
    }

    fn emit(&self, envelope: Envelope) {
        let Emitter { socket, router, shared_secret, sent, failed, is_failing, .. } = &*self.0;
        let envelope = envelope.encode_to_vec();
        let datagram = shared_secret.as_ref().map_or_else(|| envelope.clone(), |secret| signed(secret, &envelope));
        match socket.send_to(&datagram, router) {
            Ok(_) => {
                sent.fetch_add(1, Ordering::Relaxed);
                if is_failing.swap(false, Ordering::Relaxed) {
                    info!(%router, "loggregator is told again");
                }
            }
            Err(error) => {
                failed.fetch_add(1, Ordering::Relaxed);
                if !is_failing.swap(true, Ordering::Relaxed) {
                    warn!(%router, %error, "loggregator cannot be told");
                }
            }
        }
    }
}

fn envelope(event_type: EventType) -> Envelope {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    Envelope { origin: ORIGIN.to_owned(), event_type: event_type.into(), timestamp: Some(timestamp), ..Envelope::default() }
}

/// Cut at any byte, as the original does.
fn cut(text: &str) -> Vec<u8> {
    if text.len() <= MESSAGE_BYTES {
        return text.into();
    }
    let kept = text.as_bytes().get(..MESSAGE_BYTES - TRUNCATED.len()).unwrap_or_default();
    [kept, TRUNCATED.as_bytes()].concat()
}

fn signed(secret: &Secret<String>, envelope: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
    mac.update(envelope);
    [mac.finalize().into_bytes().as_slice(), envelope].concat()
}

#[expect(clippy::cast_possible_truncation, reason = "a float-to-integer cast saturates; microseconds are what the float holds")]
fn nanoseconds(seconds: f64) -> i64 {
    (seconds * 1e9) as i64
}
