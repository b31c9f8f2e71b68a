//! Writing files below one directory, whatever their names say.
//!
//! Names come from archives, and archives from anybody. Each is resolved by us, component by component from a descriptor of the
//! root, never following a link, and a file is only ever made, never replaced: so nothing outside of the root can be reached.
//! Symbolic links are kept when they are relative and stay below the root however they are resolved: all `..` come first, no more
//! of them than the link's directory is deep, and only plain names follow. (As a link's directory is never itself reached through a
//! link, its depth is exact; and as nothing climbs after a plain name, a link among these names cannot help.) Everything else that
//! is neither file nor directory is refused. Of the permissions only the owner's right to execute is kept.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dewar_protocol::Bytes;
use rustix::fs::{CWD, Mode, OFlags};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

const COPY_BUFFER: usize = 128 << 10;

/// How much may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TreeLimits {
    /// Bytes of all files together, and so of any one of them.
    pub(crate) bytes: Bytes,
    /// Files, directories and links.
    pub(crate) entries: u64,
}

/// Directories above a file; a guest would not get deeper either.
const MAX_DEPTH: usize = 64;

/// Bytes of a path; with the root's own path it must stay below the system's 4096.
const MAX_PATH: usize = 3072;

/// Bytes of all paths of a tree and all targets of its links, for they are held in memory. That is 160 for each of 200 000 entries,
/// the most by default; apps of tens of thousands of files need a tenth of it.
pub(crate) const MAX_PATHS: u64 = 32 << 20;

/// Bytes of one name, the system's limit.
const MAX_NAME: usize = 255;

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("its name is empty")]
    NoName,
    #[error("its name is not UTF-8")]
    NotUtf8,
    #[error("its path is absolute")]
    Absolute,
    #[error("its path leads out of the tree")]
    Escapes,
    #[error("its name contains a backslash")]
    Backslash,
    #[error("its name contains a NUL")]
    Nul,
    #[error("its path is longer than {MAX_PATH} bytes, or a name in it longer than {MAX_NAME}")]
    TooLong,
    #[error("it is deeper than {MAX_DEPTH} directories")]
    TooDeep,
    #[error("it appears twice")]
    Duplicate,
    #[error("what should be its directory is a file or a link")]
    ParentIsNoDirectory,
    #[error("it is a link that may lead out of the tree")]
    LinkEscapes,
    #[error("it is a {0}, and only files, directories and relative symbolic links are taken")]
    Kind(&'static str),
}

/// Why a tree could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("take entry {entry:?}: {why}")]
    Refused { entry: String, why: Refusal },
    #[error("take more than {limit} files and directories")]
    TooManyEntries { limit: u64 },
    #[error("take more than {MAX_PATHS} bytes of paths")]
    TooManyPaths,
    #[error("take more than {limit} bytes of files", limit = limit.0)]
    TooManyBytes { limit: Bytes },
    #[error("read {entry:?}: {source}")]
    Read { entry: String, source: io::Error },
    #[error("write {entry:?}: {source}")]
    Write { entry: String, source: io::Error },
    #[error("go on: cancelled")]
    Cancelled,
}

/// One entry of a [`Tree`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File { size: u64, executable: bool, sha256: [u8; 32] },
    Link { target: String },
}

/// What was written: every path below the root (`/` between names, none at the start) with what is there. Parents come before what
/// is in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tree {
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Bytes of all files together.
    pub(crate) bytes: u64,
    /// Bytes of all paths and of all targets of links.
    pub(crate) paths: u64,
}

impl Tree {
    fn insert(&mut self, path: String, node: Node) {
        self.paths += path.len() as u64;
        if let Node::Link { target } = &node {
            self.paths += target.len() as u64;
        }
        self.nodes.insert(path, node);
    }

    /// Feeds everything that makes this tree differ from another one to a hash, unambiguously.
    pub(crate) fn hash_into(&self, hash: &mut Sha256) {
        hash.update((self.nodes.len() as u64).to_le_bytes());
        for (path, node) in &self.nodes {
            hash.update((path.len() as u64).to_le_bytes());
            hash.update(path);
            match node {
                Node::Directory => hash.update([0]),
                Node::File { size, executable, sha256 } => {
                    hash.update([1, u8::from(*executable)]);
                    hash.update(size.to_le_bytes());
                    hash.update(sha256);
                }
                Node::Link { target } => {
                    hash.update([2]);
                    hash.update((target.len() as u64).to_le_bytes());
                    hash.update(target);
                }
            }
        }
    }
}

