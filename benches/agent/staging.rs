//! Staging of a component that is ready, compared with merely compiling it.

use std::time::{Duration, Instant};

use crate::rig::{Rig, distinct, hello};

const STAGINGS: u32 = 5;

pub(crate) fn measure(rig: &mut Rig) {
    let hello = hello();
    let engine = wasmtime::Engine::default();
    // Guests that can be interrupted have more code, which takes longer to compile.
    let interruptible = wasmtime::Engine::new(wasmtime::Config::new().epoch_interruption(true)).unwrap();
    // The first staging of an agent compiles the buildpacks.
    rig.stage(&hello);
    let (mut compiled, mut compiled_interruptible, mut staged, mut repeated) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..STAGINGS {
        let component = distinct(&hello, number);
        let began = Instant::now();
        engine.precompile_component(&component).unwrap();
        compiled.push(began.elapsed());
        let began = Instant::now();
        interruptible.precompile_component(&component).unwrap();
        compiled_interruptible.push(began.elapsed());
        staged.push(rig.stage(&component).1);
        repeated.push(rig.stage(&component).1);
    }
    let [compiled, compiled_interruptible, staged, repeated] = [compiled, compiled_interruptible, staged, repeated].map(median);
    println!(
        "precompile {compiled:.1?}, interruptible code {compiled_interruptible:.1?}, staging {staged:.1?}, staging the same again {repeated:.1?} (medians of {STAGINGS})"
    );
    println!("staging ÷ precompile: {:.2}", staged.as_secs_f64() / compiled.as_secs_f64());
    println!("staging ÷ precompile of interruptible code: {:.2}", staged.as_secs_f64() / compiled_interruptible.as_secs_f64());
    println!("staging the same again ÷ precompile: {:.2}", repeated.as_secs_f64() / compiled.as_secs_f64());
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
