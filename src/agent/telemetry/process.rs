//! What the operating system says about this process and its host.

use std::fs;
use std::time::Duration;

/// What this system does not tell is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct HostNumbers {
    /// Bytes of this process that are resident.
    pub(super) resident: Option<u64>,
    /// CPU time of this process.
    pub(super) cpu: Duration,
    /// The host's load average over one minute.
    pub(super) load: Option<f64>,
    /// Bytes of the host's memory that are in use.
    pub(super) memory_used: Option<u64>,
    /// Bytes of the host's memory that could be.
    pub(super) memory_free: Option<u64>,
}

impl HostNumbers {
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let host = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let free = bytes(&host, "MemAvailable:");
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Self {
            resident: bytes(&status, "VmRSS:"),
            cpu: Duration::try_from(cpu).unwrap_or_default(),
            load: load.split(' ').next().and_then(|load| load.parse().ok()),
            memory_used: bytes(&host, "MemTotal:").zip(free).map(|(total, free)| total.saturating_sub(free)),
            memory_free: free,
        }
    }
}

/// The bytes of a line such as `VmRSS:      1234 kB`.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_plausible() {
        let numbers = HostNumbers::read();
        assert!(numbers.resident.unwrap() > 1 << 20 && numbers.cpu > Duration::ZERO && numbers.load.unwrap() >= 0.0);
        assert!(numbers.memory_used.unwrap() > 0 && numbers.memory_free.unwrap() > 0);
    }
}
