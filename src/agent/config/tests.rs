use std::fs;

use dewar_bus::BusAuth;
use dewar_protocol::Mib;

use super::*;

/// The least that an agent can be told.
const LEAST: &str = "base_dir: /tmp/agent\nnats_servers: [nats://127.0.0.1:4222]\n";

/// As a DEA's own sample configuration and BOSH job have it.
pub(super) const DEA_YML: &str = r#"
base_dir: /var/vcap/data/dea_next
domain: example.net
logging:
  file: /var/vcap/sys/log/dea_next/dea_next.log
  syslog: vcap.dea_next
  level: debug2
loggregator:
  router: 10.0.0.9:3456
  shared_secret: loggregator-secret
resources:
  memory_mb: 8000
  memory_overcommit_factor: 2
  disk_mb: 32000
  disk_overcommit_factor: 1.5
nats_uri: nats://nats:nats-password@10.0.0.5:4222
pid_filename: /var/vcap/sys/run/dea_next/dea_next.pid
warden_socket: /var/vcap/data/warden/warden.sock
evacuation_delay_secs: 10
evacuation_bail_out_time_in_seconds: 115
default_health_check_timeout: 60
index: 2
intervals:
  heartbeat: 10
  advertise: 5
  router_register_in_seconds: 20
staging:
  enabled: true
  platform_config:
    cache: /var/vcap/data/stager/package_cache/ruby
  environment:
    PATH: /usr/bin:/bin
    BUILDPACK_CACHE: /var/vcap/packages/buildpack_cache
  memory_limit_mb: 1024
  disk_limit_mb: 4096
  disk_inode_limit: 200000
  cpu_limit_shares: 512
  max_staging_duration: 900
instance:
  disk_inode_limit: 200000
  memory_to_cpu_share_ratio: 8
  max_cpu_share_limit: 256
  min_cpu_share_limit: 1
  nproc_limit: 512
dea_ruby: /var/vcap/packages/ruby/bin/ruby
hooks:
  before_start: /hooks/before_start
bind_mounts:
- src_path: /mnt/share
  mode: ro
directory_server:
  protocol: https
  v1_port: 12345
  v2_port: 34567
  file_api_port: 23456
  streaming_timeout: 60
  logging: { level: info }
stacks:
- name: cflinuxfs2
  package_path: /var/vcap/packages/rootfs_cflinuxfs2
- lucid64
placement_properties:
  zone: z1
cc_url: https://internal:secret@cc.example.net:9022
status:
  user: varz
  password: 12345678
  port: 8080
"#;

fn errors(yaml: &str) -> Vec<String> {
    AgentConfig::from_yaml(yaml).map(|(config, _)| config).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_least_gives_the_documented_defaults() {
    let (config, warnings) = AgentConfig::from_yaml(LEAST).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.base_dir, Path::new("/tmp/agent"));
    assert_eq!(config.capacity, Capacity { memory: Mib(8192), disk: Mib(16_777_216) });
    assert_eq!((config.intervals, config.index, config.zone.as_str()), (Intervals::default(), 0, "default"));
    assert_eq!((config.instance.ports.clone(), config.instance.inodes), (61_001..=65_535, 200_000));
    assert!(!config.staging.enabled);
    assert_eq!((config.staging.memory_mib, config.staging.disk_mib, config.staging.duration), (1024, 2048, Duration::from_secs(900)));
    assert_eq!((config.health_check_timeout, config.crash_lifetime), (Duration::from_secs(60), Duration::from_secs(3600)));
    assert_eq!((config.crash_disk, config.droplet_budget), (DiskUse { blocks: 0.8, inodes: 0.8 }, Bytes(10 << 30)));
    assert_eq!((config.logging.level, config.logging.format), (LevelFilter::INFO, LogFormat::Text));
    assert!(matches!(config.bus.auth, BusAuth::None) && config.bus.tls.is_none());
    assert_eq!((config.compile, &config.instance.http), (CompileLimits::default(), &HttpLimits::default()));
    let files = FilesSettings { domain: None, scheme: "http", v2_port: 0, v1_port: None, streaming_timeout: Duration::from_secs(60) };
    assert_eq!(config.files, Some(files));
}

