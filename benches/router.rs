//! How much of an instance's throughput is left behind the router, and how much time the router adds to a request.
//!
//! The real binaries: `dewar broker`, `dewar agent` with an instance of `examples/hello`, `dewar router`; and a bare hyper server in
//! this process as a second backend, which is cheaper than any instance, so that the router's own share shows. Each backend is
//! loaded directly and through the router, in turn, round by round. What counts are the ratios and differences within this run.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a report; what fails ends it")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people")]
#![allow(dead_code, reason = "the process tests' half of a conversation, of which this needs a part")]

#[path = "../tests/process/controller.rs"]
mod controller;
#[path = "../tests/process/harness.rs"]
mod harness;
#[path = "load.rs"]
mod load;
#[path = "../tests/process/nats.rs"]
mod nats;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;

use controller::{Blobstore, zip};
use harness::{Process, free_port, get_until, guest, loopback};
use load::Round;
use nats::Nats;

const ROUNDS: usize = 3;
const SPAN: Duration = Duration::from_millis(1500);
/// Between the requests of each of 32 connections: a load of about 4,000 requests a second.
const PAUSE: Duration = Duration::from_millis(8);

/// How requests come: connections at once, and the pause of each between two requests.
const LOADS: [(&str, usize, Duration); 3] =
    [("32 connections, saturated", 32, Duration::ZERO), ("32 connections, paced", 32, PAUSE), ("1 connection", 1, Duration::ZERO)];

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let nats_port = free_port();
    let _broker = Process::dewar(&["broker", "--listen", &format!("127.0.0.1:{nats_port}")]);
    let mut nats = Nats::connect(loopback(nats_port));
    nats.subscribe("router.register");
    let (_router, router) = start_router(dir.path(), nats_port);
    let (_agent, instance) = start_instance(dir.path(), nats_port, &mut nats);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let bare = runtime.block_on(bare_hyper());
    let route = json!({"host": "127.0.0.1", "port": bare.port(), "uris": ["bare.example.net"], "app": "bare"});
    nats.publish("router.register", &route);
    let backends = [("instance", "hello.example.net", instance), ("bare hyper", "bare.example.net", bare)];
    for (_, host, _) in backends {
        get_until(router, host, "/", 200);
    }
    for (load, connections, pause) in LOADS {
        for (name, host, backend) in backends {
            let mut rounds = Vec::new();
            for round in 1..=ROUNDS {
                let [direct, routed] = [backend, router].map(|address| load::run_paced(address, host, connections, SPAN, pause));
                println!("{load}, {name}, round {round}: direct {}, routed {}", figures(direct), figures(routed));
                rounds.push((direct, routed));
            }
            let ratio =
                load::median(rounds.iter().map(|(direct, routed)| routed.requests_per_second / direct.requests_per_second).collect());
            let added =
                load::median(rounds.iter().map(|(direct, routed)| (routed.p50.as_secs_f64() - direct.p50.as_secs_f64()) * 1e6).collect());
            println!("{load}, {name}: routed ÷ direct {ratio:.2}, p50 added {added:.0} µs");
        }
    }
}

fn figures(round: Round) -> String {
    format!("{:>7.0}/s p50 {:>6.0?} p99 {:>6.0?}", round.requests_per_second, round.p50, round.p99)
}

fn start_router(dir: &Path, nats_port: u16) -> (Process, SocketAddr) {
    let (config, port) = (dir.join("router.yml"), free_port());
    std::fs::write(&config, format!("ip: 127.0.0.1\nport: {port}\nnats_servers: ['nats://127.0.0.1:{nats_port}']\n")).unwrap();
    let router = Process::dewar(&["router", "--config", config.to_str().unwrap()]);
    router.line("router serves");
    (router, loopback(port))
}

/// An agent with one instance of `examples/hello`; the address is the instance's own.
fn start_instance(dir: &Path, nats_port: u16, nats: &mut Nats) -> (Process, SocketAddr) {
    let config = dir.join("agent.yml");
    let base = dir.join("base").display().to_string();
    let yml = format!(
        "base_dir: {base}\nnats_servers: ['nats://127.0.0.1:{nats_port}']\nlocal_ip: 127.0.0.1\nstaging: {{enabled: true}}\n\
         resources: {{memory_mb: 4096, disk_mb: 4096}}\nlogging: {{level: warn}}\n"
    );
    std::fs::write(&config, yml).unwrap();
    nats.subscribe("dea.start");
    let agent = Process::dewar(&["agent", "--config", config.to_str().unwrap()]);
    let dea = nats.expect("dea.start", |_| true).json["id"].as_str().unwrap().to_owned();
    let blobs = Blobstore::start();
    blobs.put("package", zip(&[("hello.wasm", &std::fs::read(guest("examples/hello")).unwrap())]));
    let stage = json!({
        "app_id": "app", "task_id": "task", "properties": {},
        "download_uri": blobs.url("package"), "upload_uri": blobs.url("droplet"),
    });
    nats.ask(&format!("staging.{dea}.start"), "inbox.stage", &stage);
    nats.expect("inbox.stage", |_| true);
    let staged = nats.expect("inbox.stage", |_| true).json;
    let start = json!({
        "droplet": "app", "index": 0, "version": "v1", "name": "hello", "uris": ["hello.example.net"], "sha1": staged["droplet_sha1"],
        "executableUri": null, "cc_partition": "default", "limits": {"mem": 256, "disk": 64, "fds": 64}, "services": [],
    });
    nats.publish(&format!("dea.{dea}.start"), &start);
    let route = nats.expect("router.register", |message| message.json["uris"][0] == "hello.example.net").json;
    (agent, loopback(u16::try_from(route["port"].as_u64().unwrap()).unwrap()))
}

async fn bare_hyper() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                let answer =
                    service_fn(async |_| Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"Hello from Dewar\n")))));
                // The client's end closes the connection; nobody is left to be told.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    address
}
