//! A real nats-server that is paused, or cut off in the middle of messages: whoever is served notices nothing, and the agent is back at once.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::bare_protocol::agent_yml;
use crate::harness::{Client, Process, eventually, free_port, get, get_until, guest, loopback, nats_server};
use crate::nats::{Message, Nats};
use crate::three_processes::until_advertised;

/// An app that counts its requests, on an agent that looks after its connection every second and reaches the server by `bus`.
struct Scene {
    dir: tempfile::TempDir,
    agent: Process,
    _router: Process,
    router: SocketAddr,
    client: Client,
    /// Requests that were answered so far; the first when the route was awaited.
    answers: u64,
}

impl Scene {
    fn start(server: u16, bus: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (agent_config, router_config) = (dir.path().join("agent.yml"), dir.path().join("router.yml"));
        let yml = agent_yml(&dir.path().join("base"), bus) + "nats: {ping_interval_in_seconds: 1}\n";
        std::fs::write(&agent_config, yml).unwrap();
        let agent = Process::dewar(&["agent", "--config", agent_config.to_str().unwrap()]);
        until_advertised(server);
        let port = free_port();
        let yml = format!("ip: 127.0.0.1\nport: {port}\nstatus: {{port: 0}}\nnats_servers: ['nats://127.0.0.1:{server}']\n");
        std::fs::write(&router_config, yml).unwrap();
        let router = Process::dewar(&["router", "--config", router_config.to_str().unwrap()]);
        let client = Client { nats: format!("nats://127.0.0.1:{server}"), home: dir.path().join("home") };
        let scene = Self { dir, agent, _router: router, router: loopback(port), client, answers: 1 };
        let package = scene.dir.path().join("driver");
        std::fs::create_dir_all(&package).unwrap();
        std::fs::copy(guest("tests/http-driver"), package.join("driver.wasm")).unwrap();
        let package = package.to_str().unwrap();
        scene.client.must(&["push", "shop", "-p", package, "-m", "64M", "-k", "32M", "--route", "shop.example.net"]);
        get_until(scene.router, "shop.example.net", "/", 200);
        scene
    }

    /// It is the same instance as ever that answers, and no request fails.
    fn assert_undisturbed(&mut self) {
        let answer = get(self.router, "shop.example.net", "/counter").expect("the router answers");
        self.answers += 1;
        assert_eq!((answer.status, answer.body.trim()), (200, self.answers.to_string().as_str()));
    }
}

/// The instance that heartbeats tell of, once they do.
fn told(nats: &mut Nats) -> String {
    let runs = |beat: &Message| beat.json["droplets"][0]["state"] == "RUNNING";
    nats.expect("dea.heartbeat", runs).json["droplets"][0]["instance"].as_str().unwrap().to_owned()
}

#[test]
fn a_server_that_stands_still_for_a_while_costs_nothing() {
    let port = free_port();
    let server = nats_server(port);
    let mut scene = Scene::start(port, port);
    let mut nats = Nats::connect(loopback(port));
    nats.subscribe("dea.heartbeat");
    let instance = told(&mut nats);

    server.signal("-STOP");
    eventually("the agent to miss its server", || {
        scene.assert_undisturbed();
        scene.agent.printed().contains("bus is down").then_some(())
    });
    for _ in 0..20 {
        scene.assert_undisturbed();
    }
    server.signal("-CONT");
    for subject in ["router.register", "dea.advertise"] {
        nats.subscribe(subject);
    }
    nats.forget();
    assert_eq!(told(&mut nats), instance, "no instance was disturbed");
    nats.expect("router.register", |route| route.json["uris"] == Value::from(vec!["shop.example.net"]));
    nats.expect("dea.advertise", |_| true);
    scene.assert_undisturbed();
    scene.client.must(&["scale", "shop", "-i", "2"]);
}

#[test]
fn a_connection_that_is_cut_in_the_middle_of_messages_is_made_anew() {
    let port = free_port();
    let _server = nats_server(port);
    let proxy = Cutter::to(loopback(port));
    let mut scene = Scene::start(port, proxy.address.port());
    let mut nats = Nats::connect(loopback(port));
    nats.subscribe("dea.heartbeat");
    nats.subscribe("router.register");
    let instance = told(&mut nats);
    for bytes in [1, 17, 60, 200] {
        let before = proxy.connections();
        proxy.cut_after(bytes);
        eventually("another connection", || (proxy.connections() > before).then_some(()));
        scene.assert_undisturbed();
        nats.forget();
        assert_eq!(told(&mut nats), instance);
        nats.expect("router.register", |route| route.json["uris"] == Value::from(vec!["shop.example.net"]));
    }
    scene.client.must(&["scale", "shop", "-i", "2"]);
}

/// A proxy to a server that ends its connections when they have sent so many more bytes.
struct Cutter {
    address: SocketAddr,
    budget: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Cutter {
    fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (budget, connections) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicUsize::new(0)));
        let (left, count) = (Arc::clone(&budget), Arc::clone(&connections));
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(server) else { continue };
                // A new connection is whole.
                left.store(usize::MAX, Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut &back.0, &mut &back.1));
                let left = Arc::clone(&left);
                std::thread::spawn(move || pass(&near, &far, &left));
            }
        });
        Self { address, budget, connections }
    }

    fn cut_after(&self, bytes: usize) {
        self.budget.store(bytes, Ordering::SeqCst);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn pass(mut near: &TcpStream, mut far: &TcpStream, left: &AtomicUsize) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = near.read(&mut buffer) {
        let budget = left.load(Ordering::SeqCst);
        let passes = read.min(budget);
        if far.write_all(&buffer[..passes]).is_err() || passes < read {
            break;
        }
        if budget != usize::MAX {
            left.store(budget - passes, Ordering::SeqCst);
        }
    }
    // So that what has been sent still arrives, as half a message.
    std::thread::sleep(Duration::from_millis(10));
    for stream in [near, far] {
        // It may be gone already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
