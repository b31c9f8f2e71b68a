//! One line for each request, in gorouter's form, written by a thread of its own.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dewar_core::routes::Endpoint;
use http::header::{HOST, HeaderMap, HeaderValue, REFERER, USER_AGENT};
use http::{Method, Request, Uri, Version};
use jiff::Timestamp;
use tokio::sync::mpsc::{self, Receiver, Sender, error::TryRecvError};
use tracing::error;

use crate::config::AccessLogTarget;
use crate::headers::{X_FORWARDED_FOR, X_FORWARDED_PROTO};
use crate::upstream::Upstream;

/// Requests that may wait to be written. When the disk is slower than the clients for that long, further lines are dropped and counted.
const QUEUE: usize = 8192;

/// What the log says of a request. Taking it copies handles, not texts.
#[derive(Debug)]
pub(crate) struct RequestFacts {
    started: Timestamp,
    client: SocketAddr,
    method: Method,
    uri: Uri,
    version: Version,
    request_id: HeaderValue,
    host: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    forwarded_proto: Option<HeaderValue>,
}

impl RequestFacts {
    pub(crate) fn of<B>(request: &Request<B>, client: SocketAddr, request_id: &HeaderValue) -> Self {
        let header = |name| request.headers().get(name).cloned();
        Self {
            started: Timestamp::now(),
            client,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            request_id: request_id.clone(),
            host: header(HOST),
            referer: header(REFERER),
            user_agent: header(USER_AGENT),
            forwarded_for: None,
            forwarded_proto: None,
        }
    }

    /// What the instance is told about the way here.
    pub(crate) fn forwarded(&mut self, headers: &HeaderMap) {
        self.forwarded_for = headers.get(X_FORWARDED_FOR).cloned();
        self.forwarded_proto = headers.get(X_FORWARDED_PROTO).cloned();
    }
}

/// What the log says of an instance; handles as well.
#[derive(Debug)]
pub(crate) struct EndpointFacts {
    address: SocketAddr,
    app: Option<HeaderValue>,
    index: Option<HeaderValue>,
    instance_id: Option<HeaderValue>,
}

impl EndpointFacts {
    pub(crate) fn of(endpoint: &Endpoint<Upstream>) -> Self {
        let Upstream { app, index, instance_id, .. } = &endpoint.attachment;
        Self { address: endpoint.info.address, app: app.clone(), index: index.clone(), instance_id: instance_id.clone() }
    }
}

/// A request that is over.
#[derive(Debug)]
pub(crate) struct AccessRecord {
    pub(crate) facts: Box<RequestFacts>,
    pub(crate) status: u16,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) elapsed: Duration,
    pub(crate) endpoint: Option<EndpointFacts>,
    pub(crate) router_error: Option<&'static str>,
}

impl fmt::Display for AccessRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.facts;
        let instance = self.endpoint.as_ref();
        let host = facts.host.as_ref().map_or("-".into(), |host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        write!(f, "{} - [{}] ", Plain(&host), facts.started.strftime("%Y-%m-%dT%H:%M:%S.%9fZ"))?;
        write!(f, "\"{} {} {:?}\" {} ", facts.method, Plain(&facts.uri.to_string()), facts.version, self.status)?;
        write!(f, "{} {} ", self.bytes_received, self.bytes_sent)?;
        write!(f, "{} {} ", Quoted::header(&facts.referer), Quoted::header(&facts.user_agent))?;
        write!(f, "\"{}\" {} ", facts.client, Quoted(instance.map(|info| info.address.to_string()).as_deref().map(str::as_bytes)))?;
        write!(f, "x_forwarded_for:{} ", Quoted::header(&facts.forwarded_for))?;
        write!(f, "x_forwarded_proto:{} ", Quoted::header(&facts.forwarded_proto))?;
        write!(f, "vcap_request_id:{} ", Quoted(Some(facts.request_id.as_bytes())))?;
        write!(f, "response_time:{:.6} ", self.elapsed.as_secs_f64())?;
        let field = |of: fn(&EndpointFacts) -> &Option<HeaderValue>| {
            Quoted(instance.and_then(|facts| of(facts).as_ref()).map(HeaderValue::as_bytes))
        };
        write!(f, "app_id:{} ", field(|facts| &facts.app))?;
        write!(f, "app_index:{} ", field(|facts| &facts.index))?;
        write!(f, "instance_id:{} ", field(|facts| &facts.instance_id))?;
        write!(f, "x_cf_routererror:{}", Quoted(self.router_error.map(str::as_bytes)))
    }
}

/// A text in quotes; `"-"` for none. What a client sends must not look like another field or line.
struct Quoted<'a>(Option<&'a [u8]>);

impl<'a> Quoted<'a> {
    fn header(value: &'a Option<HeaderValue>) -> Self {
        Self(value.as_ref().map(HeaderValue::as_bytes))
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.filter(|text| !text.is_empty()) {
            None => f.write_str("\"-\""),
            Some(text) => write!(f, "\"{}\"", text.escape_ascii()),
        }
    }
}

