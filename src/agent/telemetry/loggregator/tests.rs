use std::net::UdpSocket;
use std::time::Duration;

use dewar_protocol::{Bytes, UnixSeconds};

use super::*;

/// A loggregator that reads what comes.
struct Router(UdpSocket);

impl Router {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(socket)
    }

    async fn emitter(&self, shared_secret: Option<&str>) -> Loggregator {
        let shared_secret = shared_secret.map(|secret| Secret(secret.to_owned()));
        let router = self.0.local_addr().unwrap().to_string();
        Loggregator::new(&LoggregatorConfig { router, shared_secret }, 3).await.unwrap()
    }

    fn datagram(&self) -> Vec<u8> {
        let mut buffer = [0; 65_536];
        let length = self.0.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    fn envelope(&self) -> Envelope {
        Envelope::decode(&*self.datagram()).unwrap()
    }

    fn message(&self) -> (String, LogMessage) {
        let message = self.envelope().log_message.unwrap();
        (String::from_utf8(message.message.clone()).unwrap(), message)
    }
}

fn line(source: LogSource, index: Option<u32>, stream: LogStream, text: &str) -> LogLine {
    LogLine { app_id: AppId::from("shop"), source, index, stream, timestamp: UnixSeconds(1.5), text: text.to_owned() }
}

#[tokio::test]
async fn lines_say_who_wrote_them() {
    let router = Router::new();
    let emitter = router.emitter(None).await;
    emitter.line(&line(LogSource::App, Some(7), LogStream::Err, "oops"));
    let envelope = router.envelope();
    assert_eq!((envelope.origin.as_str(), envelope.event_type), ("DEA", 5));
    assert!(envelope.timestamp.unwrap() > 1_600_000_000_000_000_000);
    let message = LogMessage {
        message: b"oops".to_vec(),
        message_type: 2,
        timestamp: 1_500_000_000,
        app_id: Some("shop".to_owned()),
        source_type: Some("App".to_owned()),
        source_instance: Some("7".to_owned()),
    };
    assert_eq!(envelope.log_message, Some(message));
    for (source, name) in [(LogSource::Dea, "DEA"), (LogSource::Stg, "STG")] {
        emitter.line(&line(source, None, LogStream::Out, "said"));
        let (_, message) = router.message();
        assert_eq!((message.source_type.as_deref(), message.source_instance.as_deref()), (Some(name), Some("3")));
        assert_eq!(message.message_type, 1);
    }
}

#[tokio::test]
async fn lines_are_split_and_cut() {
    let router = Router::new();
    let emitter = router.emitter(None).await;
    let out = |text: &str| emitter.line(&line(LogSource::Dea, None, LogStream::Out, text));
    out(" \n ");
    out("");
    out("one\n\r\ntwo\r");
    assert_eq!((router.message().0, router.message().0), ("one".to_owned(), "two".to_owned()));
    let longest = "x".repeat(9 * 1024 - 512);
    out(&longest);
    assert_eq!(router.message().0, longest);
    out(&format!("{longest}x"));
    let (cut, _) = router.message();
    assert_eq!((cut.len(), cut.ends_with("xTRUNCATED")), (longest.len(), true));
    assert_eq!(emitter.datagrams(), Datagrams { sent: 4, failed: 0 });
}

#[tokio::test]
async fn metrics_have_names_and_units() {
    let router = Router::new();
    let emitter = router.emitter(None).await;
    emitter.value("uptime", 12.5, "s");
    let value_metric = ValueMetric { name: "uptime".to_owned(), value: 12.5, unit: "s".to_owned() };
    let envelope = router.envelope();
    assert_eq!((envelope.event_type, envelope.value_metric), (6, Some(value_metric)));
    emitter.counter("warden_request_count", 2);
    let envelope = router.envelope();
    let counter_event = CounterEvent { name: "warden_request_count".to_owned(), delta: 2 };
    assert_eq!((envelope.event_type, envelope.counter_event), (7, Some(counter_event)));
    let sample = Sample { cpu: Duration::from_secs(9), memory: Bytes(1000), disk: Bytes(2000) };
    emitter.container(&AppId::from("shop"), 1, 0.25, sample);
    let container_metric = ContainerMetric {
        application_id: "shop".to_owned(),
        instance_index: 1,
        cpu_percentage: 25.0,
        memory_bytes: 1000,
        disk_bytes: 2000,
    };
    let envelope = router.envelope();
    assert_eq!((envelope.event_type, envelope.container_metric), (9, Some(container_metric)));
}

/// The bytes of protobuf's own rules: field 1 "DEA", field 2 = 7, field 10 a message of field 1 "n" and field 2 = 300.
#[test]
fn an_envelope_has_the_bytes_that_the_protocol_says() {
    let counter_event = CounterEvent { name: "n".to_owned(), delta: 300 };
    let envelope = Envelope {
        origin: "DEA".to_owned(),
        event_type: EventType::CounterEvent.into(),
        counter_event: Some(counter_event),
        ..Envelope::default()
    };
    let bytes = [0x0a, 3, b'D', b'E', b'A', 0x10, 7, 0x52, 6, 0x0a, 1, b'n', 0x10, 0xac, 0x02];
    assert_eq!(envelope.encode_to_vec(), bytes);
}

#[tokio::test]
async fn a_secret_signs_what_is_sent() {
    let router = Router::new();
    router.emitter(Some("key")).await.counter("n", 1);
    let datagram = router.datagram();
    let (signature, envelope) = datagram.split_at(32);
    let mut mac = Hmac::<Sha256>::new_from_slice(b"key").unwrap();
    mac.update(envelope);
    mac.verify_slice(signature).unwrap();
    assert_eq!(Envelope::decode(envelope).unwrap().counter_event.unwrap().name, "n");
    // RFC 4231, second case.
    let known = signed(&Secret("Jefe".to_owned()), b"what do ya want for nothing?");
    assert_eq!(&known[..4], [0x5b, 0xdc, 0xc1, 0x46]);
}

#[tokio::test]
async fn what_cannot_be_sent_is_counted_and_nothing_more() {
    let router = Router::new();
    let emitter = router.emitter(None).await;
    // No network takes a datagram as large as this.
    let name = "n".repeat(70_000);
    emitter.counter(&name, 1);
    emitter.counter(&name, 1);
    assert_eq!(emitter.datagrams(), Datagrams { sent: 0, failed: 2 });
    emitter.counter("n", 1);
    assert_eq!(router.envelope().counter_event.unwrap().name, "n");
}

#[tokio::test]
async fn a_host_without_an_address_is_an_error() {
    let config = LoggregatorConfig { router: "no.such.host.invalid:3456".to_owned(), shared_secret: None };
    let error = Loggregator::new(&config, 0).await.unwrap_err();
    assert!(error.to_string().contains("no.such.host.invalid:3456"), "{error}");
}
