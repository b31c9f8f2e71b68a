//! What goes wrong for a user: one line of cause, a hint what to do, an exit code for scripts.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use dewar_bus::BusError;
use dewar_protocol::{CellId, Mib};

use crate::app_name::{AppName, InvalidName};
use crate::manifest::ManifestError;
use crate::package::PackageError;
use crate::records::RecordError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The user asked for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The name of an app is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The bus is away, or its address or credentials are wrong.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// There is no package.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// `dewar.toml` is no good.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The client's own files.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The server for package and droplet.
    #[error("cannot serve the package to agents")]
    Serve(#[source] io::Error),
    /// Another file or system call.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// No such app, neither in the records nor on the bus.
    #[error("there is no app `{0}`")]
    UnknownApp(AppName),
    /// The bus knows it, this client does not.
    #[error("`{0}` was not pushed from here, so this client cannot start instances of it")]
    NotOurs(AppName),
    /// A staged version waits to be started.
    #[error("a new version of `{0}` is staged but not started")]
    OnlyStaged(AppName),
    /// Nobody stages.
    #[error("no agent that stages answered within {after:?}")]
    NoStager {
        /// How long we waited.
        after: Duration,
    },
    /// Nobody runs instances.
    #[error("no agent answered within {after:?}")]
    NoAgent {
        /// How long we waited.
        after: Duration,
    },
    /// All agents are full.
    #[error("no agent has room for instance {index} ({memory} of memory and {disk} of disk; the roomiest has {roomiest} of memory)")]
    NoRoom {
        /// Which instance.
        index: u32,
        /// What it needs.
        memory: Mib,
        /// What it needs.
        disk: Mib,
        /// Most free memory on any agent.
        roomiest: Mib,
    },
    /// The stager says no.
    #[error("staging failed: {message}")]
    StagingFailed {
        /// What it said.
        message: String,
        /// Whether no buildpack wanted the app.
        undetected: bool,
    },
    /// The stager said nothing any more.
    #[error("agent {agent} did not {step} within {after:?}")]
    StagerSilent {
        /// Which.
        agent: CellId,
        /// What it should have done.
        step: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// What the stager uploaded is not what it said it made.
    #[error("the droplet that arrived is not the one that was staged: {0}")]
    WrongDroplet(String),
    /// An instance ended while it should have started.
    #[error("instance {index} crashed: {description} (exit status {status})")]
    Crashed {
        /// Which.
        index: u32,
        /// As the agent tells.
        status: i32,
        /// As the agent tells; its first line.
        description: String,
    },
    /// An instance was neither healthy nor dead.
    #[error("instance {index} did not start within {after:?} (last seen: {last_seen})")]
    StartTimedOut {
        /// Which.
        index: u32,
        /// How long we waited.
        after: Duration,
        /// Its state, or that nobody knows it.
        last_seen: String,
    },
    /// Instances would not go.
    #[error("{count} instances were still there after {after:?}")]
    StopTimedOut {
        /// How many.
        count: usize,
        /// How long we waited.
        after: Duration,
    },
    /// The archive that instances are started from is not on this disk any more.
    #[error("the droplet of `{name}` is not in {} any more", .path.display())]
    DropletGone {
        /// Which app.
        name: AppName,
        /// Where it was.
        path: PathBuf,
    },
    /// No instance has files to show.
    #[error("{}", no_files(.app, *.instance))]
    NoFiles {
        /// Of this app.
        app: AppName,
        /// The one that was wanted, if one was.
        instance: Option<u32>,
    },
    /// Its agent has no file server.
    #[error("agent {0} serves no files")]
    NoFileServer(CellId),
    /// The file server says no.
    #[error("cannot read `{path}` of `{app}`: {reason}")]
    FileRefused {
        /// Of this app.
        app: AppName,
        /// Which file.
        path: String,
        /// The answer's.
        status: u16,
        /// As the server tells.
        reason: String,
    },
    /// Nobody is where the URL leads to.
    #[error("cannot reach the file server {server}: {reason}")]
    FileServerUnreachable {
        /// Its host name.
        server: String,
        /// Why not.
        reason: String,
    },
    /// The user, or a newer change, ended it.
    #[error("interrupted")]
    Interrupted,
}

fn no_files(app: &AppName, instance: Option<u32>) -> String {
    match instance {
        Some(index) => format!("instance {index} of `{app}` has no files to show"),
        None => format!("no instance of `{app}` has files to show"),
    }
}

/// Exit codes, the same for every command. 0 is success; 1 that the app did not do as wished (failed staging, crash, no such app).
pub mod exit_code {
    /// The app did not do as wished.
    pub const APP: u8 = 1;
    /// The command line or a configuration file is wrong.
    pub const USAGE: u8 = 64;
    /// The bus, or any agent, cannot be reached.
    pub const UNAVAILABLE: u8 = 69;
    /// A file could not be read or written.
    pub const IO: u8 = 74;
    /// Not now: another command is at it, or something took too long.
    pub const TEMPORARY: u8 = 75;
    /// Interrupted by the user.
    pub const INTERRUPTED: u8 = 130;
}

impl ClientError {
    /// For the exit of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Name(_) | Self::Manifest(ManifestError::Malformed { .. }) => exit_code::USAGE,
            Self::Package(PackageError::Write(_)) | Self::Serve(_) | Self::Io { .. } | Self::DropletGone { .. } => exit_code::IO,
            Self::Package(_) | Self::Manifest(ManifestError::Unreadable(_)) => exit_code::USAGE,
            Self::Records(RecordError::Busy(_)) | Self::StopTimedOut { .. } | Self::StagerSilent { .. } => exit_code::TEMPORARY,
            Self::Records(_) => exit_code::IO,
            Self::Bus(_)
            | Self::NoStager { .. }
            | Self::NoAgent { .. }
            | Self::NoRoom { .. }
            | Self::NoFileServer(_)
            | Self::FileServerUnreachable { .. } => exit_code::UNAVAILABLE,
            Self::Interrupted => exit_code::INTERRUPTED,
            Self::UnknownApp(_)
            | Self::NotOurs(_)
            | Self::NoFiles { .. }
            | Self::FileRefused { .. }
            | Self::OnlyStaged(_)
            | Self::StagingFailed { .. }
            | Self::WrongDroplet(_)
            | Self::Crashed { .. }
            | Self::StartTimedOut { .. } => exit_code::APP,
        }
    }

    /// What the user may do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Bus(BusError::Unreachable { .. }) => {
                "start one with `dewar dev` or `dewar broker`, or name it with --nats URL or DEWAR_NATS".to_owned()
            }
            Self::Package(
                PackageError::Link(_) | PackageError::Special(_) | PackageError::NameNotUtf8(_) | PackageError::TooBig { .. },
            ) => "list what does not belong to the app in .dewarignore, one gitignore pattern a line".to_owned(),
            Self::Package(PackageError::Empty(_)) => "is this the right path? target/ and node_modules/ are never packed".to_owned(),
            Self::Records(RecordError::Busy(name)) => format!("wait for it, or see what `dewar app {name}` tells"),
            Self::Records(RecordError::Damaged { path, .. }) => {
                format!("delete {} to forget the app, then push it again", path.display())
            }
            Self::Records(RecordError::TooNew { .. }) => "use the newer dewar, or another DEWAR_HOME".to_owned(),
            Self::UnknownApp(_) => "`dewar apps` lists all apps on this bus".to_owned(),
            Self::NotOurs(name) | Self::DropletGone { name, .. } => format!("push it from here: dewar push {name} -p PATH"),
            Self::OnlyStaged(name) => format!("start it: dewar restart {name}"),
            Self::NoStager { .. } | Self::NoAgent { .. } => {
                "start one with `dewar agent --config FILE`, and see it with `dewar agents`".to_owned()
            }
            Self::NoRoom { .. } => "scale something down, ask for less with -m or -k, or start another agent".to_owned(),
            Self::StagingFailed { undetected: true, .. } => {
                "the built-in buildpacks want a .wasm or .wat file, or an index.html; name another buildpack with -b".to_owned()
            }
            Self::Crashed { .. } | Self::StartTimedOut { .. } => "see its output with `dewar logs NAME`".to_owned(),
            Self::NoFiles { app, .. } => format!("`dewar app {app}` lists its instances; those that run or have crashed have files"),
            Self::NoFileServer(_) => "see `directory_server` and `domain` in its configuration".to_owned(),
            Self::FileRefused { app, status: 404, .. } => format!("`dewar files {app}` lists what there is"),
            Self::FileServerUnreachable { .. } => "where the router of its domain is can be said with --router HOST:PORT".to_owned(),
            Self::StagerSilent { .. } => "is the agent still there? `dewar agents` tells".to_owned(),
            _ => return None,
        })
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.ends_with(&text) {
                line = format!("{line}: {text}");
            }
            cause = error.source();
        }
        line
    }
}