/// A text that stands between blanks.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b' ' => f.write_str("\\x20")?,
                _ => write!(f, "{}", byte.escape_ascii())?,
            }
        }
        Ok(())
    }
}

/// The way into the log. Writing never waits.
#[derive(Debug)]
pub(crate) struct AccessLog {
    queue: Option<Sender<AccessRecord>>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens the log and starts its thread, which ends when the log and what is in it are gone.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub(crate) fn open(target: &AccessLogTarget) -> io::Result<(Self, Option<JoinHandle<()>>)> {
        let sink = match target {
            AccessLogTarget::Off => return Ok((Self { queue: None, dropped: Arc::default() }, None)),
            AccessLogTarget::Stdout => Sink::Stdout(io::stdout()),
            AccessLogTarget::File(path) => Sink::File(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (queue, records) = mpsc::channel(QUEUE);
        let dropped = Arc::<AtomicU64>::default();
        let lost = Arc::clone(&dropped);
        let writer = thread::Builder::new().name("access-log".to_owned()).spawn(move || write_all(records, sink, &lost))?;
        Ok((Self { queue: Some(queue), dropped }, Some(writer)))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    pub(crate) fn write(&self, record: AccessRecord) {
        if let Some(queue) = &self.queue
            && queue.try_send(record).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were lost: the queue was full, or the file could not be written.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

enum Sink {
    File(File),
    Stdout(io::Stdout),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Stdout(stdout) => stdout.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stdout(stdout) => stdout.flush(),
        }
    }
}

/// Writes what is in the queue, and out to the file whenever it has run empty.
fn write_all(mut records: Receiver<AccessRecord>, sink: Sink, lost: &AtomicU64) {
    let mut sink = BufWriter::with_capacity(64 << 10, sink);
    let mut failing = false;
    let mut line = String::new();
    let mut next = records.blocking_recv();
    while let Some(record) = next {
        line.clear();
        // Writing to a String cannot fail.
        let _ = writeln!(line, "{record}");
        let mut written = sink.write_all(line.as_bytes());
        next = match records.try_recv() {
            Ok(record) => Some(record),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => {
                written = written.and_then(|()| sink.flush());
                records.blocking_recv()
            }
        };
        if let Err(cause) = &written {
            lost.fetch_add(1, Ordering::Relaxed);
            if !failing {
                error!(error = %cause, "access log cannot be written");
            }
        }
        failing = written.is_err();
    }
    if let Err(cause) = sink.flush() {
        error!(error = %cause, "end of access log cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(user_agent: &'static [u8]) -> AccessRecord {
        let request = Request::get("/a%20b?c=d")
            .header(HOST, "shop.example.net")
            .header(USER_AGENT, HeaderValue::from_bytes(user_agent).unwrap())
            .body(())
            .unwrap();
        let mut facts = RequestFacts::of(&request, "192.0.2.1:4711".parse().unwrap(), &HeaderValue::from_static("an-id"));
        facts.started = "2026-11-22T10:00:00.5Z".parse().unwrap();
        AccessRecord {
            facts: Box::new(facts),
            status: 200,
            bytes_received: 3,
            bytes_sent: 1234,
            elapsed: Duration::from_millis(12),
            endpoint: Some(EndpointFacts {
                address: "10.0.0.1:61001".parse().unwrap(),
                app: Some(HeaderValue::from_static("app")),
                index: Some(HeaderValue::from_static("0")),
                instance_id: Some(HeaderValue::from_static("i-1")),
            }),
            router_error: None,
        }
    }

    #[test]
    fn a_line_has_gorouters_form() {
        assert_eq!(
            record(b"curl/8").to_string(),
            "shop.example.net - [2026-11-22T10:00:00.500000000Z] \"GET /a%20b?c=d HTTP/1.1\" 200 3 1234 \"-\" \"curl/8\" \
             \"192.0.2.1:4711\" \"10.0.0.1:61001\" x_forwarded_for:\"-\" x_forwarded_proto:\"-\" vcap_request_id:\"an-id\" \
             response_time:0.012000 app_id:\"app\" app_index:\"0\" instance_id:\"i-1\" x_cf_routererror:\"-\""
        );
    }

    #[test]
    fn a_client_cannot_forge_fields() {
        let line = record(b"x\" 500 \t\xff").to_string();
        assert!(line.contains(r#""x\" 500 \t\xff""#), "{line}");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, mut records) = mpsc::channel(1);
        let log = AccessLog { queue: Some(queue), dropped: Arc::default() };
        log.write(record(b"first"));
        log.write(record(b"second"));
        assert_eq!(log.dropped(), 1);
        assert!(records.try_recv().unwrap().to_string().contains("first"));
    }
}