#[test]
fn a_deas_own_file_is_accepted() {
    let (config, warnings) = AgentConfig::from_yaml(DEA_YML).unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(warnings[0], "unknown keys: staging.platform_config.cache");
    assert!(warnings[1].starts_with("keys without effect: bind_mounts, "), "{}", warnings[1]);
    assert!(!warnings[1].contains("secret"));
    assert_eq!(config.capacity, Capacity { memory: Mib(16_000), disk: Mib(48_000) });
    assert_eq!(config.bus.servers, ["nats://nats:nats-password@10.0.0.5:4222"]);
    assert_eq!((config.index, config.zone.as_str()), (2, "z1"));
    assert_eq!(config.stacks, ["cflinuxfs2", "lucid64"]);
    assert_eq!(config.logging.level, LevelFilter::TRACE);
    assert_eq!((config.status.port, config.status.user.as_deref()), (8080, Some("varz")));
    assert_eq!(config.status.password, Some(Secret("12345678".to_owned())));
    assert_eq!(config.staging.disk_mib, 4096);
    let files = FilesSettings {
        domain: Some("example.net".to_owned()),
        scheme: "https",
        v2_port: 34_567,
        v1_port: None,
        streaming_timeout: Duration::from_secs(60),
    };
    assert_eq!(config.files, Some(files));
    assert_eq!(config.compat.evacuation, Evacuation::Deterministic { bail_out: Duration::from_secs(115) });
    assert_eq!(config.controller.as_ref().unwrap().url.expose().as_str(), "https://internal:secret@cc.example.net:9022/");
    for secret in [":secret", "loggregator-secret"] {
        assert!(!config.effective_yaml().contains(secret), "{secret} in {}", config.effective_yaml());
    }
}

#[test]
fn an_evacuation_waits_for_others_or_for_a_time() {
    let evacuation = |yaml: &str| AgentConfig::from_yaml(&format!("{LEAST}{yaml}")).unwrap().0.compat.evacuation;
    assert_eq!(evacuation(""), Evacuation::Deterministic { bail_out: Duration::from_secs(600) });
    let fixed = "compat: {evacuation: fixed_delay}\n";
    assert_eq!(evacuation(fixed), Evacuation::FixedDelay { delay: Duration::from_secs(30) });
    assert_eq!(evacuation(&format!("{fixed}evacuation_delay_secs: 2\n")), Evacuation::FixedDelay { delay: Duration::from_secs(2) });
}

/// As deployments had it: what of it is unknown is told, and no secret is shown.
#[test]
fn the_files_of_deployments_are_accepted() {
    for (name, yaml, unknown, memory, servers) in [
        ("bosh", include_str!("samples/bosh.yml"), None, 16_000, 2),
        ("v145", include_str!("samples/v145.yml"), Some("unknown keys: staging.platform_config.cache"), 32_000, 1),
    ] {
        let (config, warnings) = AgentConfig::from_yaml(yaml).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
        let told: Vec<&String> = warnings.iter().filter(|warning| !warning.starts_with("keys without effect: ")).collect();
        assert_eq!(told, unknown.iter().collect::<Vec<_>>(), "{name}");
        assert_eq!((config.capacity.memory, config.bus.servers.len()), (Mib(memory), servers), "{name}");
        assert_eq!((config.staging.enabled, config.staging.disk_mib), (true, 4096), "{name}");
        for shown in [config.effective_yaml(), format!("{config:?}"), warnings.join(" ")] {
            assert!(!shown.contains("-password"), "{name}: {shown}");
        }
    }
}

#[test]
fn limits_of_the_original_are_the_defaults_and_can_be_configured() {
    let limits = |yaml: &str| {
        let (config, _) = AgentConfig::from_yaml(&format!("{LEAST}{yaml}")).unwrap();
        (config.instance.inodes, config.staging.inodes)
    };
    assert_eq!(limits(""), (200_000, 200_000));
    assert_eq!(limits("instance: { disk_inode_limit: 7 }\nstaging: { disk_inode_limit: 8 }\n"), (7, 8));
    assert_eq!(errors(&format!("{LEAST}instance: {{ disk_inode_limit: 0 }}\nstaging: {{ disk_inode_limit: many }}\n")).len(), 2);
}

#[test]
fn a_zero_or_negative_registration_interval_is_refused_as_the_dea_did_it() {
    for bad in ["0", "-1", "-0.5"] {
        let found = errors(&format!("{LEAST}intervals: {{ router_register_in_seconds: {bad} }}\n"));
        assert_eq!(found.len(), 1);
        assert!(found[0].ends_with("Invalid router register interval"), "{found:?}");
    }
    for (good, seconds) in [("0.5", 0.5), ("30", 30.0), ("null", 20.0)] {
        let (config, _) = AgentConfig::from_yaml(&format!("{LEAST}intervals: {{ router_register_in_seconds: {good} }}\n")).unwrap();
        assert_eq!(config.intervals.router_register, Duration::from_secs_f64(seconds));
    }
}

