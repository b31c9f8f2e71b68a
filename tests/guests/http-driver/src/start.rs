//! What is done when an instance starts, before it has had any request.

use std::time::Duration;

use crate::misbehaviour;

// A component's start: what makes one of this module has it called when the instance is made. There is no `main` that could do this.
#[cfg_attr(target_os = "wasi", unsafe(export_name = "_initialize"))]
extern "C" fn start() {
    let Ok(order) = std::env::var("DRIVER_START") else { return };
    match order.split_once(':').unwrap_or((&order, "")) {
        ("trap", _) => misbehaviour::trap(),
        ("spin", _) => misbehaviour::spin(Duration::MAX),
        ("hog", _) => misbehaviour::hog(),
        ("sleep", ms) => std::thread::sleep(Duration::from_millis(ms.parse().expect("DRIVER_START=sleep:MS"))),
        ("print", text) => println!("{text}"),
        (other, _) => panic!("DRIVER_START={other}: no such order"),
    }
}

// Exported by name on WASI; elsewhere nothing calls it.
#[cfg(not(target_os = "wasi"))]
const _: extern "C" fn() = start;
