//! One staging over the bus, as the Cloud Controller has it done.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dewar_bus::{Reply, Subscription};
use dewar_protocol::{
    AppId, CellId, DropletSha1, LogSource, Secret, StagingFailure, StagingMessage, StagingMeta, StagingProperties, StagingReply,
    StagingStop, TaskId, subjects,
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::app_logs::LogFollower;
use crate::app_name::AppName;
use crate::client::{Client, FLUSH_TIMEOUT, decode};
use crate::error::ClientError;
use crate::identifiers::random_hex;
use crate::package::Package;
use crate::placement::pick_stager;
use crate::push_event::{PushEvent, Reporter};
use crate::records::LockedApp;
use crate::transfer::{Intake, TransferServer, Uses};

/// The first reply comes when package and buildpacks are there.
const SETUP_TIMEOUT: Duration = Duration::from_secs(300);
/// The second when the droplet is uploaded. Agents allow buildpacks 900 s, and as much again for uploads.
const STAGING_TIMEOUT: Duration = Duration::from_secs(1800);
/// After the second reply, lines that are still on their way are waited for until this much silence.
const LAST_LINES_SILENCE: Duration = Duration::from_millis(50);
/// And this long at most.
const LAST_LINES_MAX: Duration = Duration::from_millis(500);
/// Largest droplet, and largest buildpack cache, that is taken in.
const UPLOAD_BYTES_MAX: u64 = 1 << 30;

/// What to stage.
pub(crate) struct StagingRequest<'a> {
    pub(crate) app: &'a LockedApp,
    pub(crate) app_id: &'a AppId,
    pub(crate) package: &'a Package,
    pub(crate) environment: &'a [Secret<String>],
    /// Name or URL.
    pub(crate) buildpack: Option<String>,
    /// A buildpack on this disk, to be served to the stager; wins over `buildpack`.
    pub(crate) local_buildpack: Option<PathBuf>,
    pub(crate) start_command: Option<&'a str>,
}

/// What came of it. The droplet is on this disk, where the app's record will look for it.
pub(crate) struct StagedDroplet {
    pub(crate) sha1: DropletSha1,
    pub(crate) bytes: u64,
    pub(crate) detected_buildpack: Option<String>,
    pub(crate) start_command: Option<String>,
}

/// A staging that has been asked for.
struct Conversation<'a> {
    app: &'a AppName,
    agent: CellId,
    replies: Subscription,
    logs: &'a mut LogFollower,
    report: Reporter<'a>,
}

impl Client {
    /// Has a package staged and takes the droplet in.
    ///
    /// # Errors
    /// When nobody stages, the stager fails or falls silent, or what it uploads is not what it says; on `stop`, after the stager was told.
    pub(crate) async fn stage(
        &self,
        request: &StagingRequest<'_>,
        server: &TransferServer,
        logs: &mut LogFollower,
        report: Reporter<'_>,
        stop: &CancellationToken,
    ) -> Result<StagedDroplet, ClientError> {
        let stop_earlier = StagingStop { app_id: request.app_id.clone() };
        // As the Cloud Controller does: what an earlier, killed command has left staging is of no use any more. Before stagers are
        // asked, because an agent that has answered them has surely taken this in, and it must not hit what is to come.
        self.bus.publish(subjects::STAGING_STOP, &stop_earlier)?;
        let stagers = self.stagers().await?;
        let agent = pick_stager(&stagers).expect("there is at least one").id.clone();
        let task = TaskId(random_hex().map_err(|source| ClientError::Io { action: "draw randomness".to_owned(), source })?);
        let (message, droplet, cache) = offer(request, server, &task);
        let inbox = self.bus.new_inbox();
        let replies = self.bus.subscribe(&inbox).await?;
        self.bus.flush(FLUSH_TIMEOUT).await?;
        self.bus.publish_reply(&subjects::directed_staging(&agent), &inbox, &message)?;
        report(PushEvent::Staging { app: request.app.name().clone(), agent: agent.clone() });
        let mut conversation = Conversation { app: request.app.name(), agent, replies, logs, report };
        let reply = tokio::select! {
            () = stop.cancelled() => {
                self.bus.publish(subjects::STAGING_STOP, &stop_earlier)?;
                self.flush().await?;
                return Err(ClientError::Interrupted);
            }
            reply = conversation.both_replies() => reply?,
        };
        conversation.last_lines().await;
        take_in(request.app, reply, &droplet, &cache)
    }
}

