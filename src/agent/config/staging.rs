//! `staging.*`: whether and how the agent stages.

use std::time::Duration;

use dewar_core::StagingConfig;
use dewar_protocol::Mib;

use super::StagingSettings;
use super::check::{BOUNDLESS, DAY, small};
use super::reader::Reader;

/// What a task has besides the time of its buildpacks: for downloads and uploads, which have bounds of their own.
const TRANSFERS: Duration = Duration::from_secs(30 * 60);

impl StagingSettings {
    /// As the cell is told.
    pub(crate) fn to_cell(&self, start_before_upload: bool) -> StagingConfig {
        StagingConfig {
            enabled: self.enabled,
            memory: Mib(self.memory_mib.into()),
            disk: Mib(self.disk_mib.into()),
            time_limit: self.duration + TRANSFERS,
            start_before_upload,
        }
    }
}

pub(super) fn staging(reader: &mut Reader) -> StagingSettings {
    StagingSettings {
        enabled: reader.flag("staging.enabled", false),
        duration: reader.seconds("staging.max_staging_duration", Duration::from_secs(900), 1.0..=DAY),
        memory_mib: small(reader.integer("staging.memory_limit_mb", 1024, 1..=u32::MAX.into())),
        disk_mib: small(reader.integer("staging.disk_limit_mb", 2048, 1..=u32::MAX.into())),
        inodes: reader.integer("staging.disk_inode_limit", 200_000, 1..=BOUNDLESS),
    }
}
