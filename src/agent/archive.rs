//! Reading archives that anybody may have made: zip (what a Cloud Controller sends), tar and tar.gz, told apart by their first bytes.
//!
//! An archive is unpacked through a [`TreeWriter`], which sees to names, links and quotas. What is seen to here is that reading
//! takes little memory, whatever the headers claim, and that a bomb stops early: the unpacked bytes are counted, not believed.

mod zip_end;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use dewar_protocol::Bytes;
use flate2::bufread::MultiGzDecoder;
use tokio_util::sync::CancellationToken;
use zip::ZipArchive;
use zip::read::ZipFile;

use crate::tree::{Refusal, Tree, TreeError, TreeLimits, TreeWriter, refuse};

/// How many times its size an archive may unpack to, beyond [`INFLATION_FREE`]. Text rarely gets beyond 20, zeros get to 1000.
const INFLATION: u64 = 100;

/// What any archive may unpack to, however small it is.
const INFLATION_FREE: u64 = 32 << 20;

/// Bytes of headers that one entry of a tar archive may have (long names, extended attributes), for they are held in memory.
const TAR_HEADERS: u64 = 256 << 10;

/// Bytes of the list of entries of a zip archive. With ordinary names it has room for 200 000.
const ZIP_INDEX: u64 = 24 << 20;

/// Bytes of a symbolic link's target in a zip archive.
const LINK_TARGET: u64 = 4096;

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("recognise an archive: neither zip nor tar nor tar.gz")]
    Unknown,
    #[error("read the archive: {0}")]
    Broken(String),
    #[error("unpack more than {INFLATION} times the archive's {size} bytes: this looks like a bomb", size = size.0)]
    Bomb { size: Bytes },
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Unpacks an archive into an empty directory. Blocks; `stop` ends it early. After an error the directory is to be thrown away.
///
/// # Errors
/// See [`UnpackError`].
pub(crate) fn unpack(archive: &Path, into: &Path, limits: TreeLimits, stop: &CancellationToken) -> Result<Tree, UnpackError> {
    let open = || File::open(archive).map_err(broken);
    let mut start = Vec::new();
    open()?.take(512).read_to_end(&mut start).map_err(broken)?;
    let size = Bytes(open()?.metadata().map_err(broken)?.len());
    let bounded = TreeLimits { bytes: limits.bytes.min(most_unpacked(size)), ..limits };
    let mut writer = TreeWriter::new(into, bounded, stop.clone())?;
    let outcome = if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        unpack_zip(open()?, limits.entries, &mut writer)
    } else if start.starts_with(b"\x1f\x8b") {
        unpack_tar(MultiGzDecoder::new(BufReader::new(open()?)), &mut writer)
    } else if start.get(257..262) == Some(b"ustar") {
        unpack_tar(BufReader::new(open()?), &mut writer)
    } else {
        Err(UnpackError::Unknown)
    };
    match outcome {
        Ok(()) => Ok(writer.finish()),
        Err(UnpackError::Tree(TreeError::TooManyBytes { limit })) if limit < limits.bytes => Err(UnpackError::Bomb { size }),
        Err(error) => Err(error),
    }
}

/// The most that an archive of this size may unpack to.
pub(crate) fn most_unpacked(size: Bytes) -> Bytes {
    Bytes(size.0.saturating_mul(INFLATION).saturating_add(INFLATION_FREE))
}

fn unpack_zip(mut archive: File, entries: u64, writer: &mut TreeWriter) -> Result<(), UnpackError> {
    zip_end::check(&mut archive, entries)?;
    let broken = |error: zip::result::ZipError| UnpackError::Broken(error.to_string());
    // The library reads the list of all entries into memory, as long as it says it is.
    let allowance = Rc::new(Cell::new(ZIP_INDEX));
    let reader = Allowed { inner: BufReader::new(archive), allowance: Rc::clone(&allowance) };
    let mut archive = ZipArchive::new(reader).map_err(broken)?;
    allowance.set(u64::MAX);
    if archive.len() as u64 > entries {
        return Err(TreeError::TooManyEntries { limit: entries }.into());
    }
    if archive.has_duplicate_names() {
        return Err(UnpackError::Broken("it has two entries of the same name".to_owned()));
    }
    for index in 0..archive.len() {
        zip_entry(&mut archive.by_index(index).map_err(broken)?, writer)?;
    }
    Ok(())
}

