//! An agent is killed without a word, and another process takes its place: nothing is lost, doubled or left lying about.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bare_protocol::{APP, World};
use crate::harness::{Process, connections, eventually, get, get_until, loopback};

const CHURN: &str = "c0ffee00-3f0e-4a86-b2c4-95e1d0a7f3c8";

/// As an agent of the first version left it, see the golden texts of the protocol.
const VERSION_1: &str = include_str!("../protocol/snapshot_v1.json");

impl World {
    fn kill(&mut self) {
        self.agent.signal("-KILL");
        self.agent.exit();
        // What it said last may be on its way yet, but not once the server knows that it has gone.
        eventually("the end of its connection", || {
            let agents = connections(&self.server).into_iter().filter(|connection| connection["lang"] == "rust");
            (agents.count() == 0).then_some(())
        });
        self.nats.catch_up();
        self.nats.forget();
    }

    /// The process that takes the killed one's place, once it says hello.
    fn restart(&mut self) {
        let config = self.dir.path().join("agent.yml");
        self.agent = Process::dewar(&["agent", "--config", config.to_str().unwrap()]);
        let hello = self.nats.expect("dea.start", |_| true).json;
        let before = std::mem::replace(&mut self.dea, hello["id"].as_str().unwrap().to_owned());
        assert_ne!(self.dea, before, "a process is another agent to everybody else");
    }

    fn base(&self, path: &str) -> PathBuf {
        self.dir.path().join("base").join(path)
    }

    fn names(&self, path: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.base(path)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn snapshot(&self) -> Value {
        serde_json::from_slice(&fs::read(self.base("db/instances.json")).unwrap()).expect("what is there is whole")
    }

    fn order(&mut self, message: &Value) {
        self.nats.publish(&format!("dea.{}.start", self.dea), message);
    }

    /// What is saved, once it says this.
    fn saved(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || Some(self.snapshot()).filter(|snapshot| wanted(snapshot)))
    }

    fn heartbeat(&mut self, wanted: impl Fn(&BTreeMap<String, String>) -> bool) -> BTreeMap<String, String> {
        let beat = self.nats.expect("dea.heartbeat", |beat| wanted(&told(&beat.json))).json;
        assert_eq!(told(&beat).len(), beat["droplets"].as_array().unwrap().len(), "an instance is told twice: {beat}");
        told(&beat)
    }

    /// Runs so many instances of the app; where each is, by its id.
    fn run(&mut self, sha1: &Value, count: u32) -> BTreeMap<String, u16> {
        for index in 0..count {
            let message = self.start_message(index, sha1);
            self.order(&message);
        }
        let count = count as usize;
        self.heartbeat(|told| told.values().filter(|state| *state == "RUNNING").count() == count);
        let saved = self.saved("what runs", |saved| states(saved).values().filter(|state| *state == "RUNNING").count() == count);
        places(&saved)
    }
}

/// State by instance id.
fn told(beat: &Value) -> BTreeMap<String, String> {
    beat["droplets"].as_array().unwrap().iter().map(|entry| (text(&entry["instance"]), text(&entry["state"]))).collect()
}

fn states(snapshot: &Value) -> BTreeMap<String, String> {
    snapshot["instances"].as_array().unwrap().iter().map(|entry| (text(&entry["instance_id"]), text(&entry["state"]))).collect()
}

