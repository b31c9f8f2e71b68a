//! Files of instances, by the signed URLs that agents give out.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use dewar_protocol::{AppId, FindDroplet, FoundInstance, InstanceId, InstanceState};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode, Url, redirect};
use serde::Serialize;
use tokio::time::Instant;

use crate::app_name::AppName;
use crate::client::{Client, Target};
use crate::error::ClientError;

/// For a connection to the file server to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the next bytes. Followed files are silent for longer; then they are asked for again.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Before a file that was moved, or broken off, is asked for again.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a followed file may be away: moved with no other in its place yet, or its instance is about to be another.
const ABSENCE: Duration = Duration::from_secs(5);
/// Bytes of a refusal that are read.
const REFUSAL_BYTES: usize = 4096;

/// Which file, and how to get at it.
#[derive(Debug, Clone)]
pub struct FileChoice {
    /// Of which instance; `None`: the first that has files to show.
    pub instance: Option<u32>,
    /// Below the instance's directory; empty is the directory itself.
    pub path: String,
    /// Only so many bytes at the end.
    pub last: Option<u64>,
    /// Where the router is that leads to file servers; `None`: where the URL says.
    pub router: Option<SocketAddr>,
}

/// A file or a directory, about to be read.
#[derive(Debug)]
pub struct OpenFile {
    /// Of which instance.
    pub instance: u32,
    /// Whether it is a directory, as far as its server tells; then what is read is a listing.
    pub is_directory: bool,
    instance_id: InstanceId,
    /// The byte after the last that will be read.
    end: u64,
    response: Response,
    refusals: Refusals,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: String,
    /// Whether it is a directory itself.
    pub directory: bool,
    /// As `182B` or `9.8K`; null for a directory.
    pub size: Option<String>,
}

/// A file that is read on as it grows.
#[derive(Debug)]
pub struct FileFollower {
    client: Client,
    target: Target,
    choice: FileChoice,
    /// Whose file was read last.
    instance_id: InstanceId,
    /// The next byte of that file.
    offset: u64,
    response: Option<Response>,
    /// Since when there is no such file.
    absent: Option<Instant>,
}

/// What is said of a file that cannot be had.
#[derive(Debug, Clone)]
struct Refusals {
    app: AppName,
    path: String,
    server: String,
}

/// A file under its URL.
struct Found {
    instance: u32,
    instance_id: InstanceId,
    url: Url,
    http: reqwest::Client,
    refusals: Refusals,
}

impl Client {
    /// Opens a file or directory of an app.
    ///
    /// # Errors
    /// When there is no such instance or file, or its server cannot be reached.
    pub async fn open_file(&self, target: &Target, choice: &FileChoice) -> Result<OpenFile, ClientError> {
        let found = self.locate_file(target, choice).await?;
        let mut request = found.http.get(found.url.clone());
        if let Some(last) = choice.last.filter(|last| *last > 0) {
            request = request.header(RANGE, format!("bytes=-{last}"));
        }
        let response = found.refusals.check(request.send().await).await?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let end = header(CONTENT_RANGE.as_str()).and_then(|range| range.rsplit('/').next()?.parse().ok());
        let end = end.or_else(|| header(CONTENT_LENGTH.as_str())?.parse().ok()).unwrap_or(0);
        let is_directory = header("x-dewar-kind") == Some("directory");
        let Found { instance, instance_id, .. } = found;
        Ok(OpenFile { instance, is_directory, instance_id, end, response, refusals: found.refusals })
    }

    /// Reads a file that was opened from a byte on, and what is added to it. Where another instance takes the place of the file's,
    /// its file is read from the start.
    #[must_use]
    pub fn follow_file(&self, target: &Target, choice: &FileChoice, opened: &OpenFile, offset: u64) -> FileFollower {
        let choice = FileChoice { instance: Some(opened.instance), ..choice.clone() };
        let instance_id = opened.instance_id.clone();
        FileFollower { client: self.clone(), target: target.clone(), choice, instance_id, offset, response: None, absent: None }
    }