fn zip_entry(file: &mut ZipFile<'_, Allowed<BufReader<File>>>, writer: &mut TreeWriter) -> Result<(), UnpackError> {
    // Most writers use UTF-8 without saying so; where it is none, the format's own idea of a name counts.
    let name = match std::str::from_utf8(file.name_raw()) {
        Ok(name) => name.to_owned(),
        Err(_) => file.name().map_err(|error| UnpackError::Broken(error.to_string()))?.into_owned(),
    };
    let name = name.as_bytes();
    let mode = file.unix_mode().unwrap_or(0o644);
    match mode & 0o170_000 {
        _ if name.ends_with(b"/") => writer.directory(name)?,
        0o040_000 => writer.directory(name)?,
        0o120_000 => {
            let mut target = Vec::new();
            file.take(LINK_TARGET).read_to_end(&mut target).map_err(broken)?;
            writer.link(name, &target)?;
        }
        0 | 0o100_000 => writer.file(name, mode, file)?,
        _ => return Err(refuse(name, Refusal::Kind("device, pipe or socket")).into()),
    }
    Ok(())
}

fn unpack_tar(archive: impl Read, writer: &mut TreeWriter) -> Result<(), UnpackError> {
    let allowance = Rc::new(Cell::new(TAR_HEADERS));
    let mut archive = tar::Archive::new(Allowed { inner: archive, allowance: Rc::clone(&allowance) });
    let mut entries = archive.entries().map_err(broken)?;
    loop {
        // The library reads headers that describe the next entry into memory, as long as they say they are.
        allowance.set(TAR_HEADERS);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(broken)?;
        allowance.set(u64::MAX);
        tar_entry(&mut entry, writer)?;
    }
}

fn tar_entry(entry: &mut tar::Entry<'_, impl Read>, writer: &mut TreeWriter) -> Result<(), UnpackError> {
    let name = entry.path_bytes().into_owned();
    let kind = entry.header().entry_type();
    if kind.is_file() || kind.is_contiguous() {
        let mode = entry.header().mode().map_err(broken)?;
        // In the oldest format a directory is a file whose name ends so.
        if name.ends_with(b"/") { writer.directory(&name)? } else { writer.file(&name, mode, entry)? }
    } else if kind.is_dir() {
        writer.directory(&name)?;
    } else if kind.is_symlink() {
        let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        writer.link(&name, &target)?;
    } else if !kind.is_pax_global_extensions() {
        let kind = match kind {
            tar::EntryType::Link => "hard link",
            tar::EntryType::Fifo => "pipe",
            tar::EntryType::Char | tar::EntryType::Block => "device",
            tar::EntryType::GNUSparse => "sparse file",
            _ => "special file",
        };
        return Err(refuse(&name, Refusal::Kind(kind)).into());
    }
    Ok(())
}

/// A reader that ends in an error when it is asked for more than it may give.
struct Allowed<R> {
    inner: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Allowed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.allowance.get() == 0 && !buffer.is_empty() {
            return Err(io::Error::other("its headers are larger than any archive needs"));
        }
        let most = usize::try_from(self.allowance.get()).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.inner.read(&mut buffer[..most])?;
        self.allowance.set(self.allowance.get().saturating_sub(length as u64));
        Ok(length)
    }
}

impl<R: Seek> Seek for Allowed<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

fn broken(error: io::Error) -> UnpackError {
    UnpackError::Broken(error.to_string())
}

#[cfg(test)]
mod mutations;
#[cfg(test)]
mod tests;
