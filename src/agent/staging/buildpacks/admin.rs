//! The operator's buildpacks: `<base>/admin_buildpacks/<key>/<sha256>.wasm`.
//!
//! A key names its content, so what is there is never fetched again. What neither this staging nor one under way names is removed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dewar_protocol::AdminBuildpack;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{BuildpackSetupError, Candidate, MAX_BUILDPACK, Origin, Source, install};
use crate::blocking;
use crate::transfer::{Retry, Transfers, parse_http, without_secrets};

const PARTIAL: &str = ".partial";

/// Buildpacks that are fetched ahead at most.
const MAX_AHEAD: usize = 100;

/// Bytes of a key.
const MAX_KEY: usize = 200;

/// The operator's buildpacks on disk.
#[derive(Debug)]
pub(in crate::staging) struct AdminBuildpacks {
    dir: PathBuf,
    /// Held while buildpacks are fetched and removed: one pass at a time.
    pass: tokio::sync::Mutex<()>,
    in_use: Arc<Mutex<HashMap<String, usize>>>,
}

/// While this lives, the buildpacks of these keys are not removed.
#[derive(Debug)]
pub(in crate::staging) struct InUse {
    keys: Vec<String>,
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        for key in &self.keys {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

impl AdminBuildpacks {
    /// Opens the directory, making it where it is missing, and removes what is not complete.
    pub(in crate::staging) fn open(dir: PathBuf) -> io::Result<Self> {
        let partial = dir.join(PARTIAL);
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&partial)?,
        }
        Ok(Self { dir, pass: tokio::sync::Mutex::default(), in_use: Arc::default() })
    }

    /// Keeps these from being removed, whether they are here yet or not.
    pub(in crate::staging) fn reserve(&self, wanted: &[AdminBuildpack]) -> InUse {
        let keys: Vec<String> = wanted.iter().map(|buildpack| buildpack.key.clone()).collect();
        let mut counts = lock(&self.in_use);
        for key in &keys {
            *counts.entry(key.clone()).or_default() += 1;
        }
        InUse { keys, counts: Arc::clone(&self.in_use) }
    }

    /// Fetches what is missing, removes what nobody uses, and returns what is wanted, in its order. One with a URL that is none is
    /// left out, as the original did.
    ///
    /// # Errors
    /// See [`BuildpackSetupError`].
    pub(in crate::staging) async fn provide(
        &self,
        wanted: &[AdminBuildpack],
        transfers: &Transfers,
        stop: &CancellationToken,
    ) -> Result<Vec<Candidate>, BuildpackSetupError> {
        if let Some(bad) = wanted.iter().find(|buildpack| !is_key(&buildpack.key)) {
            return Err(BuildpackSetupError::Key(bad.key.chars().take(MAX_KEY).collect()));
        }
        let _pass = stop.run_until_cancelled(self.pass.lock()).await.ok_or(BuildpackSetupError::Stopped)?;
        let mut candidates = Vec::new();
        for buildpack in wanted {
            if parse_http(buildpack.url.expose()).is_none() {
                warn!(key = buildpack.key, uri = without_secrets(buildpack.url.expose()), "buildpack without a usable URL left out");
                continue;
            }
            let present = self.present(&buildpack.key)?;
            candidates.push(match present {
                Some(candidate) => candidate,
                None => self.fetch(buildpack, transfers, stop).await?,
            });
        }
        self.remove_unused().await;
        Ok(candidates)
    }

    /// Fetches what is missing, one after the other, and removes nothing. A staging waits for one of them at most.
    pub(in crate::staging) async fn fetch_ahead(&self, wanted: &[AdminBuildpack], transfers: &Transfers, stop: &CancellationToken) {
        if wanted.len() > MAX_AHEAD {
            warn!(buildpacks = wanted.len(), limit = MAX_AHEAD, "not all buildpacks are fetched ahead");
        }
        for buildpack in wanted.iter().take(MAX_AHEAD) {
            if !is_key(&buildpack.key) || parse_http(buildpack.url.expose()).is_none() {
                warn!(uri = without_secrets(buildpack.url.expose()), "buildpack without a usable key or URL left out");
                continue;
            }
            let Some(_pass) = stop.run_until_cancelled(self.pass.lock()).await else { return };
            let fetched = match self.present(&buildpack.key) {
                Ok(Some(_)) => continue,
                Ok(None) => self.fetch(buildpack, transfers, stop).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = fetched {
                warn!(key = buildpack.key, %error, "buildpack not fetched ahead");
            }
        }
    }

    fn present(&self, key: &str) -> Result<Option<Candidate>, BuildpackSetupError> {
        let dir = self.dir.join(key);
        let files = match fs::read_dir(&dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(BuildpackSetupError::Disk { name: key.to_owned(), path: dir, source }),
        };
        let component = files.filter_map(Result::ok).map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "wasm"));
        Ok(component.and_then(|path| candidate(key, path)))
    }

    async fn fetch(
        &self,
        buildpack: &AdminBuildpack,
        transfers: &Transfers,
        stop: &CancellationToken,
    ) -> Result<Candidate, BuildpackSetupError> {
        let key = buildpack.key.clone();
        let partial = self.dir.join(PARTIAL);
        let download = transfers.download(&buildpack.url, &partial, MAX_BUILDPACK, Retry::Any);
        let downloaded = stop.run_until_cancelled(download).await.ok_or(BuildpackSetupError::Stopped)?;
        let downloaded = downloaded.map_err(|source| BuildpackSetupError::Download { name: key.clone(), source })?;
        let (place, stop) = (self.dir.join(&key), stop.clone());
        blocking::run(move || {
            let disk = |path: &Path, source| BuildpackSetupError::Disk { name: key.clone(), path: path.to_owned(), source };
            let fresh = tempfile::tempdir_in(&partial).map_err(|source| disk(&partial, source))?;
            let (path, digest) = install(&key, downloaded.file.path(), fresh.path(), &stop)?;
            // A directory without a component is one that somebody else made.
            match fs::remove_dir_all(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(&place, error)),
                _ => fs::rename(fresh.path(), &place).map_err(|source| disk(&place, source))?,
            }
            info!(key, digest, "buildpack fetched");
            let path = place.join(path.file_name().unwrap_or_default());
            Ok(Candidate { origin: Origin::Admin(key), digest, source: Source::File(path) })
        })
        .await
    }

    /// What cannot be removed is tried again with the next staging.
    async fn remove_unused(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let in_use = lock(&self.in_use).clone();
        let unused: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name != PARTIAL && !in_use.contains_key(name)))
            .map(|entry| entry.path())
            .collect();
        if unused.is_empty() {
            return;
        }
        blocking::run(move || {
            for path in unused {
                match fs::remove_dir_all(&path) {
                    Ok(()) => info!(path = %path.display(), "buildpack that nobody uses removed"),
                    Err(error) => warn!(path = %path.display(), %error, "buildpack that nobody uses not removed"),
                }
            }
        })
        .await;
    }
}

/// The digest is the file's name.
fn candidate(key: &str, path: PathBuf) -> Option<Candidate> {
    let digest = path.file_stem()?.to_str()?.to_owned();
    Some(Candidate { origin: Origin::Admin(key.to_owned()), digest, source: Source::File(path) })
}

/// A key becomes the name of a directory; one that starts with a dot is ours.
fn is_key(key: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !key.is_empty() && key.len() <= MAX_KEY && !key.starts_with('.') && key.bytes().all(plain)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A count is whole after each statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