    async fn locate_file(&self, target: &Target, choice: &FileChoice) -> Result<Found, ClientError> {
        let indices = choice.instance.map(|index| vec![index]);
        let instances = self.find_with_file(&target.id, indices, &choice.path).await?;
        let Some(instance) = instances.first() else {
            return Err(ClientError::NoFiles { app: target.name.clone(), instance: choice.instance });
        };
        Found::new(&target.name, instance, choice)
    }

    /// Instances that have files to show, the best first: those that run before those that have crashed, then by index, the newest
    /// of an index first.
    async fn find_with_file(&self, app: &AppId, indices: Option<Vec<u32>>, path: &str) -> Result<Vec<FoundInstance>, ClientError> {
        let states = Some(vec!["RUNNING".to_owned(), "CRASHED".to_owned()]);
        let path = Some(Some(path.to_owned()));
        let mut found = self.find(&FindDroplet { app_id: Some(app.clone()), indices, states, path, ..FindDroplet::default() }).await?;
        found.sort_by_key(|instance| instance.state != InstanceState::Running);
        Ok(found)
    }

    /// The last bytes of a log file of each instance, with the time of its last line; those that cannot be had are left out.
    pub(crate) async fn log_files(&self, target: &Target, path: &str, bytes: u64) -> Result<Vec<Tail>, ClientError> {
        let mut tails = Vec::new();
        for instance in self.find_with_file(&target.id, None, path).await?.into_iter().take(MOST_LOG_FILES) {
            match tail_of(&target.name, &instance, path, bytes).await {
                Ok(tail) => tails.push(tail),
                Err(error) => tracing::debug!(error = %error.one_line(), instance = instance.index, "log file not read"),
            }
        }
        Ok(tails)
    }
}

/// Log files that are looked into for lines of the past.
const MOST_LOG_FILES: usize = 16;

/// The end of a file.
#[derive(Debug)]
pub(crate) struct Tail {
    /// Of which instance.
    pub(crate) index: u32,
    /// Whether that has crashed, so that another may have its index now.
    pub(crate) crashed: bool,
    /// Whole lines.
    pub(crate) lines: Vec<String>,
    /// When it was written last, in seconds since the epoch, as far as its server tells.
    pub(crate) modified: Option<f64>,
}

async fn tail_of(app: &AppName, instance: &FoundInstance, path: &str, wanted: u64) -> Result<Tail, ClientError> {
    let (index, crashed) = (instance.index, instance.state == InstanceState::Crashed);
    let found = Found::new(app, instance, &FileChoice { instance: None, path: path.to_owned(), last: None, router: None })?;
    let request = found.http.get(found.url.clone()).header(RANGE, format!("bytes=-{wanted}"));
    let response = found.refusals.check(request.send().await).await?;
    let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default().to_owned();
    let date = response.headers().get("last-modified").and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let modified = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok()).map(|since| since.as_secs_f64());
    let Found { instance, instance_id, refusals, .. } = found;
    let mut file = OpenFile { instance, is_directory: false, instance_id, end: 0, response, refusals };
    let mut bytes = Vec::new();
    while let Some(more) = file.next().await? {
        bytes.extend_from_slice(&more);
        if bytes.len() as u64 > wanted.saturating_mul(2) {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    // The first of them was cut, unless the file begins there.
    if is_part && !range.starts_with("bytes 0-") && !lines.is_empty() {
        lines.remove(0);
    }
    Ok(Tail { index, crashed, lines, modified })
}

impl OpenFile {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When it breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.response.chunk().await.map_err(|error| self.refusals.unreachable(&error))
    }

    /// How long the file is.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// When it breaks off.
    pub async fn entries(mut self) -> Result<Vec<DirectoryEntry>, ClientError> {
        let mut text = Vec::new();
        while let Some(bytes) = self.next().await? {
            text.extend_from_slice(&bytes);
        }
        Ok(String::from_utf8_lossy(&text).lines().filter_map(entry).collect())
    }
}

/// An entry from its line: the name, blanks, the size in the last word.
fn entry(line: &str) -> Option<DirectoryEntry> {
    let (name, size) = line.rsplit_once(' ')?;
    let name = name.trim_end();
    Some(match name.strip_suffix('/') {
        Some(name) if size == "-" => DirectoryEntry { name: name.to_owned(), directory: true, size: None },
        _ => DirectoryEntry { name: name.to_owned(), directory: false, size: Some(size.to_owned()) },
    })
}

