//! Running buildpacks: detect, compile, release, and a check of what came of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::{Bytes, LogStream};
use dewar_sandbox::{
    Buildpack, BuildpackError, BuildpackLimits, BuildpackRun, EgressPolicy, OutputSink, ProgramError, Release, Sandboxes, World,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::buildpacks::{Candidate, Origin, Selection};
use super::droplet::pack_droplet;
use super::failure::{Failure, cut};
use super::info::{MAX_BYTES, StagingInfo, read_procfile};
use super::loaded::LoadedBuildpacks;
use super::workspace::Workspace;
use crate::blocking;

/// For one buildpack to say whether an app is for it.
const DETECT_LIMIT: Duration = Duration::from_secs(60);

/// A disk with less room than this is full.
const FULL_BYTES: u64 = 64 << 10;

/// Runs the buildpacks of one staging.
pub(super) struct Build<'a> {
    pub(super) sandboxes: &'a Sandboxes,
    pub(super) loaded: &'a LoadedBuildpacks,
    pub(super) workspace: Arc<Workspace>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) egress: EgressPolicy,
    pub(super) memory: Bytes,
    /// For cache and droplet.
    pub(super) disk: Bytes,
    /// For cache and droplet.
    pub(super) inodes: u64,
    pub(super) deadline: Instant,
    pub(super) log: &'a OutputSink,
    pub(super) stop: &'a CancellationToken,
}

/// The buildpack that makes the droplet.
pub(super) struct Chosen {
    buildpack: Buildpack,
    pub(super) origin: Origin,
    /// What it said when it was asked; `None` when it was not.
    detected: Option<String>,
}

/// A droplet, packed.
pub(super) struct Built {
    pub(super) archive: PathBuf,
    pub(super) info: StagingInfo,
    pub(super) buildpack_key: Option<String>,
}

