//! Scenarios: inputs on the left, everything that they make the agent do on the right, one line an effect.

mod compat;
mod corners;
mod evacuation;
mod files;
mod instances;
mod presence;
mod reaping;
mod reports;
mod resources;
mod resume;
mod shutdown;
mod staging;
mod updates;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dewar_protocol::{DropletExited, RouteRegistration, StartMessage, UnixSeconds};
use expect_test::Expect;
use rand::SeedableRng as _;

use super::*;
use crate::testing::{EPOCH, at, config, sha1, start_message};
use crate::{BusEvent, DropletEvent, Exit, InstanceKey, Publication, SandboxEvent, StagingEvent, TaskKey};

/// A cell, and what time it is.
struct Scene {
    cell: Cell,
    seconds: u64,
}

impl Scene {
    /// Connected, everything about that said and done.
    fn new(config: CellConfig) -> Self {
        let mut scene = Self::offline(config);
        scene.take(Input::Bus(BusEvent::Up));
        scene
    }

    fn offline(config: CellConfig) -> Self {
        Self { cell: Cell::new(config, StdRng::seed_from_u64(1)), seconds: 0 }
    }

    fn at(&mut self, seconds: u64) -> &mut Self {
        assert!(seconds >= self.seconds, "time goes on");
        self.seconds = seconds;
        self
    }

    fn take(&mut self, input: Input) -> Vec<Effect> {
        self.cell.handle(at(self.seconds), input)
    }

    fn check(&mut self, input: Input, expected: Expect) -> &mut Self {
        let effects = self.take(input);
        expected.assert_eq(&shown(&effects));
        self
    }

    /// Starts an instance and takes it to RUNNING; its port is 61000 + its key.
    fn run(&mut self, start: StartMessage) -> InstanceKey {
        let sha1 = start.sha1.clone().unwrap();
        self.take(request(Request::StartInstance(Box::new(start))));
        let key = InstanceKey(self.cell.last_key);
        self.take(Input::Droplet(sha1, DropletEvent::Ready));
        let port = Some(61_000 + u16::try_from(key.0).unwrap());
        self.take(Input::Sandbox(key, SandboxEvent::Launched { port, state_file: false }));
        self.take(Input::Sandbox(key, SandboxEvent::Ready));
        key
    }

    /// In whole seconds, rounded up: the scenes' clock has no others.
    fn next_wake(&self) -> Option<u64> {
        self.cell.next_wake().map(|mono| mono.0.as_secs() + u64::from(mono.0.subsec_nanos() > 0))
    }

    /// Wakes the cell as often as it wants to be woken before then; its periodic messages are left out.
    fn wake_until(&mut self, seconds: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some(next) = self.next_wake().filter(|next| *next <= seconds) {
            effects.extend(self.at(next.max(self.seconds)).take(Input::Wake));
        }
        self.at(seconds);
        effects.retain(|effect| !matches!(effect, Effect::Publish(publication) if is_periodic(publication)));
        effects
    }
}

fn is_periodic(publication: &Publication) -> bool {
    use Publication::{Advertise, Heartbeat, RouterRegister, StagingAdvertise};
    matches!(publication, Heartbeat(_) | Advertise(_) | StagingAdvertise(_) | RouterRegister(_))
}

fn request(request: Request) -> Input {
    Input::Request(request, None)
}

fn asked(request: Request) -> Input {
    Input::Request(request, Some(ReplyTo("asker".into())))
}

fn started(start: StartMessage) -> Input {
    request(Request::StartInstance(Box::new(start)))
}

fn stop(wire: &str) -> Input {
    request(Request::StopInstances(serde_json::from_str(wire).unwrap()))
}

fn launched(key: u64) -> Input {
    Input::Sandbox(InstanceKey(key), SandboxEvent::Launched { port: Some(61_000 + u16::try_from(key).unwrap()), state_file: false })
}

fn ready(key: u64) -> Input {
    Input::Sandbox(InstanceKey(key), SandboxEvent::Ready)
}

fn exited(key: u64, status: i32, description: &str) -> Input {
    Input::Sandbox(InstanceKey(key), SandboxEvent::Exited(Exit { status, description: description.to_owned() }))
}

fn droplet_ready() -> Input {
    Input::Droplet(sha1('a'), DropletEvent::Ready)
}

/// Effects, one a line. Identifiers drawn at random are left out.
fn shown(effects: &[Effect]) -> String {
    let mut text = String::new();
    for effect in effects {
        writeln!(text, "{}", show(effect)).unwrap();
    }
    text
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Publish(publication) => show_publication(publication),
        Effect::Reply(ReplyTo(to), answer) => format!("to {to}: {}", show_answer(answer)),
        Effect::FetchDroplet { sha1, uri } => format!("fetch droplet {}… from {}", &sha1.as_str()[..1], show_uri(uri)),
        Effect::StartSandbox(spec) => {
            let (key, app, index) = (spec.key.0, &spec.start.app_id, spec.start.index);
            format!("start sandbox {key} for {app}/{index} with droplet {}…", &spec.sha1.as_str()[..1])
        }
        Effect::StopSandbox(key) => format!("stop sandbox {}", key.0),
        Effect::KillSandbox(key) => format!("kill sandbox {}", key.0),
        Effect::DeleteInstanceFiles(_) => "delete instance files".to_owned(),
        Effect::MakeRoom(_) => "delete instance files and measure the disk".to_owned(),
        Effect::EvictDroplet(sha1) => format!("evict droplet {}…", &sha1.as_str()[..1]),
        Effect::StartStaging(spec) => {
            format!("start staging {} of {} with {} and {}", spec.key.0, spec.message.app_id, spec.memory, spec.disk)
        }
        Effect::CancelStaging(key) => format!("cancel staging {}", key.0),
        Effect::ReportStaging { task, reply } => format!("report {}: {}", task.0, show_staged(reply)),
        Effect::Transitioned { instance, app_id, instance_id: _, index, from, to, why } => {
            let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("{app_id}/{index} ({}) {from} → {to}{why}", instance.0)
        }
        Effect::AppLog { app_id, index, stream, text } => {
            let index = index.map(|index| format!("/{index}")).unwrap_or_default();
            format!("log of {app_id}{index} {stream:?}: {text}")
        }
        Effect::Refused { request, why } => format!("refused {request}: {why}"),
        Effect::SaveSnapshot(_) => "save snapshot".to_owned(),
        Effect::Unsubscribe => "unsubscribe".to_owned(),
        Effect::Exit(code) => format!("exit {code}"),
    }
}