impl FileFollower {
    /// The next bytes; `None` when there is no such file, instance or app any more, and has not been for some seconds. Cancel safe.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses for another reason.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let response = match &mut self.response {
                Some(response) => response,
                None => match self.ask().await {
                    Ok(response) => {
                        self.absent = None;
                        self.response.insert(response)
                    }
                    Err(ClientError::FileRefused { status: 404 | 503, .. } | ClientError::NoFiles { .. })
                        if self.absent.get_or_insert_with(Instant::now).elapsed() < ABSENCE =>
                    {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    Err(ClientError::FileRefused { status: 404, .. } | ClientError::NoFiles { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                },
            };
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    self.offset += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                // Moved or removed; what is there now may be another file.
                Ok(None) => {
                    self.response = None;
                    tokio::time::sleep(PAUSE).await;
                }
                // It was silent for long.
                Err(error) => {
                    tracing::debug!(error = %error, "followed file broken off, asking again");
                    self.response = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<Response, ClientError> {
        let mut found = self.client.locate_file(&self.target, &self.choice).await?;
        if found.instance_id != self.instance_id {
            (self.instance_id, self.offset) = (found.instance_id, 0);
        }
        if self.offset > 0 {
            // A crashed instance's log is moved as it is; one that was full gives way to an empty one.
            let head = found.refusals.check(found.http.request(Method::HEAD, found.url.clone()).send().await).await?;
            let length = head.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            if length.is_some_and(|length| length < self.offset) {
                self.offset = 0;
            }
        }
        let offset = self.offset.to_string();
        found.url.query_pairs_mut().append_key_only("tail").append_pair("tail_offset", &offset);
        found.refusals.check(found.http.get(found.url).send().await).await
    }
}

impl Found {
    fn new(app: &AppName, instance: &FoundInstance, choice: &FileChoice) -> Result<Self, ClientError> {
        let url = instance.file_uri_v2.as_ref().and_then(|url| Url::parse(url.expose()).ok());
        let host = url.as_ref().and_then(Url::host_str).map(str::to_owned);
        let (Some(url), Some(host)) = (url, host) else { return Err(ClientError::NoFileServer(instance.dea.clone())) };
        // An error means that somebody else has chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_proxy();
        if let Some(router) = choice.router {
            builder = builder.resolve(&host, router);
        }
        let refusals = Refusals { app: app.clone(), path: choice.path.clone(), server: host };
        let http = builder.build().map_err(|error| refusals.unreachable(&error))?;
        Ok(Self { instance: instance.index, instance_id: instance.instance_id.clone(), url, http, refusals })
    }
}

impl Refusals {
    async fn check(&self, response: reqwest::Result<Response>) -> Result<Response, ClientError> {
        let mut response = response.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let mut text = Vec::new();
        while let Ok(Some(bytes)) = response.chunk().await
            && text.len() < REFUSAL_BYTES
        {
            text.extend_from_slice(&bytes);
        }
        let text = String::from_utf8_lossy(&text);
        let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let reason = json.as_ref().and_then(|json| json.get("error")?.as_str()).unwrap_or(text.trim()).to_owned();
        // A router that knows no such host says so in its own words.
        let reason = if reason.is_empty() { status.to_string() } else { reason };
        Err(ClientError::FileRefused { app: self.app.clone(), path: self.path.clone(), status: status.as_u16(), reason })
    }

    /// Without the URL, which is a secret.
    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let reason = if error.is_timeout() { "timed out".to_owned() } else { cause.to_string() };
        ClientError::FileServerUnreachable { server: self.server.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_listing_are_entries() {
        let long = "x".repeat(60);
        let listing =
            format!("app/                                         -\nwith blank                                9.8K\n{long}       182B\n");
        let entries: Vec<_> = listing.lines().filter_map(entry).collect();
        let file = |name: &str, size: &str| DirectoryEntry { name: name.to_owned(), directory: false, size: Some(size.to_owned()) };
        let directory = DirectoryEntry { name: "app".to_owned(), directory: true, size: None };
        assert_eq!(entries, [directory, file("with blank", "9.8K"), file(&long, "182B")]);
        assert_eq!(entry(""), None);
    }
}
