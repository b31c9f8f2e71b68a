//! Handing a file to a Cloud Controller: a multipart POST, then a look at the job it made of it once a second until that has ended.
//!
//! The texts of failures are the original's. What a URL hides stays hidden: no text has one in it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::Secret;
use futures::StreamExt as _;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Response, Url};
use serde_json::Value;
use tokio::fs::File;
use tokio::sync::Notify;
use tokio_util::io::ReaderStream;
use tracing::debug;

use crate::transfer::{Transfers, parse_http, reason, without_secrets};

/// Bytes that are read from the file at a time.
const CHUNK: usize = 64 << 10;

/// Bytes of an answer that are read; the rest is cut off, which leaves no JSON.
const MAX_ANSWER: usize = 64 << 10;

/// Why an upload failed, as the reply says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Error uploading: ({0})")]
pub(crate) struct UploadError(String);

/// Sends a file as `upload[droplet]` with this name and sees the job through that the answer may name.
///
/// # Errors
/// See [`UploadError`].
pub(crate) async fn upload(transfers: &Transfers, uri: &Secret<String>, path: &Path, name: &'static str) -> Result<(), UploadError> {
    debug!(uri = without_secrets(uri.expose()), name, "uploading");
    let refused = |status: u16, reason: Option<String>| {
        let reason = reason.map(|reason| format!("; error: {reason}")).unwrap_or_default();
        UploadError(format!("Upload failed - status {status}{reason}"))
    };
    let mut url = parse_http(uri.expose()).ok_or_else(|| refused(0, Some("not an http or https URL".to_owned())))?;
    if !url.query_pairs().any(|(key, _)| key == "async") {
        url.query_pairs_mut().append_pair("async", "true");
    }
    let progress = Arc::new(Notify::new());
    let form = form(path, name, Arc::clone(&progress)).await.map_err(|error| refused(0, Some(error.to_string())))?;
    let exchange = async {
        let response =
            transfers.upload_client().post(url).multipart(form).send().await.map_err(|error| refused(0, Some(reason(&error))))?;
        let status = response.status().as_u16();
        if status >= 300 {
            return Err(refused(status, None));
        }
        text(response).await.map_err(|error| refused(status, Some(reason(&error))))
    };
    let answer = tokio::select! {
        answer = exchange => answer?,
        () = idle(&progress, transfers.config().inactivity_timeout) => return Err(refused(0, Some("timed out".to_owned()))),
    };
    match job(&answer)? {
        Some(job) => follow(transfers, &job).await,
        None => Ok(()),
    }
}

async fn form(path: &Path, name: &'static str, progress: Arc<Notify>) -> io::Result<Form> {
    let file = File::open(path).await?;
    let length = file.metadata().await?.len();
    let chunks = ReaderStream::with_capacity(file, CHUNK).inspect(move |_| progress.notify_one());
    let part = Part::stream_with_length(Body::wrap_stream(chunks), length).file_name(name);
    let part = part.mime_str("application/octet-stream").map_err(io::Error::other)?;
    // Encoded, the brackets of the name would be something else to a Cloud Controller.
    Ok(Form::new().percent_encode_noop().part("upload[droplet]", part))
}

/// Returns when there has been no progress for this long.
async fn idle(progress: &Notify, limit: Duration) {
    while tokio::time::timeout(limit, progress.notified()).await.is_ok() {}
}

/// The job that an answer to an upload names; `None` when the upload is done with.
fn job(answer: &str) -> Result<Option<Url>, UploadError> {
    if !answer.contains("url") {
        return Ok(None);
    }
    let answer: Value = serde_json::from_str(answer).map_err(|_| UploadError("invalid json".to_owned()))?;
    let invalid = |details: &str| UploadError(format!("invalid URL {details}"));
    let url = answer.pointer("/metadata/url").and_then(Value::as_str).ok_or_else(|| invalid("metadata.url is not there"))?;
    let parsed = Url::parse(url).map_err(|error| invalid(&error.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(invalid("it is neither http nor https"));
    }
    Ok(Some(parsed))
}

enum JobState {
    Finished,
    Unfinished,
}

async fn follow(transfers: &Transfers, job: &Url) -> Result<(), UploadError> {
    for poll in 0..transfers.config().polls {
        if poll > 0 {
            tokio::time::sleep(transfers.config().poll_interval).await;
        }
        if let JobState::Finished = look(transfers, job).await? {
            return Ok(());
        }
    }
    Err(UploadError("Job took too long".to_owned()))
}

async fn look(transfers: &Transfers, job: &Url) -> Result<JobState, UploadError> {
    let failed = |status: u16| UploadError(format!("Polling failed - status {status}"));
    let request = transfers.upload_client().get(job.clone()).timeout(transfers.config().inactivity_timeout);
    let broken = |error: &reqwest::Error| UploadError(format!("Polling failed - status 0; error: {}", reason(error)));
    let response = match request.send().await {
        Ok(response) => response,
        // A Cloud Controller that is too busy to accept has not failed.
        Err(error) if error.is_connect() && error.is_timeout() => return Ok(JobState::Unfinished),
        Err(error) => return Err(broken(&error)),
    };
    let status = response.status().as_u16();
    if status >= 300 {
        return Err(failed(status));
    }
    let answer = text(response).await.map_err(|error| broken(&error))?;
    let answer: Value = serde_json::from_str(&answer).map_err(|_| UploadError("polling invalid json".to_owned()))?;
    match answer.pointer("/entity/status").and_then(Value::as_str) {
        Some("finished") => Ok(JobState::Finished),
        Some("failed") => Err(UploadError("Staging upload failed.".to_owned())),
        _ => Ok(JobState::Unfinished),
    }
}

/// The start of an answer's body.
async fn text(mut response: Response) -> Result<String, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = MAX_ANSWER - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_ANSWER {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

#[cfg(test)]
mod tests;
