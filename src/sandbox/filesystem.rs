//! `wasi:filesystem` 0.2 under a disk quota.
//!
//! wasmtime's implementation does all that concerns paths and permissions; this view stands before it and keeps the [`Ledger`]:
//! it reserves what an operation may take, delegates, and settles. Paths of a guest are never given to the operating system
//! from here. A full disk is `insufficient-space` (`ENOSPC`).

mod host;

use std::collections::HashMap;
use std::sync::Arc;

use wasmtime::component::{HasData, Resource};
use wasmtime_wasi::FsPerms;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, DescriptorType, ErrorCode, Filesize, HostDescriptor, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynOutputStream, FsError, FsResult};

use crate::handles::{Handle, Handles};
use crate::ledger::{BLOCK, Full, Ledger, OpenFile, Span, Write};
use crate::limits::{Charge, MemoryBudget, Refused};
use crate::stream::{FileWriter, Position};

/// Longest path that is looked at, as on Linux: the host keeps a copy while it waits for the disk.
const PATH_BYTES: usize = 4096;
/// The most that the host keeps for one entry of a directory that is listed, its name of 255 bytes and a grown array included.
const LISTED_ENTRY: u64 = 384;
/// Most symbolic links that one name leads through, as on Linux.
const LINKS: usize = 40;
/// So many entries are charged for when a directory that is given read-only is listed.
const UNCOUNTED_ENTRIES: u64 = 10_000;

/// One store's files under the instance's quotas.
pub(crate) struct CountedFiles {
    ledger: Arc<Ledger>,
    handles: Arc<Handles>,
    memory: Arc<MemoryBudget>,
    /// By the descriptor's place in the store's resource table. Those that the instance was given are not there.
    open: HashMap<u32, Opened>,
    /// What listings of directories cost, likewise by place.
    listings: HashMap<u32, Charge>,
}

/// What goes with a descriptor, and with each stream that was made of it.
#[derive(Clone)]
pub(crate) struct Opened {
    /// In a counted directory.
    entered: Option<Arc<OpenFile>>,
    _handle: Handle,
}

impl CountedFiles {
    pub(crate) fn new(ledger: Arc<Ledger>, handles: Arc<Handles>, memory: Arc<MemoryBudget>) -> Self {
        Self { ledger, handles, memory, open: HashMap::new(), listings: HashMap::new() }
    }
}

/// Names [`CountedFilesystem`] to the linker.
pub(crate) struct HasCountedFiles;

impl HasData for HasCountedFiles {
    type Data<'a> = CountedFilesystem<'a>;
}

/// Implements the interface for the time of one call.
pub(crate) struct CountedFilesystem<'a> {
    pub(crate) inner: WasiFilesystemCtxView<'a>,
    pub(crate) files: &'a mut CountedFiles,
}

impl From<Full> for FsError {
    fn from(_: Full) -> Self {
        ErrorCode::InsufficientSpace.into()
    }
}

impl From<Refused> for FsError {
    fn from(_: Refused) -> Self {
        ErrorCode::InsufficientMemory.into()
    }
}

/// What every path has to pass before anything is done with it.
fn check_path(path: &str) -> FsResult<()> {
    if path.len() > PATH_BYTES { Err(ErrorCode::NameTooLong.into()) } else { Ok(()) }
}

/// What stands at a path that is about to be taken away.
enum Target {
    Nothing,
    /// Held open, so that the ledger settles its bytes when it is let go.
    Held {
        _held: Option<Arc<OpenFile>>,
    },
    /// A symbolic link, or something that is not opened without consequences.
    Link,
}

