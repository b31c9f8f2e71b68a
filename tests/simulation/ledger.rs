//! What an observer writes down about one agent process, and what must hold after every input:
//!
//! - no more is promised than there is;
//! - every live sandbox has one registry entry, and every entry that needs a sandbox has a live one;
//! - states follow each other as the protocol's table says, and the registry says what the transitions said;
//! - a route leads to running instances only, and is taken back before the sandbox is asked to end;
//! - while there is a bus, health managers hear of a running instance at once or a moment later, and of all of them every time;
//! - one CRASHED exit message per crash, at the time of the crash, and nothing after STOPPED;
//! - at most one first reply and one second reply to a staging request, in this order;
//! - what an instance may have left on disk is deleted once, and not while its sandbox lives;
//! - what is saved names what is registered, and what is registered is saved soon;
//! - nothing periodic while the bus is down, no advertisement after the farewell, nothing new once the agent leaves;
//! - an evacuated agent keeps what it has, tells of its going once, and is gone when its time is over;
//! - waking an agent before its time changes nothing, and waking it in time moves its next time on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use dewar_core::{
    Answer, BusEvent, Cell, Effect, Input, InstanceKey, Intervals, Mono, Now, Publication, ReplyTo, Request, SandboxEvent, Signal, TaskKey,
    Varz, VarzInstance,
};
use dewar_protocol::{DropletExited, ExitReason, Heartbeat, InstanceId, InstanceState, RouteRegistration};

use crate::agent::stray;
use crate::world::answers;

/// How long a change may wait to be told together with others.
const HEARTBEAT_DELAY: Duration = Duration::from_millis(250);

const HEARTBEAT: &str = "dea.heartbeat";
const ADVERTISE: &str = "dea.advertise";
const STAGING_ADVERTISE: &str = "staging.advertise";
const REGISTER: &str = "router.register";
/// The longest evacuation that [`crate::agent::config`] allows.
const EVACUATION_MOST: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    states: BTreeMap<InstanceKey, InstanceState>,
    ports: BTreeMap<u16, InstanceKey>,
    /// By port.
    routes: BTreeMap<u16, BTreeSet<String>>,
    /// Crashes whose message has not come yet.
    untold: BTreeSet<InstanceId>,
    pub(crate) ended: BTreeSet<InstanceId>,
    /// Crashes that could not be told at their time.
    late: BTreeSet<InstanceId>,
    /// Who runs and has not been in a heartbeat since, although there was a bus all the time, and since when.
    not_told: BTreeMap<InstanceKey, Mono>,
    /// How many first and second replies each request has got.
    pub(crate) stagings: HashMap<ReplyTo, (u32, u32)>,
    /// Stagings that were accepted over HTTP.
    pub(crate) accepted: usize,
    /// Those of them whose end was reported.
    reported: BTreeSet<TaskKey>,
    /// Instances that have been STARTING and whose files have not been deleted, by their id at the start.
    pub(crate) files: BTreeMap<InstanceId, InstanceKey>,
    /// Who is about to lose its files.
    cleared: BTreeSet<InstanceKey>,
    /// When what is repeated was said last; routes by port.
    said: BTreeMap<(&'static str, u16), Mono>,
    connected: bool,
    /// Before it ever was, what happens once is kept back.
    ever_connected: bool,
    /// It is being told now.
    catches_up: bool,
    /// It is out of placement.
    farewell: bool,
    /// It takes nothing new.
    leaving: bool,
    /// Since it was told to evacuate, as long as that lasts.
    evacuating: Option<Mono>,
    evacuated: bool,
    /// It takes no requests.
    deaf: bool,
    /// Whose evacuation was told.
    foretold: BTreeSet<InstanceId>,
}

pub(crate) fn varz(cell: &mut Cell, now: Now) -> Varz {
    let effects = cell.handle(now, Input::Request(Request::ReportVarz, Some(ReplyTo("observer".into()))));
    let found = answers(effects).find_map(|answer| match answer {
        Answer::Varz(varz) => Some(*varz),
        _ => None,
    });
    found.expect("varz is always answered")
}

