//! `droplet.yaml`: what an app's framework says of the droplet. Few droplets have one.

use std::io;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::staging::read_text;

/// Why a droplet's `droplet.yaml` is of no use.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// It cannot be read, or is longer than 64 KiB.
    #[error("cannot read its droplet.yaml: {0}")]
    Unreadable(#[from] io::Error),
    /// It is no YAML, or not of the right form.
    #[error("its droplet.yaml is not valid: {0}")]
    Invalid(String),
    /// The state file could be anywhere.
    #[error("its droplet.yaml names a state_file that is no path below app, logs or tmp")]
    StateFile,
}

/// Other keys are ignored.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    state_file: Option<String>,
}

/// The file in which the app tells its state, relative to the instance's directory; an empty manifest names none.
///
/// # Errors
/// See [`InvalidManifest`].
pub(super) fn state_file(manifest: &Path) -> Result<Option<String>, InvalidManifest> {
    let text = read_text(manifest)?;
    let parsed: Option<Manifest> =
        serde_saphyr::from_str(&text).map_err(|error| InvalidManifest::Invalid(error.without_snippet().to_string()))?;
    let Some(path) = parsed.and_then(|manifest| manifest.state_file) else { return Ok(None) };
    let mut parts = Path::new(&path).components().filter(|part| *part != Component::CurDir);
    let is_below = matches!(parts.next(), Some(Component::Normal(first)) if ["app", "logs", "tmp"].iter().any(|dir| first == *dir));
    if is_below && parts.clone().next().is_some() && parts.all(|part| matches!(part, Component::Normal(_))) {
        Ok(Some(path))
    } else {
        Err(InvalidManifest::StateFile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("droplet.yaml");
        std::fs::write(&path, text).unwrap();
        state_file(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn the_state_file_is_read_from_the_manifest() {
        assert_eq!(read("state_file: app/state.json\nraw: true\n"), Ok(Some("app/state.json".to_owned())));
        assert_eq!(read("state_file: ./tmp/a/b"), Ok(Some("./tmp/a/b".to_owned())));
        assert_eq!(read("---\nraw: true\n"), Ok(None));
        assert_eq!(read(""), Ok(None));
    }

    #[test]
    fn what_is_no_manifest_is_an_error() {
        for text in ["state_file: [1]", "a: [", "- a"] {
            assert!(read(text).unwrap_err().starts_with("its droplet.yaml is not valid: "), "{text}");
        }
        for path in ["/etc/passwd", "../x", "app/../../x", "app", "droplet.wasm", ".", "''"] {
            assert!(read(&format!("state_file: {path}")).unwrap_err().contains("state_file"), "{path}");
        }
        let long = read(&"#".repeat(100_000)).unwrap_err();
        assert!(long.starts_with("cannot read its droplet.yaml: "), "{long}");
    }
}
