//! One instance: its state machine.
//!
//! ```text
//!           begin          ready            exited
//!   BORN ──────────► STARTING ─────► RUNNING ─────► CRASHED ──► reaped
//!    │ │                │  │            │              ▲
//!    │ │ refused        │  └─failed─────│──────────────┤
//!    │ └────────────────│───────────────│──────────────┘
//!    │ stop             │ stop          │ stop
//!    │                  ▼               ▼     exited
//!    │                  └──────────► STOPPING ──────► STOPPED, forgotten at once
//!    └───────────────────────────────────────────────────▲
//! ```
//!
//! STARTING has three phases: the droplet is fetched, the sandbox is made, the health check runs. An instance that has nothing to
//! check ([`HealthCheck`]) is healthy as soon as it is launched. Stopping an instance that has no sandbox yet passes through
//! STOPPING without waiting.
//!
//! An instance that is evacuated goes on as it was, but is called EVACUATING instead of STARTING or RUNNING. One that becomes healthy
//! as such stays EVACUATING, and is reached by its routes from then on.
//!
//! | event | BORN | STARTING | RUNNING | STOPPING | CRASHED |
//! |---|---|---|---|---|---|
//! | `Begin` | STARTING | – | – | – | – |
//! | `Refuse` | CRASHED | – | – | – | – |
//! | `DropletReady` | – | make the sandbox | – | – | – |
//! | `Fail` | – | CRASHED | – | – | – |
//! | `Launched` | – | health check, or RUNNING | – | – | – |
//! | `Ready` | – | RUNNING | – | – | – |
//! | `Exited` | – | CRASHED | CRASHED | STOPPED | the sandbox is gone |
//! | `Evacuate` | – | EVACUATING | EVACUATING | – | – |
//! | `Stop` | STOPPED | STOPPING | STOPPING | ask again | – |
//! | `Deadline` | – | kill, CRASHED | – | kill again | kill again, or reap |
//!
//! What an earlier process has left goes from BORN to RESUMING, and at once to what it was: CRASHED what had crashed or was still
//! starting, STOPPED what was being stopped. What ran stays RESUMING until it runs again, which goes as STARTING does, but for the
//! droplet: the instance's files are there.
//!
//! What a transition means to routers, health managers and developers is not decided here but in `cell/instances.rs`.

mod report;
mod resume;
mod state;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::{InstanceId, InstanceState, Mib, StartMessage};

pub(crate) use self::report::UriChange;
pub(crate) use self::resume::Resumption;
pub(crate) use self::state::is_heartbeated;
use self::state::{StartPhase, State, allows, reserves_disk, reserves_memory, told};
use self::usage::Usage;
use crate::resources::{Reservation, Resource};
use crate::{CellConfig, Exit, HealthCheck, InstanceKey, Mono, Now, Sample, Wall};

/// A stop that has brought no exit after so long is helped along by force, as the original's reaper did.
const KILL_AFTER: Duration = Duration::from_secs(60);

/// Force that has brought no exit is repeated so often.
const KILL_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What the protocol calls everything that goes wrong before launch; the true cause is for the operator's log.
const FAILED_TO_START: &str = "failed to start";

const UNHEALTHY: &str = "failed to accept connections within health check timeout";

/// What can happen to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It may start: what it needs is reserved.
    Begin,
    /// It may not start, for want of this.
    Refuse(Resource),
    /// It was left by an earlier process.
    Resume(Resumption),
    /// Its droplet is there.
    DropletReady,
    /// It can never be launched, for this reason.
    Fail(String),
    Launched {
        port: Option<u16>,
        state_file: bool,
    },
    Ready,
    Exited(Exit),
    /// It is to be replaced elsewhere, and kept until then.
    Evacuate,
    Stop,
    /// The time of [`Instance::deadline`] has come.
    Deadline,
}

/// What an event leads to, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Deed {
    /// A transition has happened.
    Entered {
        from: InstanceState,
        to: InstanceState,
        why: Option<String>,
    },
    /// The droplet is wanted: ends in [`Event::DropletReady`] or [`Event::Fail`].
    WantDroplet,
    StartSandbox,
    /// It is no longer at this port, but at another one.
    Moved {
        from: u16,
    },
    StopSandbox,
    KillSandbox,
    /// It has become healthy, while its state is called as before.
    Reachable,
    /// The health check has not passed in time; for the app's developer.
    Unhealthy,
    /// The crash has been kept long enough.
    Reap,
}

