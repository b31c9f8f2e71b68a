//! `push`: from a path to running instances.

use std::collections::HashSet;
use std::path::PathBuf;

use dewar_protocol::{AppId, Mib, Secret};
use tokio_util::sync::CancellationToken;

use crate::app_name::AppName;
use crate::client::Client;
use crate::error::ClientError;
use crate::health::AppHealthCheck;
use crate::identifiers::random_uuid;
use crate::manifest::Manifest;
use crate::package::{Package, PackageSource};
use crate::push_event::{PushEvent, Reporter};
use crate::records::{AppRecord, LockedApp, Phase, Release};
use crate::rollout::{Before, Rollout};
use crate::staging::{StagedDroplet, StagingRequest};
use crate::transfer::TransferServer;

/// Memory of an instance when nothing is said.
const MEMORY_DEFAULT: Mib = Mib(64);
/// Disk of an instance when nothing is said.
const DISK_DEFAULT: Mib = Mib(64);
/// Where apps are reached when nothing is said: every name below `localhost` leads to this machine.
const DOMAIN_DEFAULT: &str = "localhost";

/// What to push. `None` keeps what an earlier push said, or takes the default.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// The app's name.
    pub name: AppName,
    /// The package.
    pub source: PackageSource,
    /// How many instances.
    pub instances: Option<u32>,
    /// Memory of each.
    pub memory: Option<Mib>,
    /// Disk of each.
    pub disk: Option<Mib>,
    /// A buildpack by name or URL, or the path of one on this disk.
    pub buildpack: Option<String>,
    /// `NAME=value` each; a name replaces what an earlier push said of it.
    pub environment: Vec<Secret<String>>,
    /// Which host names lead to the app.
    pub routes: Routes,
    /// Overrides the droplet's start command.
    pub start_command: Option<String>,
    /// What makes its instances healthy.
    pub health_check: Option<AppHealthCheck>,
    /// What to do once the droplet is here.
    pub after_staging: AfterStaging,
}

impl PushOptions {
    /// With nothing said but the name and the package.
    #[must_use]
    pub fn new(name: AppName, source: PackageSource) -> Self {
        Self {
            name,
            source,
            instances: None,
            memory: None,
            disk: None,
            buildpack: None,
            environment: Vec::new(),
            routes: Routes::Keep,
            start_command: None,
            health_check: None,
            after_staging: AfterStaging::Start,
        }
    }
}

/// Which host names lead to an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routes {
    /// As an earlier push said, or `<name>.localhost`.
    Keep,
    /// None: the app is a worker and need not listen.
    None,
    /// These.
    Hosts(Vec<String>),
}

impl Routes {
    /// As the package itself wants it.
    #[must_use]
    pub fn from_manifest(manifest: &Manifest) -> Self {
        match &manifest.routes {
            None => Self::Keep,
            Some(hosts) if hosts.is_empty() => Self::None,
            Some(hosts) => Self::Hosts(hosts.clone()),
        }
    }

    fn resolve(&self, name: &AppName, previous: Option<&AppRecord>) -> Result<Vec<String>, ClientError> {
        match (self, previous) {
            (Self::None, _) => Ok(Vec::new()),
            (Self::Keep, Some(app)) => Ok(app.uris.clone()),
            (Self::Keep, None) => Ok(vec![format!("{name}.{DOMAIN_DEFAULT}")]),
            (Self::Hosts(hosts), _) => match hosts.iter().find(|host| !is_host(host)) {
                Some(bad) => Err(ClientError::Usage(format!("`{}` is no host name", bad.escape_debug()))),
                None => Ok(hosts.iter().map(|host| host.to_ascii_lowercase()).collect()),
            },
        }
    }
}

fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text
            .split('.')
            .all(|label| (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')))
}

/// What to do once the droplet is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterStaging {
    /// Start it, and stop what ran before once it is healthy.
    Start,
    /// Leave it to a later `start` or `restart`.
    Keep,
}

