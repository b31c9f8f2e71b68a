//! From a droplet in the store to an instance whose code runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dewar_core::{Exit, SandboxSpec, environment};
use dewar_protocol::{Secret, StartMessage};
use dewar_sandbox::{
    HttpLimits, InstanceSpec, Instances as HttpInstances, InvalidEgressRule, Program, ProgramError, Quota, Sandbox, World,
};
use tokio::time::Instant;
use tracing::{Instrument as _, info_span};

use super::health::forget_state;
use super::{Instances, Live};
use crate::blocking;
use crate::droplet_store::{DropletError, FetchError, InstanceLimits, UnpackedDroplet};
use crate::logs::InstanceLogFiles;
use crate::ports::{PortError, PortUse};
use crate::telemetry::{Outcome, TARGET};

/// Why an instance did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// It has already been asked to end.
    #[error("stopped while starting")]
    Cancelled,
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Unpack(#[from] DropletError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("missing start command")]
    NoCommand,
    #[error("understand the start command: a quote is not closed")]
    BadCommand,
    #[error("understand DEWAR_INSTANCES of the app's environment: it is neither reuse nor fresh")]
    BadInstances,
    #[error(transparent)]
    Egress(#[from] InvalidEgressRule),
    #[error(transparent)]
    Port(#[from] PortError),
    /// The app's own start-up code failed.
    #[error("run the start-up code: {}", .0.description)]
    Guest(dewar_sandbox::Exit),
}

impl StartError {
    /// What the Cloud Controller is told; the whole cause goes to the log and to the developer.
    pub(super) fn into_exit(self) -> Exit {
        match self {
            Self::Guest(exit) => Exit { status: exit.status, description: exit.description },
            Self::NoCommand => Exit { status: -1, description: "missing start command".to_owned() },
            Self::Cancelled
            | Self::Fetch(_)
            | Self::Unpack(_)
            | Self::Program(_)
            | Self::BadCommand
            | Self::BadInstances
            | Self::Egress(_)
            | Self::Port(_) => Exit { status: -1, description: "failed to start".to_owned() },
        }
    }
}

/// An instance whose code runs.
pub(super) struct Launched {
    pub(super) sandbox: Sandbox,
    pub(super) port: u16,
    /// In which file it tells its state, if it does.
    pub(super) state_file: Option<PathBuf>,
}

impl Instances {
    pub(super) async fn launch(&self, spec: &SandboxSpec, live: &Live) -> Result<Launched, StartError> {
        let means = &self.0.means;
        let droplet = self.unpack(spec, live).instrument(info_span!(target: TARGET, "unpack droplet")).await?;
        let dir = means.paths.instance(&spec.instance_id);
        if let (Some(_), Some(file)) = (spec.resumed, droplet.state_file.clone()) {
            let dir = dir.clone();
            blocking::run(move || forget_state(&dir, Path::new(&file))).await;
        }
        let program = live.unless_ended(self.call("load program", means.sandboxes.program(&droplet.wasm))).await??;
        let world = droplet.info.world.unwrap_or_else(|| first_world(&program));
        let arguments = arguments(&spec.start, droplet.info.start_command.as_deref(), world)?;
        let instances = http_instances(means.settings.http.instances, &spec.start.env)?;
        let egress = means.egress.operator.policy(&spec.start.egress_network_rules)?;
        let usage = match world {
            World::Http => PortUse::Serve,
            World::Command => PortUse::Keep,
        };
        let held = live.port().take();
        let (lease, listener) = match held {
            Some(held) => means.ports.lease_again(held, usage)?,
            None => means.ports.lease(usage)?,
        };
        let port = live.port().insert(lease).port();
        let files = InstanceLogFiles { logs: dir.join("logs"), crashed_logs: means.paths.crash(&spec.instance_id).join("logs") };
        let started = means.sandboxes.start(InstanceSpec {
            program,
            world: Some(world),
            arguments,
            environment: self.environment(spec, port),
            app_dir: dir.join("app"),
            tmp_dir: dir.join("tmp"),
            quota: self.quota(spec),
            listener: Some(listener),
            address: SocketAddr::new(means.ip, port),
            app: spec.start.app_id.to_string(),
            egress,
            http: HttpLimits { instances, ..means.settings.http.clone() },
            output: live.last_lines.of(means.logs.instance(&spec.start.app_id, spec.start.index, files)),
        });
        let _permit = live.unless_ended(self.0.starts.acquire()).await?;
        let sandbox = live.unless_ended(self.call("start sandbox", started)).await?.map_err(StartError::Guest)?;
        Ok(Launched { sandbox, port, state_file: droplet.state_file.map(PathBuf::from) })
    }

    /// Has a sandbox do something, and takes note of how long that took.
    async fn call<T, E>(&self, what: &'static str, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let begun = Instant::now();
        let result = call.instrument(info_span!(target: TARGET, "sandbox call", otel.name = what)).await;
        self.0.means.telemetry.sandbox_call(begun.elapsed(), Outcome::of(&result));
        result
    }

    /// What writes into the instance's directory runs to its end even when the instance has been asked to end, so that nobody writes
    /// into a directory that is being deleted.
    async fn unpack(&self, spec: &SandboxSpec, live: &Live) -> Result<UnpackedDroplet, StartError> {
        let droplets = &self.0.means.droplets;
        let dir = self.0.means.paths.instance(&spec.instance_id);
        if spec.resumed.is_some() {
            if let Some(droplet) = droplets.reopen(&spec.sha1, &dir).await {
                return Ok(droplet);
            }
            // Without a permit, for it may take long.
            live.unless_ended(droplets.fetch(&spec.sha1, spec.start.droplet_uri.as_ref())).await??;
        }
        let _permit = live.unless_ended(self.0.starts.acquire()).await?;
        let Quota { disk, inodes, .. } = self.quota(spec);
        let limits = InstanceLimits { disk, inodes };
        let droplet = match spec.resumed {
            Some(_) => droplets.unpack_again(&spec.sha1, &dir, limits).await?,
            None => droplets.unpack(&spec.sha1, &dir, limits).await?,
        };
        if live.is_ended() { Err(StartError::Cancelled) } else { Ok(droplet) }
    }

    fn quota(&self, spec: &SandboxSpec) -> Quota {
        let limits = spec.start.limits;
        let settings = &self.0.means.settings;
        let (memory, disk) = (limits.mem.to_bytes(), limits.disk.to_bytes());
        Quota { memory, disk, inodes: settings.inodes, open_files: limits.fds, cpu: settings.cpu.quota(memory) }
    }

    fn environment(&self, spec: &SandboxSpec, port: u16) -> Vec<(String, String)> {
        environment::running(
            &spec.start,
            &environment::InstanceFacts {
                instance_id: &spec.instance_id,
                port: Some(port),
                ip: &self.0.means.ip.to_string(),
                started_at: spec.started_at,
                started_at_text: &spec.started_at.to_utc_text(),
            },
        )
    }
}

/// The operator's choice, unless the app's environment asks for the other; of several variables of that name the last counts.
fn http_instances(configured: HttpInstances, environment: &[Secret<String>]) -> Result<HttpInstances, StartError> {
    match environment.iter().rev().find_map(|variable| variable.expose().strip_prefix("DEWAR_INSTANCES=")) {
        None => Ok(configured),
        Some("fresh") => Ok(HttpInstances::Fresh),
        Some("reuse") => Ok(HttpInstances::Reuse),
        Some(_) => Err(StartError::BadInstances),
    }
}

/// The start message's command, or the droplet's. An http app needs none: it is then told its name.
fn arguments(start: &StartMessage, staged: Option<&str>, world: World) -> Result<Vec<String>, StartError> {
    let given = [start.start_command.as_deref(), staged];
    let command = given.into_iter().flatten().map(str::trim).find(|command| !command.is_empty());
    match (command, world) {
        (Some(command), _) => shlex::split(command).filter(|words| !words.is_empty()).ok_or(StartError::BadCommand),
        (None, World::Http) => Ok(vec![start.name.clone()]),
        (None, World::Command) => Err(StartError::NoCommand),
    }
}

fn first_world(program: &Program) -> World {
    // A program has at least one world; what could not be called would fail to start in any case.
    program.worlds().first().copied().unwrap_or(World::Http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_chooses_its_kind_of_instances_or_has_the_operators() {
        let chosen = |variables: &[&str], configured| {
            let variables: Vec<_> = variables.iter().map(|variable| Secret((*variable).to_owned())).collect();
            http_instances(configured, &variables).map_err(|error| error.to_string())
        };
        let (fresh, reuse) = (HttpInstances::Fresh, HttpInstances::Reuse);
        assert_eq!(chosen(&["A=DEWAR_INSTANCES=fresh"], reuse), Ok(reuse));
        assert_eq!(chosen(&[], fresh), Ok(fresh));
        assert_eq!(chosen(&["DEWAR_INSTANCES=fresh"], reuse), Ok(fresh));
        assert_eq!(chosen(&["DEWAR_INSTANCES=fresh", "A=1", "DEWAR_INSTANCES=reuse"], fresh), Ok(reuse));
        let error = chosen(&["DEWAR_INSTANCES=Fresh "], reuse).unwrap_err();
        assert!(error.contains("DEWAR_INSTANCES"), "{error}");
    }

    #[test]
    fn the_messages_command_comes_before_the_droplets_and_an_http_app_needs_none() {
        let given = |asked: Option<&str>, staged, world| {
            let start: StartMessage = serde_json::from_value(serde_json::json!({
                "droplet": "shop", "index": 0, "version": "v1", "name": "shop", "cc_partition": "default", "services": [],
                "limits": { "mem": 1, "disk": 1, "fds": 1 }, "start_command": asked,
            }))
            .unwrap();
            arguments(&start, staged, world).map(|words| words.join(" ")).map_err(|error| error.to_string())
        };
        let is = |words: &str| Ok(words.to_owned());
        assert_eq!(given(Some("run 'it all'"), Some("of the droplet"), World::Command), is("run it all"));
        assert_eq!(given(Some("run"), None, World::Command), is("run"));
        for nothing in [None, Some(""), Some("  ")] {
            assert_eq!(given(nothing, Some("of the droplet"), World::Command), is("of the droplet"));
            assert_eq!(given(nothing, None, World::Command), Err("missing start command".to_owned()));
            assert_eq!(given(nothing, None, World::Http), is("shop"));
        }
    }
}