/// Port by instance id, of what runs.
fn places(snapshot: &Value) -> BTreeMap<String, u16> {
    let running = snapshot["instances"].as_array().unwrap().iter().filter(|entry| entry["state"] == "RUNNING");
    running.map(|entry| (text(&entry["instance_id"]), port(&entry["instance_host_port"]))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn port(value: &Value) -> u16 {
    u16::try_from(value.as_u64().unwrap()).unwrap()
}

/// An address where somebody listens and never answers.
fn silence() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/nothing", listener.local_addr().unwrap());
    (listener, url)
}

#[test]
fn what_ran_runs_again_and_what_had_just_begun_is_told() {
    let mut world = World::start();
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let places = world.run(&sha1, 2);
    for (id, port) in &places {
        get_until(loopback(*port), "shop.example.net", "/fs/write?path=/tmp/kept&bytes=5", 200);
        get_until(loopback(*port), "shop.example.net", &format!("/log?text={id}"), 200);
    }
    let mut crashing = world.start_message(2, &sha1);
    crashing["env"] = json!(["DRIVER_START=trap"]);
    // A crash is kept until another one of the same app.
    crashing["droplet"] = json!(CHURN);
    world.order(&crashing);
    world.nats.expect("droplet.exited", |_| true);
    let (_listener, nowhere) = silence();
    let mut starting = world.start_message(3, &json!("a".repeat(40)));
    starting["executableUri"] = json!(nowhere);
    world.order(&starting);
    let staging = json!({"app_id": "staged", "task_id": "t2", "properties": {"services": [], "environment": [], "meta": {}},
        "download_uri": nowhere, "upload_uri": nowhere});
    world.nats.ask(&format!("staging.{}.start", world.dea), "inbox.t2", &staging);
    let saved = world.saved("all of it", |saved| {
        let states: Vec<_> = states(saved).into_values().collect();
        states.len() == 4 && states.contains(&"CRASHED".to_owned()) && saved["staging_tasks"].as_array().unwrap().len() == 1
    });
    let id_of = |state: &str| states(&saved).into_iter().find(|(_, is)| is == state).unwrap().0;
    let (crashed, unfinished) = (id_of("CRASHED"), id_of("STARTING"));
    for orphan in ["instances/0rphan/app", "crashes/0rphan/logs", "tmp/0rphan", "staging/0rphan"] {
        fs::create_dir_all(world.base(orphan)).unwrap();
    }

    world.kill();
    world.restart();

    let exited = world.nats.expect("droplet.exited", |_| true).json;
    assert_eq!((text(&exited["instance"]), &exited["reason"]), (unfinished.clone(), &json!("CRASHED")));
    assert!(text(&exited["exit_description"]).contains("the agent was restarted"), "{exited}");
    let reply = world.nats.expect("inbox.t2", |_| true).json;
    assert_eq!(reply["task_id"], "t2");
    assert!(text(&reply["error"]).contains("the agent was restarted"), "{reply}");
    let beat = world.heartbeat(|_| true);
    let running: BTreeSet<_> = beat.iter().filter(|(_, state)| *state == "RUNNING").map(|(id, _)| id).collect();
    assert_eq!(running, places.keys().collect(), "even the first heartbeat tells of them");
    assert_eq!((beat[&crashed].as_str(), beat[&unfinished].as_str()), ("CRASHED", "CRASHED"));
    for (id, place) in &places {
        let route = world.nats.expect("router.register", |route| route.json["port"] == *place).json;
        assert_eq!(route["dea"], world.dea.as_str());
        assert_eq!(get_until(loopback(*place), "shop.example.net", "/fs/read?path=/tmp/kept", 200).body, "xxxxx", "its files are there");
        assert_eq!(get_until(loopback(*place), "shop.example.net", "/env?name=PORT", 200).body.trim(), place.to_string());
        let log = fs::read_to_string(world.base(&format!("instances/{id}/logs/stdout.log"))).unwrap();
        assert!(log.contains(id.as_str()), "its log goes on: {log}");
    }
    assert_eq!(world.nats.count_within("droplet.exited", Duration::from_secs(1)), 0, "each end is told once");
    assert_eq!(world.names("instances"), places.keys().cloned().collect());
    assert_eq!(world.names("crashes"), BTreeSet::from([crashed]));
    assert_eq!((world.names("tmp"), world.names("staging")), (BTreeSet::new(), BTreeSet::new()));

    world.nats.publish("dea.stop", &json!({"droplet": APP}));
    eventually("the end of all files", || world.names("instances").is_empty().then_some(()));
    assert!(places.values().all(|port| get(loopback(*port), "shop.example.net", "/").is_none()));
}

#[test]
fn who_waits_for_a_droplet_holds_up_nobody_and_can_be_stopped() {
    let mut world = World::start();
    let sha1 = text(&world.stage("t1", World::package())["droplet_sha1"]);
    // More than may start at a time, as far as there is memory for them.
    let waiting = std::thread::available_parallelism().map_or(60, |cores| (2 * cores.get() + 1).min(60));
    let places = world.run(&json!(sha1), u32::try_from(waiting + 1).unwrap());
    world.kill();
    let (_listener, nowhere) = silence();
    let mut snapshot = world.snapshot();
    let instances = snapshot["instances"].as_array_mut().unwrap();
    let whole = text(&instances.last().unwrap()["instance_id"]);
    for instance in instances {
        instance["start_message"]["executableUri"] = json!(nowhere);
        let id = text(&instance["instance_id"]);
        if id != whole {
            fs::remove_dir_all(world.base(&format!("instances/{id}/tmp"))).unwrap();
        }
    }
    let last = snapshot["instances"][waiting]["instance_index"].clone();
    fs::write(world.base("db/instances.json"), snapshot.to_string()).unwrap();
    fs::remove_file(world.base(&format!("droplets/{sha1}/droplet.tgz"))).unwrap();

    world.restart();
    get_until(loopback(places[&whole]), "shop.example.net", "/", 200);
    let others: Vec<Value> = (0..=waiting).map(|index| json!(index)).filter(|index| *index != last).collect();
    let (stays, stopped) = others.split_first().unwrap();
    world.nats.publish("dea.stop", &json!({"droplet": APP, "indices": stopped}));
    eventually("the end of who was stopped", || (world.names("instances").len() == 2).then_some(()));
    assert_eq!(world.heartbeat(|told| told.len() == 2).into_values().collect::<Vec<_>>(), ["RUNNING", "RUNNING"], "{stays} still waits");
    world.agent.signal("-TERM");
    assert_eq!(world.agent.exit().code(), Some(0), "nobody had to be forced");
}

#[test]
fn who_says_that_it_runs_has_to_say_so_anew() {
    let mut world = World::start();
    let sha1 = text(&world.stage("t1", World::package())["droplet_sha1"]);
    let places = world.run(&json!(sha1), 1);
    world.kill();
    let (id, port) = places.iter().next().unwrap();
    fs::write(world.base(&format!("droplets/{sha1}/unpacked/droplet.yaml")), "state_file: app/state.json").unwrap();
    for name in ["state.json", "ready.json"] {
        fs::write(world.base(&format!("instances/{id}/app/{name}")), r#"{"state": "RUNNING"}"#).unwrap();
    }
    world.restart();
    get_until(loopback(*port), "shop.example.net", "/", 200);
    assert_eq!(world.nats.count_within("router.register", Duration::from_secs(1)), 0, "it has said nothing yet");
    get_until(loopback(*port), "shop.example.net", "/fs/rename?path=/app/ready.json&to=/app/state.json", 200);
    assert_eq!(world.nats.expect("router.register", |_| true).json["port"], *port);
}

#[test]
fn fifty_kills_under_load_lose_nothing() {
    const KILLS: u32 = 50;
    let mut world = World::start();
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let steady = world.run(&sha1, 4);
    let (_listener, nowhere) = silence();
    for kill in 0..KILLS {
        // Requests, starts, a stop and a staging are under way, each kill coming at another moment of them.
        let requests: Vec<_> = steady
            .values()
            .map(|port| {
                let port = *port;
                std::thread::spawn(move || get(loopback(port), "shop.example.net", "/sleep?ms=50"))
            })
            .collect();
        for index in [2 * kill, 2 * kill + 1] {
            let mut message = world.start_message(index, &sha1);
            message["droplet"] = json!(CHURN);
            world.order(&message);
        }
        world.nats.publish("dea.stop", &json!({"droplet": CHURN, "indices": [2 * kill]}));
        let task = format!("kill-{kill}");
        let staging = json!({"app_id": CHURN, "task_id": task, "properties": {}, "download_uri": nowhere, "upload_uri": nowhere});
        let inbox = format!("inbox.{task}");
        world.nats.ask(&format!("staging.{}.start", world.dea), &inbox, &staging);
        let moment = Duration::from_millis(u64::from(kill) * 7);
        std::thread::sleep(moment);
        let expected = {
            world.kill();
            world.snapshot()
        };
        requests.into_iter().for_each(|request| drop(request.join().unwrap()));
        world.restart();

        let is_saved = expected["staging_tasks"].as_array().unwrap().iter().any(|saved| saved["staging_message"]["task_id"] == task);
        if is_saved {
            let reply = world.nats.expect(&inbox, |_| true).json;
            assert!(reply["error"].is_string(), "{reply}");
        }
        let saved = states(&expected);
        let beat = world.heartbeat(|_| true);
        for (id, state) in saved.iter().filter(|(_, state)| *state != "STOPPING") {
            let told = if state == "RUNNING" { "RUNNING" } else { "CRASHED" };
            assert!(beat.contains_key(id), "kill {kill}: {id} was {state} and is lost");
            assert!(beat[id] == told || beat[id] == "CRASHED", "kill {kill}: {id} was {state}");
        }
        assert!(beat.keys().all(|id| saved.contains_key(id)), "kill {kill}: somebody came from nowhere");
        for (id, port) in &steady {
            assert_eq!(beat.get(id).map(String::as_str), Some("RUNNING"), "kill {kill}");
            assert_eq!(get_until(loopback(*port), "shop.example.net", "/", 200).body, "http-driver");
        }
        world.nats.publish("dea.stop", &json!({"droplet": CHURN}));
    }
    world.heartbeat(|told| told.iter().filter(|(_, state)| *state != "CRASHED").all(|(id, _)| steady.contains_key(id)));
    eventually("nobody's files to be gone", || (world.names("instances") == steady.keys().cloned().collect()).then_some(()));
    let snapshot = world.saved("the end of the others", |saved| places(saved) == steady);
    let crashes: BTreeSet<_> = states(&snapshot).into_iter().filter(|(_, state)| state == "CRASHED").map(|(id, _)| id).collect();
    assert!(world.names("crashes").is_subset(&crashes), "crashes that nobody knows");
    let steady: BTreeSet<u16> = steady.into_values().collect();
    let instances = || listening(world.agent.id()).into_iter().filter(|port| *port > 61_000).collect::<BTreeSet<u16>>();
    eventually("the end of the others' ports", || (instances() == steady).then_some(()));
}

/// Ports that a process listens on.
fn listening(process: u32) -> BTreeSet<u16> {
    let links = fs::read_dir(format!("/proc/{process}/fd")).unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: BTreeSet<String> =
        links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    let table = fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let listens = words.get(3) == Some(&"0A") && sockets.contains(*words.get(9)?);
        let port = u16::from_str_radix(words[1].split_once(':')?.1, 16).ok()?;
        listens.then_some(port)
    };
    table.lines().skip(1).filter_map(line).collect()
}

#[test]
fn a_port_that_somebody_else_took_is_given_up() {
    let mut world = World::start();
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let places = world.run(&sha1, 1);
    let old = *places.values().next().unwrap();
    world.kill();
    let _taken = eventually("the old port", || TcpListener::bind(loopback(old)).ok());
    world.restart();
    world.nats.expect("router.unregister", |route| route.json["port"] == old);
    let route = world.nats.expect("router.register", |_| true).json;
    assert_ne!(route["port"], old);
    get_until(loopback(port(&route["port"])), "shop.example.net", "/", 200);
    assert_eq!(world.heartbeat(|_| true).keys().collect::<Vec<_>>(), places.keys().collect::<Vec<_>>(), "it is the same instance");
}

#[test]
fn what_cannot_run_again_has_crashed_and_its_log_is_kept() {
    let mut world = World::start();
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let (id, place) = world.run(&sha1, 1).pop_first().unwrap();
    get_until(loopback(place), "shop.example.net", "/log?text=before", 200);
    let has_line = |path: PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("before")).then_some(());
    let log = world.base(&format!("instances/{id}/logs/stdout.log"));
    eventually("its log", || has_line(log.clone()));
    world.kill();
    fs::remove_dir_all(world.base("droplets").join(text(&sha1))).unwrap();
    world.blobs.put("droplet", b"another".to_vec());
    world.restart();
    let exited = world.nats.expect("droplet.exited", |_| true).json;
    assert_eq!((text(&exited["instance"]), &exited["reason"]), (id.clone(), &json!("CRASHED")));
    assert_eq!(exited["exit_description"], "failed to start");
    eventually("its log among the crashes", || has_line(world.base(&format!("crashes/{id}/logs/stdout.log"))));
    eventually("the end of its other files", || world.names("instances").is_empty().then_some(()));
}

