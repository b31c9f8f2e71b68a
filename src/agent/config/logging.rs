//! `logging.*`: what is logged and where to.

use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use super::reader::Reader;
use super::{LogFormat, LoggingConfig};
use crate::log_counts::LogCounts;

pub(super) fn logging(reader: &mut Reader) -> LoggingConfig {
    /// The original's levels, and the nearest one there is.
    const LEVELS: &[(&str, LevelFilter)] = &[
        ("off", LevelFilter::OFF),
        ("fatal", LevelFilter::ERROR),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("debug1", LevelFilter::DEBUG),
        ("debug2", LevelFilter::TRACE),
        ("trace", LevelFilter::TRACE),
        ("all", LevelFilter::TRACE),
    ];
    LoggingConfig {
        level: reader.choice("logging.level", LEVELS, ("info", LevelFilter::INFO)),
        format: reader.choice("logging.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)], ("text", LogFormat::Text)),
        file: reader.text("logging.file").map(PathBuf::from),
        counts: LogCounts::default(),
    }
}
