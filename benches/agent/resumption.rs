//! An agent that was killed: how long until everything that ran on it is served again.

use std::collections::BTreeMap;
use std::time::Instant;

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
    let routes = routes(rig);
    for (host, port) in &routes {
        ask(host, *port);
    }
    let starts = began.elapsed();
    println!("{INSTANCES} start messages of {} apps at once: all have answered 200 after {starts:.2?}", apps.len());
    for _ in 0..ROUNDS {
        rig.kill();
        let began = Instant::now();
        rig.restart();
        assert_eq!(rig.running(), INSTANCES, "the first heartbeat tells of all");
        let told = began.elapsed();
        assert_eq!(self::routes(rig), routes, "each where it was");
        let registered = began.elapsed();
        for (host, port) in &routes {
            ask(host, *port);
        }
        let answered = began.elapsed();
        println!(
            "killed and started again: a heartbeat tells of all after {told:.2?}, all are served and registered after {registered:.2?}, and \
             have answered 200, one after the other, after {answered:.2?}: {:.2} of what starting took",
            answered.as_secs_f64() / starts.as_secs_f64()
        );
    }
}

/// Where each is, once all are registered.
fn routes(rig: &mut Rig) -> BTreeMap<String, u16> {
    let mut routes = BTreeMap::new();
    while routes.len() < INSTANCES {
        routes.extend([rig.route()]);
    }
    routes
}
