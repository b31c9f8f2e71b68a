//! Time, and what happens in it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use dewar_core::{BusEvent, Effect, Input, KeptDroplet, Mono, Now, ReplyTo, Request, Signal, VarzInstance, Wall};
use dewar_protocol::Snapshot;

use crate::agent::{Agent, Later, Luck};
use crate::chance::Chance;
use crate::ledger::{Coverage, varz};
use crate::restart::Disk;
use crate::timeless;

pub(crate) struct World {
    pub(crate) chance: Chance,
    agents: Vec<Agent>,
    luck: Luck,
    weather: Weather,
    /// Whether wall clocks do jump when they are told to.
    jumps: bool,
    mono: Duration,
    wall: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    events: u64,
    requests: u64,
    processes: u64,
    history: DefaultHasher,
    /// The same without what is told of wall time.
    timeless: DefaultHasher,
    coverage: Coverage,
}

/// How the network treats messages, in percent and at most so late: what is late may be overtaken.
#[derive(Debug, Clone, Copy)]
struct Weather {
    lost: u32,
    twice: u32,
    late: Duration,
}

const FAIR: Weather = Weather { lost: 3, twice: 3, late: Duration::from_secs(2) };
const FOUL: Weather = Weather { lost: 30, twice: 30, late: Duration::from_secs(30) };

#[derive(Debug, Clone)]
struct Event {
    agent: usize,
    process: u64,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Later(Later),
    /// Comes as it is, even if it is late or a repetition.
    Input(Input),
}

impl World {
    pub(crate) fn new(seed: u64, agents: usize) -> Self {
        let mut world = Self {
            chance: Chance::new(seed),
            agents: Vec::new(),
            luck: Luck::Bad,
            weather: FAIR,
            jumps: true,
            mono: Duration::ZERO,
            wall: Duration::from_secs(1_381_932_000),
            queue: BTreeMap::new(),
            events: 0,
            requests: 0,
            processes: 0,
            history: DefaultHasher::new(),
            timeless: DefaultHasher::new(),
            coverage: Coverage::default(),
        };
        for number in 0..agents {
            let agent = world.process();
            world.agents.push(agent);
            world.resume(number, None);
            world.plan(number, Duration::from_secs(1), What::Later(Later::Bus(BusEvent::Up)));
        }
        world
    }

    /// A world whose wall clocks go on evenly, in which otherwise happens what does in [`World::new`].
    pub(crate) fn with_steady_clocks(seed: u64, agents: usize) -> Self {
        Self { jumps: false, ..Self::new(seed, agents) }
    }

    fn process(&mut self) -> Agent {
        self.processes += 1;
        Agent::new(self.processes, &mut self.chance)
    }

    pub(crate) fn agents(&self) -> usize {
        self.agents.len()
    }

    /// Lets so much time pass, and everything happen that happens meanwhile.
    pub(crate) fn run_for(&mut self, span: Duration) {
        let until = self.mono + span;
        let mut steps = 0;
        loop {
            let wake = self.agents.iter().enumerate().filter_map(|(number, agent)| Some((agent.cell.next_wake()?.0, number))).min();
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            match (wake, next) {
                (Some((at, number)), next) if at <= until && next.is_none_or(|next| at <= next) => {
                    self.mono = self.mono.max(at);
                    self.feed(number, Input::Wake);
                }
                (_, Some(next)) if next <= until => {
                    self.mono = self.mono.max(next);
                    if let Some((_, event)) = self.queue.pop_first() {
                        self.happen(event);
                    }
                }
                _ => break,
            }
            steps += 1;
            assert!(steps < 100_000, "time does not go on");
        }
        self.mono = until;
    }

    fn happen(&mut self, event: Event) {
        let agent = &mut self.agents[event.agent];
        if agent.process != event.process {
            return;
        }
        let input = match event.what {
            What::Input(input) => Some(input),
            What::Later(later) => agent.happens(&later, &mut self.chance),
        };
        let Some(input) = input else { return };
        let may_come_again = !matches!(input, Input::Bus(_) | Input::Request(..) | Input::SnapshotSaved { .. });
        if self.luck == Luck::Bad && may_come_again && self.chance.percent(5) {
            let delay = self.chance.seconds(0, 100);
            self.plan(event.agent, delay, What::Input(input.clone()));
        }
        self.feed(event.agent, input);
    }

    fn plan(&mut self, agent: usize, delay: Duration, what: What) {
        self.events += 1;
        let process = self.agents[agent].process;
        self.queue.insert((self.mono + delay, self.events), Event { agent, process, what });
    }

    fn now(&self) -> Now {
        Now { mono: Mono(self.mono), wall: Wall(self.wall + self.mono) }
    }