impl Ledger {
    /// An input that is about to be taken.
    pub(crate) fn expect(&mut self, now: Now, input: &Input) {
        match input {
            Input::Signal(Signal::Shutdown) => (self.leaving, self.evacuating) = (true, None),
            Input::Signal(Signal::Evacuate) if !self.leaving => {
                (self.leaving, self.evacuated, self.evacuating) = (true, true, Some(now.mono));
                self.not_told.clear();
            }
            Input::Bus(event @ (BusEvent::Up | BusEvent::Down)) => {
                self.connected = *event == BusEvent::Up;
                self.catches_up = self.connected && !self.ever_connected;
                self.ever_connected |= self.connected;
                self.not_told.clear();
            }
            Input::Sandbox(key, SandboxEvent::Launched { port: Some(port), .. }) => drop(self.ports.insert(*port, *key)),
            Input::Request(Request::Stage(_), Some(reply_to)) => drop(self.stagings.insert(reply_to.clone(), (0, 0))),
            _ => {}
        }
    }

    /// An input that has been taken.
    pub(crate) fn taken(&mut self, input: &Input, effects: &[Effect]) {
        self.catches_up = false;
        assert!(self.untold.is_empty() || !self.ever_connected, "a crash was not told: {effects:?}");
        if let (Input::Request(Request::Stage(_), Some(reply_to)), [Effect::Refused { .. }, ..]) = (input, effects) {
            let answered = self.stagings.remove(reply_to);
            assert!(!self.leaving || answered == Some((0, 1)), "a refused staging is answered");
        }
    }

    pub(crate) fn has_said_farewell(&self) -> bool {
        self.farewell
    }

    /// One effect, in its order.
    pub(crate) fn note(&mut self, now: Now, effect: &Effect) {
        match effect {
            Effect::Publish(publication) => self.note_publication(now, publication),
            Effect::Reply(to, answer) => self.note_answer(to, answer),
            Effect::Transitioned { instance, instance_id, from, to, .. } => self.note_transition(now, *instance, instance_id, *from, *to),
            Effect::StartSandbox(spec) => {
                assert!(!self.deaf, "something is started by an agent that shuts down");
                let state = self.states.get(&spec.key);
                let known = match spec.resumed {
                    Some(_) => matches!(state, Some(InstanceState::Resuming)),
                    None => matches!(state, Some(InstanceState::Starting | InstanceState::Evacuating)),
                };
                assert!(known, "{state:?}");
            }
            Effect::StopSandbox(key) => {
                let mut leading = self.routes.iter().filter(|(port, uris)| !uris.is_empty() && self.ports.get(port) == Some(key));
                assert_eq!(leading.next(), None, "routes still lead to {key:?}, which is asked to end");
            }
            // Found on disk, and never anybody's.
            Effect::DeleteInstanceFiles(id) if *id == stray() => {}
            Effect::DeleteInstanceFiles(id) | Effect::MakeRoom(id) => {
                let key = self.files.remove(id);
                self.cleared.insert(key.unwrap_or_else(|| panic!("{id:?} has no files, or none any more")));
            }
            Effect::StartStaging(_) | Effect::FetchDroplet { .. } => assert!(!self.leaving, "something is begun by an agent that leaves"),
            Effect::ReportStaging { task, reply } => {
                assert!(self.reported.insert(*task), "a staging is reported twice");
                assert!(self.reported.len() <= self.accepted, "a staging is reported that nobody asked for");
                assert_eq!(reply.error.is_none(), reply.droplet_sha1.is_some());
            }
            Effect::Unsubscribe => (self.deaf, self.evacuating) = (true, None),
            Effect::SaveSnapshot(_)
            | Effect::KillSandbox(_)
            | Effect::EvictDroplet(_)
            | Effect::CancelStaging(_)
            | Effect::AppLog { .. }
            | Effect::Refused { .. }
            | Effect::Exit(_) => {}
        }
    }

