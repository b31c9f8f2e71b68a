//! After an upgrade (WebSocket or any other): bytes both ways until both sides have ended, or nothing has moved for long.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::exchange::Exchange;

/// What is held of each direction.
const BUFFER_BYTES: usize = 16 << 10;

/// Both sides have said what is needed; only hyper has still to hand over the sockets.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// Carries a tunnel to its end. The exchange is over when it is.
pub(crate) async fn run(client: OnUpgrade, instance: OnUpgrade, mut exchange: Exchange, idle: Duration, kill: CancellationToken) {
    let handover = async { tokio::try_join!(client, instance) };
    let (client, instance) = match timeout(HANDOVER_TIMEOUT, handover).await {
        Ok(Ok(sides)) => sides,
        Ok(Err(error)) => return debug!(%error, "upgrade failed"),
        Err(_) => return debug!("upgrade was not handed over"),
    };
    let moved = AtomicU64::new(0);
    let mut client = Side { stream: TokioIo::new(client), moved: &moved };
    let mut instance = Side { stream: TokioIo::new(instance), moved: &moved };
    let copied = tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut instance, BUFFER_BYTES, BUFFER_BYTES) => copied,
        () = stillness(&moved, idle) => Err(io::ErrorKind::TimedOut.into()),
        () = kill.cancelled() => Err(io::ErrorKind::Interrupted.into()),
    };
    match copied {
        Ok((_from_client, to_client)) => exchange.sent(usize::try_from(to_client).unwrap_or(usize::MAX)),
        Err(error) => debug!(%error, "tunnel was cut"),
    }
}

/// Returns when the count has not changed for `limit`.
async fn stillness(moved: &AtomicU64, limit: Duration) {
    loop {
        let before = moved.load(Ordering::Relaxed);
        sleep_until(Instant::now() + limit).await;
        if moved.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// One end of a tunnel, which counts what comes in.
struct Side<'a> {
    stream: TokioIo<Upgraded>,
    moved: &'a AtomicU64,
}

impl AsyncRead for Side<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Side<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
