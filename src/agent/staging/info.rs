//! `staging_info.yml` and `Procfile`: how a droplet is to be run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use dewar_sandbox::World;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

/// Bytes of the largest file that is read here.
pub(super) const MAX_BYTES: u64 = 64 << 10;

/// What staging found out about a droplet. Keys that a droplet's file lacks are absent; unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StagingInfo {
    /// Which buildpack made the droplet: an operator's key, the name of a built-in one, or a URL without secrets.
    #[serde(default)]
    pub buildpack_path: Option<String>,
    /// What the detect step said; absent when the buildpack was given.
    #[serde(default)]
    pub detected_buildpack: Option<String>,
    /// What to run when the start message does not say.
    #[serde(default)]
    pub start_command: Option<String>,
    /// Process name to command.
    #[serde(default)]
    pub effective_procfile: BTreeMap<String, String>,
    /// Which of the droplet's interfaces to call; absent: whichever it has, http first.
    #[serde(default, with = "world_name", skip_serializing_if = "Option::is_none")]
    pub world: Option<World>,
}

/// Why a droplet's `staging_info.yml` is of no use.
#[derive(Debug, thiserror::Error)]
pub enum InvalidInfo {
    /// It cannot be read, or is longer than 64 KiB.
    #[error("cannot read its staging_info.yml: {0}")]
    Unreadable(#[from] io::Error),
    /// It is no YAML, or not of the right form.
    #[error("its staging_info.yml is not valid: {0}")]
    Invalid(String),
}

/// Why an app's `Procfile` is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidProcfile {
    #[error("read Procfile: {0}")]
    Unreadable(#[from] io::Error),
    #[error("Invalid Procfile format. Please ensure it is a valid YAML hash")]
    Invalid,
}

impl StagingInfo {
    /// Reads a droplet's file.
    ///
    /// # Errors
    /// See [`InvalidInfo`].
    pub(crate) fn read(path: &Path) -> Result<Self, InvalidInfo> {
        let text = read_text(path)?;
        serde_saphyr::from_str(&text).map_err(|error| InvalidInfo::Invalid(one_line(&error.to_string())))
    }

    /// As it stands in the droplet; the same info gives the same text.
    pub(crate) fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        serde_saphyr::to_string(self)
    }
}

/// The processes of an app's `Procfile`; `None` where there is no such file.
///
/// # Errors
/// See [`InvalidProcfile`].
pub(crate) fn read_procfile(app_dir: &Path) -> Result<Option<BTreeMap<String, String>>, InvalidProcfile> {
    // A guest may have made this directory, and so made it a link.
    match app_dir.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        _ => return Ok(None),
    }
    match read_text(&app_dir.join("Procfile")) {
        Ok(text) => serde_saphyr::from_str(&text).map(Some).map_err(|_| InvalidProcfile::Invalid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads a file that a guest or an archive made, so it must not be a link, and that may have at most 64 KiB.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let nofollow = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).expect("the system's flags fit its type for flags");
    let file = File::options().read(true).custom_flags(nofollow).open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// The parser shows the place of an error over several lines; its first says what is wrong.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// [`World`] by name, for the sandbox knows nothing of files.
mod world_name {
    use super::{Deserialize, World};
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(world: &Option<World>, serializer: S) -> Result<S::Ok, S::Error> {
        match world {
            Some(World::Http) => serializer.serialize_some("http"),
            Some(World::Command) => serializer.serialize_some("command"),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<World>, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None => Ok(None),
            Some("http") => Ok(Some(World::Http)),
            Some("command") => Ok(Some(World::Command)),
            Some(other) => Err(D::Error::custom(format!("unknown world {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests;
