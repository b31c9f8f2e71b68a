//! The part of a health manager and its Cloud Controller that keeps instances running while agents come and go: it knows nothing but
//! heartbeats and the start messages that others have sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::PATIENCE;
use crate::nats::Nats;

/// What is to run: an application and an index.
type Wanted = (String, u64);

pub(crate) struct HealthManager {
    nats: Nats,
    /// The last start message for each.
    starts: BTreeMap<Wanted, Value>,
    /// The entries of each agent's last heartbeat, and when it came.
    beats: BTreeMap<String, (Instant, Vec<Value>)>,
    /// Instances whose replacement has been asked for, and those that have been stopped.
    replaced: BTreeSet<String>,
    stopped: BTreeSet<String>,
}

impl HealthManager {
    pub(crate) fn connect(server: SocketAddr) -> Self {
        let mut nats = Nats::connect(server);
        nats.subscribe("dea.heartbeat");
        nats.subscribe("dea.*.start");
        Self { nats, starts: BTreeMap::new(), beats: BTreeMap::new(), replaced: BTreeSet::new(), stopped: BTreeSet::new() }
    }

    /// The server is another one now.
    pub(crate) fn reconnect(&mut self, server: SocketAddr) {
        let fresh = Self::connect(server);
        self.nats = fresh.nats;
        self.beats.clear();
    }

    fn listen(&mut self) {
        for message in self.nats.take() {
            if message.subject == "dea.heartbeat" {
                let dea = message.json["dea"].as_str().unwrap().to_owned();
                self.beats.insert(dea, (Instant::now(), message.json["droplets"].as_array().unwrap().clone()));
            } else {
                self.starts.insert(wanted(&message.json), message.json);
            }
        }
        // As if three of its heartbeats, which come every second, were missing.
        self.beats.retain(|_, (at, _)| at.elapsed() < Duration::from_secs(3));
    }

    /// Listens until `holds`, and does its part meanwhile if that is given an agent for replacements.
    pub(crate) fn until(&mut self, what: &str, replacements: Option<&str>, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + 3 * PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "gave up waiting for {what}: {:?}", self.counts());
            self.listen();
            if let Some(agent) = replacements {
                self.replace(agent);
            }
        }
    }

    /// Agents that tell of themselves.
    pub(crate) fn agents(&self) -> BTreeSet<String> {
        self.beats.keys().cloned().collect()
    }

    /// Ids of RUNNING instances of an agent.
    pub(crate) fn running(&self, agent: &str) -> BTreeSet<String> {
        self.in_state(agent, "RUNNING").map(|entry| entry["instance"].as_str().unwrap().to_owned()).collect()
    }

    /// What runs anywhere, and how often.
    pub(crate) fn running_everywhere(&self) -> BTreeMap<Wanted, usize> {
        let mut running = BTreeMap::new();
        for entry in self.beats.keys().flat_map(|agent| self.in_state(agent, "RUNNING")) {
            *running.entry(wanted(entry)).or_default() += 1;
        }
        running
    }

    fn in_state<'a>(&'a self, agent: &str, state: &'static str) -> impl Iterator<Item = &'a Value> {
        let entries = self.beats.get(agent).map(|(_, entries)| entries.iter()).into_iter().flatten();
        entries.filter(move |entry| entry["state"] == state)
    }

    fn counts(&self) -> BTreeMap<&String, BTreeMap<&str, usize>> {
        let count = |entries: &'_ Vec<Value>| {
            let mut counts = BTreeMap::new();
            for state in ["STARTING", "RUNNING", "EVACUATING", "CRASHED"] {
                counts.insert(state, entries.iter().filter(|entry| entry["state"] == state).count());
            }
            counts
        };
        self.beats.iter().map(|(agent, (_, entries))| (agent, count(entries))).collect()
    }

    /// For each EVACUATING instance starts another on `agent`; once that runs the first is stopped.
    fn replace(&mut self, agent: &str) {
        let there: BTreeSet<Wanted> = self.in_state(agent, "RUNNING").map(wanted).collect();
        let leaving: Vec<Value> = self.beats.keys().flat_map(|agent| self.in_state(agent, "EVACUATING")).cloned().collect();
        for entry in leaving {
            let (id, what) = (entry["instance"].as_str().unwrap().to_owned(), wanted(&entry));
            if self.replaced.insert(id.clone()) {
                self.nats.publish(&format!("dea.{agent}.start"), &self.starts[&what]);
            } else if there.contains(&what) && self.stopped.insert(id.clone()) {
                let stop = json!({"droplet": entry["droplet"], "version": entry["version"], "instances": [id]});
                self.nats.publish("dea.stop", &stop);
            }
        }
    }
}

fn wanted(entry: &Value) -> Wanted {
    (entry["droplet"].as_str().unwrap().to_owned(), entry["index"].as_u64().unwrap())
}
