//! What is kept, for how long and how much of it: `crash_*` and `droplets.*`.

use std::time::Duration;

use dewar_core::DiskUse;
use dewar_protocol::Bytes;

use super::check::{DAY, mib};
use super::reader::Reader;

/// MiB of unused droplets that are kept by default.
const CACHE_MB: u64 = 10 << 10;

pub(super) fn crash_lifetime(reader: &mut Reader) -> Duration {
    reader.seconds("crash_lifetime_secs", Duration::from_secs(3600), 0.0..=365.0 * DAY)
}

pub(super) fn crash_disk(reader: &mut Reader) -> DiskUse {
    DiskUse {
        blocks: reader.number("crash_block_usage_ratio_threshold", 0.8, 0.0..=1.0),
        inodes: reader.number("crash_inode_usage_ratio_threshold", 0.8, 0.0..=1.0),
    }
}

pub(super) fn droplet_budget(reader: &mut Reader) -> Bytes {
    mib(reader.integer("droplets.cache_mb", CACHE_MB, 0..=1 << 40)).to_bytes()
}
