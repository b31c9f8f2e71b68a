//! The socket of a client, with the clocks that slow clients are measured by.
//!
//! hyper alone cannot tell a client that dawdles over a request head from one that rests between two requests, and it waits for ever
//! for one that does not read. The clocks here are one timer per connection that is set when nothing moves and left alone
//! while something does, so a busy connection pays an atomic load and a comparison.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::config::ClientConfig;

const RESTING: u32 = 0;
const READING_HEAD: u32 = 1;
const IN_REQUEST: u32 = 2;
const PHASE: u32 = 3;

const NO_BODY: u8 = 0;
const BODY_COMES: u8 = 1;
const BODY_CAME: u8 = 2;

/// What a connection is doing; shared by its socket, which sees bytes, and its requests, which see where messages begin and end.
#[derive(Debug)]
pub(crate) struct Activity {
    /// The phase in the lower two bits; above them the number of requests, so that no two phases look the same.
    state: AtomicU32,
    /// Bytes of the current request's body so far.
    body_bytes: AtomicU64,
    body_state: AtomicU8,
    started: Instant,
    /// Milliseconds after `started` at which the last piece of the body came.
    body_progress: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU32::new(READING_HEAD),
            body_bytes: AtomicU64::new(0),
            body_state: AtomicU8::new(NO_BODY),
            started: Instant::now(),
            body_progress: AtomicU64::new(0),
        }
    }

    pub(crate) fn request_begins(&self) {
        let state = self.state.load(Ordering::Relaxed);
        self.state.store((state & !PHASE).wrapping_add(PHASE + 1) | IN_REQUEST, Ordering::Relaxed);
        self.body_bytes.store(0, Ordering::Relaxed);
        self.body_state.store(NO_BODY, Ordering::Relaxed);
    }

    pub(crate) fn request_ends(&self) {
        self.state.fetch_and(!PHASE, Ordering::Relaxed);
    }

    pub(crate) fn body_begins(&self) {
        self.body_state.store(BODY_COMES, Ordering::Relaxed);
        self.body_moved(0);
    }

    pub(crate) fn body_moved(&self, bytes: usize) {
        self.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.body_progress.store(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn body_ends(&self) {
        self.body_state.store(BODY_CAME, Ordering::Relaxed);
    }

    /// Whether some of the request's body is still to come.
    pub(crate) fn is_body_unfinished(&self) -> bool {
        self.body_state.load(Ordering::Relaxed) == BODY_COMES
    }

    /// Bytes of the request's body so far.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::Relaxed)
    }

    /// How long ago the last piece of the request's body came; `None` when it has none.
    pub(crate) fn since_body_progress(&self) -> Option<Duration> {
        let progress = Duration::from_millis(self.body_progress.load(Ordering::Relaxed));
        (self.body_state.load(Ordering::Relaxed) != NO_BODY).then(|| self.started.elapsed().saturating_sub(progress))
    }

    fn bytes_arrive(&self) {
        let state = self.state.load(Ordering::Relaxed);
        if state & PHASE == RESTING {
            self.state.store(state | READING_HEAD, Ordering::Relaxed);
        }
    }
}

/// Measures how long nothing has moved.
#[derive(Debug)]
pub(crate) struct Stall {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Stall {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, timer: None, waiting: false }
    }

    pub(crate) fn moved(&mut self) {
        self.waiting = false;
    }

    /// To be asked whenever nothing moves: ready once that has been so for the limit.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(Instant::now() + self.limit);
        }
        timer.as_mut().poll(cx)
    }
}

/// A client's socket.
#[derive(Debug)]
pub(crate) struct ClientIo {
    stream: TokioIo<TcpStream>,
    activity: Arc<Activity>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// The state that `deadline` was set for.
    seen: u32,
    deadline: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    write_stall: Stall,
}

impl ClientIo {
    pub(crate) fn new(stream: TcpStream, activity: Arc<Activity>, config: &ClientConfig) -> Self {
        let deadline = Instant::now() + config.header_timeout;
        Self {
            stream: TokioIo::new(stream),
            activity,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            seen: READING_HEAD,
            deadline: Some(deadline),
            timer: Box::pin(sleep_until(deadline)),
            write_stall: Stall::new(config.stall_timeout),
        }
    }

    /// Pending until the client has taken too long over what it is doing now.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let state = self.activity.state.load(Ordering::Relaxed);
        if state != self.seen {
            self.seen = state;
            self.deadline = match state & PHASE {
                RESTING => Some(Instant::now() + self.idle_timeout),
                READING_HEAD => Some(Instant::now() + self.header_timeout),
                _ => None,
            };
        }
        let Some(deadline) = self.deadline else { return Poll::Pending };
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        // A timer that was set for an earlier phase goes off early; it is set anew only then.
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    fn watch_write<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_stall.moved();
            return written;
        }
        ready!(self.write_stall.poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                self.activity.bytes_arrive();
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_overdue(cx).map(Err),
        }
    }
}

impl Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_write(cx, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes at the end of each response and does not read again until bytes arrive: the place to set the idle clock.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if let Poll::Ready(overdue) = self.poll_overdue(cx) {
            return Poll::Ready(Err(overdue));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
