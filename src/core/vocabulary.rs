//! What can happen to a cell, and what it can ask for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::{
    Advertise, AppId, Bytes, ComponentAnnounce, DropletExited, DropletSha1, ErrorInfo, FilesOf, FindDroplet, FoundInstance, Heartbeat,
    Hello, InstanceId, InstanceState, Limits, LogStream, Mib, RouteRegistration, RouterStart, Secret, SetupReply, Shutdown,
    StagingAdvertise, StagingMessage, StagingReply, StagingStop, StartMessage, Status, Stop, Update,
};

use crate::{Capacity, DiskUse, SnapshotImage, Wall};

/// Names an instance for as long as it is registered. Unlike the instance id on the wire it never changes and is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey(pub u64);

/// Names a staging task; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey(pub u64);

/// Where an answer goes. Only the edge, which made it, can read it; an edge of a later process, too, for it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReplyTo(pub Arc<str>);

/// Everything that can happen to a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Somebody asks for something; without a [`ReplyTo`] no answer is wanted.
    Request(Request, Option<ReplyTo>),
    /// A sandbox reports.
    Sandbox(InstanceKey, SandboxEvent),
    /// A staging task reports.
    Staging(TaskKey, StagingEvent),
    /// A droplet has come or not.
    Droplet(DropletSha1, DropletEvent),
    /// The connection to the bus changed.
    Bus(BusEvent),
    /// The operator wants something.
    Signal(Signal),
    /// What running sandboxes use, all measured at this moment.
    Usage(Vec<(InstanceKey, Sample)>),
    /// How full the disk is that crashes are kept on; measured every ten seconds, and after each [`Effect::MakeRoom`].
    CrashDisk(DiskUse),
    /// Names of directories that instances have, or had; the edge has seen each of them in two passes in a row.
    Strays(Vec<InstanceId>),
    /// The droplets on disk, the least recently used first.
    Droplets(Vec<KeptDroplet>),
    /// What [`Effect::SaveSnapshot`] wanted is on disk, or it could not be written.
    SnapshotSaved {
        /// Whether it is.
        ok: bool,
    },
    /// The moment that `Cell::next_wake` named has come.
    Wake,
}

/// What the bus, or an HTTP client, can ask of a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// `dea.<id>.start`. No answer.
    StartInstance(Box<StartMessage>),
    /// `POST /v1/apps`. [`Answer::Accepted`] or [`Answer::Unavailable`].
    StartInstanceByHttp(Box<StartMessage>),
    /// `dea.stop`. No answer.
    StopInstances(Stop),
    /// `dea.update`. No answer.
    UpdateApp(Update),
    /// `dea.find.droplet`. One [`Answer::Found`] per match.
    FindInstances(FindDroplet),
    /// `dea.locate`. Publishes an advertisement.
    Locate,
    /// `staging.locate`. Publishes a staging advertisement.
    LocateStager,
    /// `staging.<id>.start` or `staging`. [`Answer::Setup`], then [`Answer::Staged`].
    Stage(Box<StagingMessage>),
    /// `POST /v1/stage`. [`Answer::Accepted`], and in the end one [`Effect::ReportStaging`]; or [`Answer::Unavailable`].
    StageByHttp(Box<StagingMessage>),
    /// `staging.stop`. No answer.
    StopStaging(StagingStop),
    /// `healthmanager.start`. Publishes a heartbeat.
    ReportHeartbeat,
    /// `router.start`, or the reply to a greeting. Publishes all routes.
    RegisterRoutes(RouterStart),
    /// `dea.status`. [`Answer::Status`].
    ReportStatus,
    /// `vcap.component.discover`. [`Answer::Component`].
    DiscoverComponent,
    /// Somebody shows a file URL. [`Answer::Files`].
    LocateFiles(FilesOf),
    /// `GET /varz`. [`Answer::Varz`].
    ReportVarz,
}

/// What a sandbox reports. `Launched` and `Ready` come at most once each and in this order, `Exited` exactly once and last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// The app's code runs and has this port for itself (`None`: it was given none). The health check's time starts now.
    Launched {
        /// The instance's port.
        port: Option<u16>,
        /// Whether its droplet names a file in which it tells its state.
        state_file: bool,
    },
    /// The health check passed. Not waited for where there is nothing to check, see [`HealthCheck`](crate::HealthCheck).
    Ready,
    /// The last lines of its log. Comes at most once, right before `Exited`.
    Wrote(Vec<String>),
    /// The instance is no more, or never came to be.
    Exited(Exit),
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status of the app; −1 when there is none.
    pub status: i32,
    /// For the developer of the app, and sent to the health manager as it is; one line, maybe followed by a backtrace. Causes that
    /// are the agent's own (files, ports) are for its log, and are called `failed to start` here.
    pub description: String,
}

