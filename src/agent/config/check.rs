//! From the tree of a file to a checked configuration: every key, its default and its bounds.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dewar_bus::{BusAuth, BusConfig, BusTls};
use dewar_core::{Capacity, ExitedReasons, Intervals};
use dewar_protocol::{Bytes, Mib, Secret};
use dewar_sandbox::{CompileLimits, HttpLimits, Instances};
use serde_json::{Map, Value};
use tracing::level_filters::LevelFilter;

use super::egress::egress;
use super::reader::{Findings, Reader};
use super::{AgentConfig, CompatConfig, ConfigError, CpuConfig, InstanceConfig, LogFormat, LoggingConfig, StagingSettings, StatusConfig};
use crate::hardening::{Hardening, InForce};
use crate::log_counts::LogCounts;

/// Keys of the DEA that need Warden, Ruby, or a part of the protocol that is not spoken here. They do nothing.
const WITHOUT_EFFECT: &[&str] = &[
    "bind_mounts",
    "cc_url",
    "crash_block_usage_ratio_threshold",
    "crash_inode_usage_ratio_threshold",
    "dea_ruby",
    "directory_server",
    "domain",
    "evacuation_bail_out_time_in_seconds",
    "evacuation_delay_secs",
    "hm9000",
    "hooks",
    "instance.bandwidth_limit",
    "instance.nproc_limit",
    "logging.syslog",
    "loggregator",
    "post_setup_hook",
    "service_name",
    "ssl",
    "staging.bandwidth_limit",
    "staging.cpu_limit_shares",
    "staging.environment",
    "warden_socket",
];

/// Instances' ports by default: Warden's first port, and beyond Linux's ephemeral range, so that no outgoing connection takes one.
const FIRST_PORT: u64 = 61_001;
const LAST_PORT: u64 = 65_535;

/// 2^53 bytes: no limit, yet a number that JSON and YAML keep exactly.
const BOUNDLESS: u64 = 1 << 53;
const DAY: f64 = 86_400.0;

/// Bytes of the largest file with an nkey seed; a seed has 58.
const SEED_FILE_BYTES: u64 = 4096;

pub(super) fn check(tree: Value) -> Result<(AgentConfig, Vec<String>), Vec<ConfigError>> {
    let tree = match tree {
        Value::Null => Value::Object(Map::new()),
        Value::Object(_) => tree,
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(vec![ConfigError { key: String::new(), problem: "the file must hold a mapping of keys to values".to_owned() }]);
        }
    };
    let mut reader = Reader::new(tree);
    let without_effect: Vec<&str> = WITHOUT_EFFECT.iter().copied().filter(|key| reader.skip(key)).collect();
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

