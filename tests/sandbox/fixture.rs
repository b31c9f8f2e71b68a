//! What every test stands on: sandboxes, guests, an instance with its log and its directories, a client.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dewar_protocol::{Bytes as Size, LogStream};
use dewar_sandbox::{
    CompileLimits, CpuQuota, EgressPolicy, Exit, HttpLimits, InstanceSpec, Output, Program, Quota, Sandbox, SandboxConfig, Sandboxes, World,
};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::network::origin;

/// Longest that anything but a deliberately slow operation may take, on a machine that is slow and busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A test that runs on the tests' own runtime.
pub(crate) fn test<F, T>(name: &'static str, body: F) -> Trial
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    Trial::test(name, move || {
        let run = || runtime().block_on(async { tokio::time::timeout(5 * PATIENCE, body()).await });
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failed::from(format!("not done after {:?}", 5 * PATIENCE))),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Err(Failed::from(text.unwrap_or_else(|| "panicked".into())))
            }
        }
    })
}

/// What all tests run on.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

/// One engine for all tests, as in an agent. Its native code is kept between runs.
pub(crate) fn sandboxes() -> &'static Sandboxes {
    static SANDBOXES: OnceLock<Sandboxes> = OnceLock::new();
    SANDBOXES.get_or_init(|| Sandboxes::new(config(Path::new(env!("CARGO_TARGET_TMPDIR")).join("sandbox"))).unwrap())
}

pub(crate) fn config(state_dir: PathBuf) -> SandboxConfig {
    SandboxConfig {
        state_dir,
        compiler: std::env::current_exe().unwrap(),
        compile_limits: CompileLimits::default(),
        artifact_bytes: Size(1 << 30),
        network: origin::network(),
        core_dumps: false,
    }
}

/// Where a built guest is, such as `tests/http-driver`.
pub(crate) fn guest(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/guests/{name}.wasm"));
    assert!(path.exists(), "{} is missing: build the guests with guest-sdk/build.sh", path.display());
    path
}

/// Writing this breaks [`Lines`].
pub(crate) const BREAK: &str = "break-the-sink";

/// Keeps lines, and core dumps.
#[derive(Default)]
pub(crate) struct Lines(Mutex<Vec<(LogStream, String)>>, Mutex<Vec<Vec<u8>>>);

impl Output for Lines {
    fn line(&self, stream: LogStream, text: &str) {
        if text == BREAK {
            panic!("the sink is broken");
        }
        self.0.lock().unwrap().push((stream, text.to_owned()));
    }

    fn core_dump(&self, dump: &[u8]) {
        self.1.lock().unwrap().push(dump.to_owned());
    }
}

impl Lines {
    pub(crate) fn all(&self) -> String {
        self.0.lock().unwrap().iter().map(|(_, text)| format!("{text}\n")).collect()
    }

    pub(crate) fn core_dumps(&self) -> Vec<Vec<u8>> {
        self.1.lock().unwrap().clone()
    }

    pub(crate) fn of(&self, stream: LogStream) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|(from, _)| *from == stream).map(|(_, text)| text.clone()).collect()
    }
}

/// Waits until it is so, or says what was expected.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "expected within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a guest says that the disk is full. One that runs on the preview 1 adapter never learns what is wrong with a stream and
/// calls it an I/O error.
pub(crate) fn is_full(text: &str) -> bool {
    text.starts_with("StorageFull") || text.contains("I/O error (os error 29)")
}

/// What a call into a guest is charged for besides its store, as documented.
pub(crate) const CALL: u64 = 1920 << 10;

/// Apps so far.
static APPS: AtomicUsize = AtomicUsize::new(0);

/// An instance about to be started.
pub(crate) struct Plan {
    sandboxes: Sandboxes,
    pub(crate) program: Program,
    pub(crate) world: Option<World>,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) quota: Quota,
    /// Of which app it is; a test's own unless it says so.
    pub(crate) app: String,
    pub(crate) egress: EgressPolicy,
    pub(crate) http: HttpLimits,
    /// Files below the app's directory before it starts.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
}

impl Plan {
    pub(crate) async fn of(name: &str) -> Self {
        Self::within(sandboxes(), name).await
    }

    /// In other sandboxes than all the rest.
    pub(crate) async fn within(sandboxes: &Sandboxes, name: &str) -> Self {
        Self {
            sandboxes: sandboxes.clone(),
            program: sandboxes.program(&guest(name)).await.unwrap(),
            world: None,
            arguments: vec!["app".into()],
            environment: Vec::new(),
            quota: Quota { memory: Size(64 << 20), disk: Size(1 << 20), inodes: 100, open_files: 64, cpu: CpuQuota::default() },
            app: format!("app-{}", APPS.fetch_add(1, Ordering::Relaxed)),
            egress: EgressPolicy::default(),
            http: HttpLimits::default(),
            files: Vec::new(),
        }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub(crate) fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments = std::iter::once("app").chain(arguments.iter().copied()).map(Into::into).collect();
        self
    }

    pub(crate) fn quota(mut self, change: impl FnOnce(&mut Quota)) -> Self {
        change(&mut self.quota);
        self
    }

