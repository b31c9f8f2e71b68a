//! The agent's disk gets full, and read-only, while it works.
//!
//! The disk is a small tmpfs that only the agent's process sees: in a mount namespace of its own, which goes with it. That takes root,
//! or a kernel that lets everybody make user namespaces.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::bare_protocol::World;
use crate::harness::{eventually, get_until, loopback};

/// Mounts the disk where the agent's directory is to be: below the one that its last argument, the configuration, is in.
const MOUNT: &str = r#"base="$(dirname "$4")/base"; mkdir "$base" && mount -t tmpfs -o size=64m tmpfs "$base" && exec "$@""#;

/// How to become somebody who may mount; `None` where nobody may.
fn unshare() -> Option<&'static str> {
    let may = |options: &&str| Command::new("unshare").args([options, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    let able = ["-m", "-rm"].into_iter().find(|options| may(options).is_ok_and(|done| done.status.success()));
    if able.is_none() {
        eprintln!("SKIPPED, NOTHING IS SHOWN: neither root nor a user namespace is to be had, so there is no small disk");
    }
    able
}

struct Disk {
    /// The agent's directory, as the agent sees it.
    base: PathBuf,
    agent: u32,
    user: bool,
}

impl Disk {
    fn of(world: &World, unshare: &str) -> Self {
        Self { base: world.dir.path().join("base"), agent: world.agent.id(), user: unshare.contains('r') }
    }

    /// The path of something in the agent's directory, as this process sees it.
    fn path(&self, below: &str) -> PathBuf {
        let inside = self.base.strip_prefix("/").unwrap().join(below);
        PathBuf::from(format!("/proc/{}/root", self.agent)).join(inside)
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.path("filler")).unwrap();
        // Whole pages first, then what is left of the last.
        for chunk in [1 << 20, 4096] {
            while filler.write_all(&vec![0; chunk]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.path("filler")).unwrap();
    }

    /// Whoever opens something from now on finds the disk read-only. A mount that a lock is held on would not become so itself.
    fn make_read_only(&self) {
        self.run("mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"");
    }

    fn make_writable(&self) {
        self.run("umount -l \"$0\"");
    }

    fn run(&self, script: &str) {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.agent.to_string(), "-m"]).args(self.user.then_some("-U"));
        let done = command.args(["sh", "-c", script]).arg(&self.base).status().unwrap();
        assert!(done.success(), "{script}");
    }
}

/// What a peer sees of one agent.
struct Scene {
    world: World,
    sha1: Value,
    /// Of instances that were started.
    ports: Vec<Value>,
}

impl Scene {
    fn start(&mut self, index: u32) {
        let start = self.world.start_message(index, &self.sha1);
        self.world.nats.publish(&format!("dea.{}.start", self.world.dea), &start);
    }

    /// Starts an instance; returns its port.
    fn run(&mut self, index: u32) -> u16 {
        self.start(index);
        let known = self.ports.clone();
        let route = self.world.nats.expect("router.register", |route| !known.contains(&route.json["port"]));
        self.ports.push(route.json["port"].clone());
        u16::try_from(route.json["port"].as_u64().unwrap()).unwrap()
    }

    /// A start that must fail, as its log and the bus tell.
    fn fails(&mut self, index: u32, cause: &str) {
        self.start(index);
        let exited = self.world.nats.expect("droplet.exited", |_| true).json;
        assert_eq!((&exited["reason"], &exited["index"]), (&json!("CRASHED"), &json!(index)));
        assert_eq!(exited["exit_description"], "failed to start");
        let told = self.line(&["instance failed to start", cause]);
        assert!(told.contains("/base/instances/"), "it should name the file: {told}");
    }

    /// A line of the agent's log with all of this in it.
    fn line(&self, texts: &[&str]) -> String {
        let find = || {
            let printed = self.world.agent.printed();
            printed.lines().find(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned)
        };
        eventually(&format!("the agent to tell of {texts:?}"), find)
    }

    fn serves(&self, port: u16) {
        assert_eq!(get_until(loopback(port), "shop.example.net", "/", 200).body, "http-driver");
    }

