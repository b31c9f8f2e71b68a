//! Bodies: what comes in is read on demand, what goes out may be streamed.

use std::fmt;
use std::io::{self, Read, Write};

use wasip2::http::types::{IncomingBody as Raw, IncomingRequest};
use wasip2::io::streams::InputStream;

/// The body of a request. Nothing of it is read until the app asks, so it can be larger than the instance's memory.
pub struct IncomingBody(Source);

enum Source {
    /// Most apps never look: what it takes to read costs calls of the host.
    Untouched(IncomingRequest),
    // Dropped in this order: the host traps when a body goes before its stream, or a stream before its request.
    Open {
        stream: Option<InputStream>,
        _raw: Option<Raw>,
        _request: IncomingRequest,
    },
    /// Only while one becomes the other.
    Opening,
}

impl IncomingBody {
    pub(crate) fn of(request: IncomingRequest) -> IncomingBody {
        IncomingBody(Source::Untouched(request))
    }

    fn stream(&mut self) -> Option<&mut InputStream> {
        self.0 = match std::mem::replace(&mut self.0, Source::Opening) {
            Source::Untouched(request) => {
                // Only the first call for a request can fail to find a body or a stream, and this is it.
                let raw = request.consume().ok();
                let stream = raw.as_ref().and_then(|raw| raw.stream().ok());
                Source::Open { stream, _raw: raw, _request: request }
            }
            open => open,
        };
        match &mut self.0 {
            Source::Open { stream, .. } => stream.as_mut(),
            Source::Untouched(_) | Source::Opening => None,
        }
    }

    /// All of the body.
    ///
    /// # Errors
    /// When it is larger than `limit` bytes, or the client went away in the middle.
    pub fn bytes(mut self, limit: usize) -> Result<Vec<u8>, BodyError> {
        let mut bytes = Vec::new();
        let reader = Read::take(&mut self, limit as u64 + 1);
        let read = { reader }.read_to_end(&mut bytes).map_err(BodyError::Read)?;
        if read > limit { Err(BodyError::TooLarge { limit }) } else { Ok(bytes) }
    }
}

impl Read for IncomingBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.stream().map_or(Ok(0), |stream| stream.read(buffer))
    }
}

impl fmt::Debug for IncomingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IncomingBody")
    }
}

/// Why a request's body could not be had.
#[derive(Debug)]
pub enum BodyError {
    TooLarge { limit: usize },
    Read(io::Error),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::TooLarge { limit } => write!(f, "request body larger than {limit} bytes"),
            BodyError::Read(_) => f.write_str("request body cut short"),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BodyError::TooLarge { .. } => None,
            BodyError::Read(cause) => Some(cause),
        }
    }
}

type Writer = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()>>;

/// The body of a response: bytes, or a function that writes them once the head is on its way.
#[derive(Default)]
pub struct Body(Content);

#[derive(Default)]
enum Content {
    #[default]
    Empty,
    Bytes(Vec<u8>),
    Stream(Writer),
}

impl Body {
    /// No bytes at all.
    pub fn empty() -> Body {
        Body(Content::Empty)
    }

    /// Calls `write` when the head has been sent. Each write waits until the client has taken it, so memory stays bounded.
    /// An error cuts the response off, so that the client can tell that it isn't whole.
    pub fn stream(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'static) -> Body {
        Body(Content::Stream(Box::new(write)))
    }

    /// How many bytes there will be, where that is known before they are written.
    pub fn len(&self) -> Option<u64> {
        match &self.0 {
            Content::Empty => Some(0),
            Content::Bytes(bytes) => Some(bytes.len() as u64),
            Content::Stream(_) => None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Writes what a client would get.
    ///
    /// # Errors
    /// When `output` takes no more, or the function of a stream says so.
    pub fn write_to(self, output: &mut dyn Write) -> io::Result<()> {
        match self.0 {
            Content::Empty => Ok(()),
            Content::Bytes(bytes) => output.write_all(&bytes),
            Content::Stream(write) => write(output),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len() {
            Some(length) => write!(f, "Body({length} bytes)"),
            None => f.write_str("Body(stream)"),
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body(Content::Bytes(bytes))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Body {
        text.into_bytes().into()
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Body {
        text.to_owned().into()
    }
}

impl From<&[u8]> for Body {
    fn from(bytes: &[u8]) -> Body {
        bytes.to_owned().into()
    }
}
