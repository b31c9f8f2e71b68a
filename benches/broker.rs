//! The embedded broker beside a real nats-server: messages per second, fan-out, latency of a request, memory.
//!
//! Both run as processes of their own and are loaded in turn, round by round, by the same raw clients, which cost little: they write
//! ready-made bytes and count what arrives. A lost message shows, because then the count is never reached. What counts are the ratios.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a report; what fails ends it")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]
#![allow(dead_code, reason = "the process tests' harness, of which this needs a part")]

#[path = "../tests/process/harness.rs"]
mod harness;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use harness::{Process, eventually, free_port, loopback};

const ROUNDS: usize = 3;
/// What a publisher may be ahead of its subscriber: far less than either server allows, so that neither cuts the subscriber off.
const WINDOW_BYTES: usize = 16 << 20;
const SUBSCRIBERS: usize = 1000;
const FANNED_OUT: usize = 300;
const REQUESTS: usize = 5000;
/// Nothing here takes as long; what does has lost a message.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let mut servers = vec![Server::embedded()];
    match nats_server_program() {
        Some(program) => servers.push(Server::nats(&program)),
        None => {
            println!("nats-server is NOT in PATH (nor named by NATS_SERVER): only the embedded broker is measured, there are no ratios")
        }
    }
    let fresh: Vec<u64> = servers.iter().map(|server| server.memory("VmRSS")).collect();
    report("1 publisher, 1 subscriber, 128 B", "messages/s", &servers, |server| one_to_one(server.address, 128, 1_000_000));
    report("1 publisher, 1 subscriber, 4 KiB", "messages/s", &servers, |server| one_to_one(server.address, 4096, 100_000));
    report("1 publisher, 1000 subscribers, 128 B", "deliveries/s", &servers, |server| fan_out(server.address));
    report("request and reply, median", "round trips/s by one client", &servers, |server| requests(server.address));
    for (server, fresh) in servers.iter().zip(fresh) {
        let (now, peak) = (server.memory("VmRSS"), server.memory("VmHWM"));
        println!("{}: resident {fresh} KiB at the start, {now} KiB at the end, {peak} KiB at most", server.name);
    }
}

/// Measures each server in turn; the ratio is ours to theirs within a round.
fn report(what: &str, unit: &str, servers: &[Server], measure: impl Fn(&Server) -> f64) {
    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        let figures: Vec<f64> = servers.iter().map(&measure).collect();
        let shown: Vec<String> = servers.iter().zip(&figures).map(|(server, figure)| format!("{} {figure:.0}", server.name)).collect();
        println!("{what}, round {round}: {} {unit}", shown.join(", "));
        if let [ours, theirs] = figures[..] {
            ratios.push(ours / theirs);
        }
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(ratio) = ratios.get(ratios.len() / 2) {
        println!("{what}: embedded ÷ nats-server {ratio:.2}");
    }
}

struct Server {
    name: &'static str,
    address: SocketAddr,
    process: Process,
}

impl Server {
    fn embedded() -> Self {
        let address = loopback(free_port());
        let process = Process::dewar(&["broker", "--listen", &address.to_string()]);
        Self { name: "embedded", address, process }.listening()
    }

    fn nats(program: &PathBuf) -> Self {
        let address = loopback(free_port());
        let process = Process::spawn("nats-server", Command::new(program).args(["-a", "127.0.0.1", "-p", &address.port().to_string()]));
        Self { name: "nats-server", address, process }.listening()
    }

    fn listening(self) -> Self {
        eventually(self.name, || TcpStream::connect(self.address).ok());
        self
    }

    /// A line of its `/proc` status, in KiB.
    fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).unwrap();
        value.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

fn nats_server_program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("NATS_SERVER") {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("nats-server")).find(|program| program.is_file())
}

/// A client that has said `greeting` and knows that the server has taken it in.
fn client(address: SocketAddr, greeting: &str) -> (TcpStream, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::with_capacity(256 << 10, stream.try_clone().unwrap());
    write!(stream, "CONNECT {{\"verbose\":false,\"pedantic\":false,\"lang\":\"none\"}}\r\n{greeting}PING\r\n").unwrap();
    let mut line = String::new();
    while line != "PONG\r\n" {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the server closed the connection");
    }
    (stream, reader)
}

/// Bytes of a `MSG` with its line for subscription 1.
fn delivered_bytes(subject: &str, size: usize) -> usize {
    format!("MSG {subject} 1 {size}\r\n").len() + size + 2
}