/// What a staging task reports.
#[derive(Debug, Clone, PartialEq)]
pub enum StagingEvent {
    /// Package and buildpacks are there; the buildpacks run from now on.
    SetUp,
    /// Setup failed; the task has ended.
    SetupFailed(String),
    /// The droplet is stored here, and is about to be uploaded.
    Stored(DropletSha1),
    /// The task has ended, the droplet being stored here and uploaded, or not.
    Finished(Result<Box<StagedDroplet>, StagingError>),
    /// [`Effect::ReportStaging`] is done with: the Cloud Controller knows, or does not listen.
    Reported,
}

/// A droplet fresh from staging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedDroplet {
    /// Digest of the archive.
    pub sha1: DropletSha1,
    /// What the detect step said; `None` when the buildpack was given.
    pub detected_buildpack: Option<String>,
    /// Key of the operator's buildpack that was used.
    pub buildpack_key: Option<String>,
    /// Start command.
    pub start_command: Option<String>,
    /// Process types in effect.
    pub process_types: BTreeMap<String, String>,
}

/// Why staging failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagingError {
    /// The reply's `error`.
    pub message: String,
    /// The reply's `error_info`, where the cause has a name.
    pub info: Option<ErrorInfo>,
}

/// Whether a droplet has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DropletEvent {
    /// It is in the droplet registry, its digest verified.
    Ready,
    /// It is not, for this reason (for the log; instances say "failed to start").
    Failed(String),
}

/// The connection to the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusEvent {
    /// Connected and subscribed, for the first time or again.
    Up,
    /// Lost; the edge reconnects by itself.
    Down,
    /// The server that is about to be [`BusEvent::Up`] takes messages of so many bytes at most.
    Limit(usize),
}

/// A droplet on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDroplet {
    /// Which.
    pub sha1: DropletSha1,
    /// What it takes of the disk, unpacked files included.
    pub size: Bytes,
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Stop everything and exit.
    Shutdown,
    /// Take the agent out of placement: it is not advertised any more. It goes on with what it has.
    Drain,
    /// Have all instances replaced elsewhere, then shut down.
    Evacuate,
}

/// What one sandbox has used up to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// CPU time since its start.
    pub cpu: Duration,
    /// Memory now.
    pub memory: Bytes,
    /// Disk now.
    pub disk: Bytes,
}

/// Everything a cell can ask for.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a message on the bus.
    Publish(Publication),
    /// Answer a request.
    Reply(ReplyTo, Answer),
    /// Get this droplet into the droplet registry, unless it is there and its digest is right.
    FetchDroplet {
        /// Which.
        sha1: DropletSha1,
        /// From where; `None`: it can only be there already.
        uri: Option<Secret<String>>,
    },
    /// Make a sandbox and run an instance in it.
    StartSandbox(Box<SandboxSpec>),
    /// Ask the instance to end, kill it when it has not after the grace time. May come again, and again.
    StopSandbox(InstanceKey),
    /// End the instance now, even if its sandbox is still being made. May come again, and again.
    KillSandbox(InstanceKey),
    /// Delete what an instance left, by its id at its start. Its sandbox has ended, or there never was one nor any files.
    DeleteInstanceFiles(InstanceId),
    /// As [`Effect::DeleteInstanceFiles`]; once they are gone the disk is to be measured again.
    MakeRoom(InstanceId),
    /// Remove a droplet that nobody uses. A [`Effect::FetchDroplet`] that comes after this finds it there or gets it anew, and so
    /// does a staging that still needs it.
    EvictDroplet(DropletSha1),
    /// Run buildpacks over a package.
    StartStaging(Box<StagingSpec>),
    /// End a staging task now; its final event is ignored.
    CancelStaging(TaskKey),
    /// Tell the Cloud Controller over HTTP how a staging has ended, then report [`StagingEvent::Reported`].
    ReportStaging {
        /// Whose event to report. It may be no task's any more, or never have been one's.
        task: TaskKey,
        /// What to tell.
        reply: Box<StagingReply>,
    },
    /// Replace the saved snapshot by this one, whole or not at all. Ends in one [`Input::SnapshotSaved`]; the next comes only after
    /// that, but for the last one, which comes right before [`Effect::Exit`].
    SaveSnapshot(Box<SnapshotImage>),
    /// For the log: an instance changed its state.
    Transitioned {
        /// Which.
        instance: InstanceKey,
        /// Its application.
        app_id: AppId,
        /// Its id on the wire.
        instance_id: InstanceId,
        /// Its index.
        index: u32,
        /// From.
        from: InstanceState,
        /// To.
        to: InstanceState,
        /// Cause, where there is one to tell.
        why: Option<String>,
    },
    /// A line for the app's developer, from the agent.
    AppLog {
        /// Application.
        app_id: AppId,
        /// Instance index; `None` for staging.
        index: Option<u32>,
        /// Which stream.
        stream: LogStream,
        /// The line.
        text: String,
    },
    /// A request could not be honoured and gets no answer; for the log, once.
    Refused {
        /// What was wanted, as the subject says it.
        request: &'static str,
        /// Why not.
        why: String,
    },
    /// Take no more requests from the bus.
    Unsubscribe,
    /// Flush the bus and end the process.
    Exit(u8),
}

