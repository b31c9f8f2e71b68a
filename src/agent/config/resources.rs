//! `resources.*` and `intervals.*`: what can be promised, and how often it is told.

use dewar_core::{Capacity, Intervals};

use super::check::{DAY, mib};
use super::reader::Reader;

pub(super) fn intervals(reader: &mut Reader) -> Intervals {
    let Intervals { heartbeat, advertise, router_register } = Intervals::default();
    let key = "intervals.router_register_in_seconds";
    let router_register = reader.seconds(key, router_register, 0.1..=DAY);
    reader.explain(key, "Invalid router register interval");
    Intervals {
        heartbeat: reader.seconds("intervals.heartbeat", heartbeat, 0.1..=DAY),
        advertise: reader.seconds("intervals.advertise", advertise, 0.1..=DAY),
        router_register,
    }
}

pub(super) fn capacity(reader: &mut Reader) -> Capacity {
    let memory = mib(reader.integer("resources.memory_mb", 8192, 1..=1 << 40));
    let disk = mib(reader.integer("resources.disk_mb", 16 << 20, 1..=1 << 40));
    let memory_factor = reader.number("resources.memory_overcommit_factor", 1.0, 0.01..=1000.0);
    let disk_factor = reader.number("resources.disk_overcommit_factor", 1.0, 0.01..=1000.0);
    Capacity::overcommitted(memory, memory_factor, disk, disk_factor)
}
