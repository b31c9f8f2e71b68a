//! Broker, agent and router as processes of their own, driven by the client verbs; then a real nats-server in place of the broker.

use std::path::Path;

use serde_json::Value;

use crate::bare_protocol::agent_yml;
use crate::harness::{Client, Process, eventually, free_port, get, get_until, guest, loopback, nats_server};
use crate::nats::Nats;

/// A platform on this machine.
pub(crate) struct Platform {
    pub(crate) client: Client,
    pub(crate) router_port: u16,
    pub(crate) broker: Process,
    _agent: Process,
    _router: Process,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) nats_port: u16,
}

#[derive(Clone, Copy)]
pub(crate) enum Broker {
    Embedded,
    NatsServer,
}

impl Platform {
    pub(crate) fn start(broker: Broker) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (nats_port, router_port) = (free_port(), free_port());
        let broker = match broker {
            Broker::Embedded => Process::dewar(&["broker", "--listen", &format!("127.0.0.1:{nats_port}")]),
            Broker::NatsServer => nats_server(nats_port),
        };
        let agent = start_agent(dir.path(), nats_port);
        until_advertised(nats_port);
        let config = dir.path().join("router.yml");
        let yml = format!("ip: 127.0.0.1\nport: {router_port}\nstatus: {{port: 0}}\nnats_servers: ['nats://127.0.0.1:{nats_port}']\n");
        std::fs::write(&config, yml).unwrap();
        let router = Process::dewar(&["router", "--config", config.to_str().unwrap()]);
        let client = Client { nats: format!("nats://127.0.0.1:{nats_port}"), home: dir.path().join("home") };
        Self { client, router_port, broker, _agent: agent, _router: router, dir, nats_port }
    }

    /// A package folder that holds the http-driver.
    pub(crate) fn driver_package(&self) -> String {
        let folder = self.dir.path().join("driver");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(guest("tests/http-driver"), folder.join("driver.wasm")).unwrap();
        folder.to_str().unwrap().to_owned()
    }

    pub(crate) fn body(&self, host: &str, path: &str) -> String {
        get_until(loopback(self.router_port), host, path, 200).body.trim_end().to_owned()
    }

    /// Waits until so many answers in a row, in whatever order they come, are these. A router hears of changes a moment later.
    fn until_bodies(&self, path: &str, wanted: &[&str]) {
        eventually(&format!("{wanted:?} from {path}"), || {
            let mut seen: Vec<String> = wanted.iter().map(|_| self.body("shop.example.net", path)).collect();
            seen.sort();
            (seen == wanted).then_some(())
        });
    }

    /// Waits until what a verb prints has this in it so often. Who is asked has not much time to answer.
    fn until_printed(&self, arguments: &[&str], text: &str, count: usize) {
        eventually(&format!("{text:?} from {arguments:?}"), || {
            let printed = self.client.must(arguments).to_lowercase();
            (printed.matches(text).count() == count).then_some(())
        });
    }
}

/// Waits until there is an agent: a client gives up soon where there is none.
pub(crate) fn until_advertised(nats_port: u16) {
    let mut nats = Nats::connect(loopback(nats_port));
    nats.subscribe("dea.advertise");
    nats.expect("dea.advertise", |_| true);
}

pub(crate) fn start_agent(dir: &Path, nats_port: u16) -> Process {
    let config = dir.join("agent.yml");
    std::fs::write(&config, agent_yml(&dir.join("base"), nats_port)).unwrap();
    Process::dewar(&["agent", "--config", config.to_str().unwrap()])
}

