//! A socket whose peer has to read what it asked for.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// From when the peer's buffers are full, it must take this much in this time, over and over.
const LEAST: usize = 64 << 10;

/// Fails with `TimedOut` when its peer does not read.
#[derive(Debug)]
pub(super) struct Stall {
    stream: TcpStream,
    limit: Duration,
    /// Since when the peer holds us up, until when it may, and what it took meanwhile.
    held_up: Option<(Pin<Box<Sleep>>, usize)>,
}

impl Stall {
    pub(super) fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, held_up: None }
    }
}

impl AsyncRead for Stall {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stall {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Pending => {
                let limit = self.limit;
                let (timer, _) = self.held_up.get_or_insert_with(|| (Box::pin(sleep(limit)), 0));
                timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Ready(Ok(count)) => {
                if let Some((timer, taken)) = &mut self.held_up {
                    *taken += count;
                    // A timer that is over says nothing of now: nobody was held up in between.
                    if *taken >= LEAST || timer.deadline() <= Instant::now() {
                        self.held_up = None;
                    }
                }
                Poll::Ready(Ok(count))
            }
            failed => failed,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
