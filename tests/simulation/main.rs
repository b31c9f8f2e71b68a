//! Seeded runs of whole agents' minds: several cells, with bus, sandboxes, stager, droplet downloads and clocks made up and faulty.
//!
//! A run is a function of its seed. First everything goes wrong that can: messages are lost, repeated, overtaken and come in storms,
//! the bus goes down, flaps and is gone for everybody, droplets come late or never, stagings die, apps trap, hang, start slowly and
//! ignore their end, some for ever, wall clocks jump, agents are shut down and killed and resume from what they saved last, everything
//! is stopped at once. After every input the invariants of [`ledger`] must hold. Then the world heals, and within bounded time everything
//! that was begun must have come to an end, what is asked for must happen, and nothing may be left of what is gone: see [`converges`].
//!
//! A seed that has failed once goes to `seeds.txt`, and is run always.
//!
//! `SIM_SEED=7 cargo test -p dewar-core --test simulation` replays one seed, `SIM_SEEDS=5000` runs more of them.

mod agent;
mod chance;
mod controller;
mod ledger;
mod restart;
mod timeless;
mod world;

use std::time::Duration;

use dewar_protocol::InstanceState;

use crate::world::World;

const SEEDS: u64 = 120;
/// Those that have failed, one a line, with what they have shown.
const KEPT: &str = include_str!("seeds.txt");
const ACTIONS: usize = 250;
const AGENTS: usize = 3;
/// Starts on each agent after the world has healed.
const FRESH: u32 = 5;

/// Says which seed failed, since the panic comes from deep inside of it.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SIM_SEED={seed}, and keep {seed} in tests/simulation/seeds.txt", seed = self.0);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "tests are told which seeds to run by the environment")]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn faults_break_nothing_and_heal() {
    let seeds: Vec<u64> = match from_environment("SIM_SEED") {
        Some(seed) => vec![seed],
        None => kept().chain(0..from_environment("SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let mut seen = ledger::Coverage::default();
    let many = seeds.len() as u64 >= SEEDS;
    for seed in seeds {
        let _seed = Seed(seed);
        let mut world = troubled(World::new(seed, AGENTS));
        converges(&mut world);
        seen.add(world.coverage());
    }
    assert!(!many || seen.is_complete(), "the runs no longer reach everything they should: {seen:?}");
}

#[test]
fn a_seed_determines_the_run() {
    let run = |seed| troubled(World::new(seed, AGENTS));
    for seed in 0..5 {
        let _seed = Seed(seed);
        assert_eq!(run(seed).fingerprint(), run(seed).fingerprint());
    }
    assert_ne!(run(0).fingerprint(), run(1).fingerprint());
}

/// Deadlines, intervals and order are those of the clock that only goes forward.
#[test]
fn wall_clocks_that_jump_change_what_is_told_of_time_and_nothing_else() {
    let mut differing = 0;
    for seed in 0..10 {
        let _seed = Seed(seed);
        let (jumping, steady) = (troubled(World::new(seed, AGENTS)), troubled(World::with_steady_clocks(seed, AGENTS)));
        assert_eq!(jumping.timeless_fingerprint(), steady.timeless_fingerprint());
        differing += u32::from(jumping.fingerprint() != steady.fingerprint());
    }
    assert!(differing > 5, "the clocks hardly ever jump: {differing}");
}

/// See [`KEPT`].
fn kept() -> impl Iterator<Item = u64> {
    let seeds = KEPT.lines().filter_map(|line| line.split_whitespace().next()).filter(|word| *word != "#");
    seeds.map(|word| word.parse().unwrap_or_else(|_| panic!("seeds.txt: no seed: {word}")))
}

/// A world after a time of trouble.
fn troubled(mut world: World) -> World {
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
    world.assert_timers_tick();

    world.run_for(Duration::from_secs(11 * 60));
    for instance in world.instances() {
        assert_eq!(instance.state, InstanceState::Running, "a crash outlives its time: {instance:?}");
    }

    everything_stops(world);
    controller::start_fresh(world, FRESH);
    world.run_for(Duration::from_secs(3 * 60));
    let running: Vec<_> = world.instances().into_iter().map(|instance| instance.state).collect();
    assert_eq!(running, vec![InstanceState::Running; AGENTS * FRESH as usize]);
    world.assert_all_routes_are_known();
    world.assert_nothing_is_being_staged();
    world.assert_timers_tick();
    everything_stops(world);
    world.assert_timers_tick();

    world.shut_down();
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.exit_codes(), vec![Some(0); AGENTS]);
}

fn everything_stops(world: &mut World) {
    controller::stop_everything(world);
    world.run_for(Duration::from_secs(3 * 60));
    assert_eq!(world.instances(), []);
    world.assert_nothing_is_left();
}
