//! The disk quota of an instance: a ledger of what its writable directories hold.
//!
//! Counted as a disk counts, in blocks of 4 KiB: a regular file takes its length, however sparse it is, once for all its names; a
//! directory takes its own length, which grows with its names and does not shrink, and at least one block; anything else takes
//! one block. The roots take only what they have grown beyond their first block. Each name takes one of the `inodes`.
//!
//! Bytes belong to inodes and names to paths, and each is settled where it cannot be missed:
//! - a file or directory that is open has an entry, with the length it may have reached. A write reserves its end first and
//!   settles with the real length when no other write is under way. The last handle to close what has no name left gives its
//!   bytes back. So whoever takes the last name away holds a handle while doing so;
//! - names are counted by the operation that makes or removes them, one at a time ([`Ledger::structure`]), which also settles
//!   the directory it makes one in. How much that grows shows only afterwards: it may bring the ledger over its limit, by the
//!   two or three blocks that a directory grows at once, and then nothing new is taken. An operation that is cut off midway, its
//!   store being gone, leaves its reservation: the ledger never says less than there is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dewar_protocol::Bytes;

use crate::limits::Mebibytes;
use crate::output::Log;
use crate::refusals::Refusals;

/// What a file's length is rounded up to.
pub(crate) const BLOCK: u64 = 4096;

/// What the writable directories of an instance may hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskLimit {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// The quota is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl From<Full> for io::Error {
    /// With the error number: wasi:filesystem tells a guest nothing about errors that have none.
    fn from(_: Full) -> Self {
        io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: DiskLimit,
    /// Written under the lock of `state`, read without.
    bytes: AtomicU64,
    refusals: Refusals,
    state: Mutex<State>,
    /// Held while names are made or removed.
    pub(crate) structure: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    names: u64,
    open: HashMap<Inode, Entered>,
}

/// Device and inode number.
type Inode = (u64, u64);

/// A file or directory that is open.
#[derive(Debug)]
struct Entered {
    /// The length that is charged, at least its own.
    length: u64,
    /// What is charged at least: [`BLOCK`] for a directory.
    least: u64,
    handles: usize,
    writes: usize,
}

impl Entered {
    fn charged(&self) -> u64 {
        blocks(self.length).max(self.least)
    }
}

fn blocks(length: u64) -> u64 {
    length.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// What something costs besides its names.
fn cost(metadata: &Metadata) -> u64 {
    blocks(metadata.len()).max(least(metadata))
}

fn least(metadata: &Metadata) -> u64 {
    if metadata.is_file() { 0 } else { BLOCK }
}

impl Ledger {
    /// A ledger of what these directories hold now. Walks them.
    pub(crate) fn open<'a>(directories: impl IntoIterator<Item = &'a Path>, limit: DiskLimit) -> io::Result<Arc<Self>> {
        let held = survey(directories)?;
        Ok(Arc::new(Self {
            limit,
            bytes: AtomicU64::new(held.0),
            refusals: Refusals::default(),
            state: Mutex::new(State { names: held.1, open: HashMap::new() }),
            structure: tokio::sync::Mutex::new(()),
        }))
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes(self.bytes.load(Ordering::Relaxed))
    }

    /// Names in use.
    pub(crate) fn names(&self) -> u64 {
        self.lock().names
    }

    /// Whether something has been refused for want of space since the ledger was opened.
    pub(crate) fn has_refused(&self) -> bool {
        self.refusals.count() > 0
    }

    /// Tells the app's developer of what is refused from now on.
    pub(crate) fn tell(&self, log: Arc<Log>) {
        self.refusals.tell(log);
    }

    /// Something does not fit. Call without the lock: a log may take its time.
    fn refuse(&self) -> Full {
        let (names, bytes) = (self.lock().names, self.bytes());
        self.refusals.add(|| {
            let DiskLimit { bytes: limit, inodes } = self.limit;
            format!("disk quota reached: {} of {} in use, {names} of {inodes} files", Mebibytes(bytes), Mebibytes(Bytes(limit)))
        });
        Full
    }

    /// Charges a name, and the bytes that come with it ([`BLOCK`] for anything but a regular file).
    pub(crate) fn add_name(&self, bytes: u64) -> Result<(), Full> {
        let mut state = self.lock();
        let is_over = self.bytes.load(Ordering::Relaxed) > self.limit.bytes;
        if state.names >= self.limit.inodes || bytes > self.remaining() || is_over {
            drop(state);
            return Err(self.refuse());
        }
        state.names += 1;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a name off, and the bytes that came with it.
    pub(crate) fn remove_name(&self, bytes: u64) {
        let mut state = self.lock();
        state.names = state.names.saturating_sub(1);
        self.shift(bytes, 0);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock leaves the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remaining(&self) -> u64 {
        self.limit.bytes.saturating_sub(self.bytes.load(Ordering::Relaxed))
    }

    /// Call under the lock.
    fn shift(&self, from: u64, to: u64) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        // In this order: a root costs less than its directory takes.
        self.bytes.store(bytes.saturating_add(to).saturating_sub(from), Ordering::Relaxed);
    }

    /// The greatest length that a file may have which is charged `length` now. Call under the lock.
    fn reach(&self, length: u64) -> u64 {
        let most = blocks(length).saturating_add(self.remaining());
        (most - most % BLOCK).max(length)
    }
}

/// Where a write ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Span {
    /// So many bytes at an offset.
    At { offset: u64, bytes: u64 },
    /// So many bytes at the end.
    Append { bytes: u64 },
    /// Nothing gets longer.
    Shrink,
}

