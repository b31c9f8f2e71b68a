//! What is saved of a cell.
//!
//! To take an image costs the cell a few short copies for each instance; what is long in it is shared. To make the snapshot of it, which
//! is as long as all start messages together, is for others to do.

use std::sync::Arc;

use dewar_protocol::{
    Environment, InstanceId, InstanceState, SNAPSHOT_VERSION, Secret, Service, Snapshot, SnapshotInstance, SnapshotTask, StagingMessage,
    StagingReply, StartMessage,
};

use crate::Wall;
use crate::staging_task::Requester;

/// A cell at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotImage {
    /// When it was taken.
    pub taken: Wall,
    /// The agent's address.
    pub ip: String,
    /// In the order in which they were registered.
    pub instances: Vec<InstanceImage>,
    /// Those under way, and those of an earlier process whose end nobody has been told yet.
    pub tasks: Vec<TaskImage>,
}

/// An instance at that moment.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceImage {
    pub(crate) start: Arc<StartMessage>,
    pub(crate) instance_id: InstanceId,
    pub(crate) private_instance_id: String,
    pub(crate) files: InstanceId,
    pub(crate) version: String,
    pub(crate) uris: Vec<String>,
    pub(crate) state: InstanceState,
    pub(crate) state_since: Wall,
    pub(crate) started: Option<Wall>,
    pub(crate) port: Option<u16>,
}

/// A staging task at that moment.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskImage {
    pub(crate) message: Arc<StagingMessage>,
    pub(crate) requester: Requester,
    /// What the Cloud Controller is being told.
    pub(crate) reply: Option<StagingReply>,
}

impl SnapshotImage {
    /// The snapshot. `directory` says where the files of an instance with this first id are, when it is in this state.
    pub fn snapshot(&self, directory: impl Fn(&InstanceId, InstanceState) -> String) -> Snapshot {
        Snapshot {
            version: SNAPSHOT_VERSION,
            time: self.taken.to_unix(),
            instances: self.instances.iter().map(|instance| instance.saved(&self.ip, &directory)).collect(),
            staging_tasks: self.tasks.iter().map(TaskImage::saved).collect(),
        }
    }
}

impl InstanceImage {
    fn saved(&self, ip: &str, directory: impl Fn(&InstanceId, InstanceState) -> String) -> SnapshotInstance {
        let start = &*self.start;
        SnapshotInstance {
            cc_partition: start.cc_partition.clone(),
            instance_id: self.instance_id.clone(),
            instance_index: start.index,
            private_instance_id: self.private_instance_id.clone(),
            warden_handle: self.files.clone(),
            limits: start.limits,
            environment: Environment::of(&start.env),
            services: start.services.clone(),
            health_check_timeout: start.health_check_timeout,
            application_id: start.app_id.clone(),
            application_version: self.version.clone(),
            application_name: start.name.clone(),
            application_uris: self.uris.clone(),
            droplet_sha1: start.sha1.clone(),
            droplet_uri: start.droplet_uri.clone(),
            start_command: start.start_command.clone(),
            state: self.state,
            warden_job_id: None,
            warden_container_path: self.started.map(|_| directory(&self.files, self.state)),
            warden_host_ip: Some(ip.to_owned()),
            warden_container_ip: Some(ip.to_owned()),
            instance_host_port: self.port,
            instance_container_port: self.port,
            syslog_drain_urls: drains(&start.services),
            state_starting_timestamp: self.started.map(Wall::to_unix),
            state_timestamp: self.state_since.to_unix(),
            start_message: start.clone(),
        }
    }
}

impl TaskImage {
    fn saved(&self) -> SnapshotTask {
        let reply_to = match &self.requester {
            Requester::Bus(Some(to)) => Some(to.0.to_string()),
            Requester::Bus(None) | Requester::Http => None,
        };
        SnapshotTask {
            staging_message: (*self.message).clone(),
            warden_container_path: None,
            warden_job_id: None,
            syslog_drain_urls: drains(&self.message.properties.services),
            by_http: self.requester == Requester::Http,
            reply_to,
            reply: self.reply.clone(),
        }
    }
}

fn drains(services: &[Service]) -> Vec<Secret<String>> {
    services.iter().filter_map(|service| service.syslog_drain_url.clone()).collect()
}
