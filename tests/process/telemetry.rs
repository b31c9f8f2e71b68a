//! What a hardened agent tells a collector, a scraper and a log shipper about a staging and a start.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};

use crate::bare_protocol::World;
use crate::harness::{eventually, free_port, get_with, loopback};

/// An OpenTelemetry collector that keeps the spans it gets.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), spans: Arc::default() };
        let spans = Arc::clone(&collector.spans);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let spans = Arc::clone(&spans);
                std::thread::spawn(move || serve(stream, &spans));
            }
        });
        collector
    }

    /// By name, once a span of each of these names is there.
    fn spans(&self, names: &[&str]) -> BTreeMap<String, Span> {
        eventually(&format!("spans {names:?}"), || {
            let spans: BTreeMap<_, _> = self.spans.lock().unwrap().iter().map(|span| (span.name.clone(), span.clone())).collect();
            names.iter().all(|name| spans.contains_key(*name)).then_some(spans)
        })
    }
}

/// Requests of one connection, one after the other, until it ends.
fn serve(mut stream: TcpStream, spans: &Mutex<Vec<Span>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap()];
        reader.read_exact(&mut body).unwrap();
        if head.starts_with("POST /v1/traces ") {
            let message = ExportTraceServiceRequest::decode(&*body).unwrap();
            let ended = message.resource_spans.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
            spans.lock().unwrap().extend(ended);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    }
}

fn attribute<'a>(span: &'a Span, name: &str) -> &'a str {
    let value = span.attributes.iter().find(|attribute| attribute.key == name).and_then(|attribute| attribute.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(Attribute::StringValue(text)) => text,
        other => panic!("{name} of {span:?} is {other:?}"),
    }
}

#[test]
fn a_hardened_agent_tells_of_its_work_and_of_no_secret() {
    let (collector, port) = (Collector::start(), free_port());
    let mut world = World::start_with(&[], |usual| {
        usual.replace("{level: debug}", "{level: debug2, format: json}")
            + &format!(
                "hardening: required\nstatus: {{port: {port}, user: me, password: you}}\n\
                 otlp: {{endpoint: 'http://{}', headers: 'x-key=k3y', interval: 0.2}}\n",
                collector.address
            )
    });
    let sha1 = world.stage("told", World::package())["droplet_sha1"].clone();
    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    world.nats.expect("router.register", |_| true);

    let app = start["droplet"].as_str().unwrap();
    let spans = collector.spans(&["staging", "start"]);
    assert_eq!((attribute(&spans["staging"], "task_id"), attribute(&spans["staging"], "app_id")), ("told", app));
    assert_eq!((attribute(&spans["start"], "app_id"), attribute(&spans["start"], "instance_id").len()), (app, 32));
    for (name, parent) in [
        ("set up", "staging"),
        ("unpack package", "staging"),
        ("detect", "staging"),
        ("compile", "staging"),
        ("upload droplet", "staging"),
        ("launch", "start"),
        ("health check", "start"),
        ("unpack droplet", "launch"),
        ("load program", "launch"),
        ("start sandbox", "launch"),
    ] {
        let (span, parent) = (&spans[name], &spans[parent]);
        assert_eq!((&span.parent_span_id, &span.trace_id), (&parent.span_id, &parent.trace_id), "{name}");
        assert!(parent.start_time_unix_nano <= span.start_time_unix_nano && span.end_time_unix_nano <= parent.end_time_unix_nano, "{name}");
    }
    assert!(spans["start"].parent_span_id.is_empty() && spans["staging"].parent_span_id.is_empty());

    let metrics = get_with(loopback(port), "agent", "/metrics", "authorization: Basic bWU6eW91\r\n").unwrap();
    assert_eq!((metrics.status, metrics.headers["content-type"].starts_with("application/openmetrics-text")), (200, true));
    for line in ["dewar_instances{state=\"running\"} 1.0", "dewar_stagings_total{result=\"done\"} 1.0", "dewar_spans_dropped_total 0.0"] {
        assert!(metrics.body.lines().any(|told| told == line), "{line} in {}", metrics.body);
    }
    assert!(metrics.body.contains("dewar_host_load_average ") && metrics.body.contains("dewar_host_memory_free_bytes "));

    world.agent.signal("-TERM");
    assert_eq!(world.agent.exit().code(), Some(0));
    let printed = world.agent.printed();
    for secret in ["good day", "up:secret", "k3y", "bWU6eW91"] {
        assert!(!printed.contains(secret), "{secret} in {printed}");
    }
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let transition = lines.iter().find(|line| line["fields"]["message"] == "instance transitioned" && line["fields"]["to"] == "RUNNING");
    let transition = transition.unwrap_or_else(|| panic!("no transition in {printed}"));
    assert_eq!((&transition["level"], &transition["fields"]["app_id"]), (&json!("INFO"), &start["droplet"]));
    assert!(transition["timestamp"].is_string() && transition["target"].as_str().unwrap().starts_with("dewar_agent"), "{transition}");
    let staged = lines.iter().find(|line| line["fields"]["message"] == "staged").unwrap();
    assert_eq!((&staged["span"]["name"], &staged["span"]["task_id"]), (&json!("staging"), &json!("told")));
}

/// Plain HTTP needs no certificates. An agent that did not start would not say hello.
#[test]
fn a_host_without_certificate_authorities_tells_a_collector_by_plain_http() {
    let collector = Collector::start();
    let yml = format!("otlp: {{endpoint: 'http://{}', interval: 0.2}}\n", collector.address);
    let mut world = World::start_by(&["env", "-u", "SSL_CERT_DIR", "SSL_CERT_FILE=/dev/null"], &yml);
    world.agent.line("no certificate authorities");
    let mut start = world.start_message(0, &json!("0000000000000000000000000000000000000000"));
    start["executableUri"] = json!(world.blobs.url("nothing"));
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    collector.spans(&["droplet"]);
}

/// A failed staging and a failed start are marked, so that a collector finds them; what they are about is told all the same.
#[test]
fn what_fails_is_marked_as_failed() {
    let collector = Collector::start();
    let yml = format!("otlp: {{endpoint: 'http://{}', interval: 0.2}}\n", collector.address);
    let mut world = World::start_by(&[], &yml);
    let mut start = world.start_message(0, &json!("0000000000000000000000000000000000000000"));
    start["executableUri"] = json!(world.blobs.url("nothing"));
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    world.nats.expect("droplet.exited", |exited| exited.json["reason"] == "CRASHED");
    let span = &collector.spans(&["droplet"])["droplet"];
    // 2 is the protocol's number for an error.
    assert_eq!(span.status.as_ref().unwrap().code, 2, "{span:?}");
    assert_eq!(attribute(span, "sha1"), start["sha1"]);
}
