//! Answers a request from the files of the site.

use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use dewar_guest::types::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use dewar_guest::{Body, IntoResponse, Response};
use site_index::{Index, media_type};

use crate::byte_range::{self, Part};
use crate::conditions::{self, Validators, Verdict};
use crate::request_path::{RequestPath, Unserved};
use crate::settings::{Folders, Missing, Settings};
use crate::{encoding, listing};

const INDEX_PAGE: &str = "index.html";
const NOT_FOUND_PAGE: &str = "404.html";

/// How much of a file is in memory at a time.
const CHUNK: usize = 64 * 1024;

/// What a path turned out to be.
enum Found {
    File(String, Metadata),
    /// Without an index page.
    Folder(String),
    /// A folder named without its slash.
    NeedsSlash,
    Nothing,
}

/// # Errors
/// When a file that is there cannot be read.
pub(crate) fn answer(settings: &Settings, method: &Method, uri: &Uri, headers: &HeaderMap) -> io::Result<Response> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = StatusCode::METHOD_NOT_ALLOWED.into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    let path = match RequestPath::parse(uri.path()) {
        Ok(path) => path,
        Err(Unserved::Malformed) => return Ok(StatusCode::BAD_REQUEST.into_response()),
        Err(Unserved::Hidden) => return not_found(settings),
    };
    match find(&settings.root, &path)? {
        Found::File(file, metadata) => Site::open(settings)?.file(&file, &metadata, headers),
        Found::NeedsSlash => Ok(redirect_to_folder(uri)),
        Found::Folder(folder) if settings.folders == Folders::Listed => listed(&settings.root, &folder),
        Found::Folder(_) | Found::Nothing => match (settings.missing, regular(&settings.root.join(INDEX_PAGE))?) {
            (Missing::Fallback, Some(metadata)) => Site::open(settings)?.file(INDEX_PAGE, &metadata, headers),
            _ => not_found(settings),
        },
    }
}

fn find(root: &Path, path: &RequestPath) -> io::Result<Found> {
    let relative = path.relative();
    let full = if relative.is_empty() { root.to_owned() } else { root.join(&relative) };
    let Some(metadata) = metadata(&full)? else { return Ok(Found::Nothing) };
    if metadata.is_dir() {
        if !path.names_folder {
            return Ok(Found::NeedsSlash);
        }
        let page = if relative.is_empty() { INDEX_PAGE.to_owned() } else { format!("{relative}/{INDEX_PAGE}") };
        return Ok(regular(&root.join(&page))?.map_or(Found::Folder(relative), |metadata| Found::File(page, metadata)));
    }
    Ok(if metadata.is_file() && !path.names_folder { Found::File(relative, metadata) } else { Found::Nothing })
}

/// Of the thing itself: a link, which the buildpack leaves out of a droplet, is not followed.
fn metadata(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn regular(path: &Path) -> io::Result<Option<Metadata>> {
    Ok(metadata(path)?.filter(Metadata::is_file))
}

/// To the same path with a slash at its end. A path that begins with two slashes would lead to another host.
fn redirect_to_folder(uri: &Uri) -> Response {
    let path = uri.path().trim_start_matches('/');
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = StatusCode::MOVED_PERMANENTLY.into_response();
    match HeaderValue::try_from(format!("/{path}/{query}")) {
        Ok(location) => {
            response.headers_mut().insert(header::LOCATION, location);
            response
        }
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

fn listed(root: &Path, folder: &str) -> io::Result<Response> {
    let mut response = Response::new(listing::page(&root.join(folder), folder)?.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    Ok(response)
}

fn not_found(settings: &Settings) -> io::Result<Response> {
    let path = settings.root.join(NOT_FOUND_PAGE);
    let Some(metadata) = regular(&path)? else { return Ok(StatusCode::NOT_FOUND.into_response()) };
    let mut response = send(&path, 0, metadata.len())?;
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    Ok(response)
}

struct Site {
    root: PathBuf,
    index: Index,
}

impl Site {
    fn open(settings: &Settings) -> io::Result<Site> {
        Ok(Site { root: settings.root.clone(), index: Index::read(settings.index.as_deref())? })
    }

    fn file(&self, relative: &str, metadata: &Metadata, headers: &HeaderMap) -> io::Result<Response> {
        let compressed = format!("{relative}.gz");
        let sibling = regular(&self.root.join(&compressed))?;
        let has_sibling = sibling.is_some();
        let (sent, metadata, is_gzip) = match &sibling {
            Some(sibling) if wants_gzip(headers) => (compressed.as_str(), sibling, true),
            _ => (relative, metadata, false),
        };

        let length = metadata.len();
        let validators = Validators::new(self.index.tag(sent, length), metadata.modified().ok());
        let path = self.root.join(sent);
        let mut response = match conditions::judge(headers, &validators) {
            Verdict::NotModified => bare(StatusCode::NOT_MODIFIED),
            Verdict::PreconditionFailed => return Ok(StatusCode::PRECONDITION_FAILED.into_response()),
            Verdict::Proceed => content(&path, length, headers, &validators)?,
        };
        describe(response.headers_mut(), &validators);
        if has_sibling {
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        if matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            let media_type = HeaderValue::try_from(media_type::of(relative)).map_err(io::Error::other)?;
            response.headers_mut().insert(header::CONTENT_TYPE, media_type);
            if is_gzip {
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        Ok(response)
    }
}

/// A range is one of the file itself: clients that ask for ranges rarely mean those of a compressed form.
fn wants_gzip(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::RANGE)
        && headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).is_some_and(encoding::accepts_gzip)
}

fn content(path: &Path, length: u64, headers: &HeaderMap, validators: &Validators) -> io::Result<Response> {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).filter(|_| conditions::range_applies(headers, validators));
    match range.map_or(Part::Whole, |range| byte_range::part_of(range, length)) {
        Part::Whole => send(path, 0, length),
        Part::Bytes { first, last } => {
            let mut response = send(path, first, last - first + 1)?;
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            content_range(response.headers_mut(), &format!("bytes {first}-{last}/{length}"))?;
            Ok(response)
        }
        Part::Unsatisfiable => {
            let mut response = bare(StatusCode::RANGE_NOT_SATISFIABLE);
            content_range(response.headers_mut(), &format!("bytes */{length}"))?;
            Ok(response)
        }
    }
}

fn content_range(headers: &mut HeaderMap, value: &str) -> io::Result<()> {
    headers.insert(header::CONTENT_RANGE, HeaderValue::try_from(value).map_err(io::Error::other)?);
    Ok(())
}

fn bare(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

fn describe(headers: &mut HeaderMap, validators: &Validators) {
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(tag) = validators.tag.as_deref().and_then(|tag| HeaderValue::from_str(tag).ok()) {
        headers.insert(header::ETAG, tag);
    }
    if let Some(date) = validators.modified.and_then(|time| HeaderValue::try_from(httpdate::fmt_http_date(time)).ok()) {
        headers.insert(header::LAST_MODIFIED, date);
    }
}

/// So many bytes of a file from an offset, read as the client takes them.
fn send(path: &Path, offset: u64, length: u64) -> io::Result<Response> {
    let mut file = File::open(path)?;
    if offset > 0 {
        file.seek(SeekFrom::Start(offset))?;
    }
    let body = if length == 0 {
        Body::empty()
    } else {
        Body::stream(move |output| match io::copy(&mut BufReader::with_capacity(CHUNK, file.take(length)), output)? {
            sent if sent == length => Ok(()),
            sent => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ended after {sent} of {length} bytes"))),
        })
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

#[cfg(test)]
mod tests;
