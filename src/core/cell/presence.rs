//! What the rest of the world is told, and when: the connection to the bus, periodic messages, routes.
//!
//! What is repeated anyway (heartbeats, advertisements, routes) is not published while the bus is down: there is no backlog, and
//! everything is told anew when it is back. What happens once (`droplet.exited`, `router.unregister`, replies) is always handed to
//! the edge, which counts what it has to drop.

use std::time::Duration;

use dewar_protocol::{
    Advertise, ComponentAnnounce, Heartbeat, Hello, PROTOCOL_VERSION, PlacementProperties, RouterStart, Shutdown, StagingAdvertise,
};

use super::Cell;
use crate::config::Intervals;
use crate::instance::{Instance, is_heartbeated, is_routed};
use crate::lifecycle::Phase;
use crate::{BusEvent, Effect, InstanceKey, Mono, Now, Publication};

/// However often a router wants routes, it does not get them more often than this.
const ROUTER_REGISTER_MIN: Duration = Duration::from_secs(1);

/// The connection, and the timers that run while there is one.
#[derive(Debug)]
pub(super) struct Presence {
    link: Link,
    intervals: Intervals,
    /// As configured, or less if the last router that said anything wants less.
    router_register: Duration,
    heartbeat_at: Option<Mono>,
    advertise_at: Option<Mono>,
    register_at: Option<Mono>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// There has been no connection yet.
    New,
    Up,
    Down,
}

impl Presence {
    pub(super) fn new(intervals: Intervals) -> Self {
        Self {
            link: Link::New,
            intervals,
            router_register: intervals.router_register,
            heartbeat_at: None,
            advertise_at: None,
            register_at: None,
        }
    }

    pub(super) fn next_tick(&self) -> Option<Mono> {
        [self.heartbeat_at, self.advertise_at, self.register_at].into_iter().flatten().min()
    }

    fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// Every timer from now on; each goes off first after a full interval.
    fn arm(&mut self, now: Mono, phase: Phase) {
        self.heartbeat_at = Some(now + self.intervals.heartbeat);
        self.advertise_at = (phase == Phase::Serving).then(|| now + self.intervals.advertise);
        self.register_at = Some(now + self.router_register);
    }

    fn disarm(&mut self) {
        (self.heartbeat_at, self.advertise_at, self.register_at) = (None, None, None);
    }

    /// There will be no more advertisements.
    pub(super) fn stop_advertising(&mut self) {
        self.advertise_at = None;
    }
}

/// Whether a timer goes off; if it does it is set again.
fn goes_off(timer: &mut Option<Mono>, now: Mono, interval: Duration) -> bool {
    let due = timer.is_some_and(|at| at <= now);
    if due {
        *timer = Some(now + interval);
    }
    due
}

impl Cell {
    pub(super) fn on_bus(&mut self, now: Now, event: BusEvent, out: &mut Vec<Effect>) {
        match (event, self.presence.link) {
            (BusEvent::Down, Link::New) => {}
            (BusEvent::Down, Link::Up | Link::Down) => {
                self.presence.link = Link::Down;
                self.presence.disarm();
            }
            (BusEvent::Up, Link::New) => {
                self.connected(now);
                self.introduce(out);
            }
            (BusEvent::Up, Link::Up | Link::Down) => {
                self.connected(now);
                self.reintroduce(out);
            }
        }
    }

    fn connected(&mut self, now: Now) {
        self.presence.link = Link::Up;
        self.presence.arm(now.mono, self.phase);
    }

    fn introduce(&mut self, out: &mut Vec<Effect>) {
        if self.phase == Phase::Serving {
            out.push(Effect::Publish(Publication::RouterGreet));
            out.push(Effect::Publish(Publication::ComponentAnnounce(self.component())));
            let (id, ip) = (self.config.id.clone(), self.config.ip.clone());
            out.push(Effect::Publish(Publication::Hello(Hello { id, ip, version: PROTOCOL_VERSION.to_owned() })));
        }
        self.advertise(out);
        self.advertise_stager(out);
        self.heartbeat(out);
    }

    /// The heartbeat comes first: no health manager shall see a route before it sees its instance run.
    fn reintroduce(&mut self, out: &mut Vec<Effect>) {
        self.heartbeat(out);
        self.register_all(out);
        self.advertise(out);
        self.advertise_stager(out);
        if self.phase == Phase::Serving {
            out.push(Effect::Publish(Publication::RouterGreet));
        }
    }

    /// Everything periodic whose time has come.
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        let presence = &mut self.presence;
        let heartbeat = goes_off(&mut presence.heartbeat_at, now.mono, presence.intervals.heartbeat);
        let advertise = goes_off(&mut presence.advertise_at, now.mono, presence.intervals.advertise);
        let register = goes_off(&mut presence.register_at, now.mono, presence.router_register);
        if heartbeat {
            self.heartbeat(out);
        }
        if advertise {
            self.advertise(out);
            self.advertise_stager(out);
        }
        if register {
            self.register_all(out);
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
            self.presence.register_at = Some(now.mono + self.presence.router_register);
        }
    }

    pub(super) fn register_all(&self, out: &mut Vec<Effect>) {
        if self.presence.is_up() {
            let routed = self.registry.iter().filter(|instance| is_routed(instance.state()));
            let registrations = routed.filter_map(|instance| instance.registration(instance.uris.clone(), &self.config));
            out.extend(registrations.map(|registration| Effect::Publish(Publication::RouterRegister(registration))));
        }
    }

    /// `router.register` for routes of one instance, if it is reachable at all.
    pub(super) fn register(&self, key: InstanceKey, uris: Vec<String>, out: &mut Vec<Effect>) {
        if self.presence.is_up() {
            let registration = self.registry.get(key).and_then(|instance| instance.registration(uris, &self.config));
            out.extend(registration.map(|registration| Effect::Publish(Publication::RouterRegister(registration))));
        }
    }

    /// `router.unregister` for routes of one instance, if it ever was reachable.
    pub(super) fn unregister(&self, key: InstanceKey, uris: Vec<String>, out: &mut Vec<Effect>) {
        let registration = self.registry.get(key).and_then(|instance| instance.registration(uris, &self.config));
        out.extend(registration.map(|registration| Effect::Publish(Publication::RouterUnregister(registration))));
    }

    pub(super) fn heartbeat(&self, out: &mut Vec<Effect>) {
        if self.presence.is_up() {
            let told = self.registry.iter().filter(|instance| is_heartbeated(instance.state()));
            let droplets = told.map(Instance::heartbeat_entry).collect();
            out.push(Effect::Publish(Publication::Heartbeat(Heartbeat { droplets, dea: self.config.id.clone() })));
        }
    }

    pub(super) fn advertise(&self, out: &mut Vec<Effect>) {
        if self.presence.is_up() && self.phase == Phase::Serving {
            let remaining = self.remaining();
            out.push(Effect::Publish(Publication::Advertise(Advertise {
                id: self.config.id.clone(),
                stacks: self.config.stacks.clone(),
                available_memory: remaining.memory(),
                available_disk: remaining.disk(),
                app_id_to_count: self.registry.app_counts(),
                placement_properties: PlacementProperties { zone: self.config.zone.clone() },
                url: None,
            })));
        }
    }

    pub(super) fn advertise_stager(&self, out: &mut Vec<Effect>) {
        if self.presence.is_up() && self.phase == Phase::Serving && self.config.staging.enabled {
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
