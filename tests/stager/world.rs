//! A stager with its store, and a server that plays Cloud Controller and blobstore.

use std::collections::HashMap;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::time::Duration;

use dewar_agent::droplet_store::DropletStore;
use dewar_agent::staging::{Progress, Stager, StagerConfig, StagingFailed};
use dewar_agent::transfer::{TransferConfig, Transfers};
use dewar_core::{StagedDroplet, StagingError, StagingSpec, TaskKey};
use dewar_protocol::{Bytes, LogStream, Mib, StagingMessage};
use dewar_sandbox::{CompileLimits, NetworkConfig, OperatorEgress, Output, SandboxConfig, Sandboxes};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::test_server::{Answer, Request, Server};

/// How long anything may take. Compiling a component in a debug build on a busy machine is the slowest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a scenario to its end or its failure.
pub(crate) fn run(scenario: impl Future<Output = ()>) {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, scenario).await.expect("the scenario takes too long") });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// Native code is kept between runs of the tests, as an agent keeps it between its own.
pub(crate) fn sandboxes() -> Sandboxes {
    static SANDBOXES: OnceLock<Sandboxes> = OnceLock::new();
    let new = || {
        Sandboxes::new(SandboxConfig {
            state_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("stager-artifacts"),
            compiler: std::env::current_exe().unwrap(),
            compile_limits: CompileLimits::default(),
            artifact_bytes: Bytes(1 << 30),
            network: NetworkConfig::default(),
            core_dumps: false,
        })
    };
    SANDBOXES.get_or_init(|| new().unwrap()).clone()
}

/// A guest that `guest-sdk/build.sh` has built.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests").join(name).with_extension("wasm");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}, guest-sdk/build.sh makes it", path.display()))
}

pub(crate) fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A package for the buildpack that does what the package says.
pub(crate) fn orders(orders: &str) -> Vec<u8> {
    zip(&[("orders", orders.as_bytes()), ("app.wasm", &guest("tests/command-driver")), ("data", b"data")])
}

/// Lines of a staging log.
#[derive(Debug, Default)]
pub(crate) struct Log(Mutex<Vec<String>>);

