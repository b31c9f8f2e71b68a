//! `router.yml`: gorouter's keys where it has them, checked as a whole before anything is opened.

mod bus;
#[cfg(test)]
mod mutations;
mod section;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use dewar_bus::BusConfig;
use dewar_core::routes::{Balancing, RouteLimits};
use dewar_protocol::Secret;
use serde_json::{Map, Value};

use crate::identity::random_hex;
use section::{Findings, Section};

pub use section::ConfigError;

/// Everything that decides how a router behaves.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Where requests arrive. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Job index, in the router's id.
    pub index: u32,
    /// The NATS servers.
    pub bus: BusConfig,
    /// `/varz`, `/healthz` and `/routes`.
    pub status: StatusConfig,
    /// Bounds of the table and how endpoints are picked.
    pub routes: RouteLimits,
    /// How often stale routes are looked for.
    pub prune_interval: Duration,
    /// How often agents are asked to register (whole seconds on the wire).
    pub register_interval: Duration,
    /// The side of the instances.
    pub endpoints: EndpointConfig,
    /// The side of the clients.
    pub clients: ClientConfig,
    /// Who says whether a request came over HTTPS.
    pub forwarded_proto: ForwardedProto,
    /// Sticky sessions.
    pub sticky: StickyConfig,
    /// Where the access log goes.
    pub access_log: AccessLogTarget,
}

/// The status listener.
#[derive(Debug, Clone)]
pub struct StatusConfig {
    /// Its address. Port 0 takes a free one; the announcement says which.
    pub listen: SocketAddr,
    /// User of the basic authentication.
    pub user: String,
    /// Password of the basic authentication.
    pub password: Secret<String>,
}

/// How instances are talked to.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// A connection that is not made within this time has failed.
    pub dial_timeout: Duration,
    /// An instance that is silent for this long (before its response or within it) has failed. The time in which a client
    /// sends its body does not count.
    pub response_timeout: Duration,
    /// Idle connections kept to one endpoint; further ones are closed after use.
    pub max_idle: usize,
    /// An idle connection older than this is not used again.
    pub idle_timeout: Duration,
    /// An endpoint that refused a connection is avoided for this long.
    pub failure_pause: Duration,
}

/// How clients are treated.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Connections at one time, tunnels included; further ones wait in the listener's backlog.
    pub max_connections: usize,
    /// From the first byte of a request head to its last; also from connecting to the first byte.
    pub header_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// A client that neither sends the body it has announced nor takes the response it has asked for is cut off after this time.
    pub stall_timeout: Duration,
    /// A tunnel in which nothing moves either way is closed after this time.
    pub tunnel_idle_timeout: Duration,
    /// A longer request head is answered with 431.
    pub max_header_bytes: usize,
    /// A request with more headers is answered with 431.
    pub max_headers: usize,
    /// At the end, how long requests in flight may take to finish.
    pub drain_timeout: Duration,
}

/// What becomes of `X-Forwarded-Proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedProto {
    /// Always `http`: whatever a client claims, it came to us without TLS.
    Sanitize,
    /// Kept when present, because something trusted stands in front; else `http`.
    Keep,
    /// Always `https`.
    ForceHttps,
}

