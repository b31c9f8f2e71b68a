//! The private copy of an app's files that each instance gets.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use walkdir::{DirEntry, WalkDir};

use super::{StoreError, at};
use crate::tree::{Node, Tree};

/// How much an app has in the shared tree. What it has is read there by each copy: a droplet stays long after its last instance, and
/// its paths would take memory all the while.
#[derive(Debug)]
pub(super) struct AppFiles {
    bytes: u64,
    inodes: u64,
}

impl AppFiles {
    pub(super) fn of(tree: &Tree) -> Self {
        let (mut bytes, mut inodes) = (0, 0);
        for (_, node) in tree.nodes.iter().filter(|(path, _)| path.starts_with("app/")) {
            inodes += 1;
            if let Node::File { size, .. } = node {
                bytes += size;
            }
        }
        Self { bytes, inodes }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Makes an instance's directories, with the files of `from` in `app`. Blocks. A file's blocks are shared where the file system
    /// can, and an app without files costs no more than a directory. `logs` comes last: it tells that the copy is whole.
    pub(super) fn copy(&self, from: &Path, instance_dir: &Path) -> Result<(), StoreError> {
        fs::create_dir_all(instance_dir).map_err(at(instance_dir))?;
        let app = instance_dir.join("app");
        for dir in [&app, &instance_dir.join("tmp")] {
            fs::create_dir(dir).map_err(at(dir))?;
        }
        if self.inodes > 0 {
            self.copy_files(from, &app)?;
        }
        let logs = instance_dir.join("logs");
        fs::create_dir(&logs).map_err(at(&logs))
    }

    fn copy_files(&self, from: &Path, app: &Path) -> Result<(), StoreError> {
        let mut copied = 0;
        for entry in WalkDir::new(from).min_depth(1).follow_links(false).follow_root_links(false) {
            let entry = entry.map_err(|error| at(from)(error.into()))?;
            let to = app.join(entry.path().strip_prefix(from).unwrap_or(entry.path()));
            copy_entry(&entry, &to).map_err(at(&to))?;
            copied += 1;
        }
        if copied == self.inodes { Ok(()) } else { Err(at(from)(io::Error::other("it is not what it was when it was unpacked"))) }
    }
}

fn copy_entry(entry: &DirEntry, to: &Path) -> io::Result<()> {
    let kind = entry.file_type();
    if kind.is_dir() {
        fs::create_dir(to)
    } else if kind.is_symlink() {
        symlink(fs::read_link(entry.path())?, to)
    } else {
        copy_file(entry.path(), to)
    }
}

/// The standard library lets the kernel copy, which shares blocks where it can.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to).map(drop)
}
