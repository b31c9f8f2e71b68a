//! Which buildpacks a staging may use, and the operator's buildpacks on disk.
//!
//! In this order: the one that the app names (`buildpack`, `buildpack_git_url`: a URL, or the name of one of those below), the
//! operator's that the Cloud Controller names (`buildpack_key`), else whichever detects the app first, the operator's in the order
//! of the message and then the built-in ones.

mod admin;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use dewar_protocol::{Bytes, Secret, StagingProperties};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

pub(super) use self::admin::{AdminBuildpacks, InUse};
use crate::archive::{UnpackError, unpack};
use crate::digest::hex;
use crate::transfer::{DownloadError, Retry, Transfers, parse_http, without_secrets};
use crate::tree::{Node, TreeLimits};

/// Bytes of a buildpack, as it is fetched and as a component.
const MAX_BUILDPACK: Bytes = Bytes(64 << 20);

/// Entries in a buildpack's archive.
const MAX_ENTRIES: u64 = 1000;

/// The buildpacks that every agent has, in the order in which they are asked.
const BUILT_IN: [(&str, &[u8]); 2] =
    [("wasm", include_bytes!(env!("DEWAR_BUILDPACK_WASM"))), ("static", include_bytes!(env!("DEWAR_BUILDPACK_STATIC")))];

/// Where a buildpack comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The operator's, by key.
    Admin(String),
    /// Built in, by name.
    BuiltIn(&'static str),
    /// The app's own, by URL without secrets.
    Url(String),
}

impl Origin {
    /// As it stands in the droplet and in logs.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Admin(name) | Self::Url(name) => name,
            Self::BuiltIn(name) => name,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Memory(&'static [u8]),
    File(PathBuf),
}

/// A buildpack that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) origin: Origin,
    /// SHA-256 of the component in hex.
    pub(super) digest: String,
    source: Source,
}

impl Candidate {
    /// The component. Blocks.
    pub(super) fn wasm(&self) -> io::Result<Vec<u8>> {
        match &self.source {
            Source::Memory(wasm) => Ok(wasm.to_vec()),
            Source::File(path) => fs::read(path),
        }
    }
}

/// What a staging is to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selection {
    /// This one, whether it detects the app or not.
    Given(Candidate),
    /// The first that detects the app.
    Detect(Vec<Candidate>),
}

impl Selection {
    pub(super) fn candidates(&self) -> &[Candidate] {
        match self {
            Self::Given(candidate) => std::slice::from_ref(candidate),
            Self::Detect(candidates) => candidates,
        }
    }
}

/// Why there is no buildpack to use.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildpackSetupError {
    #[error("buildpack {name}: {source}")]
    Download { name: String, source: DownloadError },
    #[error("buildpack {name}: failed to {source}")]
    Archive { name: String, source: UnpackError },
    #[error("buildpack {name}: its archive must hold one *.wasm, and holds {found}")]
    NotOneComponent { name: String, found: usize },
    #[error("buildpack {0}: neither a wasm component nor an archive with one in it")]
    NotWasm(String),
    #[error("buildpack {0}: buildpacks here are wasm components, and this is a git repository; give the URL of a .wasm or .zip")]
    Git(String),
    #[error("buildpack {name}: there is none of this name; known are {known}")]
    Unknown { name: String, known: String },
    #[error("buildpack key {0:?}: not to be used as the name of a directory")]
    Key(String),
    #[error("buildpack {name}: failed to use {path}: {source}")]
    Disk { name: String, path: PathBuf, source: io::Error },
    #[error("staging was stopped")]
    Stopped,
}

/// Chooses, and fetches into `folder` what the app brings along. The operator's buildpacks must be on disk.
///
/// # Errors
/// See [`BuildpackSetupError`].
pub(super) async fn select(
    properties: &StagingProperties,
    admin: Vec<Candidate>,
    transfers: &Transfers,
    folder: &Path,
    stop: &CancellationToken,
) -> Result<Selection, BuildpackSetupError> {
    let given = |text: &Option<String>| text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let asked = given(&properties.buildpack).or_else(|| given(&properties.buildpack_git_url));
    if let Some(asked) = asked {
        if parse_http(&asked).is_none() && !looks_like_git(&asked) {
            return by_name(&asked, admin.into_iter().chain(built_in())).map(Selection::Given);
        }
        let shown = without_secrets(&asked);
        if looks_like_git(&asked) {
            return Err(BuildpackSetupError::Git(shown));
        }
        return fetch(shown, Secret(asked), transfers, folder, stop).await.map(Selection::Given);
    }
    if let Some(key) = given(&properties.buildpack_key) {
        return by_name(&key, admin.into_iter()).map(Selection::Given);
    }
    Ok(Selection::Detect(admin.into_iter().chain(built_in()).collect()))
}

