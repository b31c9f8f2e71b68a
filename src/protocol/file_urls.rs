//! Signed URLs of files: whoever holds one may read this one file or directory of an instance, or a staging task's log, for an hour.
//!
//! ```text
//! <base><path of what has the files>?hmac=<128 hex digits>&path=<file, form-encoded>&timestamp=<epoch seconds>
//! ```
//!
//! What is signed is `<path>?path=<file>&timestamp=<seconds>`. So host and scheme do not matter to a signature, nor the order of
//! parameters, nor further ones such as `tail`.
//!
//! Source: dea_ng `lib/dea/directory_server/directory_server_v2.rb`, `lib/dea/directory_server/hmac_helper.rb`,
//! `lib/dea/utils/uri_verifier.rb`.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha512;

use crate::{InstanceId, Secret, TaskId};

/// How long a URL may be used, in seconds; it is good at this age and no longer good at one more.
pub const FILE_URL_SECONDS: i64 = 3600;

/// The log of a staging task, as it is called in the task's own file system.
pub const STAGING_LOG: &str = "/tmp/staged/logs/staging_task.log";

/// What form encoding leaves as it is; a blank becomes `+`.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// What may stand in a segment of a path as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Who has files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesOf {
    /// An instance.
    Instance(InstanceId),
    /// A staging task.
    StagingTask(TaskId),
}

impl FilesOf {
    /// The path of its URLs.
    #[must_use]
    pub fn url_path(&self) -> String {
        match self {
            Self::Instance(id) => format!("/instance_paths/{}", utf8_percent_encode(id.as_str(), SEGMENT)),
            Self::StagingTask(id) => format!("/staging_tasks/{}/file_path", utf8_percent_encode(id.as_str(), SEGMENT)),
        }
    }

    /// What a path is about; `None` if it is the path of no file URL.
    #[must_use]
    pub fn parse(url_path: &str) -> Option<Self> {
        let id = |segment: &str| {
            let id = percent_decode_str(segment).decode_utf8().ok()?;
            (!segment.is_empty() && !segment.contains('/')).then(|| id.into_owned())
        };
        if let Some(rest) = url_path.strip_prefix("/instance_paths/") {
            return id(rest).map(|id| Self::Instance(InstanceId(id)));
        }
        let task = url_path.strip_prefix("/staging_tasks/")?.strip_suffix("/file_path")?;
        id(task).map(|id| Self::StagingTask(TaskId(id)))
    }
}

/// Makes signed URLs, and knows its own again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileUrls {
    base: String,
    key: Secret<String>,
}

/// Why a URL opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileUrlError {
    /// A parameter is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A parameter is not what it must be.
    #[error("{0} is invalid")]
    Invalid(&'static str),
    /// It is not signed by us, or was changed.
    #[error("Invalid HMAC")]
    BadSignature,
    /// It was good once.
    #[error("Url expired")]
    Expired,
}

impl FileUrls {
    /// URLs that begin with `base` (`http://host`, without a slash at its end) and are signed with the bytes of `key`.
    #[must_use]
    pub fn new(base: String, key: Secret<String>) -> Self {
        Self { base, key }
    }

    /// A URL for a file, from this moment (in seconds since the epoch) on. No file means the root of what `of` has.
    #[must_use]
    pub fn sign(&self, of: &FilesOf, file: Option<&str>, timestamp: i64) -> Secret<String> {
        let url_path = of.url_path();
        let (file, timestamp) = (parameter("path", file), parameter("timestamp", Some(&timestamp.to_string())));
        let signature = self.mac(&url_path, &file, &timestamp).finalize().into_bytes();
        let hmac = signature.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a string takes any text");
            hex
        });
        Secret(format!("{}{url_path}?hmac={hmac}&{file}&{timestamp}", self.base))
    }

    /// The file that a URL with this path and query opens at this moment; `None` is the root. Compares in constant time.
    ///
    /// # Errors
    /// When it opens none, with the reason. A parameter that is there twice makes the signature wrong: whoever reads the other one
    /// would read something else.
    pub fn verify(&self, url_path: &str, query: &str, now: i64) -> Result<Option<String>, FileUrlError> {
        let [mut hmac, mut file, mut timestamp] = [const { Vec::new() }; 3];
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(form_decoded(value))));
            match form_decoded(name).as_str() {
                "hmac" => hmac.push(value),
                "path" => file.push(value),
                "timestamp" => timestamp.push(value),
                _ => {}
            }
        }
        if file.is_empty() {
            return Err(FileUrlError::Missing("path"));
        }
        let signed_at = timestamp.first().ok_or(FileUrlError::Missing("timestamp"))?;
        let signed_at: i64 = signed_at.as_deref().and_then(|text| text.parse().ok()).ok_or(FileUrlError::Invalid("timestamp"))?;
        let ([hmac], [file], [timestamp]) = (&hmac[..], &mut file[..], &timestamp[..]) else { return Err(FileUrlError::BadSignature) };
        let hmac = hmac.as_deref().and_then(hex_decoded).ok_or(FileUrlError::BadSignature)?;
        let mac = self.mac(url_path, &parameter("path", file.as_deref()), &parameter("timestamp", timestamp.as_deref()));
        mac.verify_slice(&hmac).map_err(|_| FileUrlError::BadSignature)?;
        if now.saturating_sub(signed_at) > FILE_URL_SECONDS { Err(FileUrlError::Expired) } else { Ok(file.take()) }
    }

    fn mac(&self, url_path: &str, file: &str, timestamp: &str) -> Hmac<Sha512> {
        let mut mac = Hmac::<Sha512>::new_from_slice(self.key.expose().as_bytes()).expect("HMAC takes a key of any length");
        for part in [url_path, "?", file, "&", timestamp] {
            mac.update(part.as_bytes());
        }
        mac
    }
}

/// `name=value`; without a value the bare name.
fn parameter(name: &str, value: Option<&str>) -> String {
    // A percent sign of the value is encoded as well, so `%20` can only be a blank.
    value.map_or_else(|| name.to_owned(), |value| format!("{name}={}", utf8_percent_encode(value, FORM).to_string().replace("%20", "+")))
}

fn form_decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// Only what we write: lower-case digits.
fn hex_decoded(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
