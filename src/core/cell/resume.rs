//! What an earlier process has left: instances that run again, and ends that somebody has to be told of.

use std::sync::Arc;

use dewar_protocol::{InstanceState, Snapshot, SnapshotInstance, SnapshotTask};

use super::Cell;
use crate::instance::{Event, Instance, Resumption};
use crate::resources::Reservation;
use crate::staging_task::{Requester, StagingTask, StartWhen, TaskState, refusal};
use crate::{Answer, Effect, InstanceKey, Now, Publication, ReplyTo, TaskImage, TaskKey};

/// The second reply to a staging that was under way.
const RESTARTED: &str = "Error staging: task stopped, the agent was restarted";

/// Messages that wait for each instance the cell may have; what is more goes to the edge, which has to drop it.
const WITHHELD_PER_INSTANCE: usize = 4;

/// What cannot be told before there is a bus for the first time. (When it is lost later, this is for the edge to count: what has ended
/// meanwhile is missed in heartbeats then. But what had just been started before this process was may be known to nobody.)
#[derive(Debug, Default)]
pub(super) struct Legacy {
    withheld: Vec<Effect>,
    /// Whose replies are among these.
    tasks: Vec<TaskImage>,
}

impl Legacy {
    pub(super) fn tasks(&self) -> &[TaskImage] {
        &self.tasks
    }
}

impl Cell {
    /// Takes over what an earlier process has left, if it has left something. Comes once, before any input; from now on snapshots are
    /// saved, the first one at once.
    pub fn resume(&mut self, now: Now, snapshot: Option<Snapshot>) -> Vec<Effect> {
        let mut out = Vec::new();
        if let Some(snapshot) = snapshot {
            for saved in snapshot.instances {
                self.resume_instance(now, saved, &mut out);
            }
            for saved in snapshot.staging_tasks {
                self.end_task(now, saved, &mut out);
            }
        }
        self.saves.change();
        self.saves.loaded(now.mono);
        self.finish(now, out)
    }

    fn resume_instance(&mut self, now: Now, saved: SnapshotInstance, out: &mut Vec<Effect>) {
        let wanted = Reservation { memory: saved.limits.mem, disk: saved.limits.disk };
        let resumption = Resumption { saved: saved.state, wants: self.remaining().constrained(wanted) };
        let key = InstanceKey(self.next_key());
        let mut instance = Instance::restored(key, saved, now);
        let deeds = instance.handle(now, Event::Resume(resumption), &self.config);
        self.registry.insert(instance);
        self.carry_out(now, key, deeds, out);
    }

    /// Whoever asked for it is told, if anybody waits. What may have been told before is told again, and the app started after it.
    fn end_task(&mut self, now: Now, saved: SnapshotTask, out: &mut Vec<Effect>) {
        let reply = saved.reply.unwrap_or_else(|| refusal(&saved.staging_message, RESTARTED.to_owned()));
        let reply = Box::new(reply);
        let message = Arc::new(saved.staging_message);
        if saved.by_http {
            let key = TaskKey(self.next_key());
            self.tasks.insert(StagingTask {
                key,
                message,
                requester: Requester::Http,
                reserved: Reservation::default(),
                deadline: now.mono + self.config.staging.time_limit,
                state: TaskState::Reporting(reply.clone()),
                start: if self.config.staging.start_before_upload { StartWhen::Done } else { StartWhen::Over },
            });
            out.push(Effect::ReportStaging { task: key, reply });
        } else if let Some(reply_to) = saved.reply_to.map(|to| ReplyTo(to.into())) {
            self.legacy.withheld.push(Effect::Reply(reply_to.clone(), Answer::Staged(reply)));
            self.legacy.tasks.push(TaskImage { message, requester: Requester::Bus(Some(reply_to)), reply: None });
        }
    }

    /// Keeps back what happens once and would be lost.
    pub(super) fn withhold(&mut self, out: &mut Vec<Effect>) {
        let room = self.config.max_instances.saturating_mul(WITHHELD_PER_INSTANCE).saturating_sub(self.legacy.withheld.len());
        let mut left = room;
        let withheld = out.extract_if(.., |effect| {
            let lost = matches!(effect, Effect::Publish(Publication::DropletExited(_) | Publication::RouterUnregister(_))) && left > 0;
            left -= usize::from(lost);
            lost
        });
        self.legacy.withheld.extend(withheld);
    }

    /// Tells it.
    pub(super) fn tell_withheld(&mut self, out: &mut Vec<Effect>) {
        let legacy = std::mem::take(&mut self.legacy);
        if legacy.withheld.is_empty() {
            return;
        }
        out.extend(legacy.withheld);
        for key in self.registry.keys() {
            self.registry.update(key, |instance| instance.end_is_told |= instance.state() == InstanceState::Crashed);
        }
        self.saves.change();
    }
}
