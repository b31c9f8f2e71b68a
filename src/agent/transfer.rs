//! Transfers over HTTP: files from a Cloud Controller, a blobstore or a client, and the two clients that uploads use as well.
//!
//! User and password in a URL become basic authentication and are not forwarded to another host by a redirect. Certificates are
//! checked against the system's store (`SSL_CERT_FILE` names another one). No error shows more of a URL than host and path.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dewar_protocol::{Bytes, DropletSha1, Secret};
use rand::RngExt as _;
use rand::rngs::StdRng;
use reqwest::{Client, ClientBuilder, Url, redirect};
use sha1::{Digest as _, Sha1};
use tempfile::NamedTempFile;
use tokio::io::{AsyncWriteExt as _, BufWriter};
use tracing::warn;

use crate::digest;
use crate::tls::install_provider;

/// Bytes that are collected before they go to the disk.
const WRITE_BUFFER: usize = 256 << 10;

/// Bounds of transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferConfig {
    /// For a connection to come about.
    pub connect_timeout: Duration,
    /// For the next byte to move; the original's 30 s.
    pub inactivity_timeout: Duration,
    /// For a download as a whole, with all its attempts.
    pub total_timeout: Duration,
    /// How often a download is tried in all.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each further one, and up to a half of it added or taken away by chance.
    pub pause: Duration,
    /// Redirects that one attempt follows.
    pub redirects: usize,
    /// Pause between two looks at an upload's job.
    pub poll_interval: Duration,
    /// How often an upload's job is looked at.
    pub polls: u32,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            inactivity_timeout: Duration::from_secs(30),
            total_timeout: Duration::from_secs(900),
            attempts: 3,
            pause: Duration::from_millis(300),
            redirects: 5,
            poll_interval: Duration::from_secs(1),
            polls: 300,
        }
    }
}

/// Which failures of a download are worth another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Those of the connection, and what the server says about itself (5xx).
    Transient,
    /// All that the other side may mend.
    Any,
}

/// Why there are no transfers at all.
#[derive(Debug, thiserror::Error)]
#[error("make an HTTP client")]
pub struct NoTransfers(#[from] reqwest::Error);

/// Why a download failed. The texts are the original's, with the URL behind them.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The URL is none, or not for HTTP.
    #[error("Error downloading: Response status: unknown, Error: not an http or https URL ({uri})")]
    InvalidUri {
        /// The URL without secrets.
        uri: String,
    },
    /// The server refused.
    #[error("Error downloading: HTTP status: {status} ({uri})")]
    Status {
        /// Its answer.
        status: u16,
        /// The URL without secrets.
        uri: String,
    },
    /// There was no answer, or it ended too early.
    #[error("Error downloading: Response status: unknown, Error: {reason} ({uri})")]
    Transport {
        /// What happened.
        reason: String,
        /// The URL without secrets.
        uri: String,
    },
    /// There is more than may be.
    #[error("Error downloading: more than {limit} bytes ({uri})", limit = limit.0)]
    TooLarge {
        /// How much may be.
        limit: Bytes,
        /// The URL without secrets.
        uri: String,
    },
    /// Our disk failed.
    #[error("Error downloading: cannot store {uri} in {folder}: {source}")]
    Disk {
        /// The URL without secrets.
        uri: String,
        /// Where it should go.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DownloadError {
    fn is_worth(&self, retry: Retry) -> bool {
        match self {
            Self::Transport { .. } => true,
            Self::Status { status, .. } => retry == Retry::Any || *status >= 500,
            Self::InvalidUri { .. } | Self::TooLarge { .. } | Self::Disk { .. } => false,
        }
    }
}

/// A file that was downloaded. It goes when this is dropped, unless it is persisted.
#[derive(Debug)]
pub struct Downloaded {
    /// The file.
    pub file: NamedTempFile,
    /// Its size.
    pub size: Bytes,
    /// Its digest.
    pub sha1: DropletSha1,
}

/// HTTP clients with their bounds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Transfers {
    config: TransferConfig,
    /// Follows redirects, gives up when no byte comes.
    downloads: Client,
    /// Follows none: a redirect is no success of an upload. Its caller watches for inactivity, in either direction.
    uploads: Client,
}

impl Transfers {
    /// Makes the clients. Without any certificate authority on this machine plain HTTP works, and HTTPS trusts nobody.
    ///
    /// # Errors
    /// When the clients cannot be made.
    pub fn new(config: TransferConfig) -> Result<Self, NoTransfers> {
        install_provider();
        let plain =
            || Client::builder().no_proxy().referer(false).connect_timeout(config.connect_timeout).redirect(redirect::Policy::none());
        let following = || plain().redirect(redirect::Policy::limited(config.redirects)).read_timeout(config.inactivity_timeout);
        Ok(Self { config, downloads: build(following)?, uploads: build(plain)? })
    }

