//! The root of an agent's state: takes each input to the part it is about, and puts the effects in order.
//!
//! The parts: [`instances`] for what instances do, [`staging`] for staging tasks, [`presence`] for what the rest of the world is
//! told and when, [`pacing`] for how often, [`reports`] for answers, [`files`] for who may read what, [`reaping`] for what is no longer
//! needed, [`resume`] for what an earlier process has left, [`saving`] for the next one, [`evacuation`] and [`shutdown`] for the end.

mod evacuation;
mod files;
mod instances;
mod pacing;
mod presence;
mod reaping;
mod reports;
mod resume;
mod saving;
mod shutdown;
mod staging;

use rand::RngExt;
use rand::rngs::StdRng;

use self::presence::Presence;
use self::resume::Legacy;
use self::saving::Saves;
use crate::droplets::Droplets;
use crate::lifecycle::{Phase, Verdict, subject};
use crate::reaper::Crashes;
use crate::registry::Registry;
use crate::resources::Remaining;
use crate::staging_task::{Requester, StagingTasks, refusal};
use crate::{Answer, CellConfig, Effect, Input, Mono, Now, ReplyTo, Request, Signal};

/// An agent's whole state. One input costs O(log n) in the number of instances, except where the answer itself is as long as that.
#[derive(Debug)]
pub struct Cell {
    config: CellConfig,
    rng: StdRng,
    phase: Phase,
    presence: Presence,
    registry: Registry,
    droplets: Droplets,
    crashes: Crashes,
    tasks: StagingTasks,
    legacy: Legacy,
    saves: Saves,
    last_key: u64,
}

impl Cell {
    /// A cell that holds nothing yet. Identifiers are drawn from `rng`.
    #[must_use]
    pub fn new(config: CellConfig, rng: StdRng) -> Self {
        Self {
            presence: Presence::new(&config),
            config,
            rng,
            phase: Phase::Serving,
            registry: Registry::default(),
            droplets: Droplets::default(),
            crashes: Crashes::default(),
            tasks: StagingTasks::default(),
            legacy: Legacy::default(),
            saves: Saves::default(),
            last_key: 0,
        }
    }

