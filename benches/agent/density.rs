//! Thousands of idle instances on one agent: what each costs, and whether the agent still keeps its times.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::rig::{Rig, STORE_IDLE, ask, distinct, hello, quantiles};

const INSTANCES: usize = 10_000;
const PER_APP: usize = 100;
/// Starts that are under way at a time, as a Cloud Controller's would be.
const BATCH: usize = 1000;
/// How long the agent is listened to: three heartbeats.
const LISTEN: Duration = Duration::from_secs(32);
const ASKED: usize = 1000;

pub(crate) fn measure(rig: &mut Rig) {
    let wanted: usize = std::env::var("DENSITY").map_or(INSTANCES, |number| number.parse().unwrap());
    let empty = rig.resident();
    let apps: Vec<_> = (0..wanted.div_ceil(PER_APP)).map(|app| rig.stage(&distinct(&hello(), app as u32)).0).collect();
    println!("empty agent: {} MiB; after {} stagings: {} MiB", empty >> 10, apps.len(), rig.resident() >> 10);
    let idle = rig.resident();

    let began = Instant::now();
    let mut routes = BTreeMap::new();
    for batch in (0..wanted).collect::<Vec<_>>().chunks(BATCH) {
        for number in batch {
            let app = number / PER_APP;
            rig.start_instance(&format!("0c8f4e1a-92d7-4b63-8f25-{app:012}"), number % PER_APP, &apps[app]);
        }
        // Routes are registered periodically, too.
        while routes.len() <= *batch.last().unwrap() {
            let (host, port) = rig.route();
            routes.insert(host, port);
        }
    }
    println!("{wanted} instances of {} apps run after {:.1?}", apps.len(), began.elapsed());
    report(rig, "never asked", wanted, empty, idle);

    listen(rig, wanted);
    let mut asked: Vec<_> = routes.iter().collect();
    // An order that has nothing to do with that of the starts.
    asked.sort_by_key(|(host, _)| host.bytes().rev().collect::<Vec<_>>());
    println!(
        "a request to each of {ASKED} of them: {}",
        quantiles(asked.iter().take(ASKED).map(|(host, port)| ask(host, **port)).collect())
    );
    println!("a request to each of all: {}", quantiles(asked.iter().map(|(host, port)| ask(host, **port)).collect()));
    report(rig, "each asked once", wanted, empty, idle);
    std::thread::sleep(STORE_IDLE + Duration::from_secs(20));
    report(rig, "and left alone again", wanted, empty, idle);
}

fn report(rig: &Rig, what: &str, instances: usize, empty: u64, idle: u64) {
    let resident = rig.resident();
    let each = |before: u64| (resident - before) as f64 / instances as f64;
    println!(
        "{what}: {} MiB resident, {} MiB more than the empty agent: {:.1} KiB an instance ({:.1} without what staging left); {}",
        resident >> 10,
        (resident - empty) >> 10,
        each(empty),
        each(idle),
        rig.holdings()
    );
}

/// Whether what is periodic comes at its time, and whole.
fn listen(rig: &mut Rig, instances: usize) {
    let began = Instant::now();
    rig.nats.forget();
    let mut arrivals: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let mut told = Vec::new();
    while began.elapsed() < LISTEN {
        for message in rig.nats.take() {
            if message.subject == "dea.heartbeat" {
                told.push(message.json["droplets"].as_array().unwrap().len());
            }
            arrivals.entry(message.subject).or_default().push(began.elapsed());
        }
    }
    for subject in ["dea.heartbeat", "dea.advertise"] {
        let times = arrivals.remove(subject).unwrap_or_default();
        let gaps: Vec<String> = times.windows(2).map(|pair| format!("{:.2?}", pair[1] - pair[0])).collect();
        println!("{subject}: {} in {LISTEN:?}, {} apart", times.len(), gaps.join(", "));
    }
    println!("instances in each heartbeat: {told:?}, of {instances}");
    let mut windows = BTreeMap::new();
    let routes = arrivals.remove("router.register").unwrap_or_default();
    for time in &routes {
        *windows.entry(time.as_millis() / 100).or_insert(0) += 1;
    }
    println!("router.register: {} in {LISTEN:?}, at most {} in 100 ms", routes.len(), windows.values().max().unwrap_or(&0));
}
