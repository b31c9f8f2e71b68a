//! What the operating system says about this process and its host.

use std::fs;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// `mem` (resident, KiB), `mem_bytes`, `cpu` (percent of one core since the start), `cpu_load_avg`, `mem_used_bytes` and
/// `mem_free_bytes` of the host. What this system does not tell is absent.
pub(super) fn numbers(uptime: Duration) -> Map<String, Value> {
    let mut numbers = Map::new();
    let mut tell = |name: &str, number: Option<Value>| number.and_then(|number| numbers.insert(name.to_owned(), number));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = kibibytes(&status, "VmRSS:");
    tell("mem", resident.map(Value::from));
    tell("mem_bytes", resident.map(|kibibytes| json!(kibibytes * 1024)));
    tell("cpu", Some(json!(cpu_percent(uptime))));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    tell("cpu_load_avg", load.split(' ').next().and_then(|load| load.parse::<f64>().ok()).map(Value::from));
    let host = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let (Some(total), Some(available)) = (kibibytes(&host, "MemTotal:"), kibibytes(&host, "MemAvailable:")) {
        tell("mem_used_bytes", Some(json!(total.saturating_sub(available) * 1024)));
        tell("mem_free_bytes", Some(json!(available * 1024)));
    }
    numbers
}

/// The number of a line such as `VmRSS:      1234 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn cpu_percent(uptime: Duration) -> f64 {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = Duration::try_from(clock).unwrap_or_default();
    if uptime.is_zero() { 0.0 } else { 100.0 * used.div_duration_f64(uptime) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_plausible() {
        let numbers = numbers(Duration::from_secs(1));
        let number = |name: &str| numbers.get(name).and_then(Value::as_f64).unwrap();
        assert!(number("mem") > 1000.0 && number("mem_bytes") == number("mem") * 1024.0);
        assert!(number("cpu") > 0.0 && number("cpu_load_avg") >= 0.0);
        assert!(number("mem_used_bytes") > 0.0 && number("mem_free_bytes") > 0.0);
    }
}
