//! A broker, an agent, and whoever talks to it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::controller::{Blobstore, zip};
use crate::harness::{Process, free_port, get, guest, loopback};
use crate::nats::Nats;

/// Below the ports that the kernel gives to outgoing connections, and more than the default.
const PORTS: &str = "{first: 10000, last: 32000}";

/// How long instances keep what they do not need.
pub(crate) const STORE_IDLE: Duration = Duration::from_secs(60);

/// Bytes: a heartbeat of 10,000 instances is larger than the default of NATS servers.
const MAX_PAYLOAD: &str = "8388608";

pub(crate) struct Rig {
    pub(crate) nats: Nats,
    pub(crate) agent: Process,
    dea: String,
    blobs: Blobstore,
    tasks: u32,
    _broker: Process,
    dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let broker = Process::dewar(&["broker", "--listen", &format!("127.0.0.1:{port}"), "--max-payload", MAX_PAYLOAD]);
        let config = dir.path().join("agent.yml");
        let base = dir.path().join("base").display().to_string();
        let idle = STORE_IDLE.as_secs();
        let yml = format!(
            "base_dir: {base}\nnats_servers: ['nats://127.0.0.1:{port}']\nlocal_ip: 127.0.0.1\nstaging: {{enabled: true}}\n\
             resources: {{memory_mb: 1000000, disk_mb: 1000000}}\ninstance: {{ports: {PORTS}, http: {{store_idle_timeout: {idle}}}}}\nlogging: {{level: warn}}\n"
        );
        std::fs::write(&config, yml).unwrap();
        let mut nats = Nats::connect(loopback(port));
        for subject in ["dea.start", "dea.heartbeat", "dea.advertise", "router.register", "router.unregister"] {
            nats.subscribe(subject);
        }
        let agent = agent(&dir);
        let dea = introduction(&mut nats);
        Self { nats, agent, dea, blobs: Blobstore::start(), tasks: 0, _broker: broker, dir }
    }

    /// Kills the agent without a word.
    pub(crate) fn kill(&mut self) {
        self.agent.signal("-KILL");
        self.agent.exit();
        self.nats.forget();
    }

    /// The process that takes its place, once it says hello.
    pub(crate) fn restart(&mut self) {
        self.agent = agent(&self.dir);
        self.dea = introduction(&mut self.nats);
    }

    /// How many instances run, as the next heartbeat has it.
    pub(crate) fn running(&mut self) -> usize {
        let beat = self.nats.expect("dea.heartbeat", |_| true).json;
        beat["droplets"].as_array().unwrap().iter().filter(|entry| entry["state"] == "RUNNING").count()
    }

    /// From the request to the second reply.
    pub(crate) fn stage(&mut self, component: &[u8]) -> (Value, Duration) {
        self.tasks += 1;
        let task = format!("t{}", self.tasks);
        self.blobs.put("package", zip(&[("hello.wasm", component)]));
        let message = json!({
            "app_id": "app", "task_id": task, "properties": {},
            "download_uri": self.blobs.url("package"), "upload_uri": self.blobs.url("droplet"),
        });
        let inbox = format!("inbox.{task}");
        let began = Instant::now();
        self.nats.ask(&format!("staging.{}.start", self.dea), &inbox, &message);
        self.nats.expect(&inbox, |_| true);
        let reply = self.nats.expect(&inbox, |_| true).json;
        assert_eq!(reply["error"], Value::Null, "{reply}");
        (reply["droplet_sha1"].clone(), began.elapsed())
    }

    /// Sends a start message, as long as a Cloud Controller's, with a route that nobody else has.
    pub(crate) fn start_instance(&mut self, app: &str, index: usize, sha1: &Value) {
        let start = json!({
            "droplet": app, "index": index, "version": "3f1e9c52-7d0a-4c86-b2c4-95e1d0a7f3c8", "name": "hello",
            "uris": [host(app, index)], "sha1": sha1, "executableUri": null, "cc_partition": "default",
            "limits": {"mem": 32, "disk": 32, "fds": 64}, "services": [],
        });
        self.nats.publish(&format!("dea.{}.start", self.dea), &start);
    }

    /// Waits for the next route: its host and port.
    pub(crate) fn route(&mut self) -> (String, u16) {
        let route = self.nats.expect("router.register", |_| true).json;
        (route["uris"][0].as_str().unwrap().to_owned(), u16::try_from(route["port"].as_u64().unwrap()).unwrap())
    }

    /// Stops all instances of an app.
    pub(crate) fn stop_app(&mut self, app: &str) {
        self.nats.publish("dea.stop", &json!({ "droplet": app }));
    }

    /// KiB of memory of the agent that are in RAM.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// What the agent holds of things that a host has few of.
    pub(crate) fn holdings(&self) -> String {
        let proc = format!("/proc/{}", self.agent.id());
        let descriptors = std::fs::read_dir(format!("{proc}/fd")).unwrap().count();
        let mappings = std::fs::read_to_string(format!("{proc}/maps")).unwrap().lines().count();
        format!("{descriptors} descriptors, {mappings} mappings")
    }
}

fn agent(dir: &tempfile::TempDir) -> Process {
    Process::dewar(&["agent", "--config", dir.path().join("agent.yml").to_str().unwrap()])
}

/// The id by which an agent introduces itself.
fn introduction(nats: &mut Nats) -> String {
    nats.expect("dea.start", |_| true).json["id"].as_str().unwrap().to_owned()
}

pub(crate) fn hello() -> Vec<u8> {
    std::fs::read(guest("examples/hello")).unwrap()
}

/// The route of an instance.
pub(crate) fn host(app: &str, index: usize) -> String {
    format!("{index}.{app}.example.net")
}

/// One request on a connection of its own; it must be answered with 200.
pub(crate) fn ask(host: &str, port: u16) -> Duration {
    let began = Instant::now();
    let response = get(loopback(port), host, "/").unwrap();
    assert_eq!(response.status, 200);
    began.elapsed()
}

/// The same component with a custom section of its own, so that nothing about it has been seen before.
pub(crate) fn distinct(component: &[u8], number: u32) -> Vec<u8> {
    let content = [&[5_u8][..], b"nonce", &number.to_le_bytes(), &std::process::id().to_le_bytes()].concat();
    let length = u8::try_from(content.len()).unwrap();
    [component, &[0, length], &content].concat()
}

pub(crate) fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    format!("p50 {:.1?}, p99 {:.1?}, longest {:.1?}", at(50), at(99), at(100))
}
