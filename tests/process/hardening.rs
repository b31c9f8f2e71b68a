//! What the agent takes from itself, seen from outside of its process.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bare_protocol::{World, agent_yml};
use crate::harness::{Process, eventually, free_port, get_until, get_with, loopback};

/// `me:you`.
const AUTHORIZATION: &str = "authorization: Basic bWU6eW91\r\n";

/// Fields of the agent's `status` section that [`varz`] knows.
fn status(port: u16) -> String {
    format!("status: {{port: {port}, user: me, password: you}}\n")
}

fn varz(port: u16) -> Value {
    let response = eventually("/varz", || get_with(loopback(port), "agent", "/varz", AUTHORIZATION));
    serde_json::from_str(&response.body).unwrap()
}

/// Stages the driver, starts it, asks it something, stops it.
fn live_a_life(world: &mut World) {
    let sha1 = world.stage("life", World::package())["droplet_sha1"].clone();
    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    let route = world.nats.expect("router.register", |_| true).json;
    let instance = loopback(u16::try_from(route["port"].as_u64().unwrap()).unwrap());
    assert_eq!(get_until(instance, "shop.example.net", "/env?name=GREETING", 200).body.trim_end(), "good day");
    world.nats.publish("dea.stop", &json!({"droplet": start["droplet"]}));
    world.nats.expect("droplet.exited", |exited| exited.json["reason"] == "STOPPED");
}

#[test]
fn a_hardened_agent_does_all_its_work_within_its_walls() {
    let port = free_port();
    let mut world = World::start_by(&[], &format!("hardening: required\n{}", status(port)));
    world.agent.line("process hardened");
    live_a_life(&mut world);

    let told = varz(port)["hardening"].clone();
    assert_eq!((&told["no_new_privs"], &told["seccomp"]), (&json!(true), &json!(true)), "{told}");
    assert!(told["landlock"].as_str().unwrap().starts_with("abi "), "{told}");
    let threads: Vec<_> = fs::read_dir(format!("/proc/{}/task", world.agent.id())).unwrap().collect();
    let mut seen = 0;
    for thread in threads {
        // One that has had nothing to do for a while ends.
        let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else { continue };
        seen += 1;
        assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
    }
    assert!(seen > 4, "{seen} threads");
    world.agent.signal("-TERM");
    assert_eq!(world.agent.exit().code(), Some(0));
    assert!(!world.dir.path().join("base.pid").exists());
}

/// Replaces the instances' directory by a link to one outside, as somebody who has got at the agent's files might, and starts one.
fn start_behind_a_link(world: &mut World) -> Value {
    let sha1 = world.stage("link", World::package())["droplet_sha1"].clone();
    let (instances, outside) = (world.dir.path().join("base/instances"), world.dir.path().join("outside"));
    fs::rename(&instances, instances.with_extension("away")).unwrap();
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, &instances).unwrap();
    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    let started = world.nats.expect("dea.heartbeat", |beat| {
        let state = &beat.json["droplets"][0]["state"];
        state == "RUNNING" || state == "CRASHED"
    });
    started.json["droplets"][0]["state"].clone()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn a_hardened_agent_cannot_be_led_out_of_its_directory() {
    let mut open = World::start_by(&[], "hardening: off\n");
    assert_eq!(start_behind_a_link(&mut open), "RUNNING");
    assert!(!is_empty(&open.dir.path().join("outside")), "the way out is open without walls");

    let mut hardened = World::start_by(&[], "hardening: required\n");
    assert_eq!(start_behind_a_link(&mut hardened), "CRASHED");
    assert!(is_empty(&hardened.dir.path().join("outside")));
    hardened.agent.line("Permission denied");
    // Nobody else suffers by that.
    let instances = hardened.dir.path().join("base/instances");
    fs::remove_file(&instances).unwrap();
    fs::rename(instances.with_extension("away"), &instances).unwrap();
    live_a_life(&mut hardened);
}

/// Starts an agent on a kernel whose Landlock seems to be missing.
fn agent_without_landlock(dir: &Path, hardening: &str) -> Process {
    let config = dir.join(format!("{hardening}.yml"));
    let yml = agent_yml(&dir.join("base"), free_port()) + &format!("hardening: {hardening}\n");
    fs::write(&config, yml).unwrap();
    let starter = std::thread::spawn(move || {
        let missing = std::collections::BTreeMap::from([(libc::SYS_landlock_create_ruleset, Vec::new())]);
        let (allow, refuse) = (seccompiler::SeccompAction::Allow, seccompiler::SeccompAction::Errno(libc::ENOSYS.unsigned_abs()));
        let filter = seccompiler::SeccompFilter::new(missing, allow, refuse, std::env::consts::ARCH.try_into().unwrap()).unwrap();
        // It holds for this thread and the processes that it starts.
        let program: seccompiler::BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        Process::dewar(&["agent", "--config", config.to_str().unwrap()])
    });
    starter.join().unwrap()
}

#[test]
fn what_the_kernel_lacks_is_told_and_refused_where_it_is_required() {
    let dir = tempfile::tempdir().unwrap();
    let mut required = agent_without_landlock(dir.path(), "required");
    assert_eq!(required.exit().code(), Some(1));
    required.line("`hardening` is `required`, but landlock is not in force: the kernel was built without Landlock");

    let best_effort = agent_without_landlock(dir.path(), "best-effort");
    let told = best_effort.line("process hardened in part");
    assert!(told.contains("landlock is not in force") && !told.contains("seccomp"), "{told}");
    best_effort.line("agent started");
}

#[test]
fn a_host_short_of_address_space_allocates_on_demand_and_says_so() {
    let port = free_port();
    // 256 GiB: some dozens of linear memories, but no pool of thousands.
    let mut world = World::start_by(&["sh", "-c", "ulimit -v 268435456; exec \"$@\"", "sh"], &status(port));
    world.agent.line("the host does not let us reserve pools, allocating on demand");
    assert_eq!(varz(port)["sandbox_allocation"], "on demand");
    live_a_life(&mut world);
}
