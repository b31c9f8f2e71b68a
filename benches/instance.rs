//! How much of a bare server's throughput an instance keeps, and how much of raw wasmtime's.
//!
//! Servers of the same small response, loaded in turn, three rounds: bare hyper, an instance of `examples/hello` on its own port
//! whose stores are used again, one that has a fresh store for each request, and calls of the same component without any HTTP
//! around. What counts are the ratios within this run.
//!
//! With `serve hyper`, `serve reuse COMPONENT` or `serve fresh COMPONENT` it is one of the servers for others to load: it prints
//! its URL and serves until its standard input ends.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a report; what fails ends it")]

#[path = "load.rs"]
mod load;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dewar_protocol::LogStream;
use dewar_sandbox::{
    CompileLimits, CpuQuota, EgressPolicy, HttpLimits, InstanceSpec, Instances, NetworkConfig, Output, Quota, Sandbox, SandboxConfig,
    Sandboxes, compile_child,
};
use http_body_util::{BodyExt, Empty, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

const ROUNDS: usize = 3;
const SPAN: Duration = Duration::from_secs(3);
const CONNECTIONS: usize = 32;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("compile-component") {
        return compile_child();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, mode, component @ ..] = words.as_slice()
        && verb == "serve"
    {
        serve(&runtime, mode, component.first().map(Path::new));
        return ExitCode::SUCCESS;
    }
    let hello = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests/examples/hello.wasm");
    assert!(hello.exists(), "{} is missing: run `sh guest-sdk/build.sh` first", hello.display());
    let dir = tempfile::tempdir().unwrap();
    let bare = runtime.block_on(bare_hyper());
    let (reuse, kept) = runtime.block_on(instance(&hello, &dir.path().join("reuse"), Instances::Reuse));
    let (fresh, unkept) = runtime.block_on(instance(&hello, &dir.path().join("fresh"), Instances::Fresh));

    let mut figures: [Vec<f64>; 4] = Default::default();
    println!("round  bare hyper, instance, instance with fresh stores, raw calls");
    for round in 1..=ROUNDS {
        let hyper = load::run(bare, "hello.localhost", CONNECTIONS, SPAN);
        let reuse = load::run(reuse, "hello.localhost", CONNECTIONS, SPAN);
        let fresh = load::run(fresh, "hello.localhost", CONNECTIONS, SPAN);
        let raw = runtime.block_on(raw_calls(&hello));
        let shown =
            [hyper, reuse, fresh].map(|load| format!("{:>8.0}/s p50 {:>6.0?} p99 {:>6.0?}", load.requests_per_second, load.p50, load.p99));
        println!("{round}      {}  {raw:>8.0}/s on one core", shown.join("  "));
        let rates = [hyper.requests_per_second, reuse.requests_per_second, fresh.requests_per_second, raw];
        figures.iter_mut().zip(rates).for_each(|(list, rate)| list.push(rate));
    }
    let [hyper, reuse, fresh, raw] = figures.map(load::median);
    println!("instance ÷ bare hyper: {:.2}", reuse / hyper);
    println!("instance ÷ raw calls on one core: {:.2}", reuse / raw);
    println!("instance with fresh stores ÷ instance: {:.2}", fresh / reuse);
    kept.kill();
    unkept.kill();
    ExitCode::SUCCESS
}

/// Serves for others to load, until standard input ends.
fn serve(runtime: &tokio::runtime::Runtime, mode: &str, component: Option<&Path>) {
    let dir = tempfile::tempdir().unwrap();
    let component = || component.expect("a component to serve");
    let (address, _sandbox) = match mode {
        "hyper" => (runtime.block_on(bare_hyper()), None),
        "reuse" | "fresh" => {
            let instances = if mode == "fresh" { Instances::Fresh } else { Instances::Reuse };
            let (address, sandbox) = runtime.block_on(instance(component(), dir.path(), instances));
            (address, Some(sandbox))
        }
        other => panic!("hyper, reuse or fresh, not {other}"),
    };
    println!("http://{address}/");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

async fn bare_hyper() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                let answer =
                    service_fn(async |_| Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"Hello from Dewar\n")))));
                // The client's end closes the connection; nobody is left to be told.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    address
}

struct Discard;

impl Output for Discard {
    fn line(&self, _stream: LogStream, _text: &str) {}
}

async fn instance(wasm: &Path, dir: &Path, instances: Instances) -> (SocketAddr, Sandbox) {
    let config = SandboxConfig {
        state_dir: dir.join("state"),
        compiler: std::env::current_exe().unwrap(),
        compile_limits: CompileLimits::default(),
        artifact_bytes: dewar_protocol::Bytes(1 << 30),
        network: NetworkConfig::default(),
        core_dumps: false,
    };
    let sandboxes = Sandboxes::new(config).unwrap();
    let program = sandboxes.program(wasm).await.unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let folder = |name: &str| -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let spec = InstanceSpec {
        program,
        world: None,
        arguments: vec!["hello".to_owned()],
        environment: Vec::new(),
        app_dir: folder("app"),
        tmp_dir: folder("tmp"),
        quota: Quota {
            memory: dewar_protocol::Bytes(256 << 20),
            disk: dewar_protocol::Bytes(1 << 20),
            inodes: 100,
            open_files: 64,
            cpu: CpuQuota::default(),
        },
        listener: Some(listener),
        address,
        app: "bench".to_owned(),
        egress: EgressPolicy::default(),
        http: HttpLimits { instances, ..HttpLimits::default() },
        output: Arc::new(Discard),
    };
    (address, sandboxes.start(spec).await.unwrap())
}

struct Raw {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    hooks: NoOutbound,
}

struct NoOutbound;

type Sent = Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>;

impl wasmtime_wasi_http::WasiHttpHooks for NoOutbound {
    fn send_request(
        &mut self,
        _request: hyper::Request<wasmtime_wasi_http::WasiBody>,
        _options: Option<wasmtime_wasi_http::RequestOptions>,
        _sent: Sent,
    ) -> Box<dyn Future<Output = Result<(hyper::Response<wasmtime_wasi_http::WasiBody>, Sent), wasmtime_wasi_http::Error>> + Send> {
        unreachable!("hello sends no requests")
    }
}

impl WasiView for Raw {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Raw {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

/// Calls per second of the component's handler in one reused store, as an embedder without a server would make them.
async fn raw_calls(wasm: &Path) -> f64 {
    let engine = Engine::default();
    let component = Component::from_file(&engine, wasm).unwrap();
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).unwrap();
    let pre = ProxyPre::new(linker.instantiate_pre(&component).unwrap()).unwrap();
    let data = Raw { wasi: WasiCtx::builder().build(), http: WasiHttpCtx::new(), table: ResourceTable::new(), hooks: NoOutbound };
    let mut store = Store::new(&engine, data);
    let proxy = pre.instantiate_async(&mut store).await.unwrap();
    let (began, mut calls) = (Instant::now(), 0_u32);
    while began.elapsed() < SPAN {
        let nothing = Empty::<Bytes>::new().map_err(|never| -> wasmtime_wasi_http::Error { match never {} });
        let request = hyper::Request::get("http://hello.localhost/").body(nothing).unwrap();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request).unwrap();
        let out = store.data_mut().http().new_response_outparam(sender).unwrap();
        let body = async { receiver.await.unwrap().unwrap().into_body().collect().await.unwrap() };
        let (called, _) = tokio::join!(proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out), body);
        called.unwrap();
        calls += 1;
    }
    f64::from(calls) / began.elapsed().as_secs_f64()
}
