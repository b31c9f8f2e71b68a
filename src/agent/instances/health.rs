//! Looks whether an instance is healthy, again and again, until it is. To give up is the cell's, which knows how long it may take.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dewar_core::HealthCheck;
use dewar_protocol::StartMessage;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::blocking;

/// Pauses between two looks: the first, doubled each time up to the last. A state file is looked at every [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// How long one attempt to connect may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long an answer may take; an app may have much to do before its first.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of the head of an answer; its body is not read.
const HEAD_BYTES: usize = 16 << 10;

/// Bytes of the largest state file.
const STATE_BYTES: u64 = 64 << 10;

/// No link is followed, and what is no file is not waited for.
const FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// How often the app's log is told that a path was answered otherwise than before.
const COMPLAINTS: usize = 5;

/// What is needed to look at one instance.
pub(super) struct Probe<'a> {
    pub(super) start: &'a StartMessage,
    pub(super) address: SocketAddr,
    /// The instance's directory.
    pub(super) dir: PathBuf,
    /// Tells the app's developer.
    pub(super) tell: &'a (dyn Fn(&str) + Sync),
}

impl Probe<'_> {
    /// Returns when the instance is healthy, at once where there is nothing to check.
    pub(super) async fn until_healthy(&self, check: HealthCheck, state_file: Option<PathBuf>) {
        match (check, state_file) {
            (HealthCheck::Nothing, _) | (HealthCheck::StateFile, None) => {}
            (HealthCheck::Port, _) => self.until_connected().await,
            (HealthCheck::StateFile, Some(file)) => self.until_running(file).await,
            (HealthCheck::Http(path), _) => self.until_answered(&path).await,
        }
    }

    async fn until_connected(&self) {
        let mut pauses = pauses();
        while !matches!(timeout(CONNECT_LIMIT, TcpStream::connect(self.address)).await, Ok(Ok(_))) {
            pauses.wait().await;
        }
    }

    async fn until_running(&self, file: PathBuf) {
        loop {
            let (dir, file) = (self.dir.clone(), file.clone());
            if blocking::run(move || says_running(&dir, &file)).await {
                return;
            }
            sleep(LAST_PAUSE).await;
        }
    }

    async fn until_answered(&self, path: &str) {
        let host = self.start.uris.first().map_or("localhost", |uri| uri.split('/').next().unwrap_or(uri));
        let (mut pauses, mut told, mut complaints) = (pauses(), String::new(), 0);
        loop {
            let answer = timeout(ANSWER_LIMIT, get(self.address, host, path)).await;
            let outcome = match answer {
                Ok(Ok(StatusCode::OK)) => return,
                Ok(Ok(status)) => format!("answered {}", status.as_u16()),
                Ok(Err(error)) => format!("failed: {error}"),
                Err(_) => format!("got no answer within {ANSWER_LIMIT:?}"),
            };
            if outcome != told && complaints < COMPLAINTS {
                let text = format!("Instance (index {}): health check GET {path} {outcome}", self.start.index);
                (self.tell)(&text);
                (told, complaints) = (outcome, complaints + 1);
            }
            pauses.wait().await;
        }
    }
}

/// Longer and longer ones.
struct Pauses(Duration);

fn pauses() -> Pauses {
    Pauses(FIRST_PAUSE)
}

impl Pauses {
    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(LAST_PAUSE);
    }
}

/// The status that an instance answers to a request of its own connection. Whatever the guest sends, no more than its head is read.
async fn get(address: SocketAddr, host: &str, path: &str) -> Result<StatusCode, String> {
    let stream = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await.map_err(|_| "no connection".to_owned())?;
    let io = TokioIo::new(stream.map_err(|error| error.to_string())?);
    let (mut sender, connection) = http1::Builder::new().max_buf_size(HEAD_BYTES).handshake(io).await.map_err(|error| error.to_string())?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(path).header(HOST, host).header(CONNECTION, "close").header(USER_AGENT, "dewar-health-check");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    sender.send_request(request).await.map(|response| response.status()).map_err(|error| error.to_string())
}

/// Whether the app says in its file that it is RUNNING. Anything else, a file that cannot be read or understood included, is a no.
fn says_running(dir: &Path, file: &Path) -> bool {
    #[derive(Deserialize)]
    struct Told {
        state: String,
    }
    let Ok(file) = open_below(dir, file) else { return false };
    let mut bytes = Vec::new();
    let read = file.take(STATE_BYTES + 1).read_to_end(&mut bytes);
    read.is_ok_and(|length| length as u64 <= STATE_BYTES)
        && serde_json::from_slice::<Told>(&bytes).is_ok_and(|told| told.state == "RUNNING")
}

/// Opens a file that a guest may replace by anything at any moment, with all directories that lead to it: no link is followed, and
/// what is no file is not waited for.
fn open_below(dir: &Path, path: &Path) -> io::Result<File> {
    let (parent, name) = parent_below(dir, path)?;
    let file = File::from(openat(&parent, name, FLAGS, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The directory that a file is in, and its name there.
fn parent_below<'a>(dir: &Path, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
    let mut at = openat(CWD, dir, FLAGS | OFlags::DIRECTORY, Mode::empty())?;
    let mut names = path.components().filter(|part| *part != Component::CurDir).peekable();
    while let Some(Component::Normal(name)) = names.next() {
        if names.peek().is_none() {
            return Ok((at, name));
        }
        at = openat(&at, name, FLAGS | OFlags::DIRECTORY, Mode::empty())?;
    }
    Err(io::ErrorKind::InvalidFilename.into())
}

/// Removes an app's file, in which it may have said in an earlier process that it is RUNNING. What would not be opened stays.
pub(super) fn forget_state(dir: &Path, file: &Path) {
    let removed = parent_below(dir, file).and_then(|(parent, name)| Ok(unlinkat(&parent, name, AtFlags::empty())?));
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => warn!(path = %dir.join(file).display(), %error, "state file not removed"),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