    fn note_publication(&mut self, now: Now, publication: &Publication) {
        let repeated = match publication {
            Publication::Heartbeat(_) => Some((HEARTBEAT, 0)),
            Publication::Advertise(_) => Some((ADVERTISE, 0)),
            Publication::StagingAdvertise(_) => Some((STAGING_ADVERTISE, 0)),
            Publication::RouterRegister(it) => Some((REGISTER, it.port)),
            _ => None,
        };
        self.said.extend(repeated.map(|what| (what, now.mono)));
        match publication {
            Publication::Advertise(_) | Publication::StagingAdvertise(_) | Publication::Hello(_) => {
                assert!(self.connected && !self.farewell, "{publication:?} at {now:?}");
            }
            Publication::Heartbeat(heartbeat) => {
                assert!(self.connected, "a heartbeat without a bus");
                self.note_heartbeat(heartbeat);
            }
            Publication::RouterRegister(it) => {
                assert!(self.connected, "a registration without a bus");
                let state = self.states[&self.ports[&it.port]];
                assert!(matches!(state, InstanceState::Running | InstanceState::Evacuating), "a route to nowhere: {it:?}");
                assert!(!it.uris.is_empty());
                self.routes.entry(it.port).or_default().extend(it.uris.iter().cloned());
            }
            Publication::RouterUnregister(RouteRegistration { uris, port, .. }) => {
                assert!(!uris.is_empty());
                let known = self.routes.entry(*port).or_default();
                known.retain(|uri| !uris.contains(uri));
            }
            Publication::DropletExited(exited) => self.note_exited(now, exited),
            Publication::Shutdown(_) => self.farewell = true,
            Publication::RouterGreet | Publication::ComponentAnnounce(_) => assert!(self.connected),
        }
    }

    fn note_exited(&mut self, now: Now, exited: &DropletExited) {
        let (crashed, id) = (exited.reason == ExitReason::Crashed, &exited.instance_id);
        assert!(self.ever_connected, "told nobody: {exited:?}");
        let late = crashed && self.late.remove(id);
        assert!(late || exited.crash_timestamp == crashed.then(|| now.wall.whole_seconds()), "{exited:?} at {now:?}");
        match exited.reason {
            ExitReason::Crashed => assert!(self.untold.remove(id), "a crash is told that did not happen, or twice: {exited:?}"),
            ExitReason::Stopped => assert!(!self.leaving || self.catches_up, "{exited:?}"),
            ExitReason::DeaShutdown => assert!(self.leaving && !self.evacuated, "{exited:?}"),
            ExitReason::DeaEvacuation => {
                assert!(self.evacuated && (!self.deaf || self.catches_up) && self.foretold.insert(id.clone()), "{exited:?}");
                return;
            }
        }
        assert!(crashed || !self.foretold.contains(id), "an end that was foretold is told again: {exited:?}");
        assert!(self.ended.insert(id.clone()), "an end is told twice: {exited:?}");
    }

    fn note_heartbeat(&mut self, heartbeat: &Heartbeat) {
        let told = |state| heartbeat.droplets.iter().filter(|entry| entry.state == state).count();
        let as_told = |state| if state == InstanceState::Resuming { InstanceState::Running } else { state };
        let known = |state| self.states.iter().filter(move |(_, known)| as_told(**known) == state).map(|(key, _)| *key);
        for state in [InstanceState::Starting, InstanceState::Running, InstanceState::Evacuating] {
            assert_eq!(told(state), known(state).count(), "{state} in {heartbeat:?}");
        }
        // A crash that has just been reaped is known here until the next check.
        assert!(told(InstanceState::Crashed) <= known(InstanceState::Crashed).count());
        assert_eq!(told(InstanceState::Stopping) + told(InstanceState::Born), 0);
        self.not_told.clear();
    }

    fn note_answer(&mut self, to: &ReplyTo, answer: &Answer) {
        let staging = self.stagings.get_mut(to);
        match answer {
            Answer::Setup(_) => {
                let (first, second) = staging.expect("only stagings are answered so");
                assert_eq!((*first, *second), (0, 0), "a first reply at the wrong time");
                *first = 1;
            }
            Answer::Staged(reply) => {
                let (_, second) = staging.expect("only stagings are answered so");
                assert_eq!(*second, 0, "a second second reply");
                assert_eq!(reply.error.is_none(), reply.droplet_sha1.is_some());
                *second = 1;
            }
            Answer::Accepted => self.accepted += 1,
            Answer::Unavailable(_) => assert!(self.leaving, "an agent that does not leave takes work"),
            Answer::Found(_) | Answer::Status(_) | Answer::Component(_) | Answer::Files(_) | Answer::Varz(_) => {}
        }
    }

