//! The file server of before 2013-12, for Cloud Controllers that know no other: `/instances/<instance id>/<path>` behind basic
//! authentication, with the credentials that answers to `dea.find.droplet` carry.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dewar_protocol::{FilesOf, InstanceId, Secret};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use subtle::ConstantTimeEq as _;

use super::content;
use super::listing::{Style, listing};
use super::open::{Links, OpenError, Opened, Root};
use super::places::Places;
use super::refusal::{Refusal, rack_text};
use super::server::{self, Body, full};
use super::shares::Shares;
use crate::blocking;

/// Where its URLs begin.
pub(super) const BASE: &str = "/instances";

/// What the server needs.
#[derive(Debug)]
pub(super) struct OldServer {
    credentials: Secret<(String, String)>,
    places: Places,
    responses: Arc<Shares>,
}

/// Why nothing is shown.
enum Denied {
    NotFound,
    NotAccessible,
    TooManyResponses,
}

impl OldServer {
    pub(super) fn new(credentials: Secret<(String, String)>, places: Places, responses: Arc<Shares>) -> Self {
        Self { credentials, places, responses }
    }

    pub(super) async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.authorizes(request.headers()) {
            let mut response = full(StatusCode::UNAUTHORIZED, "Not authorized\n");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"dewar\""));
            return response;
        }
        self.show(request).await.unwrap_or_else(|denied| match denied {
            Denied::NotFound => rack_text(StatusCode::NOT_FOUND, "Entity not found.\n"),
            Denied::NotAccessible => rack_text(StatusCode::FORBIDDEN, "Not accessible\n"),
            Denied::TooManyResponses => rack_text(StatusCode::SERVICE_UNAVAILABLE, "Too many files are read\n"),
        })
    }

    fn authorizes(&self, headers: &HeaderMap) -> bool {
        let (user, password) = self.credentials.expose();
        let given = headers.get(AUTHORIZATION).and_then(|header| {
            let (scheme, credentials) = header.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("basic").then(|| BASE64.decode(credentials.trim()).ok())?
        });
        given.is_some_and(|given| given.ct_eq(format!("{user}:{password}").as_bytes()).into())
    }

    async fn show(&self, request: Request<Incoming>) -> Result<Response<Body>, Denied> {
        let (request, _) = request.into_parts();
        let path = percent_decode_str(request.uri.path()).decode_utf8().map_err(|_| Denied::NotFound)?;
        let (id, file) = path.strip_prefix(BASE).and_then(|rest| rest.strip_prefix('/')).map(split_first).ok_or(Denied::NotFound)?;
        let of = FilesOf::Instance(InstanceId::from(id));
        let share = self.responses.take(&of).ok_or(Denied::TooManyResponses)?;
        let root = self.places.root(&of).await.map_err(|refusal| match refusal {
            Refusal::NotAccessible => Denied::NotAccessible,
            _ => Denied::NotFound,
        })?;
        let (file, style) = (file.trim_matches('/').to_owned(), if file.trim_matches('/').is_empty() { Style::V1Root } else { Style::V1 });
        let shown = blocking::run(move || match open(&root, &file)? {
            Opened::Directory(directory) => Ok(Err(listing(&directory, style).map_err(|_| Denied::NotFound)?)),
            Opened::File(opened) => Ok(Ok(opened)),
        });
        let mut response = match shown.await? {
            Ok(opened) => content::respond(&request, opened).await.map_err(|_| Denied::NotFound)?,
            Err(text) => {
                let mut response = full(StatusCode::OK, text);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                response
            }
        };
        server::keep(&mut response, share);
        Ok(response)
    }
}

/// Opens a path. Links are followed as long as they stay within the directory of the root that the path begins with.
fn open(root: &Root, file: &str) -> Result<Opened, Denied> {
    // The scripts by which the original started and stopped instances, with the environment in them.
    let script = matches!(file.rsplit('/').next(), Some("startup" | "stop"));
    if script || file.contains("..") {
        return Err(Denied::NotAccessible);
    }
    let (first, rest) = split_first(file);
    let opened =
        if rest.is_empty() { root.open_with(first, Links::Refused) } else { root.entry(first).and_then(|entry| entry.open_path(rest)) };
    opened.map_err(|error| match error {
        OpenError::NotAccessible => Denied::NotAccessible,
        OpenError::NotFound | OpenError::Failed(_) => Denied::NotFound,
    })
}

fn split_first(path: &str) -> (&str, &str) {
    path.split_once('/').unwrap_or((path, ""))
}