/// Puts the droplet and the place of this host into what the first version wrote.
fn of_version_1(sha1: &str, port: u16) -> String {
    let text = VERSION_1.replace("2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", sha1);
    text.replace("61004", &port.to_string()).replace("bus/inbox.staging", "bus/inbox.old")
}

#[test]
fn a_snapshot_of_the_first_version_and_its_droplets_resume() {
    let mut world = World::start();
    let sha1 = text(&world.stage("t1", World::package())["droplet_sha1"]);
    world.kill();
    let port = world.ports.range().find(|port| TcpListener::bind(loopback(*port)).is_ok()).unwrap();
    let snapshot: Value = serde_json::from_str(&of_version_1(&sha1, port)).unwrap();
    let instance = &snapshot["instances"][0];
    for directory in ["app", "tmp", "logs"] {
        fs::create_dir_all(world.base("instances").join(text(&instance["warden_handle"])).join(directory)).unwrap();
    }
    fs::write(world.base("instances").join(text(&instance["warden_handle"])).join("app/note.txt"), "changed").unwrap();
    // Nothing is unpacked, as after a restart of an agent that never ran it.
    let unpacked = world.base(&format!("droplets/{sha1}/unpacked"));
    if unpacked.exists() {
        fs::remove_dir_all(unpacked).unwrap();
    }
    fs::write(world.base("db/instances.json"), snapshot.to_string()).unwrap();
    world.nats.subscribe("inbox.old");

    world.restart();
    assert!(text(&world.nats.expect("inbox.old", |_| true).json["error"]).contains("restarted"));
    let route = world.nats.expect("router.register", |_| true).json;
    assert_eq!((&route["port"], &route["uris"]), (&json!(port), &json!(["shop.example.net", "www.example.net"])));
    assert_eq!(route["private_instance_id"], instance["private_instance_id"]);
    let place = loopback(port);
    assert_eq!(get_until(place, "shop.example.net", "/fs/read?path=/app/note.txt", 200).body, "changed", "files stay as they were");
    assert_eq!(get_until(place, "shop.example.net", "/env?name=LATER", 200).body.trim_end(), "good day, Sir");
    world.nats.ask("dea.find.droplet", "inbox.find", &json!({"droplet": APP, "include_stats": true}));
    let found = world.nats.expect("inbox.find", |_| true).json;
    assert_eq!((&found["instance"], &found["version"], &found["state"]), (&instance["instance_id"], &json!("v2"), &json!("RUNNING")));
    assert!(found["stats"]["uptime"].as_u64().unwrap() > 300_000_000, "it has been up since 2013: {found}");
}

