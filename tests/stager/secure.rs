//! HTTPS, with OpenSSL's own server and certificates.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::world::{World, guest, zip};

/// Where the certificate is; set for the two processes.
const FOLDER: &str = "STAGER_TEST_TLS_FOLDER";

/// What names the authorities to trust, instead of the system's store.
const TRUST: &str = "SSL_CERT_FILE";

/// Which authorities a process trusts is settled when it starts: so the test is run again in two that differ in that.
pub(crate) async fn packages_come_over_tls_from_whom_the_system_trusts() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return stage_over_tls(Path::new(&folder)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let certificate = dir.path().join("server.pem");
    let openssl = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "server.key", "-out", "server.pem"])
        .current_dir(dir.path())
        .output();
    assert!(openssl.unwrap().status.success(), "openssl makes a certificate");
    for trusted in [certificate.as_path(), Path::new("/dev/null")] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "secure::packages_come_over_tls_from_whom_the_system_trusts"]);
        let outcome = again.env(TRUST, trusted).env(FOLDER, dir.path()).env_remove("SSL_CERT_DIR").output().unwrap();
        assert!(outcome.status.success(), "{}{}", String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr));
    }
}

async fn stage_over_tls(folder: &Path) {
    let world = World::new().await;
    let package = zip(&[("hello.wasm", &guest("examples/hello"))]);
    let head = format!("HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n", package.len());
    std::fs::write(folder.join("package"), [head.as_bytes(), &package].concat()).unwrap();
    let server = TlsServer::start(folder);
    let mut message = world.message();
    message["download_uri"] = json!(format!("https://localhost:{}/package", server.port));
    if std::env::var_os(TRUST).unwrap() != "/dev/null" {
        world.staged(&message).await;
        return;
    }
    let error = world.failed_setup(&message).await;
    assert!(error.contains("certificate"), "{error}");
    message["download_uri"] = json!(world.controller.url("/package"));
    world.serve("/package", package);
    // Whoever trusts nobody still speaks HTTP.
    world.staged(&message).await;
}

/// Answers with the files of a folder, as they are.
struct TlsServer {
    process: Child,
    port: u16,
}

impl TlsServer {
    fn start(folder: &Path) -> Self {
        let arguments = ["s_server", "-HTTP", "-accept", "127.0.0.1:0", "-cert", "server.pem", "-key", "server.key"];
        let command = Command::new("openssl").args(arguments).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = command.unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let accepting = lines.find_map(|line| line.unwrap().strip_prefix("ACCEPT 127.0.0.1:")?.parse().ok());
        // Whatever it says from now on must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, port: accepting.expect("openssl says where it listens") }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}