/// One running copy of an app, or what is left of it.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) key: InstanceKey,
    pub(crate) start: Arc<StartMessage>,
    /// On the wire; a new version brings a new one.
    pub(crate) instance_id: InstanceId,
    /// The first of them names the instance's files.
    files: InstanceId,
    private_instance_id: String,
    pub(crate) version: String,
    pub(crate) uris: Vec<String>,
    state: State,
    /// Whether it is only kept until its replacement runs elsewhere: then STARTING and RUNNING are called EVACUATING.
    evacuating: bool,
    state_since: Wall,
    /// `None` if it never entered STARTING, and then it has never had anything.
    started: Option<Started>,
    port: Option<u16>,
    /// What it has to show before it is RUNNING; known from its launch on.
    health_check: HealthCheck,
    /// Whether an earlier process has started it.
    resumed: bool,
    exit: Exit,
    /// The end of its log, once it has ended.
    last_lines: Vec<String>,
    /// Whether `droplet.exited` is behind us.
    pub(crate) end_is_told: bool,
    usage: Usage,
}

/// When an instance entered STARTING.
#[derive(Debug, Clone, Copy)]
struct Started {
    wall: Wall,
    /// In this process, or when it was taken over from an earlier one.
    mono: Mono,
    /// How long it had lived until then.
    before: Duration,
}

impl Instance {
    pub(crate) fn new(
        key: InstanceKey,
        start: Arc<StartMessage>,
        instance_id: InstanceId,
        private_instance_id: String,
        born: Wall,
    ) -> Self {
        Self {
            key,
            files: instance_id.clone(),
            instance_id,
            private_instance_id,
            version: start.version.clone(),
            uris: start.uris.clone(),
            start,
            state: State::Born,
            evacuating: false,
            state_since: born,
            started: None,
            port: None,
            health_check: HealthCheck::Nothing,
            resumed: false,
            exit: Exit { status: -1, description: String::new() },
            last_lines: Vec::new(),
            end_is_told: false,
            usage: Usage::default(),
        }
    }

    pub(crate) fn state(&self) -> InstanceState {
        match self.state.name() {
            InstanceState::Starting | InstanceState::Resuming | InstanceState::Running if self.evacuating => InstanceState::Evacuating,
            name => name,
        }
    }

    /// Whether its routes lead to it.
    pub(crate) fn is_routed(&self) -> bool {
        self.state == State::Running
    }

    /// Whether routers may have routes to it: they may still have those of what is about to run again.
    pub(crate) fn may_be_routed(&self) -> bool {
        matches!(self.state, State::Running | State::Starting { resumed: true, .. })
    }

    pub(crate) fn deadline(&self) -> Option<Mono> {
        self.state.deadline()
    }

    /// Whether it still has something to do before the agent may exit.
    pub(crate) fn is_active(&self) -> bool {
        match self.state {
            State::Born | State::Starting { .. } | State::Running | State::Stopping { .. } => true,
            State::Stopped | State::Crashed { .. } => false,
        }
    }

    pub(crate) fn has_sandbox(&self) -> bool {
        self.state.has_sandbox()
    }

    /// What is promised to it. One that was refused has no files, so it holds no disk either.
    pub(crate) fn reservation(&self) -> Reservation {
        let (state, limits) = (self.state(), self.start.limits);
        let holds_disk = reserves_disk(state) && (reserves_memory(state) || self.started.is_some());
        Reservation {
            memory: if reserves_memory(state) { limits.mem } else { Mib(0) },
            disk: if holds_disk { limits.disk } else { Mib(0) },
        }
    }

    pub(crate) fn health_check(&self) -> &HealthCheck {
        &self.health_check
    }

    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Takes note of a measurement, as long as there is something to measure.
    pub(crate) fn measure(&mut self, now: Mono, sample: Sample) {
        if self.is_active() {
            self.usage.measure(now, sample);
        }
    }

    /// Takes note of the last lines of its log.
    pub(crate) fn wrote(&mut self, lines: Vec<String>) {
        self.last_lines = lines;
    }

    /// A newer crash of the same app has come; this one need not be kept for its full time.
    pub(crate) fn supersede(&mut self, by: Mono) {
        if let State::Crashed { reap_at, .. } = &mut self.state {
            *reap_at = by.min(*reap_at);
        }
    }

