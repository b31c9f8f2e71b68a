//! The private copy of an app's files that each instance gets.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{StoreError, at};
use crate::tree::{Node, Tree};

/// The files of an app, as they are in the shared tree. An app without files costs its instances no more than a directory.
#[derive(Debug)]
pub(super) struct AppFiles {
    bytes: u64,
    /// Relative to the app's directory, parents first.
    entries: Vec<(String, Entry)>,
}

#[derive(Debug)]
enum Entry {
    Directory,
    File,
    Link(String),
}

impl AppFiles {
    pub(super) fn of(tree: Tree) -> Self {
        let mut bytes = 0;
        let mut entries = Vec::new();
        for (path, node) in tree.nodes {
            let Some(path) = path.strip_prefix("app/") else { continue };
            let entry = match node {
                Node::Directory => Entry::Directory,
                Node::File { size, .. } => {
                    bytes += size;
                    Entry::File
                }
                Node::Link { target } => Entry::Link(target),
            };
            entries.push((path.to_owned(), entry));
        }
        Self { bytes, entries }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn inodes(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Makes an instance's directories, with these files in `app`. Blocks. A file's blocks are shared where the file system can.
    pub(super) fn copy(&self, from: &Path, instance_dir: &Path) -> Result<(), StoreError> {
        fs::create_dir_all(instance_dir).map_err(at(instance_dir))?;
        let app = instance_dir.join("app");
        for dir in [&app, &instance_dir.join("logs"), &instance_dir.join("tmp")] {
            fs::create_dir(dir).map_err(at(dir))?;
        }
        for (path, entry) in &self.entries {
            let to = app.join(path);
            let made = match entry {
                Entry::Directory => fs::create_dir(&to),
                Entry::File => copy_file(&from.join(path), &to),
                Entry::Link(target) => symlink(target, &to),
            };
            made.map_err(at(&to))?;
        }
        Ok(())
    }
}

/// The standard library lets the kernel copy, which shares blocks where it can.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to).map(drop)
}