impl CountedFilesystem<'_> {
    fn ledger(&self) -> Arc<Ledger> {
        self.files.ledger.clone()
    }

    /// Directories given read-only are not counted; changing them fails below.
    fn is_counted(&self, directory: &Resource<Descriptor>) -> FsResult<bool> {
        Ok(match self.inner.table.get(directory)? {
            Descriptor::Dir(directory) => directory.perms == FsPerms::ReadWrite,
            Descriptor::File(_) => false,
        })
    }

    fn same(descriptor: &Resource<Descriptor>) -> Resource<Descriptor> {
        Resource::new_borrow(descriptor.rep())
    }

    fn entered(&self, descriptor: &Resource<Descriptor>) -> Option<Arc<OpenFile>> {
        self.opened(descriptor)?.entered
    }

    fn opened(&self, descriptor: &Resource<Descriptor>) -> Option<Opened> {
        self.files.open.get(&descriptor.rep()).cloned()
    }

    /// The file behind a descriptor, when it may be written.
    fn writable(&self, descriptor: &Resource<Descriptor>) -> FsResult<Arc<OpenFile>> {
        match self.inner.table.get(descriptor)? {
            Descriptor::Dir(_) => Err(ErrorCode::BadDescriptor.into()),
            Descriptor::File(file) if file.perms.write_not_permitted() => Err(ErrorCode::NotPermitted.into()),
            Descriptor::File(_) => self.entered(descriptor).ok_or_else(|| ErrorCode::BadDescriptor.into()),
        }
    }

    /// Enters what was just opened, or a directory.
    fn enter(&self, descriptor: &Resource<Descriptor>) -> FsResult<Arc<OpenFile>> {
        let file = match self.inner.table.get(descriptor)? {
            Descriptor::File(file) => file.file.clone(),
            Descriptor::Dir(directory) => directory.dir.clone(),
        };
        Ok(OpenFile::enter(self.ledger(), file).map_err(ErrorCode::from)?)
    }

    /// Opens something for the ledger alone. It has no place among the guest's handles.
    async fn hold(&mut self, directory: &Resource<Descriptor>, path: &str, flags: PathFlags, open: OpenFlags) -> Option<Arc<OpenFile>> {
        let opened = self.inner.open_at(Self::same(directory), flags, path.to_owned(), open, DescriptorFlags::READ).await.ok()?;
        let held = self.enter(&opened);
        self.inner.table.delete(opened).ok()?;
        held.ok()
    }

    /// The directory in which a path's last name is about to be made or removed, to be settled when that is done: its own length may
    /// change. None when there is none; then the operation fails. The caller holds the structure lock.
    async fn parent(&mut self, directory: &Resource<Descriptor>, path: &str) -> Option<Parent> {
        let held = match path.trim_end_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.hold(directory, &format!("{parent}/"), PathFlags::SYMLINK_FOLLOW, OpenFlags::DIRECTORY).await?,
            None => self.enter(directory).ok()?,
        };
        held.begin(Span::Shrink).ok()
    }

    /// As [`Self::parent`], where the path's last name may be a symbolic link to the name that is made.
    async fn parent_through_links(&mut self, directory: &Resource<Descriptor>, flags: PathFlags, path: &str) -> Option<Parent> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let target = self.inner.readlink_at(Self::same(directory), path.clone()).await;
            match target {
                Ok(target) if flags.contains(PathFlags::SYMLINK_FOLLOW) => {
                    path = path.rsplit_once('/').map_or(target.clone(), |(parent, _)| format!("{parent}/{target}"));
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.parent(directory, &path).await
    }

    /// A handle for what is about to be opened.
    fn handle(&self) -> FsResult<Handle> {
        self.files.handles.take().ok_or_else(|| ErrorCode::Quota.into())
    }

    /// Opens in a counted directory and enters what was opened. The caller holds the structure lock when it may be created.
    async fn open_entered(
        &mut self,
        directory: &Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open: OpenFlags,
        flags: DescriptorFlags,
        handle: Handle,
    ) -> FsResult<Resource<Descriptor>> {
        let opened = self.inner.open_at(Self::same(directory), path_flags, path, open, flags).await?;
        let entered = self.enter(&opened)?;
        self.files.open.insert(opened.rep(), Opened { entered: Some(entered), _handle: handle });
        Ok(opened)
    }

    /// As [`Self::open_entered`], charging a name when there was none.
    async fn create_entered(
        &mut self,
        directory: &Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open: OpenFlags,
        flags: DescriptorFlags,
        handle: Handle,
    ) -> FsResult<Resource<Descriptor>> {
        let ledger = self.ledger();
        let _structure = ledger.structure.lock().await;
        // Whatever else is wrong with the path, opening it tells.
        if self.inner.stat_at(Self::same(directory), path_flags, path.clone()).await.is_ok() {
            return self.open_entered(directory, path_flags, path, open, flags, handle).await;
        }
        let _parent = self.parent_through_links(directory, path_flags, &path).await;
        ledger.add_name(0)?;
        let opened = self.open_entered(directory, path_flags, path.clone(), open, flags, handle).await;
        // A store without room for another handle finds that out when the file is there already.
        if opened.is_err() && self.inner.stat_at(Self::same(directory), path_flags, path).await.is_err() {
            ledger.remove_name(0);
        }
        opened
    }

    /// What stands at a path, without following a link. The caller holds the structure lock.
    async fn target(&mut self, directory: &Resource<Descriptor>, path: &str) -> FsResult<Target> {
        let stat = match self.inner.stat_at(Self::same(directory), PathFlags::empty(), path.to_owned()).await {
            Ok(stat) => stat,
            // The operation itself will say why it cannot be looked at.
            Err(_) => return Ok(Target::Nothing),
        };
        let open = match stat.type_ {
            DescriptorType::RegularFile => OpenFlags::empty(),
            DescriptorType::Directory => OpenFlags::DIRECTORY,
            _ => return Ok(Target::Link),
        };
        // What the agent itself may not read stays charged when it is gone.
        Ok(Target::Held { _held: self.hold(directory, path, PathFlags::empty(), open).await })
    }

    /// Settles what became of a target, and lets go of it.
    fn settle(&mut self, target: Target, removed: Removed) {
        if let Removed::Yes = removed {
            match target {
                Target::Nothing => {}
                Target::Held { .. } => self.files.ledger.remove_name(0),
                Target::Link => self.files.ledger.remove_name(BLOCK),
            }
        }
    }

    /// A stream for writing. Where not even one byte fits it is refused at once: unlike a stream's error, this one reaches guests
    /// whose C library does not ask a stream what went wrong.
    fn writer(&mut self, descriptor: &Resource<Descriptor>, position: Position) -> FsResult<Resource<DynOutputStream>> {
        let file = self.writable(descriptor)?;
        if file.room(position.span(1)) == 0 {
            return Err(Full.into());
        }
        let opened = self.opened(descriptor).ok_or(ErrorCode::BadDescriptor)?;
        let stream: DynOutputStream = Box::new(FileWriter::new(file, position, opened, self.files.memory.clone()));
        Ok(self.inner.table.push(stream)?)
    }

    async fn set_length(&mut self, file: &Arc<OpenFile>, size: Filesize) -> FsResult<()> {
        let span = if size == 0 { Span::Shrink } else { Span::At { offset: 0, bytes: size } };
        let reserved = file.begin(span)?;
        if size > 0 && reserved.bytes() < size {
            return Err(Full.into());
        }
        let set = tokio::task::spawn_blocking(move || reserved.file().set_len(size)).await;
        Ok(set.map_err(|stopped| FsError::trap(wasmtime::Error::new(stopped)))?.map_err(ErrorCode::from)?)
    }
}

/// A directory that is entered, and settled when this is dropped.
type Parent = Write;

/// Whether the operation on a target worked.
enum Removed {
    Yes,
    No,
}

impl<T> From<&FsResult<T>> for Removed {
    fn from(result: &FsResult<T>) -> Self {
        if result.is_ok() { Self::Yes } else { Self::No }
    }
}

#[cfg(test)]
mod tests;
