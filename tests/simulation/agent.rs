//! An agent whose edge is made up: carries out effects with luck and bad luck, and reports what the contract says it reports.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dewar_core::{
    BusEvent, Capacity, Cell, CellConfig, ComponentFacts, DiskUse, DropletEvent, Effect, Evacuation, Exit, InstanceKey, Intervals,
    SandboxEvent, SandboxSpec, StagedDroplet, StagingError, StagingEvent, TaskKey,
};
use dewar_protocol::{Bytes, DropletSha1, InstanceId, Mib, Secret};

use crate::chance::Chance;
use crate::ledger::Ledger;
use crate::restart::Disk;

pub(crate) struct Agent {
    pub(crate) cell: Cell,
    /// Which process this is: what an earlier one has scheduled is void.
    pub(crate) process: u64,
    pub(crate) ledger: Ledger,
    pub(crate) bus: BusEvent,
    pub(crate) exit_code: Option<u8>,
    pub(crate) intervals: Intervals,
    pub(crate) disk: Disk,
    pub(crate) next_port: u16,
    sandboxes: BTreeMap<InstanceKey, Sandbox>,
    tasks: BTreeSet<TaskKey>,
}

/// More kills than anybody has patience for: such a sandbox ends only after the world has healed.
const NEVER: u32 = u32::MAX;

#[derive(Debug)]
struct Sandbox {
    files: InstanceId,
    sha1: DropletSha1,
    port: Option<u16>,
    launched: bool,
    /// How many more kills it survives; see [`NEVER`].
    deaf: u32,
    ending: bool,
}

/// What an agent's edge does later by itself.
#[derive(Debug, Clone)]
pub(crate) enum Later {
    Launch(InstanceKey),
    Ready(InstanceKey),
    End(InstanceKey, Exit),
    Droplet(DropletSha1, DropletEvent),
    Staging(TaskKey, StagingEvent),
    CrashDisk(DiskUse),
    Saved { ok: bool },
    Bus(BusEvent),
}

pub(crate) type Plans = Vec<(Duration, Later)>;

/// Whether anything goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Luck {
    Bad,
    Good,
}

pub(crate) fn config(process: u64, chance: &mut Chance) -> CellConfig {
    let component = ComponentFacts { host: String::new(), credentials: Secret::default(), start: String::new() };
    let mut config = CellConfig::new(format!("cell-{process}").as_str().into(), "10.0.0.1".to_owned(), component);
    config.stacks = vec!["wasm".to_owned()];
    config.capacity = Capacity { memory: Mib(2000), disk: Mib(5000) };
    config.max_instances = 40;
    if chance.percent(75) {
        // Most agents are quieter than they are by default: what they repeat takes most of a run's time.
        let (calm, calmer) = (Duration::from_secs(20), Duration::from_secs(40));
        config.intervals = Intervals { heartbeat: calm, advertise: calm, router_register: calmer };
    }
    config.preparation_limit = Duration::from_secs(120);
    config.crash_lifetime = Duration::from_secs(600);
    config.droplet_budget = Bytes(1);
    config.staging.time_limit = Duration::from_secs(300);
    config.staging.memory = Mib(300);
    config.staging.disk = Mib(300);
    if chance.percent(30) {
        config.exited_reasons = dewar_core::ExitedReasons::Modern;
    }
    let time = chance.seconds(10, 120);
    config.evacuation =
        if chance.percent(70) { Evacuation::Deterministic { bail_out: time } } else { Evacuation::FixedDelay { delay: time } };
    config
}

impl Agent {
    pub(crate) fn new(process: u64, chance: &mut Chance) -> Self {
        let config = config(process, chance);
        Self {
            intervals: config.intervals,
            cell: Cell::new(config, chance.fork()),
            process,
            ledger: Ledger::default(),
            bus: BusEvent::Down,
            exit_code: None,
            disk: Disk::default(),
            next_port: 20_000,
            sandboxes: BTreeMap::new(),
            tasks: BTreeSet::new(),
        }
    }

    pub(crate) fn live_sandboxes(&self) -> BTreeSet<InstanceKey> {
        self.sandboxes.keys().copied().collect()
    }

    /// Whatever was deaf hears again.
    pub(crate) fn heal(&mut self) {
        self.sandboxes.values_mut().for_each(|sandbox| sandbox.deaf = 0);
    }

