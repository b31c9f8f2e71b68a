//! Instances: what inputs mean to them, and what their transitions mean to everybody else.

use std::sync::Arc;

use dewar_protocol::{DropletSha1, ExitReason, InstanceId, InstanceState, LogStream, StartMessage, Stop, Update};

use super::Cell;
use crate::config::ExitedReasons;
use crate::droplets::Wish;
use crate::filter::{EmptyList, Filter};
use crate::heartbeat_size;
use crate::instance::{Deed, Event, Instance, UriChange};
use crate::lifecycle::Phase;
use crate::reaper::SUPERSEDED_LIFETIME;
use crate::resources::Reservation;
use crate::{CellConfig, DropletEvent, Effect, InstanceKey, Now, Publication, SandboxEvent, egress, health};

/// Lines of an exit description that the app's log gets; a backtrace may be long.
const CRASH_LOG_LINES: usize = 40;

impl Cell {
    pub(super) fn start_instance(&mut self, now: Now, start: StartMessage, out: &mut Vec<Effect>) {
        if let Some(why) = self.objection(&start) {
            out.push(Effect::Refused { request: "dea.<id>.start", why });
            return;
        }
        let wanted = Reservation { memory: start.limits.mem, disk: start.limits.disk };
        let verdict = self.remaining().constrained(wanted).map_or(Event::Begin, Event::Refuse);
        let key = InstanceKey(self.next_key());
        let (id, private_id) = (InstanceId(self.fresh_id()), self.fresh_id() + &self.fresh_id());
        let mut instance = Instance::new(key, Arc::new(start), id, private_id, now.wall);
        if let Some(why) = self.too_many_to_tell(&instance) {
            out.push(Effect::Refused { request: "dea.<id>.start", why });
            return;
        }
        out.push(app_log(&instance, LogStream::Out, with_index_and_guid("Starting app instance", &instance)));
        // Judged before it is registered: what is refused must not even for a moment reserve what there is not.
        let deeds = instance.handle(now, verdict, &self.config);
        self.registry.insert(instance);
        self.carry_out(now, key, deeds, out);
    }

    /// Why a start message is not even worth a crash.
    fn objection(&self, start: &StartMessage) -> Option<String> {
        if start.limits.mem.0 < 0 || start.limits.disk.0 < 0 {
            Some(format!("app {}: a limit is negative", start.app_id))
        } else if self.registry.len() >= self.config.max_instances {
            Some(format!("app {}: {} instances are registered, no more are taken", start.app_id, self.registry.len()))
        } else {
            None
        }
    }

    /// Why an instance that is about to be registered cannot be taken: one that no heartbeat tells of is lost to everybody.
    fn too_many_to_tell(&self, instance: &Instance) -> Option<String> {
        let told = self.registry.totals().told + heartbeat_size::of(instance);
        let limit = self.heartbeat_limit().filter(|limit| heartbeat_size::whole(told) > *limit)?;
        let (app_id, others) = (&instance.start.app_id, self.registry.len());
        Some(format!("app {app_id}: a heartbeat of it and {others} others is too large for the NATS server (max_payload {limit} bytes)"))
    }

    pub(super) fn stop_instances(&mut self, now: Now, stop: Stop, out: &mut Vec<Effect>) {
        if let (true, Some(app_id)) = (stop.whole_app, &stop.filter.app_id) {
            self.stop_staging(app_id, out);
        }
        match Filter::new(stop.filter, EmptyList::MatchesNothing) {
            Ok(filter) => {
                for key in self.registry.select(&filter) {
                    self.step(now, key, Event::Stop, out);
                }
            }
            Err(error) => out.push(Effect::Refused { request: "dea.stop", why: error.to_string() }),
        }
    }

    pub(super) fn update_app(&mut self, now: Now, update: &Update, out: &mut Vec<Effect>) {
        let mut changed = false;
        for key in self.registry.of_app(&update.app_id) {
            changed |= self.update_instance(key, update, out);
        }
        if changed {
            self.saves.change();
            self.heartbeat_soon(now, out);
        }
    }

    /// Whether anything has changed. What has ended, or is about to, is left as it was.
    fn update_instance(&mut self, key: InstanceKey, update: &Update, out: &mut Vec<Effect>) -> bool {
        let Some(instance) = self.registry.get(key) else { return false };
        let (is_routed, may_be_routed, mut changed) = (instance.is_routed(), instance.may_be_routed(), false);
        match instance.state() {
            InstanceState::Born
            | InstanceState::Starting
            | InstanceState::Running
            | InstanceState::Evacuating
            | InstanceState::Resuming => {}
            InstanceState::Stopping | InstanceState::Stopped | InstanceState::Crashed => return false,
        }
        if let Some(uris) = &update.uris
            && instance.uris != *uris
            && let Some(UriChange { added, removed }) = self.registry.update(key, |instance| instance.replace_uris(uris))
        {
            // Also where nothing but their order is another, of which nobody needs to hear.
            self.saves.change();
            changed |= !added.is_empty() || !removed.is_empty();
            if is_routed {
                self.register(key, added, out);
            }
            if may_be_routed {
                self.unregister(key, removed, out);
            }
        }
        if let Some(version) = &update.version
            && self.registry.get(key).is_some_and(|instance| instance.version != *version)
        {
            let id = InstanceId(self.fresh_id());
            self.registry.rename(key, id);
            self.registry.update(key, |instance| instance.version.clone_from(version));
            changed = true;
        }
        changed
    }

