//! What an instance looks like from outside, message by message; and what `dea.update` changes about it.

use std::collections::{BTreeMap, HashSet};

use dewar_protocol::{
    Crash, DropletExited, ExitReason, FoundInstance, HeartbeatEntry, InstanceId, InstanceState, InstanceStats, InstanceUsage,
    RouteRegistration,
};

use super::Instance;
use super::state::told;
use crate::{CellConfig, InstanceImage, Now, Resumed, SandboxSpec, VarzInstance};

impl Instance {
    pub(crate) fn sandbox_spec(&self) -> Option<SandboxSpec> {
        Some(SandboxSpec {
            key: self.key,
            instance_id: self.files.clone(),
            sha1: self.start.sha1.clone()?,
            start: self.start.clone(),
            started_at: self.started?.wall,
            resumed: self.resumed.then_some(Resumed { port: self.port }),
        })
    }

    /// What its files are or would be called.
    pub(crate) fn files_name(&self) -> &InstanceId {
        &self.files
    }

    /// For the snapshot; `None` where there is nothing to remember.
    pub(crate) fn image(&self) -> Option<InstanceImage> {
        let state = match self.state() {
            InstanceState::Born | InstanceState::Stopped => return None,
            // Until its end has been told it is as if it had not been seen.
            InstanceState::Crashed if !self.end_is_told => InstanceState::Starting,
            state => told(state),
        };
        Some(InstanceImage {
            start: self.start.clone(),
            instance_id: self.instance_id.clone(),
            private_instance_id: self.private_instance_id.clone(),
            files: self.files.clone(),
            version: self.version.clone(),
            uris: self.uris.clone(),
            state,
            state_since: self.state_since,
            started: self.started.map(|started| started.wall),
            port: self.port,
        })
    }

    /// What everybody else calls its state.
    pub(crate) fn told_state(&self) -> InstanceState {
        told(self.state())
    }

    /// What its files are called, if there can be any.
    pub(crate) fn files(&self) -> Option<&InstanceId> {
        self.started.map(|_| &self.files)
    }

    pub(crate) fn heartbeat_entry(&self) -> HeartbeatEntry {
        HeartbeatEntry {
            cc_partition: self.start.cc_partition.clone(),
            app_id: self.start.app_id.clone(),
            version: self.version.clone(),
            instance_id: self.instance_id.clone(),
            index: self.start.index,
            state: self.told_state(),
            state_timestamp: self.state_since.to_unix(),
        }
    }

    pub(crate) fn exited_message(&self, reason: ExitReason) -> DropletExited {
        DropletExited {
            cc_partition: self.start.cc_partition.clone(),
            app_id: self.start.app_id.clone(),
            version: self.version.clone(),
            instance_id: self.instance_id.clone(),
            index: self.start.index,
            reason,
            exit_status: self.exit.status,
            exit_description: self.exit.description.clone(),
            crash_timestamp: (self.state() == InstanceState::Crashed).then(|| self.state_since.whole_seconds()),
        }
    }

    /// For `router.register` and `router.unregister`; `None` where there is no port or no route to speak of.
    pub(crate) fn registration(&self, uris: Vec<String>, config: &CellConfig) -> Option<RouteRegistration> {
        self.registration_at(self.port?, uris, config)
    }

    /// Likewise, for a port that it has or had.
    pub(crate) fn registration_at(&self, port: u16, uris: Vec<String>, config: &CellConfig) -> Option<RouteRegistration> {
        (!uris.is_empty()).then(|| RouteRegistration {
            dea: Some(config.id.clone()),
            app: Some(self.start.app_id.clone()),
            uris,
            host: config.ip.clone(),
            port,
            tags: BTreeMap::from([("component".to_owned(), format!("dea-{}", config.index))]),
            private_instance_id: Some(self.private_instance_id.clone()),
            private_instance_index: None,
            stale_threshold_in_seconds: None,
        })
    }

    /// Without file URLs.
    pub(crate) fn found(&self, config: &CellConfig) -> FoundInstance {
        FoundInstance {
            dea: config.id.clone(),
            app_id: self.start.app_id.clone(),
            version: self.version.clone(),
            instance_id: self.instance_id.clone(),
            index: self.start.index,
            state: self.told_state(),
            state_timestamp: self.state_since.to_unix(),
            staged: format!("/{}", self.instance_id),
            file_uri: None,
            credentials: None,
            file_uri_v2: None,
            stats: None,
            crash: None,
        }
    }

    /// Statistics, which only a running instance has.
    pub(crate) fn stats(&self, now: Now, config: &CellConfig) -> Option<InstanceStats> {
        let started = self.started.filter(|_| self.told_state() == InstanceState::Running)?;
        let (sample, limits) = (self.usage.last(), self.start.limits);
        Some(InstanceStats {
            name: self.start.name.clone(),
            uris: self.uris.clone(),
            host: config.ip.clone(),
            port: self.port,
            uptime: (started.before + (now.mono - started.mono)).as_secs(),
            mem_quota: limits.mem.to_bytes(),
            disk_quota: limits.disk.to_bytes(),
            fds_quota: limits.fds,
            usage: InstanceUsage { time: now.wall.to_utc_text(), cpu: self.usage.cpu(), mem: sample.memory, disk: sample.disk },
        })
    }

    /// What there is to say of a crash.
    pub(crate) fn crash_report(&self) -> Option<Crash> {
        (self.state() == InstanceState::Crashed).then(|| Crash {
            exit_status: self.exit.status,
            exit_description: self.exit.description.clone(),
            last_lines: self.last_lines.clone(),
        })
    }

    pub(crate) fn varz(&self) -> VarzInstance {
        VarzInstance {
            key: self.key,
            app_id: self.start.app_id.clone(),
            app_name: self.start.name.clone(),
            version: self.version.clone(),
            instance_id: self.instance_id.clone(),
            index: self.start.index,
            limits: self.start.limits,
            handle: self.state.has_sandbox().then(|| self.files.clone()),
            state: self.state(),
            state_since: self.state_since,
            uris: self.uris.clone(),
            usage: self.usage.last(),
            cpu: self.usage.cpu(),
        }
    }

    /// Takes the complete new list of routes, and says which are new and which are gone, each in the order of its list.
    pub(crate) fn replace_uris(&mut self, uris: &[String]) -> UriChange {
        let added = difference(uris, &self.uris);
        let removed = difference(&self.uris, uris);
        self.uris = uris.to_vec();
        UriChange { added, removed }
    }
}

/// What has become of the routes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UriChange {
    pub(crate) added: Vec<String>,
    pub(crate) removed: Vec<String>,
}

fn difference(from: &[String], without: &[String]) -> Vec<String> {
    let without: HashSet<_> = without.iter().collect();
    from.iter().filter(|uri| !without.contains(uri)).cloned().collect()
}
