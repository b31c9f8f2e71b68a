//! Every key that has an effect: what it means, and what it could be where it has no default. `--print-default-config` is made of it.

use std::fmt::Write as _;

use serde_json::Value;

/// Path, an example where there is no default (YAML), meaning. Keys of a section stand together.
pub(super) const KEYS: &[(&str, &str, &str)] = &[
    ("base_dir", "", "Work directory; made with mode 0700, used by one agent at a time. Must be given."),
    ("index", "", "Job index, told to routers and collectors."),
    ("local_ip", "10.0.16.23", "Where peers reach this host. By default the address that the default route goes out from."),
    ("pid_filename", "/run/dewar/agent.pid", "Holds the process id while the agent runs; its directory must exist."),
    ("logging.level", "", "off, fatal, error, warn, info, debug, debug1, debug2, trace or all. Libraries tell nothing below info."),
    ("logging.format", "", "text, or json for one object a line."),
    ("logging.file", "/var/log/dewar/agent.log", "Appended to. By default the log goes to standard output."),
    ("nats_servers", "", "NATS servers, nats:// or tls://, maybe with user:password@. One must be given, here or in nats_uri."),
    ("nats_uri", "nats://127.0.0.1:4222", "One more NATS server."),
    ("nats.user", "agent", "User name for all servers; or one of token, nkey_seed_file and credentials_file."),
    ("nats.password", "secret", "Password of the user."),
    ("nats.token", "secret", "Token for all servers."),
    ("nats.nkey_seed_file", "/etc/dewar/agent.nk", "File with the seed of an nkey."),
    ("nats.credentials_file", "/etc/dewar/agent.creds", "NATS credentials file."),
    ("nats.ping_interval_in_seconds", "", "Seconds between probes of a silent connection; after two without an answer it counts as lost."),
    ("nats.tls.ca", "/etc/dewar/nats-ca.pem", "Authorities of the servers' certificates. With any key of this section TLS is a must."),
    ("nats.tls.cert", "/etc/dewar/nats.pem", "The agent's own certificate."),
    ("nats.tls.key", "/etc/dewar/nats.key", "Key of that certificate."),
    ("status.port", "", "Port of /varz, /healthz and /metrics; 0: any."),
    ("status.user", "varz", "Basic-auth user for them; drawn at start by default."),
    ("status.password", "secret", "Basic-auth password for them; drawn at start by default."),
    ("metrics.max_instances", "", "Instances that have metrics of their own; those beyond are only counted."),
    ("metrics.interval", "", "Seconds between two emissions to loggregator."),
    ("loggregator.router", "127.0.0.1:3457", "host:port that gets lines of apps and metrics by UDP. By default nobody does."),
    ("loggregator.shared_secret", "secret", "Signs what loggregator gets."),
    ("otlp.endpoint", "http://127.0.0.1:4318", "OpenTelemetry collector that gets traces and metrics. By default nobody does."),
    ("otlp.headers", "x-key=secret", "Headers for the collector: name=value, divided by commas."),
    ("otlp.interval", "", "Seconds between two messages to the collector."),
    ("intervals.heartbeat", "", "Seconds between heartbeats; health managers give an agent up after 30."),
    ("intervals.advertise", "", "Seconds between advertisements; Cloud Controllers forget an agent after 10."),
    ("intervals.router_register_in_seconds", "", "Seconds between registrations of each route; more often when a router asks for it."),
    ("resources.memory_mb", "", "MiB of memory that can be promised."),
    ("resources.disk_mb", "", "MiB of disk that can be promised."),
    ("resources.memory_overcommit_factor", "", "Multiplies the memory."),
    ("resources.disk_overcommit_factor", "", "Multiplies the disk."),
    ("stacks", "", "Names of stacks, or sections with a name, best first. An app that names none gets the first."),
    ("placement_properties.zone", "", "Availability zone, told to Cloud Controllers."),
    ("default_health_check_timeout", "", "Seconds from launch to a passed health check, where the start message does not say."),
    ("crash_lifetime_secs", "", "Seconds that the newest crash of an app and its files are kept."),
    ("crash_block_usage_ratio_threshold", "", "While more than this part of the disk of crashes is in use, the oldest crash goes."),
    ("crash_inode_usage_ratio_threshold", "", "Likewise, of its inodes."),
    ("droplets.cache_mb", "", "MiB of droplets that are kept though no instance uses them. 0: they go within a minute."),
    ("evacuation_bail_out_time_in_seconds", "", "Seconds after which a deterministic evacuation ends whatever still runs."),
    ("evacuation_delay_secs", "", "Seconds that an evacuation of fixed delay waits."),
    ("instance.ports.first", "", "First port of instances."),
    ("instance.ports.last", "", "Last port of instances."),
    ("instance.disk_inode_limit", "", "Files and directories of one instance."),
    ("instance.memory_to_cpu_share_ratio", "", "MiB of an instance's memory quota that are worth one share of the CPU."),
    ("instance.min_cpu_share_limit", "", "The least shares of an instance."),
    ("instance.max_cpu_share_limit", "", "The most shares of an instance."),
    ("instance.cpu_cap", "100", "Percent of one core that an instance gets at most. By default all that there is."),
    ("instance.core_dumps", "", "Keep the memory of an instance that traps, with all secrets in it, as logs/core.wasm among its files."),
    ("instance.http.instances", "", "reuse, or fresh for a store of its own for each request; DEWAR_INSTANCES of an app counts first."),
    (
        "instance.http.concurrent_requests_per_store",
        "",
        "Requests that a store of WASI 0.3 may have at a time: they share its memory, and what ends one of them ends all.",
    ),
    (
        "instance.http.store_idle_timeout",
        "",
        "Seconds without a request until an app's last store makes way, what it has in memory with it, unless its start-up code is slow.",
    ),
    ("instance.http.requests_per_store", "", "Requests after which a store that is used again is made anew."),
    ("instance.http.concurrent_requests", "", "Requests that one instance works on at a time."),
    ("instance.http.queued_requests", "", "Requests that wait for one instance; one more is answered 503."),
    ("instance.http.connections", "", "Connections of one instance."),
    ("instance.http.head_bytes", "", "Bytes of a request's head."),
    ("instance.http.headers", "", "Headers of a request."),
    ("instance.http.request_body_bytes", "", "Bytes of a request's body."),
    ("instance.http.response_body_bytes", "", "Bytes of a response's body."),
    ("instance.http.head_timeout", "", "Seconds for a request's head to come."),
    ("instance.http.startup_timeout", "", "Seconds that start-up code may take."),
    ("instance.http.response_timeout", "", "Seconds from a request to the head of its response."),
    ("instance.http.total_timeout", "", "Seconds from a request to the end of its response."),
    ("egress.allow", "", "Whom all apps and buildpacks may talk to, besides their own rules: tcp 10.0.0.0/8 443,8000-8100."),
    ("egress.deny", "", "Networks that no rule opens, unless it lies inside one of them."),
    ("egress.deny_names", "", "Host names that are not looked up."),
    ("egress.ca_file", "/etc/dewar/ca.pem", "Authorities that guests trust for https besides the host's."),
    ("domain", "apps.example.net", "Domain of file URLs, which then lead through a router; by default they name the server's own address."),
    ("directory_server.enabled", "", "Serve files of instances and staging logs by signed URLs out of messages."),
    ("directory_server.protocol", "", "http or https of file URLs with a domain."),
    ("directory_server.v2_port", "", "Port of the file server; 0: any."),
    ("directory_server.v1_port", "", "Port of the file server of before 2013-12, if compat.directory_v1 is on; 0: any."),
    ("directory_server.streaming_timeout", "", "Seconds until a followed file that is silent is broken off; 0: 60."),
    ("staging.enabled", "", "Whether this agent stages."),
    ("staging.max_staging_duration", "", "Seconds for all buildpacks of a task together."),
    ("staging.memory_limit_mb", "", "The least MiB of memory of a task."),
    ("staging.disk_limit_mb", "", "The least MiB of disk of a task."),
    ("staging.disk_inode_limit", "", "Files and directories that a task may make."),
    ("cc_url", "https://user:password@cc.internal:9023", "The Cloud Controller's internal API: told of stagings, asked for buildpacks."),
    ("cc.ca_file", "/etc/dewar/cc-ca.pem", "Authorities of its certificate. By default those that the system trusts."),
    ("cc.cert_file", "/etc/dewar/cc.pem", "What the agent shows it; by default nothing."),
    ("cc.key_file", "/etc/dewar/cc.key", "Key of that certificate."),
    ("service_name", "dea.service.internal", "Host under which Cloud Controllers reach the HTTPS API."),
    ("ssl.port", "8443", "Port of the HTTPS API, on all addresses of the host; 0: any. Without this section there is none."),
    ("ssl.cert_file", "/etc/dewar/api.pem", "What the HTTPS API shows."),
    ("ssl.key_file", "/etc/dewar/api.key", "Key of that certificate."),
    (
        "ssl.ca_file",
        "/etc/dewar/api-ca.pem",
        "Authorities of clients' certificates. Without them everybody who reaches the port can start apps.",
    ),
    (
        "ssl.advertise",
        "true",
        "Tell Cloud Controllers of the HTTPS API, which late ones then prefer to the bus. By default where service_name is given.",
    ),
    (
        "hm9000.listener_uri",
        "https://hm9000.internal:5335",
        "Where heartbeats go besides the bus. With this section all its keys must be given.",
    ),
    ("hm9000.cert_file", "/etc/dewar/hm9000.pem", "What the agent shows there."),
    ("hm9000.key_file", "/etc/dewar/hm9000.key", "Key of that certificate."),
    ("hm9000.ca_file", "/etc/dewar/hm9000-ca.pem", "Authorities of the listener's certificate; no others are trusted."),
    ("compile.memory_mb", "", "MiB of memory of one compilation."),
    ("compile.cpu_seconds", "", "Seconds of CPU time of one compilation."),
    ("compile.wall_seconds", "", "Seconds that one compilation may take."),
    ("compile.max_component_mb", "", "MiB of the largest component."),
    ("compile.cache_mb", "", "MiB of native code kept on disk."),
    ("compat.legacy_subjects", "", "Subjects that late Cloud Controllers do not use any more."),
    ("compat.component", "", "Announce the agent to collectors."),
    ("compat.exited_reasons", "", "classic tells health managers of stops, too; modern of crashes only."),
    ("compat.split_heartbeats", "", "Send heartbeats that are too large for the server in parts, as HM9000 takes them."),
    ("compat.directory_v1", "", "Serve files as before 2013-12, too, and tell it in answers to dea.find.droplet."),
    ("compat.empty_heartbeat", "", "Send heartbeats also when there is no instance to tell of."),
    ("compat.evacuation", "", "deterministic waits for instances to be replaced, fixed_delay for a time."),
    ("compat.staging_reply_keys", "", "superset, modern (of 2016) or classic (of 2013): the keys of replies to staging requests."),
    ("compat.start_before_upload", "", "Start an app that was staged before its droplet is uploaded, as in 2013."),
    ("hardening", "", "required, best-effort, or off: whether the process gives up what it does not need."),
];

