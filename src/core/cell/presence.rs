//! What the rest of the world is told, and when: the connection to the bus, periodic messages, routes.
//!
//! What is repeated anyway (heartbeats, advertisements, routes) is not published while the bus is down: there is no backlog, and
//! everything is told anew when it is back. Only heartbeats go on where they go another way too. What happens once
//! (`droplet.exited`, `router.unregister`, replies) is always handed to the edge, which counts what it has to drop.

use std::time::Duration;

use dewar_protocol::{
    Advertise, ComponentAnnounce, Heartbeat, Hello, Mib, PROTOCOL_VERSION, PlacementProperties, RouterStart, Shutdown, StagingAdvertise,
};

use super::Cell;
use super::pacing::{Heartbeats, Part, Sweeps};
use crate::config::Intervals;
use crate::heartbeat_size;
use crate::instance::{Instance, is_heartbeated};
use crate::lifecycle::{Departure, Phase};
use crate::{BusEvent, CellConfig, Effect, InstanceKey, Mono, Now, Publication};

/// However often a router wants routes, it does not get them more often than this.
const ROUTER_REGISTER_MIN: Duration = Duration::from_secs(1);

/// The connection, and the timers that run while there is one.
#[derive(Debug)]
pub(super) struct Presence {
    link: Link,
    intervals: Intervals,
    /// Whether heartbeats are due while there is no connection too.
    heartbeats_without_bus: bool,
    /// As configured, or less if the last router that said anything wants less.
    router_register: Duration,
    heartbeats: Heartbeats,
    /// Bytes of the largest message; as the last server said.
    limit: Option<usize>,
    /// Whether Cloud Controllers may still choose this agent.
    advertises: bool,
    advertise_at: Option<Mono>,
    sweeps: Sweeps,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// There has been no connection yet.
    New,
    Up,
    Down,
}

impl Presence {
    pub(super) fn new(config: &CellConfig) -> Self {
        let CellConfig { intervals, heartbeats_without_bus, .. } = *config;
        let mut heartbeats = Heartbeats::default();
        if heartbeats_without_bus {
            heartbeats.arm(Mono::default() + intervals.heartbeat);
        }
        Self {
            link: Link::New,
            intervals,
            heartbeats_without_bus,
            router_register: intervals.router_register,
            heartbeats,
            limit: None,
            advertises: true,
            advertise_at: None,
            sweeps: Sweeps::default(),
        }
    }

    pub(super) fn next_tick(&self) -> Option<Mono> {
        [self.heartbeats.next(), self.advertise_at, self.sweeps.next()].into_iter().flatten().min()
    }

    /// Whether there has been no connection yet.
    pub(super) fn is_new(&self) -> bool {
        self.link == Link::New
    }

    fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// Every timer from now on; each goes off first after a full interval.
    fn arm(&mut self, now: Mono, phase: Phase) {
        match phase {
            Phase::Serving | Phase::Stopping { evacuated: false, .. } => self.heartbeats.arm(now + self.intervals.heartbeat),
            Phase::Evacuating(_) | Phase::Stopping { evacuated: true, .. } | Phase::Exited => {}
        }
        self.advertise_at = self.advertises.then(|| now + self.intervals.advertise);
        self.sweeps.arm(now + self.router_register);
    }

    fn tells_health_managers(&self) -> bool {
        self.is_up() || self.heartbeats_without_bus
    }

    fn disarm(&mut self) {
        if !self.heartbeats_without_bus {
            self.heartbeats.disarm();
        }
        self.advertise_at = None;
        self.sweeps.disarm();
    }

    /// There will be no more advertisements.
    pub(super) fn stop_advertising(&mut self) {
        (self.advertises, self.advertise_at) = (false, None);
    }

    /// Heartbeats go out no longer by themselves.
    pub(super) fn stop_heartbeats(&mut self) {
        self.heartbeats.disarm();
    }
}

impl Cell {
    pub(super) fn on_bus(&mut self, now: Now, event: BusEvent, out: &mut Vec<Effect>) {
        match (event, self.presence.link) {
            (BusEvent::Limit(bytes), _) => self.presence.limit = Some(bytes),
            (BusEvent::Down, Link::New) => {}
            (BusEvent::Down, Link::Up | Link::Down) => {
                self.presence.link = Link::Down;
                self.presence.disarm();
            }
            (BusEvent::Up, Link::New) => {
                self.connected(now);
                self.introduce(now, out);
            }
            (BusEvent::Up, Link::Up | Link::Down) => {
                self.connected(now);
                self.reintroduce(now, out);
            }
        }
    }

