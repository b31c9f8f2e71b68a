//! Removes what guests and buildpacks have left, however deep it is.
//!
//! A guest opens a directory in a directory in a directory, as many as its quota has files: far deeper than a path can say. What the
//! standard library has for this goes down by recursion, with a descriptor for each level, and a deep tree ends the process. So
//! the way back up is kept in memory, where a level is a few bytes, and gone by `..`.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat, unlinkat};
use tracing::warn;

/// A directory on the way down.
struct Level {
    /// In the directory above.
    name: CString,
    /// Device and inode, for the way back.
    identity: (u64, u64),
    /// Directories in it that are still there.
    below: Vec<CString>,
}

/// Removes a directory and all that is below it. Links are removed and not followed.
///
/// # Errors
/// When something cannot be removed, or the directory is not there, or somebody moves or makes something in it meanwhile. What could
/// be removed until then is gone.
pub(crate) fn remove_tree(root: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(root)?.is_dir() {
        return fs::remove_file(root);
    }
    let mut here = openat(CWD, root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut level = Level { name: CString::default(), identity: identity(&here)?, below: clear(&here)? };
    let mut above: Vec<Level> = Vec::new();
    loop {
        if let Some(name) = level.below.pop() {
            here = enter(&here, &name)?;
            let inner = Level { name, identity: identity(&here)?, below: clear(&here)? };
            above.push(std::mem::replace(&mut level, inner));
        } else if let Some(outer) = above.pop() {
            here = enter(&here, c"..")?;
            if identity(&here)? != outer.identity {
                return Err(io::Error::other("a directory was moved while it was removed"));
            }
            unlinkat(&here, &level.name, AtFlags::REMOVEDIR)?;
            level = outer;
        } else {
            return fs::remove_dir(root);
        }
    }
}

/// Removes a directory that need not be there. One that cannot be removed is named in the log.
pub(crate) fn remove_left_over(dir: &Path) {
    match remove_tree(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => warn!(path = %dir.display(), %error, "directory not removed"),
        _ => {}
    }
}

fn enter(here: &OwnedFd, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    Ok(openat(here, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn identity(directory: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Removes everything in a directory but for the directories in it, which it names.
fn clear(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut below = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Not every file system tells.
            FileType::Unknown => FileType::from_raw_mode(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
            kind => kind,
        };
        match kind {
            FileType::Directory => below.push(name.to_owned()),
            _ => unlinkat(directory, name, AtFlags::empty())?,
        }
    }
    Ok(below)
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn depth_costs_neither_stack_nor_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut deepest = OwnedFd::from(fs::File::open(&root).unwrap());
        for _ in 0..10_000 {
            mkdirat(&deepest, "d", Mode::RWXU).unwrap();
            deepest = enter(&deepest, c"d").unwrap();
        }
        drop(deepest);
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let removed = small.spawn(move || remove_tree(&root)).unwrap().join().unwrap();
        removed.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn all_of_it_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (root, beside) = (dir.path().join("root"), dir.path().join("beside"));
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("kept"), "kept").unwrap();
        for name in ["a/b/c/d", "a/b/other", "wide/1/2", "wide/3"] {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), name).unwrap();
        }
        fs::create_dir(root.join("empty")).unwrap();
        for (at, target) in [("link", "../beside"), ("a/b/link", "../../../beside"), ("wide/dangling", "nowhere")] {
            std::os::unix::fs::symlink(target, root.join(at)).unwrap();
        }
        remove_tree(&root).unwrap();
        assert_eq!(fs::read_to_string(beside.join("kept")).unwrap(), "kept");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(remove_tree(&root).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_link_to_a_directory_is_a_link() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("beside")).unwrap();
        std::os::unix::fs::symlink("beside", dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("beside").is_dir() && !dir.path().join("link").is_symlink());
    }
}
