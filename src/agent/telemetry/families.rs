//! A report as families of metrics: the one table of what is called how, for Prometheus and OpenTelemetry alike.
//!
//! Names are without what both worlds add: a counter's `_total` and the unit, so `dewar_uptime` reads `dewar_uptime_seconds` in
//! `/metrics`. Each has points of bounded number: by state, level or result, and one an instance for the first
//! `metrics.max_instances` of them.

use dewar_core::VarzInstance;
use dewar_protocol::Mib;

use super::counters::Attempted;
use super::histogram::Distribution;
use super::report::Report;

/// Metrics of one name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) unit: Unit,
    pub(super) points: Points,
}

/// What the numbers are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    None,
    Seconds,
    Bytes,
    Ratio,
}

/// The numbers, which are all of one kind.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Points {
    /// They go up and down.
    Gauge(Vec<(Labels, f64)>),
    /// They count since the agent's start, or the instance's.
    Counter(Vec<(Labels, f64)>),
    /// Durations since the agent's start.
    Histogram(Distribution),
}

pub(super) type Labels = Vec<(&'static str, String)>;

/// All that a report has to tell in numbers.
pub(super) fn families(report: &Report<'_>) -> Vec<Family> {
    let mut families = agent(report);
    families.extend(bus_and_logs(report));
    families.extend(work(report));
    families.extend(instances(report));
    families
}

fn agent(report: &Report<'_>) -> Vec<Family> {
    let Report { varz, host, .. } = report;
    let about = vec![("id", report.facts.id.to_string()), ("version", env!("CARGO_PKG_VERSION").to_owned())];
    let states = report.by_state().map(|(state, count)| (vec![("state", state.to_string().to_lowercase())], number(count)));
    let mut families = vec![
        Family { points: Points::Gauge(vec![(about, 1.0)]), ..gauge("dewar_agent", "Always 1; who this is", Unit::None, 1.0) },
        gauge("dewar_uptime", "Since the agent's start", Unit::Seconds, report.uptime.as_secs_f64()),
        Family { points: Points::Gauge(states.into()), ..gauge("dewar_instances", "Registered instances", Unit::None, 0.0) },
        gauge("dewar_memory_capacity", "Memory that can be promised, overcommitment included", Unit::Bytes, bytes(varz.capacity.memory)),
        gauge("dewar_memory_remaining", "Memory that is not promised", Unit::Bytes, bytes(varz.remaining.memory)),
        gauge("dewar_memory_available", "Part of the memory that is not promised", Unit::Ratio, varz.available_memory_ratio),
        gauge("dewar_disk_capacity", "Disk that can be promised, overcommitment included", Unit::Bytes, bytes(varz.capacity.disk)),
        gauge("dewar_disk_remaining", "Disk that is not promised", Unit::Bytes, bytes(varz.remaining.disk)),
        gauge("dewar_disk_available", "Part of the disk that is not promised", Unit::Ratio, varz.available_disk_ratio),
        gauge("dewar_reservable_stagers", "Staging tasks that would still fit", Unit::None, count(varz.reservable_stagers)),
        gauge("dewar_staging_tasks", "Staging tasks under way", Unit::None, number(varz.staging_tasks)),
        counter("process_cpu", "CPU time of this process", Unit::Seconds, host.cpu.as_secs_f64()),
    ];
    let told = [
        ("process_resident_memory", "Memory of this process that is resident", Unit::Bytes, host.resident.map(count)),
        ("dewar_host_load_average", "The host's load over one minute", Unit::None, host.load),
        ("dewar_host_memory_used", "The host's memory in use", Unit::Bytes, host.memory_used.map(count)),
        ("dewar_host_memory_free", "The host's memory that could be used", Unit::Bytes, host.memory_free.map(count)),
    ];
    families.extend(told.into_iter().filter_map(|(name, help, unit, value)| Some(gauge(name, help, unit, value?))));
    families
}

fn bus_and_logs(report: &Report<'_>) -> Vec<Family> {
    let bus = report.bus;
    let lines = report.log_lines.iter().map(|(level, lines)| (vec![("level", (*level).to_owned())], count(*lines)));
    let mut families = vec![
        gauge("dewar_bus_up", "Whether there is a connection to the bus", Unit::None, f64::from(u8::from(report.bus_is_up))),
        counted("dewar_bus_connects", "Connections to the bus that have come about", bus.connects),
        counted("dewar_bus_messages_published", "Messages handed to the bus", bus.published),
        counted("dewar_bus_messages_received", "Messages taken from the bus", bus.received),
        counted("dewar_bus_messages_dropped", "Messages that could not be handed to the bus", bus.dropped),
        counted("dewar_bus_messages_missed", "Messages that came faster than they were taken", bus.slow_consumer),
        Family { points: Points::Counter(lines.collect()), ..counted("dewar_log_lines", "Lines of the agent's own log", 0) },
        counted("dewar_app_log_lines_dropped", "Lines of apps that were dropped", report.app_log_lines_dropped),
        counted("dewar_spans_dropped", "Spans that did not reach their collector", report.spans_dropped),
    ];
    if let Some(datagrams) = report.datagrams {
        families.push(counted("dewar_loggregator_datagrams_sent", "Datagrams sent to loggregator", datagrams.sent));
        families.push(counted("dewar_loggregator_datagrams_failed", "Datagrams that could not be sent", datagrams.failed));
    }
    families
}

fn work(report: &Report<'_>) -> Vec<Family> {
    let counts = &report.counts;
    let results = |attempted: Attempted| {
        let result = |name: &str, number| (vec![("result", name.to_owned())], count(number));
        Points::Counter(vec![result("done", attempted.done()), result("failed", attempted.failed)])
    };
    vec![
        counted("dewar_instance_starts", "Instances that have entered STARTING", counts.starts),
        counted("dewar_instance_crashes", "Instances that have entered CRASHED", counts.crashes),
        spread("dewar_instance_start", "From STARTING to RUNNING", counts.start_times),
        Family { points: results(counts.stagings), ..counted("dewar_stagings", "Staging tasks that have ended", 0) },
        spread("dewar_staging", "From the start of a staging task to its end", counts.stagings.times),
        Family { points: results(counts.fetches), ..counted("dewar_droplet_fetches", "Droplets that were wanted", 0) },
        spread("dewar_droplet_fetch", "Until a droplet was there, or not", counts.fetches.times),
        Family { points: results(counts.sandbox_calls), ..counted("dewar_sandbox_calls", "What sandboxes were asked to do", 0) },
        spread("dewar_sandbox_call", "What sandboxes took to do it", counts.sandbox_calls.times),
    ]
}

/// Of the instances that have a sandbox, those that are registered longest.
fn instances(report: &Report<'_>) -> Vec<Family> {
    let living = || report.varz.instances.iter().filter(|instance| instance.handle.is_some());
    let most = report.metrics.max_instances;
    let each = |value: fn(&VarzInstance) -> f64| living().take(most).map(|instance| (labels(instance), value(instance))).collect();
    let unlisted = living().count().saturating_sub(most);
    let mut families = vec![gauge("dewar_instances_unlisted", "Instances without metrics of their own", Unit::None, number(unlisted))];
    if most > 0 {
        families.extend([
            Family {
                points: Points::Gauge(each(|instance| count(instance.usage.memory.0))),
                ..gauge("dewar_instance_memory", "Memory that an instance uses, the host's part included", Unit::Bytes, 0.0)
            },
            Family {
                points: Points::Gauge(each(|instance| count(instance.usage.disk.0))),
                ..gauge("dewar_instance_disk", "Disk that an instance uses", Unit::Bytes, 0.0)
            },
            Family {
                points: Points::Counter(each(|instance| instance.usage.cpu.as_secs_f64())),
                ..counter("dewar_instance_cpu", "CPU time of an instance", Unit::Seconds, 0.0)
            },
        ]);
    }
    families
}

/// During an update two instances have the same application and index, hence the id.
fn labels(instance: &VarzInstance) -> Labels {
    vec![("app_id", instance.app_id.to_string()), ("index", instance.index.to_string()), ("instance_id", instance.instance_id.to_string())]
}

fn gauge(name: &'static str, help: &'static str, unit: Unit, value: f64) -> Family {
    Family { name, help, unit, points: Points::Gauge(vec![(Labels::new(), value)]) }
}

fn counter(name: &'static str, help: &'static str, unit: Unit, value: f64) -> Family {
    Family { name, help, unit, points: Points::Counter(vec![(Labels::new(), value)]) }
}

fn counted(name: &'static str, help: &'static str, value: u64) -> Family {
    counter(name, help, Unit::None, count(value))
}

fn spread(name: &'static str, help: &'static str, durations: Distribution) -> Family {
    Family { name, help, unit: Unit::Seconds, points: Points::Histogram(durations) }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats in both worlds, exact to 2^53")]
fn count(value: u64) -> f64 {
    value as f64
}

fn number(value: usize) -> f64 {
    count(u64::try_from(value).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "as for counts")]
fn bytes(amount: Mib) -> f64 {
    amount.0 as f64 * 1_048_576.0
}
