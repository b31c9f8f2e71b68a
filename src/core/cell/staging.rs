//! Staging tasks: admission, the two replies, and the start that may follow.

use std::sync::Arc;

use dewar_protocol::{AppId, LogStream, SetupReply, StagingMessage, StagingReply};

use super::Cell;
use crate::egress;
use crate::lifecycle::Phase;
use crate::resources::Reservation;
use crate::staging_task::{Requester, StagingTask, StartWhen, TaskState, refusal};
use crate::{Answer, CellConfig, Effect, Now, ReplyTo, StagingEvent, StagingSpec, TaskKey};

const STOPPED: &str = "Error staging: task stopped";
const OUT_OF_TIME: &str = "Staging in container timed out";
const DOES_NOT_STAGE: &str = "this agent does not stage";

impl Cell {
    pub(super) fn stage_by_http(&mut self, now: Now, message: StagingMessage, reply_to: Option<ReplyTo>, out: &mut Vec<Effect>) {
        let enabled = self.config.staging.enabled;
        super::answer(out, reply_to, || if enabled { Answer::Accepted } else { Answer::Unavailable(DOES_NOT_STAGE) });
        self.stage(now, message, Requester::Http, out);
    }

    pub(super) fn stage(&mut self, now: Now, message: StagingMessage, requester: Requester, out: &mut Vec<Effect>) {
        if !self.config.staging.enabled {
            out.push(Effect::Refused { request: "staging.<id>.start", why: DOES_NOT_STAGE.to_owned() });
            return;
        }
        let text = format!("Got staging request for app with id {}", message.app_id);
        out.push(Effect::AppLog { app_id: message.app_id.clone(), index: None, stream: LogStream::Out, text });
        let key = TaskKey(self.next_key());
        let reserved = reservation(&message, &self.config);
        if let Some(resource) = self.remaining().constrained(reserved) {
            let reply = refusal(&message, format!("Not enough {} resources available", resource.name()));
            tell(key, requester, Box::new(reply), out);
            return;
        }
        let objection = objection(&message, &self.config);
        let deadline = now.mono + self.config.staging.time_limit;
        let message = Arc::new(message);
        let start = if self.config.staging.start_before_upload { StartWhen::Stored } else { StartWhen::Over };
        let state = TaskState::SettingUp;
        self.saves.change();
        self.tasks.insert(StagingTask { key, message: message.clone(), requester, reserved, deadline, state, start });
        match objection {
            Some(why) => self.on_staging(now, key, StagingEvent::SetupFailed(why), out),
            None => out.push(Effect::StartStaging(Box::new(StagingSpec { key, message, memory: reserved.memory, disk: reserved.disk }))),
        }
    }

    pub(super) fn on_staging(&mut self, now: Now, key: TaskKey, event: StagingEvent, out: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let step = task.handle(event);
        let (requester, message) = (task.requester.clone(), Arc::clone(&task.message));
        if let (Some(setup), Requester::Bus(Some(reply_to))) = (step.setup, &requester) {
            let task_streaming_log_url = self.staging_log_url(now, &setup.task_id);
            out.push(Effect::Reply(reply_to.clone(), Answer::Setup(SetupReply { task_streaming_log_url, ..setup })));
        }
        if step.is_over || step.reply.is_some() {
            self.saves.change();
        }
        if step.is_over {
            self.tasks.remove(key);
        }
        if let Some(reply) = step.reply {
            tell(key, requester, reply, out);
        }
        // The Cloud Controller counts on this instance as soon as reply 2 names a droplet.
        if let (Some(start), Some(sha1), Phase::Serving) = (&message.start_message, step.start, self.phase) {
            let mut start = start.clone();
            start.sha1 = Some(sha1);
            self.start_instance(now, start, out);
        }
    }

    /// Ends every task of an app; there may be none.
    pub(super) fn stop_staging(&mut self, app_id: &AppId, out: &mut Vec<Effect>) {
        for key in self.tasks.of_app(app_id) {
            self.cut_short(key, STOPPED, out);
        }
    }

    pub(super) fn stop_all_staging(&mut self, out: &mut Vec<Effect>) {
        for key in self.tasks.keys() {
            self.cut_short(key, STOPPED, out);
        }
    }

    pub(super) fn on_task_deadline(&mut self, now: Now, key: TaskKey, out: &mut Vec<Effect>) {
        // A Cloud Controller that is still being told may have the droplet already, and counts on the instance.
        self.on_staging(now, key, StagingEvent::Reported, out);
        self.cut_short(key, OUT_OF_TIME, out);
    }

    fn cut_short(&mut self, key: TaskKey, error: &str, out: &mut Vec<Effect>) {
        let Some(task) = self.tasks.remove(key) else { return };
        self.saves.change();
        if let Some(reply) = task.cut_short(error) {
            out.push(Effect::CancelStaging(key));
            tell(key, task.requester, reply, out);
        }
    }
}

/// Gives reply 2 to whoever wants it.
fn tell(task: TaskKey, requester: Requester, reply: Box<StagingReply>, out: &mut Vec<Effect>) {
    out.extend(match requester {
        Requester::Bus(reply_to) => reply_to.map(|reply_to| Effect::Reply(reply_to, Answer::Staged(reply))),
        Requester::Http => Some(Effect::ReportStaging { task, reply }),
    });
}

/// What the message asks for, else what the app will run with; the operator's setting is the least.
fn reservation(message: &StagingMessage, config: &CellConfig) -> Reservation {
    let limits = message.start_message.as_ref().map(|start| start.limits);
    let memory = message.memory_limit.or(limits.map(|limits| limits.mem));
    let disk = message.disk_limit.or(limits.map(|limits| limits.disk));
    let (least_memory, least_disk) = (config.staging.memory, config.staging.disk);
    Reservation {
        memory: memory.map_or(least_memory, |memory| memory.max(least_memory)),
        disk: disk.map_or(least_disk, |disk| disk.max(least_disk)),
    }
}

/// Why set-up is bound to fail.
fn objection(message: &StagingMessage, config: &CellConfig) -> Option<String> {
    let stack = message.stack.as_ref().or_else(|| message.start_message.as_ref()?.stack.as_ref());
    if let Some(stack) = stack.filter(|stack| !config.stacks.contains(stack)) {
        return Some(format!("Error staging: Stack {stack} does not exist"));
    }
    egress::check(&message.egress_network_rules).err().map(|error| error.to_string())
}
