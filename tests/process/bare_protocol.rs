//! A peer that knows nothing but the DEA's protocol plays Cloud Controller, health manager and router with hand-written JSON.

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::controller::{Blobstore, zip};
use crate::harness::{Process, eventually, free_port, get_until, guest, loopback, nats_server};
use crate::nats::Nats;

pub(crate) const APP: &str = "7b1d9c52-3f0e-4a86-b2c4-95e1d0a7f3c8";

/// Ports for the instances of an agent, which no other agent of these tests has at the same time: one that is started again finds its
/// own ports as it left them.
pub(crate) struct OwnPorts(u16);

/// Which of them are in use.
static OWN_PORTS: Mutex<[bool; 30]> = Mutex::new([false; 30]);

impl OwnPorts {
    const COUNT: u16 = 100;
    /// Instances' ports begin here.
    const FIRST: u16 = 61_001;
    /// From here on they are for all who are not started again.
    const OTHERS: u16 = Self::FIRST + 30 * Self::COUNT;

    fn take() -> Self {
        let number = eventually("ports of one's own", || {
            let mut used = OWN_PORTS.lock().unwrap();
            let free = used.iter().position(|used| !used)?;
            used[free] = true;
            Some(free)
        });
        Self(u16::try_from(number).unwrap())
    }

    pub(crate) fn range(&self) -> RangeInclusive<u16> {
        let first = Self::FIRST + self.0 * Self::COUNT;
        first..=first + Self::COUNT - 1
    }
}

impl Drop for OwnPorts {
    fn drop(&mut self) {
        OWN_PORTS.lock().unwrap()[usize::from(self.0)] = false;
    }
}

/// An agent's configuration as a DEA's operator writes it.
pub(crate) fn agent_yml(base_dir: &std::path::Path, nats_port: u16) -> String {
    with_ports(base_dir, nats_port, &(OwnPorts::OTHERS..=u16::MAX))
}

fn with_ports(base_dir: &std::path::Path, nats_port: u16, ports: &RangeInclusive<u16>) -> String {
    let (base, first, last) = (base_dir.display(), ports.start(), ports.end());
    format!(
        "base_dir: {base}\nlogging: {{level: debug}}\nnats_servers: ['nats://127.0.0.1:{nats_port}']\npid_filename: {base}.pid\n\
         index: 3\nlocal_ip: 127.0.0.1\nwarden_socket: /tmp/warden.sock\ndea_ruby: /usr/bin/ruby\n\
         stacks: [{{name: cflinuxfs2, package_path: /var/vcap}}]\nstaging: {{enabled: true, memory_limit_mb: 512, disk_limit_mb: 512}}\n\
         resources: {{memory_mb: 4096, disk_mb: 8192}}\nintervals: {{heartbeat: 1, advertise: 1}}\n\
         instance: {{ports: {{first: {first}, last: {last}}}}}\n"
    )
}

