//! What an agent tells of itself, to those who ask and to those it is told to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;

use dewar_agent::{Agent, AgentError};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use prost::Message as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::world::{EmbeddedBroker, PATIENCE, World, config, eventually, get, guest};

const STATUS: &str = "status: { user: me, password: 'pass:word' }\n";
const AUTHORIZATION: &str = "Basic bWU6cGFzczp3b3Jk";

pub(crate) async fn prometheus_scrapes_the_agent_and_its_instances() {
    let world = World::new(&format!("{STATUS}metrics: {{ max_instances: 1 }}\n")).await;
    for index in [0, 1] {
        let mut message = world.start_message(&guest("tests/http-driver"), "shop");
        message["index"] = json!(index);
        world.start(&message);
    }
    let address = world.agent.status_addr();
    let text = eventually("both instances to run", async || {
        let (_, text) = get(address, "/metrics", Some(AUTHORIZATION)).await.ok()?;
        text.contains("dewar_instances{state=\"running\"} 2").then_some(text)
    })
    .await;
    assert!(text.ends_with("# EOF\n"), "{text}");
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    };
    assert!((value("dewar_memory_capacity_bytes") - 8_589_934_592.0).abs() < 1.0);
    assert!((value("dewar_memory_remaining_bytes") - value("dewar_memory_capacity_bytes") + 134_217_728.0).abs() < 1.0);
    assert!((value("dewar_memory_available_ratio") - 0.984_375).abs() < 1e-9);
    for (name, number) in [
        ("dewar_instances{state=\"crashed\"}", 0.0),
        ("dewar_instances_unlisted", 1.0),
        ("dewar_instance_starts_total", 2.0),
        ("dewar_instance_crashes_total", 0.0),
        ("dewar_instance_start_seconds_count", 2.0),
        ("dewar_instance_start_seconds_bucket{le=\"+Inf\"}", 2.0),
        ("dewar_droplet_fetches_total{result=\"failed\"}", 0.0),
        ("dewar_sandbox_calls_total{result=\"failed\"}", 0.0),
        ("dewar_bus_up", 1.0),
        ("dewar_bus_connects_total", 1.0),
    ] {
        assert!((value(name) - number).abs() < 1e-9, "{name} is {}", value(name));
    }
    assert!(
        value("process_cpu_seconds_total") > 0.0 && value("process_resident_memory_bytes") > 0.0 && value("dewar_uptime_seconds") > 0.0
    );
    for name in ["dewar_instance_memory_bytes{", "dewar_instance_disk_bytes{", "dewar_instance_cpu_seconds_total{"] {
        let listed: Vec<_> = text.lines().filter(|line| line.starts_with(name)).collect();
        assert!(listed.len() == 1 && listed[0].contains("app_id=\"shop\",index=\""), "{listed:?}");
    }
    // As the format wants it: each name described once, before its samples.
    let described: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(described.len(), described.iter().collect::<BTreeSet<_>>().len(), "{described:?}");
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first().unwrap();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

/// The fields of a protobuf message, read without a schema: numbers and texts by their tags.
fn fields(mut bytes: &[u8]) -> BTreeMap<u32, Vec<u8>> {
    let mut fields = BTreeMap::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => varint(&mut bytes).to_string().into_bytes(),
            1 => bytes.split_off(..8).unwrap().to_vec(),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                bytes.split_off(..length).unwrap().to_vec()
            }
            kind => panic!("a field of kind {kind}"),
        };
        fields.insert(u32::try_from(key >> 3).unwrap(), value);
    }
    fields
}

