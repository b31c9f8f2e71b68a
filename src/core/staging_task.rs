//! One staging task: its state machine, and the registry of them.
//!
//! ```text
//!   SETTING UP ──set up: reply 1──► STAGING ──finished: reply 2──► gone
//!       │                              │
//!       └── setup failed: replies 1, 2 └── stopped, or out of time: reply 2 ──► gone
//! ```
//!
//! There is exactly one reply 2, and reply 1 only before it. A task that is stopped or out of time while setting up skips reply 1:
//! whoever waits for it takes the error of reply 2 as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dewar_protocol::{AppId, SetupReply, StagingMessage, StagingReply, TaskId};

use crate::registry::{AppIndex, Deadlines};
use crate::resources::Reservation;
use crate::{Mono, ReplyTo, StagedDroplet, StagingError, StagingEvent, TaskKey};

/// A task under way.
#[derive(Debug)]
pub(crate) struct StagingTask {
    pub(crate) key: TaskKey,
    pub(crate) message: Arc<StagingMessage>,
    pub(crate) reply_to: Option<ReplyTo>,
    pub(crate) reserved: Reservation,
    pub(crate) deadline: Mono,
    pub(crate) state: TaskState,
}

/// How far a task has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// Package and buildpacks are being fetched.
    SettingUp,
    /// Buildpacks run, or the droplet is being uploaded.
    Staging,
}

/// What an event leads to.
#[derive(Debug, PartialEq)]
pub(crate) struct TaskStep {
    /// Reply 1, if it is time for it.
    pub(crate) setup: Option<SetupReply>,
    /// Reply 2, with which the task is over.
    pub(crate) end: Option<End>,
}

/// The end of a task.
#[derive(Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) reply: StagingReply,
    /// What has been staged.
    pub(crate) droplet: Option<Box<StagedDroplet>>,
}

impl StagingTask {
    pub(crate) fn handle(&mut self, event: StagingEvent) -> TaskStep {
        let setting_up = self.state == TaskState::SettingUp;
        match event {
            StagingEvent::SetUp => {
                self.state = TaskState::Staging;
                TaskStep { setup: setting_up.then(|| self.setup_reply(None)), end: None }
            }
            StagingEvent::SetupFailed(error) => {
                let setup = setting_up.then(|| self.setup_reply(Some(error.clone())));
                TaskStep { setup, end: Some(self.failed(StagingError { message: error, info: None })) }
            }
            StagingEvent::Finished(outcome) => {
                // A Cloud Controller takes the first reply it gets for the first of two.
                let setup = setting_up.then(|| self.setup_reply(None));
                let end = match outcome {
                    Ok(droplet) => self.staged(droplet),
                    Err(error) => self.failed(error),
                };
                TaskStep { setup, end: Some(end) }
            }
        }
    }

    /// The end of a task that was not left to end by itself.
    pub(crate) fn cut_short(&self, error: &str) -> End {
        self.failed(StagingError { message: error.to_owned(), info: None })
    }

    /// Without the URL of the log.
    fn setup_reply(&self, error: Option<String>) -> SetupReply {
        SetupReply {
            task_id: self.message.task_id.clone(),
            task_streaming_log_url: None,
            detected_buildpack: None,
            error,
            droplet_sha1: None,
        }
    }

    fn staged(&self, droplet: Box<StagedDroplet>) -> End {
        let reply = StagingReply {
            detected_buildpack: droplet.detected_buildpack.clone(),
            buildpack_key: droplet.buildpack_key.clone(),
            droplet_sha1: Some(droplet.sha1.clone()),
            detected_start_command: droplet.start_command.clone(),
            procfile: Some(droplet.process_types.clone()),
            ..empty_reply(&self.message)
        };
        End { reply, droplet: Some(droplet) }
    }

    fn failed(&self, error: StagingError) -> End {
        let reply = StagingReply { error: Some(error.message), error_info: error.info, ..empty_reply(&self.message) };
        End { reply, droplet: None }
    }
}

/// Reply 2 to a request that does not become a task.
pub(crate) fn refusal(message: &StagingMessage, error: String) -> StagingReply {
    StagingReply { error: Some(error), ..empty_reply(message) }
}

fn empty_reply(message: &StagingMessage) -> StagingReply {
    StagingReply {
        task_id: message.task_id.clone(),
        task_streaming_log_url: None,
        detected_buildpack: None,
        buildpack_key: None,
        droplet_sha1: None,
        detected_start_command: None,
        procfile: None,
        app_id: Some(message.app_id.clone()),
        error: None,
        error_info: None,
    }
}

/// Every registered task. Bounded by what tasks reserve.
#[derive(Debug, Default)]
pub(crate) struct StagingTasks {
    tasks: BTreeMap<TaskKey, StagingTask>,
    by_app: AppIndex<TaskKey>,
    deadlines: Deadlines<TaskKey>,
    reserved: Reservation,
}

impl StagingTasks {
    pub(crate) fn insert(&mut self, task: StagingTask) {
        self.by_app.insert(&task.message.app_id, task.key);
        self.deadlines.replace(task.key, None, Some(task.deadline));
        self.reserved = self.reserved + task.reserved;
        self.tasks.insert(task.key, task);
    }

    pub(crate) fn remove(&mut self, key: TaskKey) -> Option<StagingTask> {
        let task = self.tasks.remove(&key)?;
        self.by_app.remove(&task.message.app_id, key);
        self.deadlines.replace(key, Some(task.deadline), None);
        self.reserved = self.reserved - task.reserved;
        Some(task)
    }

    /// For [`StagingTask::handle`]; what is indexed does not change.
    pub(crate) fn get_mut(&mut self, key: TaskKey) -> Option<&mut StagingTask> {
        self.tasks.get_mut(&key)
    }

    /// By its name on the wire; the newest, should a Cloud Controller have used it twice.
    pub(crate) fn by_id(&self, task_id: &TaskId) -> Option<&StagingTask> {
        self.tasks.values().rev().find(|task| task.message.task_id == *task_id)
    }

    pub(crate) fn of_app(&self, app_id: &AppId) -> Vec<TaskKey> {
        self.by_app.of(app_id).collect()
    }

    pub(crate) fn keys(&self) -> BTreeSet<TaskKey> {
        self.tasks.keys().copied().collect()
    }

    pub(crate) fn deadlines(&self) -> &Deadlines<TaskKey> {
        &self.deadlines
    }

    pub(crate) fn reserved(&self) -> Reservation {
        self.reserved
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }
}

#[cfg(test)]
mod tests;
