//! What `dewar.toml` in a package tells the client. Its other keys are for buildpacks.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::app_name::AppName;
use crate::health::{self, AppHealthCheck};
use crate::package::PackageError;

/// The file's name, in the top folder of a package.
pub const MANIFEST_FILE: &str = "dewar.toml";
/// Most bytes of it that are read; more is an error.
const BYTES_MAX: u64 = 1 << 20;

/// The part of `dewar.toml` that is the client's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Manifest {
    /// Name of the app.
    #[serde(default)]
    pub name: Option<AppName>,
    /// Host names that lead to the app; an empty list: none, and the app need not listen.
    #[serde(default)]
    pub routes: Option<Vec<String>>,
    /// What makes its instances healthy: a table with `type` (`port`, `none` or `http`) and, for `http`, maybe a `path`.
    #[serde(default, rename = "health-check", deserialize_with = "health::of_table")]
    pub health_check: Option<AppHealthCheck>,
}

impl Manifest {
    /// Reads the manifest of a package folder; one without, or a single file, has an empty one.
    ///
    /// # Errors
    /// When it cannot be read, is too long, or is no TOML with a good name.
    pub fn of(package: &Path) -> Result<Self, ManifestError> {
        let path = package.join(MANIFEST_FILE);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let mut text = String::new();
        let file = std::fs::File::open(&path).map_err(|e| PackageError::unreadable(&path, e))?;
        file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| PackageError::unreadable(&path, e))?;
        if text.len() as u64 > BYTES_MAX {
            return Err(ManifestError::Malformed { path: path.display().to_string(), why: "it is longer than 1 MiB".to_owned() });
        }
        toml::from_str(&text).map_err(|error| ManifestError::Malformed {
            path: path.display().to_string(),
            why: error.message().lines().next().unwrap_or_default().to_owned(),
        })
    }
}

/// Why there is no manifest to go by.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] PackageError),
    /// It does not say what it should.
    #[error("{path} is malformed: {why}")]
    Malformed {
        /// Which file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// The name of an app that the user did not name: as its manifest says, else after its folder or file.
///
/// # Errors
/// When the manifest cannot be used.
pub fn app_name_of(package: &Path) -> Result<Option<AppName>, ManifestError> {
    if let Some(name) = Manifest::of(package)?.name {
        return Ok(Some(name));
    }
    let full = package.canonicalize().map_err(|e| PackageError::unreadable(package, e))?;
    let stem = if full.is_dir() { full.file_name() } else { full.file_stem() };
    Ok(stem.and_then(|stem| AppName::sanitised(&stem.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn name_of(path: &Path) -> String {
        app_name_of(path).unwrap().unwrap().to_string()
    }

    #[test]
    fn the_manifest_names_the_app_else_its_folder_or_file_does() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("My App");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("worker.wasm"), "").unwrap();
        assert_eq!(name_of(&folder), "my-app");
        assert_eq!(name_of(&folder.join("worker.wasm")), "worker");
        fs::write(folder.join(MANIFEST_FILE), "name = \"shop\"\nroutes = []\n[run]\nworld = \"http\"\n").unwrap();
        assert_eq!(name_of(&folder), "shop");
        assert_eq!(Manifest::of(&folder).unwrap().routes, Some(vec![]));
        assert_eq!(Manifest::of(root.path()).unwrap().routes, None);
        fs::write(folder.join(MANIFEST_FILE), "[health-check]\ntype = \"http\"\npath = \"/ready\"\n").unwrap();
        assert_eq!(Manifest::of(&folder).unwrap().health_check, Some(AppHealthCheck::Http("/ready".to_owned())));
    }

    #[test]
    fn a_malformed_manifest_is_named() {
        let root = tempfile::tempdir().unwrap();
        for text in
            ["name = \"No Good\"", "name = 3", "name =", "[health-check]\ntype = \"smtp\"", "[health-check]\ntype = \"port\"\npath = \"/\""]
        {
            fs::write(root.path().join(MANIFEST_FILE), text).unwrap();
            let error = app_name_of(root.path()).unwrap_err().to_string();
            assert!(error.contains(MANIFEST_FILE), "{error}");
        }
    }
}