/// Sticky sessions.
#[derive(Debug, Clone)]
pub struct StickyConfig {
    /// A response that sets one of these cookies binds its client to the instance.
    pub cookie_names: Vec<String>,
    /// Whether our cookie is `Secure` even if the application's is not.
    pub secure: bool,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

impl RouterConfig {
    /// A router on this address with every default, without a bus and an access log; its status listener takes a free port.
    #[must_use]
    pub fn default_for(listen: SocketAddr) -> Self {
        Self {
            listen,
            index: 0,
            bus: BusConfig { name: "dewar-router".to_owned(), ..BusConfig::default() },
            status: StatusConfig { listen: SocketAddr::new(listen.ip(), 0), user: random_hex(), password: Secret(random_hex()) },
            routes: RouteLimits::default(),
            // gorouter's: four sweeps within the threshold of 120 s.
            prune_interval: Duration::from_secs(30),
            // gorouter's: an agent may miss five registrations before its routes are stale.
            register_interval: Duration::from_secs(20),
            endpoints: EndpointConfig {
                dial_timeout: Duration::from_secs(5),
                response_timeout: Duration::from_secs(900),
                max_idle: 100,
                idle_timeout: Duration::from_secs(30),
                failure_pause: Duration::from_secs(15),
            },
            clients: ClientConfig {
                max_connections: 10_000,
                header_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(90),
                stall_timeout: Duration::from_secs(60),
                tunnel_idle_timeout: Duration::from_secs(3600),
                max_header_bytes: 64 << 10,
                max_headers: 100,
                drain_timeout: Duration::from_secs(60),
            },
            forwarded_proto: ForwardedProto::Sanitize,
            sticky: StickyConfig { cookie_names: vec!["JSESSIONID".to_owned()], secure: false },
            access_log: AccessLogTarget::Off,
        }
    }

    /// Reads `router.yml`. With the configuration come warnings: one for each key that means nothing here.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn from_yaml(text: &str) -> Result<(Self, Vec<String>), Vec<ConfigError>> {
        let root: Option<Map<String, Value>> = serde_saphyr::from_str(text)
            .map_err(|error| vec![ConfigError { key: "router.yml".to_owned(), problem: format!("is no YAML mapping: {error}") }])?;
        let mut findings = Findings::default();
        let mut section = Section::root(root.unwrap_or_default());
        let config = Self::read(&mut section, &mut findings);
        section.finish(&mut findings);
        if findings.errors.is_empty() { Ok((config, findings.warnings)) } else { Err(findings.errors) }
    }

    fn read(root: &mut Section, findings: &mut Findings) -> Self {
        let ip = read_ip(root, findings);
        let port = root.take(findings, "port").unwrap_or(8080);
        let mut config = Self::default_for(SocketAddr::new(ip, port));
        set(&mut config.index, root.take(findings, "index"));
        set(&mut config.prune_interval, root.take(findings, "prune_stale_droplets_interval"));
        set(&mut config.register_interval, root.take(findings, "publish_start_message_interval"));
        config.read_status(root, findings);
        config.read_routes(root, findings);
        config.read_endpoints(root, findings);
        config.read_clients(root, findings);
        config.read_headers(root, findings);
        config.read_access_log(root, findings);
        config.bus = bus::read(root, findings, config.index);
        if config.register_interval >= config.routes.stale_after {
            findings.error("publish_start_message_interval", "is not shorter than `droplet_stale_threshold`: every route would be pruned");
        }
        config
    }

    fn read_status(&mut self, root: &mut Section, findings: &mut Findings) {
        let mut status = root.section(findings, "status");
        self.status.listen.set_port(status.take(findings, "port").unwrap_or(0));
        set(&mut self.status.user, status.take(findings, "user"));
        set(&mut self.status.password, status.take(findings, "pass").map(Secret));
        if self.status.user.contains(':') {
            findings.error(status.key("user"), "holds a colon, which basic authentication cannot carry");
        }
        status.finish(findings);
    }

    fn read_routes(&mut self, root: &mut Section, findings: &mut Findings) {
        let routes = &mut self.routes;
        set(&mut routes.stale_after, root.take(findings, "droplet_stale_threshold"));
        set(&mut routes.empty_pool_timeout, root.take(findings, "empty_pool_timeout"));
        set(&mut routes.max_routes, at_least_one(root, findings, "max_routes"));
        let mut backends = root.section(findings, "backends");
        // As in gorouter, 0 means no limit.
        set(&mut routes.max_in_flight, backends.take(findings, "max_conns").filter(|&limit| limit != 0));
        backends.finish(findings);
        if let Some(name) = root.take::<String>(findings, "balancing_algorithm") {
            match name.as_str() {
                "round-robin" => routes.balancing = Balancing::RoundRobin,
                "least-connection" | "least-connections" => routes.balancing = Balancing::LeastConnections,
                _ => findings.error("balancing_algorithm", "is neither `round-robin` nor `least-connection`"),
            }
        }
    }

