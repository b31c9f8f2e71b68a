//! From a start message to an instance that answers, one by one and many at once.

use std::time::{Duration, Instant};

use crate::rig::{Rig, ask, hello, host, quantiles};

const STARTS: usize = 200;
const BURST: usize = 1000;

pub(crate) fn one_by_one(rig: &mut Rig) {
    let (sha1, _) = rig.stage(&hello());
    let times: Vec<Duration> = (0..STARTS)
        .map(|index| {
            let app = format!("app-{index}");
            let began = Instant::now();
            rig.start_instance(&app, index, &sha1);
            let (host, port) = rig.route();
            ask(&host, port);
            let took = began.elapsed();
            rig.stop_app(&app);
            rig.nats.expect("router.unregister", |_| true);
            took
        })
        .collect();
    println!("start message to first 200, {STARTS} times: {}", quantiles(times));
}

pub(crate) fn burst(rig: &mut Rig) {
    let (sha1, _) = rig.stage(&hello());
    // Its program is loaded and its droplet unpacked from now on.
    rig.start_instance("first", 0, &sha1);
    let (first, port) = rig.route();
    ask(&first, port);
    let began = Instant::now();
    for index in 0..BURST {
        rig.start_instance("burst", index, &sha1);
    }
    let mut answered = 0;
    while answered < BURST {
        let (host, port) = rig.route();
        // Routes are registered periodically, too.
        if host != first {
            ask(&host, port);
            answered += 1;
        }
    }
    let all = began.elapsed();
    println!("{BURST} start messages at once: all have answered 200 after {all:.2?} ({:.1?} each)", all / BURST as u32);
    let began = Instant::now();
    rig.stop_app("burst");
    let mut left: std::collections::BTreeSet<String> = (0..BURST).map(|index| host("burst", index)).collect();
    while !left.is_empty() {
        let gone = rig.nats.expect("router.unregister", |_| true).json;
        left.remove(gone["uris"][0].as_str().unwrap());
    }
    println!("{BURST} instances stopped at once: the last route is gone after {:.2?}", began.elapsed());
}