fn lives_a_life(broker: Broker) {
    let platform = Platform::start(broker);
    let (client, package) = (&platform.client, platform.driver_package());
    let address = loopback(platform.router_port);

    client.must(&["push", "shop", "-p", &package, "-m", "64M", "-k", "32M", "--route", "shop.example.net", "--env", "COLOUR=blue"]);
    assert_eq!(platform.body("shop.example.net", "/env?name=COLOUR"), "blue");
    assert_eq!(platform.body("shop.example.net", "/env?name=MEMORY_LIMIT"), "64m");

    client.must(&["scale", "shop", "-i", "3"]);
    // Three instances answer in turn.
    platform.until_bodies("/env?name=CF_INSTANCE_INDEX", &["0", "0", "1", "1", "2", "2"]);

    let apps: Value = serde_json::from_str(&client.must(&["apps", "--json"])).unwrap();
    assert!(apps.to_string().contains("\"shop\""), "{apps}");
    platform.until_printed(&["app", "shop"], "running", 3);
    assert!(client.must(&["agents"]).contains("127.0.0.1") || client.must(&["agents", "--json"]).contains("available_memory"));

    get_until(address, "shop.example.net", "/log?text=a-line-of-mine", 200);
    platform.until_printed(&["logs", "shop"], "a-line-of-mine", 1);

    client.must(&["scale", "shop", "-i", "1"]);
    platform.until_bodies("/env?name=CF_INSTANCE_INDEX", &["0", "0", "0", "0"]);

    client.must(&["restart", "shop"]);
    assert_eq!(platform.body("shop.example.net", "/counter"), "1", "a new instance counts from one");

    client.must(&["stop", "shop"]);
    get_until(address, "shop.example.net", "/", 404);
    client.must(&["start", "shop"]);
    assert_eq!(platform.body("shop.example.net", "/"), "http-driver");

    client.must(&["delete", "shop"]);
    get_until(address, "shop.example.net", "/", 404);
    let gone = client.run(&["app", "shop"]);
    assert!(gone.code != 0 && gone.stderr.contains("shop"), "{}", gone.stderr);
}

#[test]
fn an_app_lives_its_life_on_the_embedded_broker() {
    lives_a_life(Broker::Embedded);
}

#[test]
fn an_app_lives_its_life_on_a_real_nats_server() {
    lives_a_life(Broker::NatsServer);
}

#[test]
fn pushing_again_fails_no_request() {
    let platform = Platform::start(Broker::NatsServer);
    let package = platform.driver_package();
    let push = ["push", "shop", "-p", &package, "-m", "64M", "-k", "32M", "--route", "shop.example.net", "--env"];
    platform.client.must(&[&push[..], &["RELEASE=one"]].concat());
    assert_eq!(platform.body("shop.example.net", "/env?name=RELEASE"), "one");

    let address = loopback(platform.router_port);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (answers, failures) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut answers, mut failures) = (0, Vec::new());
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                match get(address, "shop.example.net", "/env?name=RELEASE") {
                    Some(response) if response.status == 200 => answers += 1,
                    other => failures.push(other),
                }
            }
            (answers, failures)
        });
        platform.client.must(&[&push[..], &["RELEASE=two"]].concat());
        // The old version no longer answers.
        platform.until_bodies("/env?name=RELEASE", &["two", "two", "two", "two"]);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(failures.is_empty(), "{} of {} requests failed: {:?}", failures.len(), answers + failures.len(), failures[0]);
    assert!(answers > 10);
    assert_eq!(platform.body("shop.example.net", "/env?name=RELEASE"), "two");
}

#[test]
fn a_crashing_app_fails_the_push_and_says_why() {
    let platform = Platform::start(Broker::Embedded);
    let package = platform.driver_package();
    let done = platform.client.run(&["push", "sad", "-p", &package, "-m", "64M", "-k", "32M", "--env", "DRIVER_START=trap"]);
    assert_ne!(done.code, 0);
    assert!(done.stderr.contains("unreachable"), "{}\n{}", done.stdout, done.stderr);
    assert!(done.stderr.contains("hint"), "{}", done.stderr);
}

#[test]
fn two_pushes_of_one_app_at_once_do_not_mix() {
    let platform = Platform::start(Broker::Embedded);
    let package = platform.driver_package();
    let push = ["push", "shop", "-p", &package, "-m", "64M", "-k", "32M", "--route", "shop.example.net"];
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| platform.client.run(&push));
        let second = scope.spawn(|| platform.client.run(&push));
        (first.join().unwrap(), second.join().unwrap())
    });
    let codes = [first.code, second.code];
    assert!(codes.contains(&0), "{}\n{}", first.stderr, second.stderr);
    for done in [first, second] {
        assert!(done.code == 0 || done.stderr.contains("shop") && done.stderr.contains("hint"), "{}", done.stderr);
    }
    assert_eq!(platform.body("shop.example.net", "/"), "http-driver");
}