impl Client {
    /// Stages a package and runs it. A version that runs already serves until the new one is healthy; when staging or starting fails,
    /// it goes on as if nothing had happened.
    ///
    /// # Errors
    /// With what failed. On `stop` with [`ClientError::Interrupted`], after staging and new instances were told to end.
    pub async fn push(&self, options: &PushOptions, report: Reporter<'_>, stop: &CancellationToken) -> Result<AppRecord, ClientError> {
        let locked = self.records.lock(&options.name)?;
        locked.prepare()?;
        let previous = locked.read()?;
        let settings = Settings::of(options, previous.as_ref())?;
        let package = pack(options.source.clone()).await?;
        report(PushEvent::Packaged { app: options.name.clone(), files: package.files, bytes: package.bytes });
        let server = TransferServer::start(&self.advertise).await.map_err(ClientError::Serve)?;
        let pushed = self.stage_and_start(&locked, options, &settings, (&package, &server), report, stop).await;
        if previous.is_none()
            && let Err((_, Some(app))) = &pushed
        {
            // The first version did not start. It is remembered all the same, so that one can look at it and try again.
            locked.save(&AppRecord { phase: Phase::Stopped, ..app.as_ref().clone() })?;
        }
        server.close().await;
        pushed.map_err(|(error, _)| error)
    }

    /// An error comes with the record of what was staged, if it came to that.
    async fn stage_and_start(
        &self,
        locked: &LockedApp,
        options: &PushOptions,
        settings: &Settings,
        (package, server): (&Package, &TransferServer),
        report: Reporter<'_>,
        stop: &CancellationToken,
    ) -> Result<AppRecord, (ClientError, Option<Box<AppRecord>>)> {
        let mut logs = self.follow_logs(&settings.id, 0).await.map_err(|error| (error, None))?;
        let request = settings.staging_request(locked, package);
        let staged = self.stage(&request, server, &mut logs, &mut *report, stop).await.map_err(|error| (error, None))?;
        drop(logs);
        report(PushEvent::Staged {
            app: options.name.clone(),
            detected_buildpack: staged.detected_buildpack.clone(),
            start_command: settings.start_command.clone().or_else(|| staged.start_command.clone()),
            droplet_sha1: staged.sha1.clone(),
            bytes: staged.bytes,
        });
        let app = settings.record(options, staged).map_err(|error| (error, None))?;
        let started = match options.after_staging {
            AfterStaging::Keep => locked.save(&app).map_err(ClientError::from),
            AfterStaging::Start => {
                let before = if settings.is_new { Before::Nothing } else { Before::Instances(HashSet::new()) };
                let rollout = Rollout { locked, app: &app, indices: (0..app.instances).collect(), before };
                self.roll_out(rollout, server, report, stop).await
            }
        };
        match started {
            Ok(()) => Ok(app),
            Err(error) => Err((error, Some(Box::new(app)))),
        }
    }
}

/// What counts after options, earlier record and defaults were weighed.
struct Settings {
    id: AppId,
    is_new: bool,
    instances: u32,
    uris: Vec<String>,
    memory: Mib,
    disk: Mib,
    environment: Vec<Secret<String>>,
    start_command: Option<String>,
    health_check: Option<AppHealthCheck>,
    buildpack: Option<String>,
}

impl Settings {
    fn of(options: &PushOptions, previous: Option<&AppRecord>) -> Result<Self, ClientError> {
        let id = match previous {
            Some(app) => app.id.clone(),
            None => AppId(fresh_uuid()?),
        };
        Ok(Self {
            id,
            is_new: previous.is_none(),
            uris: options.routes.resolve(&options.name, previous)?,
            instances: options.instances.or(previous.map(|app| app.instances)).unwrap_or(1),
            memory: options.memory.or(previous.map(|app| app.memory)).unwrap_or(MEMORY_DEFAULT),
            disk: options.disk.or(previous.map(|app| app.disk)).unwrap_or(DISK_DEFAULT),
            environment: merge(previous.map_or(&[], |app| &app.environment), &options.environment),
            start_command: options.start_command.clone().or_else(|| previous.and_then(|app| app.start_command.clone())),
            health_check: options.health_check.clone().or_else(|| previous.and_then(|app| app.health_check.clone())),
            buildpack: options.buildpack.clone().or_else(|| previous.and_then(|app| app.buildpack.clone())),
        })
    }