/// The buildpacks that every agent has. They are hashed once.
pub(super) fn built_in() -> impl Iterator<Item = Candidate> {
    static CANDIDATES: LazyLock<Vec<Candidate>> = LazyLock::new(|| {
        let candidate = |(name, wasm): (&'static str, &'static [u8])| {
            let digest = hex(&Sha256::digest(wasm));
            Candidate { origin: Origin::BuiltIn(name), digest, source: Source::Memory(wasm) }
        };
        BUILT_IN.into_iter().map(candidate).collect()
    });
    CANDIDATES.iter().cloned()
}

fn by_name(name: &str, candidates: impl Iterator<Item = Candidate>) -> Result<Candidate, BuildpackSetupError> {
    let candidates: Vec<Candidate> = candidates.collect();
    let known = candidates.iter().map(|candidate| candidate.origin.name()).collect::<Vec<_>>().join(", ");
    let named = candidates.into_iter().find(|candidate| candidate.origin.name() == name);
    let known = if known.is_empty() { "none".to_owned() } else { known };
    // It may have been meant as a URL, with credentials.
    let shown = if name.contains("://") || name.contains('@') { without_secrets(name) } else { name.to_owned() };
    named.ok_or_else(|| BuildpackSetupError::Unknown { name: shown.chars().take(200).collect(), known })
}

fn looks_like_git(text: &str) -> bool {
    let place = text.split(['#', '?']).next().unwrap_or(text);
    place.trim_end_matches('/').ends_with(".git") || ["git@", "git:", "ssh:", "git+"].iter().any(|start| place.starts_with(start))
}

async fn fetch(
    name: String,
    uri: Secret<String>,
    transfers: &Transfers,
    folder: &Path,
    stop: &CancellationToken,
) -> Result<Candidate, BuildpackSetupError> {
    let download = transfers.download(&uri, folder, MAX_BUILDPACK, Retry::Transient);
    let downloaded = stop.run_until_cancelled(download).await.ok_or(BuildpackSetupError::Stopped)?;
    let downloaded = downloaded.map_err(|source| BuildpackSetupError::Download { name: name.clone(), source })?;
    let (folder, stop) = (folder.to_owned(), stop.clone());
    crate::blocking::run(move || {
        let place = folder.join("own-buildpack");
        let disk = |source| BuildpackSetupError::Disk { name: name.clone(), path: place.clone(), source };
        fs::create_dir(&place).map_err(disk)?;
        let (path, digest) = install(&name, downloaded.file.path(), &place, &stop)?;
        Ok(Candidate { origin: Origin::Url(name), digest, source: Source::File(path) })
    })
    .await
}

/// Puts the component of a buildpack (which is one, or an archive with one in it) into an empty directory, named after its digest,
/// which it returns. Blocks.
fn install(name: &str, fetched: &Path, into: &Path, stop: &CancellationToken) -> Result<(PathBuf, String), BuildpackSetupError> {
    let disk = |path: &Path| {
        let (name, path) = (name.to_owned(), path.to_owned());
        move |source| BuildpackSetupError::Disk { name, path, source }
    };
    let mut magic = [0; 4];
    let started = File::open(fetched).and_then(|mut file| file.read_exact(&mut magic));
    let component = match started {
        Ok(()) if magic == *b"\0asm" => fetched.to_owned(),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(disk(fetched)(error)),
        _ => {
            let scratch = into.join("archive");
            fs::create_dir(&scratch).map_err(disk(&scratch))?;
            component_of_archive(name, fetched, &scratch, stop)?
        }
    };
    let wasm = fs::read(&component).map_err(disk(&component))?;
    let digest = hex(&Sha256::digest(&wasm));
    let path = into.join(format!("{digest}.wasm"));
    fs::write(&path, wasm).map_err(disk(&path))?;
    if component != fetched {
        let scratch = into.join("archive");
        fs::remove_dir_all(&scratch).map_err(disk(&scratch))?;
    }
    Ok((path, digest))
}

fn component_of_archive(name: &str, archive: &Path, scratch: &Path, stop: &CancellationToken) -> Result<PathBuf, BuildpackSetupError> {
    let limits = TreeLimits { bytes: MAX_BUILDPACK, entries: MAX_ENTRIES };
    let tree = unpack(archive, scratch, limits, stop).map_err(|source| match source {
        UnpackError::Unknown => BuildpackSetupError::NotWasm(name.to_owned()),
        source => BuildpackSetupError::Archive { name: name.to_owned(), source },
    })?;
    let is_component = |(path, node): &(&String, &Node)| path.ends_with(".wasm") && matches!(node, Node::File { .. });
    let components: Vec<&String> = tree.nodes.iter().filter(is_component).map(|(path, _)| path).collect();
    match components[..] {
        [only] => Ok(scratch.join(only)),
        _ => Err(BuildpackSetupError::NotOneComponent { name: name.to_owned(), found: components.len() }),
    }
}

#[cfg(test)]
mod tests;
