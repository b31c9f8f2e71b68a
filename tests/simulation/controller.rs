//! Whoever talks to agents: Cloud Controllers, health managers, routers, operators, and fate.

use dewar_core::{Input, Request, Signal};
use dewar_protocol::{
    AppId, DropletSha1, FindDroplet, InstanceFilter, InstanceState, Limits, Mib, RouterStart, Secret, StagingMessage, StagingProperties,
    StagingStop, StartMessage, Stop, TaskId, Update,
};

use crate::chance::Chance;
use crate::world::World;

const APPS: [&str; 5] = ["shop", "blog", "mail", "chat", "wiki"];

pub(crate) fn digest(number: usize) -> DropletSha1 {
    DropletSha1::parse(&number.to_string().repeat(40)).expect("forty digits")
}

/// Does one thing to the world.
pub(crate) fn act(world: &mut World) {
    match world.chance.below(100) {
        0..90 => ask(world),
        90..92 => storm(world),
        92..94 => world.change_weather(),
        94..96 => world.flap(),
        96..97 => world.lose_the_server(),
        97..99 => world.jump(),
        _ => stop_everything(world),
    }
}

/// Everybody asks at once.
fn storm(world: &mut World) {
    for _ in 0..40 {
        ask(world);
    }
}

/// One request, signal or measurement.
fn ask(world: &mut World) {
    let agent = world.chance.below(world.agents());
    match world.chance.below(1000) {
        0..400 => {
            let start = start(&mut world.chance);
            world.send(agent, &Request::StartInstance(Box::new(start)));
        }
        400..550 => {
            let stop = stop(&mut world.chance);
            world.broadcast(&Request::StopInstances(stop));
        }
        550..640 => {
            let update = update(&mut world.chance);
            world.broadcast(&Request::UpdateApp(update));
        }
        640..760 => {
            let message = Box::new(staging(&mut world.chance));
            let by_http = world.chance.percent(30);
            world.send(agent, &if by_http { Request::StageByHttp(message) } else { Request::Stage(message) });
        }
        760..790 => {
            let app_id = app(&mut world.chance);
            world.broadcast(&Request::StopStaging(StagingStop { app_id }));
        }
        790..820 => {
            let minimum_register_interval_seconds = [None, Some(0), Some(5), Some(60)][world.chance.below(4)];
            world.broadcast(&Request::RegisterRoutes(RouterStart { minimum_register_interval_seconds, ..RouterStart::default() }));
        }
        820..860 => {
            let question = FindDroplet { app_id: Some(app(&mut world.chance)), include_stats: true, ..FindDroplet::default() };
            world.broadcast(&Request::FindInstances(question));
        }
        860..880 => world.broadcast(&Request::ReportHeartbeat),
        880..900 => world.broadcast(&Request::Locate),
        900..920 => world.measure(agent),
        920..930 => world.tidy(agent),
        930..945 => stop_evacuees(world),
        945..980 => world.disconnect(agent),
        // Storms are made of these, too: more would leave no agent up for long.
        980..982 => world.feed(agent, Input::Signal(Signal::Drain)),
        982..988 => world.feed(agent, Input::Signal(Signal::Evacuate)),
        988..994 => world.feed(agent, Input::Signal(Signal::Shutdown)),
        _ => world.restart(agent),
    }
}

/// What a health manager does once it knows that others run in their place.
fn stop_evacuees(world: &mut World) {
    for evacuee in world.instances().into_iter().filter(|instance| instance.state == InstanceState::Evacuating) {
        let ids = Some(vec![evacuee.instance_id]);
        let filter = InstanceFilter { app_id: Some(evacuee.app_id), version: Some(evacuee.version), instances: ids, ..Default::default() };
        world.broadcast(&Request::StopInstances(Stop { filter, whole_app: false }));
    }
}