    /// What becomes of an effect by and by.
    pub(crate) fn carry_out(&mut self, effect: &Effect, luck: Luck, chance: &mut Chance) -> Plans {
        match effect {
            Effect::FetchDroplet { sha1, .. } => fetch(sha1, luck, chance),
            Effect::StartSandbox(spec) => self.start(spec, luck, chance),
            Effect::StopSandbox(key) => self.stop(*key, chance),
            Effect::KillSandbox(key) => self.kill(*key, chance),
            Effect::StartStaging(spec) => {
                assert!(self.tasks.insert(spec.key), "staging task {:?} is started twice", spec.key);
                stage(spec.key, luck, chance)
            }
            Effect::CancelStaging(key) => {
                assert!(self.tasks.remove(key), "staging task {key:?} is not there to be cancelled");
                Vec::new()
            }
            // However the Cloud Controller takes it.
            Effect::ReportStaging { task, .. } => vec![(chance.seconds(0, 60), Later::Staging(*task, StagingEvent::Reported))],
            Effect::SaveSnapshot(image) => self.disk.save(image, luck, chance),
            Effect::Exit(code) => {
                self.disk.flush();
                self.exit_code = Some(*code);
                self.sandboxes.clear();
                Vec::new()
            }
            Effect::MakeRoom(_) => vec![(chance.seconds(0, 5), Later::CrashDisk(disk_use(chance)))],
            Effect::EvictDroplet(sha1) => {
                let mut users = self.sandboxes.values().filter(|sandbox| sandbox.sha1 == *sha1);
                assert!(users.next().is_none(), "a droplet that is in use is evicted");
                Vec::new()
            }
            Effect::Publish(_)
            | Effect::Reply(..)
            | Effect::DeleteInstanceFiles(_)
            | Effect::Transitioned { .. }
            | Effect::AppLog { .. }
            | Effect::Refused { .. }
            | Effect::Unsubscribe => Vec::new(),
        }
    }

    /// The report that something which was planned leads to, if it still happens.
    pub(crate) fn happens(&mut self, later: &Later, chance: &mut Chance) -> Option<dewar_core::Input> {
        use dewar_core::Input;
        match later {
            Later::Launch(key) => {
                let sandbox = self.sandboxes.get_mut(key).filter(|sandbox| !sandbox.ending)?;
                sandbox.launched = true;
                Some(Input::Sandbox(*key, SandboxEvent::Launched { port: sandbox.port, state_file: false }))
            }
            Later::Ready(key) => {
                self.sandboxes.get(key).filter(|sandbox| sandbox.launched && !sandbox.ending)?;
                Some(Input::Sandbox(*key, SandboxEvent::Ready))
            }
            Later::End(key, exit) => {
                self.sandboxes.remove(key)?;
                Some(Input::Sandbox(*key, SandboxEvent::Exited(exit.clone())))
            }
            Later::Droplet(sha1, event) => Some(Input::Droplet(sha1.clone(), event.clone())),
            Later::Staging(key, event) => {
                let wanted = match event {
                    StagingEvent::SetUp | StagingEvent::Stored(_) => self.tasks.contains(key),
                    StagingEvent::SetupFailed(_) | StagingEvent::Finished(_) => self.tasks.remove(key),
                    StagingEvent::Reported => true,
                };
                // Whoever was cancelled may have been about to report.
                (wanted || chance.percent(50)).then(|| Input::Staging(*key, event.clone()))
            }
            Later::CrashDisk(used) => Some(Input::CrashDisk(*used)),
            Later::Saved { ok } => {
                self.disk.saved(*ok);
                Some(Input::SnapshotSaved { ok: *ok })
            }
            Later::Bus(event) => (self.bus != *event).then(|| {
                self.bus = *event;
                Input::Bus(*event)
            }),
        }
    }

    /// Names of directories: of all that live here, and of one that was never anybody's.
    pub(crate) fn directories(&self) -> Vec<InstanceId> {
        let living = self.sandboxes.values().map(|sandbox| sandbox.files.clone());
        living.chain([stray()]).collect()
    }

