//! `wasi:filesystem` 0.2 under a disk quota.
//!
//! wasmtime's implementation does all that concerns paths and permissions; this view stands before it and keeps the [`Ledger`]:
//! it reserves what an operation may take, delegates, and settles. Paths of a guest are never given to the operating system
//! from here. A full disk is `insufficient-space` (`ENOSPC`).

use std::collections::HashMap;
use std::sync::Arc;

use wasmtime::component::{HasData, Resource};
use wasmtime_wasi::FsPerms;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    self, Advice, DescriptorFlags, DescriptorStat, DescriptorType, ErrorCode, Filesize, HostDescriptor, HostDirectoryEntryStream,
    MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError, FsResult};

use crate::handles::{Handle, Handles};
use crate::ledger::{BLOCK, Full, Ledger, OpenFile, Span, Write};
use crate::limits::{Charge, MemoryBudget, Refused};
use crate::stream::{FileReader, FileWriter, Position, write};

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

impl HostDescriptor for CountedFilesystem<'_> {
    async fn open_at(
        &mut self,
        directory: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        mut open: OpenFlags,
        mut flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        check_path(&path)?;
        let handle = self.handle()?;
        if !self.is_counted(&directory)? {
            let opened = self.inner.open_at(directory, path_flags, path, open, flags).await?;
            self.files.open.insert(opened.rep(), Opened { entered: None, _handle: handle });
            return Ok(opened);
        }
        let truncate = open.contains(OpenFlags::TRUNCATE) && !open.contains(OpenFlags::DIRECTORY);
        if truncate {
            // The file is entered with the length it has, then cut like any other: nobody's write can slip in between.
            open ^= OpenFlags::TRUNCATE;
            if !flags.contains(DescriptorFlags::WRITE) {
                flags |= DescriptorFlags::WRITE | DescriptorFlags::READ;
            }
        }
        let opened = if open.contains(OpenFlags::CREATE) {
            self.create_entered(&directory, path_flags, path, open, flags, handle).await?
        } else {
            self.open_entered(&directory, path_flags, path, open, flags, handle).await?
        };
        if truncate
            && let Some(file) = self.entered(&opened)
            && let Err(error) = self.set_length(&file, 0).await
        {
            HostDescriptor::drop(self, opened).map_err(FsError::trap)?;
            return Err(error);
        }
        Ok(opened)
    }

    fn drop(&mut self, descriptor: Resource<Descriptor>) -> wasmtime::Result<()> {
        self.files.open.remove(&descriptor.rep());
        HostDescriptor::drop(&mut self.inner, descriptor)
    }

    async fn write(&mut self, descriptor: Resource<Descriptor>, data: Vec<u8>, offset: Filesize) -> FsResult<Filesize> {
        let file = self.writable(&descriptor)?;
        // The guest's data were copied, and wait for the disk.
        let _copy = self.files.memory.charge(data.len() as u64)?;
        let position = Position::At(offset);
        let reserved = file.begin(position.span(data.len() as u64))?;
        let written = write(reserved, data.into(), position).await;
        Ok(written.map_err(|stopped| FsError::trap(wasmtime::Error::new(stopped)))?.map_err(ErrorCode::from)?)
    }

    fn write_via_stream(&mut self, descriptor: Resource<Descriptor>, offset: Filesize) -> FsResult<Resource<DynOutputStream>> {
        self.writer(&descriptor, Position::At(offset))
    }

    fn append_via_stream(&mut self, descriptor: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        self.writer(&descriptor, Position::End)
    }

    fn read_via_stream(&mut self, descriptor: Resource<Descriptor>, offset: Filesize) -> FsResult<Resource<DynInputStream>> {
        let opened = self.opened(&descriptor);
        let stream = HostDescriptor::read_via_stream(&mut self.inner, descriptor, offset)?;
        let Some(opened) = opened else { return Ok(stream) };
        let inner = self.inner.table.delete(stream)?;
        let kept: DynInputStream = Box::new(FileReader { inner, _opened: opened });
        Ok(self.inner.table.push(kept)?)
    }

    async fn set_size(&mut self, descriptor: Resource<Descriptor>, size: Filesize) -> FsResult<()> {
        let file = self.writable(&descriptor)?;
        self.set_length(&file, size).await
    }

    async fn create_directory_at(&mut self, directory: Resource<Descriptor>, path: String) -> FsResult<()> {
        check_path(&path)?;
        if !self.is_counted(&directory)? {
            return self.inner.create_directory_at(directory, path).await;
        }
        let ledger = self.ledger();
        let _structure = ledger.structure.lock().await;
        let _parent = self.parent(&directory, &path).await;
        ledger.add_name(BLOCK)?;
        let created = self.inner.create_directory_at(directory, path).await;
        if created.is_err() {
            ledger.remove_name(BLOCK);
        }
        created
    }

    async fn symlink_at(&mut self, directory: Resource<Descriptor>, from: String, to: String) -> FsResult<()> {
        check_path(&from)?;
        check_path(&to)?;
        if !self.is_counted(&directory)? {
            return self.inner.symlink_at(directory, from, to).await;
        }
        let ledger = self.ledger();
        let _structure = ledger.structure.lock().await;
        let _parent = self.parent(&directory, &to).await;
        ledger.add_name(BLOCK)?;
        let created = self.inner.symlink_at(directory, from, to).await;
        if created.is_err() {
            ledger.remove_name(BLOCK);
        }
        created
    }

    async fn link_at(
        &mut self,
        directory: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        new_directory: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        check_path(&path)?;
        check_path(&new_path)?;
        // A link out of a read-only directory would bring in bytes that nobody counted.
        if !self.is_counted(&directory)? || !self.is_counted(&new_directory)? {
            return Err(ErrorCode::NotPermitted.into());
        }
        let ledger = self.ledger();
        let _structure = ledger.structure.lock().await;
        let stat = self.inner.stat_at(Self::same(&directory), path_flags, path.clone()).await?;
        let bytes = if stat.type_ == DescriptorType::RegularFile { 0 } else { BLOCK };
        let _parent = self.parent(&new_directory, &new_path).await;
        ledger.add_name(bytes)?;
        let linked = self.inner.link_at(directory, path_flags, path, new_directory, new_path).await;
        if linked.is_err() {
            ledger.remove_name(bytes);
        }
        linked
    }

    async fn unlink_file_at(&mut self, directory: Resource<Descriptor>, path: String) -> FsResult<()> {
        check_path(&path)?;
        if !self.is_counted(&directory)? {
            return self.inner.unlink_file_at(directory, path).await;
        }
        let ledger = self.ledger();
        let _structure = ledger.structure.lock().await;
        let target = self.target(&directory, &path).await?;
        let _parent = self.parent(&directory, &path).await;
        let removed = self.inner.unlink_file_at(directory, path).await;
        self.settle(target, Removed::from(&removed));
        removed
    }

    async fn remove_directory_at(&mut self, directory: Resource<Descriptor>, path: String) -> FsResult<()> {
        check_path(&path)?;
        if !self.is_counted(&directory)? {
            return self.inner.remove_directory_at(directory, path).await;
        }
        let ledger = self.ledger();
        let _structure = ledger.structure.lock().await;
        let target = self.target(&directory, &path).await?;
        let _parent = self.parent(&directory, &path).await;
        let removed = self.inner.remove_directory_at(directory, path).await;
        self.settle(target, Removed::from(&removed));
        removed
    }

    async fn rename_at(
        &mut self,
        directory: Resource<Descriptor>,
        path: String,
        new_directory: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        check_path(&path)?;
        check_path(&new_path)?;
        if !self.is_counted(&directory)? || !self.is_counted(&new_directory)? {
            return Err(ErrorCode::NotPermitted.into());
        }
        let ledger = self.ledger();
        let _structure = ledger.structure.lock().await;
        let old = self.inner.metadata_hash_at(Self::same(&directory), PathFlags::empty(), path.clone()).await.ok();
        let new = self.inner.metadata_hash_at(Self::same(&new_directory), PathFlags::empty(), new_path.clone()).await.ok();
        // Renaming one name of a file to another name of the same file changes nothing.
        let replaced = match (old, new) {
            (Some(old), Some(new)) if (old.lower, old.upper) != (new.lower, new.upper) => self.target(&new_directory, &new_path).await?,
            (Some(_), Some(_)) | (None, _) | (_, None) => Target::Nothing,
        };
        let _parents = (self.parent(&directory, &path).await, self.parent(&new_directory, &new_path).await);
        let renamed = self.inner.rename_at(directory, path, new_directory, new_path).await;
        self.settle(replaced, Removed::from(&renamed));
        renamed
    }

    // From here on nothing changes what the directories hold.

    async fn read(&mut self, descriptor: Resource<Descriptor>, length: Filesize, offset: Filesize) -> FsResult<(Vec<u8>, bool)> {
        self.inner.read(descriptor, length, offset).await
    }

    async fn advise(&mut self, descriptor: Resource<Descriptor>, offset: Filesize, length: Filesize, advice: Advice) -> FsResult<()> {
        self.inner.advise(descriptor, offset, length, advice).await
    }

    async fn sync_data(&mut self, descriptor: Resource<Descriptor>) -> FsResult<()> {
        self.inner.sync_data(descriptor).await
    }

    async fn sync(&mut self, descriptor: Resource<Descriptor>) -> FsResult<()> {
        self.inner.sync(descriptor).await
    }

    async fn get_flags(&mut self, descriptor: Resource<Descriptor>) -> FsResult<DescriptorFlags> {
        self.inner.get_flags(descriptor).await
    }

    async fn get_type(&mut self, descriptor: Resource<Descriptor>) -> FsResult<DescriptorType> {
        self.inner.get_type(descriptor).await
    }

    async fn set_times(&mut self, descriptor: Resource<Descriptor>, accessed: NewTimestamp, modified: NewTimestamp) -> FsResult<()> {
        self.inner.set_times(descriptor, accessed, modified).await
    }

    async fn set_times_at(
        &mut self,
        directory: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FsResult<()> {
        check_path(&path)?;
        self.inner.set_times_at(directory, path_flags, path, accessed, modified).await
    }

    async fn read_directory(&mut self, directory: Resource<Descriptor>) -> FsResult<Resource<types::DirectoryEntryStream>> {
        // The host reads it as a whole. It cannot have more entries than the instance has names, unless it is given read-only.
        let entries = if self.is_counted(&directory)? { self.files.ledger.names() } else { UNCOUNTED_ENTRIES };
        let listing = self.files.memory.charge(entries.saturating_mul(LISTED_ENTRY))?;
        let stream = self.inner.read_directory(directory).await?;
        self.files.listings.insert(stream.rep(), listing);
        Ok(stream)
    }

    async fn stat(&mut self, descriptor: Resource<Descriptor>) -> FsResult<DescriptorStat> {
        self.inner.stat(descriptor).await
    }

    async fn stat_at(&mut self, directory: Resource<Descriptor>, path_flags: PathFlags, path: String) -> FsResult<DescriptorStat> {
        check_path(&path)?;
        self.inner.stat_at(directory, path_flags, path).await
    }

    async fn readlink_at(&mut self, directory: Resource<Descriptor>, path: String) -> FsResult<String> {
        check_path(&path)?;
        self.inner.readlink_at(directory, path).await
    }

    async fn is_same_object(&mut self, a: Resource<Descriptor>, b: Resource<Descriptor>) -> wasmtime::Result<bool> {
        self.inner.is_same_object(a, b).await
    }

    async fn metadata_hash(&mut self, descriptor: Resource<Descriptor>) -> FsResult<MetadataHashValue> {
        self.inner.metadata_hash(descriptor).await
    }

    async fn metadata_hash_at(
        &mut self,
        directory: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
    ) -> FsResult<MetadataHashValue> {
        check_path(&path)?;
        self.inner.metadata_hash_at(directory, path_flags, path).await
    }
}

impl types::Host for CountedFilesystem<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        self.inner.convert_error_code(error)
    }

    fn filesystem_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        self.inner.filesystem_error_code(error)
    }
}

impl HostDirectoryEntryStream for CountedFilesystem<'_> {
    async fn read_directory_entry(&mut self, stream: Resource<types::DirectoryEntryStream>) -> FsResult<Option<types::DirectoryEntry>> {
        self.inner.read_directory_entry(stream).await
    }

    fn drop(&mut self, stream: Resource<types::DirectoryEntryStream>) -> wasmtime::Result<()> {
        self.files.listings.remove(&stream.rep());
        HostDirectoryEntryStream::drop(&mut self.inner, stream)
    }
}

#[cfg(test)]
mod tests;
