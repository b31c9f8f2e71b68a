//! The interface itself, operation by operation: what must be reserved or held, then wasmtime's own implementation, then the books.

use wasmtime::component::Resource;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    self, Advice, DescriptorFlags, DescriptorStat, DescriptorType, ErrorCode, Filesize, HostDescriptor, HostDirectoryEntryStream,
    MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError, FsResult};

use super::{CountedFilesystem, LISTED_ENTRY, Opened, Removed, Target, UNCOUNTED_ENTRIES, check_path};
use crate::ledger::BLOCK;
use crate::stream::{FileReader, Position, write};

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