pub(crate) struct World {
    pub(crate) nats: Nats,
    pub(crate) blobs: Blobstore,
    pub(crate) agent: Process,
    pub(crate) dea: String,
    pub(crate) server: Process,
    pub(crate) nats_port: u16,
    /// Of instances.
    pub(crate) ports: OwnPorts,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::start_by(&[], "")
    }

    /// With more lines of configuration, and by a command that executes its last arguments.
    pub(crate) fn start_by(launcher: &[&str], yml: &str) -> Self {
        Self::start_with(launcher, |usual| usual + yml)
    }

    /// With a configuration made of the usual one.
    pub(crate) fn start_with(launcher: &[&str], configure: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let server = nats_server(port);
        let mut nats = Nats::connect(loopback(port));
        for subject in
            ["dea.start", "dea.advertise", "dea.heartbeat", "droplet.exited", "dea.shutdown", "router.register", "router.unregister"]
        {
            nats.subscribe(subject);
        }
        nats.subscribe("vcap.component.announce");
        let (config, ports) = (dir.path().join("agent.yml"), OwnPorts::take());
        std::fs::write(&config, configure(with_ports(&dir.path().join("base"), port, &ports.range()))).unwrap();
        let agent = Process::dewar_by(launcher, &["agent", "--config", config.to_str().unwrap()]);
        let hello = nats.expect("dea.start", |_| true).json;
        assert_eq!(hello["version"], "0.0.1");
        let dea = hello["id"].as_str().unwrap().to_owned();
        Self { nats, blobs: Blobstore::start(), agent, dea, server, nats_port: port, ports, dir }
    }

    pub(crate) fn start_message(&self, index: u32, sha1: &Value) -> Value {
        json!({
            "droplet": APP, "index": index, "version": "v1", "name": "shop", "uris": ["shop.example.net"], "prod": false,
            "sha1": sha1, "executableFile": "deprecated", "executableUri": self.blobs.url("droplet"), "cc_partition": "default",
            "limits": {"mem": 64, "disk": 64, "fds": 256}, "services": [], "env": ["GREETING=good day", "LATER=$GREETING, Sir"],
            "debug": null, "console": false, "start_command": null, "health_check_timeout": 30,
            "vcap_application": {"name": "shop", "uris": ["shop.example.net"]}, "egress_network_rules": [],
        })
    }

    /// Stages a package, expects success, yields the second reply.
    pub(crate) fn stage(&mut self, task: &str, package: Vec<u8>) -> Value {
        let last = self.try_stage(task, package);
        assert_eq!(last["error"], Value::Null, "{last}");
        last
    }

    /// Stages a package; yields the last reply.
    pub(crate) fn try_stage(&mut self, task: &str, package: Vec<u8>) -> Value {
        self.blobs.put("package", package);
        let message = json!({
            "app_id": APP, "task_id": task,
            "properties": {"services": [], "resources": {"memory": 64, "disk": 64, "fds": 256}, "environment": [], "meta": {"command": null}},
            "download_uri": self.blobs.url("package"), "upload_uri": self.blobs.url("droplet"),
            "buildpack_cache_upload_uri": self.blobs.url("cache"), "admin_buildpacks": [], "start_message": {}, "stack": "cflinuxfs2",
        });
        let inbox = format!("inbox.{task}");
        // What a Cloud Controller sends before each staging; it must not reach the one that follows.
        self.nats.publish("staging.stop", &json!({"app_id": APP}));
        self.nats.ask(&format!("staging.{}.start", self.dea), &inbox, &message);
        let first = self.nats.expect(&inbox, |_| true).json;
        assert_eq!(first["task_id"], task);
        if first["error"] != Value::Null {
            return first;
        }
        let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["detected_buildpack", "droplet_sha1", "error", "task_id", "task_streaming_log_url"]);
        self.nats.expect(&inbox, |_| true).json
    }

    pub(crate) fn package() -> Vec<u8> {
        zip(&[("http-driver.wasm", &std::fs::read(guest("tests/http-driver")).unwrap()), ("note.txt", b"kept")])
    }
}

#[test]
fn a_package_becomes_a_droplet_and_a_running_instance() {
    let mut world = World::start();
    let announced = world.nats.expect("vcap.component.announce", |_| true).json;
    assert_eq!((&announced["type"], &announced["index"]), (&json!("DEA"), &json!(3)));
    let advertised = world.nats.expect("dea.advertise", |_| true).json;
    assert_eq!(advertised["available_memory"], 4096);
    assert_eq!(advertised["stacks"], json!(["cflinuxfs2"]));

    let staged = world.stage("t1", World::package());
    assert_eq!(staged["task_id"], "t1");
    assert_eq!(staged["app_id"], APP);
    let sha1 = staged["droplet_sha1"].clone();
    assert_eq!(sha1.as_str().unwrap().len(), 40);
    assert!(world.blobs.take("droplet").is_some(), "the droplet has been uploaded");

    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    let is_running =
        |beat: &crate::nats::Message| beat.json["droplets"].as_array().unwrap().iter().any(|entry| entry["state"] == "RUNNING");
    let beat = world.nats.expect("dea.heartbeat", is_running).json;
    assert_eq!(beat["dea"], world.dea.as_str());
    assert_eq!(beat["droplets"][0]["droplet"], APP);
    let route = world.nats.expect("router.register", |_| true).json;
    assert_eq!(route["uris"], json!(["shop.example.net"]));
    assert_eq!(route["tags"], json!({"component": "dea-3"}));
    let instance = loopback(u16::try_from(route["port"].as_u64().unwrap()).unwrap());
    assert_eq!(get_until(instance, "shop.example.net", "/env?name=LATER", 200).body.trim_end(), "good day, Sir");
    let vcap = get_until(instance, "shop.example.net", "/env?name=VCAP_APPLICATION", 200).body;
    let vcap: Value = serde_json::from_str(&vcap).unwrap();
    assert_eq!((&vcap["application_id"], &vcap["port"]), (&json!(APP), &route["port"]));
    assert_eq!(get_until(instance, "shop.example.net", "/fs/read?path=/app/note.txt", 200).body, "kept");

    world.nats.ask("dea.find.droplet", "inbox.find", &json!({"droplet": APP, "states": ["running"], "include_stats": true}));
    let found = world.nats.expect("inbox.find", |_| true).json;
    assert_eq!(found["stats"]["mem_quota"], 64 << 20);
    assert_eq!(found["stats"]["port"], route["port"]);

    world.nats.publish("dea.stop", &json!({"droplet": APP}));
    world.nats.expect("router.unregister", |gone| gone.json["port"] == route["port"]);
    let exited = world.nats.expect("droplet.exited", |_| true).json;
    assert_eq!(exited["reason"], "STOPPED");
    world.nats.expect("dea.heartbeat", |beat| beat.json["droplets"].as_array().unwrap().is_empty());
}

