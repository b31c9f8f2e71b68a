//! Works for a while, tells what it does, and ends.

use std::time::Duration;

fn main() {
    let rounds: u32 = setting("WORKER_ROUNDS").unwrap_or(5);
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        std::thread::sleep(Duration::from_secs(1));
    }
    match setting("WORKER_STATUS").unwrap_or(0) {
        0 => println!("done"),
        status => {
            eprintln!("giving up with status {status}");
            dewar_guest::exit(status)
        }
    }
}

/// A number from the environment. One that is none is told and ignored.
fn setting<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    text.parse().inspect_err(|error| eprintln!("{name}={text}: {error}")).ok()
}