impl Build<'_> {
    /// The buildpack that was given, or the first that detects the app.
    pub(super) async fn choose(&self, selection: &Selection) -> Result<Chosen, Failure> {
        let candidates = match selection {
            Selection::Given(candidate) => {
                let name = candidate.origin.name();
                let buildpack = self.load(candidate).await?.map_err(|source| Failure::Buildpack { name: name.to_owned(), source })?;
                self.log.line(LogStream::Out, &format!("-----> Using buildpack {name}"));
                return Ok(Chosen { buildpack, origin: candidate.origin.clone(), detected: None });
            }
            Selection::Detect(candidates) => candidates,
        };
        for candidate in candidates {
            let detected = match self.load(candidate).await? {
                Ok(buildpack) => self.detect(&buildpack).await?.map(|detected| (buildpack, detected)),
                Err(error) => {
                    self.cannot_detect(&error.to_string());
                    None
                }
            };
            if let Some((buildpack, detected)) = detected {
                info!(buildpack = candidate.origin.name(), detected, "app detected");
                self.log.line(LogStream::Out, &format!("-----> Detected {detected} (buildpack {})", candidate.origin.name()));
                return Ok(Chosen { buildpack, origin: candidate.origin.clone(), detected: Some(detected) });
            }
        }
        Err(Failure::NoAppDetected)
    }

    /// Makes the droplet.
    pub(super) async fn run(&self, chosen: &Chosen, command: Option<&str>) -> Result<Built, Failure> {
        let mut step = self.step(self.remaining()?);
        step.cache_dir = Some(self.workspace.cache());
        step.droplet_dir = Some(self.workspace.droplet());
        chosen.buildpack.compile(step).await.map_err(|error| self.of_compile(error))?;
        let mut step = self.step(self.remaining()?);
        step.droplet_dir = Some(self.workspace.droplet());
        let release = chosen.buildpack.release(step).await.map_err(Failure::of_release)?;
        let world = release.world;
        let packed = async {
            let info = self.info(chosen, release, command).await?;
            let key = if let Origin::Admin(key) = &chosen.origin { Some(key.clone()) } else { None };
            self.pack(info, key).await
        };
        // What is wrong with the component is told before what is wrong with the rest.
        let (checked, packed) = futures::future::join(self.check_component(world), packed).await;
        checked.and(packed)
    }

    /// A guest is not told why it cannot write. Where our own disk is full, it is not the buildpack that failed.
    fn of_compile(&self, error: BuildpackError) -> Failure {
        match rustix::fs::statvfs(self.workspace.droplet()) {
            Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < FULL_BYTES && !matches!(error, BuildpackError::Cancelled) => {
                Failure::Disk { what: "run the buildpack", source: rustix::io::Errno::NOSPC.into() }
            }
            _ => Failure::of_compile(error),
        }
    }

    async fn load(&self, candidate: &Candidate) -> Result<Result<Buildpack, ProgramError>, Failure> {
        if let Some(loaded) = self.loaded.get(&candidate.digest) {
            return Ok(Ok(loaded));
        }
        let held = candidate.clone();
        let wasm = blocking::run(move || held.wasm()).await.map_err(|source| Failure::Disk { what: "read a buildpack", source })?;
        let loaded = self.stop.run_until_cancelled(self.sandboxes.buildpack(&wasm)).await;
        Ok(loaded.ok_or(Failure::Stopped)?.inspect(|buildpack| self.loaded.keep(buildpack)))
    }

    /// What the buildpack calls the app. One that fails is not for it; the developer learns why.
    async fn detect(&self, buildpack: &Buildpack) -> Result<Option<String>, Failure> {
        match buildpack.detect(self.step(self.remaining()?.min(DETECT_LIMIT))).await {
            Ok(detected) => Ok(detected.map(|name| cut(name.trim()))),
            Err(BuildpackError::Cancelled) => Err(Failure::Stopped),
            Err(BuildpackError::Setup(cause)) => Err(Failure::Agent(format!("set up the buildpack: {cause}"))),
            Err(error) => {
                self.cannot_detect(&error.to_string());
                Ok(None)
            }
        }
    }

    fn cannot_detect(&self, error: &str) {
        self.log.line(LogStream::Err, &format!("Failed to run buildpack detection script with error: {error}"));
    }

    fn remaining(&self) -> Result<Duration, Failure> {
        self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or(Failure::TimedOut)
    }

    fn step(&self, wall: Duration) -> BuildpackRun {
        BuildpackRun {
            app_dir: self.workspace.app(),
            cache_dir: None,
            droplet_dir: None,
            environment: self.environment.clone(),
            limits: BuildpackLimits { memory: self.memory, disk: self.disk, inodes: self.inodes, wall },
            egress: self.egress.clone(),
            output: Arc::clone(self.log),
            stop: self.stop.clone(),
        }
    }

    /// Compiles the droplet's component ahead of its first start, which also tells the developer now what would go wrong then.
    async fn check_component(&self, wanted: Option<World>) -> Result<(), Failure> {
        let path = self.workspace.droplet().join("droplet.wasm");
        // A buildpack may have made it a link to anywhere.
        if !path.symlink_metadata().is_ok_and(|file| file.is_file()) {
            return Err(Failure::NoComponent);
        }
        let program = self.stop.run_until_cancelled(self.sandboxes.program(&path)).await.ok_or(Failure::Stopped)??;
        match wanted {
            Some(World::Http) if !program.worlds().contains(&World::Http) => Err(Failure::WrongWorld { wanted: "http" }),
            Some(World::Command) if !program.worlds().contains(&World::Command) => Err(Failure::WrongWorld { wanted: "command" }),
            _ => Ok(()),
        }
    }

    async fn info(&self, chosen: &Chosen, release: Release, command: Option<&str>) -> Result<StagingInfo, Failure> {
        let workspace = Arc::clone(&self.workspace);
        let procfile = blocking::run(move || match read_procfile(&workspace.droplet().join("app")) {
            Ok(None) => read_procfile(&workspace.app()),
            of_droplet => of_droplet,
        });
        let procfile: Option<BTreeMap<String, String>> = procfile.await?;
        let web = |types: &BTreeMap<String, String>| types.get("web").cloned();
        let start_command = command.map(str::to_owned);
        let start_command = start_command.or_else(|| procfile.as_ref().and_then(web)).or_else(|| web(&release.process_types));
        Ok(StagingInfo {
            buildpack_path: Some(chosen.origin.name().to_owned()),
            detected_buildpack: chosen.detected.clone(),
            start_command,
            effective_procfile: procfile.unwrap_or(release.process_types),
            world: release.world,
        })
    }

    async fn pack(&self, info: StagingInfo, buildpack_key: Option<String>) -> Result<Built, Failure> {
        let (workspace, stop) = (Arc::clone(&self.workspace), self.stop.clone());
        blocking::run(move || {
            let yaml = info.to_yaml().map_err(|error| Failure::Agent(format!("write staging_info.yml: {error}")))?;
            if yaml.len() as u64 > MAX_BYTES {
                return Err(Failure::LongInfo(yaml.len()));
            }
            let archive = workspace.droplet_archive();
            pack_droplet(&workspace.droplet(), yaml.as_bytes(), &archive, &stop)?;
            Ok(Built { archive, info, buildpack_key })
        })
        .await
    }
}
