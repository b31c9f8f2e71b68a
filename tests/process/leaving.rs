//! Two agents, a router and a real nats-server under load: one agent is evacuated, the other killed and started again, the server
//! restarted.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde_json::Value;

use crate::bare_protocol::agent_yml;
use crate::harness::{Client, Process, free_port, get, loopback, nats_server, post, root};
use crate::health_manager::HealthManager;

const APPS: usize = 20;
const INSTANCES: u64 = 3;

/// Requests at a time.
const CLIENTS: usize = 4;

/// Every app has its turn with each client, by GET and by POST.
struct Load {
    done: AtomicBool,
    answered: AtomicU64,
    failures: Mutex<Vec<Failure>>,
}

#[derive(Debug)]
struct Failure {
    began: Instant,
    #[expect(dead_code, reason = "shown when a test fails")]
    what: String,
}

impl Load {
    fn run(&self, router: SocketAddr, client: usize) {
        for number in client.. {
            if self.done.load(Ordering::Relaxed) {
                return;
            }
            let host = format!("app-{}.example.net", number % APPS);
            let began = Instant::now();
            let answer = if (number / APPS).is_multiple_of(2) { get(router, &host, "/") } else { post(router, &host, "/", "a body") };
            match answer {
                Some(response) if response.status == 200 => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
                other => self.failures.lock().unwrap().push(Failure { began, what: format!("{host}: {other:?}") }),
            }
        }
    }

    /// What has failed since the last call. Waits until every client has been answered some times more.
    fn failed(&self, during: &str) -> Vec<Failure> {
        let before = self.answered.load(Ordering::Relaxed);
        crate::harness::eventually("answers", || (self.answered.load(Ordering::Relaxed) > before + 200).then_some(()));
        let failures = std::mem::take(&mut *self.failures.lock().unwrap());
        eprintln!(
            "{during}: {} requests failed, {} were answered since the beginning",
            failures.len(),
            self.answered.load(Ordering::Relaxed)
        );
        failures
    }

    fn assert_none_failed(&self, during: &str) {
        let failed = self.failed(during);
        assert!(failed.is_empty(), "{failed:?}");
    }
}

fn agent(dir: &Path, name: &str, nats_port: u16) -> Process {
    let config = dir.join(format!("{name}.yml"));
    std::fs::write(&config, agent_yml(&dir.join(name), nats_port)).unwrap();
    Process::dewar(&["agent", "--config", config.to_str().unwrap()])
}

/// `dewar apps` knows every app, and so many instances of each. An agent that is busy may answer too late to be counted at once.
fn assert_apps(client: &Client, instances: u64) {
    let instances = &Value::from(instances);
    crate::harness::eventually("`dewar apps` to tell of all instances", || {
        let apps: Value = serde_json::from_str(&client.must(&["apps", "--json"])).unwrap();
        let apps = apps["apps"].as_array().or(apps.as_array()).unwrap_or_else(|| panic!("{apps}"));
        assert_eq!(apps.len(), APPS);
        apps.iter().all(|app| (&app["running"], &app["wanted"]) == (instances, instances)).then_some(())
    });
}

fn only(agents: &BTreeSet<String>) -> String {
    assert_eq!(agents.len(), 1, "{agents:?}");
    agents.iter().next().unwrap().clone()
}

/// Whether only this agent tells of itself.
fn only_has(manager: &HealthManager, agent: &str) -> bool {
    manager.agents().iter().eq([agent])
}

