//! What a command tells while it works; `dewar push`, `dewar dev` and `--json` all render these.

use dewar_protocol::{CellId, DropletSha1, LogLine};
use serde::Serialize;

use crate::app_name::AppName;

/// One thing that happened. As JSON: an object whose `event` names the variant in snake case, with the fields below.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PushEvent {
    /// The package is ready to be fetched.
    Packaged {
        /// The app.
        app: AppName,
        /// Files in it; an archive counts as one.
        files: usize,
        /// Its size.
        bytes: u64,
    },
    /// An agent was asked to stage.
    Staging {
        /// The app.
        app: AppName,
        /// Which agent.
        agent: CellId,
    },
    /// The app's buildpack, an instance or an agent wrote a line.
    Log {
        /// The app.
        app: AppName,
        /// The line.
        line: LogLine,
    },
    /// The droplet is here.
    Staged {
        /// The app.
        app: AppName,
        /// What the buildpack called it; null when the buildpack was given.
        detected_buildpack: Option<String>,
        /// The start command in effect.
        start_command: Option<String>,
        /// Digest of the droplet.
        droplet_sha1: DropletSha1,
        /// Size of the droplet.
        bytes: u64,
    },
    /// An agent was asked to start an instance.
    Starting {
        /// The app.
        app: AppName,
        /// Which instance.
        index: u32,
        /// Which agent.
        agent: CellId,
    },
    /// An instance is healthy and has its routes.
    Running {
        /// The app.
        app: AppName,
        /// Which instance.
        index: u32,
        /// Which agent.
        agent: CellId,
    },
    /// Instances are to end.
    Stopping {
        /// The app.
        app: AppName,
        /// How many.
        count: usize,
    },
}

/// Takes events as they happen. Must not block for long: nothing else goes on meanwhile.
pub type Reporter<'a> = &'a mut (dyn FnMut(PushEvent) + Send);
