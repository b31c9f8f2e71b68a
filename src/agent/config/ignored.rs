//! Keys of the DEA that do nothing here. They still have to be what the DEA took: a file that it would have refused holds a mistake.

use serde_json::Value;

use super::reader::Reader;

/// What a value has to be.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Whole,
    Section,
    /// A list of sections with `src_path`, maybe `dst_path`, and maybe `mode`, which is `ro` or `rw`.
    Mounts,
}

/// Sections before what is in them, so that each mistake is told once.
const TYPES: &[(&str, Kind)] = &[
    ("bind_mounts", Kind::Mounts),
    ("dea_ruby", Kind::Text),
    ("directory_server.file_api_port", Kind::Whole),
    ("directory_server.logging", Kind::Section),
    ("hooks", Kind::Section),
    ("hooks.before_start", Kind::Text),
    ("hooks.after_start", Kind::Text),
    ("hooks.before_stop", Kind::Text),
    ("hooks.after_stop", Kind::Text),
    ("instance.bandwidth_limit", Kind::Section),
    ("instance.bandwidth_limit.rate", Kind::Whole),
    ("instance.bandwidth_limit.burst", Kind::Whole),
    ("instance.nproc_limit", Kind::Whole),
    ("logging.syslog", Kind::Text),
    ("post_setup_hook", Kind::Text),
    ("staging.bandwidth_limit", Kind::Section),
    ("staging.bandwidth_limit.rate", Kind::Whole),
    ("staging.bandwidth_limit.burst", Kind::Whole),
    ("staging.cpu_limit_shares", Kind::Whole),
    ("staging.environment", Kind::Section),
    ("warden_socket", Kind::Text),
];

/// Takes note of these keys, and of the mistakes in them; says which the file has.
pub(super) fn skip(reader: &mut Reader, keys: &[&'static str]) -> Vec<&'static str> {
    let given: Vec<_> = keys.iter().copied().filter(|key| reader.skip(key)).collect();
    for (path, kind) in TYPES {
        let is_below = |key: &&&str| path.strip_prefix(**key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if given.iter().any(|key| is_below(&key)) {
            reader.expect(path, kind.wanted(), |value| kind.fits(value));
        }
    }
    given
}

impl Kind {
    fn wanted(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Whole => "a whole number",
            Self::Section => "a section with keys of its own",
            Self::Mounts => "a list of sections with `src_path`, maybe `dst_path`, and maybe `mode` ro or rw",
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Whole => value.is_u64(),
            Self::Section => value.is_object(),
            Self::Mounts => value.as_array().is_some_and(|mounts| mounts.iter().all(is_mount)),
        }
    }
}

fn is_mount(mount: &Value) -> bool {
    let text_or_absent = |key| mount.get(key).is_none_or(|value| value.is_string() || value.is_null());
    mount.get("src_path").is_some_and(Value::is_string)
        && text_or_absent("dst_path")
        && mount.get("mode").is_none_or(|mode| mode.is_null() || mode == "ro" || mode == "rw")
}
