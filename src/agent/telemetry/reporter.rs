//! Tells loggregator every so often what the agent and its instances are like.

use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::warn;

use super::loggregator::Loggregator;
use super::report::{Report, Sources};

/// Tells `loggregator` at each interval, until dropped. A report that cannot be had is left out.
pub(crate) async fn report_to(loggregator: Loggregator, sources: Arc<Sources>) {
    let period = sources.metrics.interval;
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match sources.report().await {
            Some(report) => emit(&loggregator, &report),
            None => warn!("metrics not gathered, the agent does not answer"),
        }
    }
}

/// The names and units are the original's.
fn emit(loggregator: &Loggregator, report: &Report<'_>) {
    let Report { varz, host, .. } = report;
    let mut values = vec![
        ("uptime", report.uptime.as_secs_f64(), "s"),
        ("remaining_memory", float(varz.remaining.memory.0), "mb"),
        ("remaining_disk", float(varz.remaining.disk.0), "mb"),
        ("available_memory_ratio", varz.available_memory_ratio, "P"),
        ("available_disk_ratio", varz.available_disk_ratio, "P"),
        ("instances", count(varz.instances.len()), "instances"),
        ("reservable_stagers", float(i64::try_from(varz.reservable_stagers).unwrap_or(i64::MAX)), "stagers"),
    ];
    let told = [
        ("avg_cpu_load", host.load, "loadavg"),
        ("mem_used_bytes", host.memory_used.map(|bytes| float(i64::try_from(bytes).unwrap_or(i64::MAX))), "B"),
        ("mem_free_bytes", host.memory_free.map(|bytes| float(i64::try_from(bytes).unwrap_or(i64::MAX))), "B"),
    ];
    values.extend(told.into_iter().filter_map(|(name, value, unit)| Some((name, value?, unit))));
    for (name, value, unit) in values {
        loggregator.value(name, value, unit);
    }
    for (state, instances) in report.by_state() {
        loggregator.value(&format!("dea_registry_{}", state.to_string().to_lowercase()), count(instances), "instances");
    }
    for instance in varz.instances.iter().filter(|instance| instance.handle.is_some()) {
        loggregator.container(&instance.app_id, instance.index, instance.cpu, instance.usage);
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats, exact to 2^53")]
fn float(value: i64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    float(i64::try_from(value).unwrap_or(i64::MAX))
}