    /// The bounds.
    pub(crate) fn config(&self) -> &TransferConfig {
        &self.config
    }

    /// The client for uploads and what belongs to them.
    pub(crate) fn upload_client(&self) -> &Client {
        &self.uploads
    }

    /// Fetches a file of at most `limit` bytes into `folder`. Nothing stays there when this fails or is dropped.
    ///
    /// # Errors
    /// See [`DownloadError`]; it is the last attempt's.
    pub async fn download(&self, uri: &Secret<String>, folder: &Path, limit: Bytes, retry: Retry) -> Result<Downloaded, DownloadError> {
        let shown = without_secrets(uri.expose());
        let url = parse_http(uri.expose()).ok_or_else(|| DownloadError::InvalidUri { uri: shown.clone() })?;
        let attempts = async {
            let mut attempt = 1;
            loop {
                let error = match self.attempt(&url, &shown, folder, limit).await {
                    Ok(downloaded) => return Ok(downloaded),
                    Err(error) => error,
                };
                if attempt >= self.config.attempts || !error.is_worth(retry) {
                    return Err(error);
                }
                warn!(uri = shown, attempt, %error, "download failed, trying again");
                tokio::time::sleep(pause(self.config.pause, attempt)).await;
                attempt += 1;
            }
        };
        let timed_out = |_| {
            let reason = format!("it takes more than {:?}", self.config.total_timeout);
            Err(DownloadError::Transport { reason, uri: shown.clone() })
        };
        tokio::time::timeout(self.config.total_timeout, attempts).await.unwrap_or_else(timed_out)
    }

    async fn attempt(&self, url: &Url, shown: &str, folder: &Path, limit: Bytes) -> Result<Downloaded, DownloadError> {
        let uri = || shown.to_owned();
        let broken = |error: reqwest::Error| DownloadError::Transport { reason: reason(&error), uri: uri() };
        let disk = |source: io::Error| DownloadError::Disk { uri: uri(), folder: folder.to_owned(), source };
        let mut response = self.downloads.get(url.clone()).send().await.map_err(broken)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(DownloadError::Status { status: response.status().as_u16(), uri: uri() });
        }
        if response.content_length().is_some_and(|length| length > limit.0) {
            return Err(DownloadError::TooLarge { limit, uri: uri() });
        }
        let file = NamedTempFile::new_in(folder).map_err(disk)?;
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER, tokio::fs::File::from_std(file.reopen().map_err(disk)?));
        let mut hash = Sha1::new();
        let mut size = 0;
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            size += chunk.len() as u64;
            if size > limit.0 {
                return Err(DownloadError::TooLarge { limit, uri: uri() });
            }
            hash.update(&chunk);
            writer.write_all(&chunk).await.map_err(disk)?;
        }
        writer.flush().await.map_err(disk)?;
        Ok(Downloaded { file, size: Bytes(size), sha1: digest::sha1(hash) })
    }
}

/// Builds a client that trusts the system's certificate authorities, or, where there are none, nobody.
pub(crate) fn build(builder: impl Fn() -> ClientBuilder) -> Result<Client, NoTransfers> {
    builder().build().or_else(|error| {
        warn!(cause = reason(&error), "no certificate authorities, https transfers will be refused");
        Ok(builder().tls_certs_only([]).build()?)
    })
}

/// `base` doubled for every attempt after the first, between a half and one and a half of it.
fn pause(base: Duration, attempt: u32) -> Duration {
    let doubled = base.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.mul_f64(rand::make_rng::<StdRng>().random_range(0.5..1.5))
}

/// The innermost cause, which is the one that says something, without the URL that reqwest would add.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "the request could not be made".to_owned(), ToString::to_string)
}

/// A URL for HTTP, with a host.
pub(crate) fn parse_http(uri: &str) -> Option<Url> {
    Url::parse(uri).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// A URL as it may be shown: scheme, host, port and path; a query is only hinted at, for it may be a signature.
pub(crate) fn without_secrets(uri: &str) -> String {
    let Ok(mut url) = Url::parse(uri) else {
        return "<<uri parse error>>".to_owned();
    };
    if url.cannot_be_a_base() {
        return format!("{}:…", url.scheme());
    }
    let queried = url.query().is_some();
    // Both fail only for URLs without a host, which have no user either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    if queried { format!("{url}?…") } else { url.into() }
}

#[cfg(test)]
mod tests;
