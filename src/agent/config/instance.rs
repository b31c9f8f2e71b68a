//! `instance.*`: what instances may use and where they are reached.

use dewar_protocol::Bytes;
use dewar_sandbox::{HttpLimits, Instances};

use super::check::{BOUNDLESS, DAY, small};
use super::reader::Reader;
use super::{CpuConfig, InstanceConfig};

/// Instances' ports by default: Warden's first port, and beyond Linux's ephemeral range, so that no outgoing connection takes one.
const FIRST_PORT: u64 = 61_001;
const LAST_PORT: u64 = 65_535;

pub(super) fn instance(reader: &mut Reader) -> InstanceConfig {
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
        core_dumps: reader.flag("instance.core_dumps", false),
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
    let (concurrent_requests, concurrent_requests_per_store, queued_requests, connections, head_bytes, headers) = (
        count("instance.http.concurrent_requests", default.concurrent_requests),
        count("instance.http.concurrent_requests_per_store", default.concurrent_requests_per_store),
        count("instance.http.queued_requests", default.queued_requests),
        count("instance.http.connections", default.connections),
        count("instance.http.head_bytes", default.head_bytes),
        count("instance.http.headers", default.headers),
    );
    HttpLimits {
        concurrent_requests,
        concurrent_requests_per_store,
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
        store_idle_timeout: reader.seconds("instance.http.store_idle_timeout", default.store_idle_timeout, 0.1..=DAY),
        response_timeout: reader.seconds("instance.http.response_timeout", default.response_timeout, 0.1..=DAY),
        total_timeout: reader.seconds("instance.http.total_timeout", default.total_timeout, 0.1..=DAY),
    }
}
