//! An upload as a stager sends it: one file in a multipart form.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dewar_protocol::DropletSha1;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use multer::{Constraints, Multipart, SizeLimit};
use sha1::{Digest, Sha1};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// An upload that stays silent this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// What a form may add to its file: boundaries, part headers.
const FORM_OVERHEAD_MAX: u64 = 64 << 10;

/// Where uploads under one name go.
#[derive(Debug)]
pub(crate) struct Intake {
    dir: PathBuf,
    bytes_max: u64,
    received: Mutex<Option<Received>>,
}

/// A complete upload, in a temporary file that goes when this value does.
#[derive(Debug)]
pub(crate) struct Received {
    file: NamedTempFile,
    /// Digest of its content.
    pub sha1: DropletSha1,
    /// Its size.
    pub bytes: u64,
}

impl Received {
    /// Moves it to where it is kept.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn keep(self, path: &Path) -> io::Result<()> {
        self.file.persist(path).map(drop).map_err(|error| error.error)
    }
}

/// Why an upload was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error("not a multipart form with a file")]
    NotAForm,
    #[error("the form is malformed or was cut off: {0}")]
    Malformed(multer::Error),
    #[error("the file is larger than {0} bytes")]
    TooLarge(u64),
    #[error("nothing came for {SILENCE_MAX:?}")]
    Silent,
    #[error("cannot write the file: {0}")]
    Write(#[from] io::Error),
}

impl UploadError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NotAForm | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Silent => StatusCode::REQUEST_TIMEOUT,
            Self::Write(_) => StatusCode::INSUFFICIENT_STORAGE,
        }
    }
}

impl Intake {
    pub(super) fn new(dir: PathBuf, bytes_max: u64) -> Self {
        Self { dir, bytes_max, received: Mutex::new(None) }
    }

    /// The last complete upload, once.
    #[must_use]
    pub(crate) fn take(&self) -> Option<Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) async fn receive(&self, request: Request<Incoming>) -> Result<(), UploadError> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let boundary = content_type.and_then(|value| multer::parse_boundary(value).ok()).ok_or(UploadError::NotAForm)?;
        let limit = SizeLimit::new().per_field(self.bytes_max).whole_stream(self.bytes_max.saturating_add(FORM_OVERHEAD_MAX));
        let form = request.into_body().into_data_stream();
        let mut form = Multipart::with_constraints(form, boundary, Constraints::new().size_limit(limit));
        let mut field = self.patiently(form.next_field()).await?.ok_or(UploadError::NotAForm)?;

        let file = NamedTempFile::new_in(&self.dir)?;
        let mut writer = tokio::fs::File::from_std(file.as_file().try_clone()?);
        let (mut digest, mut bytes) = (Sha1::new(), 0);
        while let Some(piece) = self.patiently(field.chunk()).await? {
            digest.update(&piece);
            bytes += piece.len() as u64;
            writer.write_all(&piece).await?;
        }
        drop(field);
        // A cut connection shows only here, where the closing boundary is missing.
        while self.patiently(form.next_field()).await?.is_some() {}
        writer.flush().await?;
        writer.sync_all().await?;

        let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let sha1 = DropletSha1::parse(&hex).expect("a SHA-1 is 40 lower-case hex digits");
        *self.received.lock().unwrap_or_else(PoisonError::into_inner) = Some(Received { file, sha1, bytes });
        Ok(())
    }

    async fn patiently<T>(&self, step: impl Future<Output = Result<T, multer::Error>>) -> Result<T, UploadError> {
        let step = timeout(SILENCE_MAX, step).await.map_err(|_| UploadError::Silent)?;
        step.map_err(|error| match error {
            multer::Error::FieldSizeExceeded { .. } | multer::Error::StreamSizeExceeded { .. } => UploadError::TooLarge(self.bytes_max),
            other => UploadError::Malformed(other),
        })
    }
}