    fn note_transition(&mut self, now: Now, key: InstanceKey, id: &InstanceId, from: InstanceState, to: InstanceState) {
        use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
        let before = self.states.insert(key, to);
        assert_eq!(before.unwrap_or(Born), from, "{key:?} was in another state");
        let legal = matches!(
            (from, to),
            (Born, Starting | Resuming | Crashed | Stopped)
                | (Starting | Resuming, Running | Crashed | Stopping | Evacuating)
                | (Running, Crashed | Stopping | Evacuating)
                | (Evacuating, Crashed | Stopping)
                | (Stopping, Stopped)
        );
        assert!(from != Born || !self.leaving, "{key:?} is begun by an agent that leaves");
        assert!(to != Evacuating || self.evacuating == Some(now.mono), "{key:?} is evacuated later than the others");
        assert!(legal, "{key:?} went from {from} to {to}");
        if to == Running && self.connected && !self.evacuated {
            self.not_told.insert(key, now.mono);
        } else {
            self.not_told.remove(&key);
        }
        if (from, to) == (Born, Starting) {
            self.files.insert(id.clone(), key);
        }
        if to == Crashed && !(from == Resuming && self.ended.contains(id)) {
            self.untold.insert(id.clone());
            if !self.ever_connected {
                self.late.insert(id.clone());
            }
        }
    }

    /// Everything that must hold between inputs.
    pub(crate) fn check(&mut self, now: Now, cell: &mut Cell, sandboxes: &BTreeSet<InstanceKey>) {
        let late = self.not_told.iter().find(|(_, since)| now.mono - **since > HEARTBEAT_DELAY);
        assert_eq!(late, None, "health managers do not hear of it by {now:?}");
        assert!(self.evacuating.is_none_or(|since| now.mono - since <= EVACUATION_MOST), "the evacuation does not end");
        let seen = varz(cell, now);
        assert!(seen.available_memory_ratio >= 0.0 && seen.available_disk_ratio >= 0.0, "too much is promised");
        self.check_registry(&seen, sandboxes);
        self.check_routes(&seen);
        let next = cell.next_wake();
        if next.is_none_or(|next| next > now.mono) {
            assert_eq!(cell.handle(now, Input::Wake), [], "woken before its time, the agent does something");
            assert_eq!(cell.next_wake(), next);
            assert_eq!(varz(cell, now), seen);
        }
    }

    fn check_registry(&mut self, seen: &Varz, sandboxes: &BTreeSet<InstanceKey>) {
        let entries: BTreeMap<_, _> = seen.instances.iter().map(|instance| (instance.key, instance)).collect();
        assert_eq!(entries.len(), seen.instances.len(), "an instance is registered twice");
        for key in std::mem::take(&mut self.cleared) {
            assert!(!sandboxes.contains(&key), "the files of {key:?} are deleted under its sandbox");
        }
        for key in sandboxes {
            assert!(entries.contains_key(key), "sandbox {key:?} belongs to nobody");
        }
        for (key, instance) in &entries {
            assert_eq!(self.states.get(key), Some(&instance.state), "{instance:?}");
            let needs = matches!(instance.state, InstanceState::Running | InstanceState::Stopping | InstanceState::Resuming);
            assert!(!needs || sandboxes.contains(key), "no sandbox for {instance:?}");
        }
        self.states.retain(|key, state| {
            let is_gone = !entries.contains_key(key);
            assert!(!is_gone || matches!(state, InstanceState::Stopped | InstanceState::Crashed), "{key:?} has vanished while {state}");
            !is_gone
        });
    }

    fn check_routes(&self, seen: &Varz) {
        for (port, uris) in self.routes.iter().filter(|(_, uris)| !uris.is_empty()) {
            let instance = self.owner(*port, seen);
            let is_routed = |state| matches!(state, InstanceState::Running | InstanceState::Evacuating);
            assert!(instance.is_some_and(|instance| is_routed(instance.state)), "{uris:?} lead to {instance:?}");
            assert!(instance.is_some_and(|instance| uris.iter().all(|uri| instance.uris.contains(uri))), "{uris:?} lead to {instance:?}");
        }
    }