    pub(super) fn on_sandbox(&mut self, now: Now, key: InstanceKey, event: SandboxEvent, out: &mut Vec<Effect>) {
        let event = match event {
            SandboxEvent::Launched { port, state_file } => {
                self.saves.change();
                Event::Launched { port, state_file }
            }
            SandboxEvent::Ready => Event::Ready,
            SandboxEvent::Wrote(lines) => {
                self.registry.update(key, |instance| instance.wrote(lines));
                return;
            }
            SandboxEvent::Exited(exit) => Event::Exited(exit),
        };
        self.step(now, key, event, out);
    }

    pub(super) fn on_droplet(&mut self, now: Now, sha1: &DropletSha1, event: DropletEvent, out: &mut Vec<Effect>) {
        let event = match event {
            DropletEvent::Ready => Event::DropletReady,
            DropletEvent::Failed(why) => Event::Fail(why),
        };
        for key in self.droplets.settle(sha1) {
            self.step(now, key, event.clone(), out);
        }
    }

    pub(super) fn on_instance_deadline(&mut self, now: Now, key: InstanceKey, out: &mut Vec<Effect>) {
        self.step(now, key, Event::Deadline, out);
    }

    pub(super) fn step(&mut self, now: Now, key: InstanceKey, event: Event, out: &mut Vec<Effect>) {
        let config = &self.config;
        if let Some(deeds) = self.registry.update(key, |instance| instance.handle(now, event, config)) {
            self.carry_out(now, key, deeds, out);
        }
    }

    pub(super) fn carry_out(&mut self, now: Now, key: InstanceKey, deeds: Vec<Deed>, out: &mut Vec<Effect>) {
        for deed in deeds {
            match deed {
                Deed::Entered { from, to, why } => self.entered(now, key, from, to, why, out),
                Deed::WantDroplet => self.want_droplet(now, key, out),
                Deed::StartSandbox => {
                    let spec = self.registry.get(key).and_then(Instance::sandbox_spec);
                    out.extend(spec.map(|spec| Effect::StartSandbox(Box::new(spec))));
                }
                Deed::Moved { from } => {
                    let left = |instance: &Instance| instance.registration_at(from, instance.uris.clone(), &self.config);
                    let left = self.registry.get(key).and_then(left);
                    out.extend(left.map(|registration| Effect::Publish(Publication::RouterUnregister(registration))));
                }
                Deed::StopSandbox => out.push(Effect::StopSandbox(key)),
                Deed::KillSandbox => out.push(Effect::KillSandbox(key)),
                Deed::Reachable => self.register_whole(key, out),
                Deed::Unhealthy => {
                    let text = |it: &Instance| format!("Instance (index {}) {}", it.start.index, it.health_check().complaint());
                    out.extend(self.registry.get(key).map(|instance| app_log(instance, LogStream::Err, text(instance))));
                }
                Deed::Reap => self.reap(key, Effect::DeleteInstanceFiles, out),
            }
        }
    }

    fn want_droplet(&mut self, now: Now, key: InstanceKey, out: &mut Vec<Effect>) {
        let Some(start) = self.registry.get(key).map(|instance| instance.start.clone()) else { return };
        match launchable(&start, &self.config) {
            Err(why) => self.step(now, key, Event::Fail(why), out),
            Ok(sha1) => match self.droplets.want(sha1, key, now.mono, self.config.preparation_limit) {
                Wish::Fetch => out.push(Effect::FetchDroplet { sha1: sha1.clone(), uri: start.droplet_uri.clone() }),
                Wish::Wait => {}
            },
        }
    }

    /// What everybody else learns of a transition, in the order that they rely on.
    fn entered(&mut self, now: Now, key: InstanceKey, from: InstanceState, to: InstanceState, why: Option<String>, out: &mut Vec<Effect>) {
        self.saves.change();
        let Some(instance) = self.registry.get(key) else { return };
        out.push(Effect::Transitioned {
            instance: key,
            app_id: instance.start.app_id.clone(),
            instance_id: instance.instance_id.clone(),
            index: instance.start.index,
            from,
            to,
            why,
        });
        if let (false, Some(sha1)) = (matches!(to, InstanceState::Starting | InstanceState::Evacuating), &instance.start.sha1) {
            self.droplets.abandon(sha1, key);
        }
        match to {
            InstanceState::Running => {
                self.heartbeat_soon(now, out);
                self.register_whole(key, out);
            }
            InstanceState::Evacuating => self.tell_of_end(key, ExitReason::DeaEvacuation, out),
            InstanceState::Stopping => {
                self.unregister(key, instance.uris.clone(), out);
                self.tell_of_stop(key, from, out);
            }
            InstanceState::Crashed => self.crashed(now, key, out),
            InstanceState::Stopped => self.forget(key, Effect::DeleteInstanceFiles, out),
            InstanceState::Born | InstanceState::Starting | InstanceState::Resuming => {}
        }
    }