fn publication(subject: &str, size: usize) -> Vec<u8> {
    [format!("PUB {subject} {size}\r\n").as_bytes(), &vec![b'x'; size], b"\r\n"].concat()
}

/// Messages per second until the last has arrived.
fn one_to_one(address: SocketAddr, size: usize, count: usize) -> f64 {
    let expected = delivered_bytes("bench", size) * count;
    let (_keep, mut reader) = client(address, "SUB bench 1\r\n");
    let (mut publisher, _replies) = client(address, "");
    let arrived = Arc::new(AtomicUsize::new(0));
    let progress = Arc::clone(&arrived);
    let began = Instant::now();
    let subscriber = thread::spawn(move || {
        let mut seen = 0;
        while seen < expected {
            let some = reader.fill_buf().unwrap().len();
            assert!(some > 0, "the subscriber was cut off after {seen} of {expected} bytes");
            reader.consume(some);
            seen += some;
            progress.store(seen, Ordering::Relaxed);
        }
        assert_eq!(seen, expected, "more came than was sent");
    });
    let at_once = (64 << 10) / size;
    let batch = publication("bench", size).repeat(at_once);
    let (frame, mut sent) = (delivered_bytes("bench", size), 0);
    while sent < count {
        let some = at_once.min(count - sent);
        publisher.write_all(&batch[..batch.len() / at_once * some]).unwrap();
        sent += some;
        while sent * frame > arrived.load(Ordering::Relaxed) + WINDOW_BYTES {
            thread::yield_now();
        }
    }
    subscriber.join().unwrap();
    count as f64 / began.elapsed().as_secs_f64()
}

/// Deliveries per second to a thousand connections, until the last message has reached the last of them.
fn fan_out(address: SocketAddr) -> f64 {
    let expected = delivered_bytes("fan", 128) * FANNED_OUT;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut subscribers = Vec::new();
        for _ in 0..SUBSCRIBERS {
            let (stream, _reader) = client(address, "SUB fan 1\r\n");
            stream.set_nonblocking(true).unwrap();
            subscribers.push(tokio::net::TcpStream::from_std(stream).unwrap());
        }
        let (publisher, _replies) = client(address, "");
        publisher.set_nonblocking(true).unwrap();
        let mut publisher = tokio::net::TcpStream::from_std(publisher).unwrap();
        let began = Instant::now();
        let reading: Vec<_> = subscribers
            .into_iter()
            .map(|mut stream| {
                tokio::spawn(async move {
                    let (mut buffer, mut seen) = (vec![0; 16 << 10], 0);
                    while seen < expected {
                        let some = stream.read(&mut buffer).await.unwrap();
                        assert!(some > 0, "a subscriber was cut off after {seen} of {expected} bytes");
                        seen += some;
                    }
                    assert_eq!(seen, expected, "more came than was sent");
                })
            })
            .collect();
        publisher.write_all(&publication("fan", 128).repeat(FANNED_OUT)).await.unwrap();
        for reader in reading {
            tokio::time::timeout(PATIENCE, reader).await.expect("every message arrives").unwrap();
        }
        (SUBSCRIBERS * FANNED_OUT) as f64 / began.elapsed().as_secs_f64()
    })
}

/// Requests one after the other; one over the median of their latencies.
fn requests(address: SocketAddr) -> f64 {
    let (mut responder, mut questions) = client(address, "SUB ask 1\r\n");
    let answering = thread::spawn(move || {
        let question = format!("MSG ask 1 answer 128\r\n{}\r\n", "x".repeat(128)).len();
        let mut buffer = vec![0; question];
        for _ in 0..REQUESTS {
            questions.read_exact(&mut buffer).unwrap();
            responder.write_all(&publication("answer", 128)).unwrap();
        }
    });
    let (mut asker, mut answers) = client(address, "SUB answer 1\r\n");
    let mut buffer = vec![0; delivered_bytes("answer", 128)];
    let question = [b"PUB ask answer 128\r\n", &[b'x'; 128][..], b"\r\n"].concat();
    let mut latencies: Vec<Duration> = (0..REQUESTS)
        .map(|_| {
            let asked = Instant::now();
            asker.write_all(&question).unwrap();
            answers.read_exact(&mut buffer).unwrap();
            asked.elapsed()
        })
        .collect();
    answering.join().unwrap();
    latencies.sort_unstable();
    println!("  p50 {:.1?}, p99 {:.1?}", latencies[REQUESTS / 2], latencies[REQUESTS * 99 / 100]);
    1.0 / latencies[REQUESTS / 2].as_secs_f64()
}
