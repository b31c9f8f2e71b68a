//! A file as it grows.
//!
//! The file is looked at by its descriptor, twenty times a second: that needs no notifications of the kernel, of which a user has
//! few, it cannot be fooled by what happens at the path, and nothing written waits for longer than a look. The kernel's own name for
//! the open file tells when it was renamed or removed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{Stream, try_unfold};
use hyper::body::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::content::{PIECE, read};

/// Between two looks at the file.
const LOOK: Duration = Duration::from_millis(50);

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// With what comes from now on.
    End,
    /// At this byte, which may lie beyond the end.
    Byte(u64),
}

/// What a query says about following: `None` if it does not want it.
///
/// # Errors
/// When the offset is no offset.
pub(super) fn wanted(query: &str) -> Result<Option<From>, &'static str> {
    let pairs = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    if !pairs().any(|(name, _)| name == "tail") {
        return Ok(None);
    }
    let Some((_, offset)) = pairs().find(|(name, _)| *name == "tail_offset") else { return Ok(Some(From::End)) };
    let digits = !offset.is_empty() && offset.bytes().all(|byte| byte.is_ascii_digit());
    // What the original could hold.
    match offset.parse::<i64>().ok().filter(|_| digits).and_then(|offset| u64::try_from(offset).ok()) {
        Some(offset) => Ok(Some(From::Byte(offset))),
        None => Err("Tail offset must be a positive integer."),
    }
}

struct Tail {
    file: Arc<File>,
    /// What the kernel calls it, at the start.
    name: PathBuf,
    at: u64,
    idle: Duration,
    last_change: Instant,
    /// What was seen last, to tell silence.
    size: u64,
    _permits: [OwnedSemaphorePermit; 2],
}

/// What is in the file from there on, and then what is added. Ends when the file is renamed or removed, with an error after `idle`
/// without any change.
///
/// # Errors
/// When the file cannot be looked at.
pub(super) fn follow(
    file: File,
    from: From,
    idle: Duration,
    permits: [OwnedSemaphorePermit; 2],
) -> io::Result<impl Stream<Item = io::Result<Frame<Bytes>>>> {
    let (size, name) = (file.metadata()?.len(), name_of(&file)?);
    let at = match from {
        From::End => size,
        From::Byte(offset) => offset,
    };
    let tail = Tail { file: Arc::new(file), name, at, idle, last_change: Instant::now(), size, _permits: permits };
    Ok(try_unfold(tail, async |mut tail| Ok(tail.next().await?.map(|piece| (Frame::data(piece), tail)))))
}

impl Tail {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            // In this order: what was written before the end is seen.
            let gone = name_of(&self.file)? != self.name;
            let size = self.file.metadata()?.len();
            if size != self.size {
                (self.size, self.last_change) = (size, Instant::now());
            }
            if size > self.at {
                let piece = read(Arc::clone(&self.file), self.at, PIECE.min(size - self.at)).await?;
                if !piece.is_empty() {
                    self.at += piece.len() as u64;
                    return Ok(Some(piece));
                }
            }
            if gone {
                return Ok(None);
            }
            if self.last_change.elapsed() >= self.idle {
                return Err(io::ErrorKind::TimedOut.into());
            }
            sleep(LOOK).await;
        }
    }
}

/// A path, or with ` (deleted)` behind it what it was.
fn name_of(file: &File) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
