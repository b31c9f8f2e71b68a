//! `/varz`: a report as the collectors of the protocol's time read it.

use std::collections::BTreeMap;
use std::time::Duration;

use dewar_core::VarzInstance;
use serde_json::{Map, Value, json};

use super::report::Report;

/// What `vcap.component.announce` tells, without the credentials, and what a collector turns into metrics. Names with `warden` are
/// about sandboxes; collectors know them so.
pub(crate) fn varz(report: &Report<'_>) -> Value {
    let Report { facts, varz, host, bus, counts, .. } = report;
    let handles: Vec<_> = varz.instances.iter().filter_map(|instance| instance.handle.as_ref()).collect();
    let calls = counts.sandbox_calls;
    let mut object = json!({
        "type": "DEA",
        "index": facts.index,
        "uuid": facts.id,
        "host": facts.host,
        "start": facts.start,
        "uptime": uptime(report.uptime),
        "num_cores": std::thread::available_parallelism().map_or(1, usize::from),
        "log_counts": report.log_lines,
        "stacks": varz.stacks,
        "can_stage": u8::from(varz.reservable_stagers > 0),
        "reservable_stagers": varz.reservable_stagers,
        "available_memory_ratio": varz.available_memory_ratio,
        "available_disk_ratio": varz.available_disk_ratio,
        "instance_registry": instance_registry(&varz.instances),
        "warden_containers": handles,
        "total_warden_response_time_in_ms": Duration::from_secs_f64(calls.times.sum).as_millis(),
        "warden_request_count": calls.times.count(),
        "warden_error_response_count": calls.failed,
        "staging_tasks": varz.staging_tasks,
        "bus": {
            "up": report.bus_is_up,
            "published": bus.published,
            "dropped": bus.dropped,
            "received": bus.received,
            "slow_consumer": bus.slow_consumer,
            "connects": bus.connects,
        },
        "sandbox_allocation": facts.sandbox_allocation,
        "hardening": facts.hardening,
        "app_log_lines_dropped": report.app_log_lines_dropped,
        "cpu": percent(host.cpu, report.uptime),
    });
    if let Value::Object(object) = &mut object {
        let mut tell = |name: &str, number: Option<Value>| number.and_then(|number| object.insert(name.to_owned(), number));
        tell("mem", host.resident.map(|bytes| json!(bytes / 1024)));
        tell("mem_bytes", host.resident.map(Value::from));
        tell("cpu_load_avg", host.load.map(Value::from));
        tell("mem_used_bytes", host.memory_used.map(Value::from));
        tell("mem_free_bytes", host.memory_free.map(Value::from));
    }
    object
}

/// Application id → instance id → attributes. Never environment, services, credentials or the droplet's URL.
fn instance_registry(instances: &[VarzInstance]) -> BTreeMap<&str, Map<String, Value>> {
    let mut registry: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for instance in instances {
        let attributes = json!({
            "application_id": instance.app_id,
            "application_name": instance.app_name,
            "application_version": instance.version,
            "application_uris": instance.uris,
            "instance_id": instance.instance_id,
            "instance_index": instance.index,
            "limits": instance.limits,
            "state": instance.state,
            "state_timestamp": instance.state_since.to_unix(),
            "warden_handle": instance.handle,
            "used_memory_in_bytes": instance.usage.memory,
            "used_disk_in_bytes": instance.usage.disk,
            "computed_pcpu": instance.cpu,
        });
        registry.entry(instance.app_id.as_str()).or_default().insert(instance.instance_id.to_string(), attributes);
    }
    registry
}

/// `<d>d:<h>h:<m>m:<s>s`.
fn uptime(since: Duration) -> String {
    let seconds = since.as_secs();
    format!("{}d:{}h:{}m:{}s", seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// Of one core.
fn percent(used: Duration, of: Duration) -> f64 {
    if of.is_zero() { 0.0 } else { 100.0 * used.div_duration_f64(of) }
}