/// So many starts that nothing is wrong with, half of them by way of staging, on each agent.
pub(crate) fn start_fresh(world: &mut World, on_each: u32) {
    for agent in 0..world.agents() {
        for index in 0..on_each {
            let fresh = StartMessage {
                index,
                uris: vec![format!("fresh-{agent}-{index}")],
                sha1: Some(digest(1)),
                limits: Limits { mem: Mib(64), disk: Mib(100), fds: 16 },
                stack: None,
                health_check_timeout: None,
                ..start(&mut world.chance)
            };
            let request = if index % 2 == 0 {
                Request::StartInstance(Box::new(fresh))
            } else {
                Request::Stage(Box::new(StagingMessage { start_message: Some(fresh), memory_limit: None, ..staging(&mut world.chance) }))
            };
            world.send(agent, &request);
        }
    }
}

/// A stop storm.
pub(crate) fn stop_everything(world: &mut World) {
    for name in APPS {
        let filter = InstanceFilter { app_id: Some(AppId::from(name)), ..InstanceFilter::default() };
        world.broadcast(&Request::StopInstances(Stop { filter, whole_app: true }));
    }
}

fn app(chance: &mut Chance) -> AppId {
    AppId::from(chance.pick(&APPS))
}

fn uris(chance: &mut Chance) -> Vec<String> {
    let count = chance.below(4);
    (0..count).map(|_| format!("host-{}", chance.below(6))).collect()
}

fn start(chance: &mut Chance) -> StartMessage {
    let app_id = app(chance);
    StartMessage {
        index: u32::try_from(chance.below(4)).expect("small"),
        version: chance.pick(&["v1", "v2"]).to_owned(),
        name: app_id.to_string(),
        app_id,
        uris: uris(chance),
        sha1: (!chance.percent(3)).then(|| digest(chance.below(3))),
        droplet_uri: Some(Secret("http://cc/droplet".to_owned())),
        cc_partition: "default".to_owned(),
        limits: Limits { mem: Mib(chance.pick(&[0, 64, 128, 256, 1500])), disk: Mib(chance.pick(&[0, 100, 300, 3000])), fds: 16 },
        services: vec![],
        env: vec![],
        start_command: None,
        health_check_timeout: chance.pick(&[None, Some(0), Some(10), Some(120)]),
        health_check_type: None,
        health_check_http_endpoint: None,
        vcap_application: None,
        egress_network_rules: vec![],
        stack: chance.percent(2).then(|| "windows".to_owned()),
    }
}

fn stop(chance: &mut Chance) -> Stop {
    let mut filter = InstanceFilter { app_id: Some(app(chance)), ..InstanceFilter::default() };
    let whole_app = chance.percent(30);
    if !whole_app {
        filter.indices = chance.percent(50).then(|| vec![0, 1]);
        filter.version = chance.percent(30).then(|| "v1".to_owned());
        filter.states = chance.percent(20).then(|| vec![chance.pick(&["RUNNING", "starting", "DELETED", "odd"]).to_owned()]);
    }
    Stop { filter, whole_app }
}

fn update(chance: &mut Chance) -> Update {
    Update {
        app_id: app(chance),
        uris: chance.percent(80).then(|| uris(chance)),
        version: chance.percent(40).then(|| chance.pick(&["v1", "v2", "v3"]).to_owned()),
    }
}

fn staging(chance: &mut Chance) -> StagingMessage {
    let start_message = chance.percent(60).then(|| start(chance));
    StagingMessage {
        app_id: start_message.as_ref().map_or_else(|| app(chance), |start| start.app_id.clone()),
        task_id: TaskId::from("task"),
        properties: StagingProperties::default(),
        download_uri: Secret::default(),
        upload_uri: Secret::default(),
        buildpack_cache_download_uri: None,
        buildpack_cache_upload_uri: None,
        admin_buildpacks: vec![],
        start_message,
        stack: None,
        egress_network_rules: vec![],
        memory_limit: chance.percent(20).then_some(Mib(1900)),
        disk_limit: None,
    }
}
