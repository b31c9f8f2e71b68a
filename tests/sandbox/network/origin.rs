//! Origins for guests: real sockets on loopback, plain or with TLS, and names that mean what a test wants.

use std::io;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use dewar_sandbox::NetworkConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::fixture::eventually;

/// The network of the tests' sandboxes: it trusts [`authority`] and resolves with [`resolve`].
pub(crate) fn network() -> NetworkConfig {
    NetworkConfig { ca_file: Some(ca_file()), resolve }
}

/// Names that were looked up, in order.
pub(crate) fn looked_up() -> &'static Mutex<Vec<String>> {
    static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    &NAMES
}

pub(crate) fn times_looked_up(name: &str) -> usize {
    looked_up().lock().unwrap().iter().filter(|looked_up| *looked_up == name).count()
}

/// Names below `test` are these; all others are the host's.
fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    let name = name.trim_end_matches('.');
    let before = times_looked_up(name);
    looked_up().lock().unwrap().push(name.to_owned());
    let on_loopback = |last: u8| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    Ok(match name {
        "metadata.test" => vec![[169, 254, 169, 254].into()],
        "two.test" => vec![on_loopback(1), on_loopback(2)],
        "mixed.test" => vec![[10, 9, 9, 9].into(), on_loopback(1)],
        "rebinding.test" => vec![on_loopback(if before == 0 { 1 } else { 2 })],
        "nobody.test" => Vec::new(),
        name if name.ends_with(".test") => vec![on_loopback(1)],
        name => (name, 0).to_socket_addrs()?.map(|address| address.ip()).collect(),
    })
}

/// What an origin does with a request.
pub(crate) struct Reply {
    bytes: Vec<u8>,
    then: Then,
    /// Waited for; until it is closed.
    gate: Option<Arc<Semaphore>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    Close,
    /// Says nothing more, and keeps the connection.
    Hang,
}

impl Reply {
    /// 200 with this text.
    pub(crate) fn text(text: &str) -> Self {
        Self::bytes(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()))
    }

    pub(crate) fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), then: Then::GoOn, gate: None }
    }

    pub(crate) fn and_close(self) -> Self {
        Self { then: Then::Close, ..self }
    }

    pub(crate) fn behind(self, gate: &Arc<Semaphore>) -> Self {
        Self { gate: Some(gate.clone()), ..self }
    }

    pub(crate) fn and_hang(self) -> Self {
        Self { then: Then::Hang, ..self }
    }
}

/// What an origin has seen, and who it is.
pub(crate) struct Origin {
    pub(crate) port: u16,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    accepted: AtomicUsize,
    open: AtomicUsize,
    requests: Mutex<Vec<String>>,
    /// All bytes of all connections, without their TLS.
    bytes: Mutex<Vec<u8>>,
}

/// Decides by number of the connection, number of the request on it, and the request's head.
type Answering = dyn Fn(usize, usize, &str) -> Reply + Send + Sync;

impl Origin {
    /// On 127.0.0.1, without TLS.
    pub(crate) async fn plain(answer: impl Fn(usize, usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::on(listener, None, answer)
    }

    /// On 127.0.0.1, with TLS and a certificate of the tests' authority for these names.
    pub(crate) async fn tls(config: ServerConfig, answer: impl Fn(usize, usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::on(listener, Some(TlsAcceptor::from(Arc::new(config))), answer)
    }

    pub(crate) fn on(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        answer: impl Fn(usize, usize, &str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let (seen, answer): (Arc<Seen>, Arc<Answering>) = (Arc::default(), Arc::new(answer));
        let shared = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer, tls) = (shared.clone(), answer.clone(), tls.clone());
                let connection = seen.accepted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    seen.open.fetch_add(1, Ordering::SeqCst);
                    // A guest that breaks off is what some tests are about.
                    let _ = match tls {
                        None => serve(stream, connection, &seen, &*answer).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, connection, &seen, &*answer).await,
                            Err(error) => Err(error),
                        },
                    };
                    seen.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, seen }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.seen.accepted.load(Ordering::SeqCst)
    }

    /// Connections now.
    pub(crate) fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    /// Heads of requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// All that has come.
    pub(crate) fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.seen.bytes.lock().unwrap()).into_owned()
    }

    /// Waits until no connection is open.
    pub(crate) async fn left_alone(&self) {
        eventually("all connections closed", || self.open() == 0).await;
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, connection: usize, seen: &Seen, answer: &Answering) -> io::Result<()> {
    let (mut buffer, mut request) = (Vec::new(), 0);
    let mut hangs = false;
    loop {
        let Some(end) = whole_request(&buffer).filter(|_| !hangs) else {
            let mut chunk = [0; 16 << 10];
            let length = stream.read(&mut chunk).await?;
            if length == 0 {
                return Ok(());
            }
            seen.bytes.lock().unwrap().extend_from_slice(&chunk[..length]);
            buffer.extend_from_slice(&chunk[..length]);
            continue;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        seen.requests.lock().unwrap().push(head.clone());
        let Reply { bytes, then, gate } = answer(connection, request, &head);
        if let Some(gate) = gate {
            // It has no permits and is only ever closed.
            let _ = gate.acquire().await;
        }
        request += 1;
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        hangs = then == Then::Hang;
        if then == Then::Close {
            return stream.shutdown().await;
        }
    }
}

/// Where the first request ends, body and all, once it has come.
fn whole_request(buffer: &[u8]) -> Option<usize> {
    let head = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
    if text.contains("transfer-encoding: chunked") {
        return buffer[head..].windows(5).position(|window| window == b"0\r\n\r\n").map(|last| head + last + 5);
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    (buffer.len() >= head + length).then_some(head + length)
}

/// The authority that the tests' sandboxes trust.
pub(crate) fn authority() -> &'static CertifiedIssuer<'static, KeyPair> {
    static AUTHORITY: OnceLock<CertifiedIssuer<'static, KeyPair>> = OnceLock::new();
    AUTHORITY.get_or_init(|| new_authority("Authority"))
}

pub(crate) fn new_authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.distinguished_name.push(DnType::CommonName, name);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap()
}

fn ca_file() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ca-{}.pem", std::process::id()));
    std::fs::write(&path, authority().pem()).unwrap();
    path
}

/// A server's configuration with a certificate for these names.
pub(crate) fn certified(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    change(&mut params);
    let certificate = params.signed_by(&key, issuer).unwrap();
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap()
}
