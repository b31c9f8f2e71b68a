//! `domain`, `directory_server.*` and `compat.directory_v1`: how files are reached.

use std::time::Duration;

use super::FilesSettings;
use super::reader::Reader;

/// The original's time-out where none, or 0, is given.
const STREAMING_TIMEOUT: u64 = 60;

/// `None` where nobody serves files.
pub(super) fn files(reader: &mut Reader) -> Option<FilesSettings> {
    let enabled = reader.flag("directory_server.enabled", true);
    let domain = reader.text("domain");
    if domain.as_deref().is_some_and(|domain| !is_domain(domain)) {
        reader.error("domain", "must be a host name, maybe with a port");
    }
    let scheme = reader.choice("directory_server.protocol", &[("http", "http"), ("https", "https")], ("http", "http"));
    let mut port = |key| u16::try_from(reader.integer(key, 0, 0..=65_535)).unwrap_or(0);
    let (v1_port, v2_port) = (port("directory_server.v1_port"), port("directory_server.v2_port"));
    let seconds = match reader.integer("directory_server.streaming_timeout", STREAMING_TIMEOUT, 0..=86_400) {
        0 => STREAMING_TIMEOUT,
        seconds => seconds,
    };
    let v1 = reader.flag("compat.directory_v1", false);
    let streaming_timeout = Duration::from_secs(seconds);
    enabled.then(|| FilesSettings { domain, scheme, v2_port, v1_port: v1.then_some(v1_port), streaming_timeout })
}

fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        let fits = (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
        fits && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // With the id before it, it is to stay a host name.
    host.len() <= 220 && host.split('.').all(is_label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}