#[test]
fn what_is_kept_is_the_operators_choice() {
    let yaml = "crash_block_usage_ratio_threshold: 0.5\ncrash_inode_usage_ratio_threshold: 1\ndroplets: { cache_mb: 0 }\n";
    let (config, warnings) = AgentConfig::from_yaml(&format!("{LEAST}{yaml}")).unwrap();
    assert_eq!((config.crash_disk, config.droplet_budget), (DiskUse { blocks: 0.5, inodes: 1.0 }, Bytes(0)));
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(
        errors(&format!("{LEAST}crash_block_usage_ratio_threshold: 80\ndroplets: {{ cache_mb: -1 }}\n")),
        [
            "`crash_block_usage_ratio_threshold` must be a number from 0 to 1",
            "`droplets.cache_mb` must be a whole number from 0 to 1099511627776"
        ]
    );
}

#[test]
fn shares_follow_memory_and_a_cap_is_the_same_for_all() {
    let cpu = |yaml: &str| AgentConfig::from_yaml(&format!("{LEAST}{yaml}")).unwrap().0.instance.cpu;
    let shares = |cpu: CpuConfig, mib: u64| cpu.quota(Bytes(mib << 20)).shares;
    let default = cpu("");
    assert_eq!([4, 64, 256, 2048, 1 << 40].map(|mib| shares(default, mib)), [1, 8, 32, 256, 256]);
    assert_eq!(default.quota(Bytes(0)).cap, None);
    let given = cpu("instance: { memory_to_cpu_share_ratio: 4, min_cpu_share_limit: 10, max_cpu_share_limit: 20, cpu_cap: 150 }
");
    assert_eq!([4, 60, 1024].map(|mib| shares(given, mib)), [10, 15, 20]);
    assert_eq!(given.quota(Bytes(0)).cap, Some(150));
    assert_eq!(
        errors(&format!("{LEAST}instance: {{ min_cpu_share_limit: 3, max_cpu_share_limit: 2, cpu_cap: 0 }}\n")),
        [
            "`instance.min_cpu_share_limit` must not be greater than `instance.max_cpu_share_limit`",
            "`instance.cpu_cap` must be a whole number from 1 to 100000"
        ]
    );
    let (config, _) = AgentConfig::from_yaml(&format!("{LEAST}instance: {{ cpu_cap: 50 }}\n")).unwrap();
    assert!(config.effective_yaml().contains("cpu_cap: 50"), "{}", config.effective_yaml());
}

#[test]
fn every_mistake_is_told_at_once_and_names_its_key() {
    let yaml = "
base_dir: 7
index: -1
local_ip: here
logging: { level: loud, format: xml }
resources: { memory_mb: 12.5, memory_overcommit_factor: 0 }
intervals: { heartbeat: soon, router_register_in_seconds: 0 }
instance: { ports: { first: 3000, last: 2000 }, http: { headers: 0, instances: new } }
staging: { enabled: maybe }
stacks: [1]
status: 80
compat: { exited_reasons: some }
nats: { password: x, token: t, nkey_seed_file: /missing/seed, tls: { cert: /etc/hostname } }
";
    let found = errors(yaml);
    let expected = [
        "`index` must be a whole number from 0 to 4294967295",
        "`base_dir` must be a text",
        "`local_ip` must be an IP address",
        "`logging.level` must be one of off, fatal, error, warn, info, debug, debug1, debug2, trace, all",
        "`logging.format` must be one of text, json",
        "`nats.nkey_seed_file` must name a file that can be read: /missing/seed: No such file or directory (os error 2)",
        "`nats.password` needs `nats.user`",
        "`nats.tls.key` is missing, though there is `nats.tls.cert`",
        "`nats_servers` is missing, and so is `nats_uri`",
        "`intervals.heartbeat` must be a number from 0.1 to 86400",
        "`intervals.router_register_in_seconds` must be a number from 0.1 to 86400: Invalid router register interval",
        "`resources.memory_mb` must be a whole number from 1 to 1099511627776",
        "`resources.memory_overcommit_factor` must be a number from 0.01 to 1000",
        "`stacks` must be a list, each a name or a section with `name`",
        "`instance.ports.first` must not be greater than `instance.ports.last`",
        "`instance.http.headers` must be a whole number from 1 to 16777216",
        "`instance.http.instances` must be one of reuse, fresh",
        "`staging.enabled` must be true or false",
        "`compat.exited_reasons` must be one of classic, modern",
        "`status` must be a section with keys of its own",
    ];
    for text in expected {
        assert!(found.iter().any(|error| error == text), "no {text:?} in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn what_is_no_configuration_at_all_is_told() {
    assert_eq!(errors(""), ["`base_dir` is missing", "`nats_servers` is missing, and so is `nats_uri`"]);
    assert_eq!(errors("- a\n- b"), ["the file must hold a mapping of keys to values"]);
    assert!(errors("a: [")[0].starts_with("the file is not YAML: "));
    assert_eq!(errors("base_dir: ''\nnats_servers: []"), ["`base_dir` must not be empty", "`nats_servers` must name at least one server"]);
}

#[test]
fn an_integer_is_good_where_a_fraction_may_stand() {
    let (config, _) = AgentConfig::from_yaml(&format!("{LEAST}intervals: {{ heartbeat: 1, advertise: 0.5 }}\n")).unwrap();
    assert_eq!((config.intervals.heartbeat, config.intervals.advertise), (Duration::from_secs(1), Duration::from_millis(500)));
    assert_eq!(config.intervals.router_register, Duration::from_secs(20), "the rest of a section keeps its defaults");
}

#[test]
fn files_are_reached_as_the_operator_wants() {
    let files = |yaml: &str| AgentConfig::from_yaml(&format!("{LEAST}{yaml}")).unwrap().0.files;
    assert_eq!(files("directory_server: { enabled: false }\n"), None);
    let given =
        files("domain: localhost:8080\ndirectory_server: { v1_port: 1, streaming_timeout: 0 }\ncompat: { directory_v1: true }\n").unwrap();
    assert_eq!(
        (given.domain.as_deref(), given.v1_port, given.streaming_timeout),
        (Some("localhost:8080"), Some(1), Duration::from_secs(60))
    );
    for domain in ["-a.example.net", "a..b", "a_b", "'a:0'", "'a:x'", "'http://a'", "'*.a'"] {
        assert_eq!(errors(&format!("{LEAST}domain: {domain}\n")), ["`domain` must be a host name, maybe with a port"], "{domain}");
    }
    let found = errors(&format!("{LEAST}directory_server: {{ protocol: ftp, v2_port: 65536, streaming_timeout: -1 }}\n"));
    assert_eq!(
        found,
        [
            "`directory_server.protocol` must be one of http, https",
            "`directory_server.v2_port` must be a whole number from 0 to 65535",
            "`directory_server.streaming_timeout` must be a whole number from 0 to 86400"
        ]
    );
}

#[test]
fn unknown_keys_are_a_warning() {
    let (_, warnings) = AgentConfig::from_yaml(&format!("{LEAST}stacs: [a]\nresources: {{ memory: 5 }}\n")).unwrap();
    assert_eq!(warnings, ["unknown keys: resources.memory, stacs"]);
}

#[test]
fn each_way_to_authenticate_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "SUACH75SWCM5D2JMJM6EKLR2WDARVGZT4QC6LX3AGHSWOMVAKERABBBRWM\n").unwrap();
    let auth = |nats: &str| AgentConfig::from_yaml(&format!("{LEAST}nats: {{ {nats} }}\n")).unwrap().0.bus.auth;
    assert!(matches!(auth("user: me, password: 0123"), BusAuth::UserPassword { user, .. } if user == "me"));
    assert!(matches!(auth("token: abc"), BusAuth::Token(token) if token.expose() == "abc"));
    let path = file.display();
    assert!(matches!(auth(&format!("nkey_seed_file: {path}")), BusAuth::NkeySeed(seed) if seed.expose().starts_with("SUACH7")));
    assert!(matches!(auth(&format!("credentials_file: {path}")), BusAuth::CredentialsFile(found) if found == file));
    let both = errors(&format!("{LEAST}nats: {{ user: me, token: abc }}\n"));
    assert_eq!(both, ["`nats` must have no more than one of `user`, `token`, `nkey_seed_file` and `credentials_file`"]);
}

#[test]
fn the_effective_configuration_shows_all_but_secrets() {
    let yaml = format!("{DEA_YML}nats: {{ user: me, password: nats-password }}\n");
    let (config, _) = AgentConfig::from_yaml(&yaml).unwrap();
    let shown = config.effective_yaml();
    for secret in ["nats-password", "12345678", "loggregator-secret", "internal:secret"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
        assert!(!format!("{config:?}").contains(secret), "{secret} in the debug form");
    }
    let tree: Value = serde_saphyr::from_str(&shown).unwrap();
    assert_eq!(tree["nats_uri"], "nats://10.0.0.5:4222");
    assert_eq!((&tree["status"]["password"], &tree["nats"]["password"]), (&json!("…"), &json!("…")));
    assert_eq!((&tree["resources"]["memory_mb"], &tree["intervals"]["advertise"]), (&json!(8000), &json!(5.0)));
    assert_eq!((&tree["instance"]["ports"]["first"], &tree["compat"]["exited_reasons"]), (&json!(61_001), &json!("classic")));
}

#[test]
fn a_task_has_time_for_its_buildpacks_and_half_an_hour_for_transfers() {
    for (seconds, limit) in [(900, 2700), (7200, 9000)] {
        let yaml = format!("{LEAST}staging: {{ enabled: true, max_staging_duration: {seconds} }}\n");
        let (config, _) = AgentConfig::from_yaml(&yaml).unwrap();
        let staging = config.staging.to_cell(false);
        assert_eq!((staging.enabled, staging.memory, staging.disk), (true, Mib(1024), Mib(2048)));
        assert_eq!(staging.time_limit, Duration::from_secs(limit));
    }
}

#[test]
fn dev_stages_on_loopback_with_the_defaults() {
    let dev = DevAgent {
        base_dir: Path::new("/tmp/dev"),
        nats_url: "nats://127.0.0.1:4300",
        local_ip: IpAddr::from([127, 0, 0, 1]),
        compiler: None,
        allow_egress: &["tcp 127.0.0.1 5432".to_owned()],
        egress_ca: None,
    };
    let config = AgentConfig::for_dev(&dev).unwrap();
    assert_eq!((config.base_dir.as_path(), config.local_ip, config.staging.enabled), (dev.base_dir, Some(dev.local_ip), true));
    assert_eq!(config.bus.servers, ["nats://127.0.0.1:4300"]);
    assert!(config.effective_yaml().contains("tcp 127.0.0.1 5432"), "{}", config.effective_yaml());
}

#[test]
fn what_the_operator_allows_and_denies_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    fs::write(&ca, "").unwrap();
    let yaml = format!(
        "{LEAST}egress:
  allow: [tcp 10.0.0.0/8 443, {{ protocol: udp, destination: 10.0.0.2, ports: '53, 54' }}]
  deny: [10.9.0.0/16]
  ca_file: {}
",
        ca.display()
    );
    let (config, warnings) = AgentConfig::from_yaml(&yaml).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.egress.ca_file.as_deref(), Some(ca.as_path()));
    let shown: Value = serde_saphyr::from_str(&config.effective_yaml()).unwrap();
    assert_eq!(shown["egress"]["allow"], json!(["tcp 10.0.0.0/8 443", "udp 10.0.0.2 53,54"]));
    assert_eq!(shown["egress"]["deny"], json!(["10.9.0.0/16"]));
    assert_eq!(shown["egress"]["deny_names"][0], "metadata.google.internal", "the rest keeps its defaults");
    let (again, _) = AgentConfig::from_yaml(&config.effective_yaml()).unwrap();
    assert_eq!(again.effective_yaml(), config.effective_yaml(), "what is shown can be read again");
    let found = errors(&format!(
        "{LEAST}egress: {{ allow: [sctp 10.0.0.1], deny: [example.com], deny_names: [127.0.0.1], ca_file: /missing/ca.pem }}\n"
    ));
    let expected = [
        "`egress.allow` cannot be used: failed to understand egress protocol \"sctp\"",
        "`egress.deny` cannot be used: failed to understand egress destination \"example.com\"",
        "`egress.deny_names` cannot be used: failed to understand denied name \"127.0.0.1\"",
        "`egress.ca_file` must name a file that can be read: /missing/ca.pem: No such file or directory (os error 2)",
    ];
    assert_eq!(found, expected);
    assert_eq!(errors(&format!("{LEAST}egress: {{ allow: [tcp], deny: 10.0.0.0/8 }}\n")).len(), 2);
}
