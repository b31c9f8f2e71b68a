use std::time::Duration;

use dewar_bus::BusAuth;

use super::*;

fn errors(yaml: &str) -> Vec<String> {
    RouterConfig::from_yaml(yaml).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn an_old_gorouters_configuration_is_understood() {
    let yaml = "
status: {port: 8082, user: admin, pass: 1234}
nats:
  - {host: 10.0.0.1, port: 4222, user: nats, pass: s3cret}
  - {host: 10.0.0.2, port: 4222, user: nats, pass: s3cret}
port: 8081
ip: 10.0.16.2
index: 3
go_max_procs: 8
endpoint_timeout: 60
prune_stale_droplets_interval: 10s
droplet_stale_threshold: 2m
publish_start_message_interval: 15
balancing_algorithm: least-connection
force_forwarded_proto_https: true
secure_cookies: true
access_log: {file: /var/vcap/access.log}
backends: {max_conns: 500}
";
    let (config, warnings) = RouterConfig::from_yaml(yaml).unwrap();
    assert_eq!(warnings, ["unknown key `go_max_procs` is ignored"]);
    assert_eq!(config.listen, "10.0.16.2:8081".parse().unwrap());
    assert_eq!(config.status.listen, "10.0.16.2:8082".parse().unwrap());
    assert_eq!((config.status.user.as_str(), config.status.password.expose().as_str()), ("admin", "1234"));
    assert_eq!(config.bus.servers, ["nats://10.0.0.1:4222", "nats://10.0.0.2:4222"]);
    assert!(matches!(&config.bus.auth, BusAuth::UserPassword { user, password } if user == "nats" && password.expose() == "s3cret"));
    assert_eq!(config.index, 3);
    assert_eq!(config.endpoints.response_timeout, Duration::from_secs(60));
    assert_eq!(config.prune_interval, Duration::from_secs(10));
    assert_eq!(config.routes.stale_after, Duration::from_secs(120));
    assert_eq!(config.register_interval, Duration::from_secs(15));
    assert_eq!(config.routes.balancing, Balancing::LeastConnections);
    assert_eq!(config.routes.max_in_flight, 500);
    assert_eq!(config.forwarded_proto, ForwardedProto::ForceHttps);
    assert!(config.sticky.secure);
    assert_eq!(config.access_log, AccessLogTarget::File("/var/vcap/access.log".into()));
    assert!(!format!("{config:?}").contains("s3cret"), "no secret is printed");
}

#[test]
fn the_agents_form_of_nats_is_understood() {
    let yaml = "
nats_servers: ['nats://a:4222', 'tls://b:4222']
nats: {token: t0ken, tls: {ca: /etc/ca.pem}}
";
    let (config, warnings) = RouterConfig::from_yaml(yaml).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.bus.servers.len(), 2);
    assert!(matches!(&config.bus.auth, BusAuth::Token(token) if token.expose() == "t0ken"));
    assert_eq!(config.bus.tls.unwrap().ca_file, Some("/etc/ca.pem".into()));
}

#[test]
fn every_mistake_is_reported_at_once() {
    let found = errors(
        "
ip: everywhere
port: 70000
status: {user: 'a:b'}
endpoint_timeout: soon
frontend_idle_timeout: 0
balancing_algorithm: random
max_connections: 0
max_headers: 5000
droplet_stale_threshold: 10
access_log: {file: /a, enable_streaming: true}
nats:
  - {port: 4222}
",
    );
    let all = found.join("\n");
    for key in [
        "`ip`: is no IP address",
        "`port`: is not a port number",
        "`status.user`",
        "`endpoint_timeout`: is not a span of time",
        "`frontend_idle_timeout`",
        "`balancing_algorithm`",
        "`max_connections`: must be at least 1",
        "`max_headers`",
        "`publish_start_message_interval`: is not shorter",
        "`access_log`",
        "`nats[0].host`: is missing",
        "`nats_servers`: is missing",
    ] {
        assert!(all.contains(key), "{key} is not among\n{all}");
    }
    assert_eq!(found.len(), 12, "{all}");
}

#[test]
fn what_is_no_mapping_is_refused_and_nothing_needs_servers() {
    assert!(errors("- a\n- b")[0].contains("is no YAML mapping"));
    assert!(errors("{")[0].contains("is no YAML mapping"));
    assert_eq!(errors(""), ["`nats_servers`: is missing, and `nats` lists no server either"]);
}

#[test]
fn a_bus_has_one_set_of_credentials() {
    assert!(errors("nats: [{host: a, user: anna}, {host: b, user: bert}]")[0].contains("different users"));
    assert!(errors("nats_servers: [a]\nnats: {user: anna, token: t0ken}")[0].contains("more than one"));
    assert!(errors("nats_servers: [a]\nnats: {password: s3cret}")[0].contains("needs `nats.user`"));
    assert!(errors("nats_servers: [a]\nnats: {nkey_seed_file: /does/not/exist}")[0].contains("cannot be read"));
    assert!(errors("nats_servers: [a]\nnats: {tls: {cert: /a}}")[0].contains("without a `key`"));
}

#[test]
fn status_credentials_are_random_when_none_are_given() {
    let one = RouterConfig::default_for("127.0.0.1:0".parse().unwrap());
    let other = RouterConfig::default_for("127.0.0.1:0".parse().unwrap());
    assert_eq!(one.status.password.expose().len(), 32);
    assert_ne!(one.status.password, other.status.password);
}