fn show_uri(uri: &Option<dewar_protocol::Secret<String>>) -> &str {
    uri.as_ref().map_or("nowhere", |uri| uri.expose())
}

fn show_publication(publication: &Publication) -> String {
    match publication {
        Publication::Hello(hello) => format!("dea.start {} {}", hello.id, hello.ip),
        Publication::Advertise(it) => {
            let counts = show_counts(&it.app_id_to_count);
            format!("dea.advertise memory {} disk {} apps {counts}", it.available_memory, it.available_disk)
        }
        Publication::StagingAdvertise(it) => format!("staging.advertise memory {} disk {}", it.available_memory, it.available_disk),
        Publication::Heartbeat(heartbeat) => {
            let entries = heartbeat.droplets.iter().map(|it| {
                let UnixSeconds(since) = it.state_timestamp;
                format!(" {}/{} {} {} since {}", it.app_id, it.index, it.version, it.state, since - EPOCH as f64)
            });
            format!("dea.heartbeat{}", entries.collect::<Vec<_>>().join(","))
        }
        Publication::DropletExited(exited) => show_exited(exited),
        Publication::RouterGreet => "router.greet".to_owned(),
        Publication::RouterRegister(it) => format!("router.register {}", show_registration(it)),
        Publication::RouterUnregister(it) => format!("router.unregister {}", show_registration(it)),
        Publication::Shutdown(it) => format!("dea.shutdown apps {}", show_counts(&it.app_id_to_count)),
        Publication::ComponentAnnounce(it) => format!("vcap.component.announce {} {} {}", it.kind, it.index, it.host),
    }
}

fn show_exited(exited: &DropletExited) -> String {
    let DropletExited { app_id, index, reason, exit_status, exit_description, crash_timestamp, .. } = exited;
    let at = crash_timestamp.map(|at| format!(" at {}", at - i64::try_from(EPOCH).unwrap())).unwrap_or_default();
    format!("droplet.exited {app_id}/{index} {reason:?} {exit_status} {exit_description:?}{at}")
}

fn show_registration(registration: &RouteRegistration) -> String {
    let RouteRegistration { app, uris, host, port, tags, .. } = registration;
    let app = app.as_ref().map(ToString::to_string).unwrap_or_default();
    let tag = tags.get("component").cloned().unwrap_or_default();
    format!("{} → {host}:{port} of {app} by {tag}", uris.join(" "))
}

fn show_counts(counts: &BTreeMap<dewar_protocol::AppId, usize>) -> String {
    let counts: Vec<_> = counts.iter().map(|(app, count)| format!("{app}:{count}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(" ") }
}

fn show_answer(answer: &Answer) -> String {
    match answer {
        Answer::Found(found) => format!("{}/{} {} {}", found.app_id, found.index, found.version, found.state),
        Answer::Status(it) => format!("max {} reserved {} used {}", it.max_memory, it.reserved_memory, it.used_memory),
        Answer::Setup(reply) => format!("setup of {}: {}", reply.task_id, reply.error.as_deref().unwrap_or("ok")),
        Answer::Staged(reply) => show_staged(reply),
        Answer::Accepted => "accepted".to_owned(),
        Answer::Unavailable(why) => format!("unavailable: {why}"),
        Answer::Component(it) => format!("component up {}", it.uptime.as_deref().unwrap_or("?")),
        Answer::Files(at) => format!("files {at:?}"),
        Answer::Varz(varz) => format!("varz of {} instances", varz.instances.len()),
    }
}

fn show_staged(reply: &dewar_protocol::StagingReply) -> String {
    let droplet = reply.droplet_sha1.as_ref().map_or("no droplet", |sha1| &sha1.as_str()[..1]);
    format!("staging of {}: {}, {droplet}", reply.task_id, reply.error.as_deref().unwrap_or("ok"))
}

#[test]
fn a_cell_that_knows_nothing_wants_nothing() {
    let mut scene = Scene::offline(config());
    assert_eq!(scene.next_wake(), None);
    let late = [
        droplet_ready(),
        launched(7),
        ready(7),
        exited(7, 0, ""),
        Input::Staging(TaskKey(7), StagingEvent::SetUp),
        Input::Usage(vec![(InstanceKey(7), crate::Sample::default())]),
        Input::Wake,
        Input::Bus(BusEvent::Down),
    ];
    for input in late {
        assert_eq!(scene.take(input.clone()), [], "{input:?}");
    }
    assert_eq!(scene.next_wake(), None);
}

#[test]
fn ids_are_hex_and_differ() {
    let mut scene = Scene::new(config());
    let mut ids: Vec<_> = (0..100).map(|_| scene.cell.fresh_id()).collect();
    assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 100);
}
