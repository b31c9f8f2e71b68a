//! Starting instances, and waiting until they are healthy or dead.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use dewar_protocol::{CellId, DropletExited, ExitReason, FoundInstance, InstanceId, InstanceState, Limits, Secret, StartMessage, subjects};
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::ClientError;
use crate::health::AppHealthCheck;
use crate::placement::Placement;
use crate::push_event::{PushEvent, Reporter};
use crate::records::AppRecord;
use crate::watch::{InstanceWatch, Sight};

/// How long an instance may take to become healthy: the fetch of the droplet, its compilation, the health check.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// Open files of an instance.
const OPEN_FILES: u32 = 16_384;
/// Says whose instances these are to those who look at heartbeats.
const PARTITION: &str = "default";
/// A CRASHED instance whose exit message has not come this many polls later gets no other.
const POLLS_WITHOUT_EXIT_MAX: u8 = 4;

/// Which instances of a release to start.
pub(crate) struct Launch<'a> {
    /// The app, with the release.
    pub(crate) app: &'a AppRecord,
    /// Which indices.
    pub(crate) indices: Vec<u32>,
    /// Where agents that lack the droplet find it.
    pub(crate) droplet_uri: Secret<String>,
    /// Instances of the same version that are there already; they are not ours to judge.
    pub(crate) older: HashSet<InstanceId>,
}

/// An instance that has been asked for.
struct Pending {
    agent: CellId,
    last_seen: Option<InstanceState>,
    polls_since_crash: u8,
}

impl Client {
    /// Starts instances and returns when all of them are RUNNING, which is after their routes are registered.
    ///
    /// # Errors
    /// When agents have no room for all of them (then none was started), when one crashes, when one takes too long, or on `stop`. Those
    /// that run already go on running: the caller decides.
    pub(crate) async fn launch(&self, launch: &Launch<'_>, report: Reporter<'_>, stop: &CancellationToken) -> Result<(), ClientError> {
        if launch.indices.is_empty() {
            return Ok(());
        }
        let placed = self.place(launch).await?;
        let app = launch.app;
        let version = app.release.version.as_str();
        let watch = InstanceWatch::open(self, &app.id, Some(version)).await?;
        let mut pending = BTreeMap::new();
        for (index, agent) in placed {
            self.bus.publish(&subjects::directed_start(&agent), &start_message(launch, index))?;
            report(PushEvent::Starting { app: app.name.clone(), index, agent: agent.clone() });
            pending.insert(index, Pending { agent, last_seen: None, polls_since_crash: 0 });
        }
        let mut waiting = Waiting { launch, pending, report };
        tokio::select! {
            () = stop.cancelled() => Err(ClientError::Interrupted),
            outcome = waiting.until_running(watch) => outcome,
        }
    }

    async fn place(&self, launch: &Launch<'_>) -> Result<Vec<(u32, CellId)>, ClientError> {
        let app = launch.app;
        let mut placement = Placement::new(&self.agents().await?, &app.id);
        let roomiest = placement.roomiest().unwrap_or_default();
        let randomness =
            |e: rand::rngs::SysError| ClientError::Io { action: "draw randomness".to_owned(), source: std::io::Error::other(e) };
        let mut rng = StdRng::try_from_rng(&mut SysRng).map_err(randomness)?;
        let place = |index: &u32| match placement.pick(limits(app), &mut rng) {
            Some(agent) => Ok((*index, agent)),
            None => Err(ClientError::NoRoom { index: *index, memory: app.memory, disk: app.disk, roomiest }),
        };
        launch.indices.iter().map(place).collect()
    }
}

struct Waiting<'a> {
    launch: &'a Launch<'a>,
    pending: BTreeMap<u32, Pending>,
    report: Reporter<'a>,
}