    /// One input to one agent: its effects are carried out, then everything must still be in order.
    pub(crate) fn feed(&mut self, number: usize, input: Input) {
        let now = self.now();
        let agent = &mut self.agents[number];
        agent.ledger.expect(now, &input);
        let effects = agent.cell.handle(now, input.clone());
        self.take(number, &input, &effects);
    }

    /// What an agent wants done.
    fn take(&mut self, number: usize, input: &Input, effects: &[Effect]) {
        let now = self.now();
        let agent = &mut self.agents[number];
        (number, self.mono).hash(&mut self.history);
        format!("{effects:?}").hash(&mut self.history);
        (number, self.mono).hash(&mut self.timeless);
        for effect in effects {
            format!("{:?}", timeless::without_wall_time(effect)).hash(&mut self.timeless);
        }
        let mut plans = Vec::new();
        for effect in effects {
            agent.ledger.note(now, effect);
            self.coverage.note(effect);
            plans.extend(agent.carry_out(effect, self.luck, &mut self.chance));
        }
        agent.ledger.taken(input, effects);
        if agent.exit_code.is_none() {
            let sandboxes = agent.live_sandboxes();
            agent.ledger.check(now, &mut agent.cell, &sandboxes);
            agent.disk.check(now, &varz(&mut agent.cell, now), effects);
        }
        for (delay, later) in plans {
            self.plan(number, delay, What::Later(later));
        }
        let restarts = self.luck == Luck::Bad && self.agents[number].exit_code.is_some();
        if restarts {
            self.restart(number);
        }
    }

    /// A new process takes the place of one that has ended or was killed.
    pub(crate) fn restart(&mut self, number: usize) {
        let left = self.agents[number].disk.after_a_kill(&mut self.chance);
        let next_port = self.agents[number].next_port;
        self.agents[number] = self.process();
        self.agents[number].next_port = next_port;
        self.resume(number, left);
        let delay = self.chance.seconds(0, 10);
        self.plan(number, delay, What::Later(Later::Bus(BusEvent::Up)));
    }

    /// A process begins with what another one has left.
    fn resume(&mut self, number: usize, left: Option<Snapshot>) {
        let now = self.now();
        let agent = &mut self.agents[number];
        agent.disk = Disk::with(left.clone());
        agent.ledger.succeed(left.as_ref());
        let effects = agent.cell.resume(now, left);
        self.take(number, &Input::Wake, &effects);
        let agent = &mut self.agents[number];
        agent.disk.assert_nothing_is_lost_or_doubled(&varz(&mut agent.cell, now));
    }

    /// A message to one agent. It does not come while the agent is not connected; it may come late, twice or not at all.
    pub(crate) fn send(&mut self, number: usize, request: &Request) {
        let Weather { lost, twice, late } = self.weather;
        let copies = match self.luck {
            Luck::Bad if self.chance.percent(lost) => 0,
            Luck::Bad if self.chance.percent(twice) => 2,
            Luck::Bad | Luck::Good => 1,
        };
        for _ in 0..copies {
            if self.agents[number].bus == BusEvent::Up {
                let reply_to = self.reply_to();
                let delay = self.chance.pause(late);
                self.plan(number, delay, What::Input(Input::Request(request.clone(), Some(reply_to))));
            }
        }
    }

    pub(crate) fn broadcast(&mut self, request: &Request) {
        for number in 0..self.agents.len() {
            self.send(number, request);
        }
    }

    fn reply_to(&mut self) -> ReplyTo {
        self.requests += 1;
        ReplyTo(format!("inbox-{}", self.requests).into())
    }

    /// Takes the bus away from an agent for a while.
    pub(crate) fn disconnect(&mut self, number: usize) {
        self.plan(number, Duration::ZERO, What::Later(Later::Bus(BusEvent::Down)));
        let delay = self.chance.seconds(0, 90);
        self.plan(number, delay, What::Later(Later::Bus(BusEvent::Up)));
    }

    /// Takes the bus away from an agent and gives it back, again and again.
    pub(crate) fn flap(&mut self) {
        let number = self.chance.below(self.agents.len());
        for _ in 0..5 {
            for event in [BusEvent::Down, BusEvent::Up] {
                let delay = self.chance.seconds(0, 5);
                self.plan(number, delay, What::Later(Later::Bus(event)));
            }
        }
        self.plan(number, Duration::from_secs(6), What::Later(Later::Bus(BusEvent::Up)));
    }

