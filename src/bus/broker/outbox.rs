//! What waits to be written to one client.
//!
//! Any task appends under a short lock; one writer task per connection takes everything that has gathered and writes it at once. A client
//! that does not read is cut off when more than its limit waits, or when one write takes longer than the deadline.

use std::io;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Bytes gathered into one buffer, which is also the most that is written in one go.
const BUFFER_BYTES: usize = 256 << 10;

/// How long what is left may take when the connection ends.
const FINAL_FLUSH: Duration = Duration::from_secs(1);

/// The queue of one client.
#[derive(Debug)]
pub(super) struct Outbox {
    pending: Mutex<Pending>,
    /// The limit on waiting bytes.
    limit: usize,
    filled: Notify,
    drained: Notify,
    /// Cancelled when the connection is to be dropped as it is.
    broken: CancellationToken,
}

#[derive(Debug, Default)]
struct Pending {
    /// Full buffers and shared payloads, in order.
    full: Vec<Bytes>,
    /// The buffer that is being filled, after all of them.
    tail: Vec<u8>,
    /// Everything that waits, including what is being written.
    bytes: usize,
    /// The writer has been or will be notified by whoever found this unset.
    claimed: bool,
    /// Nothing is taken in any more.
    ended: bool,
}

/// What became of something appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appended {
    /// It waits, and the caller has to [`Outbox::wake`] the writer.
    First,
    /// It waits, and somebody wakes the writer.
    More,
    /// As `More`, and so much waits that the caller should pause before it sends more.
    Congested,
    /// It does not: the connection ends, or this was too much.
    Refused,
}

impl Outbox {
    pub(super) fn new(limit: usize) -> Self {
        Self { pending: Mutex::default(), limit, filled: Notify::new(), drained: Notify::new(), broken: CancellationToken::new() }
    }

    /// Appends what `write` writes, and then `shared` without copying it. Never waits.
    pub(super) fn append(&self, shared: Option<&Bytes>, write: impl FnOnce(&mut Vec<u8>)) -> Appended {
        let mut pending = self.lock();
        if pending.ended {
            return Appended::Refused;
        }
        let before = pending.tail.len();
        write(&mut pending.tail);
        pending.bytes += pending.tail.len() - before;
        if let Some(shared) = shared {
            pending.seal();
            pending.bytes += shared.len();
            pending.full.push(shared.clone());
        } else if pending.tail.len() >= BUFFER_BYTES {
            pending.seal();
        }
        if pending.bytes > self.limit {
            pending.ended = true;
            drop(pending);
            self.broken.cancel();
            return Appended::Refused;
        }
        let claimed = mem::replace(&mut pending.claimed, true);
        match (claimed, pending.bytes > self.limit / 2) {
            (false, _) => Appended::First,
            (true, false) => Appended::More,
            (true, true) => Appended::Congested,
        }
    }

    /// Sets the writer to work.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Ends the connection after everything that waits has been written.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.wake();
    }

    /// Waits until less than half the limit waits, or the connection is broken.
    pub(super) async fn relieved(&self) {
        loop {
            let drained = self.drained.notified();
            if self.lock().bytes <= self.limit / 2 || self.broken.is_cancelled() {
                return;
            }
            tokio::select! {
                () = drained => {}
                () = self.broken.cancelled() => return,
            }
        }
    }

    /// Cancelled when the client was cut off.
    pub(super) fn broken(&self) -> &CancellationToken {
        &self.broken
    }

    /// Writes until the outbox has ended and is empty.
    ///
    /// # Errors
    /// When the client is cut off, or its socket is.
    pub(super) async fn write_to(&self, mut socket: impl AsyncWrite + Unpin, deadline: Duration) -> io::Result<()> {
        let mut spare = Vec::new();
        loop {
            let (full, tail, ended) = self.take(mem::take(&mut spare));
            if full.is_empty() && tail.is_empty() {
                if ended {
                    return socket.shutdown().await;
                }
                tokio::select! {
                    () = self.filled.notified() => {}
                    () = self.broken.cancelled() => return Err(slow_consumer()),
                }
                spare = tail;
                continue;
            }
            let patience = if ended { deadline.min(FINAL_FLUSH) } else { deadline };
            for buffer in full.iter().map(|shared| &**shared).chain([tail.as_slice()]) {
                let written = tokio::select! {
                    written = timeout(patience, socket.write_all(buffer)) => written,
                    () = self.broken.cancelled() => return Err(slow_consumer()),
                };
                written.unwrap_or_else(|_| Err(slow_consumer()))?;
                self.written(buffer.len());
            }
            spare = tail;
            spare.clear();
        }
    }

    /// Ends the connection without another byte.
    pub(super) fn break_off(&self) {
        self.lock().ended = true;
        self.broken.cancel();
    }

    /// Everything that waits, with `spare` in its place; and whether this is the end of it.
    fn take(&self, spare: Vec<u8>) -> (Vec<Bytes>, Vec<u8>, bool) {
        let mut pending = self.lock();
        let full = mem::take(&mut pending.full);
        let tail = mem::replace(&mut pending.tail, spare);
        if full.is_empty() && tail.is_empty() {
            pending.claimed = false;
        }
        (full, tail, pending.ended)
    }

    fn written(&self, bytes: usize) {
        self.lock().bytes -= bytes;
        self.drained.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // A panic under the lock can only come from an allocation that failed; the bytes are in order up to it.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Puts the tail among the full buffers.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.full.push(mem::take(&mut self.tail).into());
        }
    }
}

fn slow_consumer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "slow consumer")
}