    /// What this event means now: nothing when it is late, repeated or impossible.
    pub(crate) fn handle(&mut self, now: Now, event: Event, config: &CellConfig) -> Vec<Deed> {
        match event {
            Event::Begin => self.begin(now, config),
            Event::Refuse(resource) => self.refuse(now, resource, config),
            Event::Resume(resumption) => self.resume(now, resumption, config),
            Event::DropletReady => self.droplet_ready(),
            Event::Fail(why) => self.fail(now, why, config),
            Event::Launched { port, state_file } => self.launched(now, port, state_file, config),
            Event::Ready => self.ready(now),
            Event::Exited(exit) => self.exited(now, exit, config),
            Event::Evacuate => self.evacuate(now),
            Event::Stop => self.stop(now),
            Event::Deadline => self.deadline_passed(now, config),
        }
    }

    fn begin(&mut self, now: Now, config: &CellConfig) -> Vec<Deed> {
        match self.state {
            State::Born => {
                self.started = Some(Started { wall: now.wall, mono: now.mono, before: Duration::ZERO });
                let deadline = now.mono + config.preparation_limit;
                let entered = self.enter(now, State::Starting { phase: StartPhase::Droplet, deadline, resumed: false }, None);
                vec![entered, Deed::WantDroplet]
            }
            State::Starting { .. } | State::Running | State::Stopping { .. } | State::Stopped | State::Crashed { .. } => Vec::new(),
        }
    }

    fn refuse(&mut self, now: Now, resource: Resource, config: &CellConfig) -> Vec<Deed> {
        match self.state {
            State::Born => {
                let description = format!("Not enough {} resource available.", resource.name());
                vec![self.crash(now, Exit { status: -1, description }, None, config)]
            }
            State::Starting { .. } | State::Running | State::Stopping { .. } | State::Stopped | State::Crashed { .. } => Vec::new(),
        }
    }

    fn droplet_ready(&mut self) -> Vec<Deed> {
        match &mut self.state {
            State::Starting { phase: phase @ StartPhase::Droplet, .. } => {
                *phase = StartPhase::Sandbox;
                vec![Deed::StartSandbox]
            }
            State::Starting { phase: StartPhase::Sandbox | StartPhase::HealthCheck, .. }
            | State::Born
            | State::Running
            | State::Stopping { .. }
            | State::Stopped
            | State::Crashed { .. } => Vec::new(),
        }
    }

    fn fail(&mut self, now: Now, why: String, config: &CellConfig) -> Vec<Deed> {
        match self.state {
            State::Starting { phase: StartPhase::Droplet, .. } => {
                let exit = Exit { status: -1, description: FAILED_TO_START.to_owned() };
                vec![self.crash(now, exit, Some(why), config)]
            }
            State::Starting { phase: StartPhase::Sandbox | StartPhase::HealthCheck, .. }
            | State::Born
            | State::Running
            | State::Stopping { .. }
            | State::Stopped
            | State::Crashed { .. } => Vec::new(),
        }
    }

    fn launched(&mut self, now: Now, port: Option<u16>, state_file: bool, config: &CellConfig) -> Vec<Deed> {
        match self.state {
            State::Starting { phase: StartPhase::Sandbox, resumed, .. } => {
                let left = self.port.filter(|left| Some(*left) != port);
                let mut deeds: Vec<_> = left.map(|from| Deed::Moved { from }).into_iter().collect();
                self.port = port;
                self.health_check = HealthCheck::of(&self.start, port.is_some(), state_file);
                let Some(limit) = self.health_check.time_limit(&self.start, config.health_check_timeout) else {
                    deeds.push(self.run(now));
                    return deeds;
                };
                self.state = State::Starting { phase: StartPhase::HealthCheck, deadline: now.mono + limit, resumed };
                deeds
            }
            State::Starting { phase: StartPhase::Droplet | StartPhase::HealthCheck, .. }
            | State::Born
            | State::Running
            | State::Stopping { .. }
            | State::Stopped
            | State::Crashed { .. } => Vec::new(),
        }
    }

    fn ready(&mut self, now: Now) -> Vec<Deed> {
        match self.state {
            State::Starting { phase: StartPhase::HealthCheck, .. } => vec![self.run(now)],
            State::Starting { phase: StartPhase::Droplet | StartPhase::Sandbox, .. }
            | State::Born
            | State::Running
            | State::Stopping { .. }
            | State::Stopped
            | State::Crashed { .. } => Vec::new(),
        }
    }

    fn run(&mut self, now: Now) -> Deed {
        if self.evacuating {
            self.state = State::Running;
            return Deed::Reachable;
        }
        self.enter(now, State::Running, None)
    }

