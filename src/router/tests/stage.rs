//! What a test needs around it: a broker and a router on free ports, instances, clients.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use dewar_bus::broker::{Broker, BrokerConfig};
use dewar_bus::{Bus, BusConfig};
use dewar_protocol::{RouteRegistration, subjects};
use dewar_router::{Router, RouterConfig, RouterError};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::free_port::free_port;

/// No test may wait for anything longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` sees what it looks for.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} took longer than {PATIENCE:?}"))
}

/// A broker that can be stopped and started again on the same port.
pub(crate) struct TestBroker {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl TestBroker {
    pub(crate) async fn start(listen: SocketAddr) -> Self {
        let broker = Broker::bind(BrokerConfig { listen, lame_duck: Duration::ZERO, ..BrokerConfig::default() }).await.unwrap();
        let address = broker.local_addr();
        let stop = CancellationToken::new();
        let task = tokio::spawn(broker.run(stop.clone()));
        Self { address, stop, task }
    }

    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        in_time("stopping the broker", &mut self.task).await.unwrap();
    }

    /// After [`stop`](Self::stop), on the same port.
    pub(crate) async fn start_again(&mut self) {
        *self = Self::start(self.address).await;
    }

    pub(crate) fn client_config(&self) -> BusConfig {
        BusConfig { servers: vec![format!("nats://{}", self.address)], name: "test".into(), ..BusConfig::default() }
    }

    pub(crate) async fn client(&self) -> Bus {
        let (bus, _) = Bus::connect(self.client_config()).await.unwrap();
        bus.wait_up(PATIENCE).await.unwrap();
        bus
    }
}

/// A router on the bus.
pub(crate) struct Stage {
    pub(crate) broker: TestBroker,
    pub(crate) bus: Bus,
    pub(crate) router: SocketAddr,
    pub(crate) status: SocketAddr,
    pub(crate) credentials: String,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), RouterError>>,
}

impl Stage {
    pub(crate) async fn set() -> Self {
        Self::set_with(|_| {}).await
    }

    pub(crate) async fn set_with(change: impl FnOnce(&mut RouterConfig)) -> Self {
        let broker = TestBroker::start(dead_address()).await;
        let bus = broker.client().await;
        let mut config = RouterConfig::default_for("127.0.0.1:0".parse().unwrap());
        // An in-flight request that a test leaves behind must not hold it up.
        config.clients.drain_timeout = Duration::from_millis(500);
        change(&mut config);
        let credentials = format!("{}:{}", config.status.user, config.status.password.expose());
        let router = Router::bind(config).await.unwrap();
        let (http, status) = (router.http_addr(), router.status_addr());
        let stop = CancellationToken::new();
        let task = tokio::spawn(router.run(broker.client_config(), stop.clone()));
        let stage = Self { broker, bus, router: http, status, credentials, stop, task };
        stage.wait_for_greeting().await;
        stage
    }

    /// The router answers a greeting once it is subscribed; from then on no registration is missed.
    pub(crate) async fn wait_for_greeting(&self) {
        eventually("the router's answer to a greeting", async || {
            self.bus.request(subjects::ROUTER_GREET, &serde_json::json!({}), Duration::from_secs(1)).await.ok()
        })
        .await;
    }

    pub(crate) fn publish(&self, subject: &str, registration: &RouteRegistration) {
        self.bus.publish(subject, registration).unwrap();
    }

    /// Leads hosts to an address and waits until the router knows.
    pub(crate) async fn register(&self, uris: &[&str], address: SocketAddr) {
        self.register_as(registration(uris, address)).await;
    }

    pub(crate) async fn register_as(&self, registration: RouteRegistration) {
        self.publish(subjects::ROUTER_REGISTER, &registration);
        let address = format!("{}:{}", registration.host, registration.port);
        for uri in &registration.uris {
            eventually("a registered route", async || {
                let routes = self.routes().await;
                let known = routes[uri].as_array().is_some_and(|list| list.iter().any(|endpoint| endpoint["address"] == address));
                known.then_some(())
            })
            .await;
        }
    }

    pub(crate) async fn routes(&self) -> serde_json::Value {
        serde_json::from_slice(&self.status_page("/routes").await.into_body()).unwrap()
    }

    pub(crate) async fn varz(&self) -> serde_json::Value {
        serde_json::from_slice(&self.status_page("/varz").await.into_body()).unwrap()
    }

    pub(crate) async fn status_page(&self, path: &str) -> Response<Bytes> {
        let credentials = base64::engine::general_purpose::STANDARD.encode(&self.credentials);
        let request = Request::get(path).header("host", "status").header("authorization", format!("Basic {credentials}"));
        fetch(self.status, request.body(Full::default()).unwrap()).await
    }

    pub(crate) async fn get(&self, host: &str, path: &str) -> Response<Bytes> {
        fetch(self.router, Request::get(path).header("host", host).body(Full::default()).unwrap()).await
    }

    pub(crate) async fn connect(&self) -> Wire {
        Wire::connect(self.router).await
    }

