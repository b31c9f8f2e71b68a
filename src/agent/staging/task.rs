//! One staging, from the message to the droplet.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use dewar_core::{StagedDroplet, StagingSpec, environment};
use dewar_protocol::{Bytes, LogStream, StagingMessage};
use dewar_sandbox::{EgressPolicy, OutputSink};
use jiff::{Timestamp, tz::TimeZone};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, info_span, warn};

use super::ahead;
use super::build::{Build, Built};
use super::buildpack_cache::directory_name;
use super::buildpacks::{self, InUse, Origin, Selection};
use super::cache::Outcome;
use super::droplet::{PackError, pack_tree};
use super::failure::Failure;
use super::fingerprint::Inputs;
use super::size::Size;
use super::upload::upload;
use super::workspace::Workspace;
use super::{Means, Progress};
use crate::archive::unpack;
use crate::blocking;
use crate::droplet_store::Held;
use crate::telemetry::TARGET;
use crate::transfer::{Downloaded, Retry};
use crate::tree::{Tree, TreeLimits};

/// How far a staging has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Setup,
    Staging,
}

/// One staging under way.
pub(super) struct Task<'a> {
    means: Arc<Means>,
    spec: &'a StagingSpec,
    log: OutputSink,
    stop: CancellationToken,
    phase: Phase,
    workspace: Option<Arc<Workspace>>,
}

/// What setup brings.
struct Setup {
    workspace: Arc<Workspace>,
    /// Keeps the operator's buildpacks of this staging from being removed.
    _in_use: InUse,
    selection: Selection,
    egress: EgressPolicy,
    stack: String,
    package: Downloaded,
    cache: Option<Downloaded>,
}

impl<'a> Task<'a> {
    pub(super) fn new(means: Arc<Means>, spec: &'a StagingSpec, log: OutputSink, stop: CancellationToken) -> Self {
        Self { means, spec, log, stop, phase: Phase::Setup, workspace: None }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) async fn run(&mut self, tell: &(impl Fn(Progress) + Send + Sync)) -> Result<StagedDroplet, Failure> {
        let setup = self.set_up().instrument(info_span!(target: TARGET, "set up")).await?;
        self.phase = Phase::Staging;
        tell(Progress::SetUp);
        self.stage(setup, tell).await
    }

    /// Removes the directory, which may take a while. If this is never called it goes with the last that holds it.
    pub(super) async fn clean_up(self) {
        if let Some(workspace) = self.workspace {
            blocking::run(move || drop(workspace)).await;
        }
    }