/// Puts the package, and where the results go, on the server.
fn offer(request: &StagingRequest<'_>, server: &TransferServer, task: &TaskId) -> (StagingMessage, Arc<Intake>, Arc<Intake>) {
    let app = request.app;
    let droplets = app.droplets_dir();
    let (upload_uri, droplet) = server.take_in(&format!("droplet/{task}"), &droplets, UPLOAD_BYTES_MAX);
    let (cache_upload_uri, cache) = server.take_in(&format!("cache/{task}"), &droplets, UPLOAD_BYTES_MAX);
    let cache_path = app.cache_path();
    let cache_download_uri = cache_path.is_file().then(|| server.offer("cache", &cache_path, Uses::Many));
    let local = request.local_buildpack.as_ref().map(|path| {
        let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        server.offer(&format!("buildpack.{ending}"), path, Uses::Many).expose().clone()
    });
    let message = StagingMessage {
        app_id: request.app_id.clone(),
        task_id: task.clone(),
        properties: StagingProperties {
            services: Vec::new(),
            environment: request.environment.to_vec(),
            meta: StagingMeta { command: request.start_command.map(str::to_owned) },
            buildpack: local.or_else(|| request.buildpack.clone()),
            buildpack_git_url: None,
            buildpack_key: None,
        },
        download_uri: server.offer(&format!("package/{task}"), request.package.path(), Uses::Once),
        upload_uri,
        buildpack_cache_download_uri: cache_download_uri,
        buildpack_cache_upload_uri: Some(cache_upload_uri),
        admin_buildpacks: Vec::new(),
        start_message: None,
        stack: None,
        egress_network_rules: Vec::new(),
        memory_limit: None,
        disk_limit: None,
    };
    (message, droplet, cache)
}

impl Conversation<'_> {
    /// Setup's, then the end's, while the log goes by.
    async fn both_replies(&mut self) -> Result<StagingReply, ClientError> {
        self.reply("set staging up", SETUP_TIMEOUT).await?;
        self.reply("finish staging", STAGING_TIMEOUT).await
    }

    async fn reply(&mut self, step: &'static str, after: Duration) -> Result<StagingReply, ClientError> {
        let deadline = Instant::now() + after;
        loop {
            tokio::select! {
                reply = self.replies.next_reply() => match reply {
                    Some(Reply::Message(message)) => {
                        if let Some(reply) = decode::<StagingReply>(&message.payload) {
                            return refuse_failure(reply);
                        }
                    }
                    Some(Reply::NoResponders) | None => return Err(self.silent("answer", Duration::ZERO)),
                },
                line = self.logs.next() => match line {
                    Some(line) => self.report_staging_line(line),
                    None => return Err(self.silent(step, after)),
                },
                () = sleep_until(deadline) => return Err(self.silent(step, after)),
            }
        }
    }

    async fn last_lines(&mut self) {
        let lines = async {
            while let Ok(Some(line)) = timeout(LAST_LINES_SILENCE, self.logs.next()).await {
                self.report_staging_line(line);
            }
        };
        // An app that writes all the time would keep us here.
        let _ = timeout(LAST_LINES_MAX, lines).await;
    }

    /// What an older version of the app writes meanwhile is not told here.
    fn report_staging_line(&mut self, line: dewar_protocol::LogLine) {
        if line.source == LogSource::Stg {
            (self.report)(PushEvent::Log { app: self.app.clone(), line });
        }
    }

    fn silent(&self, step: &'static str, after: Duration) -> ClientError {
        ClientError::StagerSilent { agent: self.agent.clone(), step, after }
    }
}

fn refuse_failure(reply: StagingReply) -> Result<StagingReply, ClientError> {
    let Some(error) = reply.error else { return Ok(reply) };
    let undetected = reply.error_info.as_ref().is_some_and(|info| info.kind == StagingFailure::NoAppDetectedError);
    let message = reply.error_info.map_or(error, |info| info.message);
    Err(ClientError::StagingFailed { message, undetected })
}

fn take_in(app: &LockedApp, reply: StagingReply, droplet: &Intake, cache: &Intake) -> Result<StagedDroplet, ClientError> {
    let promised = reply.droplet_sha1.ok_or_else(|| ClientError::WrongDroplet("the agent named none".to_owned()))?;
    let received = droplet.take().ok_or_else(|| ClientError::WrongDroplet("nothing was uploaded".to_owned()))?;
    if received.sha1 != promised {
        return Err(ClientError::WrongDroplet(format!("{} instead of {promised}", received.sha1)));
    }
    let keep_error = |source| ClientError::Io { action: format!("keep the droplet of `{}`", app.name()), source };
    let bytes = received.bytes;
    received.keep(&app.droplet_path(&promised)).map_err(keep_error)?;
    if let Some(cache) = cache.take() {
        cache.keep(&app.cache_path()).map_err(keep_error)?;
    }
    Ok(StagedDroplet { sha1: promised, bytes, detected_buildpack: reply.detected_buildpack, start_command: reply.detected_start_command })
}
