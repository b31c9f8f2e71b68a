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
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Self { cpu: Duration::try_from(cpu).unwrap_or_default(), ..Self::of(&status, &load, &host) }
    }

    /// From the texts of `/proc/self/status`, `/proc/loadavg` and `/proc/meminfo`.
    fn of(status: &str, load: &str, host: &str) -> Self {
        let free = bytes(host, "MemAvailable:");
        Self {
            resident: bytes(status, "VmRSS:"),
            cpu: Duration::ZERO,
            load: load.split(' ').next().and_then(|load| load.parse().ok()),
            memory_used: bytes(host, "MemTotal:").zip(free).map(|(total, free)| total.saturating_sub(free)),
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
    fn what_the_kernel_could_give_is_free_and_all_else_is_in_use() {
        let status = "Name:\tdewar\nVmPeak:\t    9 kB\nVmRSS:\t    1234 kB\n";
        let host = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    6000 kB\nActive:          5000 kB\n";
        let expected = HostNumbers {
            resident: Some(1234 << 10),
            cpu: Duration::ZERO,
            load: Some(0.25),
            memory_used: Some(10_000 << 10),
            memory_free: Some(6000 << 10),
        };
        assert_eq!(HostNumbers::of(status, "0.25 1.50 2.75 1/234 5678\n", host), expected);
        assert_eq!(HostNumbers::of("", "", "MemTotal: 16000 kB\n"), HostNumbers::default(), "what is not told is not guessed");
    }

    #[test]
    fn numbers_are_plausible() {
        let numbers = HostNumbers::read();
        assert!(numbers.resident.unwrap() > 1 << 20 && numbers.cpu > Duration::ZERO && numbers.load.unwrap() >= 0.0);
        assert!(numbers.memory_used.unwrap() > 0 && numbers.memory_free.unwrap() > 0);
    }
}