    fn log(&self, port: u16, text: &str) {
        get_until(loopback(port), "shop.example.net", &format!("/log?text={text}"), 200);
    }

    /// Staging, a download and a start, each of which has to write.
    fn everything_fails(&mut self, index: u32, cause: &str) {
        let reply = self.world.try_stage(&format!("task-{index}"), World::package());
        assert!(reply["error"].as_str().unwrap().contains(cause), "{reply}");
        self.fails(index, cause);
        let mut other = self.world.start_message(index, &json!(format!("{index}").repeat(40)));
        other["uris"] = json!([]);
        self.world.nats.publish(&format!("dea.{}.start", self.world.dea), &other);
        self.world.nats.expect("droplet.exited", |exited| exited.json["index"] == json!(index));
        self.line(&["droplet not fetched", "/base/droplets/.partial", cause]);
    }
}

fn scene(unshare: &str) -> (Scene, Disk) {
    let mut world = World::start_by(&["unshare", unshare, "sh", "-c", MOUNT, "sh"], "");
    let disk = Disk::of(&world, unshare);
    let sha1 = world.stage("first", World::package())["droplet_sha1"].clone();
    (Scene { world, sha1, ports: Vec::new() }, disk)
}

#[test]
fn a_full_disk_fails_what_writes_spares_what_runs_and_is_forgotten_when_there_is_room_again() {
    let Some(unshare) = unshare() else { return };
    let (mut scene, disk) = scene(unshare);
    let port = scene.run(0);
    scene.log(port, "before");
    let instance = fs::read_dir(disk.path("instances")).unwrap().next().unwrap().unwrap().file_name();
    let log_file = disk.path("instances").join(instance).join("logs/stdout.log");
    let logged = || fs::read_to_string(&log_file).unwrap_or_default();
    eventually("the first line in its file", || (logged() == "before\n").then_some(()));

    disk.fill();
    scene.everything_fails(1, "No space left on device");
    // The page that the file has is filled up, and then there is no other.
    get_until(loopback(port), "shop.example.net", "/flood?lines=100&bytes=100", 200);
    scene.line(&["log file cannot be written", "logs/stdout.log", "No space left on device"]);
    scene.serves(port);

    disk.free();
    let second = scene.run(2);
    scene.serves(second);
    eventually("a line after the outage", || {
        scene.log(port, "after");
        logged().ends_with("\nafter\n").then_some(())
    });
    scene.line(&["log file is written again"]);
    assert!(!logged().contains('\0') && logged().lines().all(|line| !line.is_empty()), "no half line");
    // Another package than before, so that there is something to do.
    scene.world.stage("again", crate::controller::zip(&[("a.wasm", &fs::read(crate::harness::guest("tests/http-driver")).unwrap())]));
    scene.serves(port);
    scene.world.agent.signal("-TERM");
    assert_eq!(scene.world.agent.exit().code(), Some(0));
}

#[test]
fn a_read_only_disk_fails_what_writes_and_stops_nobody_from_serving_or_ending() {
    let Some(unshare) = unshare() else { return };
    let (mut scene, disk) = scene(unshare);
    let (port, second) = (scene.run(0), scene.run(1));

    disk.make_read_only();
    scene.everything_fails(2, "Read-only file system");
    scene.serves(port);
    let app = scene.world.start_message(1, &Value::Null)["droplet"].clone();
    scene.world.nats.publish("dea.stop", &json!({"droplet": app, "indices": [1]}));
    scene.world.nats.expect("router.unregister", |route| route.json["port"] == second);
    scene.world.nats.expect("dea.heartbeat", |beat| {
        let indices = beat.json["droplets"].as_array().unwrap().iter().filter(|entry| entry["state"] == "RUNNING");
        indices.map(|entry| &entry["index"]).collect::<Vec<_>>() == [0]
    });
    scene.line(&["directory not removed", "/base/instances/", "Read-only file system"]);

    disk.make_writable();
    let third = scene.run(3);
    scene.serves(third);
    scene.serves(port);
    scene.world.agent.signal("-TERM");
    assert_eq!(scene.world.agent.exit().code(), Some(0));
}
