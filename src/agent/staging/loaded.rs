//! Buildpacks that were used last, ready to run.
//!
//! To load one means to read it and its native code, several mebibytes each, and to check both against their hashes: tens of
//! milliseconds, for each buildpack that is asked, in each staging.

use std::sync::{Mutex, PoisonError};

use dewar_sandbox::Buildpack;

/// How many are kept: the built-in ones, and some of the operator's. Each holds its native code, a few mebibytes.
const KEPT: usize = 4;

/// The buildpacks used last, the latest at the end.
#[derive(Debug, Default)]
pub(super) struct LoadedBuildpacks(Mutex<Vec<Buildpack>>);

impl LoadedBuildpacks {
    /// The buildpack with this digest (SHA-256 of the component in hex), if it is kept.
    pub(super) fn get(&self, digest: &str) -> Option<Buildpack> {
        let mut kept = self.lock();
        let at = kept.iter().position(|buildpack| buildpack.digest() == digest)?;
        let found = kept.remove(at);
        kept.push(found.clone());
        Some(found)
    }

    pub(super) fn keep(&self, buildpack: &Buildpack) {
        let mut kept = self.lock();
        kept.retain(|other| other.digest() != buildpack.digest());
        kept.push(buildpack.clone());
        if kept.len() > KEPT {
            kept.remove(0);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Buildpack>> {
        // The list is whole after every operation on it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
