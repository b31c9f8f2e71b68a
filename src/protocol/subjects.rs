//! Every NATS subject that Dewar uses, in one table.

use crate::CellId;

/// Agent → all: an agent is up.
pub const DEA_START: &str = "dea.start";
/// → agent, reply: what an agent has and holds.
pub const DEA_STATUS: &str = "dea.status";
/// → agent: advertise now.
pub const DEA_LOCATE: &str = "dea.locate";
/// Agent → Cloud Controller: what remains.
pub const DEA_ADVERTISE: &str = "dea.advertise";
/// → agent: stop instances.
pub const DEA_STOP: &str = "dea.stop";
/// → agent: new routes or version.
pub const DEA_UPDATE: &str = "dea.update";
/// → agent, replies: which instances are there.
pub const DEA_FIND_DROPLET: &str = "dea.find.droplet";
/// Agent → health manager: these instances live.
pub const DEA_HEARTBEAT: &str = "dea.heartbeat";
/// Agent → all: take me out of placement.
pub const DEA_SHUTDOWN: &str = "dea.shutdown";
/// Health manager → agent: heartbeat now.
pub const HEALTHMANAGER_START: &str = "healthmanager.start";
/// Agent → all: an instance has ended.
pub const DROPLET_EXITED: &str = "droplet.exited";
/// Router → agents: register now, and this often.
pub const ROUTER_START: &str = "router.start";
/// Agent → routers, reply as [`ROUTER_START`].
pub const ROUTER_GREET: &str = "router.greet";
/// Agent → routers: these hosts lead here.
pub const ROUTER_REGISTER: &str = "router.register";
/// Agent → routers: these hosts no longer lead here.
pub const ROUTER_UNREGISTER: &str = "router.unregister";
/// → any stager of the queue group [`STAGING_QUEUE_GROUP`]: stage.
pub const STAGING: &str = "staging";
/// The queue group of [`STAGING`].
pub const STAGING_QUEUE_GROUP: &str = "staging";
/// → stagers: advertise now.
pub const STAGING_LOCATE: &str = "staging.locate";
/// Stager → Cloud Controller: what remains.
pub const STAGING_ADVERTISE: &str = "staging.advertise";
/// → stagers: give up staging an app.
pub const STAGING_STOP: &str = "staging.stop";
/// Cloud Controller → stagers: these are the operator's buildpacks.
pub const BUILDPACKS: &str = "buildpacks";
/// Component → collector: I am here.
pub const COMPONENT_ANNOUNCE: &str = "vcap.component.announce";
/// Collector → components, reply: who is there.
pub const COMPONENT_DISCOVER: &str = "vcap.component.discover";
/// Client → agents: send me log lines. Dewar's own.
pub const LOGS: &str = "dewar.logs";

/// `dea.<id>.start`: start one instance on this agent.
#[must_use]
pub fn directed_start(cell: &CellId) -> String {
    format!("dea.{cell}.start")
}

/// `staging.<id>.start`: stage on this agent.
#[must_use]
pub fn directed_staging(cell: &CellId) -> String {
    format!("staging.{cell}.start")
}