    fn message(&self) -> &'a StagingMessage {
        &self.spec.message
    }

    fn say(&self, text: &str) {
        self.log.line(LogStream::Out, text);
    }

    /// Waits for something that may be left undone at any time.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        self.stop.run_until_cancelled(work).await.ok_or(Failure::Stopped)
    }

    async fn set_up(&mut self) -> Result<Setup, Failure> {
        let stack = self.stack()?;
        let egress = self.means.config.egress.policy(&self.message().egress_network_rules)?;
        let workspaces = Arc::clone(&self.means.workspaces);
        let workspace = blocking::run(move || Workspace::create(&workspaces)).await;
        let workspace = Arc::new(workspace.map_err(|source| Failure::Disk { what: "make a directory for staging", source })?);
        self.workspace = Some(Arc::clone(&workspace));
        let downloads = workspace.downloads();
        let (means, message) = (&self.means, self.message());
        let in_use = means.admin_buildpacks.reserve(&message.admin_buildpacks);
        let admin = means.admin_buildpacks.provide(&message.admin_buildpacks, &means.transfers, &self.stop).await?;
        let selection = buildpacks::select(&message.properties, admin, &means.transfers, &downloads, &self.stop).await?;
        let limit = self.spec.disk.to_bytes();
        let package = means.transfers.download(&message.download_uri, &downloads, limit, Retry::Transient);
        let (package, cache) = self.unless_stopped(futures::future::join(package, self.fetch_cache(&downloads, limit))).await?;
        let package = package.map_err(Failure::Download)?;
        Ok(Setup { workspace, _in_use: in_use, selection, egress, stack, package, cache })
    }

    fn stack(&self) -> Result<String, Failure> {
        let message = self.message();
        let stack = message.stack.as_ref().or_else(|| message.start_message.as_ref()?.stack.as_ref());
        let Some(stack) = stack else {
            return Ok(self.means.config.stacks.first().cloned().unwrap_or_default());
        };
        if self.means.config.stacks.contains(stack) { Ok(stack.clone()) } else { Err(Failure::UnknownStack(stack.clone())) }
    }

    /// The cache is no more than a help: an app stages without it too.
    async fn fetch_cache(&self, folder: &Path, limit: Bytes) -> Option<Downloaded> {
        let uri = self.message().buildpack_cache_download_uri.as_ref()?;
        let fetched = self.means.transfers.download(uri, folder, limit, Retry::Transient).await;
        fetched.inspect_err(|error| info!(%error, "no buildpack cache")).ok()
    }

    async fn stage(&self, setup: Setup, tell: &(impl Fn(Progress) + Send + Sync)) -> Result<StagedDroplet, Failure> {
        let deadline = Instant::now() + self.means.config.max_duration;
        let package = self.unpack_package(&setup).instrument(info_span!(target: TARGET, "unpack package")).await?;
        self.say(&format!("-----> Downloaded app package ({})", Size(setup.package.size.0)));
        let environment = environment::staging(self.message(), self.means.config.max_duration);
        let fingerprint = Inputs {
            package: &package,
            selection: &setup.selection,
            start_command: self.start_command(),
            environment: &environment,
            egress: &self.message().egress_network_rules,
            stack: &setup.stack,
        }
        .fingerprint();
        if let Some(outcome) = self.means.outcomes.get(&fingerprint) {
            let staged_at = local_time(outcome.staged_at);
            let droplet = outcome.into_droplet();
            if let Some(_held) = self.means.droplets.hold(&droplet.sha1).await? {
                info!(%fingerprint, droplet_sha1 = %droplet.sha1, "staged before");
                self.say(&format!("-----> Unchanged since {staged_at}, using the droplet of then"));
                tell(Progress::Stored(droplet.sha1.clone()));
                self.upload_droplet(&droplet).await?;
                return Ok(droplet);
            }
            self.means.outcomes.forget(&fingerprint);
        }
        let workspace = Arc::clone(&setup.workspace);
        let _ahead = ahead::begin(&self.means.sandboxes, &workspace.app(), &package).await;
        let build = Build {
            sandboxes: &self.means.sandboxes,
            loaded: &self.means.loaded,
            workspace: Arc::clone(&workspace),
            environment,
            egress: setup.egress.clone(),
            memory: self.spec.memory.to_bytes(),
            disk: Bytes(self.spec.disk.to_bytes().0.saturating_sub(package.bytes)),
            inodes: self.means.config.inodes.saturating_sub(package.nodes.len() as u64),
            deadline,
            log: &self.log,
            stop: &self.stop,
        };
        // Its paths may be many mebibytes, and buildpacks take minutes.
        drop(package);
        let chosen = build.choose(&setup.selection).instrument(info_span!(target: TARGET, "detect")).await?;
        self.lay_out_cache(&setup, &chosen.origin).await?;
        let built = build.run(&chosen, self.start_command()).instrument(info_span!(target: TARGET, "compile")).await?;
        let (droplet, _held) = self.store(built).await?;
        self.means.outcomes.put(&fingerprint, &Outcome::new(&droplet, Timestamp::now().as_second()));
        tell(Progress::Stored(droplet.sha1.clone()));
        self.upload_droplet(&droplet).await?;
        self.keep_cache(&workspace, &chosen.origin).await?;
        Ok(droplet)
    }

    fn start_command(&self) -> Option<&'a str> {
        self.message().properties.meta.command.as_deref().filter(|command| !command.is_empty())
    }

    fn limits(&self) -> TreeLimits {
        TreeLimits { bytes: self.spec.disk.to_bytes(), entries: self.means.config.inodes }
    }

    async fn unpack_package(&self, setup: &Setup) -> Result<Tree, Failure> {
        let (workspace, limits, stop) = (Arc::clone(&setup.workspace), self.limits(), self.stop.clone());
        let archive = setup.package.file.path().to_owned();
        Ok(blocking::run(move || unpack(&archive, &workspace.app(), limits, &stop)).await?)
    }

    /// Puts the buildpack's cache in its place: from the Cloud Controller where it keeps caches, else from here.
    async fn lay_out_cache(&self, setup: &Setup, buildpack: &Origin) -> Result<(), Failure> {
        let archive = setup.cache.as_ref().map(|cache| (cache.file.path().to_owned(), cache.size));
        let kept_here = self.message().buildpack_cache_upload_uri.is_none().then(|| self.means.buildpack_caches.clone());
        let (app, buildpack) = (self.message().app_id.clone(), buildpack.clone());
        let (workspace, limits, stop) = (Arc::clone(&setup.workspace), self.limits(), self.stop.clone());
        let log = Arc::clone(&self.log);
        let laid_out = blocking::run(move || {
            if let Some((archive, size)) = archive {
                return unpack_cache(&archive, size, &workspace, &buildpack, limits, &stop, &log);
            }
            match kept_here {
                Some(caches) => caches.take(&app, &buildpack, &workspace.cache()),
                None => fs::create_dir(workspace.cache()),
            }
        });
        laid_out.await.map_err(|source| Failure::Disk { what: "make the buildpack cache", source })
    }

    /// The droplet is held so that it is there to be uploaded.
    async fn store(&self, built: Built) -> Result<(StagedDroplet, Held), Failure> {
        let held = self.means.droplets.adopt(&built.archive).await?;
        let droplet = StagedDroplet {
            sha1: held.sha1().clone(),
            detected_buildpack: built.info.detected_buildpack,
            buildpack_key: built.buildpack_key,
            start_command: built.info.start_command,
            process_types: built.info.effective_procfile,
        };
        Ok((droplet, held))
    }

    async fn upload_droplet(&self, droplet: &StagedDroplet) -> Result<(), Failure> {
        let archive = self.means.droplets.archive(&droplet.sha1);
        let size = fs::metadata(&archive).map_err(|source| Failure::Disk { what: "read the droplet", source })?.len();
        self.say(&format!("-----> Uploading droplet ({})", Size(size)));
        let uploaded = upload(&self.means.transfers, &self.message().upload_uri, &archive, "droplet.tgz");
        let uploaded = uploaded.instrument(info_span!(target: TARGET, "upload droplet"));
        Ok(self.unless_stopped(uploaded).await??)
    }

    async fn keep_cache(&self, workspace: &Arc<Workspace>, buildpack: &Origin) -> Result<(), Failure> {
        let Some(uri) = &self.message().buildpack_cache_upload_uri else {
            let (caches, app, buildpack) = (self.means.buildpack_caches.clone(), self.message().app_id.clone(), buildpack.clone());
            let workspace = Arc::clone(workspace);
            blocking::run(move || caches.keep(&app, &buildpack, &workspace.cache())).await;
            return Ok(());
        };
        let (held, name, stop) = (Arc::clone(workspace), directory_name(buildpack), self.stop.clone());
        let packed = blocking::run(move || {
            let archive = held.cache_archive();
            pack_tree(&name, &held.cache(), &archive, &stop).map(|()| archive)
        });
        match packed.await {
            Ok(archive) => {
                let uploaded = upload(&self.means.transfers, uri, &archive, "buildpack_cache.tgz");
                Ok(self.unless_stopped(uploaded).await??)
            }
            Err(PackError::Cancelled) => Err(Failure::Stopped),
            Err(error) => {
                warn!(%error, "buildpack cache not kept");
                Ok(())
            }
        }
    }
}

/// Takes this buildpack's part of the cache that a Cloud Controller keeps. One that cannot be unpacked is none.
fn unpack_cache(
    archive: &Path,
    size: Bytes,
    workspace: &Workspace,
    buildpack: &Origin,
    limits: TreeLimits,
    stop: &CancellationToken,
    log: &OutputSink,
) -> std::io::Result<()> {
    let fetched = workspace.fetched_caches();
    fs::create_dir(&fetched)?;
    match unpack(archive, &fetched, limits, stop) {
        Ok(_) => log.line(LogStream::Out, &format!("-----> Downloaded app buildpack cache ({})", Size(size.0))),
        Err(error) => {
            warn!(%error, "buildpack cache is of no use");
            return fs::create_dir(workspace.cache());
        }
    }
    match fs::rename(fetched.join(directory_name(buildpack)), workspace.cache()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fs::create_dir(workspace.cache()),
        moved => moved,
    }
}

/// As the protocol's times look, `YYYY-MM-DD HH:MM:SS ±ZZZZ`.
fn local_time(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default();
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z").to_string()
}