    /// Takes the bus away from everybody.
    pub(crate) fn lose_the_server(&mut self) {
        let delay = self.chance.seconds(0, 300);
        for number in 0..self.agents.len() {
            self.plan(number, Duration::ZERO, What::Later(Later::Bus(BusEvent::Down)));
            self.plan(number, delay, What::Later(Later::Bus(BusEvent::Up)));
        }
    }

    pub(crate) fn change_weather(&mut self) {
        self.weather = if self.chance.percent(50) { FOUL } else { FAIR };
    }

    /// Sets all wall clocks: by a little, as a time server does, or to another year; back or forth.
    pub(crate) fn jump(&mut self) {
        let wall = match self.chance.below(3) {
            0 => self.wall + self.chance.seconds(0, 120),
            1 => self.wall - self.chance.seconds(0, 120),
            _ => Duration::from_secs(1_300_000_000) + self.chance.seconds(0, 200_000_000),
        };
        if self.jumps {
            self.wall = wall;
        }
    }

    /// Measures an agent's sandboxes.
    pub(crate) fn measure(&mut self, number: usize) {
        let sandboxes = self.agents[number].live_sandboxes();
        let cpu = self.mono.mul_f64(0.5);
        let sample = dewar_core::Sample { cpu, memory: dewar_protocol::Bytes(1 << 24), disk: dewar_protocol::Bytes(1 << 20) };
        self.feed(number, Input::Usage(sandboxes.into_iter().map(|key| (key, sample)).collect()));
    }

    /// Looks at an agent's disk, as its edge does from time to time.
    pub(crate) fn tidy(&mut self, number: usize) {
        let used = crate::agent::disk_use(&mut self.chance);
        let droplets = (0..3).map(|digit| KeptDroplet { sha1: crate::controller::digest(digit), size: dewar_protocol::Bytes(1) });
        let directories = self.agents[number].directories();
        for input in [Input::CrashDisk(used), Input::Strays(directories), Input::Droplets(droplets.collect())] {
            self.feed(number, input);
        }
    }

    /// From now on nothing goes wrong any more.
    pub(crate) fn heal(&mut self) {
        self.luck = Luck::Good;
        self.weather = FAIR;
        for number in 0..self.agents.len() {
            self.agents[number].heal();
            if self.agents[number].exit_code.is_some() || self.agents[number].ledger.has_said_farewell() {
                self.restart(number);
            }
            self.plan(number, Duration::from_secs(15), What::Later(Later::Bus(BusEvent::Up)));
        }
    }

    pub(crate) fn shut_down(&mut self) {
        for number in 0..self.agents.len() {
            self.feed(number, Input::Signal(Signal::Shutdown));
        }
    }

    pub(crate) fn exit_codes(&self) -> Vec<Option<u8>> {
        self.agents.iter().map(|agent| agent.exit_code).collect()
    }

    /// Every instance of every agent.
    pub(crate) fn instances(&mut self) -> Vec<VarzInstance> {
        let now = self.now();
        self.agents.iter_mut().flat_map(|agent| varz(&mut agent.cell, now).instances).collect()
    }

    pub(crate) fn assert_all_routes_are_known(&mut self) {
        let now = self.now();
        for agent in &mut self.agents {
            agent.ledger.assert_all_routes_are_known(&varz(&mut agent.cell, now));
        }
    }

    pub(crate) fn assert_nothing_is_being_staged(&mut self) {
        let now = self.now();
        for agent in &mut self.agents {
            assert_eq!(varz(&mut agent.cell, now).staging_tasks, 0);
            agent.ledger.assert_all_stagings_are_answered();
        }
    }

    pub(crate) fn assert_nothing_is_left(&mut self) {
        let now = self.now();
        for agent in &mut self.agents {
            let varz = varz(&mut agent.cell, now);
            assert_eq!((varz.available_memory_ratio, varz.available_disk_ratio), (1.0, 1.0));
            assert!(agent.live_sandboxes().is_empty());
            agent.ledger.assert_no_routes();
            agent.ledger.assert_no_files();
        }
    }

    /// Every agent says in time what it is to repeat.
    pub(crate) fn assert_timers_tick(&mut self) {
        let now = self.now();
        for agent in &mut self.agents {
            agent.ledger.assert_timers_tick(now, &agent.intervals, &varz(&mut agent.cell, now));
        }
    }

    pub(crate) fn timeless_fingerprint(&self) -> u64 {
        self.timeless.finish()
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.history.finish()
    }

    pub(crate) fn coverage(&self) -> &Coverage {
        &self.coverage
    }
}

/// What an agent answers.
pub(crate) fn answers(effects: Vec<Effect>) -> impl Iterator<Item = dewar_core::Answer> {
    effects.into_iter().filter_map(|effect| match effect {
        Effect::Reply(_, answer) => Some(answer),
        _ => None,
    })
}
