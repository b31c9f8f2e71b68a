//! The states of an instance: what each carries, which may follow which, and what each means to the rest of the agent.

use dewar_protocol::InstanceState;

use crate::Mono;

/// A state with its data. A deadline lives and dies with the state that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Born,
    /// STARTING, or RESUMING what ran in an earlier process.
    Starting {
        phase: StartPhase,
        deadline: Mono,
        resumed: bool,
    },
    Running,
    Stopping {
        /// When to use force, for want of an exit.
        kill_at: Mono,
    },
    Stopped,
    Crashed {
        reap_at: Mono,
        /// When to use force again; `None` once the sandbox is gone, or where there never was one.
        kill_at: Option<Mono>,
    },
}

/// How far a start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartPhase {
    /// The droplet is on its way; there is no sandbox yet.
    Droplet,
    /// The sandbox is being made.
    Sandbox,
    /// The app runs and has yet to open its port.
    HealthCheck,
}

impl State {
    pub(crate) fn name(self) -> InstanceState {
        match self {
            Self::Born => InstanceState::Born,
            Self::Starting { resumed: false, .. } => InstanceState::Starting,
            Self::Starting { resumed: true, .. } => InstanceState::Resuming,
            Self::Running => InstanceState::Running,
            Self::Stopping { .. } => InstanceState::Stopping,
            Self::Stopped => InstanceState::Stopped,
            Self::Crashed { .. } => InstanceState::Crashed,
        }
    }

    /// When something is to happen by itself.
    pub(crate) fn deadline(self) -> Option<Mono> {
        match self {
            Self::Born | Self::Running | Self::Stopped => None,
            Self::Starting { deadline, .. } => Some(deadline),
            Self::Stopping { kill_at } => Some(kill_at),
            // What is still there cannot be reaped.
            Self::Crashed { reap_at, kill_at } => Some(kill_at.unwrap_or(reap_at)),
        }
    }

    /// Whether there is a sandbox that has yet to say `Exited`.
    pub(crate) fn has_sandbox(self) -> bool {
        match self {
            Self::Born | Self::Stopped => false,
            Self::Starting { phase, .. } => match phase {
                StartPhase::Droplet => false,
                StartPhase::Sandbox | StartPhase::HealthCheck => true,
            },
            Self::Running | Self::Stopping { .. } => true,
            Self::Crashed { kill_at, .. } => kill_at.is_some(),
        }
    }
}

/// The transition table. Stopping an instance that is stopping already asks again, but is no transition.
pub(crate) fn allows(from: InstanceState, to: InstanceState) -> bool {
    use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
    match from {
        Born => matches!(to, Starting | Stopped | Crashed | Resuming | Evacuating),
        Starting => matches!(to, Running | Crashed | Stopping | Evacuating),
        Running => matches!(to, Crashed | Stopping | Evacuating),
        Stopping => matches!(to, Stopped),
        Stopped | Crashed => false,
        Resuming => matches!(to, Running | Crashed | Stopping | Evacuating),
        Evacuating => matches!(to, Crashed | Stopping),
    }
}

/// What peers are told of a state. RESUMING is ours alone: to everybody else the instance has been RUNNING all the time, and a
/// health manager that missed it in one heartbeat would start it elsewhere.
pub(crate) fn told(state: InstanceState) -> InstanceState {
    if state == InstanceState::Resuming { InstanceState::Running } else { state }
}

/// Whether the instance's memory quota is promised to it.
pub(crate) fn reserves_memory(state: InstanceState) -> bool {
    use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
    match state {
        Born | Starting | Running | Stopping | Evacuating | Resuming => true,
        Stopped | Crashed => false,
    }
}

/// Whether the instance's disk quota is promised to it: a crash keeps its files.
pub(crate) fn reserves_disk(state: InstanceState) -> bool {
    reserves_memory(state) || state == InstanceState::Crashed
}

/// Whether heartbeats tell of the instance.
pub(crate) fn is_heartbeated(state: InstanceState) -> bool {
    use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
    match state {
        Starting | Running | Crashed | Evacuating | Resuming => true,
        Born | Stopping | Stopped => false,
    }
}
