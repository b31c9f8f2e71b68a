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
//!
//! A task that was asked for over HTTP has no reply 1, and REPORTING before it is gone: while the Cloud Controller is told, which
//! may take attempts. Being stopped ends that state without another word, being out of time as if it had been told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dewar_protocol::{AppId, DropletSha1, SetupReply, StagingMessage, StagingReply, TaskId};

use crate::registry::{AppIndex, Deadlines};
use crate::resources::Reservation;
use crate::{Mono, ReplyTo, StagedDroplet, StagingError, StagingEvent, TaskKey};

/// A task under way.
#[derive(Debug)]
pub(crate) struct StagingTask {
    pub(crate) key: TaskKey,
    pub(crate) message: Arc<StagingMessage>,
    pub(crate) requester: Requester,
    pub(crate) reserved: Reservation,
    pub(crate) deadline: Mono,
    pub(crate) state: TaskState,
    pub(crate) start: StartWhen,
}

/// Who asked for a task, and is told how it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Requester {
    /// Whoever listens there, if anybody does.
    Bus(Option<ReplyTo>),
    /// The Cloud Controller, over HTTP.
    Http,
}

/// When the app is started that a task is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartWhen {
    /// When the task is over.
    Over,
    /// When its droplet is stored here.
    Stored,
    /// It has been.
    Done,
}

/// How far a task has come.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TaskState {
    /// Package and buildpacks are being fetched.
    SettingUp,
    /// Buildpacks run, or the droplet is being uploaded.
    Staging,
    /// The Cloud Controller is being told this.
    Reporting(Box<StagingReply>),
}

/// What an event leads to, in this order.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct TaskStep {
    /// Reply 1, if it is time for it.
    pub(crate) setup: Option<SetupReply>,
    /// Reply 2, if it is time for it.
    pub(crate) reply: Option<Box<StagingReply>>,
    /// Whether the task is over.
    pub(crate) is_over: bool,
    /// The droplet with which the app may start now.
    pub(crate) start: Option<DropletSha1>,
}

impl StagingTask {
    pub(crate) fn handle(&mut self, event: StagingEvent) -> TaskStep {
        match event {
            StagingEvent::SetUp => {
                let setup = self.setup_reply(None);
                if self.state == TaskState::SettingUp {
                    self.state = TaskState::Staging;
                }
                TaskStep { setup, ..TaskStep::default() }
            }
            StagingEvent::SetupFailed(error) => {
                let setup = self.setup_reply(Some(error.clone()));
                TaskStep { setup, ..self.ended(Err(StagingError { message: error, info: None })) }
            }
            StagingEvent::Stored(sha1) if self.start == StartWhen::Stored => {
                self.start = StartWhen::Done;
                TaskStep { start: Some(sha1), ..TaskStep::default() }
            }
            StagingEvent::Stored(_) => TaskStep::default(),
            StagingEvent::Finished(outcome) => {
                // A Cloud Controller takes the first reply it gets for the first of two.
                let setup = self.setup_reply(None);
                TaskStep { setup, ..self.ended(outcome) }
            }
            StagingEvent::Reported => match self.reply() {
                Some(_) => TaskStep { is_over: true, start: self.to_start(self.droplet().cloned()), ..TaskStep::default() },
                None => TaskStep::default(),
            },
        }
    }

    /// Reply 2, while the Cloud Controller is being told it.
    pub(crate) fn reply(&self) -> Option<&StagingReply> {
        match &self.state {
            TaskState::Reporting(reply) => Some(reply),
            TaskState::SettingUp | TaskState::Staging => None,
        }
    }

    /// The droplet that the Cloud Controller is being told of.
    pub(crate) fn droplet(&self) -> Option<&DropletSha1> {
        self.reply()?.droplet_sha1.as_ref()
    }

    /// Reply 2 of a task that is not left to end by itself; `None` where it has been given.
    pub(crate) fn cut_short(&self, error: &str) -> Option<Box<StagingReply>> {
        match self.state {
            TaskState::SettingUp | TaskState::Staging => Some(Box::new(refusal(&self.message, error.to_owned()))),
            TaskState::Reporting(_) => None,
        }
    }

    /// Reply 1 without the URL of the log, if it is still to come.
    fn setup_reply(&self, error: Option<String>) -> Option<SetupReply> {
        (self.state == TaskState::SettingUp && self.requester != Requester::Http).then(|| SetupReply {
            task_id: self.message.task_id.clone(),
            task_streaming_log_url: None,
            detected_buildpack: None,
            error,
            droplet_sha1: None,
        })
    }

    fn ended(&mut self, outcome: Result<Box<StagedDroplet>, StagingError>) -> TaskStep {
        if matches!(self.state, TaskState::Reporting(_)) {
            return TaskStep::default();
        }
        let droplet = outcome.as_ref().ok().map(|droplet| droplet.sha1.clone());
        let reply = Box::new(match outcome {
            Ok(droplet) => staged(&self.message, *droplet),
            Err(error) => StagingReply { error_info: error.info, ..refusal(&self.message, error.message) },
        });
        match self.requester {
            Requester::Bus(_) => TaskStep { reply: Some(reply), is_over: true, start: self.to_start(droplet), ..TaskStep::default() },
            Requester::Http => {
                self.state = TaskState::Reporting(reply.clone());
                TaskStep { reply: Some(reply), ..TaskStep::default() }
            }
        }
    }

    fn to_start(&self, droplet: Option<DropletSha1>) -> Option<DropletSha1> {
        droplet.filter(|_| self.start != StartWhen::Done)
    }
}

fn staged(message: &StagingMessage, droplet: StagedDroplet) -> StagingReply {
    StagingReply {
        detected_buildpack: droplet.detected_buildpack,
        buildpack_key: droplet.buildpack_key,
        droplet_sha1: Some(droplet.sha1),
        detected_start_command: droplet.start_command,
        procfile: Some(droplet.process_types),
        ..empty_reply(message)
    }
}

/// Reply 2 that says no more than why there is no droplet.
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

    pub(crate) fn iter(&self) -> impl Iterator<Item = &StagingTask> {
        self.tasks.values()
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
