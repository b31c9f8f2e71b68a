//! Streams on files under a disk quota.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use tokio::task::JoinHandle;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{DynInputStream, InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::filesystem::Opened;
use crate::ledger::{Full, OpenFile, Span, Write};
use crate::limits::{Charge, MemoryBudget};

/// Bytes that one write may have: a guest's buffer is copied.
const CHUNK: u64 = 64 << 10;

/// Where a stream writes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Position {
    At(u64),
    End,
}

impl Position {
    pub(crate) fn span(self, bytes: u64) -> Span {
        match self {
            Self::At(offset) => Span::At { offset, bytes },
            Self::End => Span::Append { bytes },
        }
    }
}

/// Writes what was reserved, and no more. Runs to its end on a thread of its own, so that the ledger sees what became of it even
/// when the guest is gone.
pub(crate) fn write(reserved: Write, data: Bytes, position: Position) -> JoinHandle<io::Result<u64>> {
    tokio::task::spawn_blocking(move || {
        let length = usize::try_from(reserved.bytes()).map_or(data.len(), |bytes| bytes.min(data.len()));
        let mut rest = &data[..length];
        while !rest.is_empty() {
            let done = (length - rest.len()) as u64;
            let written = match position {
                Position::At(offset) => reserved.file().write_at(rest, offset.saturating_add(done)),
                Position::End => append(reserved.file(), rest),
            };
            match written {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        Ok(length as u64)
    })
}

fn append(file: &std::fs::File, data: &[u8]) -> io::Result<usize> {
    match pwritev2(file, &[io::IoSlice::new(data)], 0, ReadWriteFlags::APPEND) {
        // Some file systems cannot: then the end is where it is now. Only this instance's own writers could come between.
        Err(Errno::NOSYS | Errno::NOTSUP) => file.write_at(data, file.metadata()?.len()),
        written => Ok(written?),
    }
}

/// An output stream that reserves before it writes. A guest sees a full disk as a failed operation with `insufficient-space`.
pub(crate) struct FileWriter {
    target: Arc<OpenFile>,
    position: Position,
    state: State,
    memory: Arc<MemoryBudget>,
    _opened: Opened,
}

enum State {
    Idle,
    Writing { wanted: u64, writing: JoinHandle<io::Result<u64>>, _copy: Charge },
    Failed(io::Error),
    Closed,
}

impl FileWriter {
    pub(crate) fn new(target: Arc<OpenFile>, position: Position, opened: Opened, memory: Arc<MemoryBudget>) -> Self {
        Self { target, position, state: State::Idle, memory, _opened: opened }
    }

    /// The error of the last operation, once; afterwards the stream is closed.
    fn check(&mut self) -> StreamResult<()> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Failed(error) => Err(StreamError::LastOperationFailed(error.into())),
            State::Closed => Err(StreamError::Closed),
            going @ (State::Idle | State::Writing { .. }) => {
                self.state = going;
                Ok(())
            }
        }
    }

    fn fail(&mut self, error: impl Into<io::Error>) -> StreamError {
        self.state = State::Closed;
        StreamError::LastOperationFailed(error.into().into())
    }

    fn start(&mut self, data: Bytes) -> StreamResult<()> {
        let wanted = data.len() as u64;
        let copy = self.memory.charge(wanted);
        let copy = copy.map_err(|_| self.fail(io::Error::from_raw_os_error(Errno::NOMEM.raw_os_error())))?;
        let reserved = self.target.begin(self.position.span(wanted)).map_err(|full| self.fail(full))?;
        self.state = State::Writing { wanted, writing: write(reserved, data, self.position), _copy: copy };
        Ok(())
    }
}

#[async_trait]
impl OutputStream for FileWriter {
    fn check_write(&mut self) -> StreamResult<usize> {
        self.check()?;
        if matches!(self.state, State::Writing { .. }) {
            return Ok(0);
        }
        match self.target.room(self.position.span(CHUNK)) {
            // Not "nothing at the moment": a guest would wait for ever.
            0 => Err(self.fail(Full)),
            room => Ok(usize::try_from(room).unwrap_or(usize::MAX)),
        }
    }

    fn write(&mut self, data: Bytes) -> StreamResult<()> {
        self.check()?;
        if matches!(self.state, State::Writing { .. }) || data.len() as u64 > CHUNK {
            return Err(StreamError::trap("write without a permit"));
        }
        self.start(data)
    }

    async fn blocking_write_and_flush(&mut self, data: Bytes) -> StreamResult<()> {
        self.ready().await;
        self.check()?;
        self.start(data)?;
        self.ready().await;
        self.check()
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.check()
    }

    async fn cancel(&mut self) {
        if let State::Writing { writing, .. } = std::mem::replace(&mut self.state, State::Closed) {
            // It cannot be stopped; waiting keeps a guest from piling up writes. Nobody is left to hear of a failure.
            let _ = writing.await;
        }
    }
}

#[async_trait]
impl Pollable for FileWriter {
    async fn ready(&mut self) {
        if let State::Writing { wanted, writing, .. } = &mut self.state {
            let wanted = *wanted;
            self.state = match writing.await {
                // What was permitted may not fit any more: some was written, the rest is lost and must be reported.
                Ok(Ok(written)) if written < wanted => State::Failed(Full.into()),
                Ok(Ok(written)) => {
                    if let Position::At(offset) = &mut self.position {
                        *offset = offset.saturating_add(written);
                    }
                    State::Idle
                }
                Ok(Err(error)) => State::Failed(error),
                Err(stopped) => State::Failed(io::Error::other(stopped)),
            };
        }
    }
}

/// An input stream that keeps its file in the ledger, and its handle, for as long as it can read it.
pub(crate) struct FileReader {
    pub(crate) inner: DynInputStream,
    pub(crate) _opened: Opened,
}

#[async_trait]
impl InputStream for FileReader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.inner.read(size)
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.inner.blocking_read(size).await
    }

    fn skip(&mut self, count: usize) -> StreamResult<usize> {
        self.inner.skip(count)
    }

    async fn blocking_skip(&mut self, count: usize) -> StreamResult<usize> {
        self.inner.blocking_skip(count).await
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

#[async_trait]
impl Pollable for FileReader {
    async fn ready(&mut self) {
        self.inner.ready().await;
    }
}