    fn staging_request<'a>(&'a self, app: &'a LockedApp, package: &'a Package) -> StagingRequest<'a> {
        StagingRequest {
            app,
            app_id: &self.id,
            package,
            environment: &self.environment,
            buildpack: self.buildpack.clone(),
            local_buildpack: self.buildpack.as_deref().and_then(local_buildpack),
            start_command: self.start_command.as_deref(),
        }
    }

    fn record(&self, options: &PushOptions, staged: StagedDroplet) -> Result<AppRecord, ClientError> {
        let path = options.source.path();
        Ok(AppRecord {
            name: options.name.clone(),
            id: self.id.clone(),
            release: Release {
                version: fresh_uuid()?,
                droplet: staged.sha1,
                detected_buildpack: staged.detected_buildpack,
                detected_start_command: staged.start_command,
            },
            phase: match options.after_staging {
                AfterStaging::Start => Phase::Started,
                AfterStaging::Keep => Phase::Staged,
            },
            instances: self.instances,
            uris: self.uris.clone(),
            memory: self.memory,
            disk: self.disk,
            environment: self.environment.clone(),
            start_command: self.start_command.clone(),
            health_check: self.health_check.clone(),
            buildpack: self.buildpack.clone(),
            package: path.canonicalize().unwrap_or_else(|_| path.to_owned()),
        })
    }
}

pub(crate) fn fresh_uuid() -> Result<String, ClientError> {
    random_uuid().map_err(|source| ClientError::Io { action: "draw randomness".to_owned(), source })
}

async fn pack(source: PackageSource) -> Result<Package, ClientError> {
    let packed = tokio::task::spawn_blocking(move || source.pack()).await;
    let failed = |error| ClientError::Io { action: "pack".to_owned(), source: std::io::Error::other(error) };
    Ok(packed.map_err(failed)??)
}

/// A buildpack that is a file here, rather than the name of one that the agent has, or a URL.
fn local_buildpack(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    let is_component = path.extension().is_some_and(|ending| ending == "wasm" || ending == "zip");
    (is_component && path.is_file()).then(|| path.canonicalize().unwrap_or(path))
}

/// Later values win, names keep their place.
fn merge(earlier: &[Secret<String>], later: &[Secret<String>]) -> Vec<Secret<String>> {
    let name = |pair: &Secret<String>| pair.expose().split('=').next().unwrap_or_default().to_owned();
    let mut merged: Vec<Secret<String>> = Vec::new();
    for pair in earlier.iter().chain(later) {
        match merged.iter_mut().find(|known| name(known) == name(pair)) {
            Some(known) => *known = pair.clone(),
            None => merged.push(pair.clone()),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_environment_replaces_by_name() {
        let pairs = |texts: &[&str]| texts.iter().map(|text| Secret((*text).to_owned())).collect::<Vec<_>>();
        assert_eq!(merge(&pairs(&["A=1", "B=2"]), &pairs(&["B=3=4", "C="])), pairs(&["A=1", "B=3=4", "C="]));
    }

    #[test]
    fn routes() {
        let name: AppName = "hello".parse().unwrap();
        assert_eq!(Routes::Keep.resolve(&name, None).unwrap(), ["hello.localhost"]);
        assert!(Routes::None.resolve(&name, None).unwrap().is_empty());
        let hosts = |hosts: &[&str]| Routes::Hosts(hosts.iter().map(|host| (*host).to_owned()).collect());
        assert_eq!(hosts(&["A.example.net", "b"]).resolve(&name, None).unwrap(), ["a.example.net", "b"]);
        for bad in ["", "a b", "a..b", ".a", "a/b", "a:80", "ä", "x\n"] {
            let error = hosts(&[bad]).resolve(&name, None).unwrap_err();
            assert_eq!(error.exit_code(), crate::exit_code::USAGE, "{bad}");
        }
    }

    #[test]
    fn a_buildpack_is_local_when_it_is_a_file_of_a_fitting_kind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.wasm");
        std::fs::write(&file, "").unwrap();
        assert_eq!(local_buildpack(file.to_str().unwrap()), Some(file.canonicalize().unwrap()));
        assert_eq!(local_buildpack("static"), None);
        assert_eq!(local_buildpack("https://example.net/my.wasm"), None);
        assert_eq!(local_buildpack(dir.path().to_str().unwrap()), None);
    }
}
