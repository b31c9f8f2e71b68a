//! What stagings came to, by fingerprint: `<base>/staging_cache/<fingerprint>`, one small JSON file each.
//!
//! At most [`MAX_ENTRIES`] are kept; the ones that were not used for longest go. Nothing depends on an entry: one that cannot be read
//! is removed, one that cannot be written is missed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dewar_core::StagedDroplet;
use dewar_protocol::{DropletSha1, Fingerprint};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// How many outcomes are kept.
const MAX_ENTRIES: usize = 1024;

/// Bytes of an entry; process types are what may be long, and come from files that are bounded.
const MAX_BYTES: u64 = 256 << 10;

/// What a staging came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    sha1: DropletSha1,
    detected_buildpack: Option<String>,
    buildpack_key: Option<String>,
    start_command: Option<String>,
    process_types: BTreeMap<String, String>,
    /// Whole epoch seconds.
    pub(super) staged_at: i64,
}

impl Outcome {
    pub(super) fn new(droplet: &StagedDroplet, staged_at: i64) -> Self {
        let StagedDroplet { sha1, detected_buildpack, buildpack_key, start_command, process_types } = droplet.clone();
        Self { sha1, detected_buildpack, buildpack_key, start_command, process_types, staged_at }
    }

    pub(super) fn into_droplet(self) -> StagedDroplet {
        let Self { sha1, detected_buildpack, buildpack_key, start_command, process_types, staged_at: _ } = self;
        StagedDroplet { sha1, detected_buildpack, buildpack_key, start_command, process_types }
    }
}

/// The outcomes on disk. All methods block, but for milliseconds at most.
#[derive(Debug, Clone)]
pub(super) struct OutcomeCache {
    dir: PathBuf,
    max_entries: usize,
}

impl OutcomeCache {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, max_entries: MAX_ENTRIES })
    }

    /// The outcome of a staging with this fingerprint, if it is known.
    pub(super) fn get(&self, fingerprint: &Fingerprint) -> Option<Outcome> {
        let path = self.dir.join(fingerprint.as_str());
        match read(&path) {
            Ok(outcome) => Some(outcome),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(path = %path.display(), %error, "outcome of a staging cannot be read, staging again");
                self.forget(fingerprint);
                None
            }
        }
    }

    pub(super) fn put(&self, fingerprint: &Fingerprint, outcome: &Outcome) {
        let stored = self.store(fingerprint, outcome).and_then(|()| self.trim());
        if let Err(error) = stored {
            warn!(%fingerprint, %error, "outcome of a staging not kept");
        }
    }

    pub(super) fn forget(&self, fingerprint: &Fingerprint) {
        let path = self.dir.join(fingerprint.as_str());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %path.display(), %error, "outcome of a staging not removed")
            }
            _ => {}
        }
    }

    fn store(&self, fingerprint: &Fingerprint, outcome: &Outcome) -> io::Result<()> {
        let text = serde_json::to_vec(outcome)?;
        let mut file = tempfile::Builder::new().prefix(".").tempfile_in(&self.dir)?;
        file.write_all(&text)?;
        file.persist(self.dir.join(fingerprint.as_str()))?;
        Ok(())
    }

    fn trim(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another staging may be writing or removing it at this moment.
            if let Ok(metadata) = entry.metadata() {
                entries.push((metadata.modified()?, entry.path()));
            }
        }
        let surplus = entries.len().saturating_sub(self.max_entries);
        entries.sort();
        for (_, path) in entries.iter().take(surplus) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads an entry, and notes that it is used.
fn read(path: &Path) -> io::Result<Outcome> {
    let file = File::open(path)?;
    if file.metadata()?.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_BYTES} bytes")));
    }
    let outcome = serde_json::from_reader(io::BufReader::new(&file))?;
    file.set_modified(SystemTime::now())?;
    Ok(outcome)
}

#[cfg(test)]
mod tests;
