//! `compat.*`, and the times of an evacuation: how much of each era of the protocol is spoken.

use std::time::Duration;

use dewar_core::{Evacuation, ExitedReasons};

use super::check::DAY;
use super::reader::Reader;
use super::{CompatConfig, StagingReplyKeys};

/// How an evacuation ends; each has a key for its time.
#[derive(Clone, Copy)]
enum Profile {
    Deterministic,
    FixedDelay,
}

pub(super) fn compat(reader: &mut Reader) -> CompatConfig {
    let keys = [("superset", StagingReplyKeys::Superset), ("modern", StagingReplyKeys::Modern), ("classic", StagingReplyKeys::Classic)];
    let reasons = [("classic", ExitedReasons::Classic), ("modern", ExitedReasons::Modern)];
    CompatConfig {
        legacy_subjects: reader.flag("compat.legacy_subjects", true),
        component: reader.flag("compat.component", true),
        exited_reasons: reader.choice("compat.exited_reasons", &reasons, reasons[0]),
        split_heartbeats: reader.flag("compat.split_heartbeats", false),
        empty_heartbeat: reader.flag("compat.empty_heartbeat", true),
        evacuation: evacuation(reader),
        staging_reply_keys: reader.choice("compat.staging_reply_keys", &keys, keys[0]),
        start_before_upload: reader.flag("compat.start_before_upload", false),
    }
}

fn evacuation(reader: &mut Reader) -> Evacuation {
    let profiles = [("deterministic", Profile::Deterministic), ("fixed_delay", Profile::FixedDelay)];
    let profile = reader.choice("compat.evacuation", &profiles, profiles[0]);
    let bail_out = reader.seconds("evacuation_bail_out_time_in_seconds", Duration::from_secs(600), 0.0..=DAY);
    let delay = reader.seconds("evacuation_delay_secs", Duration::from_secs(30), 0.0..=DAY);
    match profile {
        Profile::Deterministic => Evacuation::Deterministic { bail_out },
        Profile::FixedDelay => Evacuation::FixedDelay { delay },
    }
}
