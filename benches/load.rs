//! A load generator that costs little itself: keep-alive connections on one thread, one fixed request, responses told by length.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one round of load saw.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) requests_per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Requests `GET /` with this host from `connections` at once, each the next as soon as it has its answer, for `span`.
///
/// # Panics
/// When the server is away, or answers anything but 200.
pub(crate) fn run(address: SocketAddr, host: &str, connections: usize, span: Duration) -> Round {
    run_paced(address, host, connections, span, Duration::ZERO)
}

/// As [`run`], but each connection rests for `pause` between an answer and its next request, so that the server is not saturated.
pub(crate) fn run_paced(address: SocketAddr, host: &str, connections: usize, span: Duration, pause: Duration) -> Round {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = Arc::new(AtomicBool::new(false));
    let mut latencies = runtime.block_on(async {
        let clients: Vec<_> = (0..connections).map(|_| tokio::spawn(client(address, request.clone(), pause, done.clone()))).collect();
        tokio::time::sleep(span).await;
        done.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await.expect("a client"));
        }
        all
    });
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    Round { requests_per_second: latencies.len() as f64 / span.as_secs_f64(), p50: at(0.5), p99: at(0.99) }
}

async fn client(address: SocketAddr, request: Vec<u8>, pause: Duration, done: Arc<AtomicBool>) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    stream.set_nodelay(true).expect("a socket option");
    let mut buffer = vec![0; 16 << 10];
    let mut latencies = Vec::with_capacity(1 << 16);
    let mut length = None;
    while !done.load(Ordering::Relaxed) {
        let sent = Instant::now();
        stream.write_all(&request).await.expect("the server reads");
        let mut held = 0;
        loop {
            held += stream.read(&mut buffer[held..]).await.expect("the server answers");
            // The first response tells how long all of them are.
            if length.is_none() {
                length = whole(&buffer[..held]);
            }
            if length.is_some_and(|length| held >= length) {
                break;
            }
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..held]));
        assert_eq!(Some(held), length, "all responses have the same length");
        latencies.push(sent.elapsed());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    latencies
}

/// Length of the response that `bytes` begin with, once its head is complete.
fn whole(bytes: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(bytes).expect("a response in ASCII");
    let (head, body) = text.split_once("\r\n\r\n")?;
    let lower = head.to_ascii_lowercase();
    if let Some(length) = lower.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        return Some(head.len() + 4 + length.trim().parse::<usize>().expect("a number"));
    }
    // Chunked: it ends with the empty chunk.
    body.ends_with("0\r\n\r\n").then_some(bytes.len())
}

/// The middle one.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
