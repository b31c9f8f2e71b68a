//! How long an agent takes from a start message to the first 200, and to stage a component compared with merely compiling it.
//!
//! The real binary against a real NATS server (`dewar broker`), driven by a plain client: what a Cloud Controller would see.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a report; what fails ends it")]
#![allow(dead_code, reason = "the process tests' half of a conversation, of which this needs a part")]

#[path = "../tests/process/controller.rs"]
mod controller;
#[path = "../tests/process/harness.rs"]
mod harness;
#[path = "../tests/process/nats.rs"]
mod nats;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use controller::{Blobstore, zip};
use harness::{Process, free_port, get, guest, loopback};
use nats::Nats;

const STARTS: usize = 200;
const STAGINGS: u32 = 5;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let _broker = Process::dewar(&["broker", "--listen", &format!("127.0.0.1:{port}")]);
    let config = dir.path().join("agent.yml");
    let base = dir.path().join("base").display().to_string();
    let yml = format!(
        "base_dir: {base}\nnats_servers: ['nats://127.0.0.1:{port}']\nlocal_ip: 127.0.0.1\nstaging: {{enabled: true}}\n\
         resources: {{memory_mb: 65536, disk_mb: 65536}}\nlogging: {{level: warn}}\n"
    );
    std::fs::write(&config, yml).unwrap();
    let mut nats = Nats::connect(loopback(port));
    for subject in ["dea.start", "router.register", "router.unregister"] {
        nats.subscribe(subject);
    }
    let _agent = Process::dewar(&["agent", "--config", config.to_str().unwrap()]);
    let dea = nats.expect("dea.start", |_| true).json["id"].as_str().unwrap().to_owned();
    let mut bench = Bench { nats, dea, blobs: Blobstore::start(), tasks: 0 };
    let hello = std::fs::read(guest("examples/hello")).unwrap();
    bench.staging(&hello);
    bench.starts(&hello);
}

struct Bench {
    nats: Nats,
    dea: String,
    blobs: Blobstore,
    tasks: u32,
}

impl Bench {
    /// From the request to the second reply.
    fn stage(&mut self, component: &[u8]) -> (Value, Duration) {
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
        (reply, began.elapsed())
    }

    fn staging(&mut self, hello: &[u8]) {
        let engine = wasmtime::Engine::default();
        let (mut compiled, mut staged, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..STAGINGS {
            let component = distinct(hello, number);
            let began = Instant::now();
            engine.precompile_component(&component).unwrap();
            compiled.push(began.elapsed());
            staged.push(self.stage(&component).1);
            repeated.push(self.stage(&component).1);
        }
        let [compiled, staged, repeated] = [compiled, staged, repeated].map(median);
        println!("precompile {compiled:.1?}, staging {staged:.1?}, staging the same again {repeated:.1?} (medians of {STAGINGS})");
        println!("staging ÷ precompile: {:.2}", staged.as_secs_f64() / compiled.as_secs_f64());
        println!("staging the same again ÷ precompile: {:.2}", repeated.as_secs_f64() / compiled.as_secs_f64());
    }

    fn starts(&mut self, hello: &[u8]) {
        let sha1 = self.stage(hello).0["droplet_sha1"].clone();
        let mut times: Vec<Duration> = (0..STARTS).map(|index| self.start(index, &sha1)).collect();
        times.sort_unstable();
        println!(
            "start message to first 200, {STARTS} times: p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
            times[STARTS / 2],
            times[STARTS * 99 / 100],
            times[STARTS - 1]
        );
    }

    fn start(&mut self, index: usize, sha1: &Value) -> Duration {
        let start = json!({
            "droplet": "app", "index": index, "version": "v1", "name": "hello", "uris": ["hello.example.net"], "sha1": sha1,
            "executableUri": null, "cc_partition": "default", "limits": {"mem": 64, "disk": 64, "fds": 64}, "services": [],
        });
        let began = Instant::now();
        self.nats.publish(&format!("dea.{}.start", self.dea), &start);
        let route = self.nats.expect("router.register", |_| true).json;
        let instance = loopback(u16::try_from(route["port"].as_u64().unwrap()).unwrap());
        let response = get(instance, "hello.example.net", "/").unwrap();
        let took = began.elapsed();
        assert_eq!(response.status, 200);
        self.nats.publish("dea.stop", &json!({"droplet": "app", "indices": [index]}));
        self.nats.expect("router.unregister", |_| true);
        took
    }
}

/// The same component with a custom section of its own, so that nothing about it has been seen before.
fn distinct(component: &[u8], number: u32) -> Vec<u8> {
    let content = [&[5_u8][..], b"nonce", &number.to_le_bytes(), &std::process::id().to_le_bytes()].concat();
    let length = u8::try_from(content.len()).unwrap();
    [component, &[0, length], &content].concat()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
