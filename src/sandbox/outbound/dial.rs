//! New connections to origins.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tracing::debug;
use wasmtime_wasi_http::Error;

use super::failure;
use super::pool::{Connection, Sender};
use super::target::Origin;
use crate::network::InstanceNetwork;

/// The largest head of a response in bytes, and its fields.
const HEAD_BYTES: usize = 64 << 10;
const FIELDS: usize = 128;
/// Bounds what is buffered of a response: no more is read until the guest has taken some.
const BUFFER_BYTES: usize = 64 << 10;

/// Why there is no connection.
pub(super) struct DialError {
    pub(super) code: Error,
    /// For the developer, where the code does not say enough.
    pub(super) detail: Option<String>,
}

impl From<Error> for DialError {
    fn from(code: Error) -> Self {
        Self { code, detail: None }
    }
}

/// Connects to the first of these addresses that answers; each has its share of the time.
pub(super) async fn dial(
    network: &InstanceNetwork,
    origin: &Origin,
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<Connection, DialError> {
    let start = Instant::now();
    let mut failed = Error::DestinationUnavailable;
    for (address, number) in addresses.iter().zip(1..) {
        if !network.allowance.connections.take() {
            return Err(Error::ConnectionLimitReached.into());
        }
        let deadline = start + patience * number / u32::try_from(addresses.len()).unwrap_or(1);
        match timeout_at(deadline, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let sender = timeout_at(start + patience, greet(network, origin, stream)).await;
                return Ok(Connection { sender: sender.map_err(|_| Error::ConnectionTimeout)??, address: *address });
            }
            Ok(Err(error)) => failed = failure::of_connecting(&error),
            Err(_) => failed = Error::ConnectionTimeout,
        }
    }
    Err(failed.into())
}

async fn greet(network: &InstanceNetwork, origin: &Origin, stream: TcpStream) -> Result<Sender, DialError> {
    // It only costs time where it cannot be set.
    let _ = stream.set_nodelay(true);
    if !origin.tls {
        return shake_hands(stream).await;
    }
    let connector = TlsConnector::from(Arc::clone(&network.app.tls));
    match connector.connect(origin.server_name()?, stream).await {
        Ok(stream) => shake_hands(stream).await,
        Err(error) => {
            let (code, detail) = failure::of_tls(&error);
            Err(DialError { code, detail: Some(detail) })
        }
    }
}

async fn shake_hands(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Sender, DialError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES).max_header_size(HEAD_BYTES).max_headers(FIELDS);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| failure::of_exchange(&error))?;
    // It ends when the origin closes it, or when its sender and its last response are dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "connection of a guest failed");
        }
    });
    Ok(sender)
}
