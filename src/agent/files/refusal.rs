//! What is said when no file is shown: statuses and texts of the original's helper and file server.

use dewar_protocol::{FileUrlError, FilesOf};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;
use tracing::debug;

use super::open::OpenError;
use super::server::{Body, full};

/// Why no file is shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The path is that of no file URL.
    #[error("Not Found")]
    NoSuchPath,
    #[error(transparent)]
    Url(#[from] FileUrlError),
    #[error("Unknown {0}")]
    Unknown(&'static str),
    #[error("{0} unavailable")]
    Unavailable(&'static str),
    #[error("Entity not found")]
    NoEntity,
    #[error("Not accessible")]
    NotAccessible,
    /// It was there when it was opened.
    #[error("Entity not found.")]
    Vanished,
    #[error("DEA is unreachable")]
    NoAnswer,
    #[error("Too many files are read")]
    TooManyResponses,
    #[error("Too many files are followed")]
    TooManyTails,
    #[error("Can't serve request due to error: {0}")]
    Failed(String),
}

impl Refusal {
    pub(super) fn unknown(of: &FilesOf) -> Self {
        Self::Unknown(match of {
            FilesOf::Instance(_) => "instance",
            FilesOf::StagingTask(_) => "staging task",
        })
    }

    pub(super) fn unavailable(of: &FilesOf) -> Self {
        Self::Unavailable(match of {
            FilesOf::Instance(_) => "Instance",
            FilesOf::StagingTask(_) => "Staging task",
        })
    }

    pub(super) fn into_response(self) -> Response<Body> {
        debug!(refused = %self, "file not shown");
        match &self {
            Self::Url(FileUrlError::BadSignature) => self.json(StatusCode::UNAUTHORIZED),
            Self::Url(FileUrlError::Missing(_) | FileUrlError::Invalid(_) | FileUrlError::Expired) => self.json(StatusCode::BAD_REQUEST),
            Self::NoSuchPath | Self::Unknown(_) | Self::NoEntity => self.json(StatusCode::NOT_FOUND),
            Self::NotAccessible => self.json(StatusCode::FORBIDDEN),
            Self::Unavailable(_) | Self::TooManyResponses | Self::TooManyTails => self.json(StatusCode::SERVICE_UNAVAILABLE),
            Self::Vanished => rack_text(StatusCode::BAD_REQUEST, "Entity not found.\n"),
            Self::NoAnswer | Self::Failed(_) => {
                let mut response = full(StatusCode::INTERNAL_SERVER_ERROR, format!("{self}\n"));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                response
            }
        }
    }

    fn json(&self, status: StatusCode) -> Response<Body> {
        let mut response = full(status, json!({ "error": self.to_string() }).to_string());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NotFound => Self::NoEntity,
            OpenError::NotAccessible => Self::NotAccessible,
            OpenError::Failed(error) => Self::Failed(error.to_string()),
        }
    }
}

/// As the web framework of the original's first server said it, and what came after repeated.
pub(super) fn rack_text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = full(status, text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(HeaderName::from_static("x-cascade"), HeaderValue::from_static("pass"));
    response
}