#[test]
fn evacuation_fails_no_request_and_a_killed_agent_no_more_than_were_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let (nats_port, router_port) = (free_port(), free_port());
    let mut server = nats_server(nats_port);
    let mut manager = HealthManager::connect(loopback(nats_port));
    let mut leaver = agent(dir.path(), "leaver", nats_port);
    manager.until("an agent", None, |manager| manager.agents().len() == 1);
    let leaver_id = only(&manager.agents());
    let mut stayer = agent(dir.path(), "stayer", nats_port);
    manager.until("two agents", None, |manager| manager.agents().len() == 2);
    let stayer_id = only(&manager.agents().into_iter().filter(|agent| *agent != leaver_id).collect());
    let config = dir.path().join("router.yml");
    let yml = format!("ip: 127.0.0.1\nport: {router_port}\nstatus: {{port: 0}}\nnats_servers: ['nats://127.0.0.1:{nats_port}']\n");
    std::fs::write(&config, yml).unwrap();
    let _router = Process::dewar(&["router", "--config", config.to_str().unwrap()]);
    let client = Client { nats: format!("nats://127.0.0.1:{nats_port}"), home: dir.path().join("home") };

    let package = root().join("examples/hello-wat");
    for number in 0..APPS {
        let (name, route) = (format!("app-{number}"), format!("app-{number}.example.net"));
        let push = ["push", &name, "-p", package.to_str().unwrap(), "-i", "3", "-m", "16M", "-k", "16M", "--route", &route];
        client.must(&push);
    }
    let everything = APPS * usize::try_from(INSTANCES).unwrap();
    manager.until("all instances", None, |manager| manager.running_everywhere().len() == everything);
    let all: BTreeSet<_> = manager.running_everywhere().into_keys().collect();
    assert!(!manager.running(&leaver_id).is_empty() && !manager.running(&stayer_id).is_empty());
    assert_apps(&client, INSTANCES);

    let load = Load { done: AtomicBool::new(false), answered: AtomicU64::new(0), failures: Mutex::default() };
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let load = &load;
            scope.spawn(move || load.run(loopback(router_port), number * 7));
        }
        let _done = StopLoad(&load.done);
        load.assert_none_failed("before");

        // One agent leaves.
        leaver.signal("-USR2");
        manager.until("the replacements", Some(&stayer_id), |manager| manager.running(&stayer_id).len() == everything);
        manager.until("the agent to leave", Some(&stayer_id), |manager| only_has(manager, &stayer_id));
        assert_eq!(manager.running_everywhere().into_keys().collect::<BTreeSet<_>>(), all);
        assert_eq!(leaver.exit().code(), Some(0));
        assert!(!dir.path().join("leaver.pid").exists(), "whoever waits for the end of the drain looks at the pid file");
        load.assert_none_failed("evacuation");
        assert_apps(&client, INSTANCES);

        // It comes back, and gets an instance of each app. Then the other one dies.
        let _leaver = agent(dir.path(), "leaver", nats_port);
        manager.until("the agent to come back", None, |manager| manager.agents().len() == 2);
        for number in 0..APPS {
            client.must(&["scale", &format!("app-{number}"), "-i", "4"]);
        }
        manager.until("an instance more of each", None, |manager| manager.running_everywhere().len() == everything + APPS);
        let before = manager.running_everywhere();
        let killed = manager.running(&stayer_id);
        load.assert_none_failed("scaling");
        stayer.signal("-KILL");
        stayer.exit();
        // Its sockets are closed one after another until here, so that one client may meet several of them.
        let gone = Instant::now();
        let failed = load.failed("kill");
        assert!(failed.iter().all(|failure| failure.began < gone), "nobody was in flight any more: {failed:?}");
        let other = only(&manager.agents().into_iter().filter(|agent| *agent != stayer_id).collect());
        let _stayer = agent(dir.path(), "stayer", nats_port);
        manager.until("the killed agent to be missed", None, |manager| !manager.agents().contains(&stayer_id));
        manager.until("an agent in its place", None, |manager| manager.agents().len() == 2);
        let third = only(&manager.agents().into_iter().filter(|agent| *agent != other).collect());
        manager.until("all to run again", None, |manager| manager.running_everywhere() == before);
        assert_eq!(manager.running(&third), killed, "the very same instances, and nobody had to ask for them");
        load.assert_none_failed("restart of the killed agent");
        assert_apps(&client, INSTANCES + 1);

        // The server is replaced: nobody who is served notices.
        let before = manager.running_everywhere();
        server.signal("-KILL");
        server.exit();
        load.assert_none_failed("without nats-server");
        let _server = nats_server(nats_port);
        manager.reconnect(loopback(nats_port));
        manager.until("heartbeats of both", None, |manager| manager.running_everywhere() == before);
        load.assert_none_failed("after the restart of nats-server");
        assert_apps(&client, INSTANCES + 1);
    });
}

/// Ends the load also when a test fails.
struct StopLoad<'a>(&'a AtomicBool);

impl Drop for StopLoad<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