    fn read_endpoints(&mut self, root: &mut Section, findings: &mut Findings) {
        let endpoints = &mut self.endpoints;
        set(&mut endpoints.response_timeout, root.take(findings, "endpoint_timeout"));
        set(&mut endpoints.dial_timeout, root.take(findings, "endpoint_dial_timeout"));
        set(&mut endpoints.max_idle, root.take(findings, "max_idle_conns_per_host"));
        set(&mut endpoints.idle_timeout, root.take(findings, "endpoint_idle_timeout"));
        set(&mut endpoints.failure_pause, root.take(findings, "endpoint_failure_pause"));
    }

    fn read_clients(&mut self, root: &mut Section, findings: &mut Findings) {
        let clients = &mut self.clients;
        set(&mut clients.max_connections, at_least_one(root, findings, "max_connections"));
        set(&mut clients.header_timeout, root.take(findings, "frontend_header_timeout"));
        set(&mut clients.idle_timeout, root.take(findings, "frontend_idle_timeout"));
        set(&mut clients.stall_timeout, root.take(findings, "frontend_stall_timeout"));
        set(&mut clients.tunnel_idle_timeout, root.take(findings, "tunnel_idle_timeout"));
        set(&mut clients.drain_timeout, root.take(findings, "drain_timeout"));
        set(&mut clients.max_header_bytes, root.take(findings, "max_header_bytes"));
        set(&mut clients.max_headers, root.take(findings, "max_headers"));
        // Below 8 KiB hyper refuses the size; beyond these a head would be a weapon.
        if !(8 << 10..=1 << 20).contains(&clients.max_header_bytes) {
            findings.error("max_header_bytes", "is not between 8192 and 1048576");
        }
        if !(1..=1000).contains(&clients.max_headers) {
            findings.error("max_headers", "is not between 1 and 1000");
        }
    }

    fn read_headers(&mut self, root: &mut Section, findings: &mut Findings) {
        let force = root.take(findings, "force_forwarded_proto_https").unwrap_or(false);
        let sanitize = root.take(findings, "sanitize_forwarded_proto").unwrap_or(true);
        self.forwarded_proto = match (force, sanitize) {
            (true, _) => ForwardedProto::ForceHttps,
            (false, true) => ForwardedProto::Sanitize,
            (false, false) => ForwardedProto::Keep,
        };
        set(&mut self.sticky.secure, root.take(findings, "secure_cookies"));
        set(&mut self.sticky.cookie_names, root.take(findings, "sticky_session_cookie_names"));
    }

    fn read_access_log(&mut self, root: &mut Section, findings: &mut Findings) {
        let mut log = root.section(findings, "access_log");
        let file: Option<PathBuf> = log.take(findings, "file");
        let streaming = log.take(findings, "enable_streaming").unwrap_or(false);
        self.access_log = match (file, streaming) {
            (Some(file), false) => AccessLogTarget::File(file),
            (None, true) => AccessLogTarget::Stdout,
            (None, false) => AccessLogTarget::Off,
            (Some(_), true) => {
                findings.error("access_log", "goes to a `file` or, with `enable_streaming`, to standard output, but not to both");
                AccessLogTarget::Off
            }
        };
        log.finish(findings);
    }
}

fn read_ip(root: &mut Section, findings: &mut Findings) -> IpAddr {
    let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let Some(text) = root.take::<String>(findings, "ip") else { return anywhere };
    text.parse().unwrap_or_else(|_| {
        findings.error("ip", "is no IP address");
        anywhere
    })
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

fn at_least_one(root: &mut Section, findings: &mut Findings, name: &str) -> Option<usize> {
    let value = root.take(findings, name)?;
    if value == 0 {
        findings.error(root.key(name), "must be at least 1");
    }
    Some(value)
}
