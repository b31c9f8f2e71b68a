//! Capacity, what is promised and what is left, in the numbers that the original's suite uses.

use std::sync::Arc;

use dewar_protocol::{InstanceId, Mib};

use super::*;
use crate::instance::Instance;
use crate::resources::Remaining;
use crate::{Capacity, Sample};

/// 600 MiB of memory four times, 4000 of disk twice; staging tasks of the default size.
fn roomy() -> CellConfig {
    let mut config = config();
    config.capacity = Capacity::overcommitted(Mib(600), 4.0, Mib(4000), 2.0);
    (config.staging.memory, config.staging.disk) = (Mib(1024), Mib(2048));
    config
}

fn sized(index: u32, mib: i64) -> StartMessage {
    let mut start = start_message("shop", index);
    (start.limits.mem, start.limits.disk) = (Mib(mib), Mib(mib));
    start
}

fn left(remaining: Remaining) -> (i64, i64) {
    (remaining.memory().0, remaining.disk().0)
}

#[test]
fn what_is_left_is_capacity_less_what_each_state_holds() {
    let mut scene = Scene::new(roomy());
    assert_eq!(left(scene.cell.remaining()), (2400, 8000), "nothing is registered");
    let born = Instance::new(InstanceKey(100), Arc::new(sized(0, 1)), InstanceId("born".to_owned()), String::new(), at(0).wall);
    scene.cell.registry.insert(born);
    scene.take(started(StartMessage { sha1: Some(sha1('b')), ..sized(1, 2) }));
    scene.run(sized(2, 4));
    for (index, mib) in [(3, 8), (4, 16)] {
        scene.run(sized(index, mib));
        scene.take(stop(&format!(r#"{{"droplet":"shop","indices":[{index}]}}"#)));
    }
    let stopped = scene.cell.last_key;
    scene.take(exited(stopped, 0, ""));
    let crashed = scene.run(sized(5, 32));
    scene.take(exited(crashed.0, 1, "gone"));
    let message = crate::testing::staging_message("shop", "task");
    scene.take(asked(Request::Stage(Box::new(message))));
    assert_eq!(left(scene.cell.remaining()), (2400 - (15 + 1024), 8000 - (15 + 32 + 2048)));
    let counts = scene.cell.registry.app_counts();
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [5], "whatever the state, but for the one that is stopped");
}

#[test]
fn used_memory_is_the_sum_of_what_was_measured() {
    let mut scene = Scene::new(config());
    let used = |scene: &mut Scene| {
        let effects = scene.take(asked(Request::ReportStatus));
        match &effects[..] {
            [Effect::Reply(_, Answer::Status(status))] => status.used_memory.0,
            other => panic!("{other:?}"),
        }
    };
    let sample = |memory: u64| Sample { memory: dewar_protocol::Bytes(memory), ..Sample::default() };
    let keys: Vec<_> = (0..3).map(|index| scene.run(start_message("shop", index))).collect();
    assert_eq!(used(&mut scene), 0, "nothing is measured yet");
    scene.take(Input::Usage(keys.iter().map(|key| (*key, sample((1 << 20) + (1 << 19)))).collect()));
    assert_eq!(used(&mut scene), 4, "rounded down once, not for each");
    scene.take(exited(keys[0].0, 1, "gone"));
    assert_eq!(used(&mut scene), 3, "what has ended uses nothing");
}
