//! Archives that depend on nothing but their content: the droplet, and the buildpack cache.
//!
//! A gzip-compressed tar, entries in the order of their names, owner and time zero, two permissions (executable or not), and no name
//! or time in the compression's header. So the same files give the same bytes, and the same digest.
//!
//! What could not be unpacked again is not packed: who stages learns of it, not who starts.

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use dewar_protocol::Bytes;
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use rustix::fs::OFlags;
use tar::{EntryType, Header};
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;

use crate::archive::most_unpacked;
use crate::tree::{MAX_PATHS, Refusal, clean, safe_target};

/// Twice as fast as the default, and a twentieth larger.
const COMPRESSION: u32 = 4;

/// "Unknown", so that it is the same everywhere.
const GZIP_SYSTEM: u8 = 255;

/// Why an archive could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error("pack {path:?}: {source}")]
    Read { path: String, source: io::Error },
    #[error("pack {path:?}: it is a link that may lead out of the tree")]
    LinkEscapes { path: String },
    #[error("pack {path:?}: it is neither file nor directory nor link")]
    Special { path: String },
    #[error("pack {path:?}: {why}")]
    Refused { path: String, why: Refusal },
    #[error("pack more than {MAX_PATHS} bytes of paths")]
    TooManyPaths,
    #[error("pack {bytes} bytes, for they make an archive of {size}, which looks like a bomb")]
    Bomb { bytes: u64, size: u64 },
    #[error("write the archive: {0}")]
    Write(#[source] io::Error),
    #[error("go on: cancelled")]
    Cancelled,
}

/// Packs what a buildpack wrote into `from`, that is `app/` and `droplet.wasm`, with the staging info (YAML). Blocks.
///
/// # Errors
/// See [`PackError`].
pub(crate) fn pack_droplet(from: &Path, info: &[u8], archive: &Path, stop: &CancellationToken) -> Result<(), PackError> {
    let mut packer = Packer::create(archive, stop)?;
    packer.tree("app", &from.join("app"))?;
    packer.file("droplet.wasm", &from.join("droplet.wasm"))?;
    packer.directory("logs")?;
    packer.bytes("staging_info.yml", info)?;
    packer.directory("tmp")?;
    packer.finish()
}

/// Packs a directory under a name. Blocks.
///
/// # Errors
/// See [`PackError`].
pub(crate) fn pack_tree(name: &str, from: &Path, archive: &Path, stop: &CancellationToken) -> Result<(), PackError> {
    let mut packer = Packer::create(archive, stop)?;
    packer.tree(name, from)?;
    packer.finish()
}

struct Packer {
    tar: tar::Builder<GzEncoder<BufWriter<File>>>,
    stop: CancellationToken,
    /// Bytes of all files.
    bytes: u64,
    /// Bytes of all paths and of all targets of links.
    paths: u64,
}

impl Packer {
    fn create(archive: &Path, stop: &CancellationToken) -> Result<Self, PackError> {
        let file = File::create(archive).map_err(PackError::Write)?;
        let gzip = GzBuilder::new().mtime(0).operating_system(GZIP_SYSTEM).write(BufWriter::new(file), Compression::new(COMPRESSION));
        Ok(Self { tar: tar::Builder::new(gzip), stop: stop.clone(), bytes: 0, paths: 0 })
    }

    /// Everything below a directory, which need not be there.
    fn tree(&mut self, name: &str, root: &Path) -> Result<(), PackError> {
        self.directory(name)?;
        match root.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(PackError::Special { path: name.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(PackError::Read { path: name.to_owned(), source }),
        }
        for entry in WalkDir::new(root).min_depth(1).follow_links(false).follow_root_links(false).sort_by_file_name() {
            let entry = entry.map_err(|error| PackError::Read { path: name.to_owned(), source: error.into() })?;
            let below = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let path = format!("{name}/{}", below.display());
            let kind = entry.file_type();
            if kind.is_dir() {
                self.directory(&path)?;
            } else if kind.is_file() {
                self.file(&path, entry.path())?;
            } else if kind.is_symlink() {
                self.link(&path, entry.path(), entry.depth() - 1)?;
            } else {
                return Err(PackError::Special { path });
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &str) -> Result<(), PackError> {
        self.append(&format!("{path}/"), EntryType::Directory, 0o755, 0, &mut io::empty())
    }

    fn bytes(&mut self, path: &str, mut content: &[u8]) -> Result<(), PackError> {
        self.append(path, EntryType::Regular, 0o644, content.len() as u64, &mut content)
    }

    fn file(&mut self, path: &str, from: &Path) -> Result<(), PackError> {
        let failed = |source| PackError::Read { path: path.to_owned(), source };
        let mut options = File::options();
        // A guest made this file and it may be a link to anywhere.
        let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).expect("a flag of the system fits the system's type for flags");
        let mut file = options.read(true).custom_flags(nofollow).open(from).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(PackError::Special { path: path.to_owned() });
        }
        let mode = if metadata.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        self.append(path, EntryType::Regular, mode, metadata.len(), &mut file)
    }

    fn link(&mut self, path: &str, from: &Path, depth: usize) -> Result<(), PackError> {
        use std::os::unix::ffi::OsStrExt as _;
        let target = std::fs::read_link(from).map_err(|source| PackError::Read { path: path.to_owned(), source })?;
        safe_target(depth, target.as_os_str().as_bytes()).map_err(|_| PackError::LinkEscapes { path: path.to_owned() })?;
        let name = self.name(path)?;
        self.paths += target.as_os_str().len() as u64;
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, name, target).map_err(PackError::Write)
    }

    /// A path as it stands in the archive.
    fn name(&mut self, path: &str) -> Result<String, PackError> {
        let name = format!("./{path}");
        let unpacked = clean(name.as_bytes()).map_err(|why| PackError::Refused { path: path.to_owned(), why })?;
        self.paths += unpacked.len() as u64;
        if self.paths > MAX_PATHS { Err(PackError::TooManyPaths) } else { Ok(name) }
    }

    fn append(&mut self, path: &str, kind: EntryType, mode: u32, size: u64, content: &mut dyn Read) -> Result<(), PackError> {
        if self.stop.is_cancelled() {
            return Err(PackError::Cancelled);
        }
        let name = self.name(path)?;
        self.bytes += size;
        let mut header = header(kind, mode, size);
        let slot = header.as_gnu_mut().map(|gnu| &mut gnu.name);
        // The library would drop the `./` that the original's droplets have; it takes long names as they are.
        match slot.filter(|slot| name.len() <= slot.len()) {
            Some(slot) => {
                slot[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                self.tar.append(&header, content.take(size)).map_err(PackError::Write)
            }
            None => self.tar.append_data(&mut header, name, content.take(size)).map_err(PackError::Write),
        }
    }

    fn finish(self) -> Result<(), PackError> {
        let gzip = self.tar.into_inner().map_err(PackError::Write)?;
        let file = gzip.finish().map_err(PackError::Write)?;
        let file = file.into_inner().map_err(|error| PackError::Write(error.into_error()))?;
        let size = file.metadata().map_err(PackError::Write)?.len();
        if self.bytes > most_unpacked(Bytes(size)).0 { Err(PackError::Bomb { bytes: self.bytes, size }) } else { Ok(()) }
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests;