    fn start(&mut self, spec: &SandboxSpec, luck: Luck, chance: &mut Chance) -> Plans {
        let key = spec.key;
        self.next_port += 1;
        let bad = luck == Luck::Bad;
        let old = spec.resumed.and_then(|resumed| resumed.port).filter(|_| !(bad && chance.percent(10)));
        let port = (!(bad && chance.percent(10))).then_some(old.unwrap_or(self.next_port));
        let deaf = if bad { chance.pick(&[0, 0, 0, 0, 0, 0, 0, 1, 3, NEVER]) } else { 0 };
        let (files, sha1) = (spec.instance_id.clone(), spec.sha1.clone());
        let earlier = self.sandboxes.insert(key, Sandbox { files, sha1, port, launched: false, deaf, ending: false });
        assert!(earlier.is_none(), "instance {key:?} has two sandboxes");
        if bad && chance.percent(10) {
            return vec![(chance.seconds(0, 20), Later::End(key, exit(-1, "failed to start")))];
        }
        if bad && chance.percent(7) {
            return Vec::new();
        }
        let launch = if bad && chance.percent(10) { chance.seconds(100, 140) } else { chance.seconds(0, 4) };
        let mut plans = vec![(launch, Later::Launch(key))];
        let timeout = u64::from(spec.start.health_check_timeout.unwrap_or(60));
        let ready = if bad && chance.percent(10) { chance.seconds(timeout.saturating_sub(1), timeout + 1) } else { chance.seconds(0, 4) };
        if !(bad && chance.percent(10)) {
            plans.push((launch + ready, Later::Ready(key)));
        }
        if bad && chance.percent(30) {
            let life = if chance.percent(30) { chance.pause(ready) } else { chance.seconds(1, 300) };
            plans.push((launch + life, Later::End(key, exit(134, "wasm trap: unreachable\n  0: main"))));
        }
        plans
    }

    fn stop(&mut self, key: InstanceKey, chance: &mut Chance) -> Plans {
        match self.sandboxes.get_mut(&key) {
            Some(sandbox) if sandbox.deaf == 0 => {
                sandbox.ending = true;
                vec![(chance.seconds(0, 10), Later::End(key, exit(255, "app instance exited")))]
            }
            Some(_) | None => Vec::new(),
        }
    }

    fn kill(&mut self, key: InstanceKey, chance: &mut Chance) -> Plans {
        match self.sandboxes.get_mut(&key) {
            Some(sandbox) if sandbox.deaf == 0 => {
                sandbox.ending = true;
                vec![(chance.seconds(0, 1), Later::End(key, exit(255, "killed")))]
            }
            Some(sandbox) if sandbox.deaf == NEVER => Vec::new(),
            Some(sandbox) => {
                sandbox.deaf -= 1;
                Vec::new()
            }
            None => Vec::new(),
        }
    }
}

/// The name of a directory that was never anybody's.
pub(crate) fn stray() -> InstanceId {
    InstanceId("nobody's".to_owned())
}

/// Full in one case of two.
pub(crate) fn disk_use(chance: &mut Chance) -> DiskUse {
    let mut part = || if chance.percent(30) { 0.9 } else { 0.3 };
    DiskUse { blocks: part(), inodes: part() }
}

fn exit(status: i32, description: &str) -> Exit {
    Exit { status, description: description.to_owned() }
}

fn fetch(sha1: &DropletSha1, luck: Luck, chance: &mut Chance) -> Plans {
    let (delay, event) = match (luck, chance.below(100)) {
        (Luck::Bad, 0..15) => (chance.seconds(0, 20), DropletEvent::Failed("HTTP status 500".to_owned())),
        (Luck::Bad, 15..20) => (chance.seconds(100, 400), DropletEvent::Ready),
        // The edge promises an end; the cell need not rely on it.
        (Luck::Bad, 20..23) => return Vec::new(),
        _ => (chance.seconds(0, 5), DropletEvent::Ready),
    };
    vec![(delay, Later::Droplet(sha1.clone(), event))]
}

fn stage(key: TaskKey, luck: Luck, chance: &mut Chance) -> Plans {
    let sha1 = crate::controller::digest(chance.below(3));
    let stored = Later::Staging(key, StagingEvent::Stored(sha1.clone()));
    let finished = Later::Staging(
        key,
        StagingEvent::Finished(Ok(Box::new(StagedDroplet {
            sha1,
            detected_buildpack: None,
            buildpack_key: None,
            start_command: None,
            process_types: BTreeMap::new(),
        }))),
    );
    let failed = Later::Staging(key, StagingEvent::Finished(Err(StagingError { message: "no".to_owned(), info: None })));
    let set_up = (chance.seconds(0, 5), Later::Staging(key, StagingEvent::SetUp));
    let stored = (set_up.0 + chance.seconds(0, 60), stored);
    let end = stored.0 + chance.seconds(0, 10);
    match (luck, chance.below(100)) {
        (Luck::Bad, 0..15) => vec![(chance.seconds(0, 20), Later::Staging(key, StagingEvent::SetupFailed("no bits".to_owned())))],
        (Luck::Bad, 15..35) => vec![set_up, stored, (end, failed)],
        (Luck::Bad, 35..40) => vec![(end, finished)],
        (Luck::Bad, 40..48) => vec![set_up],
        (Luck::Bad, 48..50) => Vec::new(),
        _ => vec![set_up, stored, (end, finished)],
    }
}