    pub(crate) fn http(mut self, change: impl FnOnce(&mut HttpLimits)) -> Self {
        change(&mut self.http);
        self
    }

    pub(crate) async fn try_start(self) -> Result<Instance, (Exit, Arc<Lines>)> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("app")).unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        for (path, content) in &self.files {
            std::fs::write(directory.path().join("app").join(path), content).unwrap();
        }
        self.try_start_in(directory).await
    }

    /// Starts it where another instance has been.
    pub(crate) async fn start_in(self, directory: TempDir) -> Instance {
        self.try_start_in(directory).await.unwrap_or_else(|(exit, lines)| panic!("start failed: {exit:?}\n{}", lines.all()))
    }

    async fn try_start_in(self, directory: TempDir) -> Result<Instance, (Exit, Arc<Lines>)> {
        let (app_dir, tmp_dir) = (directory.path().join("app"), directory.path().join("tmp"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let lines = Arc::new(Lines::default());
        let mut environment = self.environment;
        environment.push(("PORT".into(), address.port().to_string()));
        let spec = InstanceSpec {
            program: self.program,
            world: self.world,
            arguments: self.arguments,
            environment,
            app_dir,
            tmp_dir,
            quota: self.quota,
            listener: Some(listener),
            address,
            app: self.app,
            egress: self.egress,
            http: self.http,
            output: lines.clone(),
        };
        match self.sandboxes.start(spec).await {
            Ok(sandbox) => Ok(Instance { sandbox, address, lines, directory }),
            Err(exit) => Err((exit, lines)),
        }
    }

    pub(crate) async fn start(self) -> Instance {
        self.try_start().await.unwrap_or_else(|(exit, lines)| panic!("start failed: {exit:?}\n{}", lines.all()))
    }
}

/// A running instance.
pub(crate) struct Instance {
    pub(crate) sandbox: Sandbox,
    pub(crate) address: SocketAddr,
    pub(crate) lines: Arc<Lines>,
    directory: TempDir,
}

/// Why there is no answer, or not a whole one: maybe the instance is gone.
pub(crate) type NoAnswer = Box<dyn std::error::Error + Send + Sync>;

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Instance {
    pub(crate) fn app_dir(&self) -> PathBuf {
        self.directory.path().join("app")
    }

    pub(crate) fn into_directory(self) -> TempDir {
        self.directory
    }

    pub(crate) fn tmp_dir(&self) -> PathBuf {
        self.directory.path().join("tmp")
    }

    pub(crate) async fn exit(&self) -> Exit {
        tokio::time::timeout(PATIENCE, self.sandbox.exited()).await.unwrap_or_else(|_| panic!("still running:\n{}", self.lines.all()))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.try_send("GET", path, Bytes::new()).await.unwrap_or_else(|error| panic!("GET {path}: {error}\n{}", self.lines.all()))
    }

    /// Expects 200 and gives the text.
    pub(crate) async fn ok(&self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "GET {path}: {}\n{}", answer.text(), self.lines.all());
        answer.text()
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        self.try_send(method, path, body.into()).await.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.lines.all()))
    }

    pub(crate) async fn try_send(&self, method: &str, path: &str, body: Bytes) -> Result<Answer, NoAnswer> {
        self.client().try_send(method, path, body).await
    }

    /// Waits until a request is at work: a call costs memory for as long as it lasts. `before`: what it had without.
    pub(crate) async fn is_at_work(&self, before: Size) {
        // Less than the whole: a call pays also for handles that the store was charged for while it was at rest.
        eventually("the call is charged", || self.sandbox.usage().memory >= Size(before.0 + CALL / 2)).await;
    }

    /// Who sends requests to it, whether it lives or not.
    pub(crate) fn client(&self) -> Client {
        Client(self.address)
    }
}

/// A connection that is used again.
pub(crate) struct Kept(http1::SendRequest<Full<Bytes>>);

impl Kept {
    pub(crate) async fn ask(&mut self, path: &str) -> http::Response<Bytes> {
        let request = http::Request::builder().uri(path).header("host", "app.test").body(Full::default()).unwrap();
        // The answer before may have come a moment before the connection's task was done with it.
        self.0.ready().await.unwrap();
        let (head, body) = self.0.send_request(request).await.unwrap().into_parts();
        http::Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    /// Waits until the instance has closed it.
    pub(crate) async fn is_closed(&self) {
        eventually("the instance closes the connection", || self.0.is_closed()).await;
    }
}

/// A client of an instance.
pub(crate) struct Client(SocketAddr);

impl Client {
    /// A connection that is kept.
    pub(crate) async fn keep(&self) -> Kept {
        let stream = TcpStream::connect(self.0).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Kept(sender)
    }

    /// One request on a connection of its own.
    pub(crate) async fn try_send(&self, method: &str, path: &str, body: Bytes) -> Result<Answer, NoAnswer> {
        let stream = TcpStream::connect(self.0).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = http::Request::builder().method(method).uri(path).header("host", "app.test").body(Full::new(body)).unwrap();
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        driver.abort();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}