impl Waiting<'_> {
    async fn until_running(&mut self, mut watch: InstanceWatch) -> Result<(), ClientError> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.pending.is_empty() {
            let sight = tokio::select! {
                sight = watch.next() => sight?,
                () = sleep_until(deadline) => return Err(self.timed_out()),
            };
            match sight {
                Sight::Found(found) => self.found(&found),
                Sight::Exited(exited) => self.exited(exited)?,
                Sight::Tick => self.tick()?,
            }
        }
        Ok(())
    }

    fn found(&mut self, found: &FoundInstance) {
        let Some(pending) = self.pending.get_mut(&found.index) else { return };
        if self.launch.older.contains(&found.instance_id) || pending.agent != found.dea {
            return;
        }
        pending.last_seen = Some(found.state);
        if found.state == InstanceState::Running {
            self.pending.remove(&found.index);
            (self.report)(PushEvent::Running { app: self.launch.app.name.clone(), index: found.index, agent: found.dea.clone() });
        }
    }

    fn exited(&mut self, exited: DropletExited) -> Result<(), ClientError> {
        if exited.reason != ExitReason::Crashed || self.launch.older.contains(&exited.instance_id) {
            return Ok(());
        }
        // An instance that had become healthy and crashed while others were still starting counts as well.
        let first_line = exited.exit_description.lines().next().unwrap_or_default();
        let description = if first_line.is_empty() { "no reason given".to_owned() } else { first_line.to_owned() };
        Err(ClientError::Crashed { index: exited.index, status: exited.exit_status, description })
    }

    fn tick(&mut self) -> Result<(), ClientError> {
        for (index, pending) in &mut self.pending {
            if pending.last_seen == Some(InstanceState::Crashed) {
                pending.polls_since_crash += 1;
            }
            if pending.polls_since_crash > POLLS_WITHOUT_EXIT_MAX {
                let description = "no exit message came".to_owned();
                return Err(ClientError::Crashed { index: *index, status: -1, description });
            }
        }
        Ok(())
    }

    fn timed_out(&self) -> ClientError {
        let (index, pending) = self.pending.first_key_value().map_or((0, None), |(index, pending)| (*index, Some(pending)));
        let last_seen = pending.and_then(|pending| pending.last_seen);
        let last_seen = last_seen.map_or_else(|| "never".to_owned(), |state| state.to_string());
        ClientError::StartTimedOut { index, after: START_TIMEOUT, last_seen }
    }
}

fn limits(app: &AppRecord) -> Limits {
    Limits { mem: app.memory, disk: app.disk, fds: OPEN_FILES }
}

fn start_message(launch: &Launch<'_>, index: u32) -> StartMessage {
    let app = launch.app;
    let health_check = app.health_check.as_ref().map(AppHealthCheck::on_the_wire);
    StartMessage {
        app_id: app.id.clone(),
        index,
        version: app.release.version.clone(),
        name: app.name.to_string(),
        uris: app.uris.clone(),
        sha1: Some(app.release.droplet.clone()),
        droplet_uri: Some(launch.droplet_uri.clone()),
        cc_partition: PARTITION.to_owned(),
        limits: limits(app),
        services: Vec::new(),
        env: app.environment.clone(),
        start_command: app.start_command.clone(),
        health_check_timeout: None,
        health_check_type: health_check.as_ref().map(|(kind, _)| (*kind).to_owned()),
        health_check_http_endpoint: health_check.and_then(|(_, path)| path),
        vcap_application: Some(vcap_application(app)),
        egress_network_rules: Vec::new(),
        stack: None,
    }
}

/// What the Cloud Controller tells an app about itself; the agent adds what is the instance's own.
fn vcap_application(app: &AppRecord) -> serde_json::Map<String, serde_json::Value> {
    let facts = serde_json::json!({
        "application_id": app.id,
        "application_name": app.name,
        "application_uris": app.uris,
        "application_version": app.release.version,
        "limits": limits(app),
        "name": app.name,
        "uris": app.uris,
        "users": null,
        "version": app.release.version,
    });
    match facts {
        serde_json::Value::Object(facts) => facts,
        _ => unreachable!("the macro above makes an object"),
    }
}