    fn owner<'a>(&self, port: u16, seen: &'a Varz) -> Option<&'a VarzInstance> {
        let key = self.ports.get(&port)?;
        seen.instances.iter().find(|instance| instance.key == *key)
    }

    pub(crate) fn assert_all_routes_are_known(&self, seen: &Varz) {
        for (port, key) in &self.ports {
            let Some(instance) = self.owner(*port, seen).filter(|instance| instance.state == InstanceState::Running) else { continue };
            let known = self.routes.get(port).cloned().unwrap_or_default();
            assert_eq!(known, instance.uris.iter().cloned().collect(), "routes to {key:?}");
        }
    }

    pub(crate) fn assert_no_routes(&self) {
        assert!(self.routes.values().all(BTreeSet::is_empty), "{:?}", self.routes);
    }

    pub(crate) fn assert_no_files(&self) {
        assert!(self.files.is_empty(), "files are left: {:?}", self.files);
    }

    pub(crate) fn assert_timers_tick(&self, now: Now, intervals: &Intervals, seen: &Varz) {
        let since = |what, port| self.said.get(&(what, port)).map(|said| now.mono - *said);
        let in_time =
            |what, port, interval| assert!(since(what, port).is_some_and(|since| since <= interval), "{what}: {:?}", since(what, port));
        in_time(HEARTBEAT, 0, intervals.heartbeat);
        in_time(ADVERTISE, 0, intervals.advertise);
        in_time(STAGING_ADVERTISE, 0, intervals.advertise);
        for port in self.routes.iter().filter(|(_, uris)| !uris.is_empty()).map(|(port, _)| *port) {
            assert!(self.owner(port, seen).is_some());
            in_time(REGISTER, port, intervals.router_register);
        }
    }

    pub(crate) fn assert_all_stagings_are_answered(&self) {
        assert_eq!(self.reported.len(), self.accepted, "stagings over HTTP whose end is not reported");
        for (to, (_, second)) in &self.stagings {
            assert_eq!(*second, 1, "{to:?} waits in vain");
        }
    }
}

/// What the runs have reached, so that a run which no longer reaches anything is noticed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coverage {
    reached: BTreeMap<String, u64>,
}

impl Coverage {
    pub(crate) fn note(&mut self, effect: &Effect) {
        let what = match effect {
            Effect::Transitioned { from, to, .. } => format!("{from} → {to}"),
            Effect::KillSandbox(_) => "kill".to_owned(),
            Effect::DeleteInstanceFiles(_) => "delete files".to_owned(),
            Effect::MakeRoom(_) => "make room".to_owned(),
            Effect::EvictDroplet(_) => "evict".to_owned(),
            Effect::CancelStaging(_) => "cancel staging".to_owned(),
            Effect::Refused { why, .. } if why.contains("shutting down") => "refused while shutting down".to_owned(),
            Effect::Refused { why, .. } if why.contains("evacuated") => "refused while evacuating".to_owned(),
            Effect::Publish(Publication::DropletExited(exited)) => exited.exit_description.lines().next().unwrap_or_default().to_owned(),
            Effect::Reply(_, Answer::Staged(reply)) => reply.error.clone().unwrap_or_else(|| "staged".to_owned()),
            Effect::Exit(code) => format!("exit {code}"),
            _ => return,
        };
        *self.reached.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, times) in &other.reached {
            *self.reached.entry(what.clone()).or_default() += times;
        }
    }

    pub(crate) fn is_complete(&self) -> bool {
        let wanted = [
            "BORN → STARTING",
            "BORN → CRASHED",
            "STARTING → RUNNING",
            "STARTING → STOPPING",
            "STARTING → CRASHED",
            "RUNNING → STOPPING",
            "RUNNING → CRASHED",
            "RUNNING → EVACUATING",
            "STARTING → EVACUATING",
            "EVACUATING → STOPPING",
            "EVACUATING → CRASHED",
            "STOPPING → STOPPED",
            "BORN → RESUMING",
            "RESUMING → RUNNING",
            "RESUMING → CRASHED",
            "RESUMING → STOPPING",
            "the agent was restarted while the instance was starting",
            "Error staging: task stopped, the agent was restarted",
            "kill",
            "delete files",
            "make room",
            "evict",
            "cancel staging",
            "refused while shutting down",
            "refused while evacuating",
            "Not enough disk resource available.",
            "Not enough memory resource available.",
            "failed to start",
            "failed to accept connections within health check timeout",
            "wasm trap: unreachable",
            "staged",
            "no",
            "no bits",
            "Error staging: task stopped",
            "Staging in container timed out",
            "exit 0",
            "exit 1",
        ];
        wanted.iter().all(|what| self.reached.contains_key(*what))
    }
}
