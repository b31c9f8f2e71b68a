//! Requests with arbitrary faults in them, on real sockets: whatever comes, the answers are well-formed or there are none, the router
//! lives, and an instance sees exactly requests that a second opinion sees in the same bytes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::faults;
use crate::stage::{Stage, eventually, in_time};
use crate::strict::{self, Parsed, Read};

/// A connection that waits for the rest of a message is closed after this time, so a case takes no longer.
const PATIENCE_WITH_CLIENTS: Duration = Duration::from_millis(300);

/// A route that nobody registers again goes stale, and a deep search takes longer than that.
const CASES_PER_REGISTRATION: u32 = 100;

/// A socket costs more than a function: a quarter of the cases that other properties get. `PROPTEST_CASES` raises both.
fn cases(runner: &TestRunner) -> u32 {
    runner.config().cases / 4
}

/// An instance that reads by the letter, answers each request and remembers it.
#[derive(Clone, Default)]
struct Recorder {
    seen: Arc<Mutex<Vec<Parsed>>>,
    objections: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, recorder) = (listener.local_addr().unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(recorder.clone().serve(stream));
            }
        });
        address
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            match strict::request(&bytes) {
                Read::Whole(request, next) => {
                    bytes.drain(..next.unwrap_or(bytes.len()));
                    self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nseen").await.is_err() {
                        return;
                    }
                }
                Read::Part => match stream.read_buf(&mut bytes).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                Read::Malformed(why) => {
                    let objection = format!("{why}: {:?}", String::from_utf8_lossy(&bytes));
                    return self.objections.lock().unwrap_or_else(PoisonError::into_inner).push(objection);
                }
            }
        }
    }

    fn take(&self) -> Vec<Parsed> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Everything that comes back until the router closes, which it does because the client says nothing more.
async fn answers(router: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(router).await.unwrap();
    // The router may have closed before it has all of it.
    let _ = stream.write_all(bytes).await;
    let mut heard = Vec::new();
    // A reset is an end as well.
    let _ = in_time("the end of the connection", stream.read_to_end(&mut heard)).await;
    heard
}

/// Whether `some` are among `all`, in the same order: the router may refuse a request, but not change one or make one up.
fn is_among(some: &[Parsed], all: &[Parsed]) -> bool {
    let mut rest = all.iter();
    some.iter().all(|one| rest.any(|other| one.start == other.start && one.body == other.body))
}

/// Asks until there is an answer; gives how often. A busy machine may take longer over it than [`PATIENCE_WITH_CLIENTS`].
async fn alive(stage: &Stage) -> usize {
    let mut asked = 0;
    eventually("the answer to a good request", || {
        asked += 1;
        async { stage.talk(b"GET /alive HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.ends_with("seen").then_some(()) }
    })
    .await;
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faulty_requests_reach_no_instance_as_something_else() {
    let stage = Stage::set_with(|config| {
        config.clients.header_timeout = PATIENCE_WITH_CLIENTS;
        config.clients.idle_timeout = PATIENCE_WITH_CLIENTS;
        config.clients.stall_timeout = PATIENCE_WITH_CLIENTS;
    })
    .await;
    let recorder = Recorder::default();
    let instance = recorder.start().await;
    let mut runner = TestRunner::default();
    let input = faults::requests();
    let end = b"GET /end HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    for case in 0..cases(&runner) {
        if case % CASES_PER_REGISTRATION == 0 {
            stage.register(&["a.example"], instance).await;
        }
        let bytes = [&*input.new_tree(&mut runner).unwrap().current(), end].concat();
        let heard = answers(stage.router, &bytes).await;
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        strict::responses(&heard).unwrap_or_else(|why| panic!("{shown:?} was answered with {why}"));
        eventually("the end of every exchange", async || (stage.varz().await["requests_in_flight"] == 0).then_some(())).await;
        let (seen, there) = (recorder.take(), strict::requests(&bytes));
        assert!(is_among(&seen, &there), "in {shown:?}\nthe instance saw {seen:#?}\nbut there is {there:#?}");
        for request in &seen {
            let lengths = request.header("content-length").count() + request.header("transfer-encoding").count();
            assert!(lengths <= 1 && request.header("host").count() == 1, "{shown:?} became {request:?}");
        }
        let asked = alive(&stage).await;
        let seen = recorder.take();
        assert!((1..=asked).contains(&seen.len()), "after {shown:?} an instance sees {seen:#?} for {asked} requests");
    }
    let objections = recorder.objections.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(objections.is_empty(), "the router forwarded {objections:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrary_bytes_get_an_answer_or_the_end() {
    let stage = Stage::set_with(|config| config.clients.header_timeout = PATIENCE_WITH_CLIENTS).await;
    let recorder = Recorder::default();
    stage.register(&["a.example"], recorder.start().await).await;
    let mut runner = TestRunner::default();
    let bytes = prop_oneof![prop::collection::vec(any::<u8>(), 1..200), "[ -~\r\n]{1,200}".prop_map(String::into_bytes)];
    for _ in 0..cases(&runner) {
        // The empty line ends what may have begun as a head.
        let bytes = [bytes.new_tree(&mut runner).unwrap().current(), b"\r\n\r\n".to_vec()].concat();
        let heard = answers(stage.router, &bytes).await;
        strict::responses(&heard).unwrap_or_else(|why| panic!("{bytes:?} was answered with {why}"));
        assert_eq!(recorder.take(), [], "{bytes:?} reached an instance");
    }
    alive(&stage).await;
}