    fn evacuate(&mut self, now: Now) -> Vec<Deed> {
        match self.state {
            State::Starting { .. } | State::Running if !self.evacuating => {
                let from = self.state();
                self.evacuating = true;
                vec![self.entered(now, from, None)]
            }
            State::Starting { .. } | State::Running | State::Born | State::Stopping { .. } | State::Stopped | State::Crashed { .. } => {
                Vec::new()
            }
        }
    }

    fn exited(&mut self, now: Now, exit: Exit, config: &CellConfig) -> Vec<Deed> {
        match self.state {
            State::Starting { phase: StartPhase::Sandbox | StartPhase::HealthCheck, .. } | State::Running => {
                let entered = self.crash(now, exit, None, config);
                self.bury();
                vec![entered]
            }
            State::Stopping { .. } => vec![self.enter(now, State::Stopped, None)],
            State::Crashed { .. } => {
                self.bury();
                Vec::new()
            }
            State::Starting { phase: StartPhase::Droplet, .. } | State::Born | State::Stopped => Vec::new(),
        }
    }

    fn stop(&mut self, now: Now) -> Vec<Deed> {
        let stopping = State::Stopping { kill_at: now.mono + KILL_AFTER };
        match self.state {
            State::Born => vec![self.enter(now, State::Stopped, None)],
            State::Starting { phase: StartPhase::Droplet, .. } => {
                vec![self.enter(now, stopping, None), self.enter(now, State::Stopped, None)]
            }
            // Nothing of the app runs yet that could be asked.
            State::Starting { phase: StartPhase::Sandbox, .. } => vec![self.enter(now, stopping, None), Deed::KillSandbox],
            State::Starting { phase: StartPhase::HealthCheck, .. } | State::Running => {
                vec![self.enter(now, stopping, None), Deed::StopSandbox]
            }
            State::Stopping { .. } => vec![Deed::StopSandbox],
            State::Stopped | State::Crashed { .. } => Vec::new(),
        }
    }

    fn deadline_passed(&mut self, now: Now, config: &CellConfig) -> Vec<Deed> {
        if self.deadline().is_none_or(|deadline| deadline > now.mono) {
            return Vec::new();
        }
        match &mut self.state {
            State::Starting { phase: StartPhase::Droplet, .. } => self.fail(now, "the droplet did not come in time".to_owned(), config),
            State::Starting { phase: StartPhase::Sandbox, .. } => {
                let exit = Exit { status: -1, description: FAILED_TO_START.to_owned() };
                let why = Some("the sandbox was not made in time".to_owned());
                vec![self.crash(now, exit, why, config), Deed::KillSandbox]
            }
            State::Starting { phase: StartPhase::HealthCheck, .. } => {
                let exit = Exit { status: -1, description: UNHEALTHY.to_owned() };
                vec![Deed::Unhealthy, self.crash(now, exit, None, config), Deed::KillSandbox]
            }
            State::Stopping { kill_at } | State::Crashed { kill_at: Some(kill_at), .. } => {
                *kill_at = now.mono + KILL_AGAIN_AFTER;
                vec![Deed::KillSandbox]
            }
            State::Crashed { kill_at: None, .. } => vec![Deed::Reap],
            State::Born | State::Running | State::Stopped => Vec::new(),
        }
    }

    /// To CRASHED. A sandbox that is still there is about to be killed.
    fn crash(&mut self, now: Now, exit: Exit, why: Option<String>, config: &CellConfig) -> Deed {
        let why = why.unwrap_or_else(|| exit.description.clone());
        self.exit = exit;
        let kill_at = self.state.has_sandbox().then(|| now.mono + KILL_AGAIN_AFTER);
        self.enter(now, State::Crashed { reap_at: now.mono + config.crash_lifetime, kill_at }, Some(why))
    }

    /// The sandbox of a crash has ended, so nothing holds back the reaper.
    fn bury(&mut self) {
        if let State::Crashed { kill_at, .. } = &mut self.state {
            *kill_at = None;
        }
    }

    fn enter(&mut self, now: Now, state: State, why: Option<String>) -> Deed {
        let from = self.state();
        self.state = state;
        self.entered(now, from, why)
    }

    /// The one place where the state has changed its name.
    fn entered(&mut self, now: Now, from: InstanceState, why: Option<String>) -> Deed {
        let to = self.state();
        assert!(allows(from, to), "an instance went from {from} to {to}");
        if told(from) != told(to) {
            self.state_since = now.wall;
        }
        if !self.is_active() {
            self.usage = Usage::default();
        }
        Deed::Entered { from, to, why }
    }
}

#[cfg(test)]
mod tests;
