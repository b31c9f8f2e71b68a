//! An instance that an earlier process has left: what becomes of it here.

use std::time::Duration;

use dewar_protocol::{InstanceState, SnapshotInstance, UnixSeconds};

use super::state::{StartPhase, State};
use super::{Deed, Instance, Started};
use crate::resources::Resource;
use crate::{CellConfig, Exit, InstanceKey, Now, Wall};

/// Why an instance that was starting is none any more.
const INTERRUPTED: &str = "the agent was restarted while the instance was starting";

/// What a snapshot says of an instance's state, and what this process says to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resumption {
    pub(crate) saved: InstanceState,
    /// What there is not enough of for it to run on.
    pub(crate) wants: Option<Resource>,
}

impl Instance {
    /// As it was left, and yet to be told so with [`super::Event::Resume`].
    pub(crate) fn restored(key: InstanceKey, saved: SnapshotInstance, now: Now) -> Self {
        let start = saved.start_message.into();
        let mut instance = Self::new(key, start, saved.instance_id, saved.private_instance_id, wall(saved.state_timestamp));
        instance.files = saved.warden_handle;
        instance.version = saved.application_version;
        instance.uris = saved.application_uris;
        instance.port = saved.instance_host_port;
        instance.started = saved.state_starting_timestamp.map(|at| {
            let started = wall(at);
            Started { wall: started, mono: now.mono, before: now.wall.0.saturating_sub(started.0) }
        });
        instance.resumed = true;
        instance.end_is_told = matches!(saved.state, InstanceState::Crashed | InstanceState::Stopping);
        instance
    }

    pub(super) fn resume(&mut self, now: Now, resumption: Resumption, config: &CellConfig) -> Vec<Deed> {
        use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
        if self.state != State::Born {
            return Vec::new();
        }
        let since = self.state_since;
        let starting = State::Starting { phase: StartPhase::Sandbox, deadline: now.mono + config.preparation_limit, resumed: true };
        let mut deeds = vec![self.enter(now, starting, None)];
        match (resumption.saved, resumption.wants) {
            (Running | Evacuating | Resuming, None) => {
                self.state_since = since;
                deeds.push(Deed::StartSandbox);
            }
            (Running | Evacuating | Resuming, Some(resource)) => {
                let description = format!("Not enough {} resource available.", resource.name());
                deeds.push(self.crash(now, Exit { status: -1, description }, None, config));
                self.bury();
            }
            (Starting | Born, _) => {
                let exit = Exit { status: -1, description: INTERRUPTED.to_owned() };
                deeds.push(self.crash(now, exit, None, config));
                self.bury();
            }
            (Crashed, _) => {
                // Its time begins anew: how long it has been kept is for a clock to say that may have jumped.
                let reap_at = now.mono + config.crash_lifetime;
                deeds.push(self.enter(now, State::Crashed { reap_at, kill_at: None }, None));
                self.state_since = since;
            }
            (Stopping | Stopped, _) => {
                deeds.push(self.enter(now, State::Stopping { kill_at: now.mono }, None));
                deeds.push(self.enter(now, State::Stopped, None));
            }
        }
        deeds
    }
}

/// A time in a snapshot; one that is none counts as 1970.
fn wall(UnixSeconds(seconds): UnixSeconds) -> Wall {
    Wall(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}