    /// Everything that comes back to these bytes on a connection of their own, until the router closes it or, after its first words,
    /// is silent for a while.
    pub(crate) async fn talk(&self, bytes: &[u8]) -> String {
        let mut wire = self.connect().await;
        wire.send(bytes).await;
        wire.begins().await;
        String::from_utf8_lossy(&wire.rest(Duration::from_secs(1)).await).into_owned()
    }
}

pub(crate) fn registration(uris: &[&str], address: SocketAddr) -> RouteRegistration {
    RouteRegistration {
        host: address.ip().to_string(),
        port: address.port(),
        uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
        app: Some("an-app".into()),
        private_instance_id: Some(format!("i-{}", address.port())),
        private_instance_index: Some("0".into()),
        ..RouteRegistration::default()
    }
}

/// One request on a connection of its own.
pub(crate) async fn fetch(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let response = open(address, request).await;
    let (head, body) = response.into_parts();
    let body = in_time("the body of a response", body.collect()).await.unwrap().to_bytes();
    Response::from_parts(head, body)
}

/// The same with the body still to come.
pub(crate) async fn open<B>(address: SocketAddr, request: Request<B>) -> Response<Incoming>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let response = in_time("the head of a response", sender.send_request(request)).await.unwrap();
    // The connection must outlive the body.
    tokio::spawn(async move {
        let _sender = sender;
        sleep(PATIENCE).await;
    });
    response
}

/// An instance made with hyper.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl App {
    pub(crate) async fn start<F, R, B>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<B>> + Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = Self { address: listener.local_addr().unwrap(), connections: Arc::default(), requests: Arc::default() };
        let (connections, requests) = (Arc::clone(&app.connections), Arc::clone(&app.requests));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (answer, requests) = (answer.clone(), Arc::clone(&requests));
                let service = service_fn(move |request| {
                    requests.fetch_add(1, Ordering::SeqCst);
                    let answer = answer.clone();
                    async move { Ok::<_, Infallible>(answer(request).await) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades());
            }
        });
        app
    }

    /// Answers with its name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::start(move |_| async move { Response::new(Full::new(Bytes::from(name))) }).await
    }

    /// Answers with the request's head, as lines.
    pub(crate) async fn mirror() -> Self {
        Self::start(|request: Request<Incoming>| async move {
            let mut text = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
            }
            Response::new(Full::new(Bytes::from(text)))
        })
        .await
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// An instance that is a bare socket: `serve` gets each connection and its number, from 0.
pub(crate) async fn bare_instance<F, R>(serve: F) -> SocketAddr
where
    F: Fn(Wire, usize) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(Wire { stream, ahead: Vec::new() }, number));
        }
    });
    address
}

/// An address that nobody listens on.
pub(crate) fn dead_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// A connection of which every byte is seen.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    ahead: Vec<u8>,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), ahead: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        in_time("sending", self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Everything up to and with `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|part| part == end.as_bytes()) {
                let rest = self.ahead.split_off(at + end.len());
                return String::from_utf8_lossy(&std::mem::replace(&mut self.ahead, rest)).into_owned();
            }
            let more = in_time(&format!("reading until {end:?}"), self.stream.read_buf(&mut self.ahead)).await.unwrap();
            assert!(more > 0, "the connection ended before {end:?}, after {:?}", String::from_utf8_lossy(&self.ahead));
        }
    }

    /// Whether anything comes before the connection ends.
    async fn begins(&mut self) -> bool {
        // A reset is an end as well.
        !self.ahead.is_empty() || in_time("a word or the end", self.stream.read_buf(&mut self.ahead)).await.unwrap_or(0) > 0
    }

    /// The head of a message; empty when the connection has ended instead.
    pub(crate) async fn head(&mut self) -> String {
        if self.begins().await { self.until("\r\n\r\n").await } else { String::new() }
    }

    pub(crate) async fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.ahead.len() < length {
            let more = in_time("reading", self.stream.read_buf(&mut self.ahead)).await.unwrap();
            assert!(more > 0, "the connection ended after {} of {length} bytes", self.ahead.len());
        }
        let rest = self.ahead.split_off(length);
        std::mem::replace(&mut self.ahead, rest)
    }

    /// Everything until the connection ends or is silent for `silence`.
    pub(crate) async fn rest(&mut self, silence: Duration) -> Vec<u8> {
        while let Ok(Ok(more)) = timeout(silence, self.stream.read_buf(&mut self.ahead)).await {
            if more == 0 {
                break;
            }
        }
        std::mem::take(&mut self.ahead)
    }

    /// Waits for the other side to close; what it says before is returned.
    pub(crate) async fn closed(&mut self) -> String {
        loop {
            match in_time("the end of the connection", self.stream.read_buf(&mut self.ahead)).await {
                Ok(0) | Err(_) => return String::from_utf8_lossy(&std::mem::take(&mut self.ahead)).into_owned(),
                Ok(_) => {}
            }
        }
    }
}

pub(crate) fn text(response: Response<Bytes>) -> String {
    String::from_utf8_lossy(&response.into_body()).into_owned()
}

pub(crate) fn header<'a, B>(response: &'a Response<B>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}
