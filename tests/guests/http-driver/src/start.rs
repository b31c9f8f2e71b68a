//! What is done when an instance starts, before it has had any request.

use std::time::Duration;

use crate::misbehaviour;

// The linker calls what is in this section when the instance starts: there is no `main` that could.
#[used]
#[cfg_attr(target_os = "wasi", unsafe(link_section = ".init_array"))]
static AT_START: extern "C" fn() = start;

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
