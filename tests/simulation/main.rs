//! Seeded runs of whole agents' minds: several cells, with bus, sandboxes, stager, droplet downloads and clocks made up and faulty.
//!
//! A run is a function of its seed. First everything goes wrong that can: messages are lost, repeated and late, the bus goes down,
//! apps trap, hang, start slowly and ignore their end, wall clocks jump, agents are shut down and killed, everything is stopped at
//! once. After every input the invariants of [`ledger`] must hold. Then the world heals, and within bounded time everything that
//! was begun must have come to an end: see [`converges`].
//!
//! `SIM_SEED=7 cargo test -p dewar-core --test simulation` replays one seed, `SIM_SEEDS=5000` runs more of them.

mod agent;
mod chance;
mod controller;
mod ledger;
mod world;

use std::time::Duration;

use dewar_protocol::InstanceState;

use crate::world::World;

const SEEDS: u64 = 200;
const ACTIONS: usize = 250;
const AGENTS: usize = 3;

/// Says which seed failed, since the panic comes from deep inside of it.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SIM_SEED={}", self.0);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "tests are told which seeds to run by the environment")]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn faults_break_nothing_and_heal() {
    let seeds = match from_environment("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut seen = ledger::Coverage::default();
    let many = seeds.end - seeds.start >= SEEDS;
    for seed in seeds {
        let _seed = Seed(seed);
        let mut world = troubled(seed);
        converges(&mut world);
        seen.add(world.coverage());
    }
    assert!(!many || seen.is_complete(), "the runs no longer reach everything they should: {seen:?}");
}

#[test]
fn a_seed_determines_the_run() {
    for seed in 0..5 {
        let _seed = Seed(seed);
        assert_eq!(troubled(seed).fingerprint(), troubled(seed).fingerprint());
    }
    assert_ne!(troubled(0).fingerprint(), troubled(1).fingerprint());
}

/// A world after a time of trouble.
fn troubled(seed: u64) -> World {
    let mut world = World::new(seed, AGENTS);
    for _ in 0..ACTIONS {
        let pause = world.chance.pause(Duration::from_secs(6));
        world.run_for(pause);
        controller::act(&mut world);
    }
    world
}

/// Once nothing goes wrong any more, what was begun ends: starts, stops and stagings first, then crashes, then everything that is
/// told to.
fn converges(world: &mut World) {
    world.heal();
    world.run_for(Duration::from_secs(8 * 60));
    for instance in world.instances() {
        assert!(matches!(instance.state, InstanceState::Running | InstanceState::Crashed), "still on its way: {instance:?}");
    }
    world.assert_all_routes_are_known();
    world.assert_nothing_is_being_staged();

    world.run_for(Duration::from_secs(11 * 60));
    for instance in world.instances() {
        assert_eq!(instance.state, InstanceState::Running, "a crash outlives its time: {instance:?}");
    }

    controller::stop_everything(world);
    world.run_for(Duration::from_secs(3 * 60));
    assert_eq!(world.instances(), []);
    world.assert_nothing_is_left();

    world.shut_down();
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.exit_codes(), vec![Some(0); AGENTS]);
}