/// Writes a [`Tree`] into a directory that must be empty and nobody else's. After an error the directory is to be thrown away.
pub(crate) struct TreeWriter {
    root: OwnedFd,
    limits: TreeLimits,
    stop: CancellationToken,
    tree: Tree,
    /// The directory of the previous entry, for the next one is often beside it.
    recent: Option<(String, OwnedFd)>,
    buffer: Vec<u8>,
}

impl TreeWriter {
    pub(crate) fn new(root: &Path, limits: TreeLimits, stop: CancellationToken) -> Result<Self, TreeError> {
        let root = rustix::fs::openat(CWD, root, directory_flags(), Mode::empty())
            .map_err(|errno| TreeError::Write { entry: String::new(), source: errno.into() })?;
        Ok(Self { root, limits, stop, tree: Tree::default(), recent: None, buffer: vec![0; COPY_BUFFER] })
    }

    /// A directory; it may be there already.
    pub(crate) fn directory(&mut self, name: &[u8]) -> Result<(), TreeError> {
        let path = clean(name).map_err(|why| refuse(name, why))?;
        self.enter(&path).map(drop)
    }

    /// A file with this content. `mode` says whether it is executable.
    pub(crate) fn file(&mut self, name: &[u8], mode: u32, content: &mut dyn Read) -> Result<(), TreeError> {
        let path = self.new_path(name)?;
        let (parent, file_name) = path.rsplit_once('/').unwrap_or(("", &path));
        let executable = mode & 0o100 != 0;
        let permissions = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = self.enter(parent)?;
        let file = rustix::fs::openat(directory, file_name, flags, permissions).map_err(|errno| failed_write(&path, errno))?;
        check_room(&self.tree, &self.limits, &self.stop)?;
        let (size, sha256) = self.copy(&path, content, std::fs::File::from(file))?;
        self.tree.insert(path, Node::File { size, executable, sha256 });
        Ok(())
    }

    /// A symbolic link, if it cannot lead out.
    pub(crate) fn link(&mut self, name: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let path = self.new_path(name)?;
        let (parent, file_name) = path.rsplit_once('/').unwrap_or(("", &path));
        let depth = parent.split('/').filter(|part| !part.is_empty()).count();
        let target = safe_target(depth, target).map_err(|why| refuse(name, why))?.to_owned();
        let directory = self.enter(parent)?;
        rustix::fs::symlinkat(&target, directory, file_name).map_err(|errno| failed_write(&path, errno))?;
        check_room(&self.tree, &self.limits, &self.stop)?;
        self.tree.insert(path, Node::Link { target });
        Ok(())
    }

    pub(crate) fn finish(self) -> Tree {
        self.tree
    }

    fn new_path(&self, name: &[u8]) -> Result<String, TreeError> {
        let path = clean(name).and_then(|path| if path.is_empty() { Err(Refusal::NoName) } else { Ok(path) });
        let path = path.map_err(|why| refuse(name, why))?;
        if self.tree.nodes.contains_key(&path) { Err(refuse(name, Refusal::Duplicate)) } else { Ok(path) }
    }

    /// Opens a directory, making what is missing of it.
    fn enter(&mut self, path: &str) -> Result<&OwnedFd, TreeError> {
        if path.is_empty() {
            return Ok(&self.root);
        }
        if self.recent.as_ref().is_none_or(|(recent, _)| recent != path) {
            let opened = self.walk(path)?;
            self.recent = Some((path.to_owned(), opened));
        }
        Ok(self.recent.as_ref().map_or(&self.root, |(_, directory)| directory))
    }

