//! What a command tells while it works; `dewar push`, `dewar dev` and `--json` all render these.

use dewar_protocol::{AppId, CellId, DropletSha1, LogLine};
use serde::Serialize;

use crate::app_name::AppName;
use crate::records::{AppRecord, Phase};

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
    /// The app has no instances any more.
    Stopped {
        /// The app.
        app: AppName,
    },
    /// The app is forgotten.
    Deleted {
        /// The app.
        app: AppName,
    },
    /// All is done; this is how the app was left.
    Done {
        /// The app.
        app: AppName,
        /// Its id on the bus.
        id: AppId,
        /// Its version.
        version: String,
        /// Digest of its droplet.
        droplet_sha1: DropletSha1,
        /// `staged`, `started` or `stopped`.
        phase: Phase,
        /// Instances wanted.
        instances: u32,
        /// Routes.
        uris: Vec<String>,
    },
}

impl PushEvent {
    /// That all is done with this app.
    #[must_use]
    pub fn done(app: &AppRecord) -> Self {
        Self::Done {
            app: app.name.clone(),
            id: app.id.clone(),
            version: app.release.version.clone(),
            droplet_sha1: app.release.droplet.clone(),
            phase: app.phase,
            instances: app.instances,
            uris: app.uris.clone(),
        }
    }
}

/// Takes events as they happen. Must not block for long: nothing else goes on meanwhile.
pub type Reporter<'a> = &'a mut (dyn FnMut(PushEvent) + Send);
