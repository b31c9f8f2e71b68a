//! `staging.*`: whether and how the agent stages.

use std::time::Duration;

use super::StagingSettings;
use super::check::{BOUNDLESS, DAY, small};
use super::reader::Reader;

pub(super) fn staging(reader: &mut Reader) -> StagingSettings {
    StagingSettings {
        enabled: reader.flag("staging.enabled", false),
        duration: reader.seconds("staging.max_staging_duration", Duration::from_secs(900), 1.0..=DAY),
        memory_mib: small(reader.integer("staging.memory_limit_mb", 1024, 1..=u32::MAX.into())),
        disk_mib: small(reader.integer("staging.disk_limit_mb", 2048, 1..=u32::MAX.into())),
        inodes: reader.integer("staging.disk_inode_limit", 200_000, 1..=BOUNDLESS),
    }
}
