//! From the tree of a file to a checked configuration: every key, its default and its bounds.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use dewar_protocol::{Bytes, Mib};
use dewar_sandbox::CompileLimits;
use serde_json::{Map, Value};

use super::compat::compat;
use super::egress::egress;
use super::files::files;
use super::https;
use super::ignored;
use super::instance::instance;
use super::logging::logging;
use super::nats::bus;
use super::reader::{Findings, Reader};
use super::reaping::{crash_disk, crash_lifetime, droplet_budget};
use super::resources::{capacity, intervals};
use super::staging::staging;
use super::telemetry::{loggregator, metrics, otlp};
use super::{AgentConfig, ConfigError, StatusConfig};
use crate::hardening::{Hardening, InForce};
use crate::telemetry::Spans;

/// Keys of the DEA that need Warden, Ruby, or a part of the protocol that is not spoken here. They do nothing.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "bind_mounts",
    "dea_ruby",
    "directory_server.file_api_port",
    "directory_server.logging",
    "hooks",
    "instance.bandwidth_limit",
    "instance.nproc_limit",
    "logging.syslog",
    "post_setup_hook",
    "staging.bandwidth_limit",
    "staging.cpu_limit_shares",
    "staging.environment",
    "warden_socket",
];

/// 2^53 bytes: no limit, yet a number that JSON and YAML keep exactly.
pub(super) const BOUNDLESS: u64 = 1 << 53;
pub(super) const DAY: f64 = 86_400.0;

pub(super) fn check(tree: Value) -> Result<(AgentConfig, Vec<String>), Vec<ConfigError>> {
    let tree = match tree {
        Value::Null => Value::Object(Map::new()),
        Value::Object(_) => tree,
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(vec![ConfigError { key: String::new(), problem: "the file must hold a mapping of keys to values".to_owned() }]);
        }
    };
    let mut reader = Reader::new(tree);
    let without_effect = ignored::skip(&mut reader, WITHOUT_EFFECT);
    let mut config = read(&mut reader);
    let Findings { effective, unread, errors } = reader.finish();
    if !errors.is_empty() {
        return Err(errors);
    }
    config.effective = effective;
    let mut warnings = Vec::new();
    if !unread.is_empty() {
        warnings.push(format!("unknown keys: {}", unread.join(", ")));
    }
    if !without_effect.is_empty() {
        warnings.push(format!("keys without effect: {}", without_effect.join(", ")));
    }
    Ok((config, warnings))
}

pub(super) fn read(reader: &mut Reader) -> AgentConfig {
    let index = small(reader.integer("index", 0, 0..=u32::MAX.into()));
    let (staging, https_api, controller) = (staging(reader), https::api(reader), https::controller(reader));
    if staging.enabled && https_api.is_some() && !reader.has("cc_url") {
        reader.error("cc_url", "is missing, though there is `ssl` and staging is enabled: nobody could be told how a staging ends");
    }
    AgentConfig {
        base_dir: PathBuf::from(reader.required_text("base_dir")),
        index,
        local_ip: local_ip(reader),
        pid_file: reader.text("pid_filename").map(PathBuf::from),
        logging: logging(reader),
        bus: bus(reader, index),
        status: StatusConfig {
            port: u16::try_from(reader.integer("status.port", 0, 0..=65_535)).unwrap_or(0),
            user: reader.text("status.user"),
            password: reader.secret("status.password"),
        },
        intervals: intervals(reader),
        capacity: capacity(reader),
        stacks: stacks(reader),
        zone: reader.text_or("placement_properties.zone", "default"),
        health_check_timeout: reader.seconds("default_health_check_timeout", Duration::from_secs(60), 1.0..=DAY),
        crash_lifetime: crash_lifetime(reader),
        crash_disk: crash_disk(reader),
        droplet_budget: droplet_budget(reader),
        instance: instance(reader),
        egress: egress(reader),
        files: files(reader),
        staging,
        https_api,
        controller,
        hm9000: https::hm9000(reader),
        metrics: metrics(reader),
        loggregator: loggregator(reader),
        otlp: otlp(reader),
        spans: Spans::default(),
        compile: compile(reader),
        artifact_bytes: mebibytes(reader, "compile.cache_mb", 2048),
        compiler: None,
        compat: compat(reader),
        hardening: hardening(reader),
        in_force: InForce::default(),
        effective: Value::Null,
    }
}

fn local_ip(reader: &mut Reader) -> Option<IpAddr> {
    let ip = reader.text("local_ip")?.parse();
    if ip.is_err() {
        reader.error("local_ip", "must be an IP address");
    }
    ip.ok()
}

/// A file that must be there.
pub(super) fn file(reader: &mut Reader, key: &'static str) -> Option<PathBuf> {
    let path = PathBuf::from(reader.text(key)?);
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => return Some(path),
        Ok(_) => reader.error(key, format_args!("must name a file, and {} is none", path.display())),
        Err(error) => reader.error(key, format_args!("must name a file that can be read: {}: {error}", path.display())),
    }
    None
}

/// The original's stacks have a name and a root file system; here only the name counts, and may stand alone.
fn stacks(reader: &mut Reader) -> Vec<String> {
    let name = |stack: &Value| stack.as_str().or_else(|| stack.get("name")?.as_str()).map(str::to_owned);
    let stacks = reader.list("stacks", "a name or a section with `name`", name, String::clone);
    // An agent without a stack could start nothing.
    let stacks = if stacks.is_empty() { vec!["cflinuxfs2".to_owned()] } else { stacks };
    reader.note("stacks", Some(stacks.clone().into()));
    stacks
}

fn compile(reader: &mut Reader) -> CompileLimits {
    let default = CompileLimits::default();
    CompileLimits {
        memory: mebibytes(reader, "compile.memory_mb", default.memory.0 >> 20),
        cpu: reader.seconds("compile.cpu_seconds", default.cpu, 1.0..=DAY),
        wall: reader.seconds("compile.wall_seconds", default.wall, 1.0..=DAY),
        component: mebibytes(reader, "compile.max_component_mb", default.component.0 >> 20),
        confined: default.confined,
    }
}

fn hardening(reader: &mut Reader) -> Hardening {
    let choices = [("required", Hardening::Required), ("best-effort", Hardening::BestEffort), ("off", Hardening::Off)];
    reader.choice("hardening", &choices, choices[1])
}

fn mebibytes(reader: &mut Reader, key: &'static str, default: u64) -> Bytes {
    mib(reader.integer(key, default, 1..=1 << 30)).to_bytes()
}

pub(super) fn mib(number: u64) -> Mib {
    Mib(i64::try_from(number).unwrap_or(i64::MAX))
}

/// For numbers that were bounded when they were read.
pub(super) fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
