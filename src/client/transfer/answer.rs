//! One request, one answer.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::TryStreamExt;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio_util::io::ReaderStream;

use super::{Resource, Shared, since_epoch};
use crate::signature::Access;

type Body = BoxBody<Bytes, io::Error>;

pub(super) async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let access = match *request.method() {
        Method::GET => Access::Read,
        Method::POST | Method::PUT => Access::Write,
        _ => return method_not_allowed(),
    };
    let uri = request.uri();
    let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default());
    if let Err(denied) = shared.signer.verify(access, &path, query, since_epoch()) {
        tracing::warn!(path, reason = %denied, "transfer request refused");
        return text(StatusCode::FORBIDDEN, "refused\n");
    }
    match shared.get(&path) {
        Some(resource) if resource.is_used_up() => text(StatusCode::GONE, "this has been fetched already\n"),
        Some(Resource::File { path: file, sent, .. }) if access == Access::Read => send(&file, sent).await,
        Some(Resource::Intake(intake)) if access == Access::Write => match intake.receive(request).await {
            // Without the word `url` in it, which would tell the stager to poll a job.
            Ok(()) => json(StatusCode::CREATED, "{\"received\":true}"),
            Err(error) => {
                tracing::warn!(path, reason = %error, "upload failed");
                text(error.status(), &format!("{error}\n"))
            }
        },
        Some(_) | None => text(StatusCode::NOT_FOUND, "not here\n"),
    }
}

async fn send(path: &Path, sent: Arc<AtomicBool>) -> Response<Body> {
    let opened = match tokio::fs::File::open(path).await {
        Ok(file) => file.metadata().await.map(|metadata| (file, metadata.len())),
        Err(error) => Err(error),
    };
    let (file, length) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(path = %path.display(), error = %error, "cannot read what was offered");
            return text(StatusCode::INTERNAL_SERVER_ERROR, "cannot read it any more\n");
        }
    };
    let mut left = length;
    let frames = ReaderStream::new(file).map_ok(move |piece| {
        left = left.saturating_sub(piece.len() as u64);
        if left == 0 {
            sent.store(true, Ordering::Release);
        }
        Frame::data(piece)
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

fn method_not_allowed() -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET, POST and PUT\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, PUT"));
    response
}

fn text(status: StatusCode, message: &str) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", message)
}

fn json(status: StatusCode, message: &str) -> Response<Body> {
    full(status, "application/json", message)
}

fn full(status: StatusCode, content_type: &'static str, message: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(message.as_bytes())).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