pub(crate) async fn loggregator_gets_lines_and_metrics() {
    let router = UdpSocket::bind("127.0.0.1:0").unwrap();
    router.set_read_timeout(Some(PATIENCE)).unwrap();
    let yaml = format!("index: 4\nloggregator: {{ router: '{}' }}\nmetrics: {{ interval: 0.2 }}\n", router.local_addr().unwrap());
    let world = World::new(&yaml).await;
    let mut message = world.start_message(&guest("tests/http-driver"), "shop");
    message["index"] = json!(1);
    world.start(&message);
    let read = move || {
        let (mut lines, mut values, mut counters, mut containers) = (Vec::new(), BTreeMap::new(), BTreeSet::new(), Vec::new());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        // All metrics at least once while the instance runs.
        while values.get("dea_registry_running").is_none_or(|(running, _)| *running < 1.0) || containers.is_empty() || counters.is_empty() {
            let mut datagram = [0; 65_536];
            let length = router.recv(&mut datagram).expect("nothing more is emitted");
            let envelope = fields(&datagram[..length]);
            assert_eq!(envelope[&1], b"DEA");
            match envelope[&2].as_slice() {
                b"5" => {
                    let line = fields(&envelope[&8]);
                    lines.push((text(&line[&1]), text(&line[&5]), text(&line[&6])));
                }
                b"6" => {
                    let value = fields(&envelope[&9]);
                    let number = f64::from_le_bytes(value[&2].clone().try_into().unwrap());
                    values.insert(text(&value[&1]), (number, text(&value[&3])));
                }
                b"7" => {
                    counters.insert(text(&fields(&envelope[&10])[&1]));
                }
                b"9" => containers.push(fields(&envelope[&12])),
                other => panic!("an event of type {other:?}"),
            }
        }
        (lines, values, counters, containers)
    };
    let (lines, values, counters, containers) = tokio::task::spawn_blocking(read).await.unwrap();
    let started = ("Starting app instance (index 1) with guid shop".to_owned(), "DEA".to_owned(), "4".to_owned());
    assert!(lines.contains(&started), "{lines:?}");
    let units: BTreeMap<_, _> = values.iter().map(|(name, (_, unit))| (name.as_str(), unit.as_str())).collect();
    let states = ["born", "starting", "running", "stopping", "stopped", "crashed", "resuming", "evacuating"];
    let states: Vec<_> = states.iter().map(|state| format!("dea_registry_{state}")).collect();
    let mut wanted: BTreeMap<&str, &str> = states.iter().map(|name| (name.as_str(), "instances")).collect();
    wanted.extend([
        ("uptime", "s"),
        ("remaining_memory", "mb"),
        ("remaining_disk", "mb"),
        ("available_memory_ratio", "P"),
        ("available_disk_ratio", "P"),
        ("instances", "instances"),
        ("reservable_stagers", "stagers"),
        ("avg_cpu_load", "loadavg"),
        ("mem_used_bytes", "B"),
        ("mem_free_bytes", "B"),
    ]);
    assert_eq!(units, wanted);
    assert!((values["remaining_memory"].0 - 8128.0).abs() < 1e-9 && (values["available_memory_ratio"].0 - 0.992_187_5).abs() < 1e-9);
    assert!(counters.contains("warden_request_count") || counters.contains("total_warden_response_time_in_ms"), "{counters:?}");
    let container = containers.last().unwrap();
    assert_eq!((container[&1].as_slice(), container[&2].as_slice()), (b"shop".as_slice(), b"1".as_slice()));
    // CPU, memory and disk are told even where they are nothing.
    assert!(container.contains_key(&3) && container.contains_key(&4) && container.contains_key(&5));
}

pub(crate) async fn a_loggregator_without_an_address_is_no_start() {
    let broker = EmbeddedBroker::start(0).await;
    let base = tempfile::tempdir().unwrap();
    let config = config(base.path(), broker.addr, "loggregator: { router: 'no.such.host.invalid:3456' }\n");
    let error = Agent::start(config, CancellationToken::new()).await.expect_err("there is no such host");
    assert!(matches!(error, AgentError::Loggregator(_)) && error.to_string().contains("no.such.host.invalid"), "{error}");
}

pub(crate) async fn an_otlp_collector_gets_metrics() {
    let (posted, mut requests) = mpsc::channel(64);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let posted = posted.clone();
            let take = move |request: Request<Incoming>| {
                let posted = posted.clone();
                async move {
                    let (head, body) = request.into_parts();
                    posted.send((head, body.collect().await?.to_bytes())).await.ok();
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::new())))
                }
            };
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(take)));
        }
    });
    let yaml = format!("otlp: {{ endpoint: 'http://{collector}', headers: 'x-key=k3y', interval: 0.2 }}\n");
    let world = World::new(&yaml).await;
    let (head, body) = tokio::time::timeout(PATIENCE, requests.recv()).await.expect("nothing is posted").unwrap();
    assert_eq!((head.uri.path(), head.headers["content-type"].to_str().unwrap()), ("/v1/metrics", "application/x-protobuf"));
    assert_eq!(head.headers["x-key"], "k3y");
    let message = ExportMetricsServiceRequest::decode(body).unwrap();
    let resource = &message.resource_metrics[0];
    let attributes: Vec<_> = resource.resource.as_ref().unwrap().attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert!(attributes.contains(&"service.name") && attributes.contains(&"service.instance.id"), "{attributes:?}");
    let metric = |name: &str| resource.scope_metrics[0].metrics.iter().find(|metric| metric.name == name).unwrap();
    let states = metric("dewar_instances");
    assert!(matches!(&states.data, Some(Data::Gauge(gauge)) if gauge.data_points.len() == 8), "{states:?}");
    let starts = metric("dewar_instance_starts");
    assert!(matches!(&starts.data, Some(Data::Sum(sum)) if sum.is_monotonic && sum.data_points[0].start_time_unix_nano > 0), "{starts:?}");
    let times = metric("dewar_instance_start");
    assert_eq!(times.unit, "s");
    assert!(matches!(&times.data, Some(Data::Histogram(histogram)) if histogram.data_points[0].bucket_counts.len() == 15), "{times:?}");
    world.shut_down().await;
}
