//! The file server: shows what signed URLs are about.
//!
//! The original had two, one of which only asked the other whether it might; here they are one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dewar_protocol::{FileUrls, FilesOf};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;

use super::content::{self, content_type};
use super::listing::{Style, listing};
use super::open::{OpenFile, Opened};
use super::places::Places;
use super::refusal::Refusal;
use super::server::{self, Body, empty, full};
use super::shares::Shares;
use super::tail::{self, From};
use crate::blocking;

/// Files that are followed at a time; one more is refused.
const TAILS: usize = 64;
/// As [`TAILS`], of one instance or staging task.
const TAILS_EACH: usize = 8;

/// Tells a client of ours whether it got a file or a listing, which look alike.
const KIND: HeaderName = HeaderName::from_static("x-dewar-kind");

/// What the server needs.
#[derive(Debug)]
pub(super) struct FileServer {
    urls: FileUrls,
    places: Places,
    responses: Arc<Shares>,
    /// How long a followed file may be silent.
    idle: Duration,
    tails: Arc<Semaphore>,
    tails_each: Shares,
}

impl FileServer {
    pub(super) fn new(urls: FileUrls, places: Places, responses: Arc<Shares>, idle: Duration) -> Self {
        let (tails, tails_each) = (Arc::new(Semaphore::new(TAILS)), Shares::new(TAILS_EACH));
        Self { urls, places, responses, idle, tails, tails_each }
    }

    /// Whatever the method is, it is taken for `GET` or `HEAD`, as the original did.
    pub(super) async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let (request, _) = request.into_parts();
        self.show(&request).await.unwrap_or_else(Refusal::into_response)
    }

    async fn show(&self, request: &Parts) -> Result<Response<Body>, Refusal> {
        let of = FilesOf::parse(request.uri.path()).ok_or(Refusal::NoSuchPath)?;
        let query = request.uri.query().unwrap_or_default();
        let file = self.urls.verify(request.uri.path(), query, now())?.unwrap_or_default();
        let share = self.responses.take(&of).ok_or(Refusal::TooManyResponses)?;
        let mut response = self.show_file(request, &of, file).await?;
        server::keep(&mut response, share);
        Ok(response)
    }

    async fn show_file(&self, request: &Parts, of: &FilesOf, file: String) -> Result<Response<Body>, Refusal> {
        let root = self.places.root(of).await?;
        match blocking::run(move || root.open_path(&file)).await? {
            Opened::Directory(directory) => {
                let text = blocking::run(move || listing(&directory, Style::V2)).await.map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => Refusal::Vanished,
                    _ => Refusal::Failed(error.to_string()),
                })?;
                let mut response = full(StatusCode::OK, text);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                response.headers_mut().insert(KIND, HeaderValue::from_static("directory"));
                Ok(response)
            }
            Opened::File(opened) => {
                let mut response =
                    match tail::wanted(request.uri.query().unwrap_or_default()).map_err(|why| Refusal::Failed(why.to_owned()))? {
                        Some(from) => self.follow(request, of, opened, from).await?,
                        None => content::respond(request, opened).await.map_err(|error| Refusal::Failed(error.to_string()))?,
                    };
                response.headers_mut().insert(KIND, HeaderValue::from_static("file"));
                Ok(response)
            }
        }
    }

    async fn follow(&self, request: &Parts, of: &FilesOf, opened: OpenFile, from: From) -> Result<Response<Body>, Refusal> {
        let failed = |error: io::Error| Refusal::Failed(error.to_string());
        let share = self.tails_each.take(of).ok_or(Refusal::TooManyTails)?;
        let permit = Arc::clone(&self.tails).try_acquire_owned().map_err(|_| Refusal::TooManyTails)?;
        let probe = Arc::new(opened.file.try_clone().map_err(failed)?);
        let kind = content_type(&opened.name, &probe).await.map_err(failed)?;
        let mut response = empty(StatusCode::OK);
        if let Ok(kind) = HeaderValue::from_str(&kind) {
            response.headers_mut().insert(CONTENT_TYPE, kind);
        }
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if request.method != Method::HEAD {
            let growing = tail::follow(opened.file, from, self.idle, [share, permit]).map_err(failed)?;
            *response.body_mut() = StreamBody::new(growing).boxed_unsync();
        }
        Ok(response)
    }
}

/// Seconds since the epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
