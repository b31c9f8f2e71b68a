//! What a guest is given at its start: arguments, environment and directories.
//!
//! All stores of an instance share it. A guest gets its copy when it asks, and most that answer requests never do; so a store
//! costs nothing for it. The directories are opened when a guest first asks and stay open from then on: an instance that touches no
//! file holds no descriptors for them, of which thousands of idle instances would need more than a process may have.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::OFlags;
use tracing::warn;
use wasmtime::component::{HasData, Resource, ResourceTable};
use wasmtime::{Error, Result};
use wasmtime_wasi::filesystem::{Descriptor, Dir};
use wasmtime_wasi::p2::bindings::cli::environment as environment_0_2;
use wasmtime_wasi::p2::bindings::filesystem::preopens;
use wasmtime_wasi::p3::bindings::cli::environment as environment_0_3;
use wasmtime_wasi::{FsPerms, OpenMode};

/// A directory that a guest sees.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    pub(crate) host: PathBuf,
    pub(crate) guest: &'static str,
    pub(crate) perms: FsPerms,
}

/// See the module's documentation.
pub(crate) struct Given {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    mounts: Vec<Mount>,
    directories: OnceLock<Vec<(Dir, &'static str)>>,
}

impl Given {
    pub(crate) fn new(arguments: Vec<String>, environment: Vec<(String, String)>, mounts: Vec<Mount>) -> Arc<Self> {
        Arc::new(Self { arguments, environment, mounts, directories: OnceLock::new() })
    }

    fn directories(&self) -> Result<&[(Dir, &'static str)]> {
        if let Some(directories) = self.directories.get() {
            return Ok(directories);
        }
        let mut opened = Vec::with_capacity(self.mounts.len());
        for mount in &self.mounts {
            let directory = open(mount).map_err(|error| {
                warn!(path = %mount.host.display(), %error, "cannot open a guest's directory");
                // The host's path is not the guest's business.
                Error::msg(format!("cannot open {}: {error}", mount.guest))
            })?;
            opened.push((directory, mount.guest));
        }
        Ok(self.directories.get_or_init(|| opened))
    }

    /// Bytes of arguments and environment, of which a guest may have a copy made.
    pub(crate) fn texts(&self) -> u64 {
        let variables = self.environment.iter().map(|(name, value)| name.len() + value.len());
        self.arguments.iter().map(String::len).chain(variables).map(|bytes| bytes as u64 + 64).sum()
    }
}

fn open(mount: &Mount) -> io::Result<Dir> {
    let directory_only = OFlags::DIRECTORY.bits().cast_signed();
    let directory = OpenOptions::new().read(true).custom_flags(directory_only).open(&mount.host)?;
    let mode = match mount.perms {
        FsPerms::ReadOnly => OpenMode::READ,
        FsPerms::ReadWrite => OpenMode::READ | OpenMode::WRITE,
    };
    Ok(Dir::new(directory, mount.perms, mode, false))
}

/// Names [`Handover`] to the linker.
pub(crate) struct HasHandover;

impl HasData for HasHandover {
    type Data<'a> = Handover<'a>;
}

/// Implements the interfaces for the time of one call.
pub(crate) struct Handover<'a> {
    pub(crate) given: &'a Given,
    pub(crate) table: &'a mut ResourceTable,
}

impl environment_0_2::Host for Handover<'_> {
    fn get_environment(&mut self) -> Result<Vec<(String, String)>> {
        Ok(self.given.environment.clone())
    }

    fn get_arguments(&mut self) -> Result<Vec<String>> {
        Ok(self.given.arguments.clone())
    }

    fn initial_cwd(&mut self) -> Result<Option<String>> {
        Ok(None)
    }
}

impl environment_0_3::Host for Handover<'_> {
    fn get_environment(&mut self) -> Result<Vec<(String, String)>> {
        Ok(self.given.environment.clone())
    }

    fn get_arguments(&mut self) -> Result<Vec<String>> {
        Ok(self.given.arguments.clone())
    }

    fn get_initial_cwd(&mut self) -> Result<Option<String>> {
        Ok(None)
    }
}

impl preopens::Host for Handover<'_> {
    fn get_directories(&mut self) -> Result<Vec<(Resource<Descriptor>, String)>> {
        let directories = self.given.directories()?;
        let mut handles = Vec::with_capacity(directories.len());
        for (directory, name) in directories {
            handles.push((self.table.push(Descriptor::Dir(directory.clone()))?, (*name).to_owned()));
        }
        Ok(handles)
    }
}
