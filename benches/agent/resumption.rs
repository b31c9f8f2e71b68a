//! An agent that was killed: how long until everything that ran on it is served again.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::harness::{get_until, loopback};
use crate::rig::{Rig, ask, distinct, hello};

const INSTANCES: usize = 1000;
const PER_APP: usize = 100;
/// Kills, one after the other.
const ROUNDS: usize = 3;

pub(crate) fn measure(rig: &mut Rig) {
    let apps: Vec<_> = (0..INSTANCES / PER_APP).map(|app| rig.stage(&distinct(&hello(), app as u32)).0).collect();
    let began = Instant::now();
    for number in 0..INSTANCES {
        rig.start_instance(&format!("app-{}", number / PER_APP), number % PER_APP, &apps[number / PER_APP]);
    }
    let mut routes = BTreeMap::new();
    while routes.len() < INSTANCES {
        let (host, port) = rig.route();
        if routes.insert(host.clone(), port).is_none() {
            ask(&host, port);
        }
    }
    let starts = began.elapsed();
    println!("{INSTANCES} start messages of {} apps at once: all have answered 200 after {starts:.2?}", apps.len());
    for _ in 0..ROUNDS {
        rig.kill();
        let began = Instant::now();
        rig.restart();
        let running = rig.running();
        let told = began.elapsed();
        routes.iter().for_each(|(host, port)| drop(get_until(loopback(*port), host, "/", 200)));
        let answered = began.elapsed();
        assert_eq!(running, INSTANCES, "the first heartbeat that comes tells of all");
        let ratio = answered.as_secs_f64() / starts.as_secs_f64();
        println!(
            "killed and started again: a heartbeat tells of all after {told:.2?}, all have answered 200 after {answered:.2?}, {ratio:.2} of that"
        );
    }
}
