//! `metrics.*`, `loggregator.*` and `otlp.*`: who is told what the agent is like. Without `loggregator.router` and `otlp.endpoint`
//! nobody is; `/varz` and `/metrics` answer whoever asks.

use std::time::Duration;

use dewar_protocol::Secret;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::nats::without_credentials;
use super::reader::Reader;

/// What metrics there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsConfig {
    /// How often they are emitted to loggregator; the original's 30 s.
    pub interval: Duration,
    /// How many instances have metrics of their own in `/metrics` and OTLP; those beyond are only counted.
    pub max_instances: usize,
}

/// Where lines of apps and metrics are emitted.
#[derive(Debug, Clone)]
pub struct LoggregatorConfig {
    /// `host:port`.
    pub router: String,
    /// Signs each datagram.
    pub shared_secret: Option<Secret<String>>,
}

/// Where traces and metrics go to.
#[derive(Debug, Clone)]
pub struct OtlpConfig {
    /// Takes spans; may hold user and password.
    pub traces: Secret<Url>,
    /// Takes metrics; likewise.
    pub metrics: Secret<Url>,
    /// Sent along, such as a key.
    pub headers: Secret<HeaderMap>,
    /// How often.
    pub interval: Duration,
}

const HOUR: f64 = 3600.0;

pub(super) fn metrics(reader: &mut Reader) -> MetricsConfig {
    let most = reader.integer("metrics.max_instances", 1000, 0..=1 << 20);
    MetricsConfig {
        interval: reader.seconds("metrics.interval", Duration::from_secs(30), 0.1..=HOUR),
        max_instances: usize::try_from(most).unwrap_or(usize::MAX),
    }
}

pub(super) fn loggregator(reader: &mut Reader) -> Option<LoggregatorConfig> {
    let shared_secret = reader.secret("loggregator.shared_secret");
    let router = reader.text("loggregator.router")?;
    let is_valid = router
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0));
    if !is_valid {
        reader.error("loggregator.router", "must be `host:port`");
    }
    Some(LoggregatorConfig { router, shared_secret })
}

pub(super) fn otlp(reader: &mut Reader) -> Option<OtlpConfig> {
    let headers = headers(reader);
    let interval = reader.seconds("otlp.interval", Duration::from_secs(10), 0.1..=HOUR);
    let endpoint = reader.text_shown_as("otlp.endpoint", without_credentials)?;
    let signal = |name: &str| {
        let url = Url::parse(&format!("{}/v1/{name}", endpoint.trim_end_matches('/'))).ok()?;
        (["http", "https"].contains(&url.scheme()) && url.query().is_none() && url.fragment().is_none()).then_some(url)
    };
    let (Some(traces), Some(metrics)) = (signal("traces"), signal("metrics")) else {
        reader.error("otlp.endpoint", "must be the http or https URL that `/v1/traces` and `/v1/metrics` lie below");
        return None;
    };
    Some(OtlpConfig { traces: Secret(traces), metrics: Secret(metrics), headers, interval })
}

/// In the form that `OTEL_EXPORTER_OTLP_HEADERS` has, `name=value,name=value`.
fn headers(reader: &mut Reader) -> Secret<HeaderMap> {
    let text = reader.secret("otlp.headers").unwrap_or_default();
    let parse = |header: &str| {
        let (name, value) = header.split_once('=')?;
        let mut value = HeaderValue::from_str(value.trim()).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
    };
    let headers: Option<HeaderMap> = text.expose().split(',').filter(|header| !header.trim().is_empty()).map(parse).collect();
    // Without the text, which is secret.
    headers.map_or_else(
        || {
            reader.error("otlp.headers", "must be `name=value`, several of them divided by commas");
            Secret::default()
        },
        Secret,
    )
}

#[cfg(test)]
mod tests {
    use super::super::AgentConfig;
    use super::*;

    fn config(yaml: &str) -> Result<AgentConfig, Vec<String>> {
        let checked = AgentConfig::from_yaml(&format!("base_dir: /tmp/agent\nnats_servers: [nats://127.0.0.1:4222]\n{yaml}"));
        let (config, warnings) = checked.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        assert_eq!(warnings, Vec::<String>::new());
        Ok(config)
    }

    #[test]
    fn nobody_is_told_of_an_agent_unless_configured() {
        let config = config("").unwrap();
        assert!(config.loggregator.is_none() && config.otlp.is_none());
        assert_eq!(config.metrics, MetricsConfig { interval: Duration::from_secs(30), max_instances: 1000 });
    }

    #[test]
    fn loggregator_has_a_router_and_a_secret() {
        let config = config("loggregator: { router: '10.0.0.9:3456', shared_secret: s3cret }\n").unwrap();
        let loggregator = config.loggregator.clone().unwrap();
        assert_eq!((loggregator.router.as_str(), &loggregator.shared_secret), ("10.0.0.9:3456", &Some(Secret("s3cret".to_owned()))));
        assert!(!config.effective_yaml().contains("s3cret") && !format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn an_otlp_collector_has_an_endpoint_and_secret_headers() {
        let yaml = "otlp: { endpoint: 'https://me:word@otel.example.net:4318/in/', headers: 'x-key=k3y, authorization=Basic abc=' }\n";
        let config = config(yaml).unwrap();
        let otlp = config.otlp.clone().unwrap();
        assert_eq!((otlp.traces.expose().path(), otlp.metrics.expose().path()), ("/in/v1/traces", "/in/v1/metrics"));
        assert_eq!(
            (&otlp.headers.expose()["x-key"], &otlp.headers.expose()["authorization"]),
            (&"k3y".parse().unwrap(), &"Basic abc=".parse().unwrap())
        );
        let shown = config.effective_yaml();
        assert!(shown.contains("https://otel.example.net:4318/in/"), "{shown}");
        for secret in ["k3y", "abc=", "me:word"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(!format!("{otlp:?}").contains("k3y") && !format!("{otlp:?}").contains("word"));
    }

    #[test]
    fn mistakes_name_their_keys_and_no_secrets() {
        let yaml =
            "loggregator: { router: 'http://10.0.0.9' }\notlp: { endpoint: 'udp://otel', headers: 's3cret' }\nmetrics: { interval: 0 }\n";
        let errors = config(yaml).unwrap_err();
        let keys: Vec<_> = errors.iter().filter_map(|error| error.split('`').nth(1)).collect();
        assert_eq!(keys, ["metrics.interval", "loggregator.router", "otlp.headers", "otlp.endpoint"]);
        assert!(!errors.concat().contains("s3cret"));
    }
}