    fn walk(&mut self, path: &str) -> Result<OwnedFd, TreeError> {
        let mut opened: Option<OwnedFd> = None;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let mut start = 0;
        for end in ends {
            let (so_far, name) = (&path[..end], &path[start..end]);
            let above = opened.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            match self.tree.nodes.get(so_far) {
                Some(Node::Directory) => {}
                Some(_) => return Err(refuse(path.as_bytes(), Refusal::ParentIsNoDirectory)),
                None => {
                    rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o755)).map_err(|errno| failed_write(so_far, errno))?;
                    check_room(&self.tree, &self.limits, &self.stop)?;
                    self.tree.insert(so_far.to_owned(), Node::Directory);
                }
            }
            let next = rustix::fs::openat(above, name, directory_flags(), Mode::empty());
            opened = Some(next.map_err(|errno| failed_write(so_far, errno))?);
            start = end + 1;
        }
        opened.ok_or_else(|| refuse(path.as_bytes(), Refusal::NoName))
    }

    fn copy(&mut self, path: &str, content: &mut dyn Read, mut file: std::fs::File) -> Result<(u64, [u8; 32]), TreeError> {
        let mut hash = Sha256::new();
        let mut size = 0;
        loop {
            if self.stop.is_cancelled() {
                return Err(TreeError::Cancelled);
            }
            let length = match content.read(&mut self.buffer) {
                Ok(0) => return Ok((size, hash.finalize().into())),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(TreeError::Read { entry: path.to_owned(), source }),
            };
            size += length as u64;
            self.tree.bytes += length as u64;
            if self.tree.bytes > self.limits.bytes.0 {
                return Err(TreeError::TooManyBytes { limit: self.limits.bytes });
            }
            hash.update(&self.buffer[..length]);
            file.write_all(&self.buffer[..length]).map_err(|source| TreeError::Write { entry: path.to_owned(), source })?;
        }
    }
}

/// Whether there may be one more entry; its own path may go beyond the limit.
fn check_room(tree: &Tree, limits: &TreeLimits, stop: &CancellationToken) -> Result<(), TreeError> {
    if stop.is_cancelled() {
        return Err(TreeError::Cancelled);
    }
    if tree.nodes.len() as u64 >= limits.entries {
        return Err(TreeError::TooManyEntries { limit: limits.entries });
    }
    if tree.paths > MAX_PATHS {
        return Err(TreeError::TooManyPaths);
    }
    Ok(())
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// A name as a path below the root without `.` and empty components; empty for the root itself.
pub(crate) fn clean(name: &[u8]) -> Result<String, Refusal> {
    if name.is_empty() {
        return Err(Refusal::NoName);
    }
    let text = std::str::from_utf8(name).map_err(|_| Refusal::NotUtf8)?;
    if text.contains('\0') {
        return Err(Refusal::Nul);
    }
    if text.contains('\\') {
        return Err(Refusal::Backslash);
    }
    if text.starts_with('/') {
        return Err(Refusal::Absolute);
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(Refusal::Escapes);
    }
    if text.len() > MAX_PATH || parts.iter().any(|part| part.len() > MAX_NAME) {
        return Err(Refusal::TooLong);
    }
    if parts.len() > MAX_DEPTH {
        return Err(Refusal::TooDeep);
    }
    Ok(parts.join("/"))
}

/// The target of a link in a directory of this depth below the root, if it stays below the root however it is resolved.
pub(crate) fn safe_target(depth: usize, target: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(target).map_err(|_| Refusal::NotUtf8)?;
    if text.is_empty() || text.len() > MAX_PATH || text.contains(['\0', '\\']) || text.starts_with('/') {
        return Err(Refusal::LinkEscapes);
    }
    let parts = || text.split('/').filter(|part| !matches!(*part, "" | "."));
    let climbs = parts().take_while(|part| *part == "..").count();
    if climbs > depth || parts().skip(climbs).any(|part| part == "..") {
        return Err(Refusal::LinkEscapes);
    }
    Ok(text)
}

/// At most this many characters of a hostile name are shown.
const SHOWN: usize = 200;

/// The error about an entry, its name cut to what can be shown.
pub(crate) fn refuse(name: &[u8], why: Refusal) -> TreeError {
    TreeError::Refused { entry: String::from_utf8_lossy(name).chars().take(SHOWN).collect(), why }
}

fn failed_write(path: &str, errno: rustix::io::Errno) -> TreeError {
    TreeError::Write { entry: path.chars().take(SHOWN).collect(), source: errno.into() }
}