#[test]
fn a_crash_is_told_once_with_its_cause() {
    let mut world = World::start();
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let mut start = world.start_message(0, &sha1);
    start["env"] = json!(["DRIVER_START=trap"]);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    let exited = world.nats.expect("droplet.exited", |_| true).json;
    assert_eq!((&exited["reason"], &exited["cc_partition"], &exited["index"]), (&json!("CRASHED"), &json!("default"), &json!(0)));
    let cause = exited["exit_description"].as_str().unwrap();
    assert!(cause.contains("unreachable"), "{cause}");
    assert!(exited["crash_timestamp"].is_u64());
    world.nats.expect("dea.heartbeat", |beat| beat.json["droplets"][0]["state"] == "CRASHED");
    assert_eq!(world.nats.count_within("droplet.exited", Duration::from_secs(2)), 0);
}

#[test]
fn hostile_messages_harm_nobody_and_are_told_with_subject_and_cause() {
    let mut world = World::start();
    let start = format!("dea.{}.start", world.dea);
    let stage = format!("staging.{}.start", world.dea);
    let mut ill_typed = world.start_message(0, &Value::Null);
    ill_typed["limits"]["mem"] = json!("plenty");
    world.nats.publish(&start, &ill_typed);
    let told = world.agent.line("limits.mem");
    assert!(told.contains(&start), "{told}");

    // So many that the agent's log does not tell of each.
    let bad = [
        json!(null),
        json!([]),
        json!("text"),
        json!({"droplet": APP}),
        json!({"droplet": APP, "index": "zero", "limits": 7}),
        json!({"droplet": {"no": "id"}, "states": ["NOWHERE"], "instances": 5}),
    ];
    for message in &bad {
        for subject in [&*start, &*stage, "staging", "staging.stop", "dea.stop", "dea.update", "dea.find.droplet", "router.start"] {
            world.nats.publish(subject, message);
        }
    }
    let sha1 = world.stage("after", World::package())["droplet_sha1"].clone();
    let good = world.start_message(0, &sha1);
    world.nats.publish(&start, &good);
    world.nats.expect("router.register", |_| true);
}

#[test]
fn bad_packages_fail_staging_with_a_clear_error_and_the_next_one_works() {
    let mut world = World::start();
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("no-zip", b"this is no archive".to_vec(), "archive"),
        ("climbs", zip(&[("../../etc/cron.d/evil", b"x")]), "../../etc/cron.d/evil"),
        ("nothing", zip(&[("readme.txt", b"nobody knows me")]), "could not be detected"),
        ("invalid", zip(&[("app.wasm", b"\0asm\x01\0\0\0garbage")]), "app.wasm"),
        ("import", zip(&[("app.wasm", &std::fs::read(guest("tests/unknown-import")).unwrap())]), "import"),
        ("no-world", zip(&[("app.wasm", &std::fs::read(guest("tests/no-known-world")).unwrap())]), "world"),
    ];
    for (task, package, cause) in cases {
        let reply = world.try_stage(task, package);
        let text = reply.to_string();
        assert!(reply["error"].is_string(), "{task}: {text}");
        assert!(text.contains(cause), "{task}: {text} should tell of {cause:?}");
        assert_eq!(reply["droplet_sha1"], Value::Null);
    }
    world.stage("good", World::package());
}

#[test]
fn staging_the_same_package_again_runs_no_buildpack() {
    let mut world = World::start();
    let first = world.stage("t1", World::package());
    let second = world.stage("t2", World::package());
    assert_eq!(first["droplet_sha1"], second["droplet_sha1"]);
    assert_eq!(first["detected_buildpack"], second["detected_buildpack"]);
    world.agent.line("fingerprint");
}

#[test]
fn terminating_says_goodbye_and_stops_what_runs() {
    let mut world = World::start();
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    let route = world.nats.expect("router.register", |_| true).json;
    world.agent.signal("-TERM");
    let bye = world.nats.expect("dea.shutdown", |_| true).json;
    assert_eq!(bye["app_id_to_count"], json!({APP: 1}));
    world.nats.expect("router.unregister", |gone| gone.json["port"] == route["port"]);
    let exited = world.nats.expect("droplet.exited", |_| true).json;
    assert_eq!(exited["reason"], "DEA_SHUTDOWN");
    assert_eq!(world.agent.exit().code(), Some(0));
}
