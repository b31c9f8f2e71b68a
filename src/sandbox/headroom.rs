//! How many linear memories a host has room to reserve.
//!
//! Pools are address space, nearly all of it never touched. But stacks and tables are mapped ready for use, and where the kernel does
//! not overcommit (`vm.overcommit_memory` is 2) it counts them as if they were touched, against what all processes share.

use std::fs;

/// Bounds on the size of a pool: fewer are not worth one, more cost page tables that nobody uses.
const FEWEST: u64 = 64;
const MOST: u64 = 10_000;
/// MiB that a kernel which does not overcommit counts for each memory: half a stack and three tables in each of two engines' pools,
/// twice as much to leave others half of what there is.
const COUNTED_MIB: u64 = 6;
/// The value of `vm.overcommit_memory` that means never.
const NEVER: &str = "2";

/// Linear memories that a pool should hold here.
pub(crate) fn memories() -> u32 {
    let info = rustix::system::sysinfo();
    let total_mib = info.totalram.saturating_mul(u64::from(info.mem_unit)) >> 20;
    let policy = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memories_within(total_mib, &policy, &meminfo)
}

/// One for each MiB of the host's memory, which is about what the smallest guest takes; less where little can be promised.
fn memories_within(total_mib: u64, policy: &str, meminfo: &str) -> u32 {
    let kib = |name: &str| meminfo.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let promised = match (policy.trim(), kib("CommitLimit:"), kib("Committed_AS:")) {
        (NEVER, Some(limit), Some(used)) => (limit.saturating_sub(used) >> 10) / COUNTED_MIB,
        _ => total_mib,
    };
    let memories = promised.min(total_mib).clamp(FEWEST, MOST);
    u32::try_from(memories).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_fits_what_the_kernel_may_still_promise() {
        let meminfo = "MemTotal:        4096000 kB\nCommitLimit:     2048000 kB\nCommitted_AS:     512000 kB\n";
        assert_eq!(memories_within(4000, "0\n", meminfo), 4000);
        assert_eq!(memories_within(4000, "2\n", meminfo), 250);
        assert_eq!(memories_within(4000, "2\n", "CommitLimit: 1024 kB\nCommitted_AS: 2048 kB\n"), 64);
        assert_eq!(memories_within(4000, "2\n", ""), 4000);
        assert_eq!(memories_within(1 << 20, "1\n", meminfo), 10_000);
        assert_eq!(memories_within(16, "0\n", meminfo), 64);
        assert!((64..=10_000).contains(&memories()));
    }
}
