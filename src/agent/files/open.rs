//! Opening what guests own, without being led astray.
//!
//! A guest may plant links, and change anything at any moment. So no path is ever checked and then used: the kernel resolves it in one
//! step, relative to a descriptor of the root, and refuses what leaves it; what was opened is looked at and served by its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

/// The kernel gives up on a path with `..` when something was renamed meanwhile, and may be asked again so often.
const ATTEMPTS: usize = 16;

/// What is opened for reading: never waiting for the other end of a pipe, never becoming a terminal's owner.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Whether links are followed. None ever leads out of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    Followed,
    /// A path with a link in it, or `..`, is not accessible.
    Refused,
}

/// A directory that nothing leads out of.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    links: Links,
}

/// Something that can be shown.
#[derive(Debug)]
pub(super) enum Opened {
    File(OpenFile),
    Directory(OwnedFd),
}

/// A regular file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    /// The last component of the path it was asked for by.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

/// Why something cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("there is no such file")]
    NotFound,
    /// It leads out of the root, or is neither file nor directory.
    #[error("it is not accessible")]
    NotAccessible,
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl Root {
    /// # Errors
    /// When it is not there, or is no directory.
    pub(super) fn open(directory: &Path, links: Links) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { directory: openat(CWD, directory, flags, Mode::empty())?, links })
    }

    /// A directory directly below this one that is no link, as a root of its own.
    ///
    /// # Errors
    /// When there is no such directory.
    pub(super) fn entry(&self, name: &str) -> Result<Self, OpenError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let directory = openat2(&self.directory, name, flags, Mode::empty(), resolve).map_err(OpenError::from)?;
        Ok(Self { directory, links: self.links })
    }

    /// Opens a path, which may begin with slashes; an empty one is the root itself.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) fn open_path(&self, path: &str) -> Result<Opened, OpenError> {
        self.open_with(path, self.links)
    }

    /// As [`Root::open_path`], with another rule for links.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) fn open_with(&self, path: &str, links: Links) -> Result<Opened, OpenError> {
        let relative = path.trim_start_matches('/');
        let (relative, mut resolve) =
            (if relative.is_empty() { "." } else { relative }, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS);
        if links == Links::Refused {
            resolve |= ResolveFlags::NO_SYMLINKS;
            if relative.split('/').any(|component| component == "..") {
                return Err(OpenError::NotAccessible);
            }
        }
        let mut attempts = (0..ATTEMPTS).map(|_| openat2(&self.directory, relative, READ, Mode::empty(), resolve));
        let opened = attempts.find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))?;
        let stat = fstat(&opened).map_err(io::Error::from)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Opened::Directory(opened)),
            FileType::RegularFile => {
                let file = File::from(opened);
                let metadata = file.metadata()?;
                let name = relative.rsplit('/').next().unwrap_or_default().to_owned();
                Ok(Opened::File(OpenFile { name, size: metadata.len(), modified: metadata.modified()?, file }))
            }
            _ => Err(OpenError::NotAccessible),
        }
    }
}

impl From<Errno> for OpenError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::INVAL => Self::NotFound,
            // Out of the root; too many links, or one where there may be none; a socket, or a device without a driver.
            Errno::XDEV | Errno::LOOP | Errno::NXIO | Errno::NODEV => Self::NotAccessible,
            other => Self::Failed(other.into()),
        }
    }
}