    fn connected(&mut self, now: Now) {
        self.presence.link = Link::Up;
        self.presence.arm(now.mono, self.phase);
    }

    fn introduce(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.tell_withheld(out);
        self.register_all(out);
        self.greet_routers(out);
        if self.phase == Phase::Serving && self.config.announces_component {
            out.push(Effect::Publish(Publication::ComponentAnnounce(self.component())));
        }
        if self.presence.advertises && self.config.legacy_messages {
            let (id, ip) = (self.config.id.clone(), self.config.ip.clone());
            out.push(Effect::Publish(Publication::Hello(Hello { id, ip, version: PROTOCOL_VERSION.to_owned() })));
        }
        self.advertise(out);
        self.advertise_stager(out);
        self.heartbeat(now, out);
        self.register_all(out);
    }

    /// The heartbeat comes first: health managers count the time since the last one.
    fn reintroduce(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.heartbeat(now, out);
        self.register_all(out);
        self.advertise(out);
        self.advertise_stager(out);
        self.greet_routers(out);
    }

    /// Routers answer with how often they want routes, and get them all.
    fn greet_routers(&self, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Serving | Phase::Evacuating(_) if self.config.legacy_messages => out.push(Effect::Publish(Publication::RouterGreet)),
            Phase::Serving | Phase::Evacuating(_) | Phase::Stopping { .. } | Phase::Exited => {}
        }
    }

    /// Everything periodic whose time has come.
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        let presence = &mut self.presence;
        let heartbeat = presence.heartbeats.is_due(now.mono, presence.intervals.heartbeat);
        let advertise = presence.advertise_at.is_some_and(|at| at <= now.mono);
        if heartbeat {
            self.heartbeat(now, out);
        }
        if advertise {
            self.presence.advertise_at = Some(now.mono + self.presence.intervals.advertise);
            self.advertise(out);
            self.advertise_stager(out);
        }
        self.sweep(now, out);
    }

    /// Registers the part of the routes whose turn it is.
    fn sweep(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Presence { sweeps, router_register, .. } = &mut self.presence;
        let Some(Part { after, instances }) = sweeps.due(now.mono, *router_register, self.registry.len()) else { return };
        let (mut seen, mut last) = (0, None);
        for instance in self.registry.after(after).take(instances) {
            (seen, last) = (seen + 1, Some(instance.key));
            out.extend(registration(instance, &self.config));
        }
        let last = last.filter(|_| seen == instances);
        sweeps.done(now.mono, *router_register, last);
        if last.is_none() {
            self.register_files(out);
        }
    }

    /// A router is there: it gets every route now, and from now on as often as it wants.
    pub(super) fn on_router(&mut self, now: Now, router: &RouterStart, out: &mut Vec<Effect>) {
        self.register_all(out);
        if let Some(seconds) = router.minimum_register_interval_seconds {
            let wanted = Duration::from_secs(seconds.into()).max(ROUTER_REGISTER_MIN);
            self.presence.router_register = wanted.min(self.presence.intervals.router_register);
        }
        if self.presence.is_up() {
            self.presence.sweeps.arm(now.mono + self.presence.router_register);
        }
    }

    /// Every route, that to the file server last.
    pub(super) fn register_all(&self, out: &mut Vec<Effect>) {
        if self.presence.is_up() {
            out.extend(self.registry.iter().filter_map(|instance| registration(instance, &self.config)));
            self.register_files(out);
        }
    }

    /// `router.register` for routes of one instance, if it is reachable at all.
    pub(super) fn register(&self, key: InstanceKey, uris: Vec<String>, out: &mut Vec<Effect>) {
        if self.presence.is_up() {
            let registration = self.registry.get(key).and_then(|instance| instance.registration(uris, &self.config));
            out.extend(registration.map(|registration| Effect::Publish(Publication::RouterRegister(registration))));
        }
    }

    /// `router.register` for all routes of one instance, if it is reachable and has any.
    pub(super) fn register_whole(&self, key: InstanceKey, out: &mut Vec<Effect>) {
        let uris = self.registry.get(key).map(|instance| instance.uris.clone());
        self.register(key, uris.unwrap_or_default(), out);
    }

    /// `router.unregister` for routes of one instance, if it ever was reachable.
    pub(super) fn unregister(&self, key: InstanceKey, uris: Vec<String>, out: &mut Vec<Effect>) {
        let registration = self.registry.get(key).and_then(|instance| instance.registration(uris, &self.config));
        out.extend(registration.map(|registration| Effect::Publish(Publication::RouterUnregister(registration))));
    }

    /// Tells health managers of a change: now, or with others a moment later.
    pub(super) fn heartbeat_soon(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.may_beat() && self.presence.heartbeats.change(now.mono) {
            self.heartbeat(now, out);
        }
    }

    pub(super) fn heartbeat(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !self.may_beat() {
            return;
        }
        self.presence.heartbeats.told(now.mono);
        let told = self.registry.iter().filter(|instance| is_heartbeated(instance.state()));
        let droplets: Vec<_> = told.map(Instance::heartbeat_entry).collect();
        if self.config.empty_heartbeats || !droplets.is_empty() {
            out.push(Effect::Publish(Publication::Heartbeat(Heartbeat { droplets, dea: self.config.id.clone() })));
        }
    }

    /// Whether there is somebody to hear heartbeats, and what they would tell is not taken for lost already.
    fn may_beat(&self) -> bool {
        self.presence.tells_health_managers() && !matches!(self.phase, Phase::Evacuating(Departure { silent: true, .. }))
    }

    /// Bytes that a heartbeat may have, where there is such a bound.
    pub(super) fn heartbeat_limit(&self) -> Option<usize> {
        self.presence.limit.filter(|_| self.config.whole_heartbeats)
    }

    /// Whether not even the smallest app can be taken: a Cloud Controller shall not choose this agent.
    fn is_full(&self) -> bool {
        let has_room = |limit| heartbeat_size::has_room(self.registry.totals().told, limit);
        self.registry.len() >= self.config.max_instances || !self.heartbeat_limit().is_none_or(has_room)
    }

    /// What is left for apps.
    fn available_memory(&self) -> Mib {
        let memory = self.remaining().memory();
        if self.is_full() { memory.min(Mib(0)) } else { memory }
    }

    pub(super) fn advertise(&self, out: &mut Vec<Effect>) {
        if self.presence.is_up() && self.presence.advertises {
            let remaining = self.remaining();
            out.push(Effect::Publish(Publication::Advertise(Advertise {
                id: self.config.id.clone(),
                stacks: self.config.stacks.clone(),
                available_memory: self.available_memory(),
                available_disk: remaining.disk(),
                app_id_to_count: self.registry.app_counts(),
                placement_properties: PlacementProperties { zone: self.config.zone.clone() },
                url: self.config.url.clone(),
            })));
        }
    }

    pub(super) fn advertise_stager(&self, out: &mut Vec<Effect>) {
        if self.presence.is_up() && self.presence.advertises && self.config.staging.enabled && self.config.legacy_messages {
            let remaining = self.remaining();
            out.push(Effect::Publish(Publication::StagingAdvertise(StagingAdvertise {
                id: self.config.id.clone(),
                stacks: self.config.stacks.clone(),
                available_memory: remaining.memory(),
                available_disk: remaining.disk(),
            })));
        }
    }

    /// For `dea.shutdown`.
    pub(super) fn farewell(&self) -> Shutdown {
        Shutdown {
            id: self.config.id.clone(),
            ip: self.config.ip.clone(),
            version: PROTOCOL_VERSION.to_owned(),
            app_id_to_count: self.registry.app_counts(),
        }
    }

    pub(super) fn component(&self) -> ComponentAnnounce {
        ComponentAnnounce {
            kind: "DEA".to_owned(),
            index: self.config.index,
            uuid: self.config.id.to_string(),
            host: self.config.component.host.clone(),
            credentials: self.config.component.credentials.clone(),
            start: self.config.component.start.clone(),
            uptime: None,
        }
    }
}

/// `router.register` for all routes of an instance, if it has any at the moment.
fn registration(instance: &Instance, config: &CellConfig) -> Option<Effect> {
    let routed = instance.is_routed().then(|| instance.registration(instance.uris.clone(), config))?;
    routed.map(|registration| Effect::Publish(Publication::RouterRegister(registration)))
}