/// A message for the bus. Its subject follows from its kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Publication {
    /// `dea.start`.
    Hello(Hello),
    /// `dea.advertise`.
    Advertise(Advertise),
    /// `staging.advertise`.
    StagingAdvertise(StagingAdvertise),
    /// `dea.heartbeat`.
    Heartbeat(Heartbeat),
    /// `droplet.exited`.
    DropletExited(DropletExited),
    /// `router.greet`; each reply comes back as [`Request::RegisterRoutes`].
    RouterGreet,
    /// `router.register`.
    RouterRegister(RouteRegistration),
    /// `router.unregister`.
    RouterUnregister(RouteRegistration),
    /// `dea.shutdown`.
    Shutdown(Shutdown),
    /// `vcap.component.announce`.
    ComponentAnnounce(ComponentAnnounce),
}

/// An answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To `dea.find.droplet`.
    Found(Box<FoundInstance>),
    /// To `dea.status`.
    Status(Status),
    /// First to a staging request.
    Setup(SetupReply),
    /// Second to a staging request.
    Staged(Box<StagingReply>),
    /// To a request over HTTP that is taken; no more than that.
    Accepted,
    /// To a request over HTTP that is not taken, and why.
    Unavailable(&'static str),
    /// To `vcap.component.discover`.
    Component(ComponentAnnounce),
    /// To whoever wants to serve files.
    Files(FilesAt),
    /// To `GET /varz`.
    Varz(Box<Varz>),
}

/// Where files are, if anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesAt {
    /// Nobody of that name is registered.
    Unknown,
    /// It has none to show now.
    Unavailable,
    /// With a running instance, by its id at its start.
    Instance(InstanceId),
    /// With what is kept of a crash, likewise.
    Crash(InstanceId),
    /// With a staging task.
    StagingTask(TaskKey),
}

/// What a sandbox needs to know to be made. The edge adds what only it knows: paths, the port, local time.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxSpec {
    /// Whose events to report.
    pub key: InstanceKey,
    /// The instance's id at its start.
    pub instance_id: InstanceId,
    /// The droplet, present in the registry.
    pub sha1: DropletSha1,
    /// The start message.
    pub start: Arc<StartMessage>,
    /// When the instance entered STARTING.
    pub started_at: Wall,
    /// It has run in an earlier process, and its files are as it left them there, if they are there.
    pub resumed: Option<Resumed>,
}

/// What an instance shall have again that has run in an earlier process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// Its port, to which routes lead; another one if somebody else has this one now.
    pub port: Option<u16>,
}

/// What a staging task needs to know.
#[derive(Clone, PartialEq)]
pub struct StagingSpec {
    /// Whose events to report.
    pub key: TaskKey,
    /// The staging message.
    pub message: Arc<StagingMessage>,
    /// Memory it may use, as admitted.
    pub memory: Mib,
    /// Disk it may use, as admitted.
    pub disk: Mib,
}

impl fmt::Debug for StagingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagingSpec").field("key", &self.key).field("app_id", &self.message.app_id).finish_non_exhaustive()
    }
}

/// The part of `/varz` that only the cell knows. Never environment or credentials.
#[derive(Debug, Clone, PartialEq)]
pub struct Varz {
    /// Names of the stacks.
    pub stacks: Vec<String>,
    /// How many default-sized staging tasks would fit.
    pub reservable_stagers: u64,
    /// 1 − reserved ÷ capacity.
    pub available_memory_ratio: f64,
    /// 1 − reserved ÷ capacity.
    pub available_disk_ratio: f64,
    /// What can be promised, overcommitment included.
    pub capacity: Capacity,
    /// What of it is left; negative where too much is promised.
    pub remaining: Capacity,
    /// Every registered instance.
    pub instances: Vec<VarzInstance>,
    /// Registered staging tasks.
    pub staging_tasks: usize,
}

/// One instance in `/varz`.
#[derive(Debug, Clone, PartialEq)]
pub struct VarzInstance {
    /// What the cell calls it.
    pub key: InstanceKey,
    /// Application.
    pub app_id: AppId,
    /// Application name.
    pub app_name: String,
    /// Application version.
    pub version: String,
    /// Instance id.
    pub instance_id: InstanceId,
    /// Instance index.
    pub index: u32,
    /// What it may use.
    pub limits: Limits,
    /// What its sandbox is called; `None` where it has none, not yet or not any more.
    pub handle: Option<InstanceId>,
    /// State.
    pub state: InstanceState,
    /// When it was entered.
    pub state_since: Wall,
    /// Routes.
    pub uris: Vec<String>,
    /// Last measured use.
    pub usage: Sample,
    /// Fraction of one core between the last two measurements.
    pub cpu: f64,
}
