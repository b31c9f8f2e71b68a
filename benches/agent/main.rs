//! The agent's speed and size: from a start message to the first 200, a burst of starts, thousands of idle instances, and staging
//! compared with merely compiling; and how soon everything is back after a kill.
//!
//! The real binary against a real NATS server (`dewar broker`), driven by a plain client: what a Cloud Controller would see.
//! `cargo bench --bench agent -- PART…` measures some of `staging`, `starts`, `burst`, `resumption` and `density`; `DENSITY=2000` sets the number
//! of idle instances (10,000 by default, 100 of each app, two minutes).

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a report; what fails ends it")]
#![allow(dead_code, reason = "the process tests' half of a conversation, of which this needs a part")]

#[path = "../../tests/process/controller.rs"]
mod controller;
mod density;
#[path = "../../tests/process/harness.rs"]
mod harness;
#[path = "../../tests/process/nats.rs"]
mod nats;
mod resumption;
mod rig;
mod staging;
mod starts;

use rig::Rig;

type Measure = fn(&mut Rig);

const PARTS: [(&str, Measure); 5] = [
    ("staging", staging::measure),
    ("starts", starts::one_by_one),
    ("burst", starts::burst),
    ("resumption", resumption::measure),
    ("density", density::measure),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, measure) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|part| part == name) {
            // An agent each, so that none is measured with what another has left behind.
            measure(&mut Rig::start());
        }
    }
}