/// What stands for the keys that must be given.
pub(super) const LEAST: &str = "base_dir: /var/lib/dewar\nnats_servers: ['nats://127.0.0.1:4222']\n";

/// A configuration file with all keys. Those without a value in `effective` are commented out, with their example.
pub(super) fn annotated(effective: &Value, without_effect: &[&str]) -> String {
    let mut text = "# All keys of an agent, with their defaults. Seconds may have a fraction.\n".to_owned();
    let mut open: Vec<&str> = Vec::new();
    for (path, example, meaning) in KEYS {
        let (sections, name) = path.rsplit_once('.').map_or((Vec::new(), *path), |(above, name)| (above.split('.').collect(), name));
        let shared = open.iter().zip(&sections).take_while(|(open, section)| open == section).count();
        for (depth, section) in sections.iter().enumerate().skip(shared) {
            line(&mut text, depth, format_args!("{section}:"));
        }
        line(&mut text, sections.len(), format_args!("# {meaning}"));
        match path.split('.').try_fold(effective, |value, name| value.get(name)) {
            // JSON is YAML, too.
            Some(value) => line(&mut text, sections.len(), format_args!("{name}: {value}")),
            None => line(&mut text, sections.len(), format_args!("# {name}: {example}")),
        }
        open = sections;
    }
    text.push_str("# Keys of a DEA that are accepted, and have no effect here: ");
    text.push_str(&without_effect.join(", "));
    text.push_str(".\n");
    text
}

fn line(text: &mut String, depth: usize, content: std::fmt::Arguments<'_>) {
    let indent = 2 * depth;
    writeln!(text, "{:indent$}{content}", "").expect("a text takes all that is written");
}

#[cfg(test)]
mod tests;
