//! What an agent does, without what it tells of wall time.

use dewar_core::{Answer, Effect, Publication, Wall};
use dewar_protocol::UnixSeconds;

const NO_TIME: UnixSeconds = UnixSeconds(0.0);

pub(crate) fn without_wall_time(effect: &Effect) -> Effect {
    let mut effect = effect.clone();
    match &mut effect {
        Effect::Publish(Publication::Heartbeat(heartbeat)) => {
            heartbeat.droplets.iter_mut().for_each(|entry| entry.state_timestamp = NO_TIME);
        }
        Effect::Publish(Publication::DropletExited(exited)) => exited.crash_timestamp = exited.crash_timestamp.map(|_| 0),
        Effect::Reply(_, Answer::Found(found)) => {
            found.state_timestamp = NO_TIME;
            if let Some(stats) = &mut found.stats {
                stats.usage.time.clear();
                stats.uptime = 0;
            }
        }
        Effect::StartSandbox(spec) => spec.started_at = Wall::default(),
        Effect::SaveSnapshot(image) => {
            let mut snapshot = image.snapshot(|_, _| String::new());
            snapshot.time = NO_TIME;
            for instance in &mut snapshot.instances {
                instance.state_timestamp = NO_TIME;
                instance.state_starting_timestamp = instance.state_starting_timestamp.map(|_| NO_TIME);
            }
            effect = Effect::Refused { request: "snapshot", why: format!("{snapshot:?}") };
        }
        _ => {}
    }
    effect
}