impl Output for Log {
    fn line(&self, _stream: LogStream, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

impl Log {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn has(&self, line: &str) -> bool {
        self.lines().iter().any(|text| text == line)
    }

    /// Whether there is a line that begins so.
    pub(crate) fn begins(&self, start: &str) -> bool {
        self.lines().iter().any(|text| text.starts_with(start))
    }
}

/// Whatever is put here is served; what is posted appears here.
type Files = Arc<Mutex<HashMap<String, Answer>>>;

pub(crate) struct World {
    pub(crate) base: PathBuf,
    pub(crate) stager: Stager,
    pub(crate) droplets: DropletStore,
    pub(crate) controller: Server,
    files: Files,
    /// Gone with this, after everything else.
    _dir: Option<TempDir>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::lasting(Duration::from_secs(100)).await
    }

    /// With a limit on the time that buildpacks have.
    pub(crate) async fn lasting(max_duration: Duration) -> Self {
        Self::with(sandboxes(), max_duration).await
    }

    /// With these sandboxes.
    pub(crate) async fn with(sandboxes: Sandboxes, max_duration: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self::set_up(dir.path().to_owned(), sandboxes, max_duration).await;
        Self { _dir: Some(dir), ..world }
    }

    pub(crate) async fn at(base: PathBuf, max_duration: Duration) -> Self {
        Self::set_up(base, sandboxes(), max_duration).await
    }

    async fn set_up(base: PathBuf, sandboxes: Sandboxes, max_duration: Duration) -> Self {
        let files = Files::default();
        let served = Arc::clone(&files);
        let controller = Server::start(move |request| answer(&served, request)).await;
        let config = TransferConfig {
            inactivity_timeout: Duration::from_secs(4),
            pause: Duration::from_millis(5),
            poll_interval: Duration::from_millis(10),
            ..TransferConfig::default()
        };
        let transfers = Transfers::new(config).unwrap();
        let droplets = DropletStore::open(&base.join("droplets"), transfers.clone()).unwrap();
        let egress = OperatorEgress::default();
        let settings = StagerConfig { base_dir: base.clone(), stacks: vec!["dewar".to_owned()], max_duration, inodes: 1000, egress };
        let stager = Stager::new(settings, sandboxes, droplets.clone(), transfers).unwrap();
        let world = Self { base, stager, droplets, controller, files, _dir: None };
        world.serve("/driver.wasm", guest("tests/buildpack-driver"));
        world
    }

    pub(crate) fn serve(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.answer(path, Answer::ok(content));
    }

    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.files.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// A message about `/package` that names no buildpack.
    pub(crate) fn message(&self) -> Value {
        json!({
            "app_id": "app", "task_id": "task", "properties": { "services": [], "environment": [] },
            "download_uri": self.controller.url("/package"), "upload_uri": self.controller.url("/droplet"),
        })
    }

    /// A message about these orders to the buildpack that does what the package says.
    pub(crate) fn driven(&self, text: &str) -> Value {
        self.serve("/package", orders(text));
        let mut message = self.message();
        message["properties"]["buildpack"] = json!(self.controller.url("/driver.wasm"));
        message
    }

    pub(crate) async fn stage(&self, message: &Value) -> (Result<StagedDroplet, StagingFailed>, Arc<Log>) {
        self.stage_until(message, CancellationToken::new()).await
    }

    pub(crate) async fn stage_until(&self, message: &Value, stop: CancellationToken) -> (Result<StagedDroplet, StagingFailed>, Arc<Log>) {
        let log = Arc::new(Log::default());
        let spec = spec(message);
        let progress = std::sync::Mutex::new(Vec::new());
        let outcome = self.stager.run(&spec, log.clone(), |step| progress.lock().unwrap().push(step), stop).await;
        let progress = progress.into_inner().unwrap();
        let during_setup = outcome.as_ref().is_err_and(|failed| failed.during_setup);
        assert_eq!(progress.first(), (!during_setup).then_some(&Progress::SetUp), "setup is over when it has been told to be");
        if let Ok(droplet) = &outcome {
            assert_eq!(progress, [Progress::SetUp, Progress::Stored(droplet.sha1.clone())]);
        }
        assert_eq!(self.names("staging"), Vec::<String>::new(), "the staging's directory is gone");
        assert_eq!(self.names("droplets/.partial"), Vec::<String>::new());
        assert_eq!(self.names("admin_buildpacks/.partial"), Vec::<String>::new());
        (outcome, log)
    }

    pub(crate) async fn staged(&self, message: &Value) -> (StagedDroplet, Arc<Log>) {
        let (outcome, log) = self.stage(message).await;
        (outcome.unwrap_or_else(|failed| panic!("{failed:?}\n{}", log.lines().join("\n"))), log)
    }

    /// The error, which came after setup.
    pub(crate) async fn failed(&self, message: &Value) -> (StagingError, Arc<Log>) {
        let (outcome, log) = self.stage(message).await;
        let failed = outcome.expect_err("the staging succeeded");
        assert!(!failed.during_setup, "{failed:?}");
        assert!(failed.error.info.as_ref().is_none_or(|info| info.message == failed.error.message), "{failed:?}");
        assert!(log.has(&format!("Staging failed: {}", failed.error.message)), "the developer reads it in the log");
        (failed.error, log)
    }

    pub(crate) async fn failed_setup(&self, message: &Value) -> String {
        let (outcome, _) = self.stage(message).await;
        let failed = outcome.expect_err("the staging succeeded");
        assert!(failed.during_setup, "{failed:?}");
        failed.error.message
    }

    /// Names in a directory below the stager's, sorted.
    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.base.join(dir)) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What was posted to a path, oldest first: the content of the one file in each form.
    pub(crate) fn posted(&self, path: &str) -> Vec<Vec<u8>> {
        let is_post = |request: &&Request| request.method == "POST" && request.target.starts_with(&format!("{path}?"));
        self.controller.requests().iter().filter(is_post).map(file_of_form).collect()
    }
}

pub(crate) fn spec(message: &Value) -> StagingSpec {
    let message: StagingMessage = serde_json::from_value(message.clone()).unwrap();
    StagingSpec { key: TaskKey(1), message: Arc::new(message), memory: Mib(256), disk: Mib(128) }
}

fn answer(files: &Files, request: &Request) -> Answer {
    let path = request.target.split('?').next().unwrap();
    let known = files.lock().unwrap().get(path).cloned();
    let otherwise = if request.method == "POST" { Answer::ok("") } else { Answer::status(404, "") };
    known.unwrap_or(otherwise)
}

fn file_of_form(request: &Request) -> Vec<u8> {
    let body = &request.body;
    let find = |wanted: &[u8]| body.windows(wanted.len()).position(|bytes| bytes == wanted).unwrap();
    let start = find(b"\r\n\r\n") + 4;
    let boundary = &body[..find(b"\r\n")];
    body[start..body.len() - boundary.len() - 6].to_vec()
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !probe() {
        assert!(tokio::time::Instant::now() < deadline, "gave up waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