#[test]
fn what_cannot_be_understood_is_kept_aside() {
    let mut world = World::start();
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    world.run(&sha1, 1);
    world.kill();
    let path = world.base("db/instances.json");
    let whole = fs::read_to_string(&path).unwrap();
    let future = whole.replacen(r#""version":1"#, r#""version":2"#, 1);
    let foreign = whole.replacen(r#""version":1,"#, "", 1);
    for damaged in [&whole[..whole.len() / 2], &future, &foreign] {
        fs::write(&path, damaged).unwrap();
        world.restart();
        let told = world.agent.line("Failed to parse");
        assert!(told.contains(path.to_str().unwrap()) && told.contains("refused-"), "{told}");
        let kept = kept_aside(&world.base("db"));
        assert!(kept.iter().any(|path| fs::read_to_string(path).unwrap() == *damaged), "{kept:?}");
        assert_eq!(world.heartbeat(|_| true), BTreeMap::new(), "the agent starts with nothing");
        assert_eq!(world.names("instances"), BTreeSet::new());
        world.kill();
    }
}

fn kept_aside(db: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(db).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("instances.json.refused-")).collect()
}

#[test]
fn a_clean_end_leaves_nothing_to_resume() {
    let mut world = World::start();
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    world.run(&sha1, 2);
    world.agent.signal("-TERM");
    assert_eq!(world.agent.exit().code(), Some(0));
    assert_eq!(world.snapshot()["instances"], json!([]));
    world.nats.forget();
    let began = Instant::now();
    world.restart();
    assert_eq!(world.heartbeat(|_| true), BTreeMap::new());
    assert!(began.elapsed() < crate::harness::PATIENCE);
}