/// A handle on a regular file or a directory, counted as it lies in a counted directory. Its clones count as one.
#[derive(Debug)]
pub(crate) struct OpenFile {
    ledger: Arc<Ledger>,
    inode: Inode,
    pub(crate) file: Arc<File>,
}

impl OpenFile {
    /// Enters a file that was just opened without changing its length.
    pub(crate) fn enter(ledger: Arc<Ledger>, file: Arc<File>) -> io::Result<Arc<Self>> {
        let metadata = file.metadata()?;
        let inode = (metadata.dev(), metadata.ino());
        let mut state = ledger.lock();
        match state.open.entry(inode) {
            Entry::Occupied(mut entered) => entered.get_mut().handles += 1,
            Entry::Vacant(place) => {
                // Under the lock, as the length may only be taken while nobody else can have the file open.
                let metadata = file.metadata()?;
                if metadata.nlink() == 0 {
                    // It lost its name, and whoever took that away gave its bytes back, after it was opened and before it came here.
                    ledger.shift(0, cost(&metadata));
                }
                place.insert(Entered { length: metadata.len(), least: least(&metadata), handles: 1, writes: 0 });
            }
        }
        drop(state);
        Ok(Arc::new(Self { ledger, inode, file }))
    }

    /// How many bytes of a write would fit. None is as good as a refusal.
    pub(crate) fn room(&self, span: Span) -> u64 {
        let state = self.ledger.lock();
        let fits = state.open.get(&self.inode).map_or(0, |entered| self.ledger.fitting(entered.length, span));
        drop(state);
        if fits == 0 {
            self.ledger.refuse();
        }
        fits
    }

    /// Reserves a write. Gives at least one byte of what was asked for.
    pub(crate) fn begin(self: &Arc<Self>, span: Span) -> Result<Write, Full> {
        let mut state = self.ledger.lock();
        let entered = state.open.get_mut(&self.inode).ok_or(Full)?;
        let fits = self.ledger.fitting(entered.length, span);
        let end = match span {
            Span::At { offset, bytes } if fits > 0 || bytes == 0 => offset.saturating_add(fits),
            Span::Append { bytes } if fits > 0 || bytes == 0 => entered.length.saturating_add(fits),
            Span::Shrink => 0,
            Span::At { .. } | Span::Append { .. } => {
                drop(state);
                return Err(self.ledger.refuse());
            }
        };
        // An empty write beyond the end does not make a file longer.
        if fits > 0 && end > entered.length {
            self.ledger.shift(blocks(entered.length), blocks(end));
            entered.length = end;
        }
        entered.writes += 1;
        Ok(Write { target: self.clone(), bytes: fits })
    }
}

impl Ledger {
    fn fitting(&self, length: u64, span: Span) -> u64 {
        let (offset, bytes) = match span {
            Span::At { offset, bytes } => (offset, bytes),
            Span::Append { bytes } => (length, bytes),
            Span::Shrink => return 0,
        };
        self.reach(length).saturating_sub(offset).min(bytes)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        let Some(entered) = state.open.get_mut(&self.inode) else { return };
        entered.handles -= 1;
        if entered.handles > 0 {
            return;
        }
        let charged = entered.charged();
        state.open.remove(&self.inode);
        // A file that cannot be looked at stays charged.
        if self.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
            self.ledger.shift(charged, 0);
        }
    }
}

/// A write that is under way. Settled when dropped.
#[derive(Debug)]
pub(crate) struct Write {
    target: Arc<OpenFile>,
    bytes: u64,
}

impl Write {
    /// How many bytes were reserved.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn file(&self) -> &File {
        &self.target.file
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        let ledger = &self.target.ledger;
        let mut state = ledger.lock();
        let Some(entered) = state.open.get_mut(&self.target.inode) else { return };
        entered.writes -= 1;
        if entered.writes > 0 {
            return;
        }
        if let Ok(metadata) = self.target.file.metadata() {
            let before = entered.charged();
            entered.length = metadata.len();
            ledger.shift(before, entered.charged());
        }
    }
}

/// Bytes and names in some directories, as the ledger counts them.
pub(crate) fn survey<'a>(directories: impl IntoIterator<Item = &'a Path>) -> io::Result<(u64, u64)> {
    // A file may have names in more than one of them.
    let mut seen = std::collections::HashSet::new();
    let (mut bytes, mut names) = (0, 0);
    for directory in directories {
        bytes += cost(&std::fs::metadata(directory)?) - BLOCK;
        for entry in walkdir::WalkDir::new(directory).min_depth(1) {
            let metadata = entry?.metadata()?;
            names += 1;
            let is_known = metadata.is_file() && metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino()));
            if !is_known {
                bytes += cost(&metadata);
            }
        }
    }
    Ok((bytes, names))
}