fn read(reader: &mut Reader) -> AgentConfig {
    let index = small(reader.integer("index", 0, 0..=u32::MAX.into()));
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
        zone: reader.text("placement_properties.zone").unwrap_or_else(|| "default".to_owned()),
        health_check_timeout: reader.seconds("default_health_check_timeout", Duration::from_secs(60), 1.0..=DAY),
        crash_lifetime: reader.seconds("crash_lifetime_secs", Duration::from_secs(3600), 0.0..=365.0 * DAY),
        instance: instance(reader),
        egress: egress(reader),
        staging: staging(reader),
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

fn logging(reader: &mut Reader) -> LoggingConfig {
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

fn bus(reader: &mut Reader, index: u32) -> BusConfig {
    let mut servers = reader.list(
        "nats_servers",
        "the address of a NATS server",
        |server| server.as_str().filter(|server| !server.is_empty()).map(str::to_owned),
        |server| without_credentials(server),
    );
    if let Some(server) = reader.text_shown_as("nats_uri", without_credentials) {
        servers.push(server);
    }
    if servers.is_empty() && !reader.has("nats_servers") {
        reader.error("nats_servers", "is missing, and so is `nats_uri`");
    } else if servers.is_empty() {
        reader.error("nats_servers", "must name at least one server");
    }
    BusConfig { servers, auth: bus_auth(reader), tls: bus_tls(reader), name: format!("dewar-agent-{index}") }
}

fn bus_auth(reader: &mut Reader) -> BusAuth {
    let user = reader.text("nats.user");
    let password = reader.secret("nats.password");
    let token = reader.secret("nats.token");
    let seed_file = file(reader, "nats.nkey_seed_file");
    let credentials_file = file(reader, "nats.credentials_file");
    let ways = [user.is_some(), token.is_some(), seed_file.is_some(), credentials_file.is_some()];
    if ways.into_iter().filter(|given| *given).count() > 1 {
        reader.error("nats", "must have no more than one of `user`, `token`, `nkey_seed_file` and `credentials_file`");
    }
    if user.is_none() && password.is_some() {
        reader.error("nats.password", "needs `nats.user`");
    }
    if let Some(user) = user {
        BusAuth::UserPassword { user, password: password.unwrap_or_default() }
    } else if let Some(token) = token {
        BusAuth::Token(token)
    } else if let Some(path) = seed_file {
        BusAuth::NkeySeed(nkey_seed(reader, &path))
    } else if let Some(path) = credentials_file {
        BusAuth::CredentialsFile(path)
    } else {
        BusAuth::None
    }
}

fn nkey_seed(reader: &mut Reader, path: &Path) -> Secret<String> {
    let mut seed = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(SEED_FILE_BYTES).read_to_string(&mut seed));
    if let Err(error) = read {
        reader.error("nats.nkey_seed_file", format_args!("cannot be read: {error}"));
    }
    Secret(seed.trim().to_owned())
}

fn bus_tls(reader: &mut Reader) -> Option<BusTls> {
    let tls =
        BusTls { ca_file: file(reader, "nats.tls.ca"), cert_file: file(reader, "nats.tls.cert"), key_file: file(reader, "nats.tls.key") };
    match (&tls.cert_file, &tls.key_file) {
        (Some(_), None) if !reader.has("nats.tls.key") => reader.error("nats.tls.key", "is missing, though there is `nats.tls.cert`"),
        (None, Some(_)) if !reader.has("nats.tls.cert") => reader.error("nats.tls.cert", "is missing, though there is `nats.tls.key`"),
        _ => {}
    }
    reader.has("nats.tls").then_some(tls)
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

fn intervals(reader: &mut Reader) -> Intervals {
    let Intervals { heartbeat, advertise, router_register } = Intervals::default();
    Intervals {
        heartbeat: reader.seconds("intervals.heartbeat", heartbeat, 0.1..=DAY),
        advertise: reader.seconds("intervals.advertise", advertise, 0.1..=DAY),
        router_register: reader.seconds("intervals.router_register_in_seconds", router_register, 0.1..=DAY),
    }
}

fn capacity(reader: &mut Reader) -> Capacity {
    let memory = mib(reader.integer("resources.memory_mb", 8192, 1..=1 << 40));
    let disk = mib(reader.integer("resources.disk_mb", 16 << 20, 1..=1 << 40));
    let memory_factor = reader.number("resources.memory_overcommit_factor", 1.0, 0.01..=1000.0);
    let disk_factor = reader.number("resources.disk_overcommit_factor", 1.0, 0.01..=1000.0);
    Capacity::overcommitted(memory, memory_factor, disk, disk_factor)
}

/// The original's stacks have a name and a root file system; here only the name counts, and may stand alone.
fn stacks(reader: &mut Reader) -> Vec<String> {
    let name = |stack: &Value| stack.as_str().or_else(|| stack.get("name")?.as_str()).map(str::to_owned);
    let stacks = reader.list("stacks", "a name or a section with `name`", name, String::clone);
    // An agent without a stack could start nothing.
    if stacks.is_empty() { vec!["cflinuxfs2".to_owned()] } else { stacks }
}

fn instance(reader: &mut Reader) -> InstanceConfig {
    let first = reader.integer("instance.ports.first", FIRST_PORT, 1..=65_535);
    let last = reader.integer("instance.ports.last", LAST_PORT, 1..=65_535);
    if first > last {
        reader.error("instance.ports.first", "must not be greater than `instance.ports.last`");
    }
    let port = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    InstanceConfig {
        ports: port(first)..=port(last),
        cpu: cpu(reader),
        inodes: reader.integer("instance.disk_inode_limit", 200_000, 1..=BOUNDLESS),
        http: http(reader),
    }
}

fn cpu(reader: &mut Reader) -> CpuConfig {
    let mut shares = |key, default| small(reader.integer(key, default, 1..=1 << 20));
    let (min_shares, max_shares) = (shares("instance.min_cpu_share_limit", 1), shares("instance.max_cpu_share_limit", 256));
    if min_shares > max_shares {
        reader.error("instance.min_cpu_share_limit", "must not be greater than `instance.max_cpu_share_limit`");
    }
    let mib_per_share = small(reader.integer("instance.memory_to_cpu_share_ratio", 8, 1..=1 << 20));
    let cap = reader.has("instance.cpu_cap").then(|| small(reader.integer("instance.cpu_cap", 100, 1..=100_000)));
    CpuConfig { mib_per_share, min_shares, max_shares, cap }
}

/// The first is the default.
const INSTANCES: [(&str, Instances); 2] = [("reuse", Instances::Reuse), ("fresh", Instances::Fresh)];

fn http(reader: &mut Reader) -> HttpLimits {
    let default = HttpLimits::default();
    let mut count = |key, default: usize| {
        usize::try_from(reader.integer(key, u64::try_from(default).unwrap_or(u64::MAX), 1..=1 << 24)).unwrap_or(default)
    };
    let (concurrent_requests, queued_requests, connections, head_bytes, headers) = (
        count("instance.http.concurrent_requests", default.concurrent_requests),
        count("instance.http.queued_requests", default.queued_requests),
        count("instance.http.connections", default.connections),
        count("instance.http.head_bytes", default.head_bytes),
        count("instance.http.headers", default.headers),
    );
    HttpLimits {
        concurrent_requests,
        queued_requests,
        connections,
        head_bytes,
        headers,
        instances: reader.choice("instance.http.instances", &INSTANCES, INSTANCES[0]),
        requests_per_store: small(reader.integer(
            "instance.http.requests_per_store",
            default.requests_per_store.into(),
            1..=u32::MAX.into(),
        )),
        request_body: Bytes(reader.integer("instance.http.request_body_bytes", default.request_body.0, 0..=BOUNDLESS)),
        response_body: Bytes(reader.integer("instance.http.response_body_bytes", default.response_body.0, 0..=BOUNDLESS)),
        head_timeout: reader.seconds("instance.http.head_timeout", default.head_timeout, 0.1..=DAY),
        startup_timeout: reader.seconds("instance.http.startup_timeout", default.startup_timeout, 0.1..=DAY),
        response_timeout: reader.seconds("instance.http.response_timeout", default.response_timeout, 0.1..=DAY),
        total_timeout: reader.seconds("instance.http.total_timeout", default.total_timeout, 0.1..=DAY),
    }
}

fn staging(reader: &mut Reader) -> StagingSettings {
    StagingSettings {
        enabled: reader.flag("staging.enabled", false),
        duration: reader.seconds("staging.max_staging_duration", Duration::from_secs(900), 1.0..=DAY),
        memory_mib: small(reader.integer("staging.memory_limit_mb", 1024, 1..=u32::MAX.into())),
        disk_mib: small(reader.integer("staging.disk_limit_mb", 2048, 1..=u32::MAX.into())),
        inodes: reader.integer("staging.disk_inode_limit", 200_000, 1..=BOUNDLESS),
    }
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

fn compat(reader: &mut Reader) -> CompatConfig {
    let reasons = [("classic", ExitedReasons::Classic), ("modern", ExitedReasons::Modern)];
    CompatConfig {
        legacy_subjects: reader.flag("compat.legacy_subjects", true),
        component: reader.flag("compat.component", true),
        exited_reasons: reader.choice("compat.exited_reasons", &reasons, reasons[0]),
        split_heartbeats: reader.flag("compat.split_heartbeats", false),
    }
}

fn mebibytes(reader: &mut Reader, key: &'static str, default: u64) -> Bytes {
    mib(reader.integer(key, default, 1..=1 << 30)).to_bytes()
}

fn mib(number: u64) -> Mib {
    Mib(i64::try_from(number).unwrap_or(i64::MAX))
}

/// For numbers that were bounded when they were read.
fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A server's address as it may be printed: what stands before the last `@` is gone.
fn without_credentials(server: &str) -> String {
    let (scheme, rest) = server.split_once("://").map_or(("", server), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}
