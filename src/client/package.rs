//! From a path to the package that a stager downloads.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::package_files::{Entry, EntryKind, Listing};

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A file, a folder or their attributes.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The walk through the folder, or an ignore file.
    #[error("cannot list the package: {0}")]
    Walk(String),
    /// A name that a zip cannot tell to everybody.
    #[error("{} is not named in UTF-8", .0.display())]
    NameNotUtf8(PathBuf),
    /// A link out of the package, to a folder, or to nothing.
    #[error("{} is a link that does not lead to a file of the package", .0.display())]
    Link(PathBuf),
    /// A socket, device or pipe.
    #[error("{} is neither a file nor a folder", .0.display())]
    Special(PathBuf),
    /// Beyond what one package may hold.
    #[error("the package has more than {entries_max} entries or {} MiB", .bytes_max >> 20)]
    TooBig {
        /// Most files and folders.
        entries_max: usize,
        /// Most bytes.
        bytes_max: u64,
    },
    /// Nothing to push.
    #[error("there is no file to push in {}", .0.display())]
    Empty(PathBuf),
    /// A file that is no kind of package.
    #[error("{} is no package: it is neither a folder nor a .wasm, .wat, .zip, .tar, .tar.gz or .tgz file", .0.display())]
    UnknownKind(PathBuf),
    /// The temporary file.
    #[error("cannot write the package")]
    Write(#[source] io::Error),
}

impl PackageError {
    pub(crate) fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), source }
    }
}

/// What a user names with `-p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackageSource {
    /// A folder, zipped without what it ignores.
    Folder(PathBuf),
    /// One WebAssembly file, binary or text, zipped alone.
    Module(PathBuf),
    /// A zip or tar file, sent as it is.
    Archive(PathBuf),
}

/// A package in a temporary file that goes when this value does.
#[derive(Debug)]
pub struct Package {
    file: NamedTempFile,
    /// Its size.
    pub bytes: u64,
    /// How many files went in; an archive counts as one.
    pub files: usize,
}

impl Package {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

impl PackageSource {
    /// Looks at what is at `path`.
    ///
    /// # Errors
    /// When nothing is, or nothing that can be pushed.
    pub fn at(path: &Path) -> Result<Self, PackageError> {
        let metadata = path.metadata().map_err(|e| PackageError::unreadable(path, e))?;
        if metadata.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let ends_with = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        if ends_with(&[".wasm", ".wat"]) {
            Ok(Self::Module(path.to_owned()))
        } else if ends_with(&[".zip", ".tar", ".tar.gz", ".tgz"]) {
            Ok(Self::Archive(path.to_owned()))
        } else {
            Err(PackageError::UnknownKind(path.to_owned()))
        }
    }

    /// The path that was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Module(path) | Self::Archive(path) => path,
        }
    }

    /// What would be packed now.
    ///
    /// # Errors
    /// As [`Listing::of_folder`] and [`Listing::of_file`].
    pub fn list(&self) -> Result<Listing, PackageError> {
        match self {
            Self::Folder(path) => Listing::of_folder(path),
            Self::Module(path) | Self::Archive(path) => Listing::of_file(path),
        }
    }

    /// Packs. The same names, contents and executable bits give the same bytes, whenever, wherever and by whomever it is done.
    ///
    /// # Errors
    /// When it cannot be listed, read or written, or there is no file in it.
    pub fn pack(&self) -> Result<Package, PackageError> {
        let listing = self.list()?;
        if listing.file_count() == 0 {
            return Err(PackageError::Empty(self.path().to_owned()));
        }
        let file = tempfile::Builder::new().prefix("dewar-package-").tempfile().map_err(PackageError::Write)?;
        match self {
            Self::Folder(_) | Self::Module(_) => zip_entries(&listing.entries, file.as_file())?,
            Self::Archive(path) => copy_file(path, &mut file.as_file())?,
        }
        let bytes = file.as_file().metadata().map_err(PackageError::Write)?.len();
        Ok(Package { file, bytes, files: listing.file_count() })
    }
}

fn zip_entries(entries: &[Entry], file: &File) -> Result<(), PackageError> {
    let write_error = |error: zip::result::ZipError| PackageError::Write(io::Error::other(error));
    let plain = SimpleFileOptions::default().last_modified_time(DateTime::DEFAULT).compression_method(CompressionMethod::Deflated);
    let mut zip = ZipWriter::new(BufWriter::new(file));
    for entry in entries {
        match entry.kind {
            EntryKind::Folder => zip.add_directory(&entry.name, plain.unix_permissions(0o755)).map_err(write_error)?,
            EntryKind::File { executable, .. } => {
                let mode = if executable { 0o755 } else { 0o644 };
                zip.start_file(&entry.name, plain.unix_permissions(mode)).map_err(write_error)?;
                copy_file(&entry.path, &mut zip)?;
            }
        }
    }
    zip.finish().map_err(write_error)?.flush().map_err(PackageError::Write)
}

/// In pieces, so that an unreadable source is told from an unwritable target.
fn copy_file(path: &Path, target: &mut impl Write) -> Result<(), PackageError> {
    let mut source = File::open(path).map_err(|e| PackageError::unreadable(path, e))?;
    let mut piece = vec![0; 1 << 16];
    loop {
        let length = source.read(&mut piece).map_err(|e| PackageError::unreadable(path, e))?;
        if length == 0 {
            return Ok(());
        }
        target.write_all(&piece[..length]).map_err(PackageError::Write)?;
    }
}

#[cfg(test)]
mod tests;