    /// Takes note of one input and says what is to be done about it, in this order.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.phase == Phase::Exited {
            return out;
        }
        match input {
            Input::Request(request, reply_to) => self.on_request(now, request, reply_to, &mut out),
            Input::Sandbox(key, event) => self.on_sandbox(now, key, event, &mut out),
            Input::Staging(key, event) => self.on_staging(now, key, event, &mut out),
            Input::Droplet(sha1, event) => self.on_droplet(now, &sha1, event, &mut out),
            Input::Bus(event) => self.on_bus(now, event, &mut out),
            Input::Signal(Signal::Shutdown) => self.shut_down(now, &mut out),
            Input::Signal(Signal::Drain) => self.drain(&mut out),
            Input::Signal(Signal::Evacuate) => self.evacuate(now, &mut out),
            Input::Usage(samples) => {
                for (key, sample) in samples {
                    self.registry.update(key, |instance| instance.measure(now.mono, sample));
                }
            }
            Input::CrashDisk(used) => self.on_crash_disk(used, &mut out),
            Input::Strays(found) => self.on_strays(found, &mut out),
            Input::Droplets(kept) => self.on_droplets(kept, &mut out),
            Input::SnapshotSaved { ok } => self.saves.ended(now.mono, ok),
            Input::Wake => self.on_wake(now, &mut out),
        }
        self.finish(now, out)
    }

    /// What every input ends in.
    fn finish(&mut self, now: Now, mut out: Vec<Effect>) -> Vec<Effect> {
        if self.presence.is_new() {
            self.withhold(&mut out);
        }
        self.save_when_due(now, &mut out);
        self.exit_when_done(now, &mut out);
        out
    }

    /// When to call `handle` with [`Input::Wake`], unless something else happens before.
    #[must_use]
    pub fn next_wake(&self) -> Option<Mono> {
        let own = match self.phase {
            Phase::Serving => None,
            Phase::Evacuating(departure) => Some(departure.next_pass),
            Phase::Stopping { exit_by, .. } => Some(exit_by),
            Phase::Exited => return None,
        };
        let (instances, tasks) = (self.registry.deadlines().next(), self.tasks.deadlines().next());
        let deadlines = [self.presence.next_tick(), instances, tasks, self.saves.next(), own];
        deadlines.into_iter().flatten().min()
    }

    fn on_request(&mut self, now: Now, request: Request, reply_to: Option<ReplyTo>, out: &mut Vec<Effect>) {
        match self.phase.judge(&request) {
            Verdict::Take => {}
            Verdict::Ignore => return,
            Verdict::Refuse(why) => {
                out.push(Effect::Refused { request: subject(&request), why: why.to_owned() });
                // A start over the bus has no answer.
                if let Request::Stage(message) = &request {
                    answer(out, reply_to, || Answer::Staged(Box::new(refusal(message, format!("Error staging: {why}")))));
                } else if let Request::StartInstanceByHttp(_) | Request::StageByHttp(_) = request {
                    answer(out, reply_to, || Answer::Unavailable(why));
                }
                return;
            }
        }
        match request {
            Request::StartInstance(start) => self.start_instance(now, *start, out),
            Request::StartInstanceByHttp(start) => {
                answer(out, reply_to, || Answer::Accepted);
                self.start_instance(now, *start, out);
            }
            Request::StopInstances(stop) => self.stop_instances(now, stop, out),
            Request::UpdateApp(update) => self.update_app(now, &update, out),
            Request::FindInstances(question) => self.find_instances(now, question, reply_to.as_ref(), out),
            Request::Locate => self.advertise(out),
            Request::LocateStager => self.advertise_stager(out),
            Request::Stage(message) => self.stage(now, *message, Requester::Bus(reply_to), out),
            Request::StageByHttp(message) => self.stage_by_http(now, *message, reply_to, out),
            Request::StopStaging(stop) => self.stop_staging(&stop.app_id, out),
            Request::ReportHeartbeat => self.heartbeat_soon(now, out),
            Request::RegisterRoutes(router) => self.on_router(now, &router, out),
            Request::ReportStatus => answer(out, reply_to, || Answer::Status(self.status())),
            Request::DiscoverComponent => answer(out, reply_to, || Answer::Component(self.discovered(now))),
            Request::LocateFiles(of) => answer(out, reply_to, || Answer::Files(self.locate_files(&of))),
            Request::ReportVarz => answer(out, reply_to, || Answer::Varz(Box::new(self.varz()))),
        }
    }

    fn on_wake(&mut self, now: Now, out: &mut Vec<Effect>) {
        while let Some(key) = self.registry.deadlines().due(now.mono) {
            self.on_instance_deadline(now, key, out);
        }
        while let Some(key) = self.tasks.deadlines().due(now.mono) {
            self.on_task_deadline(now, key, out);
        }
        self.on_evacuation_deadline(now, out);
        self.tick(now, out);
    }

    /// What is left of memory and disk after everything that is promised.
    fn remaining(&self) -> Remaining {
        Remaining::of(self.config.capacity, self.registry.totals().reserved + self.tasks.reserved())
    }

    fn next_key(&mut self) -> u64 {
        self.last_key += 1;
        self.last_key
    }

    /// 32 hex digits.
    fn fresh_id(&mut self) -> String {
        format!("{:032x}", self.rng.random::<u128>())
    }
}

fn answer(out: &mut Vec<Effect>, reply_to: Option<ReplyTo>, what: impl FnOnce() -> Answer) {
    if let Some(reply_to) = reply_to {
        out.push(Effect::Reply(reply_to, what()));
    }
}

#[cfg(test)]
mod tests;
