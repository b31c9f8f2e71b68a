//! Which files make a package: one walk, shared by packing and by watching, so that both always agree.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ignore::{DirEntry, WalkBuilder};

use crate::package::PackageError;

/// Lines in gitignore syntax, in any folder of the package.
pub const IGNORE_FILE: &str = ".dewarignore";
/// Folders that are never packed: what version control, build tools and package managers keep there is not the app.
const IGNORED_FOLDERS: [&str; 2] = ["target", "node_modules"];
/// Most files and folders in a package.
const ENTRIES_MAX: usize = 100_000;
/// Most bytes in a package before compression.
const BYTES_MAX: u64 = 1 << 30;

/// Every entry of a package, sorted by name, folders before what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
}

/// A file or folder of a package. Two listings that are equal pack to the same package, as far as the file system can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path inside the package, with `/`.
    pub name: String,
    /// Where it is on disk.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder.
    Folder,
    /// A regular file, or a link to one inside of the package.
    File {
        /// Whether the owner may execute it; nothing else of the mode is kept.
        executable: bool,
        /// Size in bytes.
        size: u64,
        /// Time of the last change of content: seconds and nanoseconds.
        modified: (i64, i64),
    },
}

impl Listing {
    /// Walks a folder.
    ///
    /// # Errors
    /// When something cannot be read, a name is not UTF-8, an ignore file is malformed, a link leads out of the folder, an entry is
    /// neither file nor folder, or there is too much of it.
    pub fn of_folder(root: &Path) -> Result<Self, PackageError> {
        let real_root = root.canonicalize().map_err(|e| PackageError::unreadable(root, e))?;
        let mut entries = Vec::new();
        let mut bytes = 0_u64;
        let mut walk = WalkBuilder::new(root);
        walk.standard_filters(false).parents(false).add_custom_ignore_filename(IGNORE_FILE);
        walk.sort_by_file_name(std::cmp::Ord::cmp).filter_entry(is_wanted);
        for found in walk.build() {
            let found = found.map_err(|e| PackageError::Walk(e.to_string()))?;
            if let Some(malformed) = found.error() {
                return Err(PackageError::Walk(malformed.to_string()));
            }
            let Ok(inside) = found.path().strip_prefix(root) else { continue };
            if inside.as_os_str().is_empty() || inside.file_name().is_some_and(|name| name == IGNORE_FILE) {
                continue;
            }
            let name = inside.to_str().ok_or_else(|| PackageError::NameNotUtf8(inside.to_owned()))?.to_owned();
            let kind = classify(found.path(), &real_root)?;
            if let EntryKind::File { size, .. } = kind {
                bytes = bytes.saturating_add(size);
            }
            entries.push(Entry { name, path: found.path().to_owned(), kind });
            if entries.len() > ENTRIES_MAX || bytes > BYTES_MAX {
                return Err(PackageError::TooBig { entries_max: ENTRIES_MAX, bytes_max: BYTES_MAX });
            }
        }
        Ok(Self { entries })
    }

    /// One file, under its own name.
    ///
    /// # Errors
    /// When it cannot be read, is not a regular file, or its name is not UTF-8.
    pub fn of_file(path: &Path) -> Result<Self, PackageError> {
        let metadata = path.metadata().map_err(|e| PackageError::unreadable(path, e))?;
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| PackageError::NameNotUtf8(path.to_owned()))?;
        let kind = file_kind(&metadata).ok_or_else(|| PackageError::Special(path.to_owned()))?;
        Ok(Self { entries: vec![Entry { name: name.to_owned(), path: path.to_owned(), kind }] })
    }

    /// How many files there are.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.entries.iter().filter(|entry| matches!(entry.kind, EntryKind::File { .. })).count()
    }

    /// The folders among the entries, as paths on disk.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.entries.iter().filter(|entry| entry.kind == EntryKind::Folder).map(|entry| entry.path.as_path())
    }
}

fn is_wanted(entry: &DirEntry) -> bool {
    let is_folder = entry.file_type().is_some_and(|kind| kind.is_dir());
    let name = entry.file_name();
    // `.git` is a file in a linked work tree.
    let ignored = name == ".git" || (is_folder && IGNORED_FOLDERS.iter().any(|folder| name == *folder));
    entry.depth() == 0 || !ignored
}

fn classify(path: &Path, real_root: &Path) -> Result<EntryKind, PackageError> {
    let metadata = path.symlink_metadata().map_err(|e| PackageError::unreadable(path, e))?;
    if metadata.is_dir() {
        return Ok(EntryKind::Folder);
    }
    if metadata.is_symlink() {
        let target = path.canonicalize().map_err(|e| PackageError::unreadable(path, e))?;
        if !target.starts_with(real_root) || !target.is_file() {
            return Err(PackageError::Link(path.to_owned()));
        }
    }
    let metadata = path.metadata().map_err(|e| PackageError::unreadable(path, e))?;
    file_kind(&metadata).ok_or_else(|| PackageError::Special(path.to_owned()))
}

fn file_kind(metadata: &Metadata) -> Option<EntryKind> {
    metadata.is_file().then(|| EntryKind::File {
        executable: metadata.permissions().mode() & 0o100 != 0,
        size: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}