    /// Of one that is evacuated they have heard when that began.
    fn tell_of_stop(&self, key: InstanceKey, from: InstanceState, out: &mut Vec<Effect>) {
        let reason = match self.phase {
            Phase::Serving => ExitReason::Stopped,
            Phase::Stopping { evacuated: false, .. } | Phase::Exited => ExitReason::DeaShutdown,
            Phase::Evacuating(_) | Phase::Stopping { evacuated: true, .. } => return,
        };
        let was_seen = matches!(from, InstanceState::Starting | InstanceState::Running | InstanceState::Resuming);
        let is_told = self.registry.get(key).is_none_or(|instance| instance.end_is_told);
        if was_seen && !is_told {
            self.tell_of_end(key, reason, out);
        }
    }

    /// Health managers up to 2013 want to hear of every end, also of one that is to come.
    pub(super) fn tell_of_end(&self, key: InstanceKey, reason: ExitReason, out: &mut Vec<Effect>) {
        if self.config.exited_reasons == ExitedReasons::Classic {
            let message = self.registry.get(key).map(|instance| instance.exited_message(reason));
            out.extend(message.map(|message| Effect::Publish(Publication::DropletExited(message))));
        }
    }

    fn crashed(&mut self, now: Now, key: InstanceKey, out: &mut Vec<Effect>) {
        let Some(instance) = self.registry.get(key) else { return };
        let app_id = instance.start.app_id.clone();
        if !instance.end_is_told {
            self.tell_of_crash(key, out);
        }
        if let Some(older) = self.crashes.add(&app_id, key) {
            self.registry.update(older, |instance| instance.supersede(now.mono + SUPERSEDED_LIFETIME));
        }
    }

    fn tell_of_crash(&mut self, key: InstanceKey, out: &mut Vec<Effect>) {
        let Some(instance) = self.registry.get(key) else { return };
        self.unregister(key, instance.uris.clone(), out);
        let message = instance.exited_message(ExitReason::Crashed);
        for (number, line) in message.exit_description.lines().take(CRASH_LOG_LINES).enumerate() {
            let text = if number == 0 { format!("Instance (index {}) crashed: {line}", message.index) } else { line.to_owned() };
            out.push(app_log(instance, LogStream::Err, text));
        }
        out.push(Effect::Publish(Publication::DropletExited(message)));
        let told = !self.presence.is_new();
        self.registry.update(key, |instance| instance.end_is_told = told);
    }

    /// A crash is kept no longer.
    pub(super) fn reap(&mut self, key: InstanceKey, delete: fn(InstanceId) -> Effect, out: &mut Vec<Effect>) {
        let Some(instance) = self.registry.get(key) else { return };
        out.push(app_log(instance, LogStream::Out, format!("Removing crash for app with id {}", instance.start.app_id)));
        self.forget(key, delete, out);
    }

    /// Out of the registry, and off the disk.
    fn forget(&mut self, key: InstanceKey, delete: fn(InstanceId) -> Effect, out: &mut Vec<Effect>) {
        let Some(instance) = self.registry.remove(key) else { return };
        self.saves.change();
        self.crashes.forget(&instance.start.app_id, key);
        out.push(app_log(&instance, LogStream::Out, with_index_and_guid("Stopping app instance", &instance)));
        out.push(app_log(&instance, LogStream::Out, with_index_and_guid("Stopped app instance", &instance)));
        out.extend(instance.files().map(|files| delete(files.clone())));
    }
}

/// The digest of the droplet that is wanted.
///
/// # Errors
/// With the reason why this can never be launched here.
fn launchable<'a>(start: &'a StartMessage, config: &CellConfig) -> Result<&'a DropletSha1, String> {
    if let Some(stack) = start.stack.as_ref().filter(|stack| !config.stacks.contains(stack)) {
        return Err(format!("Stack {stack} does not exist"));
    }
    egress::check(&start.egress_network_rules).map_err(|error| error.to_string())?;
    health::check_endpoint(start)?;
    start.sha1.as_ref().ok_or_else(|| "the start message names no droplet".to_owned())
}

fn with_index_and_guid(what: &str, instance: &Instance) -> String {
    format!("{what} (index {}) with guid {}", instance.start.index, instance.start.app_id)
}

fn app_log(instance: &Instance, stream: LogStream, text: String) -> Effect {
    Effect::AppLog { app_id: instance.start.app_id.clone(), index: Some(instance.start.index), stream, text }
}
