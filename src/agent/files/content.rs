//! A regular file as a response: what it is, how old, and the part of it that is wanted.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{Stream, try_unfold};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LAST_MODIFIED, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use super::open::OpenFile;
use super::range::{Part, part, whole_seconds};
use super::server::{Body, empty};
use crate::blocking;

/// Bytes that are read, and sent, at a time.
pub(super) const PIECE: u64 = 64 << 10;

/// Bytes from which the kind of a file without a telling name is guessed.
const SNIFFED: usize = 512;

/// A file, or the part of it that the request wants.
///
/// # Errors
/// When it cannot be read.
pub(super) async fn respond(request: &Parts, opened: OpenFile) -> io::Result<Response<Body>> {
    let OpenFile { file, name, size, modified } = opened;
    let file = Arc::new(file);
    let part = part(&request.headers, size, modified);
    let (status, range) = match part {
        Part::Whole => (StatusCode::OK, Some(0..size)),
        Part::Bytes(ref range) => (StatusCode::PARTIAL_CONTENT, Some(range.clone())),
        Part::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, None),
        Part::NotModified => (StatusCode::NOT_MODIFIED, None),
        Part::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, None),
    };
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(LAST_MODIFIED, header(&httpdate::fmt_http_date(whole_seconds(modified))));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    match part {
        Part::Bytes(range) => drop(headers.insert(CONTENT_RANGE, header(&format!("bytes {}-{}/{size}", range.start, range.end - 1)))),
        Part::Unsatisfiable => drop(headers.insert(CONTENT_RANGE, header(&format!("bytes */{size}")))),
        Part::Whole | Part::NotModified | Part::PreconditionFailed => {}
    }
    if let Some(range) = range {
        headers.insert(CONTENT_TYPE, header(&content_type(&name, &file).await?));
        headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
        if request.method != Method::HEAD {
            *response.body_mut() = StreamBody::new(pieces(file, range)).boxed_unsync();
        }
    }
    Ok(response)
}

/// The kind of a file: by its name, else by how it begins.
///
/// # Errors
/// When it cannot be read.
pub(super) async fn content_type(name: &str, file: &Arc<File>) -> io::Result<String> {
    match mime_guess::from_path(name).first_raw() {
        Some(kind) if kind.starts_with("text/") => Ok(format!("{kind}; charset=utf-8")),
        Some(kind) => Ok(kind.to_owned()),
        None => {
            let beginning = read(Arc::clone(file), 0, SNIFFED as u64).await?;
            Ok(if is_text(&beginning) { "text/plain; charset=utf-8" } else { "application/octet-stream" }.to_owned())
        }
    }
}

/// Whether there is none of the bytes that no text has: controls but for those that move the cursor, and escape.
fn is_text(bytes: &[u8]) -> bool {
    !bytes.iter().any(|byte| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f))
}

/// The bytes of a range, one piece after the other. A file that gets shorter meanwhile breaks the response off.
fn pieces(file: Arc<File>, range: Range<u64>) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
    try_unfold((file, range), async |(file, range)| {
        if range.is_empty() {
            return Ok(None);
        }
        let piece = read(Arc::clone(&file), range.start, PIECE.min(range.end - range.start)).await?;
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let next = range.start + piece.len() as u64;
        Ok(Some((Frame::data(piece), (file, next..range.end))))
    })
}

/// Up to `length` bytes at a place; fewer only where the file ends.
pub(super) async fn read(file: Arc<File>, at: u64, length: u64) -> io::Result<Bytes> {
    blocking::run(move || {
        let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(buffer.into())
    })
    .await
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"))
}
