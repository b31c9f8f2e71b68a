//! What a guest is given at its start: arguments, environment and directories.
//!
//! All stores of an instance share it. A guest gets its copy when it asks, and most that answer requests never do; so a store
//! costs nothing for it, and no directory is opened on the way of a request.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::OFlags;
use wasmtime::Result;
use wasmtime::component::{HasData, Resource, ResourceTable};
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
    directories: Vec<(Dir, &'static str)>,
}

impl Given {
    /// Opens the directories, which stay open for as long as there are stores.
    pub(crate) fn new(arguments: Vec<String>, environment: Vec<(String, String)>, mounts: &[Mount]) -> io::Result<Arc<Self>> {
        let directories = mounts.iter().map(|mount| Ok((open(mount)?, mount.guest))).collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { arguments, environment, directories }))
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
        let mut handles = Vec::with_capacity(self.given.directories.len());
        for (directory, name) in &self.given.directories {
            handles.push((self.table.push(Descriptor::Dir(directory.clone()))?, (*name).to_owned()));
        }
        Ok(handles)
    }
}
