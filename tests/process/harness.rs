//! Processes, ports, waiting and a minimal HTTP client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../free_port.rs"]
mod free_port;
pub(crate) use free_port::free_port;

/// How long anything may take here before the test has failed. Compiling a component in an unoptimised build is the slowest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A guest that `guest-sdk/build.sh` has built, such as `examples/hello`.
pub(crate) fn guest(name: &str) -> PathBuf {
    let path = root().join("target/guests").join(format!("{name}.wasm"));
    assert!(path.exists(), "{} is missing: run `sh guest-sdk/build.sh` first", path.display());
    path
}

/// Waits until `probe` yields something; level-triggered and bounded.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A process that is killed when the test ends, with what it printed so far.
pub(crate) struct Process {
    name: String,
    child: Child,
    printed: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let printed = Arc::new(Mutex::new(String::new()));
        let outputs: [Box<dyn Read + Send>; 2] = [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let readers = outputs.map(|output| {
            let printed = printed.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let mut printed = printed.lock().unwrap();
                    printed.push_str(&line);
                    printed.push('\n');
                }
            })
        });
        Self { name: name.to_owned(), child, printed, readers: readers.into() }
    }

    /// A role of the binary under test.
    pub(crate) fn dewar(arguments: &[&str]) -> Self {
        Self::dewar_by(&[], arguments)
    }

    /// A role of the binary under test, started by a command that executes its last arguments.
    pub(crate) fn dewar_by(launcher: &[&str], arguments: &[&str]) -> Self {
        let line = [launcher, &[env!("CARGO_BIN_EXE_dewar")], arguments].concat();
        let mut command = Command::new(line[0]);
        Self::spawn(arguments[0], command.args(&line[1..]).env_remove("DEWAR_NATS").env("NO_COLOR", "1"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// Waits for a line that contains `text` and yields it.
    pub(crate) fn line(&self, text: &str) -> String {
        let name = &self.name;
        eventually(&format!("{name} to print {text:?}"), || self.printed().lines().find(|line| line.contains(text)).map(str::to_owned))
    }

    pub(crate) fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.id().to_string()]).status().unwrap();
        assert!(done.success(), "send {signal} to {}", self.name);
    }

    /// Waits for its end; all that it printed has been read then.
    pub(crate) fn exit(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let child = &mut self.child;
        let status = eventually(&format!("{name} to exit"), || child.try_wait().unwrap());
        eventually(&format!("the end of what {name} prints"), || self.readers.iter().all(JoinHandle::is_finished).then_some(()));
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killing what has ended already fails, and that is fine here.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} printed:\n{}", self.name, self.printed());
        }
    }
}

/// A real nats-server on `port`. It prints where its monitor is, too.
pub(crate) fn nats_server(port: u16) -> Process {
    let program = std::env::var("NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
    let mut command = Command::new(&program);
    let server = Process::spawn("nats-server", command.args(["-a", "127.0.0.1", "-m", "-1", "-p", &port.to_string()]));
    eventually("nats-server to listen (Debian's package nats-server provides it)", || TcpStream::connect(loopback(port)).ok());
    server
}

/// Who is connected to a nats-server, as its monitor tells.
pub(crate) fn connections(server: &Process) -> Vec<Value> {
    let monitor = server.line("http monitor on");
    let port = monitor.rsplit(':').next().unwrap().trim().parse().unwrap();
    let told: Value = serde_json::from_str(&get_until(loopback(port), "monitor", "/connz?subs=1", 200).body).unwrap();
    told["connections"].as_array().unwrap().clone()
}

/// Runs a client verb to its end.
pub(crate) struct Client {
    pub(crate) nats: String,
    pub(crate) home: PathBuf,
}

pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Client {
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        let output = Command::new(env!("CARGO_BIN_EXE_dewar"))
            .args(arguments)
            .env("DEWAR_NATS", &self.nats)
            .env("DEWAR_HOME", &self.home)
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// As [`Client::run`], for what must succeed.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, 0, "dewar {arguments:?}\n{}\n{}", done.stdout, done.stderr);
        done.stdout
    }
}

/// An HTTP response, read to its end.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// One GET on a connection of its own. `None`: nobody listens, or the connection broke.
pub(crate) fn get(address: SocketAddr, host: &str, path: &str) -> Option<Response> {
    get_with(address, host, path, "")
}

/// One POST on a connection of its own, as [`get`].
pub(crate) fn post(address: SocketAddr, host: &str, path: &str, body: &str) -> Option<Response> {
    ask(address, &format!("POST {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

/// As [`get`], with more lines of a head.
pub(crate) fn get_with(address: SocketAddr, host: &str, path: &str, more: &str) -> Option<Response> {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n"))
}

fn ask(address: SocketAddr, request: &str) -> Option<Response> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).ok()?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).ok()?;
    let raw = String::from_utf8_lossy(&raw).into_owned();
    let (head, body) = raw.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: BTreeMap<String, String> =
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Some(Response { status, headers, body })
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, tail) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(tail.get(..size)?);
        rest = tail.get(size + 2..)?;
    }
}

/// Waits for a response with this status.
pub(crate) fn get_until(address: SocketAddr, host: &str, path: &str, status: u16) -> Response {
    let mut last = None;
    eventually(&format!("{status} from {host}{path}"), || match get(address, host, path) {
        Some(response) if response.status == status => Some(response),
        other => {
            last = other;
            None
        }
    })
}
